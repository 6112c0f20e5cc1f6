"""Quick ways of NumPy storage give the bits that the plain ways give."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import ferrum_array as fa
from tests.array.oracle import FLOATS, INTEGERS, to_numpy

LONG = 1500  # elements: more than are looked at one by one


def bits(x: Any) -> list[int]:
    found = to_numpy(x) if isinstance(x, fa.Tensor) else x
    return found.view(f"u{found.itemsize}").tolist()


def values(dtype: fa.Dtype, seed: int = 0) -> np.ndarray[Any, Any]:
    drawn = np.random.default_rng(seed).integers(-50, 50, LONG)
    host = drawn.astype(np.int64) % 50 if dtype.kind == "unsigned integer" else drawn
    return to_numpy(fa.asarray(host, dtype=dtype))


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("dtype", [*INTEGERS, *FLOATS], ids=str)
def test_long_sorts(dtype: fa.Dtype, descending: bool) -> None:
    host = values(dtype).reshape(3, 500)
    wanted = np.sort(host.astype(np.float64), axis=1)
    found = fa.sort(fa.asarray(host), axis=1, descending=descending)
    assert found.dtype is dtype
    assert np.array_equal(to_numpy(found).astype(np.float64), wanted[:, ::-1] if descending else wanted)


@pytest.mark.parametrize("dtype", [fa.float32, fa.float64], ids=str)
def test_long_sorts_keep_zeros_of_both_signs_and_nans_in_order(dtype: fa.Dtype) -> None:
    host = values(dtype)
    host[::7], host[3::7] = 0.0, -0.0
    assert bits(fa.sort(fa.asarray(host))) == bits(np.sort(host, kind="stable"))
    host[5::70], host[6::70] = np.nan, -np.nan
    found = fa.sort(fa.asarray(host))
    assert bits(found) == bits(np.sort(host, kind="stable"))
    assert bits(found) == bits(fa.take(fa.asarray(host), fa.argsort(fa.asarray(host))))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_squares_are_products(dtype: fa.Dtype, device: fa.Device) -> None:
    if not device.supports(dtype):
        pytest.skip(f"{device} has no {dtype}")
    x = fa.asarray([0.0, -1.5, 3.0, 1e30, fa.inf, fa.nan], dtype=dtype, device=device)
    for power in (2, 2.0):
        assert str(x**power) == str(x * x)
    if dtype is fa.float64:  # within two units of the last place, as CUDA's own power is
        assert (2**x).tolist()[:3] == pytest.approx([1.0, 2**-1.5, 8.0], rel=4.5e-16, abs=0)
    assert str(x**3) == str(fa.pow(x, 3))


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS], ids=str)
def test_distinct_values_are_those_of_unique_all(dtype: fa.Dtype, device: fa.Device) -> None:
    if not device.supports(dtype):
        pytest.skip(f"{device} has no {dtype}")
    for host in (values(dtype), values(dtype)[:0], values(dtype)[:6].reshape(2, 3), values(dtype)[0]):
        x = fa.asarray(host, device=device)
        assert fa.unique_values(x).tolist() == fa.unique_all(x).values.tolist()
    if dtype in FLOATS:
        x = fa.asarray([fa.nan, 0.0, -0.0, fa.nan], dtype=dtype, device=device)
        assert str(fa.unique_values(x)) == str(fa.unique_all(x).values)


def test_bounds_of_clip(device: fa.Device) -> None:
    x = fa.asarray([1, 5, 9], device=device)
    assert fa.clip(x, fa.asarray(3, dtype="i8", device=device), 7).tolist() == [3, 5, 7]
    assert fa.clip(x, fa.asarray([2, 6, 8], device=device)).tolist() == [2, 6, 9]
    assert fa.clip(x, 8, 2).tolist() == [2, 2, 2]
    for bound, error in ((0.5, TypeError), (1 << 70, OverflowError)):
        with pytest.raises(error, match="clip"):
            fa.clip(x, bound)


def test_clip_takes_arrays_of_numpy_as_bounds() -> None:
    assert fa.clip(fa.asarray([1, 5, 9]), np.asarray([2, 2, 2]), np.int8(7)).tolist() == [2, 5, 7]


def test_whole_numbers_in_a_row() -> None:
    end = 1 << 63
    assert fa.arange(5, -5, -3).tolist() == [5, 2, -1, -4]
    assert fa.arange(end, end + 3, dtype="u64").tolist() == [end, end + 1, end + 2]
    assert fa.arange(end - 2, end).tolist() == [end - 2, end - 1]
    assert fa.arange(-end, end, end - 1).tolist() == [-end, -1, end - 2]
    assert fa.arange(0, 300, 50, dtype="i16").tolist() == [0, 50, 100, 150, 200, 250]


def test_lists_of_rows_with_tensors_deep_inside() -> None:
    one = fa.asarray(1.5)
    assert fa.asarray([[[1, 2], [one, 3]]]).tolist() == [[[1.0, 2.0], [1.5, 3.0]]]
    assert fa.asarray(([1, 2], (3, 4))).tolist() == [[1, 2], [3, 4]]
    assert fa.asarray([np.float64(1.5), 2]).dtype is fa.float64


def test_taking_counts_from_the_end_and_stays_in_bounds(device: fa.Device) -> None:
    x = fa.asarray([[1, 2, 3], [4, 5, 6]], device=device)
    places = fa.asarray([[-1, 0], [1, -3]], device=device)
    assert fa.take(x, places[0], axis=1).tolist() == [[3, 1], [6, 4]]
    assert fa.take_along_axis(x, places, axis=1).tolist() == [[3, 1], [5, 4]]
    for index, length in ((3, 3), (-4, 3), (0, 0)):
        bad = fa.asarray([[index]] * 2, device=device)
        message = f": index {index} is out of bounds for an axis of length {length}"
        with pytest.raises(IndexError, match="take" + message):
            fa.take(x[:, :length], bad[0], axis=1)
        with pytest.raises(IndexError, match="take_along_axis" + message):
            fa.take_along_axis(x[:, :length], bad, axis=1)
    none = fa.asarray([], dtype="i64", device=device)
    assert fa.take(x[:, :0], none, axis=1).shape == (2, 0)
    assert fa.take_along_axis(x, none.reshape(2, 0), axis=1).shape == (2, 0)
