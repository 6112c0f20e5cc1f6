"""``rms_norm`` and ``layer_norm`` by MLX's fused functions, which work in float32 and round before the weights, too."""

from __future__ import annotations

import mlx.core as mx

from ferrum_array import Dtype, Tensor
from ferrum_ops.kernels.mlx.calls import run

__all__ = ["has_elements", "layer_norm", "rms_norm"]


def has_elements(x: Tensor, *_: object) -> str | None:
    """A GPU has no grid for nothing."""
    return None if x.size else "takes at least one element"


def rms_norm(
    x: Tensor, w: Tensor | None, eps: float, offset: float, residual: Tensor | None, gate: None
) -> Tensor | tuple[Tensor, Tensor]:
    """All but gates; an offset is added in float32, and the whole is then computed there."""
    total = None if residual is None else x + residual
    if w is not None and offset:
        w = w.astype(Dtype.F32, copy=False) + float(offset)
    y = run(mx.fast.rms_norm, x if total is None else total, w, float(eps)).astype(x.dtype, copy=False)
    return y if total is None else (y, total)


def layer_norm(
    x: Tensor, w: Tensor | None, b: Tensor | None, eps: float, residual: Tensor | None
) -> Tensor | tuple[Tensor, Tensor]:
    """All of it, for operands of one dtype."""
    total = None if residual is None else x + residual
    y = run(mx.fast.layer_norm, x if total is None else total, w, b, float(eps))
    return y if total is None else (y, total)
