"""What groups of warps have in common in Gluon's language on NumPy, see ``gluon_groups``: memory, barriers, copies."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np

__all__ = ["Array", "Barrier", "Descriptor", "Groups", "Pointer", "Product", "Shared", "StoppedError", "array_of"]


class Array(np.ndarray[Any, Any]):
    """A tensor of the language."""

    type = SimpleNamespace(layout=None)

    def to(self, dtype: Any) -> Any:
        return self.astype(dtype)


def array_of(values: Any) -> Any:
    """A tensor of the language, or a number."""
    found = np.asarray(values)
    return found.view(Array) if found.ndim else found.item()


class Pointer:
    """An address in a tensor, or several."""

    def __init__(self, array: Any, at: Any = 0) -> None:
        self.array, self.at, self.dtype = array, at, SimpleNamespace(element_ty=array.dtype)

    def __add__(self, steps: Any) -> Pointer:
        return Pointer(self.array, self.at + np.asarray(steps))


class StoppedError(Exception):
    """Ends a group when another has failed."""


class Groups:
    """The groups of a program, and the copies on their way."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._back = threading.Semaphore(0)
        self._go: list[threading.Semaphore] = []
        self._ready: dict[int, Callable[[], bool]] = {}
        self._stopped = False
        self.copies: list[Callable[[], None]] = []
        self.own = threading.local()

    def wait(self, ready: Callable[[], bool]) -> None:
        """Let others go on until this is true, and until the seed says so."""
        place = self.own.place
        self._ready[place] = ready
        self._back.release()
        self._go[place].acquire()
        if self._stopped:
            raise StoppedError

    def _group(self, place: int, function: Any, arguments: Sequence[Any]) -> None:
        self.own.place, self.own.products, self.own.stores, self.own.fenced = place, [], [], True
        whole = False
        self._go[place].acquire()
        try:
            if not self._stopped:
                function(*arguments)
                assert not self.own.products, "a product that nobody waited for"
                assert not self.own.stores, "a copy from memory that the program gives back"
            whole = True
        finally:
            self._stopped |= not whole
            del self._ready[place]
            self._back.release()

    def run(self, groups: Sequence[tuple[Any, Sequence[Any]]]) -> None:
        """Run functions on their arguments, at once."""
        self._go = [threading.Semaphore(0) for _ in groups]
        self._ready = {place: lambda: True for place in range(len(groups))}
        locked = ""
        with ThreadPoolExecutor(len(groups)) as pool:
            ends = [pool.submit(self._group, place, *group) for place, group in enumerate(groups)]
            while self._ready:
                able: list[Any] = [place for place, ready in self._ready.items() if self._stopped or ready()]
                if not self._stopped:
                    able += self.copies
                if not able:
                    self._stopped, locked = True, f"groups {sorted(self._ready)} wait for each other"
                    continue
                chosen = self._random.choice(able)
                if callable(chosen):
                    self.copies.remove(chosen)
                    chosen()
                else:
                    self._go[chosen].release()
                    self._back.acquire()
        for end in ends:
            error = end.exception()
            if error is not None and not isinstance(error, StoppedError):
                raise error
        assert not locked, locked
        assert not self.copies, "a copy that nobody waited for"


class Barrier:
    """Phases that end when all have arrived and all announced bytes have come."""

    def __init__(self) -> None:
        self.count = self.missing = self.bytes = self.phase = 0

    def init(self, count: int) -> None:
        self.count = self.missing = count

    def arrive(self, count: int) -> None:
        assert self.missing >= count, "more arrivals than the barrier counts"
        self.missing -= count
        self._end()

    def land(self, size: int) -> None:
        self.bytes -= size
        self._end()

    def _end(self) -> None:
        if self.missing == self.bytes == 0:
            self.phase, self.missing = self.phase + 1, self.count


class Shared:
    """Memory that the groups share."""

    def __init__(self, values: Any, groups: Groups) -> None:
        self.values, self._groups, self.dtype = values, groups, values.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.values.shape)

    def index(self, place: int) -> Any:
        assert 0 <= place < len(self.values)
        found = self.values[place]
        return found[0] if self.values.dtype == object else Shared(found, self._groups)

    def reshape(self, shape: Sequence[int]) -> Shared:
        assert np.prod(shape) == self.values.size
        return Shared(self.values.reshape(shape), self._groups)

    def permute(self, axes: Sequence[int]) -> Shared:
        return Shared(self.values.transpose(axes), self._groups)

    def slice(self, start: int, length: int, axis: int) -> Shared:
        assert 0 <= start <= start + length <= self.values.shape[axis]
        return Shared(self.values[(slice(None),) * axis + (slice(start, start + length),)], self._groups)

    def load(self, _: Any) -> Any:
        return array_of(self.values.copy())

    def store(self, values: Any) -> None:
        assert values.shape == self.values.shape
        assert values.dtype == self.values.dtype
        self.values[...] = values
        self._groups.own.fenced = False

    def held(self) -> Callable[[], None]:
        """What asserts that nothing has changed since now."""
        before = self.values.tobytes()

        def same() -> None:
            assert self.values.tobytes() == before, "memory changed while it was read"

        return same


class Product:
    """A product on its way."""

    def __init__(self, value: Any, held: Sequence[Callable[[], None]]) -> None:
        self.value, self.held, self.done = value, held, False


class Descriptor:
    def __init__(self, array: Any, shape: Sequence[int], steps: Sequence[int], block: Sequence[int]) -> None:
        size = array.dtype.itemsize
        assert steps[-1] == 1
        assert all(step > 0 and step * size % 16 == 0 for step in steps[:-1]), steps
        low, high = np.lib.array_utils.byte_bounds(array)
        assert (sum((n - 1) * step for n, step in zip(shape, steps, strict=True)) + 1) * size <= high - low
        self.block = self.block_shape = block
        self.dtype, self.layout = array.dtype, None
        self.whole = np.lib.stride_tricks.as_strided(array, tuple(shape), [step * size for step in steps])

    def part(self, start: Sequence[int]) -> tuple[Any, tuple[slice, ...]]:
        """The block from *start*, as far as there is any, and which part of a block that is."""
        assert min(start) >= 0
        found = self.whole[tuple(slice(i, i + n) for i, n in zip(start, self.block, strict=True))]
        return found, tuple(slice(n) for n in found.shape)
