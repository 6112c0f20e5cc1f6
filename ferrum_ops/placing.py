"""Lengths, blocks and slots of sequences in the memory of a device, for work that is recorded once and replayed."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import ferrum_array as fa
from ferrum_array import Tensor
from ferrum_ops.kv_cache import KVSpec
from ferrum_ops.types import SequenceMeta

__all__ = ["place", "place_for"]


def place(
    spec: KVSpec, meta: SequenceMeta, *, starts: Tensor, keys: Tensor, tables: Tensor, slots: Tensor
) -> SequenceMeta:
    """*meta*, whose numbers are bounds for the host, with those that count in tensors, for caches like *spec*.

    Kernels for CUDA and for the CPU read these alone, whenever they run; so a recorded step can be replayed with other
    numbers. Implementations that plan on the host do not know them: on the CPU these raise ``CaptureError``, and on
    CUDA their answer is that of the bounds.

    Args:
        spec: layout, blocks and block size are what counts.
        meta: its sequences have as many tokens as they ever have here, and no sequence has more keys.
        starts: [S + 1] int32, where the tokens of each sequence begin.
        keys: [S] int32, how many keys each has, its tokens' among them.
        tables: [S, width] int32, its blocks.
        slots: [T] int64, where the key and the value of each token are written; nowhere if the cache has no such slot.
    """
    return place_for(starts.device.kind, spec, meta, starts, keys, tables, slots)


def place_for(
    kind: str, spec: KVSpec, meta: SequenceMeta, starts: Tensor, keys: Tensor, tables: Tensor, slots: Tensor
) -> SequenceMeta:
    """The same for the kernels of a kind of device, wherever the tensors lie."""
    plans: Any = import_module(f"ferrum_ops.kernels.{kind}.plans")  # with the library that compiles kernels
    if kind == "cpu":
        plans.set_placed(spec, meta, plans.Placed(starts, keys, tables, slots))
        return meta
    plan = plans.DevicePlan(
        starts,
        keys,
        tables,
        len(meta.lengths),
        meta.tokens,
        max(meta.lengths, default=0),
        max(meta.key_lengths, default=0),
        fa.zeros((len(meta.lengths) * plans.COUNTED_HEADS,), dtype=fa.int32, device=starts.device),
        slots,
    )
    plans.set_plan(spec, meta, plan)
    return meta
