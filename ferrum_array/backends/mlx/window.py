"""Laziness with a limit.

MLX computes when a value is asked for. A loop that never asks would grow the graph without bound, and memory with it.
So the results of the last operations are remembered, weakly, and when there are ``SIZE`` of them those still in use
are given to MLX to compute, which goes on in the background. Whatever is in use was then either computed before or
made since: no more than ``SIZE`` operations of ours ever wait. What nobody holds any more is not computed for this.

The stream of a device can be used by every thread, on the condition that graphs are handed over one at a time. One
lock sees to that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from threading import RLock
from typing import Any
from weakref import ref

import mlx.core as mx

__all__ = ["SIZE", "Window", "check_memory", "compute"]

#: How many results are remembered. Computing costs some microseconds a time, so this adds little to each operation.
SIZE = 256

_one_at_a_time = RLock()
_start: Callable[..., None] = mx.async_eval


def compute(arrays: Iterable[mx.array]) -> None:
    """Compute *arrays* and wait for them.

    Raises:
        MemoryError: for one that is larger than MLX's memory; MLX itself would end the process.
    """
    wanted = list(arrays)
    for array in wanted:
        check_memory(array.shape, array.nbytes)
    with _one_at_a_time:
        mx.eval(wanted)


def check_memory(shape: tuple[int, ...], size: int) -> None:
    """MemoryError if an array of *shape* and *size* bytes is larger than the memory that MLX may use."""
    if size > mx.get_memory_limit():
        raise MemoryError(f"an array of shape {shape} needs {size} bytes; MLX may use {mx.get_memory_limit()}")


class Window:
    """The results of the last operations on one device."""

    __slots__ = ("_results",)

    def __init__(self) -> None:
        self._results: list[ref[mx.array]] = []

    def flush(self) -> None:
        """Let MLX compute all remembered results that are still in use."""
        with _one_at_a_time:
            results = self._results[:]
            del self._results[: len(results)]
            limit = mx.get_memory_limit()  # larger ones are views, which need no memory
            _start([array for one in results if (array := one()) is not None and array.nbytes <= limit])

    def remembered(self, found: mx.array) -> mx.array:
        """*found*, a result of now."""
        self._results.append(ref(found))
        if len(self._results) >= SIZE:
            self.flush()
        return found

    def recorded(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """*function*, its results remembered."""
        results, flush = self._results, self.flush

        def call(*args: Any) -> Any:
            found = function(*args)
            if found.__class__ is tuple:
                results.extend(map(ref, found))
            else:
                results.append(ref(found))
            if len(results) >= SIZE:
                flush()
            return found

        return call

    def recorded_pair(self, function: Callable[[Any, Any], mx.array]) -> Callable[[Any, Any], mx.array]:
        """*function* of two arguments and one result, which is remembered."""
        results, flush = self._results, self.flush

        def call(x1: Any, x2: Any) -> mx.array:
            found = function(x1, x2)
            results.append(ref(found))
            if len(results) >= SIZE:
                flush()
            return found

        return call

    def recorded_write(self, function: Callable[..., None]) -> Callable[..., None]:
        """*function*, which writes to its first argument, remembered as well."""
        results, flush = self._results, self.flush

        def call(x: mx.array, key: Any, value: mx.array) -> None:
            function(x, key, value)
            results.append(ref(x))
            if len(results) >= SIZE:
                flush()

        return call

    def unary(self, function: Callable[..., mx.array], stream: mx.Stream) -> Callable[[mx.array], mx.array]:
        """MLX's *function* of one array on *stream*, its results remembered: as short as can be."""
        results, flush = self._results, self.flush

        def call(x: mx.array) -> mx.array:
            found = function(x, stream=stream)
            results.append(ref(found))
            if len(results) >= SIZE:
                flush()
            return found

        return call

    def binary(self, function: Callable[..., mx.array], stream: mx.Stream) -> Callable[[mx.array, mx.array], mx.array]:
        """The same for a function of two arrays."""
        results, flush = self._results, self.flush

        def call(x1: mx.array, x2: mx.array) -> mx.array:
            found = function(x1, x2, stream=stream)
            results.append(ref(found))
            if len(results) >= SIZE:
                flush()
            return found

        return call

    def binary_of_floats(self, function: Callable[..., mx.array], stream: mx.Stream) -> Callable[[Any, Any], mx.array]:
        """The same for floats, one of which may be a Python number: integers of any size."""
        results, flush = self._results, self.flush

        def call(x1: Any, x2: Any) -> mx.array:
            if x2.__class__ is int:
                x2 = float(x2)
            elif x1.__class__ is int:
                x1 = float(x1)
            found = function(x1, x2, stream=stream)
            results.append(ref(found))
            if len(results) >= SIZE:
                flush()
            return found

        return call
