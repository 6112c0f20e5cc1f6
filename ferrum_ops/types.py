"""Values that ops share."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any

from ferrum_ops.planning import Run, runs

__all__ = ["SequenceMeta"]


def _listed(name: str, values: object) -> tuple[object, ...]:
    if not isinstance(values, Iterable):
        raise TypeError(f"SequenceMeta: {name} must be a sequence, got {type(values).__name__} {values!r:.60}")
    return tuple(values)


def _integers(name: str, values: object) -> tuple[int, ...]:
    """*values* as plain integers: plans compare them, and look blocks up with them."""
    found = _listed(name, values)
    if set(map(type, found)) <= {int}:
        return found  # type: ignore[return-value]  # the line above says so, faster than a check of each
    for value in found:
        if isinstance(value, bool) or not hasattr(value, "__index__"):
            raise TypeError(
                f"SequenceMeta: {name} must hold integers, got {type(value).__name__} {value!r:.60} among them"
            )
    return tuple(map(operator.index, found))  # type: ignore[arg-type]  # those of another library


@dataclass(frozen=True)
class SequenceMeta:
    """Which tokens of a packed axis belong to which sequence.

    Sequences lie one after another without padding. All fields are plain integers, so that planning
    needs no array and two metas can be compared; a field that an op cannot honour makes it raise.

    Attributes:
        cu_seqlens: where each sequence's tokens begin, and at last where the tokens end: (0, 3, 5)
            are two sequences of 3 and 2 tokens.
        positions: the place of each token in its sequence. Without it, the tokens are the last ones
            of their sequence.
        kv_lens: how many keys each sequence has. Without it, as many as tokens.
        block_tables: for each sequence the blocks of a paged cache that hold its keys.
        slots: for each token the slot of the cache to which its key and value are written.

    Raises:
        TypeError: for anything but sequences of integers. ValueError: for starts that do not begin at 0 or
            decrease, negative places or lengths, and fields whose lengths do not fit together.

    Examples:
        >>> from ferrum_ops import SequenceMeta
        >>> meta = SequenceMeta.packed([3, 2])
        >>> meta.cu_seqlens, meta.token_positions
        ((0, 3, 5), (0, 1, 2, 0, 1))
    """

    cu_seqlens: tuple[int, ...]
    positions: tuple[int, ...] | None = None
    kv_lens: tuple[int, ...] | None = None
    block_tables: tuple[tuple[int, ...], ...] | None = None
    slots: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("cu_seqlens", "positions", "kv_lens", "slots"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, _integers(name, value))
        if self.block_tables is not None:
            tables = tuple(_integers("block_tables", table) for table in _listed("block_tables", self.block_tables))
            object.__setattr__(self, "block_tables", tables)
        starts = self.cu_seqlens
        if not starts or starts[0] != 0 or any(b < a for a, b in pairwise(starts)):
            raise ValueError(f"SequenceMeta: cu_seqlens must begin with 0 and never decrease, got {starts}")
        sequences, tokens = len(starts) - 1, starts[-1]
        for name, want, unit in (
            ("positions", tokens, "token"),
            ("slots", tokens, "token"),
            ("kv_lens", sequences, "sequence"),
            ("block_tables", sequences, "sequence"),
        ):
            value = getattr(self, name)
            if value is not None and len(value) != want:
                raise ValueError(f"SequenceMeta: {name} needs one entry per {unit}, {want}, got {len(value)}")
        for name in ("positions", "kv_lens"):
            value = getattr(self, name)
            if value is not None and any(number < 0 for number in value):
                raise ValueError(f"SequenceMeta: {name} must not be negative, got {min(value)}")

    @classmethod
    def packed(cls, lengths: Iterable[int]) -> SequenceMeta:
        """Sequences of these *lengths*, each whole.

        Raises:
            TypeError: for lengths that are no integers. ValueError: for a negative one.
        """
        each = _integers("lengths", lengths)
        if any(length < 0 for length in each):
            raise ValueError(f"SequenceMeta: lengths must not be negative, got {min(each)}")
        return cls(tuple(accumulate(each, initial=0)))

    @cached_property
    def notes(self) -> dict[tuple[Any, ...], Any]:
        """What ops and kernels have worked out for this meta, so that the layers of a model do it once."""
        return {}

    def __getstate__(self) -> dict[str, Any]:
        """The fields alone: what was worked out belongs to one process."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @property
    def tokens(self) -> int:
        """How many tokens there are in all."""
        return self.cu_seqlens[-1]

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """The tokens of each sequence."""
        return tuple(b - a for a, b in pairwise(self.cu_seqlens))

    @cached_property
    def key_lengths(self) -> tuple[int, ...]:
        """The keys of each sequence."""
        return self.lengths if self.kv_lens is None else self.kv_lens

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        """Neighbours of equal lengths, which can be computed together."""
        return runs(self.lengths, self.key_lengths)

    @cached_property
    def last_positions(self) -> tuple[int, ...]:
        """The place of each token if the tokens are the last ones of their sequence.

        It is negative where a sequence has fewer keys than tokens.
        """
        pairs = zip(self.lengths, self.key_lengths, strict=True)
        return tuple(place for length, keys in pairs for place in range(keys - length, keys))

    @property
    def token_positions(self) -> tuple[int, ...]:
        """The place of each token in its sequence: *positions*, or where the last tokens lie."""
        return self.last_positions if self.positions is None else self.positions

    @cached_property
    def in_order(self) -> bool:
        """Whether the tokens are the last ones of their sequence, in order."""
        return self.positions is None or self.positions == self.last_positions
