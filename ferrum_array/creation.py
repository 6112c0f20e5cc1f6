"""Creation functions of the array API standard, and moving tensors between devices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from ferrum_array.backends import host
from ferrum_array.device import Device, get_default_device
from ferrum_array.dispatch import DEFAULT_FLOAT, broadcast, integer, one_device, raw, shape_tuple, tensor
from ferrum_array.dtype import Dtype, Kind, weak_promote
from ferrum_array.spec import Spec, spec_of
from ferrum_array.tensor import Scalar, Tensor, wrap

__all__ = [
    "arange", "asarray", "empty", "empty_like", "eye", "from_dlpack", "full", "full_like", "linspace", "meshgrid",
    "ones", "ones_like", "tril", "triu", "zeros", "zeros_like",
]  # fmt: skip

Shape = int | Sequence[int]


def _spec(dtype: Any, device: Device | str | None, default: Dtype = DEFAULT_FLOAT) -> Spec:
    return spec_of(
        default if dtype is None else Dtype(dtype), get_default_device() if device is None else Device(device)
    )


def from_host(array: Any, device: Device | str, *, copy: bool | None = None) -> Tensor:
    """The tensor on *device* with the contents of a host array (see ``backends/host.py``)."""
    spec = spec_of(host.dtype_of(array), Device(device))
    return wrap(spec.device.backend.from_host(array, copy=copy), spec)


def asarray(
    obj: Any, /, *, dtype: Any = None, device: Device | str | None = None, copy: bool | None = None
) -> Tensor:
    """A tensor from a number, nested sequences of numbers or tensors, a NumPy array, a buffer, DLPack, or a tensor.

    Python numbers take the default dtype of their kind: bool, int64, float32 or complex64; arrays keep theirs. With
    ``copy=None`` memory is shared where possible: our own writes then copy first, and so never reach *obj*. A tensor of
    which nothing is to be changed is returned itself.

    Args:
        dtype: the dtype of the result. device: where it shall lie; for tensors their own device by default.
        copy: True always copies, False never does.

    Raises:
        TypeError: for what holds no numbers, or a complex *obj* with a real *dtype*.
        ValueError: for ragged sequences, or ``copy=False`` where a copy is needed.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.asarray([[1, 2], [3, 4]], dtype="f16")
        Tensor([[1., 2.],
                [3., 4.]], dtype=float16)
    """
    wanted = None if dtype is None else Dtype(dtype)
    if isinstance(obj, Tensor):
        return _from_tensor(obj, wanted, device, copy)
    if isinstance(obj, (list, tuple)) and _holds_tensors(obj):
        if copy is False:
            raise ValueError("asarray: joining tensors of a sequence needs a copy, but copy=False was given")
        joined = _joined(obj, _first_tensor(obj))
        return _from_tensor(joined, wanted, device, None)
    if not host.is_numpy(obj) and hasattr(obj, "__dlpack__") and not isinstance(obj, (list, tuple)):
        return _from_tensor(from_dlpack(obj, copy=copy), wanted, device, None if copy else copy)
    built = not host.is_numpy(obj) and isinstance(obj, (bool, int, float, complex, list, tuple, range))
    if built and copy is False:
        raise ValueError(f"asarray: a {type(obj).__name__} has no memory to share, but copy=False was given")
    found = host.array(obj, wanted)
    if copy is False and found is not obj and not host.same_memory(found, obj):
        raise ValueError(f"asarray: converting to {host.dtype_of(found)} needs a copy, but copy=False was given")
    target = get_default_device() if device is None else Device(device)
    spec = spec_of(host.dtype_of(found), target)
    fresh = built or not host.same_memory(found, obj)
    return wrap(target.backend.from_host(found, copy=None if fresh and copy else copy), spec)


def _holds_tensors(items: Sequence[Any]) -> bool:
    return any(isinstance(i, Tensor) or (isinstance(i, (list, tuple)) and _holds_tensors(i)) for i in items)


def _joined(items: Sequence[Any], like: Tensor) -> Tensor:
    fa = like.__array_namespace__()
    parts = [_joined(i, like) if isinstance(i, (list, tuple)) and _holds_tensors(i) else i for i in items]
    # numbers beside tensors are weak, as in operators
    parts = [i if isinstance(i, Tensor) else _beside(asarray(i, device=like.device), like) for i in parts]
    shapes = {i.shape for i in parts}
    if len(shapes) > 1:
        raise ValueError(f"asarray: the sequence holds tensors of different shapes {sorted(shapes)}")
    result: Tensor = fa.stack(parts)
    return result


def _beside(x: Tensor, like: Tensor) -> Tensor:
    return x.astype(weak_promote(like.dtype, _HOST_TYPES[x.dtype.kind]), copy=False)


_HOST_TYPES: dict[Kind, type] = {
    "bool": bool,
    "signed integer": int,
    "unsigned integer": int,
    "real floating": float,
    "complex floating": complex,
}


def _first_tensor(items: Sequence[Any]) -> Tensor:
    for item in items:
        if isinstance(item, Tensor):
            return item
        if isinstance(item, (list, tuple)) and _holds_tensors(item):
            return _first_tensor(item)
    raise TypeError("asarray: a row of the sequence holds no tensor")


def _from_tensor(x: Tensor, dtype: Dtype | None, device: Device | str | None, copy: bool | None) -> Tensor:
    target = x.device if device is None else Device(device)
    if copy is False and (target is not x.device or dtype not in (None, x.dtype)):
        raise ValueError(
            f"asarray: {x._summary()} on {x.device} as {dtype or x.dtype} on {target} needs a copy, "
            "but copy=False was given"
        )
    result = x if dtype in (None, x.dtype) else converted("asarray", x, dtype or x.dtype)
    result = result if target is x.device else transfer(result, target)
    if result is x and copy:
        return wrap(x._spec.call["copy"](x._data), x._spec)
    return result


def converted(name: str, x: Tensor, dtype: Dtype) -> Tensor:
    """*x* in *dtype* on its own device; TypeError where that would drop imaginary parts."""
    if x.dtype.is_complex and not dtype.is_complex:
        raise TypeError(f"{name}: {x.dtype} to {dtype} would drop the imaginary parts; take real() or imag() first")
    spec = spec_of(dtype, x.device)
    return wrap(spec.call["astype"](x._data), spec)


def transfer(x: Tensor, device: Device, stream: Any = None) -> Tensor:
    """*x* on *device*, through the host where the two devices have different libraries."""
    if stream is not None and device.kind != "cuda":
        raise ValueError(f"to_device: {device} has no streams, got stream={stream!r}")
    if device is x.device:
        return x
    spec = spec_of(x.dtype, device)
    return wrap(device.backend.from_host(x.device.backend.to_host(x._data, copy=None), copy=None), spec)


def from_dlpack(x: Any, /, *, device: Device | str | None = None, copy: bool | None = None) -> Tensor:
    """A tensor from any object with ``__dlpack__``, sharing its memory where possible (array API standard).

    Raises:
        TypeError: if *x* has no ``__dlpack__``. ValueError: if ``copy=False`` and a copy is needed.

    Examples:
        >>> import ferrum_array as fa, numpy as np
        >>> fa.from_dlpack(np.arange(3))
        Tensor([0, 1, 2])
    """
    if isinstance(x, Tensor):
        return _from_tensor(x, None, device, copy)
    if not hasattr(x, "__dlpack__") or not hasattr(x, "__dlpack_device__"):
        raise TypeError(f"from_dlpack: {type(x).__name__} has no __dlpack__ and __dlpack_device__; use asarray()")
    kind, index = x.__dlpack_device__()
    where = {1: "cpu", 2: f"cuda:{index}", 3: "cpu", 8: "mlx:gpu", 13: f"cuda:{index}"}.get(int(getattr(kind, "value", kind)))
    if where is None:
        raise ValueError(f"from_dlpack: no device of ours holds memory of DLPack device type {kind}")
    source = Device(where)
    data = source.backend.from_dlpack(x, copy=copy)
    return _from_tensor(wrap(data, spec_of(source.backend.dtype_of(data), source)), None, device, None if copy else copy)


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
        return value.item(), dtype
    if not isinstance(value, (bool, int, float, complex)):
        raise TypeError(f"{name}: the fill value must be a number, got {type(value).__name__} {value!r:.60}")
    return value, Dtype(type(value))


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


def full_like(
    x: Tensor, /, fill_value: Scalar, *, dtype: Any = None, device: Device | str | None = None
) -> Tensor:
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
    start: float, /, stop: float | None = None, step: float = 1, *, dtype: Any = None, device: Device | str | None = None
) -> Tensor:
    """The numbers *start*, *start + step*, ... below *stop* (above it for a negative step); int64 for integers.

    Raises:
        ValueError: if *step* is zero, or the interval is not finite.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.arange(3), fa.arange(1, 2, 0.25)
        (Tensor([0, 1, 2]), Tensor([1.  , 1.25, 1.5 , 1.75]))
    """
    if stop is None:
        start, stop = 0, start
    numbers = [n.item() if isinstance(n, Tensor) or host.is_numpy(n) else n for n in (start, stop, step)]
    if any(isinstance(n, bool) or not isinstance(n, (int, float)) for n in numbers):
        raise TypeError(f"arange: start, stop and step must be real numbers, got {numbers}")
    first, last, stride = numbers
    if stride == 0:
        raise ValueError("arange: step must not be zero")
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"arange: start, stop and step must be finite, got {numbers}")
    integers = all(isinstance(n, int) for n in numbers)
    count = -((first - last) // stride) if integers else math.ceil((last - first) / stride)
    spec = _spec(dtype, device, Dtype.I64 if integers else DEFAULT_FLOAT)
    (count,) = shape_tuple("arange", max(int(count), 0))
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
    ends = [n.item() if isinstance(n, Tensor) or host.is_numpy(n) else n for n in (start, stop)]
    is_complex = any(isinstance(n, complex) for n in ends)
    spec = _spec(dtype, device, Dtype.C64 if is_complex else DEFAULT_FLOAT)
    if is_complex and not spec.dtype.is_complex:
        raise TypeError(f"linspace: {spec.dtype} does not hold complex ends {ends}")
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
