"""Creation functions of the array API standard; those that take data in are in ``conversion.py``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from ferrum_array.backends import host
from ferrum_array.device import Device, get_default_device
from ferrum_array.dispatch import DEFAULT_FLOAT, broadcast, integer, one_device, raw, shape_tuple, tensor
from ferrum_array.dtype import Dtype, integer_limits
from ferrum_array.spec import Spec, spec_of
from ferrum_array.tensor import Scalar, Tensor, wrap

__all__ = [
    "arange", "empty", "empty_like", "eye", "full", "full_like", "linspace", "meshgrid",
    "ones", "ones_like", "tril", "triu", "zeros", "zeros_like",
]  # fmt: skip

Shape = int | Sequence[int]


def _spec(dtype: Any, device: Device | str | None, default: Dtype = DEFAULT_FLOAT) -> Spec:
    return spec_of(
        default if dtype is None else Dtype(dtype), get_default_device() if device is None else Device(device)
    )


def empty(shape: Shape, *, dtype: Any = None, device: Device | str | None = None) -> Tensor:
    """A tensor of *shape* whose elements are not set: float32 by default.

    Raises:
        ValueError: for a negative length. MemoryError: if the memory cannot be had.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.empty((2, 3)).shape
        (2, 3)
    """
    spec = _spec(dtype, device)
    lengths = shape_tuple("empty", shape)
    try:
        return wrap(spec.call["empty"](lengths), spec)
    except MemoryError as error:
        raise MemoryError(f"empty: no memory for {spec.dtype} of shape {lengths} on {spec.device}: {error}") from error


def _full(name: str, shape: Shape, value: Scalar, spec: Spec) -> Tensor:
    lengths = shape_tuple(name, shape)
    try:
        return wrap(spec.call["full"](lengths, value), spec)
    except MemoryError as error:
        raise MemoryError(f"{name}: no memory for {spec.dtype} of shape {lengths} on {spec.device}: {error}") from error


def zeros(shape: Shape, *, dtype: Any = None, device: Device | str | None = None) -> Tensor:
    """A tensor of *shape* full of zeros: float32 by default.

    Raises:
        ValueError: for a negative length. MemoryError: if the memory cannot be had.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.zeros(2)
        Tensor([0., 0.])
    """
    return _full("zeros", shape, 0, _spec(dtype, device))


def ones(shape: Shape, *, dtype: Any = None, device: Device | str | None = None) -> Tensor:
    """A tensor of *shape* full of ones: float32 by default.

    Raises:
        ValueError: for a negative length. MemoryError: if the memory cannot be had.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.ones((1, 2), dtype="i8")
        Tensor([[1, 1]], dtype=int8)
    """
    return _full("ones", shape, 1, _spec(dtype, device))


def full(shape: Shape, fill_value: Scalar, *, dtype: Any = None, device: Device | str | None = None) -> Tensor:
    """A tensor of *shape* full of *fill_value*, whose kind decides the dtype by default.

    Raises:
        TypeError: if *fill_value* is no number. OverflowError: if the dtype does not hold it.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.full(3, 7)
        Tensor([7, 7, 7])
    """
    fill_value, default = _number("full", fill_value)
    spec = _spec(dtype, device, default)
    return _filled("full", shape, fill_value, spec)


def _number(name: str, value: Any) -> tuple[Scalar, Dtype]:
    """A fill value as a Python number, and the dtype that it has by default."""
    if isinstance(value, Tensor) or host.is_numpy(value):
        dtype = value.dtype if isinstance(value, Tensor) else host.dtype_of(value)
        return _plain(name, "the fill value", value), dtype
    if not isinstance(value, (bool, int, float, complex)):
        raise TypeError(f"{name}: the fill value must be a number, got {type(value).__name__} {value!r:.60}")
    return value, Dtype(type(value))


def _plain(name: str, what: str, value: Any) -> Any:
    """*value* as a Python number, if it is a tensor or an array of one element."""
    if not (isinstance(value, Tensor) or host.is_numpy(value)):
        return value
    if value.size != 1:
        raise ValueError(f"{name}: {what} must be one number, got {value.dtype} of shape {value.shape}")
    return value.item()


def _filled(name: str, shape: Shape, value: Scalar, spec: Spec) -> Tensor:
    if isinstance(value, complex) and not spec.dtype.is_complex:
        raise TypeError(f"{name}: {spec.dtype} does not hold the complex number {value}")
    if isinstance(value, float) and spec.dtype.is_integer and not math.isfinite(value):
        raise OverflowError(f"{name}: {spec.dtype} does not hold {value}")
    raw(name, value, spec)  # an integer outside the dtype is an error before memory is taken
    return _full(name, shape, value, spec)


def _like(x: Tensor, dtype: Any, device: Device | str | None) -> Spec:
    if dtype is None and device is None:
        return x._spec
    return spec_of(x.dtype if dtype is None else Dtype(dtype), x.device if device is None else Device(device))


def empty_like(x: Tensor, /, *, dtype: Any = None, device: Device | str | None = None) -> Tensor:
    """A tensor like *x* in shape, dtype and device, whose elements are not set.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.empty_like(fa.ones((2, 3))).shape
        (2, 3)
    """
    x = tensor("empty_like", x)
    spec = _like(x, dtype, device)
    return wrap(spec.call["empty"](x.shape), spec)


def zeros_like(x: Tensor, /, *, dtype: Any = None, device: Device | str | None = None) -> Tensor:
    """Zeros like *x* in shape, dtype and device.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.zeros_like(fa.asarray([1, 2]))
        Tensor([0, 0])
    """
    x = tensor("zeros_like", x)
    return _full("zeros_like", x.shape, 0, _like(x, dtype, device))


def ones_like(x: Tensor, /, *, dtype: Any = None, device: Device | str | None = None) -> Tensor:
    """Ones like *x* in shape, dtype and device.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.ones_like(fa.asarray([1, 2]))
        Tensor([1, 1])
    """
    x = tensor("ones_like", x)
    return _full("ones_like", x.shape, 1, _like(x, dtype, device))


def full_like(x: Tensor, /, fill_value: Scalar, *, dtype: Any = None, device: Device | str | None = None) -> Tensor:
    """*fill_value* in every element, like *x* in shape, dtype and device.

    Raises:
        TypeError: for a complex value and a real dtype. OverflowError: if the dtype does not hold the value.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.full_like(fa.asarray([1, 2]), 5)
        Tensor([5, 5])
    """
    x = tensor("full_like", x)
    value, _ = _number("full_like", fill_value)
    return _filled("full_like", x.shape, value, _like(x, dtype, device))


def arange(
    start: float,
    /,
    stop: float | None = None,
    step: float = 1,
    *,
    dtype: Any = None,
    device: Device | str | None = None,
) -> Tensor:
    """The numbers *start*, *start + step*, ... below *stop* (above it for a negative step); int64 for integers.

    Raises:
        ValueError: if *step* is zero, or the interval is not finite.
        OverflowError: for numbers outside an integer dtype.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.arange(3), fa.arange(1, 2, 0.25)
        (Tensor([0, 1, 2]), Tensor([1.  , 1.25, 1.5 , 1.75]))
    """
    if stop is None:
        start, stop = 0, start
    given: tuple[Any, ...] = (start, stop, step)
    numbers = [_plain("arange", "each of start, stop and step", n) for n in given]
    if any(isinstance(n, bool) or not isinstance(n, (int, float)) for n in numbers):
        raise TypeError(f"arange: start, stop and step must be real numbers, got {numbers}")
    first, last, stride = numbers
    if stride == 0:
        raise ValueError("arange: step must not be zero")
    if not all(isinstance(n, int) or math.isfinite(n) for n in numbers):
        raise ValueError(f"arange: start, stop and step must be finite, got {numbers}")
    integers = all(isinstance(n, int) for n in numbers)
    count = -((first - last) // stride) if integers else math.ceil((last - first) / stride)
    spec = _spec(dtype, device, Dtype.I64 if integers else DEFAULT_FLOAT)
    (count,) = shape_tuple("arange", max(int(count), 0))
    if spec.dtype.is_integer and count:
        low, high = integer_limits(spec.dtype)
        for end in (first, first + (count - 1) * stride):
            if not low <= end <= high:
                raise OverflowError(f"arange: {end} is outside {spec.dtype}, which holds {low} to {high}")
    if spec.dtype.is_integer and not integers:
        wide = spec_of(Dtype.F64 if spec.device.supports(Dtype.F64) else Dtype.F32, spec.device)
        return wrap(spec.call["astype"](wide.call["arange"](first, stride, count)), spec)
    return wrap(spec.call["arange"](first, stride, count), spec)


def linspace(
    start: complex, stop: complex, /, num: int, *, dtype: Any = None, device: Device | str | None = None,
    endpoint: bool = True,
) -> Tensor:  # fmt: skip
    """*num* evenly spaced numbers from *start* to *stop*, which is left out without *endpoint*; float32 by default.

    Raises:
        ValueError: for a negative *num*. TypeError: for complex ends and a real dtype.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.linspace(0, 1, 5)
        Tensor([0.  , 0.25, 0.5 , 0.75, 1.  ])
    """
    ends: list[Any] = [_plain("linspace", "each end", n) for n in (start, stop)]
    is_complex = any(isinstance(n, complex) for n in ends)
    spec = _spec(dtype, device, Dtype.C64 if is_complex else DEFAULT_FLOAT)
    if is_complex and not spec.dtype.is_complex:
        raise TypeError(f"linspace: {spec.dtype} does not hold complex ends {ends}")
    if integer("linspace", "num", num) < 0:
        raise ValueError(f"linspace: num, how many numbers there are, must not be negative, got {num}")
    (count,) = shape_tuple("linspace", num)
    return wrap(spec.call["linspace"](*ends, count, bool(endpoint)), spec)


def eye(
    n_rows: int, n_cols: int | None = None, /, *, k: int = 0, dtype: Any = None, device: Device | str | None = None
) -> Tensor:
    """Ones on the *k*-th diagonal (above the main one for positive *k*), zeros elsewhere: [n_rows, n_cols].

    Examples:
        >>> import ferrum_array as fa
        >>> fa.eye(2)
        Tensor([[1., 0.],
                [0., 1.]])
    """
    spec = _spec(dtype, device)
    rows, columns = shape_tuple("eye", (n_rows, n_rows if n_cols is None else n_cols))
    return wrap(spec.call["eye"](rows, columns, integer("eye", "k", k)), spec)


def _triangle(name: str, x: Tensor, k: int) -> Tensor:
    x = tensor(name, x)
    if x.ndim < 2:
        raise ValueError(f"{name}: needs at least two axes, got {x._summary()}")
    return wrap(x._spec.call[name](x._data, integer(name, "k", k)), x._spec)


def tril(x: Tensor, /, *, k: int = 0) -> Tensor:
    """The last two axes with zeros above the *k*-th diagonal.

    Raises:
        ValueError: for fewer than two axes.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.tril(fa.ones((2, 2)))
        Tensor([[1., 0.],
                [1., 1.]])
    """
    return _triangle("tril", x, k)


def triu(x: Tensor, /, *, k: int = 0) -> Tensor:
    """The last two axes with zeros below the *k*-th diagonal.

    Raises:
        ValueError: for fewer than two axes.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.triu(fa.ones((2, 2)))
        Tensor([[1., 1.],
                [0., 1.]])
    """
    return _triangle("triu", x, k)


def meshgrid(*arrays: Tensor, indexing: Literal["xy", "ij"] = "xy") -> tuple[Tensor, ...]:
    """Coordinate tensors from 1-D ones: one per input, all of the shape that they span.

    With ``"xy"`` the first two axes are swapped, as for the points of a picture; ``"ij"`` keeps the order of *arrays*.

    Raises:
        ValueError: for inputs of more than one axis, several dtypes, or another *indexing*.

    Examples:
        >>> import ferrum_array as fa
        >>> x, y = fa.meshgrid(fa.arange(2), fa.arange(3))
        >>> x.shape, y.tolist()
        ((3, 2), [[0, 0], [1, 1], [2, 2]])
    """
    if indexing not in ("xy", "ij"):
        raise ValueError(f"meshgrid: indexing must be 'xy' or 'ij', got {indexing!r}")
    tensors = [tensor("meshgrid", x) for x in arrays]
    if not tensors:
        return ()
    one_device("meshgrid", tensors)
    if any(x.ndim > 1 for x in tensors) or len({x.dtype for x in tensors}) > 1:
        raise ValueError(f"meshgrid: needs 1-D tensors of one dtype, got {', '.join(x._summary() for x in tensors)}")
    order = list(range(len(tensors)))
    if indexing == "xy" and len(order) > 1:
        order[:2] = [1, 0]
    shaped = []
    for position, x in enumerate(tensors):
        lengths = [1] * len(order)
        lengths[order.index(position)] = x.size
        shaped.append(x.reshape(tuple(lengths)))
    shape = broadcast("meshgrid", *(x.shape for x in shaped))
    return tuple(wrap(x._spec.call["copy"](x._spec.call["broadcast_to"](x._data, shape)), x._spec) for x in shaped)
