"""Manipulation functions of the array API standard: shapes, orders, joining and repeating."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from ferrum_array.dispatch import (
    broadcast,
    integer,
    integers,
    normalize_axes,
    normalize_axis,
    shape_tuple,
    tensor,
    unify,
)
from ferrum_array.dtype import Dtype
from ferrum_array.spec import spec_of
from ferrum_array.tensor import Axis, Tensor, wrap

__all__ = [
    "broadcast_arrays", "broadcast_shapes", "broadcast_to", "concat", "expand_dims", "flip", "moveaxis", "permute_dims",
    "repeat", "reshape", "roll", "squeeze", "stack", "tile", "unstack",
]  # fmt: skip


def _view(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    return wrap(x._spec.call["reshape"](x._data, shape), x._spec)


def reshape(x: Tensor, /, shape: int | Sequence[int], *, copy: bool | None = None) -> Tensor:
    """The elements of *x*, in row-major order, in another *shape*; one length may be -1 and is worked out.

    Args:
        copy: False raises where memory cannot be shared, True always copies.

    Raises:
        ValueError: if the number of elements differs, more than one length is -1, or ``copy=False`` needs a copy.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.reshape(fa.arange(4), (2, -1))
        Tensor([[0, 1],
                [2, 3]])
    """
    if copy is None and x.__class__ is Tensor and shape.__class__ is tuple and set(map(type, shape)) == {int}:
        size: int = x._data.size
        if min(shape) >= 0 and prod(shape) == size:
            return _view(x, shape)  # nothing to work out
    x = tensor("reshape", x)
    wanted = integers("reshape", "a length in the shape", shape)
    known = prod(n for n in wanted if n != -1)
    if wanted.count(-1) == 1 and known and x.size % known == 0:
        wanted = tuple(x.size // known if n == -1 else n for n in wanted)
    if any(n < 0 for n in wanted) or prod(wanted) != x.size:
        raise ValueError(
            f"reshape: {x._summary()} has {x.size} elements and cannot take the shape {wanted}{_unfit(x.size, wanted)}"
        )
    result = _view(x, wanted)
    if copy is False and x.size and not x.device.backend.shares_memory(result._data, x._data):
        raise ValueError(
            f"reshape: {x._summary()} cannot take the shape {wanted} without a copy, and copy=False was given"
        )
    return result.copy() if copy else result


def _unfit(size: int, wanted: tuple[int, ...]) -> str:
    """Why *size* elements do not take the shape *wanted*."""
    if min(wanted, default=0) >= 0:
        return f", which has {prod(wanted)}; one length may be -1"
    if min(wanted) < -1 or wanted.count(-1) > 1:
        return "; only one length may be -1, and none another negative number"
    known = -prod(wanted)
    return f"; {size} is no multiple of {known}" if known else "; beside a length of 0 the one for -1 is not known"


def permute_dims(x: Tensor, /, axes: Sequence[int]) -> Tensor:
    """The axes of *x* in the order *axes*.

    Raises:
        ValueError: if *axes* does not name every axis once. IndexError: for an axis out of bounds.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.permute_dims(fa.ones((2, 3, 4)), (2, 0, 1)).shape
        (4, 2, 3)
    """
    x = tensor("permute_dims", x)
    order = normalize_axes("permute_dims", tuple(axes) if not isinstance(axes, int) else (axes,), x.ndim)
    if len(order) != x.ndim:
        raise ValueError(f"permute_dims: axes {tuple(axes)} do not name each axis of {x._summary()} once")
    return wrap(x._spec.call["permute_dims"](x._data, order), x._spec)


def moveaxis(x: Tensor, source: int | Sequence[int], destination: int | Sequence[int], /) -> Tensor:
    """The axes *source* moved to the places *destination*; the others keep their order.

    Raises:
        ValueError: if the two differ in length or name an axis twice. IndexError: for an axis out of bounds.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.moveaxis(fa.ones((2, 3, 4)), 0, -1).shape
        (3, 4, 2)
    """
    x = tensor("moveaxis", x)
    start = normalize_axes("moveaxis", source, x.ndim)
    end = normalize_axes("moveaxis", destination, x.ndim)
    if len(start) != len(end):
        raise ValueError(f"moveaxis: source {source} and destination {destination} differ in length")
    order = [axis for axis in range(x.ndim) if axis not in start]
    for to, axis in sorted(zip(end, start, strict=True)):
        order.insert(to, axis)
    return permute_dims(x, order)


def expand_dims(x: Tensor, /, axis: int | Sequence[int]) -> Tensor:
    """*x* with axes of length one put in, at the places *axis* of the result.

    Raises:
        IndexError: for a place out of bounds. ValueError: for a place named twice.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.expand_dims(fa.ones(3), 0).shape
        (1, 3)
    """
    x = tensor("expand_dims", x)
    count = len(axis) if isinstance(axis, (tuple, list)) else 1
    places = normalize_axes("expand_dims", axis, x.ndim + count)
    rest = iter(x.shape)
    return _view(x, tuple(1 if i in places else next(rest) for i in range(x.ndim + count)))


def squeeze(x: Tensor, /, axis: int | Sequence[int]) -> Tensor:
    """*x* without the axes *axis*, which must have length one.

    Raises:
        ValueError: if one of them is longer. IndexError: for an axis out of bounds.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.squeeze(fa.ones((1, 3)), 0).shape
        (3,)
    """
    x = tensor("squeeze", x)
    axes = normalize_axes("squeeze", axis, x.ndim)
    long = [a for a in axes if x.shape[a] != 1]
    if long:
        raise ValueError(f"squeeze: axis {long[0]} of {x._summary()} has length {x.shape[long[0]]}, not 1")
    return _view(x, tuple(n for i, n in enumerate(x.shape) if i not in axes))


def broadcast_shapes(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape to which *shapes* broadcast.

    Raises:
        ValueError: naming the shapes and the axis where they clash.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.broadcast_shapes((3, 1), (2,))
        (3, 2)
    """
    return broadcast("broadcast_shapes", *(shape_tuple("broadcast_shapes", shape) for shape in shapes))


def broadcast_to(x: Tensor, /, shape: Sequence[int]) -> Tensor:
    """*x* repeated along new axes and axes of length one to *shape*; memory is shared until it is written.

    Raises:
        ValueError: if *x* does not broadcast to exactly *shape*.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.broadcast_to(fa.asarray([1, 2]), (2, 2))
        Tensor([[1, 2],
                [1, 2]])
    """
    x = tensor("broadcast_to", x)
    wanted = shape_tuple("broadcast_to", shape)
    if broadcast("broadcast_to", x.shape, wanted) != wanted:
        raise ValueError(f"broadcast_to: {x._summary()} does not fit the shape {wanted}")
    return wrap(x._spec.call["broadcast_to"](x._data, wanted), x._spec)


def broadcast_arrays(*arrays: Tensor) -> tuple[Tensor, ...]:
    """All *arrays* broadcast to their common shape.

    Raises:
        ValueError: if the shapes do not broadcast.

    Examples:
        >>> import ferrum_array as fa
        >>> [x.shape for x in fa.broadcast_arrays(fa.ones((3, 1)), fa.ones(2))]
        [(3, 2), (3, 2)]
    """
    tensors = [tensor("broadcast_arrays", x) for x in arrays]
    shape = broadcast("broadcast_arrays", *(x.shape for x in tensors))
    return tuple(broadcast_to(x, shape) for x in tensors)


def concat(arrays: Sequence[Tensor], /, *, axis: int | None = 0) -> Tensor:
    """*arrays* one after another along *axis*; flattened first if it is None. Dtypes promote.

    Raises:
        ValueError: for no arrays, or shapes that differ in another axis.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.concat([fa.asarray([1, 2]), fa.asarray([3])])
        Tensor([1, 2, 3])
    """
    tensors = [tensor("concat", x, f"array {i}") for i, x in enumerate(arrays)]
    if not tensors:
        raise ValueError("concat: needs at least one tensor")
    if axis is None:
        tensors, axis = [reshape(x, -1) if x.size or x.ndim != 1 else x for x in tensors], 0
    spec, raws = tensors[0]._spec, [x._data for x in tensors]
    if any(x._spec is not spec for x in tensors):
        spec, raws = unify("concat", *tensors)
    if not tensors[0].ndim:
        raise ValueError(f"concat: array 0 is {tensors[0]._summary()}, which has no axis to join along; use stack()")
    place = normalize_axis("concat", axis, tensors[0].ndim)
    rest = {x.shape[:place] + x.shape[place + 1 :] for x in tensors if x.ndim == tensors[0].ndim}
    if len(rest) != 1 or any(x.ndim != tensors[0].ndim for x in tensors):
        raise ValueError(
            f"concat: shapes {', '.join(str(x.shape) for x in tensors)} must be equal except along axis {place}"
        )
    return wrap(spec.call["concat"](raws, place), spec)


def stack(arrays: Sequence[Tensor], /, *, axis: int = 0) -> Tensor:
    """*arrays*, all of one shape, along a new axis at place *axis* of the result. Dtypes promote.

    Raises:
        ValueError: for no arrays, or different shapes.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.stack([fa.asarray([1, 2]), fa.asarray([3, 4])], axis=1)
        Tensor([[1, 3],
                [2, 4]])
    """
    tensors = [tensor("stack", x, f"array {i}") for i, x in enumerate(arrays)]
    if not tensors or len({x.shape for x in tensors}) != 1:
        raise ValueError(f"stack: needs tensors of one shape, got {', '.join(str(x.shape) for x in tensors) or 'none'}")
    return concat([expand_dims(x, axis) for x in tensors], axis=axis)


def unstack(x: Tensor, /, *, axis: int = 0) -> tuple[Tensor, ...]:
    """The slices of *x* along *axis*, without it.

    Raises:
        IndexError: for an axis out of bounds, as every axis of a 0-d tensor is.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.unstack(fa.asarray([[1, 2], [3, 4]]))
        (Tensor([1, 2]), Tensor([3, 4]))
    """
    x = tensor("unstack", x)
    place = normalize_axis("unstack", axis, x.ndim)
    before, part = (slice(None),) * place, x._spec.call["getitem"]
    return tuple(wrap(part(x._data, (*before, i)), x._spec) for i in range(x.shape[place]))


def flip(x: Tensor, /, *, axis: Axis = None) -> Tensor:
    """The order of the elements reversed along *axis*, or along all axes.

    Raises:
        IndexError: for an axis out of bounds.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.flip(fa.arange(3))
        Tensor([2, 1, 0])
    """
    x = tensor("flip", x)
    return wrap(x._spec.call["flip"](x._data, normalize_axes("flip", axis, x.ndim)), x._spec)


def roll(x: Tensor, /, shift: int | Sequence[int], *, axis: Axis = None) -> Tensor:
    """The elements moved on by *shift* places along *axis*, those that leave coming in again; flattened for None.

    Raises:
        ValueError: if *shift* and *axis* are tuples of different lengths. IndexError: for an axis out of bounds.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.roll(fa.arange(4), 1)
        Tensor([3, 0, 1, 2])
    """
    x = tensor("roll", x)
    shifts = integers("roll", "shift", shift)
    if axis is None:
        return _view(roll(_view(x, (x.size,)), sum(shifts), axis=0), x.shape) if x.size else x.copy()
    axes = tuple(normalize_axis("roll", a, x.ndim) for a in (axis if isinstance(axis, (tuple, list)) else (axis,)))
    if len(shifts) == 1:
        shifts = shifts * len(axes)
    if len(shifts) != len(axes):
        raise ValueError(f"roll: shift {shift} and axis {axis} differ in length")
    return wrap(x._spec.call["roll"](x._data, shifts, axes), x._spec)


def repeat(x: Tensor, repeats: int | Tensor, /, *, axis: int | None = None) -> Tensor:
    """Each element of *x* *repeats* times along *axis*; flattened first if it is None.

    Args:
        repeats: a number, or an integer tensor with one number for each element along the axis.

    Raises:
        TypeError: if *repeats* is not integral. ValueError: for a negative number or a wrong length.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.repeat(fa.asarray([1, 2]), 2), fa.repeat(fa.asarray([1, 2]), fa.asarray([0, 3]))
        (Tensor([1, 1, 2, 2]), Tensor([2, 2, 2]))
    """
    x = tensor("repeat", x)
    if axis is None:
        x, axis = _view(x, (x.size,)), 0
    place = normalize_axis("repeat", axis, x.ndim)
    if isinstance(repeats, Tensor):
        if not repeats.dtype.is_integer:
            raise TypeError(f"repeat: repeats must be integers, got {repeats._summary()}")
        if repeats.ndim > 1 or (repeats.size not in (1, x.shape[place])):
            raise ValueError(f"repeat: {repeats._summary()} repeats do not fit axis {place} of {x._summary()}")
        if repeats.device is not x.device:
            raise ValueError(f"repeat: x lies on {x.device}, repeats on {repeats.device}")
        if repeats.size and bool((repeats < 0).any()):
            raise ValueError("repeat: repeats must not be negative")
        counts = spec_of(Dtype.I64, x.device).call["astype"](repeats._data)
        if repeats.size == 1:
            return wrap(x._spec.call["repeat"](x._data, int(repeats.item()), place), x._spec)  # type: ignore[arg-type]  # an integer
        return wrap(x._spec.call["repeat"](x._data, counts, place), x._spec)
    count = integer("repeat", "repeats (not a tensor)", repeats)
    if count < 0:
        raise ValueError(f"repeat: repeats must not be negative, got {count}")
    return wrap(x._spec.call["repeat"](x._data, count, place), x._spec)


def tile(x: Tensor, repetitions: Sequence[int], /) -> Tensor:
    """*x* laid side by side *repetitions* times along each axis, either one filled up with leading ones.

    Raises:
        ValueError: for a negative number.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.tile(fa.asarray([1, 2]), (2, 2))
        Tensor([[1, 2, 1, 2],
                [1, 2, 1, 2]])
    """
    x = tensor("tile", x)
    counts = shape_tuple("tile", repetitions)
    ndim = max(x.ndim, len(counts))
    counts = (1,) * (ndim - len(counts)) + counts
    shape = (1,) * (ndim - x.ndim) + x.shape
    # [n0, n1] -> [1, n0, 1, n1] -> [r0, n0, r1, n1] -> [r0*n0, r1*n1]
    spread = _view(x, tuple(n for length in shape for n in (1, length)))
    repeated = broadcast_to(spread, tuple(n for pair in zip(counts, shape, strict=True) for n in pair))
    return reshape(repeated, tuple(r * n for r, n in zip(counts, shape, strict=True)), copy=True)
