"""Which implementation of an op runs: a table, and one function that reads it aloud.

Every op has one reference, which runs on every storage in every dtype. Fast implementations are rows: they name the
kind of device, the dtypes and the features that they cover. A call is described by the same three things, and the
first row that covers it runs; the reference runs where none does. Rows of a kind of device are imported with the
first call on such a device, from ``ferrum_ops.kernels.<kind>``, and the code of a row with its first use.

A row that raises is an error to the caller: there is no second try on the reference.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from threading import RLock
from typing import Any, Generic, NamedTuple, NoReturn, TypeVar, final

from ferrum_array import Device, Dtype
from ferrum_ops.recorded import ACTIVE, run_aside, under_way

__all__ = [
    "Explanation", "Op", "Row", "explain", "fast_paths", "load_kernels", "op_names", "register", "use_fast_paths",
]  # fmt: skip

#: kinds of device that have a package of fast implementations
_KINDS = ("cpu", "cuda", "mlx")

_F = TypeVar("_F", bound=Callable[..., Any])
_R = TypeVar("_R")
Dtypes = tuple[Dtype, ...]


@dataclass(frozen=True)
class Row:
    """One fast implementation of an op.

    Attributes:
        op: the op's name.
        name: what ``explain`` calls the implementation, such as ``cpu.rms_norm``.
        device: the kind of device: ``cpu``, ``cuda`` or ``mlx``.
        dtypes: the combinations of dtypes that it takes; the op says which operands they belong to.
        features: the parameters beyond the plain call that it honours.
        load: where the code is, ``module:function``. It takes what the reference takes.
        when: where there is a test of the arguments, ``module:function``: it returns None, or why not.
        missing: what the machine lacks for it, or None; asked once.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_ops.registry import Row
        >>> Row("softcap", "cpu.softcap", "cpu", frozenset({(fa.float32,)}), load="my_kernels:softcap").features
        frozenset()
    """

    op: str
    name: str
    device: str
    dtypes: frozenset[Dtypes]
    features: frozenset[str] = frozenset()
    load: str = ""
    when: str | None = None
    missing: Callable[[], str | None] | None = None

    def refusal(self, dtypes: Dtypes, features: tuple[str, ...]) -> str | None:
        """Why the row cannot take calls of this description, or None."""
        if self.missing is not None and (reason := self.missing()):
            return reason
        if dtypes not in self.dtypes:
            return f"does not take {_listed(dtypes)}"
        if rest := [feature for feature in features if feature not in self.features]:
            return f"does not cover {', '.join(rest)}"
        return None


class _Candidate(NamedTuple):
    name: str
    run: Callable[..., Any]
    when: Callable[..., str | None] | None


class _Explained(BaseException):
    """Carries the table of the outermost op out of the function that ``explain`` calls, before any work is done."""

    def __init__(self, explanation: Explanation) -> None:
        self.explanation = explanation


@dataclass(frozen=True)
class Explanation:
    """Which implementation a call runs, and why the others do not; printed as a small table.

    Attributes:
        op: the op's name.
        device: where its input lies.
        dtypes: the dtypes of the operands that choose.
        features: the parameters beyond the plain call that are in use.
        runs: the name of the implementation that runs.
        others: pairs of another implementation's name and the reason why it does not run.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_ops import explain, l2_norm, use_fast_paths
        >>> with use_fast_paths(False):
        ...     found = explain(l2_norm, fa.ones(3), eps=1e-6)
        >>> found.op, str(found.device), found.runs
        ('l2_norm', 'cpu', 'reference')
    """

    op: str
    device: Device
    dtypes: Dtypes
    features: tuple[str, ...]
    runs: str
    others: tuple[tuple[str, str], ...]

    def __repr__(self) -> str:
        call = f"{self.op} on {self.device}, {_listed(self.dtypes)}"
        if self.features:
            call += f", with {', '.join(self.features)}"
        width = max(len(name) for name in (self.runs, *(name for name, _ in self.others)))
        lines = [call, f"  runs  {self.runs}"]
        lines += [f"  not   {name:{width}}  {reason}" for name, reason in self.others]
        return "\n".join(lines)


def _listed(dtypes: Dtypes) -> str:
    return " and ".join(map(str, dtypes))


_ops: dict[str, Op[Any]] = {}
_rows: dict[tuple[str, str], list[Row]] = {}  # by op and kind of device, first registered first
_loaded: set[str] = set()
_lock = RLock()
_default = os.environ.get("FERRUM_FAST_PATHS", "1") != "0"
_fast: ContextVar[bool] = ContextVar("ferrum_fast_paths", default=_default)
_explaining: ContextVar[bool] = ContextVar("ferrum_explaining", default=False)


@final
@dataclass(eq=False)
class Op(Generic[_R]):
    """An op by name, with its reference and its result's type; called with what describes a call, and the arguments.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_ops.registry import Op
        >>> twice: Op[fa.Tensor] = Op("twice_in_an_example")
        >>> @twice.reference
        ... def _(x):
        ...     return x + x
        >>> x = fa.asarray([1.0, 2.0])
        >>> twice(x.device, (x.dtype,), (), x)
        Tensor([2., 4.])
    """

    name: str
    _reference: Callable[..., _R] | None = None
    _chosen: dict[tuple[str, Dtypes, tuple[str, ...]], tuple[_Candidate, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _ops[self.name] = self

    def reference(self, function: _F) -> _F:
        """Make *function* the op's reference; for use as a decorator."""
        self._reference = function
        return function

    def __call__(self, device: Device, dtypes: Dtypes, features: tuple[str, ...], *arguments: Any) -> _R:
        """Run the first implementation that covers a call of this description."""
        if _explaining.get():
            self._explain(device, dtypes, features, arguments)
        if _fast.get():
            key = (device.kind, dtypes, features)
            candidates = self._chosen.get(key)
            if candidates is None:
                candidates = self._choose(key)
            for candidate in candidates:
                if candidate.when is None or candidate.when(*arguments) is None:
                    if ACTIVE and device.kind == "cpu" and (tape := under_way(candidate.run)) is not None:
                        return run_aside(tape, candidate.run, arguments)  # type: ignore[no-any-return]  # what it gives
                    result: _R = candidate.run(*arguments)
                    return result
        assert self._reference is not None, f"{self.name} has no reference"
        return self._reference(*arguments)

    def _choose(self, key: tuple[str, Dtypes, tuple[str, ...]]) -> tuple[_Candidate, ...]:
        kind, dtypes, features = key
        rows = [row for row in _rows_of(self.name, kind) if row.refusal(dtypes, features) is None]
        found = tuple(_candidate(row) for row in rows)
        self._chosen[key] = found
        return found

    def _explain(
        self, device: Device, dtypes: Dtypes, features: tuple[str, ...], arguments: tuple[Any, ...]
    ) -> NoReturn:
        runs, others = "", []
        for row in _rows_of(self.name, device.kind):
            reason = row.refusal(dtypes, features)
            if reason is None and row.when is not None:
                reason = _found(row.when)(*arguments)
            if not _fast.get():
                reason = "fast paths are switched off"
            elif reason is None and runs:
                reason = f"{runs} comes first"
            if reason is None:
                runs = row.name
            else:
                others.append((row.name, reason))
        if runs:
            others.append(("reference", f"{runs} covers the call"))
        raise _Explained(Explanation(self.name, device, dtypes, features, runs or "reference", tuple(others)))


def load_kernels(kind: str) -> None:
    """Import what the package of fast implementations for this kind of device registers; done once.

    Examples:
        >>> from ferrum_ops.registry import load_kernels
        >>> load_kernels("cpu")
    """
    if kind not in _loaded:
        with _lock:
            if kind in _KINDS:
                importlib.import_module(f"ferrum_ops.kernels.{kind}")
            _loaded.add(kind)


def _rows_of(op: str, kind: str) -> list[Row]:
    load_kernels(kind)
    return _rows.get((op, kind), [])


def _found(place: str) -> Callable[..., Any]:
    module, _, name = place.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function


def _candidate(row: Row) -> _Candidate:
    return _Candidate(row.name, _found(row.load), None if row.when is None else _found(row.when))


def register(*rows: Row) -> None:
    """Add fast implementations; among those that cover a call, the one that was added first runs.

    Raises:
        ValueError: for an op that does not exist, a kind of device that does not, or a name that is taken.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_ops.registry import Row, register
        >>> register(Row("softmax", "mine", "cpu", frozenset({(fa.float32,)}), load="my_kernels:softmax"))
        Traceback (most recent call last):
        ...
        ValueError: register: there is no op 'softmax'; the ops are ...
    """
    with _lock:
        for row in rows:
            if row.op not in _ops:
                raise ValueError(f"register: there is no op {row.op!r}; the ops are {', '.join(op_names())}")
            if row.device not in _KINDS:
                raise ValueError(f"register: {row.name!r} is for {row.device!r}; kinds of device are {_KINDS}")
            known = _rows.setdefault((row.op, row.device), [])
            if any(other.name == row.name for other in known):
                raise ValueError(f"register: {row.op} on {row.device} already has an implementation {row.name!r}")
            known.append(row)
            _ops[row.op]._chosen.clear()


def op_names() -> tuple[str, ...]:
    """The names of the ops that choose among implementations, sorted.

    Examples:
        >>> from ferrum_ops.registry import op_names
        >>> "attention" in op_names()
        True
    """
    return tuple(sorted(_ops))


def explain(op: Callable[..., Any], *args: Any, **kwargs: Any) -> Explanation:
    """Which implementation ``op(*args, **kwargs)`` would run, and why the others would not.

    The arguments are checked as in a call, but no work is done. For an op that is composed of others the answer is
    about the op itself.

    Raises:
        TypeError: if *op* is not an op that chooses among implementations; and whatever the op itself raises.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_ops import explain, softcap, use_fast_paths
        >>> with use_fast_paths(False):
        ...     explain(softcap, fa.ones(3), 30.0).runs
        'reference'
    """
    if not callable(op):
        raise TypeError(f"explain: op must be the function, for example ferrum_ops.rms_norm, got {op!r:.60}")
    token = _explaining.set(True)
    try:
        op(*args, **kwargs)
    except _Explained as found:
        return found.explanation
    finally:
        _explaining.reset(token)
    raise TypeError(f"explain: {getattr(op, '__name__', op)!r} does not choose among implementations")


def fast_paths() -> bool:
    """Whether fast implementations are used in this context; without them every op runs its reference.

    The environment variable ``FERRUM_FAST_PATHS=0`` turns them off for a process.

    Examples:
        >>> from ferrum_ops import fast_paths, use_fast_paths
        >>> with use_fast_paths(False):
        ...     fast_paths()
        False
    """
    return _fast.get()


@contextmanager
def use_fast_paths(use: bool) -> Iterator[None]:
    """Inside the ``with`` block, in this thread or task, fast implementations are used or not.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_ops import rms_norm, use_fast_paths
        >>> with use_fast_paths(False):
        ...     rms_norm(fa.asarray([3.0, -3.0]), eps=0.0)
        Tensor([ 1., -1.])
    """
    token = _fast.set(bool(use))
    try:
        yield
    finally:
        _fast.reset(token)
