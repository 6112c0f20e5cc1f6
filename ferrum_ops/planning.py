"""Plans of attention: which keys a block of queries meets, and which sequences can be computed
together.

Pure Python on integers; the work on arrays follows these plans.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Run", "Tile", "runs", "tiles", "visible"]


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
