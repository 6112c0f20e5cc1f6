"""Statistical functions of the array API standard. 16-bit floats are accumulated in float32."""

from __future__ import annotations

from typing import Any

from ferrum_array.dispatch import DEFAULT_FLOAT, normalize_axes, normalize_axis, tensor
from ferrum_array.dtype import Dtype
from ferrum_array.spec import Spec, spec_of
from ferrum_array.tensor import Axis, Tensor, wrap

_new = object.__new__

__all__ = ["cumulative_prod", "cumulative_sum", "max", "mean", "min", "prod", "std", "sum", "var"]


def _accumulator(name: str, x: Tensor, dtype: Any) -> Spec:
    """The Spec in which a sum is taken: *dtype*, or at least 64 bits for integers and booleans."""
    if dtype is not None:
        wanted = Dtype(dtype)
        if x.dtype.is_complex and not wanted.is_complex:
            raise TypeError(f"{name}: dtype={wanted} would drop the imaginary parts of {x._summary()}")
        return spec_of(wanted, x.device)
    kind = x.dtype.kind
    if kind == "unsigned integer":
        return spec_of(Dtype.U64, x.device)
    return spec_of(Dtype.I64, x.device) if kind in ("signed integer", "bool") else x._spec


def _total(name: str, x: Tensor, axis: Axis, dtype: Any, keepdims: bool) -> Tensor:
    x = tensor(name, x)
    spec = x._spec
    if dtype is not None or not (spec.dtype.is_floating or spec.dtype.is_complex):
        spec = _accumulator(name, x, dtype)
    data = x._data if spec is x._spec else spec.call["astype"](x._data)
    return wrap(spec.call[name](data, normalize_axes(name, axis, len(data.shape)), bool(keepdims)), spec)


def sum(x: Tensor, /, *, axis: Axis = None, dtype: Any = None, keepdims: bool = False) -> Tensor:
    """The sum of the elements along *axis*: int64 or uint64 for smaller integers, else the dtype of *x*.

    Raises:
        IndexError: for an axis out of bounds. TypeError: for a real *dtype* and complex *x*.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.sum(fa.ones((2, 3)), axis=1)
        Tensor([3., 3.])
    """
    if axis is None and dtype is None and not keepdims and x.__class__ is Tensor:
        total = x._spec.direct["total"]
        if total is not None:
            result: Tensor = _new(Tensor)
            result._data = total(x._data)
            result._spec = x._spec
            return result
    return _total("sum", x, axis, dtype, keepdims)


def prod(x: Tensor, /, *, axis: Axis = None, dtype: Any = None, keepdims: bool = False) -> Tensor:
    """The product of the elements along *axis*, with the dtype rules of :func:`sum`.

    Raises:
        IndexError: for an axis out of bounds. TypeError: for a real *dtype* and complex *x*.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.prod(fa.asarray([2, 3, 4]))
        Tensor(24)
    """
    return _total("prod", x, axis, dtype, keepdims)


def _extreme(name: str, x: Tensor, axis: Axis, keepdims: bool) -> Tensor:
    x = tensor(name, x)
    if x.dtype.is_complex:
        raise TypeError(f"{name}: complex numbers have no order, got {x._summary()}; take abs() or real() first")
    axes = normalize_axes(name, axis, x.ndim)
    empty = [a for a in axes if x.shape[a] == 0]
    if empty:
        raise ValueError(f"{name}: {x._summary()} has no elements along axis {empty[0]}, so there is no {name}imum")
    return wrap(x._spec.call[name](x._data, axes, bool(keepdims)), x._spec)


def max(x: Tensor, /, *, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The greatest element along *axis*; NaN if there is one.

    Raises:
        ValueError: if there are no elements. TypeError: for complex *x*.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.max(fa.asarray([1, 3, 2]))
        Tensor(3)
    """
    return _extreme("max", x, axis, keepdims)


def min(x: Tensor, /, *, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The least element along *axis*; NaN if there is one.

    Raises:
        ValueError: if there are no elements. TypeError: for complex *x*.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.min(fa.asarray([1, 3, 2]))
        Tensor(1)
    """
    return _extreme("min", x, axis, keepdims)


def _floating(name: str, x: Tensor) -> Tensor:
    x = tensor(name, x)
    if x.dtype.is_floating or x.dtype.is_complex:
        return x
    spec = spec_of(DEFAULT_FLOAT, x.device)
    return wrap(spec.call["astype"](x._data), spec)


def mean(x: Tensor, /, *, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The arithmetic mean along *axis*: NaN for no elements; float32 for integers.

    Raises:
        IndexError: for an axis out of bounds.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.mean(fa.asarray([1.0, 2.0, 6.0]))
        Tensor(3.)
    """
    x = _floating("mean", x)
    return wrap(x._spec.call["mean"](x._data, normalize_axes("mean", axis, x.ndim), bool(keepdims)), x._spec)


def _spread(name: str, x: Tensor, axis: Axis, correction: float, keepdims: bool) -> Tensor:
    x = _floating(name, x)
    spec = spec_of(x.dtype.real, x.device)
    axes = normalize_axes(name, axis, x.ndim)
    return wrap(x._spec.call[name](x._data, axes, float(correction), bool(keepdims)), spec)


def var(x: Tensor, /, *, axis: Axis = None, correction: float = 0.0, keepdims: bool = False) -> Tensor:
    """The variance along *axis*: the sum of ``|x - mean|**2`` over N - *correction* (1 for a sample).

    Raises:
        IndexError: for an axis out of bounds.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.var(fa.asarray([1.0, 3.0])), fa.var(fa.asarray([1.0, 3.0]), correction=1)
        (Tensor(1.), Tensor(2.))
    """
    return _spread("var", x, axis, correction, keepdims)


def std(x: Tensor, /, *, axis: Axis = None, correction: float = 0.0, keepdims: bool = False) -> Tensor:
    """The standard deviation along *axis*: the square root of :func:`var`.

    Raises:
        IndexError: for an axis out of bounds.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.std(fa.asarray([1.0, 3.0]))
        Tensor(1.)
    """
    return _spread("std", x, axis, correction, keepdims)


def _cumulative(name: str, x: Tensor, axis: int | None, dtype: Any, include_initial: bool, neutral: int) -> Tensor:
    x = tensor(name, x)
    if axis is None:
        if x.ndim > 1:
            raise ValueError(f"{name}: {x._summary()} has {x.ndim} axes; say which with axis=")
        axis = 0
    if x.ndim == 0:
        x = x.reshape(1)
    place = normalize_axis(name, axis, x.ndim)
    spec = _accumulator(name, x, dtype)
    result = wrap(spec.call[name](spec.call["astype"](x._data), place), spec)
    if not include_initial:
        return result
    fa = x.__array_namespace__()
    shape = x.shape[:place] + (1,) + x.shape[place + 1 :]
    joined: Tensor = fa.concat([fa.full(shape, neutral, dtype=spec.dtype, device=x.device), result], axis=place)
    return joined


def cumulative_sum(
    x: Tensor, /, *, axis: int | None = None, dtype: Any = None, include_initial: bool = False
) -> Tensor:
    """The sums of the first 1, 2, ... elements along *axis*, with the dtypes of :func:`sum`.

    With *include_initial* the sum of none, 0, comes first.

    Raises:
        ValueError: without *axis* for more than one axis.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.cumulative_sum(fa.asarray([1, 2, 3]), include_initial=True)
        Tensor([0, 1, 3, 6])
    """
    return _cumulative("cumulative_sum", x, axis, dtype, include_initial, 0)


def cumulative_prod(
    x: Tensor, /, *, axis: int | None = None, dtype: Any = None, include_initial: bool = False
) -> Tensor:
    """The products of the first 1, 2, ... elements along *axis*, with the dtypes of :func:`sum`.

    Raises:
        ValueError: without *axis* for more than one axis.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.cumulative_prod(fa.asarray([1, 2, 3]))
        Tensor([1, 2, 6])
    """
    return _cumulative("cumulative_prod", x, axis, dtype, include_initial, 1)
