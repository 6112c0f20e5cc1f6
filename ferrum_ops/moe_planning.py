"""Which rows each expert works on: the choices of tokens sorted by expert, and rows copied into that order."""

from __future__ import annotations

import math
from dataclasses import dataclass

import ferrum_array as fa
from ferrum_array import Tensor
from ferrum_ops.checks import alike, count, describe, floating, instance, integers
from ferrum_ops.registry import Op

__all__ = ["RoutePlan", "expert_ids", "ids_in_range", "moe_permute", "moe_plan"]

_MOE_PLAN: Op[RoutePlan] = Op("moe_plan")
_MOE_PERMUTE: Op[Tensor] = Op("moe_permute")


@dataclass(frozen=True, eq=False)
class RoutePlan:
    """Where the choices of T tokens, k each, lie when they are sorted by expert: ``moe_plan`` makes it.

    A choice has the number t * k + j: the j-th of token t. Sorted rows begin with those of expert 0 and keep the order
    of the choices within an expert. All three tensors are int64, on one device.

    Attributes:
        order: [R]: the choice that each sorted row belongs to, or -1 for a row that only fills a block.
        inverse: [..., k]: the sorted row of each choice.
        offsets: [E + 1]: the rows of expert e are ``offsets[e]`` to ``offsets[e + 1]``. Rows from ``offsets[E]`` on
            belong to nobody.
        block: each of the offsets is a multiple of it.

    Raises:
        TypeError: for tensors that are not int64. ValueError: for shapes that do not fit, or different devices.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_ops import moe_plan
        >>> plan = moe_plan(fa.asarray([[1, 0], [1, 2]]), 4)
        >>> plan.order, plan.offsets
        (Tensor([1, 0, 2, 3]), Tensor([0, 1, 3, 4, 4]))
    """

    order: Tensor
    inverse: Tensor
    offsets: Tensor
    block: int = 1

    def __post_init__(self) -> None:
        for what, x in (("order", self.order), ("inverse", self.inverse), ("offsets", self.offsets)):
            integers("RoutePlan", what, x)
            if x.dtype is not fa.int64:
                raise TypeError(f"RoutePlan: {what} must be int64, got {describe(x)}")
            alike("RoutePlan", self.order, what, x)
        if self.order.ndim != 1 or not self.inverse.ndim or self.offsets.ndim != 1 or not self.offsets.size:
            raise ValueError(
                "RoutePlan: order must be [R], inverse [..., k] and offsets [E + 1], "
                f"got {describe(self.order)}, {describe(self.inverse)} and {describe(self.offsets)}"
            )

    @property
    def rows(self) -> int:
        """R: how many sorted rows there are, with those that belong to nobody."""
        return self.order.shape[0]

    @property
    def experts(self) -> int:
        """E: how many experts there are."""
        return self.offsets.shape[0] - 1

    @property
    def k(self) -> int:
        """How many experts each token has."""
        return self.inverse.shape[-1]


def moe_plan(ids: Tensor, E: int, *, block: int = 1) -> RoutePlan:
    """The plan that sorts the choices *ids* [..., k] by expert, of *E* experts: see ``RoutePlan``.

    Every choice has its row: none is dropped, however many there are for one expert. Choices of one expert keep their
    order. An expert that nobody chose has no rows.

    Args:
        ids: integers from 0 to E - 1.
        E: how many experts there are.
        block: the rows of each expert are filled up to a multiple of it, with -1 in ``order``; for products that work
            on whole blocks. As many rows are planned as could ever be needed, S + min(E, S) * (block - 1) for S
            choices, rounded down to whole blocks, so that R does not depend on the values of *ids*.

    That ids are in range is checked by reading back their least and greatest. The reference reads back nothing else.

    Source: Gale et al., "MegaBlocks", 2022, for products without dropped tokens.

    Raises:
        TypeError: if *ids* are not integers. IndexError: for an id that is not from 0 to E - 1.
        ValueError: for an *E* or *block* below 1, and a k that is not 1 to E.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_ops import moe_plan
        >>> plan = moe_plan(fa.asarray([[1], [0], [1]]), 2, block=2)
        >>> plan.order, plan.inverse.tolist(), plan.offsets
        (Tensor([ 1, -1,  0,  2]), [[2], [0], [3]], Tensor([0, 2, 4]))
    """
    count("moe_plan", "E", E)
    count("moe_plan", "block", block)
    ids = expert_ids("moe_plan", ids, E)
    features = ("block",) if block > 1 else ()
    return _MOE_PLAN(ids.device, (fa.int64,), features, ids, E, block)


@_MOE_PLAN.reference
def _moe_plan(ids: Tensor, experts: int, block: int) -> RoutePlan:
    ids_in_range("moe_plan", ids, experts)
    choices = ids.size
    flat = ids.reshape(choices)
    numbers = fa.arange(experts + 1, device=ids.device)
    offsets = fa.searchsorted(fa.sort(flat), numbers)
    rows = choices
    if block > 1:
        rows = (choices + min(experts, choices) * (block - 1)) // block * block
        # Each expert has block - 1 fillers, of which as many as it needs are sorted in behind its choices, and the
        # rest behind everything.
        counts = offsets[1:] - offsets[:-1]
        filled = (counts + (block - 1)) // block * block
        needed = fa.arange(block - 1, device=ids.device) < (filled - counts).reshape(experts, 1)
        fillers = fa.where(needed, numbers[:experts].reshape(experts, 1), experts)
        flat = fa.concat([flat, fillers.reshape(experts * (block - 1))])
        offsets = fa.cumulative_sum(filled, include_initial=True)
    order = fa.argsort(flat)
    inverse = fa.argsort(order)[:choices].reshape(ids.shape)
    if block > 1:
        order = fa.where(order < choices, order, -1)[:rows]
    return RoutePlan(order, inverse, offsets, block)


def moe_permute(x: Tensor, plan: RoutePlan) -> Tensor:
    """The rows of *x* where the plan wants them: x [..., D] gives [R, D], its copies exact.

    A token's row stands there once for each of its choices. Rows that belong to no choice are 0.

    Raises:
        TypeError: for anything not real floating-point. ValueError: if *x* has other tokens than the plan, or lies on
        another device.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_ops import moe_permute, moe_plan
        >>> plan = moe_plan(fa.asarray([[1], [0]]), 2)
        >>> moe_permute(fa.asarray([[1.0, 2.0], [3.0, 4.0]]), plan)
        Tensor([[3., 4.],
                [1., 2.]])
    """
    floating("moe_permute", "x", x)
    instance("moe_permute", "plan", plan, RoutePlan, "moe_plan(ids, E)")
    alike("moe_permute", x, "the plan", plan.order, dtype=False)
    if not x.ndim or x.shape[:-1] != plan.inverse.shape[:-1]:
        raise ValueError(
            f"moe_permute: x must be [..., D] with the plan's tokens {plan.inverse.shape[:-1]}, got {describe(x)}"
        )
    features = ("block",) if plan.block > 1 else ()
    return _MOE_PERMUTE(x.device, (x.dtype,), features, x, plan)


@_MOE_PERMUTE.reference
def _moe_permute(x: Tensor, plan: RoutePlan) -> Tensor:
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    token = plan.order // plan.k
    if plan.block == 1:
        return fa.take(rows, token, axis=0)
    zero = fa.zeros((), dtype=x.dtype, device=x.device)
    return fa.where((token >= 0).reshape(plan.rows, 1), fa.take(rows, fa.maximum(token, 0), axis=0), zero)


def ids_in_range(op: str, ids: Tensor, experts: int) -> None:
    """Check that *ids* are from 0 to *experts* - 1, by reading back the least and the greatest.

    Not a part of what an op checks before it chooses an implementation: one that counts the ids anyway sees it then.

    Raises:
        IndexError: naming the op and both.
    """
    if ids.size:
        low, high = int(fa.min(ids)), int(fa.max(ids))
        if low < 0 or high >= experts:
            raise IndexError(f"{op}: ids run from {low} to {high}, but there are {experts} experts, counted from 0")


def expert_ids(op: str, ids: Tensor, experts: int) -> Tensor:
    """*ids* [..., k] as int64, k from 1 to *experts*."""
    integers(op, "ids", ids)
    if not ids.ndim or not 1 <= ids.shape[-1] <= experts:
        raise ValueError(f"{op}: ids must be [..., k] with k from 1 to {experts}, the experts, got {describe(ids)}")
    # the greatest of uint64 would become negative, and so remain out of range
    return ids.astype("i64", copy=False)
