"""The services of CUDA storage: streams, memory, exchange with PyTorch, several devices, and what is read back."""

from __future__ import annotations

import gc
import pickle
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import ferrum_array as fa
from ferrum_array.backends.cupy_fixes import READS_BACK
from tests.array.test_half import OTHER, SAME, matrix

pytestmark = pytest.mark.cuda

CUDA = "cuda:0"


@pytest.fixture
def cp() -> Any:
    return pytest.importorskip("cupy")


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch")


def ones(*shape: int, dtype: Any = "f32") -> fa.Tensor:
    return fa.ones(shape, dtype=dtype, device=CUDA)


@pytest.fixture
def read_backs(cp: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], int]:
    """Counts how often a call copies from the device to the host: CuPy declares each such wait."""
    from cupy._core import syncdetect

    seen = []
    monkeypatch.setattr(syncdetect, "_declare_synchronize", lambda: seen.append(1))

    def count(call: Callable[[], object]) -> int:
        call()  # compiles, and sets up libraries
        seen.clear()
        call()
        return len(seen)

    return count


# What is read back.


def calls() -> dict[str, Callable[[], object]]:
    """One call for each raw function that reads back, and for many that must not."""
    x, square, spd = ones(3, 4), ones(3, 3), fa.eye(3, device=CUDA) * 2
    places, mask, whole = fa.asarray([0, 2], device=CUDA), x > 0, fa.asarray([1, 2], device=CUDA)
    raw, index = x._spec.call, places._spec.call
    table: dict[str, Callable[[], object]] = {
        "nonzero": lambda: raw["nonzero"](x._data),
        "unique_all": lambda: raw["unique_all"](x._data),
        "repeat": lambda: raw["repeat"](x._data, fa.asarray([1, 0, 2], device=CUDA)._data, 0),
        "getitem": lambda: (raw["getitem"](x._data, places._data), raw["getitem"](x._data, mask._data)),
        "setitem": lambda: raw["setitem"](x._data, (mask._data,), ones()._data),
        "pow": lambda: index["pow"](whole._data, whole._data),
        "solve": lambda: raw["solve"](spd._data, square._data),
        "svd": lambda: raw["svd"](x._data, False),
        "cholesky": lambda: raw["cholesky"](spd._data, False),
        **{n: (lambda n=n: raw[n](spd._data)) for n in ("inv", "eigh", "eigvalsh", "eig", "eigvals", "svdvals")},
    }
    for name in ("exp", "sqrt", "negative", "isnan", "sign"):
        table[name] = lambda name=name: raw[name](x._data)
    for name in ("add", "divide", "floor_divide", "remainder", "maximum", "less", "matmul"):
        table[name] = lambda name=name: raw[name](square._data, square._data)
    for name in ("sum", "prod", "max", "mean", "all", "any", "count_nonzero"):
        table[name] = lambda name=name: raw[name](x._data, (0, 1), False)
    for name in ("argmax", "argmin"):
        table[name] = lambda name=name: raw[name](x._data, 0, False)
    for name in ("sort", "argsort"):
        table[name] = lambda name=name: raw[name](x._data, 1, True)
    table |= {
        "var": lambda: raw["var"](x._data, (0,), 1.0, False),
        "cumulative_sum": lambda: raw["cumulative_sum"](x._data, 1),
        "take": lambda: raw["take"](x._data, places._data, 0),
        "where": lambda: raw["where"](mask._data, x._data, x._data),
        "concat": lambda: raw["concat"]([x._data, x._data], 0),
        "roll": lambda: raw["roll"](x._data, (1,), (0,)),
        "astype": lambda: index["astype"](x._data),
        "full": lambda: raw["full"]((3,), -0.0),
        "arange": lambda: index["arange"](0, 1, 5),
        "searchsorted": lambda: raw["searchsorted"](ones(3)._data, x._data, "left"),
        "fft": lambda: raw["rfft"](x._data, None, 1, "backward"),
        "det": lambda: raw["det"](spd._data),
        "einsum": lambda: raw["einsum"]("ij,kj->ik", x._data, x._data),
    }
    return table


def test_only_the_functions_of_the_table_read_back(read_backs: Any) -> None:
    table = calls()
    assert set(READS_BACK) <= set(table)
    found = {name: read_backs(call) for name, call in table.items()}
    most = {name: READS_BACK.get(name, (0, ""))[0] for name in found}
    assert {n: c for n, c in found.items() if c > most[n]} == {}
    assert all(found[name] > 0 for name in READS_BACK)


def test_reading_back_is_counted(read_backs: Any) -> None:
    assert read_backs(lambda: float(ones())) == 1


_BITS = "bitwise_and bitwise_or bitwise_xor bitwise_left_shift bitwise_right_shift"
_TRUTH = "logical_and logical_or logical_xor"

#: the functions of the namespace that read back, and the most copies that one call makes
NAMESPACE_READS = {
    **dict.fromkeys(("take", "take_along_axis"), 2),
    **dict.fromkeys(
        ("nonzero", "unique_all", "unique_counts", "unique_inverse", "unique_values", "nunique", "index"), 1
    ),
    **{f"linalg.{name}": 2 for name in ("cholesky", "inv", "solve", "eig", "eigvals")},
    **{f"linalg.{name}": 4 for name in ("eigh", "eigvalsh")},
    **{f"linalg.{name}": 2 for name in ("svd", "svdvals", "pinv", "matrix_rank")},
}


def test_the_namespace_reads_back_only_where_it_says(read_backs: Any) -> None:
    x, whole = matrix(fa.float32, fa.Device(CUDA)), fa.asarray([1, 2, 3], device=CUDA)
    truth = whole > 1
    table: dict[str, Callable[[], object]] = {name: (lambda call=call: call(x)) for name, call in SAME.items()}
    table |= {name: (lambda call=call: call(x)) for name, (call, _) in OTHER.items()}
    table |= {name: (lambda name=name: getattr(fa, name)(whole, whole)) for name in _BITS.split()}
    table |= {name: (lambda name=name: getattr(fa, name)(truth, truth)) for name in _TRUTH.split()}
    table |= {
        "bitwise_invert": lambda: fa.bitwise_invert(whole),
        "logical_not": lambda: fa.logical_not(truth),
        "fft.fftfreq": lambda: fa.fft.fftfreq(5, device=CUDA),
        "fft.rfftfreq": lambda: fa.fft.rfftfreq(5, device=CUDA),
    }
    found = {name: read_backs(call) for name, call in table.items()}
    assert {name: count for name, count in found.items() if count > NAMESPACE_READS.get(name, 0)} == {}
    assert [name for name in NAMESPACE_READS if not found[name]] == []


# Memory.


def test_a_request_beyond_the_memory_is_an_error_that_leaves_the_device_usable(cp: Any) -> None:
    free, total = cp.cuda.Device(0).mem_info
    x = ones(4)
    with pytest.raises(MemoryError, match=r"cuda:0.*bytes are free"):
        fa.zeros((2 * total,), dtype="i8", device=CUDA)
    with pytest.raises(MemoryError, match=r"add: no memory left on cuda:0"):
        fa.broadcast_to(x[:1], (total,)) + fa.broadcast_to(x[:1], (total,))
    assert (x + 1).tolist() == [2.0, 2.0, 2.0, 2.0]
    half = fa.zeros((free // 2,), dtype="i8", device=CUDA)
    assert half.size == free // 2
    del half
    cp.get_default_memory_pool().free_all_blocks()


def test_deleted_tensors_return_their_memory(cp: Any) -> None:
    pool = cp.get_default_memory_pool()
    gc.collect()
    before = pool.used_bytes()
    x = ones(1 << 20)
    view = x[::2]
    y = x @ x
    assert pool.used_bytes() >= before + (4 << 20)
    del x, y
    assert pool.used_bytes() >= before + (4 << 20)  # the view holds it
    del view
    gc.collect()
    assert pool.used_bytes() == before


def test_writes_happen_in_place_when_nothing_else_sees_the_memory() -> None:
    x = ones(4)
    place = x._data.data.ptr
    x[0] = 2.0
    x += 1
    assert x._data.data.ptr == place
    view = x[1:]
    x[1] = 9.0
    assert view.tolist() == [2.0, 2.0, 2.0]
    assert x.tolist() == [3.0, 9.0, 2.0, 2.0]


# Streams.


def test_work_goes_to_the_current_stream(cp: Any) -> None:
    stream = cp.cuda.Stream(non_blocking=True)
    with stream:
        x = ones(1 << 24)
        for _ in range(20):
            x = x * 1.0001
        assert not stream.done  # it is still computing, there
        x.block_until_ready()
        assert stream.done
    fa.synchronize(CUDA)


def test_a_consumer_on_another_stream_waits(cp: Any, torch: Any) -> None:
    """A tensor handed over before it is computed is read after: a long chain of work is still running."""
    for _ in range(5):
        with cp.cuda.Stream(non_blocking=True):
            x = fa.zeros((1 << 24,), device=CUDA)
            for _ in range(50):
                x = x + 1.0
            side = torch.cuda.Stream()
            with torch.cuda.stream(side):
                taken = torch.from_dlpack(x)
                total = float(taken.sum() / taken.numel())
        assert total == 50.0


def test_we_wait_for_a_producer_on_another_stream(cp: Any, torch: Any) -> None:
    for _ in range(5):
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            y = torch.zeros(1 << 24, device="cuda")
            for _ in range(50):
                y = y + 1.0
            with cp.cuda.Stream(non_blocking=True):
                x = fa.from_dlpack(y)
                assert float(fa.sum(x) / x.size) == 50.0


# Exchange.


@pytest.mark.parametrize("dtype", fa.Dtype.all(), ids=str)
def test_pytorch_and_we_share_memory_both_ways(torch: Any, dtype: fa.Dtype) -> None:
    if dtype in (fa.uint16, fa.uint32, fa.uint64) and not hasattr(torch, dtype.standard_name):
        pytest.skip(f"not run: this PyTorch has no {dtype}")
    x = ones(2, 3, dtype=dtype)
    there = torch.from_dlpack(x)
    back = fa.from_dlpack(there)
    assert back.dtype is dtype
    assert back.device.name == CUDA
    there.zero_()
    torch.cuda.synchronize()
    assert not fa.any(back)
    assert not fa.any(x)
    back[...] = True if dtype is fa.bool else 1  # ours copies first: memory handed out or taken in counts as shared
    torch.cuda.synchronize()
    assert not fa.any(fa.from_dlpack(there))
    copied = fa.from_dlpack(there, copy=True)
    there.fill_(1)
    assert not fa.any(copied)


def test_exports_to_the_host_and_refusals() -> None:
    x = ones(3)
    assert np.from_dlpack(x, device="cpu").tolist() == [1.0, 1.0, 1.0]
    with pytest.raises(TypeError, match=r"t\.numpy\(\)"):
        np.asarray(x)
    with pytest.raises(BufferError):
        x.__dlpack__(dl_device=(1, 0), copy=False)
    with pytest.raises(ValueError, match="copy"):
        x.numpy(copy=False)
    with pytest.raises(ValueError, match="copy"):
        fa.asarray(np.ones(3), device=CUDA, copy=False)
    if sys.version_info >= (3, 12):
        with pytest.raises(BufferError):
            memoryview(x)  # type: ignore[arg-type]  # refused, as it must be
    assert pickle.loads(pickle.dumps(x)).device.name == CUDA


def test_cupy_arrays_are_taken_in_without_a_copy(cp: Any) -> None:
    array = cp.arange(4)
    x = fa.asarray(array)
    assert x.device.name == CUDA
    array[0] = 7
    assert x.tolist() == [7, 1, 2, 3]
    x[1] = 9
    assert array.tolist() == [7, 1, 2, 3]


def test_a_device_and_the_host_do_not_mix() -> None:
    with pytest.raises(ValueError, match=r"cuda:0.*cpu|cpu.*cuda:0"):
        ones(2) + fa.ones(2, device="cpu")
    with pytest.raises(ValueError, match="there is no device cuda:99"):
        fa.ones(2, device="cuda:99")


# Several devices.


@pytest.fixture
def second() -> fa.Device:
    found = [d for d in fa.devices() if d.kind == "cuda"]
    if len(found) < 2:
        pytest.skip("not run: needs two CUDA devices")
    return found[1]


def test_two_devices(second: fa.Device, cp: Any) -> None:
    x = fa.arange(1 << 20, dtype="f32", device=CUDA)
    y = (x + 1).to_device(second)
    assert y.device is second
    assert y._data.device.id == 1
    with pytest.raises(ValueError, match=r"cuda:0.*cuda:1"):
        x + y
    assert (y * 2)._data.device.id == 1  # whatever device is current
    assert cp.cuda.runtime.getDevice() == 0
    assert bool(fa.all((y - 1).to_device(CUDA) == x))
    w = fa.ones((64, 64), dtype="bf16", device=second)
    assert (w @ w)._data.device.id == 1
    assert float((w @ w)[0, 0]) == 64.0
    part = x[::2].to_device(second)
    assert part[1].item() == 2.0
    for _ in range(10):  # a copy waits for the work before it, and later work for the copy
        z = fa.zeros((1 << 24,), device=CUDA)
        for _ in range(20):
            z = z + 1.0
        moved = z.to_device(second)
        del z
        fa.ones((1 << 24,), device=CUDA)
        assert float(fa.sum(moved) / moved.size) == 20.0
