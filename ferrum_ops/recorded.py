"""Ops inside functions that are captured on the CPU.

Implementations that write down by themselves what they do say so. Others run as they are, at each replay again: slower,
and right all the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from ferrum_array import CaptureError, Tensor
from ferrum_array.backends.tape import ACTIVE, Tape, recording
from ferrum_array.capture import rebuilt
from ferrum_array.tensor import wrap
from ferrum_ops.types import SequenceMeta

__all__ = ["ACTIVE", "PLACED", "on_host", "records", "run_aside", "under_way"]

_F = TypeVar("_F", bound=Callable[..., Any])
_recording: set[Callable[..., Any]] = set()

#: what the notes of a meta have where lengths and places are read from memory when the work is done
PLACED = ("placed",)


def records(function: _F) -> _F:
    """Decorate an implementation that writes down by itself what it does."""
    _recording.add(function)
    return function


def under_way(function: Callable[..., Any]) -> Tape | None:
    """The recording for which *function* must be run aside, if there is one."""
    return None if function in _recording else recording()


def on_host(op: str, meta: SequenceMeta | None) -> None:
    """For implementations that plan with the host's numbers: check that these are what counts.

    Raises:
        CaptureError: if lengths lie in memory, where they change between replays.
    """
    if meta is not None and PLACED in meta.notes:
        raise CaptureError(
            f"{op}: the lengths of sequences lie in memory, from which only kernels read them, and none covers this "
            "call; explain(op, ...) says why"
        )


def run_aside(tape: Tape, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """The result of an implementation that is run again at each replay."""
    given = [_handle(one) for one in arguments]
    found: list[Tensor] = []
    form: Any = None

    def run() -> list[Any]:
        nonlocal form
        found.clear()
        form = _taken(function(*given), found)
        return [one._data for one in found]

    raws = tape.foreign(run)
    return rebuilt(form, iter([wrap(raw, one._spec) for raw, one in zip(raws, found, strict=True)]))


def _handle(value: Any) -> Any:
    """A tensor that nobody else writes to, for one that the caller may write to."""
    if isinstance(value, Tensor):
        return wrap(value._data, value._spec)
    if value.__class__ in (tuple, list):
        return value.__class__(map(_handle, value))
    return value


def _taken(value: Any, found: list[Tensor]) -> Any:
    if isinstance(value, Tensor):
        found.append(value)
        return Tensor
    if isinstance(value, tuple):
        return value.__class__, [_taken(one, found) for one in value]
    return None
