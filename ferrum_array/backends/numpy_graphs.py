"""Captured functions of arrays in the host's memory: how their calls come onto a tape, and how it is played.

As long as anything is recorded, the functions of all Specs of the host are exchanged for ones that ask whether their
thread records. At other times they are the plain ones, and cost what they cost without captures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import RLock, get_ident
from typing import Any, Final, final

import numpy as np

from ferrum_array.backends.base import Holder, Raw, Unrecordable
from ferrum_array.backends.tape import ACTIVE, Refused, Tape, recording
from ferrum_array.device import CPU
from ferrum_array.dtype import Dtype
from ferrum_array.spec import Spec, spec_of

__all__ = ["HostGraph"]

#: the tables of a Spec
_FIELDS: Final = ("call", "operators", "infix", "direct", "in_place")
#: services of the storage that show values to the host
_READS: Final = ("to_host", "to_dlpack")

_changing = RLock()
_under_way = 0
#: the tables of before the exchange
_plain: list[tuple[Spec, tuple[Any, ...]]] = []


def _guarded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        tape = recording()
        return function(*args) if tape is None else tape.call(name, function, args)

    return call


def _guarded_write(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        tape = recording()
        return function(*args) if tape is None else tape.write(function, args)

    return call


class _Guards(dict[str, Any]):
    """One of a Spec's tables of functions, guarded."""

    def __init__(self, plain: Any, guard: Callable[[str, Any], Any]) -> None:
        self._plain, self._guard = plain, guard

    def __missing__(self, name: str) -> Any:
        found = self[name] = self._guard(name, self._plain[name])
        return found


def _guard_operator(name: str, entry: Any) -> Any:
    return None if entry is None else (_guarded(name, entry[0]), entry[1])


def _guard_direct(name: str, function: Any) -> Any:
    return None if function is None else _guarded(name, function)


def _guard_in_place(_name: str, function: Any) -> Any:
    return None if function is None else _guarded_write(function)


def _guard_storage() -> None:
    """Exchange the functions of all dtypes, and the services that read."""
    for dtype in Dtype.all():
        spec = spec_of(dtype, CPU)
        _plain.append((spec, tuple(getattr(spec, field) for field in _FIELDS)))
        operators = _Guards(spec.operators, _guard_operator)
        infix = {name: operators[name] for name in spec.infix}
        spec.direct, spec.in_place = _Guards(spec.direct, _guard_direct), _Guards(spec.in_place, _guard_in_place)
        spec.call, spec.operators, spec.infix = _Guards(spec.call, _guarded), operators, infix
    backend: Any = CPU.backend
    services = vars(backend)
    for name in _READS:
        services[name] = _guarded_read(getattr(backend, name))
    services["from_host"] = _guarded_intake(backend.from_host)
    services["exclusive"] = _guarded_exclusive(backend.exclusive)


def _begin() -> None:
    global _under_way
    if not _under_way:
        _guard_storage()
    _under_way += 1


def _end() -> None:
    global _under_way
    _under_way -= 1
    if not _under_way:
        _free_storage()


def _free_storage() -> None:
    for spec, fields in _plain:
        for field, plain in zip(_FIELDS, fields, strict=True):
            setattr(spec, field, plain)
    _plain.clear()
    services = vars(CPU.backend)
    for name in (*_READS, "from_host", "exclusive"):
        del services[name]


def _guarded_read(function: Callable[..., Any]) -> Callable[..., Any]:
    def read(raw: Raw, **options: Any) -> Any:
        tape = recording()
        if tape is not None:
            tape.read(raw)
        return function(raw, **options)

    return read


def _guarded_intake(function: Callable[..., Any]) -> Callable[..., Any]:
    def take_in(array: Any, *, copy: bool | None) -> Any:
        tape = recording()
        # what lies on the host is looked at now, as all of Python is
        return function(array, copy=copy) if tape is None else tape.constant(function(array, copy=True))

    return take_in


def _guarded_exclusive(function: Callable[[Any], bool]) -> Callable[[Any], bool]:
    def exclusive(holder: Any) -> bool:
        tape = recording()
        if tape is None:
            return function(holder)
        if tape.owns(holder._data):
            return False
        alone = tape.sees_alone(holder, function)
        if tape.is_state(holder._data):
            if alone:
                return True
            raise tape.refuse(
                "it writes into its state while another tensor shows the same memory, so that the state would move; "
                "copy what it keeps of it first"
            )
        if alone:
            raise tape.refuse(
                "it writes into a tensor that is neither its argument nor its own; name it in state=, and keep it"
            )
        return False

    return exclusive


@final
class HostGraph:
    """A function of arrays that was recorded, with buffers for what it takes."""

    def __init__(
        self, run: Callable[[Sequence[Raw]], Sequence[Raw]], inputs: Sequence[Raw], state: Sequence[Holder]
    ) -> None:
        me = get_ident()
        if me in ACTIVE:
            raise Unrecordable("another function is being captured in this thread; call the function itself there")
        for holder in state:  # here, and not while its place is being written down
            if not (CPU.backend.exclusive(holder) and holder._data.flags.c_contiguous):
                holder._data = holder._data.copy(order="C")
        tape = Tape(state)
        self._buffers = [tape.own(raw.copy(order="C")) for raw in inputs]
        with _changing:
            _begin()
            ACTIVE[me] = tape
        try:
            outputs = list(run(self._buffers))
        except Refused as error:
            raise Unrecordable(str(error)) from error
        finally:
            with _changing:
                del ACTIVE[me]
                _end()
        if tape.refusal is not None:
            raise Unrecordable(str(tape.refusal)) from tape.refusal
        tape.notes.clear()
        self._outputs = [tape.hold(one) for one in outputs]
        self._tape, self._items = tape, tuple(tape.items)

    def nested(self) -> bool:
        """Whether this thread records: the function is then recorded with the other."""
        return recording() is not None

    def places(self, raws: Sequence[Raw]) -> list[int]:
        """The addresses of arrays."""
        return [raw.ctypes.data for raw in raws]

    def replay(self, inputs: Sequence[Raw], copy: bool) -> list[Raw]:
        """Do it again."""
        for buffer, raw in zip(self._buffers, inputs, strict=True):
            if raw is not buffer:
                np.copyto(buffer, raw)
        for item in self._items:
            item()
        return [raw.copy(order="C") for raw in self._outputs] if copy else self._outputs
