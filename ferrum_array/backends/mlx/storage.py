"""The services of MLX on one device."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from sys import getrefcount
from typing import Any

import mlx.core as mx

from ferrum_array.backends import host
from ferrum_array.backends.base import Backend, Holder, Raw
from ferrum_array.backends.mlx.arrays import Arrays, from_numpy, to_numpy
from ferrum_array.backends.mlx.chapter import RAW_DTYPES
from ferrum_array.backends.mlx.elementwise import BINARY, UNARY, Elementwise
from ferrum_array.backends.mlx.products import Products
from ferrum_array.backends.mlx.reductions import Reductions
from ferrum_array.backends.mlx.selection import Selection
from ferrum_array.backends.mlx.transforms import Transforms
from ferrum_array.backends.mlx.visits import visits_host
from ferrum_array.backends.mlx.window import Window, compute
from ferrum_array.backends.numpy import NumpyBackend
from ferrum_array.dtype import Dtype

__all__ = ["MlxBackend", "indices", "make"]

_DTYPES = {raw: d for d, raw in RAW_DTYPES.items()}

#: The functions of two arrays that are MLX's own.
DIRECT = BINARY | {"matmul": mx.matmul}

#: The elementwise functions of 16-bit floats that MLX computes in 16 bits.
_WIDENED = frozenset(("logaddexp",))


class MlxBackend(Elementwise, Arrays, Selection, Reductions, Products, Transforms, Backend):
    """MLX's functions with the standard's semantics, on the CPU or the GPU."""

    library = "MLX"
    array_type = mx.array
    views = False

    def __init__(self, index: int | str, device: mx.DeviceType, dtypes: frozenset[Dtype]) -> None:
        self.device_name = f"mlx:{index}"
        self.dtypes = dtypes
        # MLX's default streams belong to one thread each; tensors go from thread to thread
        self.stream = mx.new_thread_unsafe_stream(device)
        self._window = Window()
        self._host = NumpyBackend()

    def implement(self, name: str, dtype: Dtype) -> Callable[..., Any]:
        if visits_host(name, dtype):
            return self._visit(name, dtype)
        function = self._own(name, dtype)
        if function is None:
            if name in UNARY:
                return self._window.unary(UNARY[name], self.stream)
            return self._window.binary(DIRECT[name], self.stream)
        if name == "getitem":
            return self._window.recorded_pair(function)
        return self._window.recorded_write(function) if name == "setitem" else self._window.recorded(function)

    def _own(self, name: str, dtype: Dtype) -> Callable[..., Any] | None:
        """Our function *name*, or None where MLX's is right as it is."""
        make = getattr(self, f"make_{name}", None)
        function: Callable[..., Any] | None = getattr(self, f"fn_{name}", None) if make is None else make(dtype)
        if function is None and name in _WIDENED and dtype in (Dtype.F16, Dtype.BF16):
            function = self.widened(lambda x1, x2: DIRECT[name](x1, x2, stream=self.stream))
        return function

    def _visit(self, name: str, dtype: Dtype) -> Callable[..., Any]:
        """The function *name* of NumPy storage."""
        function = self._host.implement(name, dtype)

        def call(*args: Any) -> Any:
            compute(one for one in args if isinstance(one, mx.array))
            result = function(*(to_numpy(one, self.stream) if isinstance(one, mx.array) else one for one in args))
            return tuple(map(from_numpy, result)) if isinstance(result, tuple) else from_numpy(result)

        return call

    def fast_operator(self, name: str, dtype: Dtype) -> Callable[..., Any]:
        function = self.implement(name, dtype)
        if dtype is Dtype.BOOL:
            return function
        own = visits_host(name, dtype) or self._own(name, dtype) is not None
        if own or not dtype.is_floating:
            return self.with_scalars(function, dtype, as_array=own)
        return self._window.binary_of_floats(DIRECT[name], self.stream)

    def scalars(self, dtype: Dtype) -> frozenset[type]:
        if dtype.is_integer:
            return frozenset((int,))
        if dtype.is_complex:
            return frozenset((complex, float, int))
        return frozenset((float, int)) if dtype.is_floating else frozenset()

    def run(self, function: Callable[..., mx.array], *args: Any, **options: Any) -> mx.array:
        """A function of MLX on the stream of this device; its result is remembered."""
        return self._window.remembered(function(*args, stream=self.stream, **options))

    def dtype_of(self, raw: Raw) -> Dtype:
        return _DTYPES[raw.dtype]

    def adopt(self, obj: Any) -> Raw:
        return mx.array(obj)  # a handle of our own on the same memory

    def from_host(self, array: Any, *, copy: bool | None) -> Raw:
        if copy is False:
            raise ValueError(
                f"MLX cannot use NumPy's memory, so {self.device_name} needs a copy, but copy=False was given"
            )
        return from_numpy(array)

    def to_host(self, raw: Raw, *, copy: bool | None) -> Any:
        compute((raw,))
        view = to_numpy(raw, self.stream)
        return view.copy(order="C") if copy else view

    def exclusive(self, holder: Holder) -> bool:
        # Handles do not see each other's writes, so only the object itself must not be held twice: by two tensors,
        # or by a view of its memory on the host.
        return getrefcount(holder._data) <= _ALONE

    def shares_memory(self, raw: Raw, other: Raw) -> bool:
        compute((raw, other))
        return host.same_memory(to_numpy(raw, self.stream), to_numpy(other, self.stream))

    def synchronize(self, raws: Sequence[Raw] = ()) -> None:
        if raws:
            compute(raws)
        else:
            self._window.flush()
            mx.synchronize(self.stream)

    def dlpack_device(self, raw: Raw) -> tuple[int, int]:
        kind, index = raw.__dlpack_device__()
        return (int(kind), int(index))

    def to_dlpack(self, raw: Raw, *, stream: Any, max_version: tuple[int, int] | None, copy: bool | None) -> Any:
        if stream is not None:
            raise ValueError(f"__dlpack__: {self.device_name} takes no stream, got stream={stream!r}")
        compute((raw,))
        return raw.__dlpack__(max_version=max_version, copy=copy)

    def from_dlpack(self, obj: Any, *, copy: bool | None) -> Raw:
        return self.adopt(obj) if isinstance(obj, mx.array) else mx.from_dlpack(obj, copy=copy)


class _Probe:
    __slots__ = ("_data",)

    _data: mx.array


def _alone() -> int:
    """What ``getrefcount(holder._data)`` says when only the holder has the array, in this Python."""
    probe = _Probe()
    probe._data = mx.array(0)
    return getrefcount(probe._data)


_ALONE = _alone()

_CPU_DTYPES = frozenset(RAW_DTYPES)
_GPU_DTYPES = _CPU_DTYPES - {Dtype.F64}  # Apple's GPUs have no 64-bit floats

#: Set in the environment, it makes ``mlx:gpu`` a device with the GPU's dtypes whose work is done on the CPU, so that
#: programs for the GPU can be rehearsed where there is none.
REHEARSAL = "FERRUM_REHEARSE_MLX_GPU"


def indices() -> tuple[int | str, ...]:
    """The CPU, and the GPU where there is one (or one is rehearsed)."""
    return ("cpu", "gpu") if mx.is_available(mx.gpu) or REHEARSAL in os.environ else ("cpu",)


def make(index: int | str) -> MlxBackend:
    """The backend of MLX's CPU or GPU.

    Raises:
        ValueError: for the GPU where MLX sees none.
    """
    if index not in indices():
        raise ValueError(f"MLX sees no GPU here, so there is no device mlx:{index}; use 'mlx:cpu'")
    if index == "gpu":
        return MlxBackend(index, mx.gpu if mx.is_available(mx.gpu) else mx.cpu, _GPU_DTYPES)
    return MlxBackend(index, mx.cpu, _CPU_DTYPES)
