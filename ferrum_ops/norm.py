"""Normalisation over the last axis."""

from __future__ import annotations

import math
from typing import overload

import ferrum_array as fa
from ferrum_array import Tensor
from ferrum_ops.checks import accumulator, alike, describe, floating, last_axis
from ferrum_ops.registry import Op

__all__ = ["layer_norm"]

_LAYER_NORM: Op[Tensor | tuple[Tensor, Tensor]] = Op("layer_norm")


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
    floating("layer_norm", "x", x)
    if not x.ndim:
        raise ValueError(f"layer_norm: x needs at least one axis, got {describe(x)}")
    if not (math.isfinite(eps) and eps >= 0):
        raise ValueError(f"layer_norm: eps must be finite and at least 0, got {eps}")
    for what, vector in (("w", w), ("b", b)):
        if vector is not None:
            floating("layer_norm", what, vector)
            alike("layer_norm", x, what, vector, dtype=False)
            last_axis("layer_norm", x, what, vector)
    features: tuple[str, ...] = ()
    if residual is not None:
        floating("layer_norm", "residual", residual)
        alike("layer_norm", x, "residual", residual, dtype=False)
        if residual.shape != x.shape:
            raise ValueError(f"layer_norm: residual must have the shape of x {describe(x)}, got {describe(residual)}")
        features = ("residual",)
    return _LAYER_NORM(x.device, (x.dtype,), features, x, w, b, eps, residual)


@_LAYER_NORM.reference
def _layer_norm(
    x: Tensor, w: Tensor | None, b: Tensor | None, eps: float, residual: Tensor | None
) -> Tensor | tuple[Tensor, Tensor]:
    wide = accumulator(x.dtype)
    total = None
    if residual is not None:
        total = (x.astype(wide, copy=False) + residual.astype(wide, copy=False)).astype(residual.dtype, copy=False)

    y = (x if total is None else total).astype(wide, copy=False)
    y = y - fa.mean(y, axis=-1, keepdims=True)
    y /= fa.sqrt(fa.mean(y * y, axis=-1, keepdims=True) + float(eps))
    if w is not None:
        y *= w.astype(wide, copy=False)
    if b is not None:
        y += b.astype(wide, copy=False)
    y = y.astype(x.dtype, copy=False)
    return y if total is None else (y, total)
