"""The references that tensors are compared with: NumPy in float64, and NumPy's own dtypes.

The comparison here uses NumPy alone, so that no function under test takes part in judging itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
from hypothesis import strategies as st

import ferrum_array as fa
from ferrum_array.testing import broadcastable_shapes, tensors

#: The NumPy type of each dtype.
NP: dict[fa.Dtype, Any] = {
    d: np.dtype(ml_dtypes.bfloat16 if d is fa.bfloat16 else d.standard_name) for d in fa.Dtype.all()
}

BOOL = (fa.bool,)
SIGNED = (fa.int8, fa.int16, fa.int32, fa.int64)
UNSIGNED = (fa.uint8, fa.uint16, fa.uint32, fa.uint64)
INTEGERS = (*SIGNED, *UNSIGNED)
HALVES = (fa.float16, fa.bfloat16)
FLOATS = (*HALVES, fa.float32, fa.float64)
COMPLEX = (fa.complex64, fa.complex128)
ALL = (*BOOL, *INTEGERS, *FLOATS, *COMPLEX)


def to_numpy(x: fa.Tensor) -> np.ndarray[Any, Any]:
    """The elements in NumPy's type for the dtype, in memory of their own."""
    found = x.numpy(copy=True)
    assert found.dtype == NP[x.dtype]
    return found


def wide(x: fa.Tensor | np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The elements in float64 or complex128; integers and booleans as they are."""
    found = to_numpy(x) if isinstance(x, fa.Tensor) else np.asarray(x)
    if found.dtype.kind in "biu":
        return found
    return found.astype(np.complex128 if found.dtype.kind == "c" else np.float64)


def to_dtype(values: Any, dtype: fa.Dtype) -> np.ndarray[Any, Any]:
    """NumPy values rounded to *dtype*."""
    with np.errstate(all="ignore"):
        return np.asarray(values).astype(NP[dtype])


def check(
    actual: fa.Tensor,
    expected: Any,
    dtype: fa.Dtype,
    *,
    ulps: float = 0,
    atol: float = 0,
    device: fa.Device | None = None,
) -> None:
    """*actual* is a Tensor of *dtype* (on *device*) with the shape and the values of *expected*.

    *expected* is rounded to *dtype*; then each element of a floating dtype may be *ulps* units in
    the last place, or *atol*, away. NaN equals NaN.
    """
    assert type(actual) is fa.Tensor, f"got {type(actual)}"
    assert actual.dtype is dtype, f"dtype {actual.dtype}, expected {dtype}"
    assert device is None or actual.device is device, f"on {actual.device}, expected {device}"
    rounded = wide(to_dtype(expected, dtype))
    assert actual.shape == rounded.shape, f"shape {actual.shape}, expected {rounded.shape}"
    found = wide(actual)
    if rounded.dtype.kind in "biu" or (not ulps and not atol):
        np.testing.assert_array_equal(found, rounded)
        return
    eps = fa.finfo(dtype).eps
    atol = max(atol, fa.finfo(dtype).smallest_normal)
    np.testing.assert_allclose(found, rounded, rtol=ulps * eps, atol=atol, equal_nan=True)


def numbers(dtype: fa.Dtype, low: int = -50, high: int = 50) -> st.SearchStrategy[Any]:
    """Python numbers of moderate size, finite, that every dtype of the kind holds."""
    if dtype is fa.bool:
        return st.booleans()
    if dtype.is_integer:
        return st.integers(max(low, 0) if dtype in UNSIGNED else low, high)
    eighths = st.integers(low * 8, high * 8).map(lambda n: n / 8).filter(lambda x: _short(x))
    if dtype.is_complex:
        return st.builds(complex, eighths, eighths)
    return eighths


def _short(value: float) -> bool:
    """Whether bfloat16 holds *value*."""
    return float(np.float32(value).astype(ml_dtypes.bfloat16)) == value


def moderate(
    dtype: fa.Dtype, shape: Any = None, *, device: Any = None, low: int = -50, high: int = 50
) -> st.SearchStrategy[fa.Tensor]:
    """Tensors of such numbers."""
    return tensors(dtype, shape, device=device, elements=numbers(dtype, low, high))


@st.composite
def moderate_pairs(
    draw: Any, first: fa.Dtype, second: fa.Dtype, device: Any = None, low: int = -50
) -> tuple[fa.Tensor, fa.Tensor]:
    """Two tensors of such numbers, of two dtypes, whose shapes broadcast."""
    one, two = draw(broadcastable_shapes(2, max_side=3))
    return (
        draw(moderate(first, one, device=device, low=low)),
        draw(moderate(second, two, device=device, low=low)),
    )


def on(device: fa.Device, dtypes: Sequence[fa.Dtype]) -> list[fa.Dtype]:
    """Those of *dtypes* that the device has."""
    return [d for d in dtypes if device.supports(d)]
