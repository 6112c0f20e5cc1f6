"""Products of one input with several weight matrices: what attention layers and gated perceptrons begin with.

Each op says what several calls of ``linear`` say. As one call it is told once what its input is, and an implementation
may read the input once, and all weights in one go: with few rows the calls themselves are a good part of the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ferrum_array import Dtype, Tensor
from ferrum_ops.activation import ActivationKind, gate_features, gated_activation
from ferrum_ops.checks import accumulator, alike, describe, floating
from ferrum_ops.gemm import linear, result_dtype, weights
from ferrum_ops.quant.tensor import QuantTensor
from ferrum_ops.registry import Op

__all__ = ["gated_linear", "linears"]

Weight = Tensor | QuantTensor

# Rows are chosen by the dtype of x. A call has the features of quantised weights (``QuantTensor.features``) where all
# weights have the same, and "unlike" where they have not; "bias" and "mixed" as in ``linear``, "dtype" if results have
# not the dtype of x; a gated call also has those of ``gated_activation``.
_LINEARS: Op[tuple[Tensor, ...]] = Op("linears")
_GATED_LINEAR: Op[Tensor] = Op("gated_linear")


def linears(
    x: Tensor, ws: Sequence[Weight], biases: Sequence[Tensor | None] | None = None, *, dtype: Any = None
) -> tuple[Tensor, ...]:
    """``x @ w.T + bias`` for each of the weights: x [..., K], each w [N, K] with an N of its own, give [..., N] each.

    What it gives is what ``linear`` gives for each weight, up to the order of sums. Queries, keys and values of
    attention are made so.

    Args:
        x: the input of all products.
        ws: at least one weight, dense with the dtype of *x* or quantised; they may differ in kind.
        biases: one for each weight, or None; a bias [N] may have the dtype of *x* or the wider one of the sums.
        dtype: of the results; that of *x* if absent.

    Source: Shoeybi et al., "Megatron-LM: Training Multi-Billion Parameter Language Models Using Model Parallelism",
    2019, which makes queries, keys and values in one product.

    Raises:
        TypeError: if *x* and a dense weight differ in dtype, anything is not real floating-point, or *ws* is no
        sequence. ValueError: for no weights, another number of biases, shapes that do not fit, or different devices.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_ops import linears
        >>> q, k = linears(fa.asarray([1.0, 2.0]), [fa.asarray([[3.0, 4.0], [0.5, 0.0]]), fa.asarray([[0.0, 1.0]])])
        >>> q, k
        (Tensor([11. ,  0.5]), Tensor([2.]))
    """
    if isinstance(ws, (Tensor, QuantTensor)) or not isinstance(ws, Sequence):
        raise TypeError(f"linears: ws must be a sequence of weights, got {type(ws).__name__}; for one, call linear")
    given: Sequence[Tensor | None] = (None,) * len(ws) if biases is None else biases
    if not ws or len(given) != len(ws):
        raise ValueError(
            f"linears: each weight, and there must be one, has a bias or None; got {len(ws)} and {len(given)}"
        )
    features = _features("linears", x, [(f"ws[{i}]", w) for i, w in enumerate(ws)], given)
    out = x.dtype if dtype is None else result_dtype("linears", dtype)
    if out is not x.dtype:
        features = (*features, "dtype")
    return _LINEARS(x.device, (x.dtype,), features, x, tuple(ws), tuple(given), out)


@_LINEARS.reference
def _linears(x: Tensor, ws: tuple[Weight, ...], biases: tuple[Tensor | None, ...], out: Dtype) -> tuple[Tensor, ...]:
    return tuple(linear(x, w, bias, dtype=out) for w, bias in zip(ws, biases, strict=True))


def gated_linear(
    x: Tensor,
    gate: Weight,
    up: Weight,
    kind: ActivationKind = "silu",
    *,
    gate_bias: Tensor | None = None,
    up_bias: Tensor | None = None,
    limit: float | None = None,
    alpha: float = 1.0,
    up_offset: float = 0.0,
) -> Tensor:
    """``act(x @ gate.T + gate_bias) * (x @ up.T + up_bias)``: x [..., K], gate and up [N, K] give [..., N].

    The gated linear unit that a feed-forward layer begins with: ``linear`` twice, then ``gated_activation``, whose
    parameters *kind*, *limit*, *alpha* and *up_offset* are. Between the two an implementation may round to the dtype of
    *x*, as these ops do one by one, or not at all.

    Source: Shazeer, "GLU Variants Improve Transformer", 2020.

    Raises:
        TypeError: if *x* and a dense weight differ in dtype, or anything is not real floating-point. ValueError: for
        weights of different shapes, shapes that do not fit, different devices, and what ``gated_activation`` refuses.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_ops import gated_linear
        >>> gated_linear(fa.asarray([1.0, 2.0]), fa.asarray([[3.0, 0.0]]), fa.asarray([[1.0, 1.0]]), "relu")
        Tensor([9.])
    """
    features = _features("gated_linear", x, [("gate", gate), ("up", up)], (gate_bias, up_bias))
    if gate.shape != up.shape:
        raise ValueError(f"gated_linear: gate and up must share a shape, got {describe(gate)} and {describe(up)}")
    features = (*features, *gate_features("gated_linear", kind, limit, alpha, up_offset))
    arguments = (x, gate, up, kind, gate_bias, up_bias, limit, alpha, up_offset)
    return _GATED_LINEAR(x.device, (x.dtype,), features, *arguments)


@_GATED_LINEAR.reference
def _gated_linear(
    x: Tensor, gate: Weight, up: Weight, kind: ActivationKind, gate_bias: Tensor | None, up_bias: Tensor | None,
    limit: float | None, alpha: float, up_offset: float,
) -> Tensor:  # fmt: skip
    opened, passed = linear(x, gate, gate_bias), linear(x, up, up_bias)
    return gated_activation(opened, passed, kind, limit=limit, alpha=alpha, up_offset=up_offset)


def _features(op: str, x: Tensor, named: list[tuple[str, Weight]], biases: Sequence[Tensor | None]) -> tuple[str, ...]:
    """The features of the weights and biases, once they are checked."""
    floating(op, "x", x)
    kinds, mixed, biased = set(), False, False
    for (what, w), bias in zip(named, biases, strict=True):
        kinds.add(weights(op, what, x, w))
        if not x.ndim or w.ndim != 2 or x.shape[-1] != w.shape[1]:
            raise ValueError(f"{op}: x [..., K] and {what} [N, K] must share K, got {describe(x)} and {describe(w)}")
        if bias is None:
            continue
        biased = True
        floating(op, f"the bias of {what}", bias)
        alike(op, x, f"the bias of {what}", bias, dtype=bias.dtype is not accumulator(x.dtype))
        if bias.shape != (w.shape[0],):
            raise ValueError(
                f"{op}: the bias of {what} must have shape ({w.shape[0]},) for {describe(w)}, got {describe(bias)}"
            )
        mixed = mixed or bias.dtype is not x.dtype
    kind = kinds.pop() if len(kinds) == 1 else ("unlike",)
    return (*kind, *(("bias",) if biased else ()), *(("mixed",) if mixed else ()))
