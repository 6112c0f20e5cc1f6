"""Maps of tensors as the driver is asked for them, and how a launch passes them on."""

from __future__ import annotations

import ctypes
import struct
from typing import Any

import pytest

import ferrum_array as fa
from ferrum_ops.kernels.cuda import launch, maps
from ferrum_ops.kernels.cuda.maps import Layout, Map


class Driver:
    """The driver's function, which writes a pattern, or fails."""

    def __init__(self, error: int = 0) -> None:
        self.error = error
        self.asked: list[Any] = []

    def __call__(self, to: Any, dtype: Any, rank: Any, address: Any, *rest: Any) -> int:
        assert to.value % 64 == 0
        ctypes.memmove(to.value, bytes(range(128)), 128)
        self.asked.append((dtype.value, rank.value, address.value, *(list(x) for x in rest[:4]),
                           *(x.value for x in rest[4:])))  # fmt: skip
        return self.error


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    found = Driver()
    monkeypatch.setattr(maps, "_driver", lambda: found)
    maps.numbers.cache_clear()
    return found


def test_the_driver_counts_axes_from_the_last_and_steps_in_bytes(driver: Driver) -> None:
    args = 4096, fa.bfloat16, (2, 300, 8, 64), (153600, 512, 64, 1), Layout((1, 128, 1, 64), 3)
    assert maps.numbers(*args) == (bytes(range(128)), 2, 300, 8, 64, 153600, 512, 64, 1)
    assert driver.asked == [
        (9, 4, 4096, [64, 8, 300, 2], [128, 1024, 307200], [64, 1, 128, 1], [1, 1, 1, 1], 0, 3, 2, 0)
    ]
    assert maps.numbers(*args) == (bytes(range(128)), 2, 300, 8, 64, 153600, 512, 64, 1)
    assert len(driver.asked) == 1  # it is asked once
    maps.numbers(8192, *args[1:])
    assert len(driver.asked) == 2


def test_a_refusal_says_what_was_asked(driver: Driver) -> None:
    driver.error = 1
    with pytest.raises(RuntimeError, match=r"no map of a tensor of float16 with shape \(3, 8\) and steps \(9, 1\).*1$"):
        maps.numbers(64, fa.float16, (3, 8), (9, 1), Layout((2, 8), 0))


def test_a_launch_passes_a_map_with_its_shape_and_steps(driver: Driver) -> None:
    x = fa.zeros((4, 8), dtype="f16", device="cpu")

    class At:
        data = type("Data", (), {"ptr": 640})

    class Stored:
        _data, _spec = At, x._spec

    seen = Map(Stored, (4, 8), (8, 1), (2, 8))  # which stands for a tensor on a device
    flat = launch._flat([7, seen, 0.5], (Layout((2, 8), 1),))
    assert flat == [7, bytes(range(128)), 4, 8, 8, 1, 0.5]
    assert driver.asked[0][2] == 640
    layout, places = launch._laid_out(["i32", maps.kind(fa.float16, (2, 8)), "fp32", fa.int32], [2])
    assert layout.pack(*flat, 99, 0, 0) == struct.pack("i128siiqqfPPP", *flat, 99, 0, 0)
    assert places == (0, 4, 132, 136, 144, 152, 160, 168, 176, 184)


@pytest.mark.parametrize(("dtype", "columns", "swizzle"), [(fa.float16, 64, 128), (fa.bfloat16, 32, 64)])
def test_the_compiler_knows_tiles_by_their_dtype_and_lengths(dtype: fa.Dtype, columns: int, swizzle: int) -> None:
    kind = maps.kind(dtype, (1, 64, 1, columns))
    name = {fa.float16: "fp16", fa.bfloat16: "bf16"}[dtype]
    assert kind.startswith(f"tensordesc<{name}[1, 64, 1, {columns}],NVMMASharedLayout(swizzle_byte_width={swizzle}")
