"""Routing: which experts of a mixture each token goes to, and with what weights."""

from __future__ import annotations

import math
from typing import Literal

import ferrum_array as fa
from ferrum_array import Tensor
from ferrum_array.indexing import take_along_known
from ferrum_ops.checks import accumulator, alike, count, describe, finite, floating
from ferrum_ops.registry import Op

__all__ = ["moe_route"]

_MOE_ROUTE: Op[tuple[Tensor, Tensor]] = Op("moe_route")


def moe_route(
    logits: Tensor,
    k: int,
    *,
    score: Literal["softmax", "sigmoid"] = "softmax",
    norm: bool = True,
    bias: Tensor | None = None,
    n_group: int = 1,
    topk_group: int = 1,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """The *k* experts of each token and their weights: logits [..., E] give ids [..., k], int64, and weights [..., k].

    Weights come in the dtype of *logits*, computed in float32 (float64 for float64) and rounded once; convert the
    logits for wider ones. The first id has the highest score; where scores are equal the lower id comes first.

    Args:
        logits: the router's output.
        k: how many experts, 1 to E (with groups: to the experts of *topk_group* groups).
        score: ``softmax`` over all E experts, or the ``sigmoid`` of each logit.
        norm: the weights of the chosen are divided by their sum.
        bias: [E], added to the scores for the choice; weights are without it.
        n_group: the experts form so many groups of neighbours; E must be a multiple of it.
        topk_group: only the best so many groups are chosen from. A group is as good as the sum of its two highest
            scores, bias included; of equal groups the lower comes first.
        scale: a factor of the weights, after *norm*.

    Without a bias the choice compares the logits themselves, which order experts as the scores do, and do not round
    two of them to one. A NaN counts as the greatest, and a token with a NaN among its logits has weights of NaN. With
    *norm* the weights sum to *scale* for all finite logits, however small the scores are.

    =================================  ==========================================================================
    Mixtral, Qwen3-MoE, gpt-oss        the defaults: a softmax over the chosen logits alone, as in gpt-oss, equals
                                       the normalised softmax over all
    Qwen3-MoE, norm_topk_prob false    ``norm=False``
    DeepSeek-V3                        ``score="sigmoid"``, ``bias``, ``n_group``, ``topk_group`` and ``scale``
    =================================  ==========================================================================

    A bias of the router's linear layer, as in gpt-oss, is part of the logits.

    Source: Shazeer et al., "Outrageously large neural networks", 2017; DeepSeek-AI, "DeepSeek-V3", 2024.

    Raises:
        TypeError: for anything not real floating-point. ValueError: for an unknown *score*, a *k* out of range, shapes
        or devices that do not fit, groups that do not divide the experts, and a *scale* that is not finite.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_ops import moe_route
        >>> moe_route(fa.asarray([[0.0, 2.0, 2.0, -1.0]]), 2)
        (Tensor([[1, 2]]), Tensor([[0.5, 0.5]]))
    """
    floating("moe_route", "logits", logits)
    experts = logits.shape[-1] if logits.ndim else 0
    if not experts:
        raise ValueError(f"moe_route: logits must be [..., E] with at least one expert, got {describe(logits)}")
    if score not in ("softmax", "sigmoid"):
        raise ValueError(f"moe_route: score must be 'softmax' or 'sigmoid', got {score!r}")
    count("moe_route", "k", k, experts, f"the experts of logits {describe(logits)}")
    count("moe_route", "n_group", n_group, experts, f"the experts of logits {describe(logits)}")
    count("moe_route", "topk_group", topk_group, n_group, "n_group")
    if experts % n_group:
        raise ValueError(f"moe_route: {experts} experts do not form n_group={n_group} groups of one size")
    if k > topk_group * (experts // n_group):
        raise ValueError(
            f"moe_route: k={k} experts are not in topk_group={topk_group} of n_group={n_group} groups "
            f"of {experts // n_group}"
        )
    if bias is not None:
        floating("moe_route", "bias", bias)
        alike("moe_route", logits, "bias", bias, dtype=False)
        if bias.shape != (experts,):
            raise ValueError(f"moe_route: bias must have shape ({experts},), got {describe(bias)}")
    if not finite("moe_route", "scale", scale):
        raise ValueError(f"moe_route: scale must be finite, got {scale}")
    features = (
        score,
        *(("norm",) if norm else ()),
        *(("bias",) if bias is not None else ()),
        *(("groups",) if topk_group < n_group else ()),
        *(("scale",) if scale != 1.0 else ()),
    )
    return _MOE_ROUTE(
        logits.device, (logits.dtype,), features, logits, k, score, bool(norm), bias, n_group, topk_group, float(scale)
    )


@_MOE_ROUTE.reference
def _moe_route(
    logits: Tensor, k: int, score: str, norm: bool, bias: Tensor | None, n_group: int, topk_group: int, scale: float
) -> tuple[Tensor, Tensor]:
    x = logits.astype(accumulator(logits.dtype), copy=False)
    grouped = topk_group < n_group
    scores = _scores(x, score) if bias is not None or grouped else x
    if bias is not None:
        scores = scores + bias.astype(x.dtype, copy=False)
    ids = fa.argsort(x if bias is None else scores, descending=True)
    if grouped:  # the experts of the chosen groups come to the front, in their order
        outside = _outside_best_groups(scores, n_group, topk_group)
        ids = take_along_known(ids, fa.argsort(take_along_known(outside, ids)))
    ids = ids[..., :k]
    # The highest of the logits that are added up becomes 0, so that the sum neither vanishes nor overflows.
    chosen = take_along_known(x, ids)
    if score == "softmax":
        summed = chosen if norm else x
        top = fa.max(summed, axis=-1, keepdims=True)
        weights = fa.exp(chosen - top)
        weights /= fa.sum(weights if norm else fa.exp(x - top), axis=-1, keepdims=True)
    elif norm:
        low = fa.minimum(chosen, 0.0)
        weights = fa.exp(low - fa.max(low, axis=-1, keepdims=True)) / (fa.exp(-fa.abs(chosen)) + 1.0)
        weights /= fa.sum(weights, axis=-1, keepdims=True)
    else:
        weights = _scores(chosen, score)
    bad = fa.any(fa.isnan(x), axis=-1, keepdims=True)
    return ids, fa.where(bad, math.nan, weights * scale).astype(logits.dtype, copy=False)


def _scores(x: Tensor, score: str) -> Tensor:
    if score == "sigmoid":
        return 1.0 / (fa.exp(-x) + 1.0)
    e = fa.exp(x - fa.max(x, axis=-1, keepdims=True))
    return e / fa.sum(e, axis=-1, keepdims=True)


def _outside_best_groups(scores: Tensor, n_group: int, topk_group: int) -> Tensor:
    """1 for each expert that is in none of the chosen groups, and 0 for the others."""
    size = scores.shape[-1] // n_group
    best = fa.sort(scores.reshape(*scores.shape[:-1], n_group, size), axis=-1, descending=True)[..., :2]
    place = fa.argsort(fa.argsort(fa.sum(best, axis=-1), descending=True))  # of each group, the best has 0
    return fa.repeat((place >= topk_group).astype("u8"), size, axis=-1)
