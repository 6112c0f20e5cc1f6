"""Gluon's language on NumPy, as far as the kernel of few products speaks it: programs run one after another.

Layouts do not matter. Copies to shared memory land when they are waited for; until then there is poison. What a kernel
reads and writes must be inside of what it was given.
"""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import ml_dtypes
import numpy as np

import ferrum_array as fa
from ferrum_array import Tensor
from ferrum_ops import gated_activation, use_fast_paths

__all__ = ["Program", "stand_in"]


class Array(np.ndarray[Any, Any]):
    """A tensor of the language; scalars are some without axes."""

    type = SimpleNamespace(layout=None)

    def __array_wrap__(self, array: Any, context: Any = None, return_scalar: bool = False) -> Any:
        return np.asarray(array).view(Array)

    def to(self, dtype: Any, bitcast: bool = False) -> Any:
        return self.view(dtype) if bitcast else self.astype(dtype)

    def permute(self, axes: Sequence[int]) -> Any:
        return self.transpose(axes)


def _array(values: Any, kind: Any = None) -> Any:
    return np.asarray(values, kind).view(Array)


class _Address:
    """Addresses, each of an element."""

    def __init__(self, at: Any, kind: Any) -> None:
        self.at, self.dtype = _array(at, np.int64), SimpleNamespace(element_ty=np.dtype(kind))

    def __add__(self, steps: Any) -> _Address:
        kind = self.dtype.element_ty
        return _Address(self.at + np.asarray(steps, np.int64) * kind.itemsize, kind)

    def to(self, kind: Any, bitcast: bool) -> _Address:
        assert bitcast
        return _Address(self.at, kind)


class _Shared:
    """Memory that the threads of a program share."""

    def __init__(self, values: Any) -> None:
        self.values = values

    def index(self, place: int) -> _Shared:
        return _Shared(self.values[int(place)])

    def slice(self, start: int, length: int, axis: int) -> _Shared:
        assert axis == 1
        return _Shared(self.values[:, start : start + length])

    def load(self, _: Any) -> Any:
        return self.values.copy().view(Array)

    def store(self, values: Any) -> None:
        assert values.shape == self.values.shape
        self.values[...] = values


class _Language:
    """What a program calls."""

    constexpr: Any = None
    float32, float16, bfloat16 = (np.dtype(kind) for kind in (np.float32, np.float16, ml_dtypes.bfloat16))
    int64, int32, uint32, uint16 = (np.dtype(kind) for kind in (np.int64, np.int32, np.uint32, np.uint16))
    static_range = range

    def __init__(self) -> None:
        self.async_copy = SimpleNamespace(
            async_copy_global_to_shared=self._copy, commit_group=self._commit, wait_group=self._wait
        )
        self.begin([], 0, 1)

    def begin(self, tensors: Sequence[Tensor], program: int, programs: int) -> None:
        self.program, self.programs = program, programs
        self.bounds = [np.lib.array_utils.byte_bounds(tensor._data) for tensor in tensors]
        self.open: list[Callable[[], None]] = []
        self.groups: list[list[Callable[[], None]]] = []

    # layouts do not matter
    def BlockedLayout(self, *_: Any) -> None: ...
    def SliceLayout(self, *_: Any) -> None: ...
    def SwizzledSharedLayout(self, *_: Any) -> None: ...
    def NVMMADistributedLayout(self, *_: Any) -> None: ...
    def DotOperandLayout(self, *_: Any) -> None: ...

    def convert_layout(self, values: Any, _: Any, assert_trivial: bool = False) -> Any:
        return values

    # numbers
    def program_id(self, _: int) -> Any:
        return _array(self.program, np.int32)

    def num_programs(self, _: int) -> Any:
        return _array(self.programs, np.int32)

    def pointer_type(self, kind: Any) -> Any:
        return kind

    def arange(self, start: int, end: int, layout: Any) -> Any:
        assert end & (end - 1) == 0, "lengths are powers of two"
        return _array(np.arange(start, end), np.int32)

    def full(self, shape: Sequence[int], value: float, kind: Any, layout: Any = None) -> Any:
        return _array(np.full(shape, value), kind)

    def zeros(self, shape: Sequence[int], kind: Any, layout: Any) -> Any:
        return _array(np.zeros(shape), kind)

    def expand_dims(self, values: Any, axis: int) -> Any:
        return np.expand_dims(values, axis)

    def cdiv(self, a: Any, b: Any) -> Any:
        return -(-a // b)

    def minimum(self, a: Any, b: Any) -> Any:
        return _array(np.minimum(a, b))

    def where(self, condition: Any, a: Any, b: Any) -> Any:
        if isinstance(a, _Address):
            return _Address(np.where(condition, a.at, b.at), a.dtype.element_ty)
        return _array(np.where(condition, a, b))

    def sum(self, values: Any, axis: int) -> Any:
        return values.sum(axis=axis, dtype=values.dtype)

    def join(self, a: Any, b: Any) -> Any:
        return _array(np.stack([a, b], axis=-1))

    def split(self, values: Any) -> tuple[Any, Any]:
        return values[..., 0], values[..., 1]

    def mma_v2(self, a: Any, b: Any, total: Any) -> Any:
        assert a.dtype == b.dtype
        assert total.shape == (*a.shape[:2], b.shape[2])
        with np.errstate(invalid="ignore"):  # of infinite numbers
            return total + np.matmul(a.astype(np.float32), b.astype(np.float32))

    # memory
    def allocate_shared_memory(self, kind: Any, shape: Sequence[int], layout: Any) -> _Shared:
        return _Shared(np.frombuffer(b"\xff" * int(np.prod(shape)) * kind.itemsize, kind).reshape(shape).copy())

    def _bytes(self, at: Any, size: int) -> Any:
        """The bytes [n, size] at each of the addresses, as places in memory."""
        known = np.zeros(at.shape, bool)
        for low, high in self.bounds:
            known |= (at >= low) & (at + size <= high)
        assert known.all(), "an address outside of what the kernel was given"
        return [(ctypes.c_uint8 * size).from_address(int(one)) for one in at]

    def load(self, at: _Address, mask: Any = True, other: Any = None) -> Any:
        kind = at.dtype.element_ty
        where, wanted = np.broadcast_arrays(at.at, mask)
        found = np.zeros(where.shape, kind) if other is not None else np.full(where.shape, -1).astype(kind)
        if wanted.any():
            raw = b"".join(bytes(one) for one in self._bytes(where[wanted], kind.itemsize))
            found[wanted] = np.frombuffer(raw, kind)
        return found.view(Array)

    def store(self, at: _Address, values: Any, mask: Any) -> None:
        kind = at.dtype.element_ty
        where, numbers, wanted = np.broadcast_arrays(at.at, values, mask)
        places = self._bytes(np.asarray(where[wanted]), kind.itemsize)
        for place, number in zip(places, np.asarray(numbers[wanted]), strict=True):
            ctypes.memmove(place, number.astype(kind).tobytes(), kind.itemsize)

    def _copy(self, to: _Shared, source: _Address, mask: Any) -> None:
        to.values.view(np.uint8)[...] = 0xFF

        def land() -> None:
            found, wanted = np.broadcast_arrays(self.load(source, mask, 0), mask)
            to.values[wanted] = found[wanted]

        self.open.append(land)

    def _commit(self) -> None:
        self.groups.append(self.open)
        self.open = []

    def _wait(self, left: int) -> None:
        while len(self.groups) > left:
            for land in self.groups.pop(0):
                land()


class Program:
    """A kernel, and how it is launched; stands for ``Kernel``."""

    def __init__(self, function: Callable[..., None], language: _Language) -> None:
        self._function, self._language = function, language

    def __call__(self, grid: tuple[int], *arguments: Any, warps: int, stages: int, **constants: Any) -> None:
        """Run a program for each point of the grid."""
        tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
        ready = [
            _Address(argument._data.ctypes.data, argument._data.dtype)
            if isinstance(argument, Tensor)
            else argument
            if argument is None
            else _array(argument)
            for argument in arguments
        ]
        for place in range(grid[0]):
            self._language.begin(tensors, place, grid[0])
            self._function(*ready, **constants)


def _gated(gate: Any, up: Any, limit: Any, alpha: Any, offset: Any, kind: Any, exact: bool) -> Any:
    """What the kernel's own function of this name computes."""
    assert not exact
    with use_fast_paths(False):
        y = gated_activation(
            fa.asarray(np.ascontiguousarray(gate, np.float64)),
            fa.asarray(np.ascontiguousarray(up, np.float64)),
            kind,
            limit=None if limit is None else float(limit),
            alpha=1.0 if alpha is None else float(alpha),
            up_offset=0.0 if offset is None else float(offset),
        )
    return _array(y.numpy(), np.float32)


def stand_in(path: Path, name: str) -> Program:
    """The kernel *name* of the file, which imports Gluon, as a program on NumPy."""
    language = _Language()
    gluon = SimpleNamespace(jit=lambda function: function, language=language)
    names: dict[str, Any] = {
        "triton.experimental": SimpleNamespace(gluon=gluon),
        "triton.experimental.gluon": gluon,
        "triton.experimental.gluon.language.nvidia.ampere": language,
        "triton.runtime.jit": SimpleNamespace(constexpr_function=lambda function: function),
        "ferrum_ops.kernels.cuda.source.activations": SimpleNamespace(gated=_gated),
    }
    spec = importlib.util.spec_from_file_location("stand_in_" + path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with mock.patch.dict(sys.modules, names):
        spec.loader.exec_module(module)
    return Program(getattr(module, name), language)
