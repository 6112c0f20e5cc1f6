"""Tokens that a cheaper model proposed, accepted so that the distribution stays that of the model itself."""

from __future__ import annotations

from typing import NamedTuple

import ferrum_array as fa
from ferrum_array import Tensor
from ferrum_ops.checks import accumulator, alike, describe, floating, integers
from ferrum_ops.draws import MOST, draw, weights_of_probabilities
from ferrum_ops.registry import Op

__all__ = ["Verified", "spec_verify"]


class Verified(NamedTuple):
    """What became of the drafts; see ``spec_verify``.

    Attributes:
        ids: [..., K + 1], int64: the accepted drafts, then one token from the model, then -1.
        accepted: [...], int64: how many drafts were accepted, 0 to K.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_ops import spec_verify
        >>> p = fa.asarray([[0.0, 1.0], [1.0, 0.0]])
        >>> spec_verify(p, None, fa.asarray([1]), fa.asarray([0.5, 0.5])).accepted
        Tensor(1)
    """

    ids: Tensor
    accepted: Tensor


_SPEC_VERIFY: Op[Verified] = Op("spec_verify")


def spec_verify(target_p: Tensor, draft_p: Tensor | None, draft_ids: Tensor, u: Tensor) -> Verified:
    """Accepts drafts as long as the model agrees, and draws one token more.

    Shapes: target_p [..., K + 1, V], draft_p [..., K, V], draft_ids [..., K] and u [..., K + 1] give ids [..., K + 1].
    At place i, p is the model's distribution after the drafts before i, and q that from which draft x was drawn. The
    draft is accepted where ``u[i] * q(x) < p(x)``. The first one that is not is replaced by a token of the
    distribution in proportion to ``max(p - q, 0)``; if all are accepted, one of the last p follows them. That token is
    drawn with ``u[K]``, as ``sample`` draws.

    So the text has the distribution of the model alone. For a token y at one place: it is drafted and accepted with
    probability q(y) min(1, p(y) / q(y)) = min(p(y), q(y)). Some draft is refused with probability
    1 - sum min(p, q) = sum max(p - q, 0), and then y comes with max(p(y) - q(y), 0) over that sum. Both together are
    min(p(y), q(y)) + max(p(y) - q(y), 0) = p(y).

    Args:
        target_p: probabilities of the model, which sum to 1.
        draft_p: those from which the drafts were drawn, of any real floating dtype; None for drafts that were certain,
            as those of a search in the text: then q is 1 for the draft.
        draft_ids: the drafts. An id outside of 0 to V - 1, such as -1, stands for no draft: the place gets a token of
            p, and the drafts behind it are dropped. So sequences with fewer drafts share a batch.
        u: independent numbers from 0 to below 1, of any real floating dtype.

    Probabilities are compared in float32 (float64 where *target_p* is); the token is drawn from whole numbers, so that
    every storage gives the same. Nothing is read back to the host, so that values are not checked: where the first
    place without an accepted draft has a NaN among its p or q, or a *u* that is not from 0 to below 1, the token is -1
    (and a draft whose u is not is refused). Where all of max(p - q, 0) is 0 although a draft
    was refused, which exact sums of 1 rule out and rounded ones do not, the token is drawn from p.

    Source: Leviathan, Kalman and Matias, "Fast inference from transformers via speculative decoding", 2022; Chen et
    al., "Accelerating large language model decoding with speculative sampling", 2023.

    Raises:
        TypeError: for probabilities or u that are not real floating-point, or ids that are no integers. ValueError: for
        shapes or devices that do not fit.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_ops import spec_verify
        >>> p = fa.asarray([[0.5, 0.5, 0.0], [0.1, 0.2, 0.7], [0.0, 1.0, 0.0]])
        >>> q = fa.asarray([[0.5, 0.25, 0.25], [0.8, 0.1, 0.1]])
        >>> spec_verify(p, q, fa.asarray([0, 0]), fa.asarray([0.9, 0.1, 0.5]))
        Verified(ids=Tensor([0, 0, 1]), accepted=Tensor(2))
        >>> spec_verify(p, q, fa.asarray([2, 0]), fa.asarray([0.0, 0.1, 0.5]))
        Verified(ids=Tensor([ 1, -1, -1]), accepted=Tensor(0))
    """
    op = "spec_verify"
    floating(op, "target_p", target_p)
    if draft_p is not None:
        floating(op, "draft_p", draft_p)
    integers(op, "draft_ids", draft_ids)
    floating(op, "u", u)
    for what, x in (("draft_p", draft_p), ("draft_ids", draft_ids), ("u", u)):
        if x is not None:
            alike(op, target_p, what, x, dtype=False)
    if target_p.ndim < 2 or not target_p.shape[-2] or not 1 <= target_p.shape[-1] <= MOST:
        raise ValueError(f"{op}: target_p must be [..., K + 1, V] with 1 to {MOST} tokens, got {describe(target_p)}")
    *leading, places, tokens = target_p.shape
    for what, x, want in (
        ("draft_p", draft_p, (*leading, places - 1, tokens)),
        ("draft_ids", draft_ids, (*leading, places - 1)),
        ("u", u, (*leading, places)),
    ):
        if x is not None and x.shape != want:
            raise ValueError(
                f"{op}: {what} must have shape {want} for target_p {describe(target_p)}, got {describe(x)}"
            )
    features = ("certain",) if draft_p is None else ()
    return _SPEC_VERIFY(target_p.device, (target_p.dtype,), features, target_p, draft_p, draft_ids, u)


@_SPEC_VERIFY.reference
def _spec_verify(target_p: Tensor, draft_p: Tensor | None, draft_ids: Tensor, u: Tensor) -> Verified:
    wide = accumulator(target_p.dtype)
    p = target_p.astype(wide, copy=False)
    *leading, places, tokens = p.shape
    k = places - 1
    ids = draft_ids.astype("i64", copy=False)
    drafted = fa.arange(tokens, device=p.device) == ids[..., None]  # [..., K, V]; nowhere true for no draft
    if draft_p is None:
        q = drafted.astype(wide)
    else:  # without a draft there is nothing that a token must make up for
        q = fa.where(fa.any(drafted, axis=-1, keepdims=True), draft_p.astype(wide, copy=False), 0.0)
    p_draft, q_draft = (fa.sum(fa.where(drafted, x, 0.0), axis=-1) for x in (p[..., :k, :], q))
    fits = fa.logical_and(u >= 0.0, u < 1.0)
    # u may be rounded up to 1, but where p is not below q every u accepts
    agreed = fa.logical_or(u[..., :k].astype(wide, copy=False) * q_draft < p_draft, q_draft <= p_draft)
    agreed = fa.logical_and(fa.logical_and(agreed, p_draft > 0.0), fits[..., :k])
    accepted = fa.sum(fa.cumulative_prod(agreed.astype("i64"), axis=-1), axis=-1)

    # One token more, from what is left of p at the first place that has no accepted draft.
    place = fa.arange(places, device=p.device)
    follows = place == accepted[..., None]
    here = follows[..., None]
    p_here = fa.sum(fa.where(here, p, 0.0), axis=-2)
    rest = fa.maximum(p_here - fa.sum(fa.where(here[..., :k, :], q, 0.0), axis=-2), 0.0)
    most = fa.max(rest, axis=-1)
    token = draw(weights_of_probabilities(fa.where(most[..., None] > 0.0, rest, p_here)), u[..., k])
    sound = fa.logical_and(fa.isfinite(most), fa.any(fa.logical_and(follows, fits), axis=-1))
    token = fa.where(sound, token, -1)[..., None]

    ids = fa.concat([ids, fa.full((*leading, 1), -1, dtype="i64", device=p.device)], axis=-1)
    return Verified(fa.where(place < accepted[..., None], ids, fa.where(follows, token, -1)), accepted)
