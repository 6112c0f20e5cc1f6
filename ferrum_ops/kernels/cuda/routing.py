"""Rows of ``moe_route``, ``moe_plan``, ``moe_permute`` and ``moe_combine``.

A plan is a counting sort in the device's memory: one launch for few choices, two for many. Nothing is read back, but
for the range of ids that ``moe_plan`` checks.
"""

from __future__ import annotations

import math
from typing import Final

import ferrum_array as fa
from ferrum_array import Tensor
from ferrum_ops.kernels.cuda.launch import Kernel, empty, power_of_two
from ferrum_ops.kernels.cuda.layouts import in_order, rows
from ferrum_ops.kernels.cuda.source import routing as source
from ferrum_ops.moe_planning import RoutePlan, ids_in_range

__all__ = [
    "ALONE",
    "MANY",
    "combine_refuses",
    "combined",
    "moe_combine",
    "moe_permute",
    "moe_plan",
    "moe_route",
    "plan_of",
    "plan_refuses",
    "route_refuses",
]

_ROUTE: Final = Kernel(source.route, aligned=("x_step",))
_COUNT: Final = Kernel(source.count)
_PLACE: Final = Kernel(source.place)
_PERMUTE: Final = Kernel(source.permute, aligned=("size", "x_step"))
_COMBINE: Final = Kernel(source.combine, aligned=("size", "y_step", "residual_step"))

#: up to so many choices one program makes the plan
ALONE: Final = 128
#: from so many tokens on a program routes several
MANY: Final = 512
_EXPERTS: Final = 1024  # more have no kernel
_PLACES: Final = 64  # nor have more choices of a token
_PROGRAMS: Final = 128  # so many at most for more choices
_BLOCK: Final = 128  # choices that a program looks at together
_TILE: Final = 8192  # counts that a program reads at once


def route_refuses(
    logits: Tensor, k: int, score: str, norm: bool, bias: Tensor | None, n_group: int, topk_group: int, scale: float
) -> str | None:
    """Why the kernel does not take a call, or None."""
    experts = logits.shape[-1]
    if k > _PLACES:
        return f"takes up to {_PLACES} choices of a token, not {k}"
    if power_of_two(n_group) * power_of_two(experts // n_group) > _EXPERTS:
        return f"takes up to {_EXPERTS} experts, not {experts}"
    return "does not take a bias in float64" if bias is not None and bias.dtype is fa.float64 else None


def moe_route(
    logits: Tensor, k: int, score: str, norm: bool, bias: Tensor | None, n_group: int, topk_group: int, scale: float
) -> tuple[Tensor, Tensor]:
    """The op."""
    *lead, experts = logits._data.shape
    shape = (*lead, k)
    ids, weights = empty(shape, logits, fa.int64), empty(shape, logits)
    tokens = math.prod(lead)
    if tokens:
        logits, step = rows(logits)
        chosen = topk_group if topk_group < n_group else 0
        groups = n_group if chosen else 1
        size = experts // groups
        wide, high = power_of_two(size), power_of_two(groups)
        at_once = 4 if tokens >= MANY and wide * high <= 256 else 1
        _ROUTE(
            (-(-tokens // at_once),), logits, None if bias is None else in_order(bias), ids, weights, tokens, experts,
            size, step, scale, warps=4 if wide * high > 256 else at_once, K=k, SIGMOID=score == "sigmoid", NORM=norm,
            CHOSEN=chosen, T=at_once, GROUPS=high, SIZE=wide, PLACES=power_of_two(k),
        )  # fmt: skip
    return ids, weights


def plan_refuses(ids: Tensor, experts: int, block: int) -> str | None:
    """Why the kernels do not make a plan, or None."""
    if experts > _EXPERTS:
        return f"takes up to {_EXPERTS} experts, not {experts}"
    return "takes less than 2**30 rows" if ids.size + experts * block >= 1 << 30 else None


def plan_of(ids: Tensor, experts: int, block: int = 1) -> RoutePlan:
    """The plan of *ids*, int64, which are not checked: a choice of no expert has no row."""
    ids = in_order(ids)
    choices: int = ids._data.size
    if block > 1:
        extent = (choices + min(experts, choices) * (block - 1)) // block * block
        order = fa.full((extent,), -1, dtype=fa.int64, device=ids.device)
    else:
        order = empty((choices,), ids)
    inverse, offsets = empty(ids._data.shape, ids), empty((experts + 1,), ids)
    wide = power_of_two(experts + 1)
    blocks = -(-choices // _BLOCK)
    counts, programs, steps = None, 1, blocks
    if choices > ALONE:
        steps = -(-blocks // _PROGRAMS)
        programs = -(-blocks // steps)
        counts = empty((programs, wide), ids, fa.int32)
        _COUNT((programs,), ids, counts, choices, experts, steps, warps=4, EXPERTS=wide, BLOCK=_BLOCK)
    _PLACE(
        (programs,), ids, counts, order, inverse, offsets, choices, steps, experts, block,
        warps=4, EXPERTS=wide, BLOCK=_BLOCK, AT_ONCE=max(1, _TILE // wide),
    )  # fmt: skip
    return RoutePlan(order, inverse, offsets, block)


def moe_plan(ids: Tensor, experts: int, block: int) -> RoutePlan:
    """The op."""
    ids_in_range("moe_plan", ids, experts)
    return plan_of(ids, experts, block)


def moe_permute(x: Tensor, plan: RoutePlan) -> Tensor:
    """The op."""
    size: int = x._data.shape[-1]
    out = empty((plan.rows, size), x)
    if out._data.size:
        tokens = math.prod(x._data.shape[:-1])
        x, step = rows(x)
        block = min(1024, max(64, power_of_two(size)))
        at_once = max(1, 2048 // block)
        _PERMUTE(
            (-(-plan.rows // at_once), -(-size // block)), x, in_order(plan.order), out, plan.rows, tokens, plan.k,
            size, step, warps=4, ROWS=at_once, BLOCK=block,
        )  # fmt: skip
    return out


def combine_refuses(y: Tensor, plan: RoutePlan, w: Tensor, residual: Tensor | None) -> str | None:
    """Why the kernel does not take a call, or None."""
    return "does not add float64" if residual is not None and residual.dtype is fa.float64 else None


def moe_combine(y: Tensor, plan: RoutePlan, w: Tensor, residual: Tensor | None) -> Tensor:
    """The op."""
    return combined(y, plan.inverse, w, residual)


def combined(
    y: Tensor, inverse: Tensor | None, w: Tensor, residual: Tensor | None = None, ids: Tensor | None = None,
    experts: int = 0, chained: bool = False,
) -> Tensor:  # fmt: skip
    """``moe_combine``; without *inverse* row c of *y* is that of choice c. With *ids*, choices of no expert are NaN.

    *chained*: the launch before signals that this one may come.
    """
    *lead, k = w._data.shape
    size: int = y._data.shape[-1]
    out = empty((*lead, size), y)
    if out._data.size:
        tokens = math.prod(lead)
        y, step = rows(y)
        residual, residual_step = (None, 0) if residual is None else rows(residual)
        block = min(1024, max(64, power_of_two(size)))
        while block > 128 and tokens * -(-size // block) < 512:
            block //= 2
        at_once = 1 if tokens < 512 else max(1, 1024 // block)
        _COMBINE(
            (-(-tokens // at_once), -(-size // block)), y, None if inverse is None else in_order(inverse), in_order(w),
            residual, out, tokens, y._data.shape[0], k, size, step, residual_step, experts,
            None if ids is None else in_order(ids), warps=4 if block * at_once >= 512 else 2, early=chained,
            ROWS=at_once, BLOCK=block, WAIT=chained,
        )  # fmt: skip
    return out
