"""Logits as requests want them: what is ruled out, and what becomes more or less likely."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import ferrum_array as fa
from ferrum_array import Dtype, Tensor
from ferrum_ops.checks import accumulator, alike, count, describe, finite, floating, integers
from ferrum_ops.draws import MOST, ONE, share, weights_of_logits
from ferrum_ops.registry import Op

__all__ = ["check_logits", "process_logits", "token_counts"]

_PROCESS_LOGITS: Op[Tensor] = Op("process_logits")

Number = float | Tensor


class _Rules(NamedTuple):
    mask: Tensor | None
    counts: Tensor | None
    prompt: Tensor | None
    repetition: Number
    presence: Number
    frequency: Number
    bias: Tensor | None
    temperature: Number
    top_k: int | Tensor | None
    top_p: Number | None
    min_p: Number | None


_OFF = _Rules(None, None, None, 1.0, 0.0, 0.0, None, 1.0, None, None, None)


def process_logits(
    logits: Tensor,
    *,
    mask: Tensor | None = None,
    counts: Tensor | None = None,
    prompt: Tensor | None = None,
    repetition: float | Tensor = 1.0,
    presence: float | Tensor = 0.0,
    frequency: float | Tensor = 0.0,
    bias: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    top_k: int | Tensor | None = None,
    top_p: float | Tensor | None = None,
    min_p: float | Tensor | None = None,
) -> Tensor:
    """Logits [..., V] as requests want them, in their dtype; a token that is ruled out has -inf.

    The rules apply in this order, each to what the last one left. Numbers may be tensors [...], one for each row, so
    that requests of all kinds share a batch. Everything is computed in float32 (float64 for float64) and rounded once.

    Args:
        logits: what the model gives.
        mask: booleans that broadcast to [..., V]: False rules a token out.
        counts: integers that broadcast to [..., V]: how often each token was generated so far; see ``token_counts``.
        prompt: booleans that broadcast to [..., V]: which tokens the prompt has. For *repetition* alone.
        repetition: above 0. Logits of tokens that were generated or prompted are divided by it where they are positive,
            and multiplied where they are not. Needs *counts* or *prompt*.
        presence: subtracted from the logits of tokens that were generated. Needs *counts*.
        frequency: times the count, subtracted too. Needs *counts*.
        bias: added; broadcasts to [..., V].
        temperature: divides the logits. 0 leaves the greatest alone. Rows that would leave the range of their dtype
            have their greatest logit subtracted first, which changes no probability.
        top_k: leaves the k greatest, all of them where there are fewer.
        top_p: of those that are left, the greatest, as few as have this share of the probability together. Above 0.
        min_p: of those that are left, the ones whose probability is at least this part of the greatest.

    Among equal logits *top_k*, *top_p* and a *temperature* of 0 leave those with the lowest ids, so that k are exactly
    k. *top_p* and *min_p* are computed in whole numbers (see ``ferrum_ops.draws``) and rule out the same tokens on
    every storage. Nothing is read back to the host. So the values of tensors are not checked: a row becomes NaN where
    its *repetition*, *temperature*, *top_k*, *top_p* or *min_p* is out of range, and where it has a NaN and any of the
    last three is in use; ``sample`` then gives -1.

    Source: Keskar et al., "CTRL", 2019, for repetition; Fan, Lewis and Dauphin, "Hierarchical neural story generation",
    2018, for top_k; Holtzman et al., "The curious case of neural text degeneration", 2019, for top_p; Nguyen et al.,
    "Turning up the heat: min-p sampling", 2024.

    Raises:
        TypeError: for logits or numbers that are not real, a mask that is not boolean, counts that are no integers.
        ValueError: for shapes or devices that do not fit, numbers out of range, and penalties without *counts*.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_ops import process_logits
        >>> logits = fa.asarray([[1.0, 3.0, 3.0, 2.0]])
        >>> process_logits(logits, temperature=0.5, top_k=2)
        Tensor([[-inf,   6.,   6., -inf]])
        >>> process_logits(logits, counts=fa.asarray([0, 2, 0, 1]), presence=1.0, frequency=0.5, top_p=0.5)
        Tensor([[-inf, -inf,   3., -inf]])
        >>> two = fa.concat([logits, logits])
        >>> process_logits(two, temperature=fa.asarray([0.0, 1.0]), top_k=fa.asarray([4, 3]))
        Tensor([[-inf,   3., -inf, -inf],
                [-inf,   3.,   3.,   2.]])
    """
    rules = _Rules(mask, counts, prompt, repetition, presence, frequency, bias, temperature, top_k, top_p, min_p)
    check_logits("process_logits", logits)
    _check_companions(logits, rules)
    _check_numbers(logits, rules)
    if not isinstance(top_p, Tensor) and top_p == 1.0:  # leaves all, also those too small for a whole number
        rules = rules._replace(top_p=None)
    if not isinstance(min_p, Tensor) and min_p == 0.0:
        rules = rules._replace(min_p=None)
    in_use = [isinstance(value, Tensor) or value != plain for value, plain in zip(rules, _OFF, strict=True)]
    features = tuple(name for name, use in zip(_Rules._fields, in_use, strict=True) if use)
    if any(isinstance(value, Tensor) for value in (repetition, presence, frequency, temperature, top_k, top_p, min_p)):
        features = (*features, "by_row")
    return _PROCESS_LOGITS(logits.device, (logits.dtype,), features, logits, rules)


def _check_companions(logits: Tensor, rules: _Rules) -> None:
    for what, x in (("mask", rules.mask), ("counts", rules.counts), ("prompt", rules.prompt), ("bias", rules.bias)):
        if x is None:
            continue
        if what == "bias":
            floating("process_logits", what, x)
        elif what == "counts":
            integers("process_logits", what, x)
        elif not isinstance(x, Tensor) or x.dtype is not fa.bool:
            given = describe(x) if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"process_logits: {what} must be a boolean Tensor, got {given}")
        alike("process_logits", logits, what, x, dtype=False)
        short = logits.ndim - x.ndim
        if short < 0 or any(n not in (1, m) for n, m in zip(x.shape, logits.shape[short:], strict=True)):
            raise ValueError(
                f"process_logits: {what} must broadcast to the logits {describe(logits)}, got {describe(x)}"
            )


def _check_numbers(logits: Tensor, rules: _Rules) -> None:
    for what, value, fits, range_ in (
        ("repetition", rules.repetition, lambda x: x > 0, "finite and above 0"),
        ("presence", rules.presence, lambda x: True, "finite"),
        ("frequency", rules.frequency, lambda x: True, "finite"),
        ("temperature", rules.temperature, lambda x: x >= 0, "finite and at least 0"),
        ("top_p", rules.top_p, lambda x: 0 < x <= 1, "above 0 and at most 1"),
        ("min_p", rules.min_p, lambda x: 0 <= x <= 1, "from 0 to 1"),
        ("top_k", rules.top_k, None, ""),
    ):
        if isinstance(value, Tensor):
            (integers if what == "top_k" else floating)("process_logits", what, value)
            alike("process_logits", logits, what, value, dtype=False)
            if value.shape != logits.shape[:-1]:
                raise ValueError(
                    f"process_logits: {what} must be one number, or one for each row of logits {describe(logits)}, "
                    f"got {describe(value)}"
                )
        elif value is None and what in ("top_k", "top_p", "min_p"):
            continue
        elif fits is None:
            count("process_logits", what, value)  # type: ignore[arg-type]  # it is what must be an integer
        elif not (finite("process_logits", what, value) and fits(value)):
            raise ValueError(f"process_logits: {what} must be {range_}, got {value}")
    if rules.counts is None:
        for what, value, plain in (("presence", rules.presence, 0.0), ("frequency", rules.frequency, 0.0)):
            if isinstance(value, Tensor) or value != plain:
                raise ValueError(f"process_logits: {what} needs counts, of the tokens that were generated")
        if rules.prompt is None and (isinstance(rules.repetition, Tensor) or rules.repetition != 1.0):
            raise ValueError("process_logits: repetition needs counts, prompt, or both")


@_PROCESS_LOGITS.reference
def _process_logits(logits: Tensor, rules: _Rules) -> Tensor:
    wide = accumulator(logits.dtype)
    rules = rules._replace(
        repetition=_column(rules.repetition, wide),
        presence=_column(rules.presence, wide),
        frequency=_column(rules.frequency, wide),
        temperature=_column(rules.temperature, wide),
        top_k=_column(rules.top_k, fa.int64),
        top_p=_column(rules.top_p, wide),
        min_p=_column(rules.min_p, wide),
    )
    x = logits.astype(wide, copy=False)
    if rules.mask is not None:
        x = fa.where(rules.mask, x, -math.inf)
    x = _penalised(x, rules)
    if rules.bias is not None:
        x = x + rules.bias.astype(wide, copy=False)
    temperature = rules.temperature
    if isinstance(temperature, Tensor):
        x = fa.where(
            temperature >= 0.0, _divided(x, fa.where(temperature == 0.0, 1.0, temperature), logits.dtype), math.nan
        )
    elif temperature not in (0.0, 1.0):
        x = _divided(x, float(temperature), logits.dtype)
    return _selected(x, rules).astype(logits.dtype, copy=False)


def _divided(x: Tensor, temperature: Number, dtype: Dtype) -> Tensor:
    """``x / temperature``, or ``(x - top) / temperature`` for rows that would leave the range of *dtype*."""
    least = fa.finfo(x.dtype).smallest_normal
    temperature = fa.maximum(temperature, least) if isinstance(temperature, Tensor) else max(temperature, least)
    if not isinstance(temperature, Tensor) and temperature >= 1.0:
        return x / temperature
    top = fa.max(x, axis=-1, keepdims=True)
    leaves = fa.logical_and(fa.isfinite(top), fa.abs(top) / temperature > 0.5 * fa.finfo(dtype).max)
    return (x - fa.where(leaves, top, 0.0)) / temperature


def _column(value: Any, dtype: Dtype) -> Any:
    """A tensor with one number for each row as [..., 1], and other numbers as they are."""
    return value.astype(dtype, copy=False)[..., None] if isinstance(value, Tensor) else value


def _penalised(x: Tensor, rules: _Rules) -> Tensor:
    counts, repetition, presence, frequency = rules.counts, rules.repetition, rules.presence, rules.frequency
    generated = None if counts is None else counts > 0
    if isinstance(repetition, Tensor) or repetition != 1.0:
        seen = generated
        if rules.prompt is not None:
            seen = rules.prompt if seen is None else fa.logical_or(seen, rules.prompt)
        assert seen is not None
        changed = fa.where(x > 0.0, x / repetition, x * repetition)
        if isinstance(repetition, Tensor):
            changed = fa.where(repetition > 0.0, changed, math.nan)
        x = fa.where(seen, changed, x)
    if generated is not None and (isinstance(presence, Tensor) or presence != 0.0):
        x = fa.where(generated, x - presence, x)
    if counts is not None and (isinstance(frequency, Tensor) or frequency != 0.0):
        x = fa.where(counts > 0, x - counts.astype(x.dtype) * frequency, x)
    return x


def _selected(x: Tensor, rules: _Rules) -> Tensor:
    """*x* with -inf for all that a temperature of 0, top_k, top_p and min_p leave out."""
    temperature, top_k, top_p, min_p = rules.temperature, rules.top_k, rules.top_p, rules.min_p
    by_row = isinstance(temperature, Tensor)
    if not by_row and temperature != 0.0 and top_k is top_p is min_p is None:
        return x
    top = fa.max(x, axis=-1, keepdims=True)
    valid = fa.logical_not(fa.isnan(top))
    result = x
    if by_row or temperature == 0.0:  # the first of the greatest stays, and no rule below leaves it out
        first = fa.arange(x.shape[-1], device=x.device) == fa.argmax(x, axis=-1, keepdims=True)
        stays = fa.logical_or(first, temperature != 0.0) if by_row else first
        result = fa.where(stays, result, -math.inf)
    if isinstance(top_k, Tensor):
        valid = fa.logical_and(valid, top_k >= 1)
    if isinstance(top_p, Tensor):
        fits = fa.logical_and(top_p > 0.0, top_p <= 1.0)
        valid, top_p = fa.logical_and(valid, fits), fa.where(fits, top_p, 1.0)
    if top_k is not None or top_p is not None:
        result = fa.where(_greatest(x, top, top_k, top_p), result, -math.inf)
    if isinstance(min_p, Tensor):
        fits = fa.logical_and(min_p >= 0.0, min_p <= 1.0)
        valid, min_p = fa.logical_and(valid, fits), fa.where(fits, min_p, 1.0)
    if min_p is not None:
        least = fa.ceil(min_p * float(ONE)).astype("i64") if isinstance(min_p, Tensor) else math.ceil(min_p * ONE)
        result = fa.where(weights_of_logits(x, top) >= least, result, -math.inf)
    return fa.where(valid, result, math.nan)


def _greatest(x: Tensor, top: Tensor, top_k: int | Tensor | None, top_p: Number | None) -> Tensor:
    """Which tokens top_k and then top_p leave."""
    ordered = fa.sort(x, axis=-1, descending=True)
    if isinstance(top_k, int):
        ordered = ordered[..., :top_k]
    places = fa.arange(ordered.shape[-1], device=x.device)
    left = places < top_k if isinstance(top_k, Tensor) else places >= 0
    if top_p is not None:
        weights = fa.where(left, weights_of_logits(ordered, top), 0)
        until = fa.cumulative_sum(weights, axis=-1)
        # whoever comes before the bound is needed to reach it; 1 keeps the first, however small the share
        within = until - weights < fa.maximum(share(until[..., -1:], top_p, up=True), 1)
        if isinstance(top_p, Tensor):  # all means all, also those whose weight is too small for a whole number
            within = fa.logical_or(within, top_p == 1.0)
        left = fa.logical_and(left, within)
    # Those that are left come first in order: the last of them, and how many there are, say who they are in x.
    last = fa.min(fa.where(left, ordered, math.inf), axis=-1, keepdims=True)
    above, level = x > last, x == last
    many = fa.sum(fa.broadcast_to(left, ordered.shape).astype("i64"), axis=-1, keepdims=True)
    room = many - fa.sum(above.astype("i64"), axis=-1, keepdims=True)
    return fa.logical_or(above, fa.logical_and(level, fa.cumulative_sum(level.astype("i64"), axis=-1) <= room))


def token_counts(ids: Tensor, V: int) -> Tensor:
    """How often each of *V* tokens is among the ids [..., L]: [..., V], int64, for ``process_logits``.

    Negative ids stand for nothing, so that texts of all lengths fit into one tensor. That the others are below V is
    checked by reading back the greatest. For a token more, add ``ferrum_array.one_hot`` of it.

    Raises:
        TypeError: for ids that are no integers. IndexError: for an id that is not below V. ValueError: for a *V* below
        1, or ids without an axis.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_ops import token_counts
        >>> token_counts(fa.asarray([[2, 0, 2], [1, -1, -1]]), 3)
        Tensor([[1, 0, 2],
                [0, 1, 0]])
    """
    count("token_counts", "V", V)
    integers("token_counts", "ids", ids)
    if not ids.ndim:
        raise ValueError(f"token_counts: ids must be [..., L], got {describe(ids)}")
    if ids.size and (high := int(fa.max(ids))) >= V:
        raise IndexError(f"token_counts: the greatest of the ids is {high}, but there are {V} tokens, counted from 0")
    shape = ids.shape[:-1]
    rows = math.prod(shape)
    first = fa.arange(rows, device=ids.device)[:, None] * V
    ids = ids.astype("i64", copy=False).reshape(rows, ids.shape[-1])
    # rows one after another: how many ids lie below each bound
    numbers = fa.sort(fa.where(ids < 0, rows * V, ids + first).reshape(ids.size))
    below = fa.searchsorted(numbers, fa.arange(rows * V + 1, device=ids.device))
    return (below[1:] - below[:-1]).reshape(*shape, V)


def check_logits(op: str, logits: Tensor) -> None:
    """What every op on logits demands of them.

    Raises:
        TypeError: if they are not real floating-point. ValueError: for no tokens, or more than can be drawn from.
    """
    floating(op, "logits", logits)
    tokens = logits.shape[-1] if logits.ndim else 0
    if not 1 <= tokens <= MOST:
        raise ValueError(f"{op}: logits must be [..., V] with 1 to {MOST} tokens, got {describe(logits)}")
