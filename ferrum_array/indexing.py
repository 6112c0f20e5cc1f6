"""Reading and writing parts of tensors: keys of the standard, and NumPy's integer arrays and masks beside them."""

from __future__ import annotations

import operator
from typing import Any

from ferrum_array.backends import host
from ferrum_array.dispatch import broadcast, normalize_axis, one_device, raw, tensor
from ferrum_array.dtype import Dtype, promote_dtypes, weak_promote
from ferrum_array.spec import spec_of
from ferrum_array.tensor import Tensor, wrap

__all__ = ["take", "take_along_axis"]


def raw_key(x: Tensor, key: Any) -> Any:
    """*key* with tensors, lists and NumPy arrays in it replaced by raw arrays of the device of *x*.

    Raises:
        IndexError: for what is no index, a float or too many indices. ValueError: for an index on another device.
    """
    if isinstance(key, tuple):
        parts = tuple(_part(x, one) for one in key)
        taken = sum(
            getattr(p, "ndim", 1) if _is_mask(x, p) else 1 for p in parts if p is not None and p is not Ellipsis
        )
        if sum(p is Ellipsis for p in parts) > 1:
            raise IndexError(f"an index has at most one ellipsis, got {key!r}")
        if taken > x.ndim:
            raise IndexError(f"{taken} indices were given for {x._summary()}, which has {x.ndim} axes")
        return parts
    return _part(x, key)


def _is_mask(x: Tensor, part: Any) -> bool:
    return isinstance(part, x._spec.array_type) and x.device.backend.dtype_of(part) is Dtype.BOOL


def _part(x: Tensor, part: Any) -> Any:
    if part is None or part is Ellipsis:
        return part
    if isinstance(part, slice):
        return slice(*(None if n is None else operator.index(n) for n in (part.start, part.stop, part.step)))
    if isinstance(part, list) or (host.is_numpy(part) and not host.is_numpy_scalar(part)):
        found = host.array(part, None)
        part = wrap(x.device.backend.from_host(found if found.size else host.convert(found, Dtype.I64), copy=None),
                    spec_of(host.dtype_of(found) if found.size else Dtype.I64, x.device))  # fmt: skip
    if isinstance(part, Tensor):
        if part.device is not x.device:
            raise ValueError(f"{x._summary()} on {x.device} cannot be indexed by {part._summary()} on {part.device}")
        if part.dtype is Dtype.BOOL:
            return part._data
        if not part.dtype.is_integer:
            raise IndexError(f"an index is an integer or boolean tensor, got {part._summary()}")
        _fits_int64("indexing", part)
        return spec_of(Dtype.I64, x.device).call["astype"](part._data) if part.dtype is not Dtype.I64 else part._data
    if isinstance(part, bool) or (host.is_numpy_scalar(part) and host.dtype_of(part) is Dtype.BOOL):
        return bool(part)
    try:
        index = operator.index(part)
    except TypeError:
        raise IndexError(
            "an index is an integer, slice, ..., None, or an integer or boolean tensor; "
            f"got {type(part).__name__} {part!r:.60}"
        ) from None
    if abs(index) >= 1 << 63:
        raise IndexError(f"an index of {index.bit_length()} bits is out of bounds for {x._summary()}")
    return index


def _fits_int64(name: str, indices: Tensor) -> None:
    """Unsigned indices beyond int64, which would wrap to negative ones, are out of bounds of everything."""
    if indices.dtype is Dtype.U64 and indices.size and int(indices.max()) >= 1 << 63:
        raise IndexError(f"{name}: index {int(indices.max())} is out of bounds")


def write(x: Tensor, key: Any, value: Any) -> None:
    """Set ``x[key] = value``: in place if nothing else can see the memory of *x*, on a copy otherwise.

    Raises:
        TypeError: if the dtype of *x* does not hold values of the kind of *value*.
        ValueError: if its shape does not fit, or it lies on another device.
        IndexError: for a bad key. In every case *x* is as it was.
    """
    spec = x._spec
    if not isinstance(value, (bool, int, float, complex)) or host.is_numpy_scalar(value):
        if isinstance(value, (list, tuple)) or host.is_numpy(value):
            found = host.array(value, None)
            given = host.dtype_of(found)
            if _same_kind(spec.dtype, given):  # converted here: the device need not have its dtype
                value = wrap(spec.device.backend.from_host(host.convert(found, spec.dtype), copy=None), spec)
        else:
            value = tensor("setitem", value, "the value")
            one_device("setitem", (x, value))
            given = value.dtype
        lifted = spec.dtype if _same_kind(spec.dtype, given) else promote_dtypes(spec.dtype, given)
    else:
        lifted = weak_promote(spec.dtype, type(value))
    if lifted is not spec.dtype and not _same_kind(spec.dtype, lifted):
        raise TypeError(
            f"setitem: {x._summary()} does not hold a {lifted.kind} value; convert one of them with astype()"
        )
    data = raw("setitem", value, spec)
    place = raw_key(x, key)
    call = spec.call
    target = tuple(call["getitem"](x._data, place).shape)
    shape = tuple(data.shape)
    while len(shape) > len(target) and shape[0] == 1:
        shape = shape[1:]
    if broadcast("setitem", shape, target) != target:
        raise ValueError(
            f"setitem: a value of shape {tuple(data.shape)} does not fit the selected part of shape {target}"
        )
    if shape != tuple(data.shape):
        data = call["reshape"](data, shape)
    backend = spec.device.backend
    if backend.views and isinstance(value, Tensor) and backend.shares_memory(data, x._data):
        data = call["copy"](data)
    if not backend.exclusive(x):
        x._data = call["copy"](x._data)
    call["setitem"](x._data, place, data)


def _same_kind(held: Dtype, given: Dtype) -> bool:
    """Whether a value of dtype *given* may be written to elements of dtype *held* (rounding, never another kind)."""
    rank = {"bool": 0, "unsigned integer": 1, "signed integer": 1, "real floating": 2, "complex floating": 3}
    return rank[given.kind] <= rank[held.kind]


def _indices(name: str, x: Tensor, indices: Tensor, length: int) -> Tensor:
    """*indices* as int64, non-negative, on the device of *x*."""
    indices = tensor(name, indices, "indices")
    one_device(name, (x, indices))
    if not indices.dtype.is_integer:
        raise TypeError(f"{name}: indices must be integers, got {indices._summary()}")
    _fits_int64(name, indices)
    indices = indices.astype(Dtype.I64, copy=False)
    if indices.size:
        low, high = int(indices.min()), int(indices.max())
        if low < -length or high >= length:
            raise IndexError(
                f"{name}: index {low if low < -length else high} is out of bounds for an axis of length {length} "
                f"of {x._summary()}"
            )
        if low < 0:
            fa = x.__array_namespace__()
            indices = fa.where(indices < 0, indices + length, indices)
    return indices


def _checked_by_storage(x: Tensor, indices: Any) -> bool:
    """Whether the storage itself counts negative *indices* from the end, and raises IndexError for those out of bounds.

    Then nothing is looked at here, which would take ten times as long as taking a few elements.
    """
    return (
        indices.__class__ is Tensor
        and indices._spec.dtype is Dtype.I64
        and indices._spec.device is x._spec.device
        and x._spec.device.backend.checks_indices
    )


def take(x: Tensor, indices: Tensor, /, *, axis: int | None = None) -> Tensor:
    """The elements of *x* at *indices* along *axis*, which may be left out for a 1-D *x*.

    Args:
        indices: integers of any shape, which takes the place of the axis; negative ones count from the end.

    Raises:
        IndexError: for an index out of bounds. TypeError: for indices that are no integers.
        ValueError: without *axis* for more than one axis.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.take(fa.asarray([10, 20, 30]), fa.asarray([2, 0]))
        Tensor([30, 10])
    """
    x = tensor("take", x)
    if axis is None:
        if x.ndim != 1:
            raise ValueError(f"take: {x._summary()} has {x.ndim} axes; say which with axis=")
        axis = 0
    place = normalize_axis("take", axis, x.ndim)
    if _checked_by_storage(x, indices):
        try:
            return take_known(x, indices, place)
        except IndexError:
            _indices("take", x, indices, x.shape[place])  # says what is wrong
            raise
    chosen = _indices("take", x, indices, x.shape[place])
    return wrap(x._spec.call["take"](x._data, chosen._data, place), x._spec)


def take_known(x: Tensor, indices: Tensor, axis: int) -> Tensor:
    """As :func:`take`, for int64 *indices* that are known to be from 0 to below the length: nothing is read back."""
    return wrap(x._spec.call["take"](x._data, indices._data, axis), x._spec)


def take_along_known(x: Tensor, indices: Tensor) -> Tensor:
    """As :func:`take_along_axis` along the last axis, for int64 *indices* that are known to be from 0 to below its
    length, and whose other axes are those of *x*: nothing is read back.
    """
    return wrap(x._spec.call["take_along_axis"](x._data, indices._data, x.ndim - 1), x._spec)


def take_along_axis(x: Tensor, indices: Tensor, /, *, axis: int = -1) -> Tensor:
    """For each place, the element of *x* along *axis* that *indices* names there.

    Args:
        indices: integers with as many axes as *x*; the other axes broadcast.

    Raises:
        IndexError: for an index out of bounds. ValueError: for another number of axes.

    Examples:
        >>> import ferrum_array as fa
        >>> x = fa.asarray([[3, 1, 2]])
        >>> fa.take_along_axis(x, fa.argsort(x))
        Tensor([[1, 2, 3]])
    """
    x = tensor("take_along_axis", x)
    place = normalize_axis("take_along_axis", axis, x.ndim)
    if _checked_by_storage(x, indices) and _differ_at_most_in(place, x.shape, indices.shape):
        try:
            return wrap(x._spec.call["take_along_axis"](x._data, indices._data, place), x._spec)
        except IndexError:
            _indices("take_along_axis", x, indices, x.shape[place])  # says what is wrong
            raise
    chosen = _indices("take_along_axis", x, indices, x.shape[place])
    if chosen.ndim != x.ndim:
        raise ValueError(f"take_along_axis: indices {chosen._summary()} need as many axes as {x._summary()}")
    others = broadcast("take_along_axis", x.shape[:place] + (1,) + x.shape[place + 1 :],
                       chosen.shape[:place] + (1,) + chosen.shape[place + 1 :])  # fmt: skip
    spread = x._spec.call["broadcast_to"]
    source = spread(x._data, others[:place] + (x.shape[place],) + others[place + 1 :])
    wanted = spread(chosen._data, others[:place] + (chosen.shape[place],) + others[place + 1 :])
    return wrap(x._spec.call["take_along_axis"](source, wanted, place), x._spec)


def _differ_at_most_in(axis: int, a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    return len(a) == len(b) and a[:axis] == b[:axis] and a[axis + 1 :] == b[axis + 1 :]
