"""Where the tokens of sequences lie in a cache of keys and values: slots and blocks, worked out on the host."""

from __future__ import annotations

from collections.abc import Sequence

from ferrum_ops.kv_cache import KVSpec
from ferrum_ops.planning import block_slots
from ferrum_ops.types import SequenceMeta

__all__ = ["block_tables", "cache_slots", "reach"]


def cache_slots(op: str, spec: KVSpec, meta: SequenceMeta) -> tuple[int, ...]:
    """The slot of each token of *meta* in a cache like *spec*: ``meta.slots``, or where its position lies.

    Raises:
        ValueError: naming the op, for tokens that have no slot, slots out of range, or two tokens with one slot.
    """
    key = ("slots", spec.layout, spec.blocks, spec.block_size)
    known: tuple[int, ...] | None = meta.notes.get(key)
    if known is not None:
        return known
    if meta.slots is not None:
        found = meta.slots
        if found and not (min(found) >= 0 and max(found) < spec.slots):
            raise ValueError(f"{op}: slots run from {min(found)} to {max(found)}, but the cache has {spec.slots}")
    else:
        tables = block_tables(op, spec, meta)
        positions = meta.token_positions
        parts: list[int] = []
        for number, table in enumerate(tables):
            own = positions[meta.cu_seqlens[number] : meta.cu_seqlens[number + 1]]
            if own:
                reach(op, spec, number, table, min(own), max(own) + 1)
                parts += block_slots(table, spec.block_size, own, ring=spec.layout == "ring")
        found = tuple(parts)
    if len(set(found)) < len(found):
        twice = next(slot for n, slot in enumerate(found) if slot in found[:n])
        raise ValueError(
            f"{op}: two tokens would be written to slot {twice}; give each its own place"
            + (f", and a ring of {spec.block_size} at most that many at once" if spec.layout == "ring" else "")
        )
    meta.notes[key] = found
    return found


def block_tables(op: str, spec: KVSpec, meta: SequenceMeta) -> tuple[tuple[int, ...], ...]:
    """The blocks of each sequence: ``meta.block_tables``, or block s for sequence s of a cache that is not paged.

    Raises:
        ValueError: for a paged cache without tables, blocks out of range, or more sequences than blocks.
    """
    sequences = len(meta.lengths)
    tables = meta.block_tables
    if tables is None:
        if spec.layout == "paged":
            raise ValueError(f"{op}: the cache is paged, so meta needs block_tables")
        if sequences > spec.blocks:
            raise ValueError(f"{op}: meta has {sequences} sequences, but the cache has room for {spec.blocks}")
        return tuple((s,) for s in range(sequences))
    for number, table in enumerate(tables):
        if table and not (min(table) >= 0 and max(table) < spec.blocks):
            raise ValueError(
                f"{op}: the block table of sequence {number} runs from {min(table)} to {max(table)}, "
                f"but the cache has {spec.blocks} blocks, counted from 0"
            )
        if spec.layout != "paged" and len(table) != 1:
            raise ValueError(
                f"{op}: in a {spec.layout} cache each sequence has one block, but sequence {number} has {len(table)}"
            )
    return tables


def reach(op: str, spec: KVSpec, number: int, table: Sequence[int], low: int, high: int) -> None:
    """Check that the positions from *low* to *high* (exclusive) of sequence *number* have slots.

    Raises:
        ValueError: for positions below 0 or beyond the blocks.
    """
    if low < 0:
        raise ValueError(f"{op}: sequence {number} has fewer keys than tokens; kv_lens counts the new tokens too")
    room = len(table) * spec.block_size
    if spec.layout != "ring" and high > room:
        raise ValueError(
            f"{op}: sequence {number} reaches position {high - 1}, but its {len(table)} blocks of {spec.block_size} "
            f"end at {room - 1}; allocate more, or end the sequence"
        )
