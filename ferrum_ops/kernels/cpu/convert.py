"""Conversion between the floating dtypes, several threads at once."""

from __future__ import annotations

from typing import Any

from ferrum_ops.kernels.cpu.atomic import task
from ferrum_ops.kernels.cpu.intrinsics import get, put
from ferrum_ops.kernels.cpu.jit import EXACT, jit
from ferrum_ops.kernels.cpu.threads import share

__all__ = ["convert"]

#: a thread takes so many numbers at a time
_GRAIN = 1 << 14


@jit(fastmath=EXACT, inner=True)
def _part(source: Any, target: Any, first: int, end: int) -> None:
    for i in range(first, end):
        put(target, i, get(source, i))


@jit(fastmath=EXACT)
def convert(source: Any, target: Any, count: int, crew: int) -> None:
    """Write the first *count* numbers of one line to another, rounded to its type."""
    share(crew, task(_part, (source, target)), count, _GRAIN)
