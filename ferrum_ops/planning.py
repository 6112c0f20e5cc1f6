"""Plans of attention: which keys a block of queries meets, and which sequences can be computed
together.

Pure Python on integers; the work on arrays follows these plans.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

__all__ = ["Run", "Stretch", "Tile", "block_slots", "runs", "stretches", "tiles", "visible"]


class Tile(NamedTuple):
    """Keys ``start`` to ``stop``; *masked* if some query of the block must not see some of them."""

    start: int
    stop: int
    masked: bool


class Run(NamedTuple):
    """*sequences* of equal lengths, one after another from the tokens *query* and *key* on."""

    sequences: int
    query: int
    query_length: int
    key: int
    key_length: int


def visible(query: int, key: int, offset: int, causal: bool, window: int | None) -> bool:
    """Whether *query* sees *key*, with *offset* keys before the one that is level with query 0.

    A window counts the level key.

    Examples:
        >>> [visible(2, key, 0, True, 2) for key in range(4)]
        [False, True, True, False]
    """
    place = query + offset
    return not causal or (key <= place and (window is None or key > place - window))


def tiles(
    first: int, last: int, keys: int, offset: int, causal: bool, window: int | None, block: int
) -> tuple[Tile, ...]:
    """The blocks of *keys* that queries *first* to *last* (exclusive) meet; blocks that none of
    them sees are left out.

    Examples:
        >>> tiles(4, 6, 6, 0, True, None, 4)
        (Tile(start=0, stop=4, masked=False), Tile(start=4, stop=6, masked=True))
        >>> tiles(4, 6, 6, 0, True, 2, 4)
        (Tile(start=3, stop=6, masked=True),)
    """
    low, high = 0, keys
    if causal:
        high = min(keys, last + offset)
        if window is not None:
            low = max(0, first + offset - window + 1)

    def masked(start: int, stop: int) -> bool:
        # the corners decide: the first query with the last key, the last query with the first key
        return not (
            visible(first, stop - 1, offset, causal, window) and visible(last - 1, start, offset, causal, window)
        )

    bounds = ((start, min(start + block, high)) for start in range(low, high, block))
    return tuple(Tile(start, stop, masked(start, stop)) for start, stop in bounds)


def runs(query_lengths: Sequence[int], key_lengths: Sequence[int]) -> tuple[Run, ...]:
    """Packed sequences as runs of equal lengths, in order.

    Each run can be computed as one dense batch, without padding.

    Examples:
        >>> runs([3, 3, 1], [3, 3, 5])  # doctest: +NORMALIZE_WHITESPACE
        (Run(sequences=2, query=0, query_length=3, key=0, key_length=3),
         Run(sequences=1, query=6, query_length=1, key=6, key_length=5))
    """
    found: list[Run] = []
    query = key = 0
    for query_length, key_length in zip(query_lengths, key_lengths, strict=True):
        last = found[-1] if found else None
        if last is not None and (last.query_length, last.key_length) == (query_length, key_length):
            found[-1] = last._replace(sequences=last.sequences + 1)
        else:
            found.append(Run(1, query, query_length, key, key_length))
        query += query_length
        key += key_length
    return tuple(found)


class Stretch(NamedTuple):
    """*length* tokens from *token* on that go to neighbouring slots, from *slot* on."""

    token: int
    slot: int
    length: int


def stretches(slots: Sequence[int]) -> tuple[Stretch, ...]:
    """Slots of consecutive tokens as stretches of neighbours.

    Examples:
        >>> stretches([4, 5, 6, 0])
        (Stretch(token=0, slot=4, length=3), Stretch(token=3, slot=0, length=1))
    """
    if slots and slots[-1] - slots[0] == len(slots) - 1 and all(b - a == 1 for a, b in pairwise(slots)):
        return (Stretch(0, slots[0], len(slots)),)
    found: list[Stretch] = []
    for token, slot in enumerate(slots):
        last = found[-1] if found else None
        if last is not None and slot == last.slot + last.length:
            found[-1] = last._replace(length=last.length + 1)
        else:
            found.append(Stretch(token, slot, 1))
    return tuple(found)


def block_slots(table: Sequence[int], block_size: int, positions: Sequence[int], *, ring: bool = False) -> list[int]:
    """The slots of *positions* of a sequence whose blocks are *table*; in a ring they go round its one block.

    Examples:
        >>> block_slots([5, 2], 4, [0, 3, 4])
        [20, 23, 8]
        >>> block_slots([1], 4, [6], ring=True)
        [6]
    """
    if ring or len(table) == 1:
        first = table[0] * block_size
        return [first + place % block_size for place in positions]
    return [table[place // block_size] * block_size + place % block_size for place in positions]
