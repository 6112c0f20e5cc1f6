"""From logits to tokens."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, overload

import ferrum_array as fa
from ferrum_array import Tensor
from ferrum_ops.checks import accumulator, alike, count, describe, floating
from ferrum_ops.draws import draw, weights_of_logits
from ferrum_ops.logits import check_logits
from ferrum_ops.registry import Op

__all__ = ["Sampled", "sample"]

#: up to so many of the likeliest are found one by one, which is faster than to sort all
_FEW = 32


class Sampled(NamedTuple):
    """Tokens with the logarithms of their probabilities; see ``sample``.

    Attributes:
        ids: [...], int64: the token of each row, or -1.
        logprobs: [...]: that of the token, in float32 (float64 for float64).
        top_ids: [..., n], int64: the likeliest tokens, in order; of equals the lower comes first.
        top_logprobs: [..., n]: theirs.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_ops import Sampled, sample
        >>> isinstance(sample(fa.zeros(4), logprobs=2), Sampled)
        True
    """

    ids: Tensor
    logprobs: Tensor
    top_ids: Tensor
    top_logprobs: Tensor


_SAMPLE: Op[Tensor | Sampled] = Op("sample")


@overload
def sample(logits: Tensor, u: Tensor | None = None, *, logprobs: Literal[0] = 0) -> Tensor: ...


@overload
def sample(
    logits: Tensor, u: Tensor | None = None, *, logprobs: int, model: Tensor | None = None
) -> Tensor | Sampled: ...


def sample(
    logits: Tensor, u: Tensor | None = None, *, logprobs: int = 0, model: Tensor | None = None
) -> Tensor | Sampled:
    """A token for each row of logits [..., V]: ids [...], int64.

    Args:
        logits: their exponentials are in proportion to the probabilities; -inf is never drawn.
        u: [...], numbers from 0 to below 1, of any real floating dtype, as a random generator makes them. The token is
            the first whose probability, with those of all lower ids, exceeds u. Without it: the token of the greatest
            logit, the lowest of equals.
        logprobs: if it is not 0, the answer is a ``Sampled``, with the logarithm of the token's probability and those
            of the so many likeliest.
        model: [..., V], like *logits*: those whose probabilities *logprobs* tells, where *logits* are what rules have
            left of them; *logits* themselves if absent.

    The same logits and the same u give the same token on every storage, because the sums are made of whole numbers:
    ``ferrum_ops.draws`` has the method and the error. Nothing is read back to the host. A row gives the id -1 and NaN
    for logarithms where it has a NaN or nothing above -inf, and the id -1 where its u is not from 0 to below 1. Where
    logits are +inf, those share the probability.

    Source: Devroye, "Non-uniform random variate generation", 1986, section III.2, for the inversion.

    Raises:
        TypeError: for logits or u that are not real floating-point. ValueError: for shapes or devices that do not fit,
        an empty row, or *logprobs* out of range.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_ops import sample
        >>> logits = fa.log(fa.asarray([[0.25, 0.0, 0.75]] * 3))
        >>> sample(logits), sample(logits, fa.asarray([0.0, 0.24, 0.25]))
        (Tensor([2, 2, 2]), Tensor([0, 0, 2]))
        >>> sample(fa.zeros(4), logprobs=2).top_ids
        Tensor([0, 1])
    """
    check_logits("sample", logits)
    if u is not None:
        floating("sample", "u", u)
        alike("sample", logits, "u", u, dtype=False)
        if u.shape != logits.shape[:-1]:
            raise ValueError(
                f"sample: u must have one number for each row of logits {describe(logits)}, got {describe(u)}"
            )
    if logprobs:
        count("sample", "logprobs", logprobs, logits.shape[-1], f"the tokens of logits {describe(logits)}")
    if model is not None:
        floating("sample", "model", model)
        alike("sample", logits, "model", model)
        if model.shape != logits.shape:
            raise ValueError(f"sample: model must have the shape of logits {describe(logits)}, got {describe(model)}")
        if not logprobs:
            raise ValueError("sample: model says whose logprobs are told, which are not asked for; write logprobs=1")
    features = (
        *(("u",) if u is not None else ()),
        *(("logprobs",) if logprobs else ()),
        *(("model",) if model is not None else ()),
    )
    return _SAMPLE(logits.device, (logits.dtype,), features, logits, u, int(logprobs), model)


@_SAMPLE.reference
def _sample(logits: Tensor, u: Tensor | None, logprobs: int, model: Tensor | None) -> Tensor | Sampled:
    x = logits.astype(accumulator(logits.dtype), copy=False)
    top = fa.max(x, axis=-1, keepdims=True)
    any_token = top > -math.inf  # no NaN is
    ids = fa.argmax(x, axis=-1) if u is None else draw(weights_of_logits(x, top), u)
    ids = fa.where(any_token[..., 0], ids, -1)
    if not logprobs:
        return ids
    if model is not None:
        x = model.astype(accumulator(model.dtype), copy=False)
        top = fa.max(x, axis=-1, keepdims=True)
        any_token = top > -math.inf
    total = fa.log(fa.sum(fa.exp(_below(x, top)), axis=-1, keepdims=True))
    chosen = fa.arange(x.shape[-1], device=x.device) == ids[..., None]
    own = fa.sum(fa.where(chosen, _below(x, top) - total, 0.0), axis=-1)
    best, values = _likeliest(x, logprobs)
    return Sampled(
        ids,
        fa.where(fa.logical_and(ids >= 0, any_token[..., 0]), own, math.nan),
        best,
        fa.where(any_token, _below(values, top) - total, math.nan),
    )


def _below(x: Tensor, top: Tensor) -> Tensor:
    """``x - top``, which is 0 where both are infinite."""
    return fa.where(x == top, 0.0, x - top)


def _likeliest(x: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The ids and the values of the *n* greatest, in order."""
    if n > _FEW:
        best = fa.argsort(x, axis=-1, descending=True)[..., :n]
        return best, fa.sort(x, axis=-1, descending=True)[..., :n]
    places = fa.arange(x.shape[-1], device=x.device)
    values = [fa.max(x, axis=-1, keepdims=True)]
    ids = [fa.argmax(x, axis=-1, keepdims=True)]
    for _ in range(1, n):  # what comes after the last: a smaller one, or an equal one at a higher place
        value, place = values[-1], ids[-1]
        after = fa.logical_or(x < value, fa.logical_and(x == value, places > place))
        rest = fa.where(after, x, -math.inf)
        values.append(fa.max(rest, axis=-1, keepdims=True))
        found = fa.logical_and(after, rest == values[-1])
        ids.append(fa.argmax(found.astype("u8"), axis=-1, keepdims=True))
    return fa.concat(ids, axis=-1), fa.concat(values, axis=-1)
