"""Integers in groups, as MLX reads them: ``value * scale + bias``, the values in words of 32 bits."""

from __future__ import annotations

from typing import Any

import ferrum_array as fa
from ferrum_array import Dtype, Tensor
from ferrum_ops.quant.integer import IntScheme
from ferrum_ops.quant.tensor import QuantTensor
from ferrum_ops.quant.types import Layout, Part, Parts, Scheme

__all__ = ["AFFINE", "Affine", "operands", "refusal"]

#: how many numbers may share a scale, the best first
_GROUPS = (128, 64, 32)


def _group(scheme: IntScheme, k: int) -> int | None:
    """The largest group of MLX's that divides the scheme's."""
    length = k if scheme.group is None else scheme.group
    return next((group for group in _GROUPS if length and length % group == 0), None)


def _held(scheme: Scheme, k: int) -> str | None:
    if not isinstance(scheme, IntScheme):
        return f"MLX reads integers in groups, not {scheme.name}"
    if _group(scheme, k) is None:
        return f"MLX's groups are of {', '.join(map(str, _GROUPS))}, which do not divide those of {scheme.name}"
    return None


def _times(scheme: IntScheme, k: int) -> int:
    """How many of MLX's groups make one of the scheme's."""
    length = k if scheme.group is None else scheme.group
    return length // (_group(scheme, k) or 1)


def _signed(scheme: IntScheme) -> bool:
    return scheme.bits == 8 and scheme.symmetric


def _biases(scheme: IntScheme, scales: Tensor, zeros: Tensor | None) -> Tensor:
    """What the number 0 stands for, in float32."""
    zero = float(1 << (scheme.bits - 1)) if zeros is None else zeros.astype(fa.float32)
    return -(scales.astype(fa.float32) * zero)


class Affine(Layout):
    """The layout ``mlx-affine`` of an :class:`~ferrum_ops.quant.integer.IntScheme`, ready to be multiplied with.

    The tensors of an [N, K] matrix, of g numbers a group, the largest of 128, 64 and 32 that divides the scheme's:

    * ``values``: uint32 [N, K * bits / 32], the bytes of the plain layout; signed integers with 128 added.
    * ``scales``: [N, K / g], repeated where the scheme's groups are longer.
    * ``biases``: [N, K / g], minus the zero times the scale: in the dtype of the scales, but in float32 where that
      overflows.
    * ``zeros``: those of the plain layout.
    """

    name = "mlx-affine"

    def refusal(self, scheme: Scheme, n: int, k: int) -> str | None:
        return _held(scheme, k)

    def parts(self, scheme: Scheme, n: int, k: int) -> dict[str, Part]:
        assert isinstance(scheme, IntScheme)
        plain = scheme.parts(n, k)
        groups = k // (_group(scheme, k) or 1)
        scales = plain["scales"].dtypes
        found = {
            "values": Part((n, k * scheme.bits // 32), (fa.uint32,)),
            "scales": Part((n, groups), scales),
            "biases": Part((n, groups), scales),
        }
        return found | ({"zeros": plain["zeros"]} if "zeros" in plain else {})

    def pack(self, scheme: Scheme, parts: Parts, shape: tuple[int, ...]) -> dict[str, Tensor]:
        assert isinstance(scheme, IntScheme)
        values, scales, zeros = parts["values"], parts["scales"], parts.get("zeros")
        if _signed(scheme):
            values = fa.bitcast(values, fa.uint8) ^ 128
        exact = _biases(scheme, scales, zeros)
        biases = exact.astype(scales.dtype, copy=False)
        if not fa.all(fa.isfinite(biases) == fa.isfinite(exact)):
            biases = exact
        times = _times(scheme, shape[-1])
        found = {
            "values": fa.bitcast(values, fa.uint32),
            "scales": fa.repeat(scales, times, axis=-1),
            "biases": fa.repeat(biases, times, axis=-1),
        }
        return found | ({} if zeros is None else {"zeros": zeros})

    def unpack(self, scheme: Scheme, parts: Parts, shape: tuple[int, ...]) -> dict[str, Tensor]:
        assert isinstance(scheme, IntScheme)
        values = fa.bitcast(parts["values"], fa.uint8)
        if _signed(scheme):
            values = fa.bitcast(values ^ 128, fa.int8)
        found = {"values": values, "scales": parts["scales"][..., :: _times(scheme, shape[-1])]}
        return found | ({"zeros": parts["zeros"]} if "zeros" in parts else {})


AFFINE = Affine()


def refusal(w: QuantTensor) -> str | None:
    """Why MLX does not multiply with *w* as it is, or None."""
    if reason := _held(w.scheme, w.shape[-1]):
        return reason
    assert isinstance(w.scheme, IntScheme)
    if w.layout == "plain" and _signed(w.scheme):
        return f"signed integers must be in MLX's order: repack(w, '{AFFINE.name}')"
    return None


def operands(w: QuantTensor, dtype: Dtype) -> tuple[Tensor, Tensor, Tensor, dict[str, Any]]:
    """The values, scales and biases of *w*, those in *dtype*, and what MLX must know of them.

    A *dtype* other than float32 must be that of the scales and biases of the layout.
    """
    scheme, k = w.scheme, w.shape[-1]
    assert isinstance(scheme, IntScheme)
    how = {"group_size": _group(scheme, k), "bits": scheme.bits}
    values, scales, zeros = w.parts["values"], w.parts["scales"], w.parts.get("zeros")
    times = _times(scheme, k)
    if w.layout == "plain":
        values = fa.bitcast(values, fa.uint32)
    elif scales.dtype is dtype:
        return values, scales, w.parts["biases"], how
    else:
        scales = scales[..., ::times]
    biases = fa.repeat(_biases(scheme, scales, zeros), times, axis=-1)
    return values, fa.repeat(scales.astype(fa.float32), times, axis=-1), biases, how
