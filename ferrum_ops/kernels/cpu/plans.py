"""Where tokens and keys lie, read from memory when kernels run: for calls that are recorded once and done again.

Lengths, blocks and slots are in tensors, and the host knows bounds, by which memory is set aside. Whatever the numbers
say, kernels touch nothing outside their arrays: a wrong length or block is taken for the nearest that there is, and a
token whose slot the cache does not have is not written.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ferrum_array import Tensor
from ferrum_array.backends.tape import recording
from ferrum_ops.kernels.cpu.arrays import Array, flat
from ferrum_ops.kernels.cpu.decode import GRAIN, PLAN, stretches
from ferrum_ops.kernels.cpu.graph import launch
from ferrum_ops.kernels.cpu.jit import jit
from ferrum_ops.kv_cache import KVSpec
from ferrum_ops.recorded import PLACED, on_host
from ferrum_ops.types import SequenceMeta

__all__ = ["Placed", "ReadPlan", "placed", "reading_plan", "set_placed"]


class Placed(NamedTuple):
    """Tensors that say where sequences lie: see ``ferrum_ops.placing``."""

    starts: Tensor
    keys: Tensor
    tables: Tensor
    slots: Tensor


class ReadPlan(NamedTuple):
    """What attention reads: the rows of its plan, and the blocks of all sequences in one line."""

    rows: Array
    tables: Array


def _key(spec: KVSpec) -> tuple[object, ...]:
    return ("cpu plan", spec.layout, spec.blocks, spec.block_size)


def set_placed(spec: KVSpec, meta: SequenceMeta, found: Placed) -> None:
    """Make *found* what kernels read for *meta* and caches like *spec*."""
    meta.notes[PLACED] = True
    meta.notes[_key(spec)] = found


def placed(op: str, spec: KVSpec, meta: SequenceMeta) -> Placed | None:
    """The tensors for *meta*, or None where the host's numbers are what counts.

    Raises:
        CaptureError: if they are for caches of another kind.
    """
    found: Placed | None = meta.notes.get(_key(spec))
    if found is None:
        on_host(op, meta)
    return found


def reading_plan(spec: KVSpec, meta: SequenceMeta, found: Placed, window: int) -> ReadPlan:
    """The plan that is made from lengths and blocks as they are when it is asked for: once in a recording."""
    tape = recording()
    known: dict[object, Any] = {} if tape is None else tape.notes
    key = ("reading plan", id(meta), _key(spec), window)
    entry: tuple[SequenceMeta, ReadPlan] | None = known.get(key)
    if entry is None:
        sequences, width = found.tables.shape
        plan = ReadPlan(np.zeros((sequences, PLAN), np.int64), np.zeros(sequences * width, np.int64))
        most, longest = max(meta.lengths, default=0), max(meta.key_lengths, default=0)
        reach = longest if spec.layout == "ring" else min(longest, width * spec.block_size)
        tensors = flat(found.starts), flat(found.keys), flat(found.tables)
        launch(_make, *tensors, window, most, reach, spec.blocks, *plan)
        entry = known[key] = (meta, plan)  # with the meta, whose identity is the key
    return entry[1]


@jit
def _make(
    starts: Any, keys: Any, tables: Any, window: int, most: int, reach: int, blocks: int, rows: Any, line: Any
) -> None:
    """The rows of a plan as ``decode`` reads them, and the blocks."""
    sequences = len(rows)
    width = len(line) // max(1, sequences)
    token = units = 0
    for s in range(sequences):
        count = min(max(starts[s + 1] - starts[s], 0), most)
        length = min(max(keys[s], 0), reach)
        low = max(0, length - count - window + 1) if window else 0
        first = low // GRAIN * GRAIN
        rows[s, 0], rows[s, 1], rows[s, 2] = token, count, s * width
        rows[s, 3], rows[s, 4], rows[s, 5] = length, units, first
        units += stretches(max(0, length - first))
        token += count
    for i in range(len(line)):
        line[i] = min(max(tables[i], 0), blocks - 1)
