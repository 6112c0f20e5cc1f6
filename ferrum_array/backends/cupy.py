"""CUDA storage through CuPy: the services of a device, and which of its functions work on 16-bit floats as they are.

Work goes to CuPy's current stream of the device. Memory comes from CuPy's pool and returns to it with the last tensor.
What CuPy has otherwise than the standard stands in ``cupy_fixes.py``, row by row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from sys import getrefcount
from typing import Any

import cupy as cp
import numpy as np

from ferrum_array.backends import cupy_complex, host
from ferrum_array.backends.base import Backend, Holder, Raw, Recording
from ferrum_array.backends.cupy_functions import CupyFunctions
from ferrum_array.backends.cupy_graphs import Graph
from ferrum_array.backends.cupy_linalg import CupyLinalg
from ferrum_array.backends.shared import MOVES
from ferrum_array.dtype import Dtype, integer_limits

__all__ = ["CupyBackend", "indices", "make"]

_CUDA = 2  # DLPack's kDLCUDA

#: Functions that CuPy computes in float32 for 16-bit floats by itself and rounds once.
_BY_CUPY = (
    *("add", "subtract", "multiply", "divide", "floor_divide", "remainder", "pow", "negative", "positive", "abs"),
    *("square", "sign", "exp", "expm1", "log", "log1p", "log2", "log10", "sqrt", "reciprocal", "sin", "cos", "tan"),
    *("asin", "acos", "atan", "sinh", "cosh", "tanh", "asinh", "acosh", "atanh", "atan2", "copysign", "hypot"),
    *("nextafter", "signbit", "maximum", "minimum", "floor", "ceil", "trunc", "clip", "real", "conj", "isfinite"),
    *("isinf", "isnan", "less", "less_equal", "greater", "greater_equal", "equal", "not_equal"),
    *("sum", "sort", "argsort", "searchsorted"),
)
_NATIVE = {
    Dtype.F16: frozenset((*_BY_CUPY, "logaddexp", "round")),
    Dtype.BF16: frozenset(_BY_CUPY),
}

#: Functions that move elements and that CuPy has no bfloat16 for, or not always: the bits are moved as integers.
_BITS = frozenset(
    ("concat", "tril", "triu", "take", "take_along_axis", "repeat", "where", "roll", "setitem", "getitem")
)


class CupyBackend(CupyFunctions, CupyLinalg):
    """CuPy's functions on the CUDA device *index*."""

    library = "CuPy"
    records = True
    array_type = cp.ndarray
    dtypes = frozenset(Dtype.all())

    def __init__(self, index: int) -> None:
        self.index = index
        self.device_name = f"cuda:{index}"
        self._device = cp.cuda.Device(index)
        self._only = cp.cuda.runtime.getDeviceCount() == 1
        with self._device:
            probe = _Probe(cp.empty(1))
        self._alone = _references(probe)
        self._own_memory = probe._data.data.mem.__class__

    def raw_dtype(self, dtype: Dtype) -> Any:
        return host.raw_dtype(dtype)

    def finish(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """*function* on this device, whatever device is current, with our words when memory runs out."""
        exhausted, explain = cp.cuda.memory.OutOfMemoryError, self._explain
        index, device, current = self.index, self._device, cp.cuda.runtime.getDevice

        def alone(*args: Any) -> Any:
            try:
                return function(*args)
            except exhausted as error:
                raise explain(name, error) from error

        def one(x: Raw) -> Raw:
            try:
                return function(x)
            except exhausted as error:
                raise explain(name, error) from error

        def among_others(*args: Any) -> Any:
            if current() == index:
                return alone(*args)
            with device:
                return alone(*args)

        if not self._only:
            return among_others
        return one if name == "total" or getattr(function, "nin", 0) == 1 else alone

    def _pairs(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Like :meth:`finish`, for two operands: this is on the way of every operator."""
        exhausted, explain = cp.cuda.memory.OutOfMemoryError, self._explain
        index, device, current = self.index, self._device, cp.cuda.runtime.getDevice

        def pair(x1: Any, x2: Any) -> Raw:
            try:
                return function(x1, x2)
            except exhausted as error:
                raise explain(name, error) from error

        def pair_among_others(x1: Any, x2: Any) -> Raw:
            if current() == index:
                return pair(x1, x2)
            with device:
                return pair(x1, x2)

        return pair if self._only else pair_among_others

    def _explain(self, name: str, error: BaseException) -> MemoryError:
        free, total = self._device.mem_info
        return MemoryError(
            f"{name}: no memory left on {self.device_name}: {error} {free:,} of {total:,} bytes are free. "
            "Delete tensors, work in smaller parts, or use a smaller dtype"
        )

    def implement(self, name: str, dtype: Dtype) -> Callable[..., Any]:
        return (self._pairs if name == "matmul" else self.finish)(name, self._raw(name, dtype))

    def _raw(self, name: str, dtype: Dtype) -> Callable[..., Any]:
        """The function *name* for *dtype* on the current device."""
        if dtype.is_complex and name in cupy_complex.KERNELS:
            kernel: Callable[..., Any] = cupy_complex.KERNELS[name]
            return kernel
        maker = getattr(self, f"make_{name}", None)
        if maker is not None:  # the function is made for the dtype
            made: Callable[..., Any] = maker(self.raw_dtype(dtype), dtype)
            return made
        function = self._function(name)
        if name in MOVES:
            return _as_bits(function, self.raw_dtype(dtype)) if dtype is Dtype.BF16 and name in _BITS else function
        if dtype in _NATIVE and name not in _NATIVE[dtype]:
            return self._widened(function, self.raw_dtype(dtype))
        return function

    def fast_operator(self, name: str, dtype: Dtype) -> Callable[..., Any]:
        call = self._pairs(name, self._raw(name, dtype))
        if not dtype.is_integer:
            return call
        low, high = integer_limits(dtype)

        def checked(x1: Any, x2: Any) -> Raw:
            for number in (x1, x2):
                if number.__class__ is int and not low <= number <= high:
                    raise OverflowError(f"{number} is outside {dtype}")
            return call(x1, x2)

        return checked

    def in_place_operator(self, name: str, dtype: Dtype) -> Callable[..., Any] | None:
        function = self._raw(name, dtype)
        if dtype is Dtype.BF16 or not isinstance(function, cp.ufunc):
            return None
        return self._pairs(name, lambda target, other: function(target, other, out=target))

    def scalars(self, dtype: Dtype) -> frozenset[type]:
        if dtype in (Dtype.F32, Dtype.F64):
            return frozenset((float, int))
        if dtype.is_complex:
            return frozenset((complex, float, int))
        return frozenset((int,)) if dtype.is_integer else frozenset()

    def dtype_of(self, raw: Raw) -> Dtype:
        return host.dtype_of(raw.dtype)

    def adopt(self, obj: Any) -> Raw:
        host.dtype_of(obj.dtype)  # raises for types that tensors do not have
        return obj.view()  # an array object of our own: nobody else can reshape it

    def from_host(self, array: Any, *, copy: bool | None) -> Raw:
        if copy is False:
            raise ValueError(
                f"moving an array from the host to {self.device_name} needs a copy, but copy=False was given"
            )
        return self.finish("from_host", _upload)(array)

    def to_host(self, raw: Raw, *, copy: bool | None) -> Any:
        if copy is False:
            raise ValueError(
                f"moving a tensor from {self.device_name} to the host needs a copy, but copy=False was given"
            )
        return raw.get(order="C")

    def begin_to_host(self, raw: Raw) -> Callable[[], Any]:
        with self._device:
            packed = raw if raw.flags.c_contiguous else raw.copy("C")
            memory = cp.cuda.alloc_pinned_memory(max(1, packed.nbytes))
            host: Any = np.frombuffer(memory, packed.dtype, packed.size).reshape(packed.shape)
            done = cp.cuda.Event(disable_timing=True)
            if packed.size:
                packed.get(out=host, blocking=False)
            done.record()

        def wait() -> Any:
            done.synchronize()
            return host

        return wait

    def from_peer(self, raw: Raw, source: Backend) -> Raw:
        if not isinstance(source, CupyBackend):
            return super().from_peer(raw, source)
        return self.finish("to_device", _from_device)(raw, source._device)

    def exclusive(self, holder: Holder) -> bool:
        # Views and exports keep the array, its pointer or its memory alive: reference counts tell who can see it.
        raw = holder._data
        if raw.base is not None or raw.data.mem.__class__ is not self._own_memory:
            return False
        del raw
        return _references(holder) == self._alone

    def shares_memory(self, raw: Raw, other: Raw) -> bool:
        return bool(cp.may_share_memory(raw, other))

    def synchronize(self, raws: Sequence[Raw] = ()) -> None:
        self._device.synchronize()

    def record(
        self, run: Callable[[Sequence[Raw]], Sequence[Raw]], inputs: Sequence[Raw], state: Sequence[Holder]
    ) -> Recording | None:
        with self._device:
            return Graph(run, inputs)

    def dlpack_device(self, raw: Raw) -> tuple[int, int]:
        return (_CUDA, self.index)

    def to_dlpack(self, raw: Raw, *, stream: Any, max_version: tuple[int, int] | None, copy: bool | None) -> Any:
        with self._device:
            return (raw.copy() if copy else raw).__dlpack__(stream=stream, max_version=max_version)

    def from_dlpack(self, obj: Any, *, copy: bool | None) -> Raw:
        with self._device:
            raw = self.adopt(obj if isinstance(obj, cp.ndarray) else cp.from_dlpack(obj))
            return raw.copy() if copy else raw


class _Probe:
    """Alone with an array, as a tensor that shares nothing."""

    __slots__ = ("_data",)

    def __init__(self, data: Raw) -> None:
        self._data = data


def _references(holder: Holder) -> tuple[int, int, int]:
    """How many hold the array of *holder*, its pointer and its memory."""
    return getrefcount(holder._data), getrefcount(holder._data.data), getrefcount(holder._data.data.mem)


def _as_bits(function: Callable[..., Any], narrow: Any) -> Callable[..., Any]:
    """*function* on arrays of the dtype *narrow* seen as integers of its size."""

    def bits(value: Any) -> Any:
        if isinstance(value, list):
            return [bits(one) for one in value]
        return value.view("uint16") if isinstance(value, cp.ndarray) and value.dtype == narrow else value

    def call(*args: Any) -> Any:
        result = function(*map(bits, args))
        return None if result is None else result.view(narrow)

    return call


def _upload(array: Any) -> Raw:
    raw = cp.empty(array.shape, array.dtype)
    if raw.size:  # cupy.asarray would fill 0-d arrays, which loses the sign of -0.0
        raw.set(np.ascontiguousarray(array).reshape(array.shape))
    return raw


def _from_device(raw: Raw, source: Any) -> Raw:
    """A copy of *raw*, which lies on *source*, on the current device: each side's stream waits for the other."""
    with source:
        ready = cp.cuda.Event(disable_timing=True)
        packed = cp.ascontiguousarray(raw) if raw.ndim else raw
        ready.record()
    cp.cuda.get_current_stream().wait_event(ready)
    out = cp.empty(raw.shape, raw.dtype)
    out.data.copy_from_device_async(packed.data, packed.nbytes)
    done = cp.cuda.Event(disable_timing=True)
    done.record()
    with source:  # the memory of *packed* may be used again only then
        cp.cuda.get_current_stream().wait_event(done)
    return out


def make(index: int | str) -> CupyBackend:
    """The backend of CUDA device *index*.

    Raises:
        ValueError: if there is no such device.
    """
    count = len(indices())
    if not isinstance(index, int) or not 0 <= index < count:
        raise ValueError(f"there is no device cuda:{index}: this machine has {count} CUDA devices")
    return CupyBackend(index)


def indices() -> tuple[int | str, ...]:
    """The CUDA devices that the driver shows; none where there is no driver."""
    try:
        return tuple(range(cp.cuda.runtime.getDeviceCount()))
    except cp.cuda.runtime.CUDARuntimeError:  # no device or no driver: a machine without CUDA, which is no error
        return ()
