"""What ranks compute together."""

from __future__ import annotations

import numpy as np

from benchmarks.ops_error import Draw, Results, case
from ferrum_ops import all_gather, all_reduce, run_ranks


@case("all_reduce")
def _all_reduce(draw: Draw) -> Results:
    ranks, shape = draw.one_of(1, 2, 4), (draw.between(1, 20), draw.between(16, 128))
    held = [draw.noise(*shape) for _ in range(ranks)]
    op = draw.one_of("sum", "max", "min")
    exact = {"sum": np.sum, "max": np.max, "min": np.min}[op]([x64 for _, x64 in held], axis=0)
    for got in run_ranks(ranks, lambda group: draw.call(all_reduce, held[group.rank][0], group, op)):
        yield got, exact


@case("all_gather")
def _all_gather(draw: Draw) -> Results:
    ranks, axis = draw.one_of(1, 2, 4), draw.one_of(0, 1, -1)
    sizes = [draw.between(1, 20) for _ in range(ranks)]
    held = [draw.noise(*((n, 16) if axis == 0 else (16, n))) for n in sizes]
    exact = np.concatenate([x64 for _, x64 in held], axis=axis)
    for got in run_ranks(ranks, lambda group: draw.call(all_gather, held[group.rank][0], group, axis)):
        yield got, exact
