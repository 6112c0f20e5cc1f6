"""Linear layers of many experts as one tensor: stacked, cut apart, and with two halves sorted out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import ferrum_array as fa
from ferrum_array import Device, Tensor
from ferrum_ops import QuantTensor
from ferrum_ops.quant.types import Part, Scheme

__all__ = ["Stack", "below", "halves", "turns"]


@dataclass
class Stack:
    """Matrices of one shape and one form, *members* one below the other, along a first axis of *groups*.

    Memory for all of them is taken when the first is put, so that beside the stack there is never more than a piece.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_models.stacks import Stack
        >>> stack = Stack(2, 1)
        >>> for place in range(2):
        ...     stack.put(place, 0, fa.full((1, 3), place))
        >>> stack.whole().tolist()
        [[[0, 0, 0]], [[1, 1, 1]]]
    """

    groups: int
    members: int
    first: Tensor | QuantTensor | None = None
    parts: dict[str, Tensor] = field(default_factory=dict)

    def put(self, place: int, number: int, piece: Tensor | QuantTensor) -> str | None:
        """Put *piece* in its place; why that cannot be, or None."""
        if self.first is None:
            if reason := self._begin(piece):
                return reason
        elif reason := self._unlike(piece):
            return reason
        for name, (part, value) in _parts(piece).items():
            whole = self.parts[name]
            if part.axis is None:  # shared by all rows
                if number and not fa.all(whole[place] == value):
                    return f"has another {name} than what it is stacked with"
                whole[place] = value
                continue
            rows = value.shape[part.axis]
            key: list[Any] = [place, *[slice(None)] * value.ndim]
            key[part.axis] = slice(number * rows, (number + 1) * rows)
            whole[tuple(key)] = value
        return None

    def whole(self) -> Tensor | QuantTensor:
        """All of them: [groups, members * N, K]."""
        if self.first is None:
            return fa.zeros(0)
        if isinstance(self.first, Tensor):
            return self.parts[""]
        n, k = self.first.shape
        return QuantTensor(self.first.scheme, (self.groups, self.members * n, k), self.parts, self.first.dtype)

    def _begin(self, piece: Tensor | QuantTensor) -> str | None:
        if isinstance(piece, QuantTensor) and self.members > 1 and piece.shape[0] % piece.row_step:
            return f"is {piece!r}, whose rows stand {piece.row_step} together and cannot be stacked on others"
        for name, (part, value) in _parts(piece).items():
            shape = list(value.shape)
            if part.axis is not None:
                shape[part.axis] *= self.members
            self.parts[name] = fa.empty((self.groups, *shape), dtype=value.dtype, device=value.device)
        self.first = piece
        return None

    def _unlike(self, piece: Tensor | QuantTensor) -> str | None:
        assert self.first is not None
        if _form(piece) != _form(self.first):
            return f"is {_say(piece)}, but what it is stacked with is {_say(self.first)}"
        return None


def _parts(piece: Tensor | QuantTensor) -> dict[str, tuple[Part, Tensor]]:
    """The tensors of a matrix, each with how its rows lie."""
    if isinstance(piece, Tensor):
        return {"": (Part(piece.shape, (piece.dtype,)), piece)}
    wanted = piece.scheme.parts(*piece.shape)
    return {name: (part, piece.parts[name]) for name, part in wanted.items()}


def _form(piece: Tensor | QuantTensor) -> tuple[Scheme | None, tuple[int, ...], list[Any]]:
    scheme = None if isinstance(piece, Tensor) else piece.scheme
    return scheme, piece.shape, [value.dtype for _, value in _parts(piece).values()]


def _say(piece: Tensor | QuantTensor) -> str:
    return repr(piece) if isinstance(piece, QuantTensor) else f"dense {piece.dtype}{list(piece.shape)}"


def below(stacks: Sequence[Tensor | QuantTensor]) -> Tensor | QuantTensor | str:
    """Stacks [E, N, K] of one form with the rows of each matrix below those of the one before; or why that cannot be.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_models.stacks import below
        >>> below([fa.zeros((1, 1, 2)), fa.ones((1, 1, 2))])
        Tensor([[[0., 0.],
                 [1., 1.]]])
    """
    first, *rest = stacks
    for one in rest:
        if _form(one[0]) != _form(first[0]):
            return f"is {_say(first)}, but what it is joined with is {_say(one)}"
    if isinstance(first, Tensor):
        return fa.concat([one for one in stacks if isinstance(one, Tensor)], axis=1)
    parts: dict[str, Tensor] = {}
    for name, part in first.scheme.parts(*first.shape[1:]).items():
        values = [one.parts[name] for one in stacks if isinstance(one, QuantTensor)]
        if part.axis is None or first.shape[1] % part.per:
            return f"is {first!r}, whose rows cannot be joined with others"
        parts[name] = fa.concat(values, axis=part.axis)
    count, n, k = first.shape
    return QuantTensor(first.scheme, (count, len(stacks) * n, k), parts, first.dtype)


def halves(count: int, device: Device) -> Tensor:
    """Where the rows of two halves, *count* each, that are stored in turns lie: first those of one half.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_models.stacks import halves
        >>> fa.asarray([0, 10, 1, 11])[halves(2, fa.Device("cpu"))]
        Tensor([ 0,  1, 10, 11])
    """
    return fa.asarray([*range(0, 2 * count, 2), *range(1, 2 * count, 2)], dtype=fa.int64, device=device)


def turns(count: int, device: Device) -> Tensor:
    """The inverse of :func:`halves`.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_models.stacks import turns
        >>> fa.asarray([0, 1, 10, 11])[turns(2, fa.Device("cpu"))]
        Tensor([ 0, 10,  1, 11])
    """
    rows = [row for pair in zip(range(count), range(count, 2 * count), strict=True) for row in pair]
    return fa.asarray(rows, dtype=fa.int64, device=device)
