"""Memory that kernels work in, kept between calls: fresh memory costs a page fault for every 4 KiB."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from ferrum_array.backends.tape import ACTIVE, Tape, recording
from ferrum_ops import cores
from ferrum_ops.kernels.cpu import atomic
from ferrum_ops.kernels.cpu.arrays import Array
from ferrum_ops.kernels.cpu.jit import jit

__all__ = ["borrow", "borrow_line", "give_back", "lay_down", "pick_up"]

_LINE = 16  # numbers of a cache line
#: a block begins with a word for each of so many places, which is 1 while the place is taken; and room to align
_PLACES = 256
_HEAD = 2 * _PLACES + _LINE
#: so many blocks wait for the next call; a call beyond them gets fresh memory
_MOST = 8
_LARGEST = 1 << 22  # numbers: 16 MiB
_kept: list[Array] = []
_MACHINE = os.cpu_count() or 1


def borrow(size: int) -> Array:
    """A block of memory in which each thread of a call can pick up a place of *size* numbers."""
    tape = recording() if ACTIVE else None
    if tape is not None:  # there may be more threads later
        threads = max(cores.threads(), _MACHINE)
        return _recorded(tape, "places", _HEAD + min(threads, _PLACES) * (size + _LINE))
    block = borrow_line(_HEAD + min(cores.threads(), _PLACES) * (size + _LINE))
    block[:_HEAD] = 0.0
    return block


def _recorded(tape: Tape, kind: str, size: int) -> Array:
    """Memory for calls that are recorded: that of calls before them, of the same kind, as places begin free."""
    free: list[Array] = tape.notes.setdefault(("scratch", kind), [])
    found = next((place for place, one in enumerate(free) if one.size >= size), None)
    block = np.zeros(size, np.float32) if found is None else free.pop(found)
    tape.notes["scratch", id(block)] = kind
    return block


def borrow_line(size: int) -> Array:
    """At least *size* numbers, which hold anything."""
    tape = recording() if ACTIVE else None
    if tape is not None:
        return _recorded(tape, "line", size)
    try:
        block = _kept.pop()
    except IndexError:  # the first call, or others have them all
        block = np.empty(size, np.float32)
    return block if block.size >= size else np.empty(size, np.float32)


def give_back(*blocks: Array) -> None:
    """Keep blocks for the next call, which fit best if they come back in the order in which they were borrowed."""
    tape = recording() if ACTIVE else None
    for block in blocks[::-1]:
        if tape is not None:
            tape.notes["scratch", tape.notes["scratch", id(block)]].append(block)
        elif len(_kept) < _MOST and block.size <= _LARGEST:
            _kept.append(block)


@jit(inner=True)
def pick_up(block: Any, size: int) -> int:
    """Take a free place of *size* numbers in *block*: where it begins, on a cache line. ``lay_down`` frees it."""
    address: int = block.ctypes.data
    step = (size + _LINE - 1) // _LINE * _LINE
    skip = -(address // 4) % _LINE
    flags = address + address % 8
    places = min((block.size - _HEAD) // step, _PLACES)
    while True:  # there are as many places as threads, but for a moment after their number has changed
        for place in range(places):
            if atomic.swap_if(flags + 8 * place, 0, 1):
                return skip + 2 * _PLACES + place * step
        atomic.pause()


@jit(inner=True)
def lay_down(block: Any, size: int, start: int) -> None:
    """Free the place that begins at *start*."""
    address: int = block.ctypes.data
    step = (size + _LINE - 1) // _LINE * _LINE
    skip = -(address // 4) % _LINE
    place = (start - skip - 2 * _PLACES) // step
    atomic.store(address + address % 8 + 8 * place, 0)
