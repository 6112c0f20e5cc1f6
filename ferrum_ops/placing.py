"""Lengths, blocks and slots of sequences in the memory of a device, for work that is recorded once and replayed."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ferrum_array import Tensor
from ferrum_ops.kv_cache import KVSpec
from ferrum_ops.types import SequenceMeta

__all__ = ["place"]


def place(
    spec: KVSpec, meta: SequenceMeta, *, starts: Tensor, keys: Tensor, tables: Tensor, slots: Tensor
) -> SequenceMeta:
    """*meta*, whose numbers are bounds for the host, with those that count in tensors, for caches like *spec*.

    Kernels that serve CUDA read these alone, whenever they run; so a recorded step can be replayed with other numbers.
    Implementations that plan on the host do not know them: where one of those runs, its answer is that of the bounds.

    Args:
        spec: layout, blocks and block size are what counts.
        meta: its sequences have as many tokens as they ever have here, and no sequence has more keys.
        starts: [S + 1] int32, where the tokens of each sequence begin.
        keys: [S] int32, how many keys each has, its tokens' among them.
        tables: [S, width] int32, its blocks.
        slots: [T] int64, where the key and the value of each token are written; nowhere if the cache has no such slot.
    """
    plans: Any = import_module("ferrum_ops.kernels.cuda.plans")  # with the library that compiles kernels
    plan = plans.DevicePlan(
        starts,
        keys,
        tables,
        len(meta.lengths),
        meta.tokens,
        max(meta.lengths, default=0),
        max(meta.key_lengths, default=0),
        slots,
    )
    plans.set_plan(spec, meta, plan)
    return meta
