"""Where tokens and keys lie, as kernels read it: the plan of a meta, in the memory of the device.

A plan is made once for a meta and a kind of cache, however many layers ask for it. Kernels take lengths, blocks and
slots from the device alone; what the host knows are bounds, from which grids are made. So a captured graph can be
replayed with other lengths: its plan stays where it is, and new numbers are written into it.
"""

from __future__ import annotations

from dataclasses import dataclass

import ferrum_array as fa
from ferrum_array import Device, Tensor
from ferrum_ops.kv_cache import KVSpec, block_tables, cache_slots
from ferrum_ops.types import SequenceMeta

__all__ = ["DevicePlan", "plan_of", "set_plan"]


@dataclass(frozen=True)
class DevicePlan:
    """A meta in the memory of a device, for caches of one layout, number of blocks and block size.

    Attributes:
        starts: [S + 1] int32, where each sequence's tokens begin in the packed axis.
        keys: [S] int32, how many keys each sequence has, the new tokens' among them.
        tables: [S, width] int32, the blocks of each sequence. Position p lies in block ``tables[s, p // block_size]``,
            in a ring in ``tables[s, 0]`` at ``p % block_size``. Places behind a sequence's last block hold 0.
        slots: [T] int64, the row of the cache where each new token is written.
        sequences: S.
        tokens: T.
        most_tokens: no sequence has more tokens.
        most_keys: no sequence has more keys.
    """

    starts: Tensor
    keys: Tensor
    tables: Tensor
    slots: Tensor
    sequences: int
    tokens: int
    most_tokens: int
    most_keys: int


def _key(spec: KVSpec, device: Device) -> tuple[object, ...]:
    return ("device plan", spec.layout, spec.blocks, spec.block_size, device)


def plan_of(spec: KVSpec, meta: SequenceMeta, device: Device) -> DevicePlan:
    """The plan of *meta* for caches like *spec*, which the op has checked; four copies to the device, once."""
    key = _key(spec, device)
    found: DevicePlan | None = meta.notes.get(key)
    if found is None:
        tables = block_tables("paged_attention", spec, meta)
        width = max(map(len, tables), default=0)
        rows = [[*table, *(0,) * (width - len(table))] for table in tables]

        def moved(values: object, dtype: fa.Dtype) -> Tensor:
            return fa.asarray(values, dtype=dtype, device=device)

        sequences = len(meta.lengths)
        found = DevicePlan(
            moved(meta.cu_seqlens, fa.int32),
            moved(meta.key_lengths, fa.int32),
            moved(rows, fa.int32).reshape(sequences, width),
            moved(cache_slots("kv_append", spec, meta), fa.int64),
            sequences,
            meta.tokens,
            max(meta.lengths, default=0),
            max(meta.key_lengths, default=0),
        )
        meta.notes[key] = found
    return found


def set_plan(spec: KVSpec, meta: SequenceMeta, plan: DevicePlan) -> None:
    """Make *plan* the one that :func:`plan_of` finds: its owner writes new numbers into it between replays."""
    meta.notes[_key(spec, plan.starts.device)] = plan
