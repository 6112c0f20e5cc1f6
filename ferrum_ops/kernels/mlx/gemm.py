"""``linear`` and ``grouped_linear`` by MLX's products: with an added vector, of quantised and of picked matrices."""

from __future__ import annotations

from math import prod

import mlx.core as mx

import ferrum_array as fa
from ferrum_array import Dtype, Tensor
from ferrum_ops.kernels.mlx.calls import on_gpu, run
from ferrum_ops.kernels.mlx.weights import operands, refusal, widened
from ferrum_ops.quant.tensor import QuantTensor

__all__ = ["bias_fits", "grouped", "grouped_fits", "quantised", "quantised_fits", "with_bias"]


def _nothing(x: Tensor, w: Tensor | QuantTensor) -> str | None:
    return None if x.size and prod(w.shape) else "takes at least one row, and weights"


def bias_fits(x: Tensor, w: Tensor | QuantTensor, bias: Tensor | None, out: Dtype) -> str | None:
    """Why ``linear`` with a bias is left to others, or None."""
    return "takes a bias" if bias is None else _nothing(x, w)


def with_bias(x: Tensor, w: Tensor, bias: Tensor, out: Dtype) -> Tensor:
    """``linear`` of one dtype with a bias: the sum is rounded once."""
    y = run(mx.addmm, bias, _rows(x), w.T)
    return y.reshape(*x.shape[:-1], w.shape[0])


# Quantised weights.


def quantised_fits(x: Tensor, w: Tensor | QuantTensor, *_: object) -> str | None:
    """Why weights are left to others, or None; for ``grouped_linear`` as well."""
    return "takes quantised weights" if isinstance(w, Tensor) else refusal(w) or _nothing(x, w)


def quantised(x: Tensor, w: QuantTensor, bias: Tensor | None, out: Dtype) -> Tensor:
    """``linear`` with quantised weights."""
    work = fa.float32 if widened(x, w) or out is not x.dtype else x.dtype
    values, scales, biases, how = operands(w, work)
    rows = _rows(x).astype(work, copy=False)
    y = run(mx.quantized_matmul, rows, values, scales, biases, transpose=True, **how)
    return _finished(y, bias, out).reshape(*x.shape[:-1], w.shape[0])


# Experts.


def grouped_fits(x: Tensor, w: Tensor, *_: object) -> str | None:
    """Why ``grouped_linear`` is left to others, or None."""
    if x.dtype is not fa.float32 and not on_gpu(x):
        return "MLX's CPU picks among matrices of float32 alone"
    return _nothing(x, w)


def grouped(x: Tensor, w: Tensor | QuantTensor, offsets: Tensor, bias: Tensor | None) -> Tensor:
    """``grouped_linear``; the offsets stay on the device, where each row finds its expert."""
    expert = fa.searchsorted(offsets, fa.arange(x.shape[0], device=x.device), side="right") - 1
    nobody = fa.expand_dims(fa.logical_or(expert < 0, expert >= w.shape[0]), axis=1)
    # offsets are not checked here, but what is read must exist whatever they say
    expert = fa.clip(expert, 0, w.shape[0] - 1)
    row, pick = fa.expand_dims(x, axis=1), {"rhs_indices": expert.astype(fa.uint32), "sorted_indices": True}
    if isinstance(w, QuantTensor):
        work = fa.float32 if widened(x, w) else x.dtype
        values, scales, biases, how = operands(w, work)
        row = row.astype(work, copy=False)
        y = run(mx.gather_qmm, row, values, scales, biases, transpose=True, **how, **pick)
    else:
        y = run(mx.gather_mm, row, w.mT, **pick)
    # not fa.take, which reads the indices back to check them
    y = _finished(fa.squeeze(y, axis=1), None if bias is None else run(mx.take, bias, expert, axis=0), x.dtype)
    return fa.where(nobody, fa.zeros((), dtype=x.dtype, device=x.device), y)


def _rows(x: Tensor) -> Tensor:
    return x if x.ndim == 2 else x.reshape(prod(x.shape[:-1]), x.shape[-1])


def _finished(y: Tensor, bias: Tensor | None, out: Dtype) -> Tensor:
    if bias is not None:
        y = y.astype(fa.float32, copy=False) + bias.astype(fa.float32, copy=False)
    return y.astype(out, copy=False)
