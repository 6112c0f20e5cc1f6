"""What several ranks compute together: sums and concatenations of the tensors that each of them holds.

A group is any object with a rank, a size and two methods: see ``Group``. ``ThreadGroup`` is one for ranks that are
threads of this process, and says by example what other engines must do.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import reduce
from threading import Condition
from typing import Any, Literal, Protocol, TypeVar, get_args, runtime_checkable

import ferrum_array as fa
from ferrum_array import Tensor
from ferrum_ops.checks import accumulator, count, describe

__all__ = ["Group", "ReduceOp", "ThreadGroup", "all_gather", "all_reduce", "run_ranks"]

ReduceOp = Literal["sum", "max", "min"]

_T = TypeVar("_T")


@runtime_checkable
class Group(Protocol):
    """Ranks that work together; each has an object of its own.

    All ranks make the same calls in the same order, with tensors of one dtype and, along the axes that must agree, one
    shape. A method returns when the result of all is there (or, on a device that runs behind, is on its way), and every
    rank gets the same bits. If one rank fails, the others raise instead of waiting for ever. The arguments have been
    checked by ``all_reduce`` and ``all_gather``, as far as one rank can.

    Attributes:
        rank: which of the ranks this one is, from 0.
        size: how many there are.

    Examples:
        >>> from ferrum_ops import Group, run_ranks
        >>> def place(group: Group) -> tuple[int, int]:
        ...     return group.rank, group.size
        >>> run_ranks(2, place)
        [(0, 2), (1, 2)]
    """

    rank: int
    size: int

    def all_reduce(self, x: Tensor, op: ReduceOp) -> Tensor:
        """The sum, greatest or least of each element over the ranks, in the dtype of *x*; sums of 16-bit in float32."""
        ...

    def all_gather(self, x: Tensor, axis: int) -> Tensor:
        """The tensors of all ranks one after another along *axis* (0 or above), that of rank 0 first."""
        ...


def all_reduce(x: Tensor, group: Group | None, op: ReduceOp = "sum") -> Tensor:
    """The sum (or *op*) of the tensors that the ranks of *group* hold: the same on all of them, in the dtype of *x*.

    Every rank must call it, with tensors of one shape and dtype. Sums of float16 and bfloat16 are taken in float32 and
    rounded once; those of integers wrap. The group does the work: see ``Group``, and ``ThreadGroup`` for one.

    Args:
        x: numbers; of each rank its own.
        group: the ranks.
        op: ``sum``, ``max`` or ``min``.

    Raises:
        RuntimeError: if there is no group, or another rank failed. TypeError: for a *group* that is none, booleans, or
        complex numbers that are to be ordered. ValueError: for an unknown *op*, or other shapes on other ranks.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_ops import all_reduce, run_ranks
        >>> run_ranks(2, lambda group: all_reduce(fa.asarray([1.0, group.rank]), group))
        [Tensor([2., 1.]), Tensor([2., 1.])]
    """
    member = _checked("all_reduce", x, group)
    if op not in get_args(ReduceOp):
        raise ValueError(f"all_reduce: op must be one of {', '.join(get_args(ReduceOp))}, got {op!r}")
    if x.dtype is fa.bool or (x.dtype.is_complex and op != "sum"):
        raise TypeError(f"all_reduce: {op!r} is not defined for {describe(x)}")
    return member.all_reduce(x, op)


def all_gather(x: Tensor, group: Group | None, axis: int) -> Tensor:
    """The tensors of all ranks one after another along *axis*, that of rank 0 first: the same on all of them.

    Every rank must call it, with tensors of one dtype and, but for *axis*, one shape. Elements are copied as they are.

    Args:
        x: of each rank its own part.
        group: the ranks.
        axis: where the parts are joined; negative axes count from the end.

    Raises:
        RuntimeError: if there is no group, or another rank failed. TypeError: for a *group* that is none.
        ValueError: for an axis that *x* does not have, or shapes of other ranks that do not fit.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_ops import all_gather, run_ranks
        >>> run_ranks(2, lambda group: all_gather(fa.asarray([group.rank, 7]), group, 0))
        [Tensor([0, 7, 1, 7]), Tensor([0, 7, 1, 7])]
    """
    member = _checked("all_gather", x, group)
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(f"all_gather: axis must be one of the {x.ndim} axes of x {describe(x)}, got {axis}")
    return member.all_gather(x, axis % x.ndim)


def _checked(op: str, x: object, group: object) -> Group:
    if not isinstance(x, Tensor):
        raise TypeError(f"{op}: x must be a Tensor, got {type(x).__name__}; make one with ferrum_array.asarray")
    if group is None:
        raise RuntimeError(
            f"{op}: there is no group of ranks; pass a ferrum_ops.Group, or leave the call out where nothing is shared"
        )
    if not isinstance(group, Group):
        raise TypeError(f"{op}: group must be a ferrum_ops.Group, with a rank, a size and both methods, got {group!r}")
    return group


# Ranks in one process.


class _RankLeft(RuntimeError):
    """A rank ended before a call that the others made."""


class _Table:
    """Where ranks that are threads lay down what they have: one place for each call and rank."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.calls: dict[int, dict[int, tuple[str, Tensor]]] = {}
        self.taken: dict[int, int] = {}
        self.left: set[int] = set()
        self.changed = Condition()

    def exchange(self, number: int, rank: int, call: str, x: Tensor) -> list[tuple[str, Tensor]]:
        """What all ranks bring to their call of this number, in their order."""
        with self.changed:
            brought = self.calls.setdefault(number, {})
            brought[rank] = (call, x)
            self.changed.notify_all()
            while len(brought) < self.size:
                if missing := sorted(self.left - brought.keys()):
                    raise _RankLeft(f"{call}: rank {missing[0]} ended or failed without this call; rank {rank} made it")
                self.changed.wait()
            self.taken[number] = self.taken.get(number, 0) + 1
            if self.taken[number] == self.size:
                del self.calls[number], self.taken[number]
            return [brought[i] for i in range(self.size)]

    def leave(self, rank: int) -> None:
        with self.changed:
            self.left.add(rank)
            self.changed.notify_all()


class ThreadGroup:
    """A group whose ranks are threads of this process: ``members`` makes the objects, ``run_ranks`` also the threads.

    Each rank adds up the parts of all in the order of the ranks, so that all get the same bits. Tensors may lie on
    different devices; a result lies where the rank's own part does. A rank that has no more calls to make should
    ``leave``, so that others do not wait for it.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_ops import ThreadGroup, all_reduce
        >>> (alone,) = ThreadGroup.members(1)
        >>> all_reduce(fa.asarray([2.0]), alone)
        Tensor([2.])
    """

    def __init__(self, rank: int, size: int, table: _Table) -> None:
        self.rank = rank
        self.size = size
        self._table = table
        self._number = 0

    @classmethod
    def members(cls, size: int) -> list[ThreadGroup]:
        """The objects of all ranks of a new group.

        Raises:
            ValueError: for a *size* below 1.
        """
        count("ThreadGroup", "size", size)
        table = _Table(size)
        return [cls(rank, size, table) for rank in range(size)]

    def all_reduce(self, x: Tensor, op: ReduceOp) -> Tensor:
        """As ``Group`` says."""
        parts = self._exchange(f"all_reduce {op} of {x.dtype}{list(x.shape)}", x)
        if op == "max":
            return reduce(fa.maximum, parts)
        if op == "min":
            return reduce(fa.minimum, parts)
        wide = accumulator(x.dtype) if x.dtype.is_floating else x.dtype
        return reduce(lambda a, b: a + b, (part.astype(wide, copy=False) for part in parts)).astype(x.dtype, copy=False)

    def all_gather(self, x: Tensor, axis: int) -> Tensor:
        """As ``Group`` says."""
        shape: list[Any] = list(x.shape)
        shape[axis] = "any"
        return fa.concat(self._exchange(f"all_gather along axis {axis} of {x.dtype}{shape}", x), axis=axis)

    def leave(self) -> None:
        """This rank makes no more calls: those that other ranks make raise, now and later."""
        self._table.leave(self.rank)

    def _exchange(self, call: str, x: Tensor) -> list[Tensor]:
        number, self._number = self._number, self._number + 1
        # A copy, since this rank may write to x while others still read; and a finished one, since a storage that
        # works late may not be made to finish by two threads at once.
        own = x.copy()
        own.block_until_ready()
        brought = self._table.exchange(number, self.rank, call, own)
        if len({what for what, _ in brought}) > 1:
            listed = "; ".join(f"rank {rank}: {what}" for rank, (what, _) in enumerate(brought))
            raise ValueError(f"the ranks of a group must make the same calls with parts that fit, got {listed}")
        return [part.to_device(x.device) for _, part in brought]


def run_ranks(n: int, work: Callable[[ThreadGroup], _T]) -> list[_T]:
    """*work* on *n* ranks at the same time, each a thread with its member of one group; what they return, in order.

    Raises:
        ValueError: for an *n* below 1. Otherwise what *work* raises, on the lowest rank that fails by itself.

    Examples:
        >>> from ferrum_ops import run_ranks
        >>> run_ranks(3, lambda group: (group.rank, group.size))
        [(0, 3), (1, 3), (2, 3)]
    """
    count("run_ranks", "n", n)

    def one(member: ThreadGroup) -> _T:
        try:
            return work(member)
        finally:
            member.leave()

    with ThreadPoolExecutor(max_workers=n) as threads:
        # each in a copy of this context, which holds the default device and the like
        futures = [threads.submit(copy_context().run, one, member) for member in ThreadGroup.members(n)]
    failures = [error for future in futures if (error := future.exception()) is not None]
    for error in failures:
        if not isinstance(error, _RankLeft):
            raise error
    return [future.result() for future in futures]
