"""What a function does to arrays in the host's memory, written down once and done again without the function.

While a function is recorded it runs for real, and each call of the storage's functions in that thread is written down
(`numpy_graphs.py` sees to that): again with the same arrays, its result goes where it went. So all memory stays where
it is, and a replay is the list of calls. Kernels that are compiled add entries of their own, which need no Python in
between.

Calls that make views need no entry: memory does not move. What is made of nothing, or of what was made of nothing, is
the same each time, and needs none either. Memory that belongs to the recording is never written in place by tensors:
they get memory of their own first, by a copy that is written down too. So what was recorded starts each time from the
same state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import get_ident
from typing import Any, Final, final

import numpy as np

from ferrum_array.backends.base import Holder

__all__ = ["ACTIVE", "Refused", "Tape", "recording", "unowned"]

Array = np.ndarray[Any, Any]

#: functions whose results have shapes that depend on values
_BY_VALUE: Final = frozenset(("nonzero", "unique_all"))

_READ: Final = (
    "it reads a value, and a replay runs no Python code that could look at it; keep the value in a tensor, or return "
    "it and read it after the call"
)


class Refused(RuntimeError):
    """Says why something cannot be recorded, from the place where it is done."""


#: the recordings under way, by thread
ACTIVE: dict[int, Tape] = {}


def recording() -> Tape | None:
    """The recording under way in this thread, if there is one."""
    return ACTIVE.get(get_ident()) if ACTIVE else None


def _root(array: Array) -> Any:
    """The object whose memory an array shows."""
    found: Any = array
    while found.__class__ is np.ndarray and found.base is not None:
        found = found.base
    return found


class _Place:
    """Where an array lies, for NumPy to make another array of it that does not keep it alive."""

    def __init__(self, array: Array) -> None:
        self.__array_interface__ = {
            "shape": array.shape,
            "typestr": f"|V{array.itemsize}" if array.dtype.kind == "V" else array.dtype.str,
            "data": (array.ctypes.data, not array.flags.writeable),
            "strides": array.strides,
            "version": 3,
        }


def unowned(array: Array) -> Array:
    """The same memory, which is not kept alive: whoever uses it knows that it is there."""
    return np.asarray(_Place(array)).view(array.dtype)


@final
class Tape:
    """What is done, in order.

    Attributes:
        items: each does a part of it again.
        held: what must stay alive.
        notes: what kernels want to remember as long as they are recorded.
    """

    def __init__(self, state: Sequence[Holder]) -> None:
        self.items: list[Callable[[], object]] = []
        self.held: list[object] = []
        self.notes: dict[object, Any] = {}
        self.refusal: Refused | None = None
        self._state = {id(_root(one._data)) for one in state}
        self._kept: dict[int, object] = {}
        self._own: set[int] = set()
        self._constant: set[int] = set()

    def refuse(self, why: str) -> Refused:
        """The error that says so; who catches it on the way does not make the recording whole."""
        self.refusal = self.refusal or Refused(why)
        return self.refusal

    # Whose memory an array shows.

    def hold(self, array: Array) -> Array:
        """What shows the memory of *array*, which stays alive as long as the recording, once for all that use it.

        That of the state is not kept: its owner writes it in place only as long as nobody else sees it, and says if it
        moves.
        """
        root = _root(array)
        if id(root) in self._own:
            return array
        if id(root) not in self._state:
            self._kept[id(root)] = root
        return unowned(array)

    def sees_alone(self, holder: Holder, alone: Callable[[Holder], bool]) -> bool:
        """Whether *holder* alone can see its array, but for the recording."""
        key = id(_root(holder._data))
        kept = self._kept.pop(key, None) is not None
        found = alone(holder)
        if kept:
            self._kept[key] = _root(holder._data)
        return found

    def own(self, array: Array) -> Array:
        """*array*, made for what is recorded; each replay writes it."""
        root = _root(array)
        self.held.append(root)
        self._own.add(id(root))
        self._constant.discard(id(root))
        return array

    def owns(self, array: Array) -> bool:
        """Whether it was made for the recording."""
        return id(_root(array)) in self._own

    def is_state(self, array: Array) -> bool:
        """Whether it shows memory of the state."""
        return id(_root(array)) in self._state

    def fixed(self, array: Array) -> bool:
        """Whether it is the same at each replay."""
        return id(_root(array)) in self._constant

    def constant(self, array: Array) -> Array:
        """*array*, which is the same at each replay, and was made while recording."""
        self.own(array)
        self._constant.add(id(_root(array)))
        return array

    def copied(self, source: Array, target: Array) -> None:
        """*target* was made as a copy of *source*, of the same shape."""
        if self.fixed(source):
            self.constant(target)
            return
        target, source = self.own(target), self.hold(source)
        self.items.append(lambda: np.copyto(target, source))

    # Calls.

    def call(self, name: str, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """A call of a function of the storage."""
        arrays = _arrays(args)
        self._check(name, args)
        if name == "setitem":
            self._about_to_write(args[0])
            again = self._again(args)
            self.items.append(lambda: function(*again))
            return function(*args)
        result = function(*args)
        if isinstance(result, tuple):
            return tuple(self._made(one, place, function, args, arrays) for place, one in enumerate(result))
        if name == "empty":
            return self.own(result)
        return self._made(result, None, function, args, arrays)

    def write(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """A call of a function that writes into its first argument."""
        self._about_to_write(args[0])
        again = self._again(args)
        self.items.append(lambda: function(*again))
        return function(*args)

    def _about_to_write(self, target: Array) -> None:
        root = _root(target)
        if id(root) in self._constant:  # from now on it is not: each replay begins with what it is now
            self._constant.discard(id(root))
            before = root.copy()
            self.items.append(lambda: np.copyto(root, before))

    def _made(
        self, result: Array, place: int | None, function: Callable[..., Any], args: tuple[Any, ...], arrays: list[Array]
    ) -> Array:
        root = _root(result)
        if any(_root(one) is root for one in arrays):
            return result  # a view
        if root is not result:  # it may show an element twice, which could not be written
            result = result.copy(order="C")
        if all(self.fixed(one) for one in arrays):
            return self.constant(result)
        again, target = self._again(args), self.own(result)
        if place is None:
            self.items.append(lambda: np.copyto(target, function(*again)))
        else:
            self.items.append(lambda: np.copyto(target, function(*again)[place]))
        return result

    def _again(self, value: Any) -> Any:
        """Arguments for a replay: nobody else changes them, and the state's memory does not stay alive by them."""
        if isinstance(value, np.ndarray):
            return self.hold(value)
        if isinstance(value, (tuple, list)):
            return type(value)([self._again(one) for one in value])
        return value

    def _check(self, name: str, args: tuple[Any, ...]) -> None:
        if name in _BY_VALUE and not all(self.fixed(one) for one in _arrays(args)):
            raise self.refuse(f"the shape of what {name} gives depends on values, and a replay has fixed shapes")
        if name == "repeat" and isinstance(args[1], np.ndarray) and not self.fixed(args[1]):
            raise self.refuse("how often elements are repeated is in a tensor, and a replay has fixed shapes")
        if name == "getitem" and any(one.dtype.kind == "b" and not self.fixed(one) for one in _arrays(args[1:])):
            raise self.refuse(
                "how many elements a mask chooses depends on values, and a replay has fixed shapes; use where()"
            )

    def read(self, raw: Array) -> None:
        """The host is about to look at values."""
        if not self.fixed(raw):
            raise self.refuse(_READ)

    def foreign(self, run: Callable[[], Sequence[Array]]) -> Sequence[Array]:
        """Arrays that *run* makes by means that are not recorded: each replay calls it again."""
        me = get_ident()
        del ACTIVE[me]
        try:
            results = [np.array(one) for one in run()]
        finally:
            ACTIVE[me] = self
        for one in results:
            self.own(one)

        def again() -> None:
            for target, one in zip(results, run(), strict=True):
                np.copyto(target, one)

        self.items.append(again)
        return results


def _arrays(value: Any) -> list[Array]:
    if isinstance(value, np.ndarray):
        return [value]
    if isinstance(value, (tuple, list)):
        return [array for one in value for array in _arrays(one)]
    return []
