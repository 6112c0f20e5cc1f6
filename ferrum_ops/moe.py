"""Mixtures of experts: the work of the experts that tokens were routed to, with no token dropped.

A plan sorts the choices by expert (``moe_plan``), so that each expert meets its rows side by side; rows are copied
there (``moe_permute``), go through the experts (``grouped_linear``), and are added up for their tokens
(``moe_combine``). ``moe_ffn`` is all of this.
"""

from __future__ import annotations

from itertools import pairwise

import ferrum_array as fa
from ferrum_array import Tensor
from ferrum_ops.activation import ActivationKind, gate_features, gated_activation
from ferrum_ops.checks import Shaped, accumulator, alike, describe, floating, instance, integers
from ferrum_ops.gemm import linear, weights
from ferrum_ops.moe_planning import RoutePlan, expert_ids, ids_in_range, moe_permute, moe_plan
from ferrum_ops.quant.tensor import QuantTensor
from ferrum_ops.registry import Op

__all__ = ["grouped_linear", "moe_combine", "moe_ffn", "offsets_in_order"]

_GROUPED_LINEAR: Op[Tensor] = Op("grouped_linear")
_MOE_COMBINE: Op[Tensor] = Op("moe_combine")
_MOE_FFN: Op[Tensor] = Op("moe_ffn")


def grouped_linear(x: Tensor, w: Tensor | QuantTensor, offsets: Tensor, bias: Tensor | None = None) -> Tensor:
    """``linear`` with the weights of the row's expert: x [R, K], w [E, N, K], bias [E, N] give [R, N].

    The rows of expert e are ``offsets[e]`` to ``offsets[e + 1]``, for offsets [E + 1] that begin with 0 and never
    decrease. Rows from ``offsets[E]`` on belong to nobody and give 0. Sums, *bias*, rounding and
    quantised weights are as in ``linear``.

    The reference reads the offsets back, once, and makes one product for each expert that has rows; other
    implementations may leave the offsets where they are, and then do not check them.

    Source: as for ``moe_plan``.

    Raises:
        TypeError: if *x* and a dense *w* differ in dtype, anything else is not real floating-point, or *offsets* are
        not integers. ValueError: for shapes, offsets or devices that do not fit.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_ops import grouped_linear
        >>> w = fa.asarray([[[1.0, 1.0]], [[0.0, 2.0]]])
        >>> grouped_linear(fa.asarray([[1.0, 2.0], [3.0, 4.0]]), w, fa.asarray([0, 1, 2]))
        Tensor([[3.],
                [8.]])
    """
    floating("grouped_linear", "x", x)
    quantised = weights("grouped_linear", "w", x, w)
    if x.ndim != 2 or w.ndim != 3 or x.shape[1] != w.shape[2]:
        raise ValueError(
            f"grouped_linear: x must be [R, K] and w [E, N, K] with one K, got {describe(x)} and {describe(w)}"
        )
    integers("grouped_linear", "offsets", offsets)
    alike("grouped_linear", x, "offsets", offsets, dtype=False)
    if offsets.shape != (w.shape[0] + 1,):
        raise ValueError(
            f"grouped_linear: offsets must have shape ({w.shape[0] + 1},) for w {describe(w)}, got {describe(offsets)}"
        )
    features = (*quantised, *_biases("grouped_linear", x, ("bias", bias, w)))
    return _GROUPED_LINEAR(x.device, (x.dtype,), features, x, w, offsets.astype("i64", copy=False), bias)


@_GROUPED_LINEAR.reference
def _grouped_linear(x: Tensor, w: Tensor | QuantTensor, offsets: Tensor, bias: Tensor | None) -> Tensor:
    bounds = offsets_in_order(x, offsets)
    parts = [
        linear(x[start:stop], w[e], None if bias is None else bias[e])
        for e, (start, stop) in enumerate(pairwise(bounds))
        if start < stop
    ]
    if not parts or bounds[-1] < x.shape[0]:
        parts.append(fa.zeros((x.shape[0] - bounds[-1], w.shape[1]), dtype=x.dtype, device=x.device))
    return parts[0] if len(parts) == 1 else fa.concat(parts)


def moe_combine(y: Tensor, plan: RoutePlan, w: Tensor, *, residual: Tensor | None = None) -> Tensor:
    """The weighted sum of each token's rows: y [R, D] and w [..., k] give [..., D] in the dtype of *y*.

    Sums begin with *residual* [..., D], where there is one, go on in the order of the choices, and are taken in float32
    (float64 for float64) and rounded once; *w* and *residual* may be of any real floating dtype. The bits of a token's
    result do not depend on the other tokens.

    Raises:
        TypeError: for anything not real floating-point. ValueError: for shapes or devices that do not fit.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_ops import moe_combine, moe_permute, moe_plan
        >>> plan = moe_plan(fa.asarray([[1, 0], [0, 2]]), 3)
        >>> y = moe_permute(fa.asarray([[1.0], [2.0]]), plan)
        >>> moe_combine(y, plan, fa.asarray([[0.25, 0.75], [0.5, 0.0]]))
        Tensor([[1.],
                [1.]])
    """
    floating("moe_combine", "y", y)
    instance("moe_combine", "plan", plan, RoutePlan, "moe_plan(ids, E)")
    alike("moe_combine", y, "the plan", plan.order, dtype=False)
    if y.ndim != 2 or y.shape[0] != plan.rows:
        raise ValueError(f"moe_combine: y must be [{plan.rows}, D], one row for each of the plan, got {describe(y)}")
    floating("moe_combine", "w", w)
    alike("moe_combine", y, "w", w, dtype=False)
    if w.shape != plan.inverse.shape:
        raise ValueError(f"moe_combine: w must have the plan's shape {plan.inverse.shape}, got {describe(w)}")
    features: tuple[str, ...] = ()
    if residual is not None:
        floating("moe_combine", "residual", residual)
        alike("moe_combine", y, "residual", residual, dtype=False)
        want = (*plan.inverse.shape[:-1], y.shape[1])
        if residual.shape != want:
            raise ValueError(f"moe_combine: residual must have shape {want}, got {describe(residual)}")
        features = ("residual",) if residual.dtype is y.dtype else ("residual", "mixed")
    return _MOE_COMBINE(y.device, (y.dtype,), features, y, plan, w.astype(accumulator(y.dtype), copy=False), residual)


@_MOE_COMBINE.reference
def _moe_combine(y: Tensor, plan: RoutePlan, w: Tensor, residual: Tensor | None) -> Tensor:
    shape = (*plan.inverse.shape[:-1], y.shape[1])
    total = fa.zeros(shape, dtype=w.dtype, device=y.device) if residual is None else residual.astype(w.dtype)
    rows = fa.take(y, plan.inverse, axis=0)
    for j in range(plan.k):
        total += rows[..., j, :].astype(w.dtype, copy=False) * w[..., j : j + 1]
    return total.astype(y.dtype, copy=False)


def moe_ffn(
    x: Tensor,
    w13: Tensor | QuantTensor,
    w2: Tensor | QuantTensor,
    ids: Tensor,
    w: Tensor,
    *,
    kind: ActivationKind = "silu",
    b13: Tensor | None = None,
    b2: Tensor | None = None,
    limit: float | None = None,
    alpha: float = 1.0,
    up_offset: float = 0.0,
) -> Tensor:
    """The feed-forward network of a mixture of experts: x [..., K] gives [..., N] in its dtype.

    For each token the sum over its k experts e, with weights w, of ``gated_activation(gate, up, kind) @ w2[e].T``,
    where gate and up are the two halves of ``x @ w13[e].T``. It equals ``moe_plan``, ``moe_permute``,
    ``grouped_linear``, ``gated_activation``, ``grouped_linear`` and ``moe_combine`` one after another, each of which
    rounds its result to the dtype of *x*; an implementation may leave out the roundings in between.

    Args:
        x: tokens.
        w13: [E, 2 * I, K], the gate's half first; it may be quantised.
        w2: [E, N, I]; it may be quantised, whether or not *w13* is.
        ids: [..., k], the experts of each token, as ``moe_route`` gives them.
        w: [..., k], their weights, of any real floating dtype.
        kind: the activation.
        b13: [E, 2 * I], added before the activation; in the dtype of *x* or that of its sums.
        b2: [E, N], added before the weighted sum; the same.
        limit: with alpha and up_offset as in ``gated_activation``.
        alpha: the same.
        up_offset: the same.

    Whether the ids are in range is checked by reading back their least and greatest. Kernels on a CUDA device do not
    read back: there a token with an id out of range becomes NaN, and ``FERRUM_CUDA_DEBUG=1`` asks for the error.

    Source: Shazeer et al., "Outrageously large neural networks", 2017; Jiang et al., "Mixtral of experts", 2024.

    Raises:
        TypeError: if *x* and a dense *w13* or *w2* differ in dtype, anything else is not real floating-point, or
        *ids* are not integers. IndexError: for an id that is not from 0 to E - 1. ValueError: for shapes or devices
        that do not fit, a k that is not 1 to E, and parameters that ``gated_activation`` refuses.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_ops import moe_ffn
        >>> w13, w2 = fa.asarray([[[1.0], [2.0]], [[1.0], [3.0]]]), fa.ones((2, 1, 1))
        >>> moe_ffn(fa.asarray([[1.0], [2.0]]), w13, w2, fa.asarray([[0], [1]]), fa.ones((2, 1)), kind="relu")
        Tensor([[ 2.],
                [12.]])
    """
    floating("moe_ffn", "x", x)
    quantised: list[str] = []
    for what, matrices in (("w13", w13), ("w2", w2)):
        quantised += [f"{what}:{feature}" for feature in weights("moe_ffn", what, x, matrices)]
        if matrices.ndim != 3:
            raise ValueError(f"moe_ffn: {what} must have three axes, experts first, got {describe(matrices)}")
    given = f"got x {describe(x)}, w13 {describe(w13)}, w2 {describe(w2)}"
    if not x.ndim or x.shape[-1] != w13.shape[2]:
        raise ValueError(f"moe_ffn: x [..., K] and w13 [E, 2 I, K] must share K; {given}")
    if w13.shape[0] != w2.shape[0] or w13.shape[1] != 2 * w2.shape[2]:
        raise ValueError(f"moe_ffn: w13 [E, 2 I, K] and w2 [E, N, I] must share E and I; {given}")
    ids = expert_ids("moe_ffn", ids, w13.shape[0])
    floating("moe_ffn", "w", w)
    for what, routed in (("ids", ids), ("w", w)):
        alike("moe_ffn", x, what, routed, dtype=False)
        if routed.shape != (*x.shape[:-1], ids.shape[-1]):
            raise ValueError(
                f"moe_ffn: {what} must be {x.shape[:-1]} and k, as x {describe(x)}, got {describe(routed)}"
            )
    features = (
        *quantised,
        *gate_features("moe_ffn", kind, limit, alpha, up_offset),
        *_biases("moe_ffn", x, ("b13", b13, w13), ("b2", b2, w2)),
    )
    w = w.astype(accumulator(x.dtype), copy=False)
    return _MOE_FFN(x.device, (x.dtype,), features, x, w13, w2, ids, w, kind, b13, b2, limit, alpha, up_offset)


@_MOE_FFN.reference
def _moe_ffn(
    x: Tensor, w13: Tensor | QuantTensor, w2: Tensor | QuantTensor, ids: Tensor, w: Tensor, kind: ActivationKind,
    b13: Tensor | None, b2: Tensor | None, limit: float | None, alpha: float, up_offset: float,
) -> Tensor:  # fmt: skip
    ids_in_range("moe_ffn", ids, w13.shape[0])
    plan = moe_plan(ids, w13.shape[0])
    h = grouped_linear(moe_permute(x, plan), w13, plan.offsets, b13)
    inner = h.shape[1] // 2
    h = gated_activation(h[:, :inner], h[:, inner:], kind, limit=limit, alpha=alpha, up_offset=up_offset)
    return moe_combine(grouped_linear(h, w2, plan.offsets, b2), plan, w)


# What is asked for.


def offsets_in_order(x: Tensor, offsets: Tensor) -> list[int]:
    """The *offsets* of ``grouped_linear``, read back.

    Raises:
        ValueError: unless they begin with 0, never decrease and end at the rows of *x* at most.
    """
    bounds: list[int] = offsets.tolist()
    if bounds[0] != 0 or any(b < a for a, b in pairwise(bounds)) or bounds[-1] > x.shape[0]:
        raise ValueError(
            f"grouped_linear: offsets must begin with 0, never decrease and end at {x.shape[0]} at most, the rows "
            f"of x {describe(x)}, got {offsets}"
        )
    return bounds


def _biases(op: str, x: Tensor, *given: tuple[str, Tensor | None, Shaped]) -> tuple[str, ...]:
    """The features of biases: their names, and ``mixed`` if one has not the dtype of *x* but that of its sums."""
    wide, found, mixed = accumulator(x.dtype), [], False
    for what, bias, w in given:
        if bias is None:
            continue
        floating(op, what, bias)
        alike(op, x, what, bias, dtype=bias.dtype is not wide)
        if bias.shape != w.shape[:2]:
            raise ValueError(f"{op}: {what} must have shape {w.shape[:2]}, got {describe(bias)}")
        found.append(what)
        mixed = mixed or bias.dtype is not x.dtype
    return (*found, "mixed") if mixed else tuple(found)
