"""Where tokens and keys lie, as kernels read it: the plan of a meta, in the memory of the device.

A plan is made once for a meta and a kind of cache, however many layers ask for it. Kernels take lengths, blocks and
slots from the device alone; what the host knows are bounds, from which grids are made. So a captured graph can be
replayed with other lengths: its plan stays where it is, and new numbers are written into it.

Whatever a plan says, kernels touch nothing outside their tensors: a wrong block is taken for another one. With
``FERRUM_CUDA_DEBUG=1`` each call looks at its plan first and raises, naming what is wrong. That reads back from the
device, so such calls cannot be captured.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from dataclasses import dataclass
from typing import Final

import ferrum_array as fa
from ferrum_array import Device, Tensor
from ferrum_ops.kernels.cuda.launch import Kernel, power_of_two
from ferrum_ops.kernels.cuda.source import caching, paged
from ferrum_ops.kv_cache import KVSpec
from ferrum_ops.kv_slots import block_tables, cache_slots
from ferrum_ops.types import SequenceMeta

__all__ = [
    "CHECK", "DevicePlan", "ReadPlan", "check_slots", "check_tables", "plan_of", "reading_plan", "set_plan", "slots_of",
]  # fmt: skip

#: whether plans are checked in the device's memory before they are used
CHECK = os.environ.get("FERRUM_CUDA_DEBUG", "0") == "1"

_CHECK_TABLES: Final = Kernel(paged.check_tables)
_CHECK_SLOTS: Final = Kernel(caching.check_slots)
#: of so many heads of keys a plan counts parts
COUNTED_HEADS: Final = 64
_AT_ONCE: Final = 1024  # places that a program looks at


@dataclass(frozen=True)
class ReadPlan:
    """A meta in the memory of a device, for reading caches of one layout, number of blocks and block size.

    Attributes:
        starts: [S + 1] int32, where each sequence's tokens begin in the packed axis.
        keys: [S] int32, how many keys each sequence has, the new tokens' among them.
        tables: [S, width] int32, the blocks of each sequence; width is at least 1. Position p lies in block
            ``tables[s, p // block_size]``, in a ring in ``tables[s, 0]`` at ``p % block_size``. Places behind a
            sequence's last block hold 0.
        sequences: S.
        tokens: T.
        most_tokens: no sequence has more tokens.
        most_keys: no sequence has more keys.
        arrivals: [S * 64] int32, zeros between launches: how many parts of the keys of a sequence and head are done.
            Launches that share it must come one after another, as those of one stream do.
    """

    starts: Tensor
    keys: Tensor
    tables: Tensor
    sequences: int
    tokens: int
    most_tokens: int
    most_keys: int
    arrivals: Tensor


@dataclass(frozen=True)
class DevicePlan(ReadPlan):
    """A meta in the memory of a device, for reading and for writing caches.

    Attributes:
        slots: [T] int64, the row of the cache where each new token is written.
    """

    slots: Tensor


def _key(what: str, spec: KVSpec, device: Device) -> tuple[object, ...]:
    return (what, spec.layout, spec.blocks, spec.block_size, device)


def plan_of(spec: KVSpec, meta: SequenceMeta, device: Device) -> DevicePlan:
    """The plan of *meta* for caches like *spec*, which the op has checked; four copies to the device, once.

    Raises:
        ValueError: as ``kv_append`` does, for tokens that have no slot in such a cache.
    """
    key = _key("device plan", spec, device)
    found: DevicePlan | None = meta.notes.get(key)
    if found is None:
        read = reading_plan(spec, meta, device)
        found = DevicePlan(
            read.starts,
            read.keys,
            read.tables,
            read.sequences,
            read.tokens,
            read.most_tokens,
            read.most_keys,
            read.arrivals,
            slots_of(spec, meta, device),
        )
        meta.notes[key] = found
    return found


def reading_plan(spec: KVSpec, meta: SequenceMeta, device: Device) -> ReadPlan:
    """What :func:`plan_of` gives but slots: tokens that only read need no place in the cache."""
    known: ReadPlan | None = meta.notes.get(_key("device plan", spec, device))
    if known is not None:
        return known
    key = _key("device tables", spec, device)
    found: ReadPlan | None = meta.notes.get(key)
    if found is None:
        tables = block_tables("paged_attention", spec, meta)
        width = max(1, max(map(len, tables), default=0))
        rows = [[*table, *(0,) * (width - len(table))] for table in tables]
        sequences = len(meta.lengths)
        found = ReadPlan(
            fa.asarray(meta.cu_seqlens, dtype=fa.int32, device=device),
            fa.asarray(meta.key_lengths, dtype=fa.int32, device=device),
            fa.asarray(rows, dtype=fa.int32, device=device).reshape(sequences, width),
            sequences,
            meta.tokens,
            max(meta.lengths, default=0),
            max(meta.key_lengths, default=0),
            fa.zeros((sequences * COUNTED_HEADS,), dtype=fa.int32, device=device),
        )
        meta.notes[key] = found
    return found


def slots_of(spec: KVSpec, meta: SequenceMeta, device: Device) -> Tensor:
    """[T] int64, where ``kv_append`` writes the tokens of *meta* in caches like *spec*; one copy to the device, once.

    Raises:
        ValueError: as ``kv_append`` does.
    """
    known: DevicePlan | None = meta.notes.get(_key("device plan", spec, device))
    if known is not None:
        return known.slots
    key = _key("device slots", spec, device)
    found: Tensor | None = meta.notes.get(key)
    if found is None:
        found = fa.asarray(cache_slots("kv_append", spec, meta), dtype=fa.int64, device=device)
        meta.notes[key] = found
    return found


def set_plan(spec: KVSpec, meta: SequenceMeta, plan: DevicePlan) -> None:
    """Make *plan* the one that :func:`plan_of` finds: its owner writes new numbers into it between replays.

    Raises:
        ValueError: for a tensor with gaps or in another order than C's, which kernels would read wrongly.
    """
    for name in ("starts", "keys", "tables", "slots"):
        if not getattr(plan, name)._data.flags.c_contiguous:
            raise ValueError(
                f"set_plan: {name} must lie in C order without gaps; give a tensor of its own, no part of a wider one"
            )
    meta.notes[_key("device plan", spec, plan.starts.device)] = plan


def check_tables(spec: KVSpec, plan: ReadPlan) -> None:
    """Read what the plan says in the device's memory, and raise for what lies outside a cache like *spec*.

    Raises:
        ValueError: naming the sequence and the block.
    """
    width: int = plan.tables._data.shape[1]
    nothing = plan.sequences * (width + 1)
    fault = fa.full((1,), nothing, dtype=fa.int64, device=plan.tables.device)
    _CHECK_TABLES(
        (plan.sequences,),
        *(plan.tables, plan.keys, fault, width, spec.block_size, spec.blocks),
        RING=spec.layout == "ring",
        BLOCK=min(_AT_ONCE, power_of_two(width)),
    )
    found = int(fault[0])
    if found == nothing:
        return
    sequence, place = divmod(found, width + 1)
    if place < width:
        raise ValueError(
            f"paged_attention: in the device's memory the block table of sequence {sequence} names block "
            f"{int(plan.tables[sequence, place])} at place {place}, but the cache has {spec.blocks} blocks, counted "
            "from 0; write the table again before the call"
        )
    raise ValueError(
        f"paged_attention: in the device's memory sequence {sequence} has {int(plan.keys[sequence])} keys, but there "
        f"are {width} blocks of {spec.block_size} for it at most; make the plan wider, or end the sequence"
    )


def check_slots(spec: KVSpec, meta: SequenceMeta, slots: Tensor) -> None:
    """Read *slots* [T] in the device's memory, and raise for one outside a cache like *spec*.

    Raises:
        ValueError: naming the sequence, the token, the slot and the block.
    """
    tokens: int = slots._data.shape[0]
    fault = fa.full((1,), tokens, dtype=fa.int64, device=slots.device)
    _CHECK_SLOTS((-(-tokens // _AT_ONCE),), slots, fault, tokens, spec.slots, BLOCK=_AT_ONCE)
    token = int(fault[0])
    if token < tokens:
        sequence = bisect_right(meta.cu_seqlens, token) - 1
        slot = int(slots[token])
        raise ValueError(
            f"kv_append: in the device's memory token {token}, of sequence {sequence}, has slot {slot}, in block "
            f"{slot // spec.block_size}, but the cache has {spec.blocks} blocks of {spec.block_size}; write the slots "
            "again before the call"
        )
