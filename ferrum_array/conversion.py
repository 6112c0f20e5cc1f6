"""Taking data in: ``asarray`` and ``from_dlpack`` of the array API standard, and moving tensors between devices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ferrum_array import backends
from ferrum_array.backends import host
from ferrum_array.device import Device, get_default_device
from ferrum_array.dtype import Dtype, Kind, weak_promote
from ferrum_array.spec import spec_of
from ferrum_array.tensor import Tensor, wrap

__all__ = ["asarray", "from_dlpack"]


def from_host(array: Any, device: Device | str, *, copy: bool | None = None) -> Tensor:
    """The tensor on *device* with the contents of a host array (see ``backends/host.py``)."""
    spec = spec_of(host.dtype_of(array), Device(device))
    return wrap(spec.device.backend.from_host(array, copy=copy), spec)


def asarray(obj: Any, /, *, dtype: Any = None, device: Device | str | None = None, copy: bool | None = None) -> Tensor:
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
    kinds = _kinds(obj) if isinstance(obj, (list, tuple)) else set()
    if not kinds.isdisjoint(_NO_NUMBERS):
        raise TypeError(f"asarray: a tensor holds numbers, but this {type(obj).__name__} has {host.stranger(obj)}")
    if Tensor in kinds:
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


#: NumPy makes numbers of these where a dtype is given: NaN of None, and what a text says.
_NO_NUMBERS = frozenset((str, bytes, type(None)))


def _kinds(items: Sequence[Any]) -> set[type]:
    """The types in nested sequences; one look at each element, as there may be millions."""
    kinds = set(map(type, items))
    for kind in [kind for kind in kinds if issubclass(kind, (list, tuple))]:
        kinds.discard(kind)
        kinds.update(*(_kinds(one) for one in items if one.__class__ is kind))
    return kinds


def _holds_tensors(items: Sequence[Any]) -> bool:
    return Tensor in _kinds(items)


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
    return wrap(device.backend.from_peer(x._data, x.device.backend), spec)


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
    where = {1: "cpu", 2: f"cuda:{index}", 3: "cpu", 8: "mlx:gpu", 13: f"cuda:{index}"}.get(
        int(getattr(kind, "value", kind))
    )
    if where == "cpu":
        where = backends.home(x) or where
    if where is None:
        raise ValueError(f"from_dlpack: no device of ours holds memory of DLPack device type {kind}")
    source = Device(where)
    data = source.backend.from_dlpack(x, copy=copy)
    return _from_tensor(
        wrap(data, spec_of(source.backend.dtype_of(data), source)), None, device, None if copy else copy
    )
