"""Layers that carry a state from token to token: a short convolution, and linear attention with a gated delta rule.

Nothing is written in place: each op takes the states that its sequences had and returns those that they have now.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import get_args

import ferrum_array as fa
from ferrum_array import Tensor
from ferrum_ops.activation import ActivationKind
from ferrum_ops.activation import activation as activate
from ferrum_ops.checks import accumulator, alike, describe, finite, floating, instance
from ferrum_ops.delta_rule import CHUNK, delta_rule
from ferrum_ops.norm import mixed
from ferrum_ops.planning import runs
from ferrum_ops.registry import Op
from ferrum_ops.types import SequenceMeta

__all__ = ["causal_conv1d", "gated_delta_rule", "gdn_gates"]

_CAUSAL_CONV1D: Op[tuple[Tensor, Tensor]] = Op("causal_conv1d")
_GDN_GATES: Op[tuple[Tensor, Tensor]] = Op("gdn_gates")
_GATED_DELTA_RULE: Op[tuple[Tensor, Tensor]] = Op("gated_delta_rule")


def causal_conv1d(
    x: Tensor,
    w: Tensor,
    state: Tensor | None = None,
    meta: SequenceMeta | None = None,
    *,
    bias: Tensor | None = None,
    activation: ActivationKind | None = "silu",
) -> tuple[Tensor, Tensor]:
    """``act(sum_j w[:, j] * x[t - K + 1 + j] + bias)``, for each channel by itself, and the new state.

    Shapes: x [..., T, C], w [C, K], bias [C] and a state [..., K - 1, C] give y [..., T, C] and the new state. The
    state is what stood before the first token: the last K - 1 inputs, oldest first; without one they are 0. The new
    state has the dtype of the old one, or of *x*. Computed in float32 (float64 for float64) and rounded once, to the
    dtype of *x*; *w*, *bias* and *state* may be of any real floating dtype. A prompt in pieces gives the same bits as
    in one, as long as the state has the dtype of *x* or a wider one.

    Args:
        x: inputs, [T, C] or a batch of them.
        w: the weights of each channel; the last is that of the token itself.
        state: the inputs before the first.
        meta: packed sequences, x [T, C] with a state for each sequence, [S, K - 1, C]. Its ``cu_seqlens`` alone matter
            here; ``kv_lens``, ``block_tables`` and ``slots`` tell attention where its keys are. Positions must follow
            one another within a sequence.
        bias: one for each channel.
        activation: any kind of ``activation``, or None.

    Source: Gu and Dao, "Mamba: linear-time sequence modeling with selective state spaces", 2023.

    Raises:
        TypeError: for anything not real floating-point. ValueError: for shapes or devices that do not fit, an unknown
        activation, or positions out of order.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_ops import causal_conv1d
        >>> w = fa.asarray([[10.0, 1.0]])
        >>> y, state = causal_conv1d(fa.asarray([[1.0], [2.0]]), w, activation=None)
        >>> y.tolist(), state.tolist()
        ([[1.0], [12.0]], [[2.0]])
        >>> causal_conv1d(fa.asarray([[3.0]]), w, state, activation=None)[0]
        Tensor([[23.]])
    """
    op = "causal_conv1d"
    floating(op, "x", x)
    floating(op, "w", w)
    alike(op, x, "w", w, dtype=False)
    if x.ndim < 2 or w.ndim != 2 or w.shape[0] != x.shape[-1] or not w.shape[1]:
        raise ValueError(
            f"{op}: x must be [..., T, C] and w [C, K] with K of at least 1, got {describe(x)} and {describe(w)}"
        )
    if bias is not None:
        floating(op, "bias", bias)
        alike(op, x, "bias", bias, dtype=False)
        if bias.shape != (x.shape[-1],):
            raise ValueError(f"{op}: bias must have shape ({x.shape[-1]},) for x {describe(x)}, got {describe(bias)}")
    if activation is not None and activation not in get_args(ActivationKind):
        raise ValueError(f"{op}: activation must be None or one of {get_args(ActivationKind)}, got {activation!r}")
    leading = _leading(op, "x [T, C]", x, 2, meta)
    _check_state(op, x, state, (*leading, w.shape[1] - 1, w.shape[0]))
    features = (
        *((activation,) if activation is not None else ()),
        *(("bias",) if bias is not None else ()),
        *(("state",) if state is not None else ()),
        *(("meta",) if meta is not None else ()),
        *mixed(x, w, bias, state),
    )
    return _CAUSAL_CONV1D(x.device, (x.dtype,), features, x, w, state, meta, bias, activation)


@_CAUSAL_CONV1D.reference
def _causal_conv1d(
    x: Tensor,
    w: Tensor,
    state: Tensor | None,
    meta: SequenceMeta | None,
    bias: Tensor | None,
    activation: ActivationKind | None,
) -> tuple[Tensor, Tensor]:
    wide = accumulator(x.dtype)
    channels, width = w.shape
    factors = w.astype(wide, copy=False)
    if state is None:
        leading = x.shape[:-2] if meta is None else (len(meta.lengths),)
        state = fa.zeros((*leading, width - 1, channels), dtype=x.dtype, device=x.device)

    def convolve(state: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        length = x.shape[-2]
        inputs = fa.concat([state.astype(wide, copy=False), x.astype(wide, copy=False)], axis=-2)
        y = inputs[..., width - 1 :, :] * factors[:, width - 1]
        for j in range(width - 1):
            y += inputs[..., j : j + length, :] * factors[:, j]
        if bias is not None:
            y += bias.astype(wide, copy=False)
        if activation is not None:
            y = activate(y, activation)
        # the state has a dtype of its own: what stays in it is not rounded on the way, and what is new once
        new = x[..., max(0, length - width + 1) :, :].astype(state.dtype, copy=False)
        return y.astype(x.dtype, copy=False), fa.concat([state[..., length:, :], new], axis=-2)

    return convolve(state, x) if meta is None else _packed(meta, convolve, state, x)


def gdn_gates(a: Tensor, b: Tensor, A_log: Tensor, dt_bias: Tensor) -> tuple[Tensor, Tensor]:
    """``g = -exp(A_log) * log(1 + exp(a + dt_bias))`` and ``beta = 1 / (1 + exp(-b))``: the gates of a delta rule.

    Shapes: a and b [..., H], A_log and dt_bias [H] give g and beta [..., H]. g is the logarithm of the decay, at most
    0. Both come in float32 (float64 where *a* is), whatever the dtypes of the operands, because ``gated_delta_rule``
    adds up decays over many tokens.

    Source: Yang, Kautz and Hatamizadeh, "Gated Delta Networks", 2024; Dao and Gu, "Transformers are SSMs", 2024, for
    the decay.

    Raises:
        TypeError: for anything not real floating-point, or if *a* and *b* differ in dtype. ValueError: for shapes or
        devices that do not fit.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_ops import gdn_gates
        >>> g, beta = gdn_gates(fa.asarray([-fa.inf, 1000.0]), fa.asarray([0.0, fa.inf]), fa.zeros(2), fa.ones(2))
        >>> g.tolist(), beta.tolist()
        ([-0.0, -1001.0], [0.5, 1.0])
    """
    floating("gdn_gates", "a", a)
    floating("gdn_gates", "b", b)
    alike("gdn_gates", a, "b", b)
    if not a.ndim or a.shape != b.shape:
        raise ValueError(f"gdn_gates: a and b must both be [..., H], got {describe(a)} and {describe(b)}")
    for what, vector in (("A_log", A_log), ("dt_bias", dt_bias)):
        floating("gdn_gates", what, vector)
        alike("gdn_gates", a, what, vector, dtype=False)
        if vector.shape != (a.shape[-1],):
            raise ValueError(
                f"gdn_gates: {what} must have shape ({a.shape[-1]},) for a {describe(a)}, got {describe(vector)}"
            )
    return _GDN_GATES(a.device, (a.dtype,), mixed(a, A_log, dt_bias), a, b, A_log, dt_bias)


@_GDN_GATES.reference
def _gdn_gates(a: Tensor, b: Tensor, A_log: Tensor, dt_bias: Tensor) -> tuple[Tensor, Tensor]:
    wide = accumulator(a.dtype)
    step = activate(a.astype(wide, copy=False) + dt_bias.astype(wide, copy=False), "softplus")
    return -fa.exp(A_log.astype(wide, copy=False)) * step, activate(b.astype(wide, copy=False), "sigmoid")


def gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    state: Tensor | None = None,
    meta: SequenceMeta | None = None,
    *,
    scale: float | None = None,
    use_qk_l2norm: bool = False,
    chunk_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Linear attention whose memory corrects itself: what each token reads, and the new state.

    For each head the state S [D, Dv] goes from token to token, and a token reads it after its own change::

        S = exp(g) * S
        S = S + k * beta * (v - S.T @ k).T
        o = scale * S.T @ q

    Shapes: q and k [..., T, Hk, D], v [..., T, H, Dv], g and beta [..., T, H] and a state [..., H, D, Dv] give o
    [..., T, H, Dv] in the dtype of *q*, and the new state. H must be a multiple of Hk; head h has the query and the key
    of head h // (H // Hk). Everything is computed in float32 (float64 for float64); states are of that dtype too.

    Args:
        q: queries.
        k: keys.
        v: values.
        g: logarithms of the decays, as ``gdn_gates`` makes them; -inf forgets everything.
        beta: how far the memory is moved towards the value.
        state: the states before the first token; without them they are 0.
        meta: packed sequences: q [T, Hk, D] and so on, with a state for each sequence, [S, H, D, Dv]. Its
            ``cu_seqlens`` alone matter here; ``kv_lens``, ``block_tables`` and ``slots`` tell attention where its keys
            are. Positions must follow one another within a sequence.
        scale: factor of the result; 1 / sqrt(D) if absent.
        use_qk_l2norm: queries and keys are first divided by their length, as ``l2_norm`` with an eps of 1e-6 does.
        chunk_size: how many tokens are computed together, a power of two; 64 if absent. 1 is the rule as it stands
            above, token by token. The result is the same for all, up to the rounding of sums.

    Within a chunk the corrections depend on one another only through a triangular system of equations, which does not
    depend on the state. It is solved for all chunks at once, by products of matrices; what is left goes from chunk to
    chunk. Decays between two tokens are sums of g over the tokens between them, not differences of sums, so that a
    strong decay does not cost the digits of weak ones.

    Source: Yang, Kautz and Hatamizadeh, "Gated Delta Networks: improving Mamba2 with delta rule", 2024; Yang et al.,
    "Parallelizing linear transformers with the delta rule over sequence length", 2024, for the chunks; Bischof and Van
    Loan, "The WY representation for products of Householder matrices", 1987, which they follow.

    Raises:
        TypeError: if q, k and v differ in dtype, the state has another than float32 (float64 for float64), or anything
        is not real floating-point. ValueError: for shapes, head counts or devices that do not fit, a *scale* that is
        not finite, a *chunk_size* that is no power of two, or positions out of order.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_ops import gated_delta_rule
        >>> q = k = fa.ones((3, 1, 1))
        >>> v = fa.asarray([1.0, 2.0, 3.0]).reshape(3, 1, 1)
        >>> gates = {"g": fa.zeros((3, 1)), "beta": fa.full((3, 1), 0.5)}
        >>> o, state = gated_delta_rule(q, k, v, **gates)
        >>> o[:, 0, 0], state.shape
        (Tensor([0.5  , 1.25 , 2.125]), (1, 1, 1))
    """
    op = "gated_delta_rule"
    wide = _check_heads(op, q, k, v)
    for what, gate in (("g", g), ("beta", beta)):
        floating(op, what, gate)
        alike(op, q, what, gate, dtype=False)
        if gate.shape != v.shape[:-1]:
            raise ValueError(
                f"{op}: {what} must have one entry for each token and head of v {describe(v)}, got {describe(gate)}"
            )
    heads, size, value_size = v.shape[-2], q.shape[-1], v.shape[-1]
    leading = _leading(op, "q [T, Hk, D]", q, 3, meta)
    _check_state(op, q, state, (*leading, heads, size, value_size))
    if state is not None and state.dtype is not wide:
        raise TypeError(f"{op}: state must be {wide} where q is {q.dtype}, got {describe(state)}")
    if scale is None:
        if not size:
            raise ValueError(f"{op}: q {describe(q)} has head dimension 0, so scale is needed")
        factor = 1.0 / math.sqrt(size)
    else:
        if not finite(op, "scale", scale):
            raise ValueError(f"{op}: scale must be finite, got {scale}")
        factor = float(scale)
    if chunk_size is not None and (
        isinstance(chunk_size, bool) or not isinstance(chunk_size, int) or chunk_size < 1 or chunk_size.bit_count() > 1
    ):
        raise ValueError(f"{op}: chunk_size must be a power of two, got {chunk_size!r}")
    features = (
        *(("state",) if state is not None else ()),
        *(("meta",) if meta is not None else ()),
        *(("scale",) if scale is not None else ()),
        *(("qk_l2norm",) if use_qk_l2norm else ()),
        *(("chunk_size",) if chunk_size is not None else ()),
        *(("grouped",) if heads != k.shape[-2] else ()),
        *mixed(q, g, beta),
    )
    return _GATED_DELTA_RULE(
        q.device, (q.dtype,), features, q, k, v, g, beta, state, meta, factor, bool(use_qk_l2norm), chunk_size
    )


@_GATED_DELTA_RULE.reference
def _gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    state: Tensor | None,
    meta: SequenceMeta | None,
    scale: float,
    use_qk_l2norm: bool,
    chunk_size: int | None,
) -> tuple[Tensor, Tensor]:
    wide = accumulator(q.dtype)
    if state is None:
        leading = q.shape[:-3] if meta is None else (len(meta.lengths),)
        state = fa.zeros((*leading, v.shape[-2], q.shape[-1], v.shape[-1]), dtype=wide, device=q.device)

    def attend(state: Tensor, *operands: Tensor) -> tuple[Tensor, Tensor]:
        # one leading axis, whatever there was
        flat = [x.reshape(math.prod(state.shape[:-3]), *x.shape[state.ndim - 3 :]) for x in (state, *operands)]
        o, last = delta_rule(*flat, scale=scale, normalize=use_qk_l2norm, chunk=chunk_size or CHUNK)
        return o.reshape(operands[2].shape).astype(q.dtype, copy=False), last.reshape(state.shape)

    if meta is None:
        return attend(state, q, k, v, g, beta)
    return _packed(meta, attend, state, q, k, v, g, beta)


def _packed(
    meta: SequenceMeta, work: Callable[..., tuple[Tensor, Tensor]], state: Tensor, *packed: Tensor
) -> tuple[Tensor, Tensor]:
    """*work* on the state [S, ...] and operands [T, ...] of packed sequences, as many at once as have equal lengths."""
    results, states, first = [], [], 0
    for run in runs(meta.lengths, meta.lengths):
        rows = run.sequences * run.query_length
        some = (x[run.query : run.query + rows].reshape(run.sequences, run.query_length, *x.shape[1:]) for x in packed)
        result, last = work(state[first : first + run.sequences], *some)
        results.append(result.reshape(rows, *result.shape[2:]))
        states.append(last)
        first += run.sequences
    if len(results) == 1:
        return results[0], states[0]
    if not results:  # no sequence at all
        result, last = work(state, *(x.reshape(0, *x.shape) for x in packed))
        return result.reshape(*result.shape[1:]), last
    return fa.concat(results), fa.concat(states)


def _leading(op: str, layout: str, x: Tensor, axes: int, meta: SequenceMeta | None) -> tuple[int, ...]:
    """The leading axes that a state has, one state for each sequence, once *meta* is checked."""
    if meta is None:
        return x.shape[:-axes]
    instance(op, "meta", meta, SequenceMeta, "SequenceMeta.packed(lengths)")
    if x.ndim != axes or x.shape[0] != meta.tokens:
        raise ValueError(f"{op}: with this meta the input must be {layout} with T = {meta.tokens}, got {describe(x)}")
    if meta.positions is not None:
        for start, stop in pairwise(meta.cu_seqlens):
            places = meta.positions[start:stop]
            if any(after != before + 1 for before, after in pairwise(places)):
                raise ValueError(
                    f"{op}: the tokens of a sequence must come in order, one place after another, because each changes "
                    f"the state for the next; meta.positions has {places}"
                )
    return (len(meta.lengths),)


def _check_state(op: str, x: Tensor, state: Tensor | None, shape: tuple[int, ...]) -> None:
    if state is not None:
        floating(op, "state", state)
        alike(op, x, "state", state, dtype=False)
        if state.shape != shape:
            raise ValueError(f"{op}: state must have shape {shape}, got {describe(state)}")


def _check_heads(op: str, q: Tensor, k: Tensor, v: Tensor) -> fa.Dtype:
    """The dtype of the sums, once q, k and v are checked."""
    for what, x in (("q", q), ("k", k), ("v", v)):
        floating(op, what, x)
        if x.ndim < 3:
            raise ValueError(f"{op}: {what} must be [..., T, H, D], got {describe(x)}")
        alike(op, q, what, x)
    given = f"got q {describe(q)}, k {describe(k)}, v {describe(v)}"
    if q.shape != k.shape or k.shape[:-2] != v.shape[:-2]:
        raise ValueError(f"{op}: q and k must share a shape, and with v all axes before the heads; {given}")
    heads, key_heads = v.shape[-2], k.shape[-2]
    if not key_heads or heads % key_heads:
        raise ValueError(f"{op}: {heads} value heads are not a multiple of {key_heads} key heads; {given}")
    return accumulator(q.dtype)
