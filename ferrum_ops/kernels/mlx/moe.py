"""``grouped_linear`` by MLX's product that picks a matrix for each row."""

from __future__ import annotations

import mlx.core as mx

import ferrum_array as fa
from ferrum_array import Tensor
from ferrum_ops.kernels.mlx.calls import on_gpu, run

__all__ = ["fits", "grouped_linear"]


def fits(x: Tensor, w: Tensor, offsets: Tensor, bias: Tensor | None) -> str | None:
    """Why it does not take a call, or None."""
    if not (x.size and w.size):
        return "takes at least one row, and weights"
    if x.dtype is not fa.float32 and not on_gpu(x):
        return "MLX's CPU takes float32 alone"
    return None


def grouped_linear(x: Tensor, w: Tensor, offsets: Tensor, bias: Tensor | None) -> Tensor:
    """The offsets stay on the device: each row finds its expert there."""
    rows = fa.arange(x.shape[0], device=x.device)
    expert = fa.searchsorted(offsets, rows, side="right") - 1
    nobody = expert >= w.shape[0]
    expert = fa.minimum(expert, w.shape[0] - 1)
    picked = expert.astype(fa.uint32)
    y = run(mx.gather_mm, fa.expand_dims(x, axis=1), w.mT, rhs_indices=picked, sorted_indices=True)
    y = fa.squeeze(y, axis=1)
    if bias is not None:
        # not fa.take, which reads the indices back to check them
        added = run(mx.take, bias, expert, axis=0)
        y = (y.astype(fa.float32, copy=False) + added.astype(fa.float32, copy=False)).astype(x.dtype, copy=False)
    return fa.where(fa.expand_dims(nobody, axis=1), fa.zeros((), dtype=x.dtype, device=x.device), y)
