"""Threads that help a kernel: they wait inside compiled code, so that work reaches them without the interpreter.

A kernel puts up a job: a function, its arguments and a number of items. Whoever is there takes items until none is
left: the caller itself, and those helpers that come. Helpers volunteer, so the caller never waits for one that has not
begun; in the end it waits for those that have. A helper that finds nothing to do for a while goes to sleep on a lock,
and the next large call wakes it.

The items are split into a range for each thread, which it goes through from the front; whoever is done takes what is
left of the others' ranges from the back. So each reads memory in one long stream, which processors see coming: two
threads that took turns at parts of 74 KB read 52 G weights of 4 bits a second where 88 are possible.

Why not numba's ``prange``, measured with 2 threads on 2 cores: where the cores are free the two are equal (a kernel of
28 us alone takes 15 us with ``prange`` on the omp layer and 16 us here). Where other processes want the cores too,
``prange`` waits for halves that were dealt out in advance, 7000 us, and the same kernel here takes 28 us at worst, as
alone. The omp layer ends every process that was forked, the workqueue layer aborts when two threads call it at once,
and ``parallel=True`` multiplies the time of compilation.

Two calls at once: one has the helpers, the other finds them taken and does its items alone. A process made by fork
starts with no helpers and makes its own. Helpers end with the interpreter.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from typing import Any

import numpy as np

from ferrum_array.backends.tape import ACTIVE
from ferrum_ops import cores
from ferrum_ops.kernels.cpu import atomic
from ferrum_ops.kernels.cpu.jit import jit

__all__ = ["GRAIN", "crew", "ready", "rows_each", "share"]

# Words of the block that caller and helpers share, by their place in bytes; each has a cache line of its own.
_OWNER = 0  # 1 while a call has the helpers
_GATE = 128  # how many helpers are at work, and _OPEN while more may come
_TICKET = 256  # the number of the job
_RANGES = 384  # into how many ranges the items are split
_FUNCTION, _ARGUMENTS, _ITEMS, _GRAIN = 512, 520, 528, 536  # the job
_STOP = 640  # 1 when helpers are to end
_LIMIT = 648  # how many helpers may come
_SLEEPERS = 768  # 1 if some helper may be asleep
_ASLEEP = 896  # for each helper: 1 while it is asleep
_LINE = 128
_MOST = 255  # helpers
_RANGE = _ASLEEP + _LINE * _MOST  # for each range: the first part that nobody has taken; in the upper half, the end

_OPEN = 1 << 32
#: the lower half of a range, and one part less at its end
_FRONT, _BACK = (1 << 32) - 1, 1 << 32
#: a caller that has waited for its helpers so many times gives its core to others: helpers may need it
_PATIENCE = 2000
#: how long a helper looks for work with its core to itself, in seconds; and how often then, giving way to others each
#: time, which takes about half a microsecond where there are none, before it goes to sleep
_ALONE, _TURNS = 20e-6, 400
#: a call that does less than this works alone: about 20 microseconds' worth
_LEAST = 1 << 15


#: how many numbers a thread takes at a time where there is no reason for another number: a few microseconds' worth
GRAIN = 1 << 13


@jit(inner=True)
def rows_each(size: int) -> int:
    """How many rows of *size* numbers a thread takes at a time."""
    return max(1, GRAIN // max(1, size))


@jit(inner=True)
def _work(block: int, mine: int) -> None:
    """Take parts of the job until none is left: of range number *mine* from the front, then of others from the back."""
    job = (atomic.load(block + _FUNCTION), atomic.load(block + _ARGUMENTS))
    items, grain, ranges = atomic.load(block + _ITEMS), atomic.load(block + _GRAIN), atomic.load(block + _RANGES)
    for i in range(ranges):
        own = i == 0 and mine < ranges
        place = block + _RANGE + _LINE * ((mine + i) % ranges)
        while True:
            left = atomic.load(place)
            first, end = left & _FRONT, left >> 32
            if first >= end:
                break
            if atomic.swap_if(place, left, left + 1 if own else left - _BACK):
                part = first if own else end - 1
                atomic.call(job, part * grain, min((part + 1) * grain, items))


@jit
def _serve(block: int, index: int, seen: int, spins: int) -> int:
    """What helper *index* does until there is nothing to do: the number of the job it saw last, or -1 at the end."""
    idle = 0
    while atomic.load(block + _STOP) == 0:
        ticket = atomic.load(block + _TICKET)
        if ticket == seen:
            if idle >= spins + _TURNS:
                atomic.store(block + _ASLEEP + _LINE * index, 1)
                atomic.store(block + _SLEEPERS, 1)
                return seen
            if idle < spins:
                atomic.pause()
            else:
                atomic.give_way()
            idle += 1
            continue
        seen = ticket
        idle = 0
        gate = atomic.load(block + _GATE)
        while gate >= _OPEN and not atomic.swap_if(block + _GATE, gate, gate + 1):
            gate = atomic.load(block + _GATE)
        if gate >= _OPEN:  # counted in: the job cannot change before it is counted out
            if index < atomic.load(block + _LIMIT):
                _work(block, index + 1)
            atomic.add(block + _GATE, -1)
    return -1


@jit(inner=True)
def share(crew: int, job: Any, items: int, grain: int) -> None:
    """Do *items* items of a job, *grain* at a time, with a crew, or alone where *crew* is 0.

    For use in compiled code: ``share(crew, task(body, arguments), items, grain)`` calls ``body(*arguments, first,
    end)``, at once in several threads. Bodies raise nothing, and the split does not show in their results.
    """
    if crew == 0 or items <= grain or not atomic.swap_if(crew + _OWNER, 0, 1):
        atomic.call(job, 0, items)
        return
    atomic.store(crew + _FUNCTION, job[0])
    atomic.store(crew + _ARGUMENTS, job[1])
    grain = max(grain, (items >> 30) + 1)  # a part has a number of 31 bits
    parts = (items + grain - 1) // grain
    ranges = min(atomic.load(crew + _LIMIT) + 1, parts)
    atomic.store(crew + _ITEMS, items)
    atomic.store(crew + _GRAIN, grain)
    atomic.store(crew + _RANGES, ranges)
    for i in range(ranges):
        atomic.store(crew + _RANGE + _LINE * i, parts * i // ranges + parts * (i + 1) // ranges * _BACK)
    atomic.store(crew + _GATE, _OPEN)
    atomic.add(crew + _TICKET, 1)
    _work(crew, 0)
    atomic.add(crew + _GATE, -_OPEN)
    waited = 0
    while atomic.load(crew + _GATE) != 0:
        waited += 1
        if waited < _PATIENCE:
            atomic.pause()
        else:
            atomic.give_way()
    atomic.store(crew + _OWNER, 0)


def _aligned() -> Any:
    words: Any = np.zeros((_RANGE + _LINE * (_MOST + 1)) // 8 + _LINE // 8, dtype=np.int64)
    return words[-words.ctypes.data % _LINE // 8 :]


#: what callers and helpers share, which stays where it is also in a process that fork has made: calls that were
#: recorded have its address
_words = _aligned()


class _Crew:
    """The helpers of this process."""

    def __init__(self) -> None:
        self._words = _words
        self.address: int = self._words.ctypes.data
        self.view: memoryview[int] = memoryview(self._words)
        self.limit = 0
        self._changing = threading.Lock()
        self._helpers: list[tuple[threading.Thread, threading.Lock]] = []
        _serve(self.address, 0, 0, 0)  # compiles it
        start = time.perf_counter()
        _serve(self.address, 0, 0, 10000)
        self._spins = max(1, int(_ALONE / (time.perf_counter() - start) * 10000))

    def resize(self, limit: int) -> None:
        """Let *limit* helpers come, and start those that there are not yet."""
        with self._changing:
            limit = min(limit, _MOST)
            for index in range(len(self._helpers), limit):
                wake = threading.Lock()
                wake.acquire()
                self.view[(_ASLEEP + _LINE * index) // 8] = 0
                helper = threading.Thread(
                    target=_help, args=(self.address, index, self._spins, wake), name=f"ferrum-{index}", daemon=True
                )
                helper.start()
                self._helpers.append((helper, wake))
            self.view[_LIMIT // 8] = self.limit = limit
        self.wake()

    def wake(self) -> None:
        """Wake the helpers that sleep."""
        view = self.view
        with self._changing:
            view[_SLEEPERS // 8] = 0
            for index, (_, wake) in enumerate(self._helpers[: self.limit]):
                place = (_ASLEEP + _LINE * index) // 8
                if view[place]:
                    view[place] = 0
                    wake.release()

    def stop(self) -> None:
        """End the helpers."""
        self.view[_STOP // 8] = 1
        self.limit = len(self._helpers)
        self.wake()
        for helper, _ in self._helpers:
            helper.join()


def _help(address: int, index: int, spins: int, wake: threading.Lock) -> None:
    seen = 0
    while (seen := _serve(address, index, seen, spins)) >= 0:
        wake.acquire()


_crew: _Crew | None = None
_making = threading.Lock()


def crew(work: int) -> int:
    """The crew for a call that does so much *work*, to pass to its kernel: 0 for none, where the call works alone.

    *work* counts the numbers that are read and written, or what takes as long.
    """
    if work < _LEAST or ((count := cores.threads()) == 1 and not ACTIVE):  # a recording may meet more threads later
        return 0
    found = _crew
    if found is None:
        found = _made()
    if found.limit != count - 1:
        found.resize(count - 1)
    elif found.view[_SLEEPERS // 8]:
        found.wake()
    return found.address


def ready() -> None:
    """Have the helpers there that recorded calls may use: as many as there are threads now."""
    found, count = _crew, cores.threads()
    if found is None:
        if count == 1:
            return
        found = _made()
    if found.limit != count - 1:
        found.resize(count - 1)
    elif found.view[_SLEEPERS // 8]:
        found.wake()


def _made() -> _Crew:
    global _crew
    with _making:
        if _crew is None:
            _crew = _Crew()
        return _crew


def _forget() -> None:
    """In a process made by fork the helpers do not exist."""
    global _crew, _making
    _words[:] = 0
    _crew, _making = None, threading.Lock()


def _stop() -> None:
    if _crew is not None:
        _crew.stop()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
atexit.register(_stop)
