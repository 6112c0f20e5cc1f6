"""The comparison that the tests of the ops rest on can fail."""

from __future__ import annotations

import numpy as np
import pytest

import ferrum_array as fa
from tests.ops.oracle import TOLERANCE, check, distance, make, same_numbers


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_a_difference_above_the_tolerance_is_found(dtype: fa.Dtype) -> None:
    exact = np.ones(100)
    check(fa.ones(100, dtype=dtype), exact, dtype)
    check(fa.ones(100, dtype=dtype), exact * (1 + TOLERANCE[dtype] / 2), dtype)
    with pytest.raises(AssertionError, match="relative distance"):
        check(fa.ones(100, dtype=dtype), exact * (1 + TOLERANCE[dtype] * 2), dtype)


def test_one_wrong_element_is_found() -> None:
    exact = np.arange(1.0, 9.0)
    wrong = exact.copy()
    wrong[3] += 0.01
    with pytest.raises(AssertionError, match="relative distance"):
        check(fa.asarray(wrong, dtype="f32"), exact, fa.float32)


def test_shapes_dtypes_and_special_values_are_compared() -> None:
    with pytest.raises(AssertionError, match="shape"):
        check(fa.ones(3), np.ones((3, 1)), fa.float32)
    with pytest.raises(AssertionError, match="dtype"):
        check(fa.ones(3, dtype="f16"), np.ones(3), fa.float32)
    infinite = np.asarray([1.0, -np.inf])
    assert distance(infinite, infinite) == 0
    assert not distance(np.asarray([1.0, 1.0]), infinite) <= 1
    assert not distance(np.asarray([1.0, np.inf]), infinite) <= 1
    assert not distance(np.asarray([1.0, np.nan]), np.ones(2)) <= 1
    assert not distance(np.asarray([1e-20]), np.zeros(1)) <= 1e-12


def test_numbers_must_be_the_same_in_every_bit(device: fa.Device) -> None:
    numbers = np.asarray([1.0, -0.0, np.nan, 1e-37], np.float32)
    same_numbers(fa.asarray(numbers, device=device), numbers)
    for place, wrong in enumerate((np.nextafter(np.float32(1), np.float32(2)), 0.0, 1.0, 0.0)):
        other = numbers.copy()
        other[place] = wrong
        with pytest.raises(AssertionError):
            same_numbers(fa.asarray(other, device=device), numbers)
    with pytest.raises(AssertionError, match="shape"):
        same_numbers(fa.asarray(numbers, device=device), numbers[None])


def test_cuda_may_take_small_numbers_as_zero(device: fa.Device) -> None:
    tiny, zero = np.asarray([-1e-39, 2e-38], np.float32), np.asarray([-0.0, 0.0], np.float32)
    factors = np.asarray([1.0, 1e-39], np.float32)
    same_numbers(fa.asarray(tiny, device=device), tiny)
    if device.kind == "cuda":
        same_numbers(fa.asarray(zero, device=device), tiny, factors)
    else:
        with pytest.raises(AssertionError):
            same_numbers(fa.asarray(zero, device=device), tiny, factors)
    with pytest.raises(AssertionError):
        same_numbers(fa.asarray(zero, device=device), tiny)
    with pytest.raises(AssertionError):
        same_numbers(fa.asarray(-zero, device=device), tiny, factors)


def test_strided_tensors_hold_the_same() -> None:
    device = fa.Device("cpu")
    plain, exact = make(np.arange(6.0).reshape(2, 3), fa.float32, device)
    strided, same = make(np.arange(6.0).reshape(2, 3), fa.float32, device, strided=True)
    assert (exact == same).all()
    assert fa.all(plain == strided)
    assert not strided.numpy().flags.c_contiguous
