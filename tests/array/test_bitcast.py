"""Bits read as another dtype, beside NumPy's views."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ferrum_array as fa
from tests.array.oracle import ALL, NP, on, to_numpy

NUMBERS = tuple(dtype for dtype in ALL if dtype is not fa.bool)


def _bytes(x: np.ndarray) -> bytes:
    return np.ascontiguousarray(x).tobytes()


@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    arranged=st.sampled_from(["contiguous", "gaps", "transposed", "backwards", "repeated"]),
    data=st.data(),
)
def test_all_bits_stay(
    device: fa.Device, seed: int, shape: tuple[int, int], arranged: str, data: st.DataObject
) -> None:
    """Random bytes, so every NaN and every subnormal number too."""
    old, new = (data.draw(st.sampled_from(on(device, NUMBERS))) for _ in range(2))
    rng = np.random.default_rng(seed)
    rows, columns = shape[0], shape[1] * (16 // old.bytes_per_elem)
    raw = rng.integers(0, 256, (rows, columns * old.bytes_per_elem), dtype=np.uint8)
    raw[rng.random(raw.shape) < 0.3] = 255
    a = raw.view(NP[old]) if raw.size else np.zeros((rows, columns), NP[old])
    x = fa.asarray(raw, device=device)
    x = fa.bitcast(x, old)
    assert _bytes(to_numpy(x)) == _bytes(a)
    match arranged:
        case "gaps":
            x, a = fa.concat([x, x], axis=1)[:, :columns], a
        case "transposed":
            x, a = fa.concat([x] * 16, axis=0).T, np.concatenate([a] * 16, axis=0).T
        case "backwards":
            x, a = x[:, ::-1], a[:, ::-1]
        case "repeated":
            x, a = fa.broadcast_to(x, (2, *x.shape)), np.broadcast_to(a, (2, *a.shape))
    got = fa.bitcast(x, new)
    assert got.dtype is new
    assert got.device is device
    assert got.shape == (*a.shape[:-1], a.shape[-1] * old.bytes_per_elem // new.bytes_per_elem)
    assert _bytes(to_numpy(got)) == _bytes(a)
    assert _bytes(to_numpy(fa.bitcast(got, old))) == _bytes(a)


def test_numbers_that_are_known(device: fa.Device) -> None:
    x = fa.asarray([1.0, -0.0, fa.inf], dtype="f32", device=device)
    assert fa.bitcast(x, "u32").tolist() == [0x3F800000, 0x80000000, 0x7F800000]
    assert fa.bitcast(fa.asarray([0x40, 0x49, 0x0F, 0x3F][::-1], dtype="u8", device=device), "bf16").shape == (2,)
    assert fa.bitcast(fa.asarray([True, False], device=device), "u8").tolist() == [1, 0]
    one = fa.bitcast(fa.asarray(1.0, dtype="f16", device=device), "i16")
    assert one.shape == ()
    assert one.item() == 0x3C00


def test_a_write_changes_neither_the_bits_nor_the_number(device: fa.Device) -> None:
    x = fa.ones(2, dtype="f32", device=device)
    bits = fa.bitcast(x, "u32")
    x[0] = 2.0
    assert bits.tolist() == [0x3F800000] * 2
    bits[1] = 0
    assert x.tolist() == [2.0, 1.0]
    same = fa.bitcast(x, "f32")
    same[0] = 5.0
    assert x.tolist() == [2.0, 1.0]


def test_what_does_not_fit() -> None:
    with pytest.raises(
        ValueError, match=r"last axis of uint8\[2,3\] must hold a whole number of float16 elements of 2"
    ):
        fa.bitcast(fa.zeros((2, 3), dtype="u8"), "f16")
    with pytest.raises(ValueError, match=r"last axis of float32\[\]"):
        fa.bitcast(fa.asarray(1.0), "u8")
    with pytest.raises(TypeError, match="are not booleans"):
        fa.bitcast(fa.zeros(2, dtype="u8"), fa.bool)
    with pytest.raises(TypeError, match="must be a Tensor, got list"):
        fa.bitcast([1, 2], "u8")


@pytest.mark.mlx
def test_a_dtype_that_the_device_lacks() -> None:
    with pytest.raises(TypeError, match="has no complex128"):
        fa.bitcast(fa.zeros(16, dtype="u8", device="mlx:cpu"), "c128")
