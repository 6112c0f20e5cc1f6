"""Quantised weights as MLX's products take them: values, scales, perhaps biases, and what they are."""

from __future__ import annotations

from typing import Any

import ferrum_array as fa
from ferrum_array import Dtype, Tensor
from ferrum_ops.kernels.mlx.calls import on_gpu
from ferrum_ops.kernels.mlx.layouts import AFFINE, GROUPS, MXFP4, biases_of, group_of, held, times
from ferrum_ops.quant.integer import IntScheme
from ferrum_ops.quant.mlx import MlxScheme
from ferrum_ops.quant.mxfp4 import GROUP, Mxfp4Scheme
from ferrum_ops.quant.tensor import QuantTensor

__all__ = ["operands", "refusal", "widened"]


def refusal(w: QuantTensor) -> str | None:
    """Why MLX does not multiply with *w* as it is, or None."""
    if isinstance(w.scheme, Mxfp4Scheme):
        return None if w.layout == MXFP4.name else f"mxfp4 must be in MLX's order: repack(w, '{MXFP4.name}')"
    if isinstance(w.scheme, MlxScheme):
        return None if w.scheme.group in GROUPS else f"MLX's groups are of {', '.join(map(str, GROUPS))}"
    if reason := held(w.scheme, w.shape[-1]):
        return reason
    if w.layout == "plain" and w.parts["values"].dtype is fa.int8:
        return f"signed integers must be in MLX's order: repack(w, '{AFFINE.name}')"
    return None


def widened(x: Tensor, w: QuantTensor) -> bool:
    """Whether *x* is multiplied with *w* in float32: always on the CPU, where MLX adds 16 bits in 16 bits.

    Its GPUs add in float32; there only scales and biases of another dtype than *x* make it necessary.
    """
    if not on_gpu(x):
        return True
    if isinstance(w.scheme, Mxfp4Scheme):
        return False
    return any(name not in w.parts or w.parts[name].dtype is not x.dtype for name in ("scales", "biases"))


def operands(w: QuantTensor, dtype: Dtype) -> tuple[Tensor, Tensor, Tensor | None, dict[str, Any]]:
    """The values, scales and biases of *w* for products in *dtype*, and what MLX must know of them.

    A *dtype* other than float32 must be that of the scales and biases that *w* has.
    """
    scheme, values, scales = w.scheme, w.parts["values"], w.parts["scales"]
    if isinstance(scheme, Mxfp4Scheme):
        return values, scales, None, {"group_size": GROUP, "bits": 4, "mode": "mxfp4"}
    if isinstance(scheme, MlxScheme):
        scales, biases = (part.astype(dtype, copy=False) for part in (scales, w.parts["biases"]))
        return values, scales, biases, {"group_size": scheme.group, "bits": scheme.bits}
    assert isinstance(scheme, IntScheme)
    k = w.shape[-1]
    how = {"group_size": group_of(scheme, k), "bits": scheme.bits}
    repeats = times(scheme, k)
    if w.layout == "plain":
        values = fa.bitcast(values, fa.uint32)
    elif scales.dtype is dtype:
        return values, scales, w.parts["biases"], how
    else:
        scales = scales[..., ::repeats]
    biases = fa.repeat(biases_of(scheme, scales, w.parts.get("zeros")), repeats, axis=-1)
    return values, fa.repeat(scales.astype(fa.float32), repeats, axis=-1), biases, how
