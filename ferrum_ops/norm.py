"""Normalisation over the last axis."""

from __future__ import annotations

from typing import overload

import ferrum_array as fa
from ferrum_array import Tensor
from ferrum_ops.activation import over_one_plus_exp
from ferrum_ops.checks import accumulator, alike, describe, finite, floating, last_axis
from ferrum_ops.registry import Op

__all__ = ["l2_norm", "layer_norm", "rms_norm"]

# Rows are chosen by the dtype of x. Where another operand has another dtype the call has the feature "mixed".
_LAYER_NORM: Op[Tensor | tuple[Tensor, Tensor]] = Op("layer_norm")
_RMS_NORM: Op[Tensor | tuple[Tensor, Tensor]] = Op("rms_norm")
_L2_NORM: Op[Tensor] = Op("l2_norm")


@overload
def rms_norm(
    x: Tensor,
    w: Tensor | None = None,
    *,
    eps: float,
    offset: float = 0.0,
    residual: None = None,
    gate: Tensor | None = None,
) -> Tensor: ...


@overload
def rms_norm(
    x: Tensor,
    w: Tensor | None = None,
    *,
    eps: float,
    offset: float = 0.0,
    residual: Tensor,
    gate: Tensor | None = None,
) -> tuple[Tensor, Tensor]: ...


def rms_norm(
    x: Tensor,
    w: Tensor | None = None,
    *,
    eps: float,
    offset: float = 0.0,
    residual: Tensor | None = None,
    gate: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """``x / sqrt(mean(x**2) + eps) * (offset + w)`` over the last axis: x [..., D], w [D] or absent.

    Everything is computed in float32 (float64 for float64) and rounded once, to the dtype of *x*; *w*, *residual* and
    *gate* may be of any real floating dtype. Squares that leave the range of float32 give 0, as in other libraries.

    Args:
        x: what is normalised.
        w: a factor for each element of the last axis.
        eps: added to the mean of the squares.
        offset: added to *w*; 1 where the weights are stored as differences from 1, as in Gemma. Needs *w*.
        residual: [..., D]. The result is then ``(rms_norm(x + residual), x + residual)``, the sum rounded to the
            residual's dtype first, so that the fused and the composed form agree.
        gate: [..., D]. The result is multiplied by ``gate / (1 + exp(-gate))``, after *w*.

    Source: Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019; the gate as in Qwen3-Next.

    Raises:
        TypeError: for anything not real floating-point. ValueError: for shapes that do not fit, different devices, an
        *eps* that is negative or not finite, and an *offset* that is not finite or has no *w*.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_ops import rms_norm
        >>> rms_norm(fa.asarray([[1.0, 7.0]]), fa.asarray([5.0, 10.0]), eps=0.0)
        Tensor([[ 1., 14.]])
        >>> y, total = rms_norm(fa.asarray([3.0, 3.0]), eps=0.0, residual=fa.asarray([1.0, -7.0]))
        >>> y, total
        (Tensor([ 1., -1.]), Tensor([ 4., -4.]))
    """
    check_rms_norm("rms_norm", "w", x, w, eps, offset)
    _companion("rms_norm", "residual", x, residual)
    _companion("rms_norm", "gate", x, gate)
    features = (
        *(("offset",) if offset else ()),
        *(("residual",) if residual is not None else ()),
        *(("gate",) if gate is not None else ()),
        *mixed(x, w, residual, gate),
    )
    return _RMS_NORM(x.device, (x.dtype,), features, x, w, eps, offset, residual, gate)


@_RMS_NORM.reference
def _rms_norm(
    x: Tensor, w: Tensor | None, eps: float, offset: float, residual: Tensor | None, gate: Tensor | None
) -> Tensor | tuple[Tensor, Tensor]:
    wide = accumulator(x.dtype)
    total = None if residual is None else _sum(x, residual)
    y = (x if total is None else total).astype(wide, copy=False)
    y = y / fa.sqrt(fa.mean(y * y, axis=-1, keepdims=True) + float(eps))
    if w is not None:
        factor = w.astype(wide, copy=False)
        y *= factor + float(offset) if offset else factor
    if gate is not None:
        g = gate.astype(wide, copy=False)
        y *= over_one_plus_exp(g, g)
    y = y.astype(x.dtype, copy=False)
    return y if total is None else (y, total)


@overload
def layer_norm(
    x: Tensor,
    w: Tensor | None = None,
    b: Tensor | None = None,
    *,
    eps: float,
    residual: None = None,
) -> Tensor: ...


@overload
def layer_norm(
    x: Tensor, w: Tensor | None = None, b: Tensor | None = None, *, eps: float, residual: Tensor
) -> tuple[Tensor, Tensor]: ...


def layer_norm(
    x: Tensor,
    w: Tensor | None = None,
    b: Tensor | None = None,
    *,
    eps: float,
    residual: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """``(x - mean) / sqrt(variance + eps) * w + b`` over the last axis: x [..., D], w and b [D] or
    absent.

    With *residual* [..., D] it returns ``(layer_norm(x + residual), x + residual)``, the sum
    rounded to the residual's dtype first, so that the fused and the composed form agree. Everything
    else is computed in float32 (float64 for float64) and rounded once, to the dtype of *x*. *w* and
    *b* may be of any real floating dtype. The variance is the mean squared deviation, not an
    estimate from a sample.

    Source: Ba, Kiros and Hinton, "Layer Normalization", 2016.

    Raises:
        TypeError: for anything not real floating-point. ValueError: for shapes that do not fit,
        different devices, or an *eps* that is negative or not finite.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_ops import layer_norm
        >>> layer_norm(fa.asarray([[1.0, 3.0]]), eps=0.0)
        Tensor([[-1.,  1.]])
    """
    _check("layer_norm", x, eps)
    for what, vector in (("w", w), ("b", b)):
        if vector is not None:
            _vector("layer_norm", what, x, vector)
    _companion("layer_norm", "residual", x, residual)
    features = (*(("residual",) if residual is not None else ()), *mixed(x, w, b, residual))
    return _LAYER_NORM(x.device, (x.dtype,), features, x, w, b, eps, residual)


@_LAYER_NORM.reference
def _layer_norm(
    x: Tensor, w: Tensor | None, b: Tensor | None, eps: float, residual: Tensor | None
) -> Tensor | tuple[Tensor, Tensor]:
    wide = accumulator(x.dtype)
    total = None if residual is None else _sum(x, residual)
    y = (x if total is None else total).astype(wide, copy=False)
    y = y - fa.mean(y, axis=-1, keepdims=True)
    y /= fa.sqrt(fa.mean(y * y, axis=-1, keepdims=True) + float(eps))
    if w is not None:
        y *= w.astype(wide, copy=False)
    if b is not None:
        y += b.astype(wide, copy=False)
    y = y.astype(x.dtype, copy=False)
    return y if total is None else (y, total)


def l2_norm(x: Tensor, *, eps: float) -> Tensor:
    """``x / sqrt(sum(x**2) + eps)`` over the last axis: x [..., D], in the dtype of *x*.

    *eps* stands under the root, beside the sum of the squares (and is not a least length). Computed in float32
    (float64 for float64) and rounded once.

    Source: Yang et al., "Parallelizing Linear Transformers with the Delta Rule", 2024, for the keys and queries of
    linear attention.

    Raises:
        TypeError: if *x* is not real floating-point. ValueError: if *x* has no axis or *eps* is negative or not finite.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_ops import l2_norm
        >>> l2_norm(fa.asarray([[3.0, 4.0]]), eps=0.0)
        Tensor([[0.6, 0.8]])
    """
    _check("l2_norm", x, eps)
    return _L2_NORM(x.device, (x.dtype,), (), x, eps)


@_L2_NORM.reference
def _l2_norm(x: Tensor, eps: float) -> Tensor:
    y = x.astype(accumulator(x.dtype), copy=False)
    y = y / fa.sqrt(fa.sum(y * y, axis=-1, keepdims=True) + float(eps))
    return y.astype(x.dtype, copy=False)


def check_rms_norm(op: str, what: str, x: Tensor, w: Tensor | None, eps: float, offset: float) -> None:
    """What ``rms_norm`` demands of its input, its weights (*what* names them) and its numbers.

    Raises:
        TypeError, ValueError: as ``rms_norm`` says.
    """
    _check(op, x, eps)
    if w is not None:
        _vector(op, what, x, w)
    if not finite(op, "offset", offset):
        raise ValueError(f"{op}: offset must be finite, got {offset}")
    if offset and w is None:
        raise ValueError(f"{op}: offset={offset} is added to {what}, which is absent; pass {what} or leave offset out")


def _check(op: str, x: Tensor, eps: float) -> None:
    floating(op, "x", x)
    if not x.ndim:
        raise ValueError(f"{op}: x needs at least one axis, got {describe(x)}")
    if not (finite(op, "eps", eps) and eps >= 0):
        raise ValueError(f"{op}: eps must be finite and at least 0, got {eps}")


def _vector(op: str, what: str, x: Tensor, vector: Tensor) -> None:
    floating(op, what, vector)
    alike(op, x, what, vector, dtype=False)
    last_axis(op, x, what, vector)


def _companion(op: str, what: str, x: Tensor, other: Tensor | None) -> None:
    if other is not None:
        floating(op, what, other)
        alike(op, x, what, other, dtype=False)
        if other.shape != x.shape:
            raise ValueError(f"{op}: {what} must have the shape of x {describe(x)}, got {describe(other)}")


def mixed(x: Tensor, *others: Tensor | None) -> tuple[str, ...]:
    """The feature of a call whose other operands have not all the dtype of *x*."""
    return ("mixed",) if any(other is not None and other.dtype is not x.dtype for other in others) else ()


def _sum(x: Tensor, residual: Tensor) -> Tensor:
    """``x + residual``, rounded once, to the dtype of *residual*."""
    wide = accumulator(fa.result_type(x, residual))
    return (x.astype(wide, copy=False) + residual.astype(wide, copy=False)).astype(residual.dtype, copy=False)
