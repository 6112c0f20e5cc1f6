"""Sorting functions of the array API standard. Sorts are stable whether or not that is asked for."""

from __future__ import annotations

from typing import Any

from ferrum_array.dispatch import normalize_axis, tensor
from ferrum_array.dtype import Dtype
from ferrum_array.spec import spec_of
from ferrum_array.tensor import Tensor, wrap

__all__ = ["argsort", "sort"]


def _sorted(name: str, x: Tensor, axis: int, descending: bool) -> tuple[Tensor, Any]:
    x = tensor(name, x)
    if x.dtype.is_complex:
        raise TypeError(f"{name}: complex numbers have no order, got {x._summary()}; take abs() or real() first")
    return x, x._spec.call[name](x._data, normalize_axis(name, axis, x.ndim), bool(descending))


def sort(x: Tensor, /, *, axis: int = -1, descending: bool = False, stable: bool = True) -> Tensor:
    """The elements in order along *axis*; NaN counts as greatest.

    Raises:
        TypeError: for complex *x*. IndexError: for an axis out of bounds.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.sort(fa.asarray([3, 1, 2]), descending=True)
        Tensor([3, 2, 1])
    """
    x, data = _sorted("sort", x, axis, descending)
    return wrap(data, x._spec)


def argsort(x: Tensor, /, *, axis: int = -1, descending: bool = False, stable: bool = True) -> Tensor:
    """The indices that put the elements in order along *axis*; equal elements keep their order. int64.

    Raises:
        TypeError: for complex *x*. IndexError: for an axis out of bounds.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.argsort(fa.asarray([3, 1, 2]))
        Tensor([1, 2, 0])
    """
    x, data = _sorted("argsort", x, axis, descending)
    return wrap(data, spec_of(Dtype.I64, x.device))
