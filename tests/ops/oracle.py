"""Ops are compared with NumPy in float64, by relative distance, as their tolerances are stated."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

import ferrum_array as fa
from tests.array.oracle import NP, to_dtype, wide

Array = np.ndarray[Any, Any]

FLOATS = (fa.float32, fa.float16, fa.bfloat16, fa.float64)

#: the relative L2 distance that an op may have from the oracle
TOLERANCE = {fa.float64: 1e-14, fa.float32: 1e-6, fa.float16: 2e-3, fa.bfloat16: 1.5e-2}


def floats(device: fa.Device) -> list[fa.Dtype]:
    """The floating dtypes of *device*."""
    return [dtype for dtype in FLOATS if device.supports(dtype)]


def noise(seed: int, *shape: int) -> Array:
    """Normal numbers."""
    return np.random.default_rng(seed).standard_normal(shape)


def make(values: Array, dtype: fa.Dtype, device: fa.Device, *, strided: bool = False) -> tuple[fa.Tensor, Array]:
    """A tensor of *values* rounded to *dtype*, and what it then holds, in float64.

    With *strided* it is a view with gaps: every other element of a last axis twice as long.
    """
    rounded = to_dtype(values, dtype)
    if strided and values.ndim:
        padded = np.repeat(rounded, 2, axis=-1)
        return fa.asarray(padded, device=device)[..., ::2], wide(rounded)
    return fa.asarray(rounded, device=device), wide(rounded)


def distance(actual: Array, expected: Array, floor: float = 1e-30) -> float:
    """The L2 norm of the difference relative to that of *expected*; infinities must agree.

    Numbers below *floor* count as large as it.
    """
    same = actual == expected  # infinities too
    difference = np.where(same, 0.0, actual - np.where(same, 0.0, expected))
    scale = float(np.linalg.norm(np.where(np.isfinite(expected), expected, 0.0)))
    error = float(np.linalg.norm(difference))
    return error if error == 0.0 or np.isnan(error) else error / max(scale, floor * math.sqrt(expected.size))


def check(actual: fa.Tensor, expected: Array, dtype: fa.Dtype, tolerance: float = 0.0) -> None:
    """*actual* must have *dtype*, the expected shape, and lie within the tolerance of its dtype."""
    assert actual.dtype is dtype, f"dtype is {actual.dtype}, expected {dtype}"
    assert actual.shape == expected.shape, f"shape is {actual.shape}, expected {expected.shape}"
    assert NP[dtype] == actual.numpy().dtype
    # a dtype has fewer digits below its smallest normal number
    found = distance(wide(actual), expected, fa.finfo(dtype).smallest_normal)
    allowed = tolerance or TOLERANCE[dtype]
    assert found <= allowed, f"relative distance {found:.3g} is above {allowed:.3g}"


def same_numbers(actual: fa.Tensor, expected: Array, *operands: Array) -> None:
    """*actual* must be *expected*, float32, in every bit, but for which NaN it is.

    CUDA's float32 takes operands and results below the least normal number as 0 of their sign: there, a result that is
    such, or has such an operand (arrays that broadcast with it), may be 0.
    """
    found = actual.numpy()
    assert found.dtype == expected.dtype == np.float32, f"dtypes are {found.dtype} and {expected.dtype}"
    assert found.shape == expected.shape, f"shape is {found.shape}, expected {expected.shape}"
    if actual.device.kind == "cuda":
        small = np.zeros(expected.shape, bool)
        for x in (expected, *operands):
            small |= (x != 0) & (np.abs(x) < np.finfo(np.float32).smallest_normal)
        # 0 of a sign has that bit alone
        expected = np.where(small & (found == 0), np.copysign(np.float32(0), expected), expected)
    missing = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(found), missing)
    np.testing.assert_array_equal(found.view(np.uint32)[~missing], expected.view(np.uint32)[~missing])
