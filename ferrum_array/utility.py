"""Utility functions of the array API standard, and waiting for devices."""

from __future__ import annotations

from ferrum_array.device import Device, get_default_device
from ferrum_array.dispatch import integer, normalize_axes, normalize_axis, tensor
from ferrum_array.dtype import Dtype
from ferrum_array.elementwise import not_equal, subtract
from ferrum_array.manipulation import concat
from ferrum_array.spec import spec_of
from ferrum_array.tensor import Axis, Tensor, wrap

__all__ = ["all", "any", "diff", "synchronize"]


def _truth(name: str, x: Tensor, axis: Axis, keepdims: bool) -> Tensor:
    x = tensor(name, x)
    data = x._spec.call[name](x._data, normalize_axes(name, axis, x.ndim), bool(keepdims))
    return wrap(data, spec_of(Dtype.BOOL, x.device))


def all(x: Tensor, /, *, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Whether all elements along *axis* are true (not zero); True for none. NaN counts as true.

    Raises:
        IndexError: for an axis out of bounds.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.all(fa.asarray([True, False]))
        Tensor(False)
    """
    return _truth("all", x, axis, keepdims)


def any(x: Tensor, /, *, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Whether any element along *axis* is true (not zero); False for none. NaN counts as true.

    Raises:
        IndexError: for an axis out of bounds.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.any(fa.asarray([True, False]))
        Tensor(True)
    """
    return _truth("any", x, axis, keepdims)


def diff(
    x: Tensor, /, *, axis: int = -1, n: int = 1, prepend: Tensor | None = None, append: Tensor | None = None
) -> Tensor:
    """The *n*-th differences of neighbours along *axis*; booleans give whether neighbours differ.

    Args:
        prepend, append: tensors joined to *x* along *axis* first.

    Raises:
        ValueError: for a negative *n*. IndexError: for an axis out of bounds.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.diff(fa.asarray([1, 4, 9]))
        Tensor([3, 5])
    """
    x = tensor("diff", x)
    n = integer("diff", "n", n)
    if n < 0:
        raise ValueError(f"diff: n must not be negative, got {n}")
    place = normalize_axis("diff", axis, x.ndim)
    parts = [one for one in (prepend, x, append) if one is not None]
    if len(parts) > 1:
        x = concat(parts, axis=place)
    if n == 0:
        return x.copy()
    head = (slice(None),) * place
    for _ in range(n):
        after, before = x[(*head, slice(1, None))], x[(*head, slice(None, -1))]
        x = not_equal(after, before) if x.dtype is Dtype.BOOL else subtract(after, before)
    return x


def synchronize(device: Device | str | None = None) -> None:
    """Wait until *device* (the default device for None) has finished all work given to it.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.synchronize()
    """
    (get_default_device() if device is None else Device(device)).backend.synchronize()
