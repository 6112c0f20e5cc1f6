"""Kernels in recordings: calls of compiled functions, done again one after another without Python in between.

A wrapper calls a compiled function by ``launch``. While a function is captured that also keeps the call: the address of
the code, and the arguments as the code takes them, in memory of the recording. A replay is a loop over such pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import numpy as np

from ferrum_array import Tensor
from ferrum_array.backends.tape import ACTIVE, Tape, recording
from ferrum_ops.kernels.cpu import atomic
from ferrum_ops.kernels.cpu.jit import jit
from ferrum_ops.kernels.cpu.threads import ready
from ferrum_ops.quant.tensor import QuantTensor

__all__ = ["hold", "launch"]

_R = TypeVar("_R")
_ROOM: Final = 512  # words: no call has more arguments
_BLOCK: Final = 16 * _ROOM

#: for each function one that keeps a call of it
_keepers: dict[Any, Any] = {}


def launch(function: Callable[..., _R], *arguments: Any) -> _R:
    """``function(*arguments)``, kept where that is recorded.

    Arrays that only their addresses stand for must be named by ``hold``.
    """
    result = function(*arguments)
    if ACTIVE and (tape := recording()) is not None:
        items = tape.items
        last = items[-1] if items else None
        if not isinstance(last, _Calls):
            last = _Calls()
            items.append(last)
        last.add(tape, function, arguments)
    return result


def hold(*used: object) -> None:
    """Keep what a recorded call uses: tensors, arrays, and what else keeps memory alive."""
    tape = recording()
    if tape is None:
        return
    for one in used:
        if isinstance(one, QuantTensor):
            hold(*one.parts.values())
        elif isinstance(one, Tensor):
            tape.hold(one._data)
        elif isinstance(one, np.ndarray):
            tape.hold(one)
        else:
            tape.held.append(one)


def _keeper(function: Any) -> Any:
    found = _keepers.get(function)
    if found is None:
        plain = function.py_func

        @jit(variant=(plain.__module__, plain.__qualname__))
        def keep(arguments: Any, code: int, to: int) -> Any:
            return atomic.keep(function, arguments, code, to)

        found = _keepers[function] = keep
    return found


def _code_of(function: Any, arguments: tuple[Any, ...]) -> int:
    """Where the code begins that a call with these arguments has run."""
    compiled = function.overloads[tuple(map(function.typeof_pyval, arguments))]
    found: int = compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name)
    return found


class _Calls:
    """Calls that follow each other."""

    def __init__(self) -> None:
        self._pairs: Any = np.empty((64, 2), np.int64)
        self._count = 0
        self._memory: list[Any] = []
        self._free = 0

    def add(self, tape: Tape, function: Any, arguments: tuple[Any, ...]) -> None:
        """One more."""
        _hold_arrays(tape, arguments)
        if not self._memory or self._free + _ROOM > _BLOCK:
            self._memory.append(np.zeros(_BLOCK, np.int64))
            self._free = 0
        to = self._memory[-1].ctypes.data + 8 * self._free
        address, size = _keeper(function)(arguments, _code_of(function, arguments), to)
        self._free += -(-size // 64) * 8
        if self._count == len(self._pairs):
            self._pairs = np.concatenate((self._pairs, np.empty_like(self._pairs)))
        self._pairs[self._count] = address, to
        self._count += 1

    def __call__(self) -> None:
        """Do them again."""
        ready()
        _replay(self._pairs, self._count)


def _hold_arrays(tape: Tape, value: Any) -> None:
    if isinstance(value, np.ndarray):
        tape.hold(value)
    elif isinstance(value, tuple):
        for one in value:
            _hold_arrays(tape, one)


@jit
def _replay(pairs: Any, count: int) -> None:
    for i in range(count):
        atomic.again(pairs[i, 0], pairs[i, 1])
