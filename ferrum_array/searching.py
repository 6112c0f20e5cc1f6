"""Searching functions of the array API standard."""

from __future__ import annotations

from typing import Literal

from ferrum_array.dispatch import Operand, broadcast, normalize_axes, normalize_axis, one_device, tensor, unify
from ferrum_array.dtype import Dtype
from ferrum_array.indexing import take
from ferrum_array.spec import spec_of
from ferrum_array.tensor import Axis, Tensor, wrap

__all__ = ["argmax", "argmin", "count_nonzero", "nonzero", "searchsorted", "where"]


def _place_of_extreme(name: str, x: Tensor, axis: int | None, keepdims: bool) -> Tensor:
    x = tensor(name, x)
    if x.dtype.is_complex:
        raise TypeError(f"{name}: complex numbers have no order, got {x._summary()}; take abs() or real() first")
    ndim = x.ndim
    if axis is None:
        x, place = x if ndim == 1 else x.reshape(-1), 0
    else:
        place = normalize_axis(name, axis, ndim)
    if x.shape[place] == 0:
        raise ValueError(f"{name}: {x._summary()} has no elements along axis {place}")
    data = x._spec.call[name](x._data, place, bool(keepdims) and axis is not None)
    result = wrap(data, spec_of(Dtype.I64, x.device))
    return result.reshape((1,) * ndim) if axis is None and keepdims else result


def argmax(x: Tensor, /, *, axis: int | None = None, keepdims: bool = False) -> Tensor:
    """The place of the greatest element along *axis* (of the flattened tensor for None); the first of several. int64.

    Raises:
        ValueError: if there are no elements. TypeError: for complex *x*.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.argmax(fa.asarray([1, 3, 3]))
        Tensor(1)
    """
    return _place_of_extreme("argmax", x, axis, keepdims)


def argmin(x: Tensor, /, *, axis: int | None = None, keepdims: bool = False) -> Tensor:
    """The place of the least element along *axis* (of the flattened tensor for None); the first of several. int64.

    Raises:
        ValueError: if there are no elements. TypeError: for complex *x*.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.argmin(fa.asarray([3, 1, 1]))
        Tensor(1)
    """
    return _place_of_extreme("argmin", x, axis, keepdims)


def count_nonzero(x: Tensor, /, *, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """How many elements along *axis* are not zero (not False). int64.

    Raises:
        IndexError: for an axis out of bounds.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.count_nonzero(fa.asarray([0, 5, -1]))
        Tensor(2)
    """
    x = tensor("count_nonzero", x)
    axes = normalize_axes("count_nonzero", axis, x.ndim)
    return wrap(x._spec.call["count_nonzero"](x._data, axes, bool(keepdims)), spec_of(Dtype.I64, x.device))


def nonzero(x: Tensor, /) -> tuple[Tensor, ...]:
    """The places of the elements that are not zero: one int64 tensor an axis, in row-major order.

    Raises:
        ValueError: for a 0-d tensor.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.nonzero(fa.asarray([0, 5, 0, 7]))
        (Tensor([1, 3]),)
    """
    x = tensor("nonzero", x)
    if x.ndim == 0:
        raise ValueError("nonzero: a 0-d tensor has no places; reshape it to (1,) first")
    spec = spec_of(Dtype.I64, x.device)
    return tuple(wrap(one, spec) for one in x._spec.call["nonzero"](x._data))


def searchsorted(
    x1: Tensor, x2: Operand, /, *, side: Literal["left", "right"] = "left", sorter: Tensor | None = None
) -> Tensor:
    """Where each value of *x2* would be inserted to keep the 1-D *x1* sorted. int64, in the shape of *x2*.

    Args:
        side: ``"left"`` gives the first such place, ``"right"`` the last. sorter: indices that sort *x1*.

    Raises:
        ValueError: if *x1* is not 1-D, or for another *side*.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.searchsorted(fa.asarray([1, 3, 5]), fa.asarray([3, 4]))
        Tensor([1, 2])
    """
    x1 = tensor("searchsorted", x1, "x1")
    if side not in ("left", "right"):
        raise ValueError(f"searchsorted: side must be 'left' or 'right', got {side!r}")
    if x1.ndim != 1:
        raise ValueError(f"searchsorted: x1 must be 1-D, got {x1._summary()}")
    if sorter is not None:
        x1 = take(x1, sorter)
    spec, (values, wanted) = unify("searchsorted", x1, x2)
    if spec.dtype.is_complex:
        raise TypeError(f"searchsorted: complex numbers have no order, got {spec.dtype}")
    return wrap(spec.call["searchsorted"](values, wanted, side), spec_of(Dtype.I64, spec.device))


def where(condition: Tensor, x1: Operand, x2: Operand, /) -> Tensor:
    """*x1* where *condition* is true and *x2* elsewhere; all three broadcast, the last two promote.

    Raises:
        TypeError: if *condition* is not boolean. ValueError: for shapes that do not broadcast.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.where(fa.asarray([True, False]), 1, fa.asarray([5, 6]))
        Tensor([1, 6])
    """
    if (
        condition.__class__ is x1.__class__ is x2.__class__ is Tensor
        and x1._spec is x2._spec
        and condition._spec.dtype is Dtype.BOOL
        and condition._spec.device is x1._spec.device
        and condition._data.shape == x1._data.shape == x2._data.shape
    ):
        return wrap(x1._spec.call["where"](condition._data, x1._data, x2._data), x1._spec)  # nothing to check
    condition = tensor("where", condition, "condition")
    if condition.dtype is not Dtype.BOOL:
        raise TypeError(f"where: condition must be boolean, got {condition._summary()}; compare it with something")
    if not isinstance(x1, Tensor) and not isinstance(x2, Tensor):
        fa = condition.__array_namespace__()
        x1 = fa.asarray(x1, dtype=fa.result_type(fa.asarray(x1), fa.asarray(x2)), device=condition.device)
    spec, (left, right) = unify("where", x1, x2)
    values = [v for v in (x1, x2) if isinstance(v, Tensor)]
    one_device("where", (condition, *values))
    broadcast("where", condition.shape, tuple(left.shape), tuple(right.shape))
    return wrap(spec.call["where"](condition._data, left, right), spec)
