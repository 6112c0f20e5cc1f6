"""Layouts that MLX reads: ``value * scale + bias`` for integers, and 4-bit floats, the values in words of 32 bits."""

from __future__ import annotations

import ferrum_array as fa
from ferrum_array import Tensor
from ferrum_ops.quant.integer import IntScheme
from ferrum_ops.quant.mxfp4 import Mxfp4Scheme
from ferrum_ops.quant.types import Layout, Part, Parts, Scheme

__all__ = ["AFFINE", "GROUPS", "MXFP4", "Affine", "Words", "biases_of", "group_of", "held", "times"]

#: how many numbers may share a scale, the best first
GROUPS = (128, 64, 32)


def group_of(scheme: IntScheme, k: int) -> int | None:
    """The largest group of MLX's that divides the scheme's."""
    length = k if scheme.group is None else scheme.group
    return next((group for group in GROUPS if length and length % group == 0), None)


def held(scheme: Scheme, k: int) -> str | None:
    """Why MLX does not read the integers of *scheme* in rows of *k*, or None."""
    if not isinstance(scheme, IntScheme):
        return f"MLX reads integers in groups, not {scheme.name}"
    if group_of(scheme, k) is None:
        return f"MLX's groups are of {', '.join(map(str, GROUPS))}, which do not divide those of {scheme.name}"
    return None


def times(scheme: IntScheme, k: int) -> int:
    """How many of MLX's groups make one of the scheme's."""
    length = k if scheme.group is None else scheme.group
    return length // (group_of(scheme, k) or 1)


def _signed(scheme: IntScheme) -> bool:
    return scheme.bits == 8 and scheme.symmetric


def biases_of(scheme: IntScheme, scales: Tensor, zeros: Tensor | None) -> Tensor:
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
        return held(scheme, k)

    def parts(self, scheme: Scheme, n: int, k: int) -> dict[str, Part]:
        assert isinstance(scheme, IntScheme)
        plain = scheme.parts(n, k)
        groups = k // (group_of(scheme, k) or 1)
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
        exact = biases_of(scheme, scales, zeros)
        biases = exact.astype(scales.dtype, copy=False)
        if not fa.all(fa.isfinite(biases) == fa.isfinite(exact)):
            biases = exact
        repeats = times(scheme, shape[-1])
        found = {
            "values": fa.bitcast(values, fa.uint32),
            "scales": fa.repeat(scales, repeats, axis=-1),
            "biases": fa.repeat(biases, repeats, axis=-1),
        }
        return found | ({} if zeros is None else {"zeros": zeros})

    def unpack(self, scheme: Scheme, parts: Parts, shape: tuple[int, ...]) -> dict[str, Tensor]:
        assert isinstance(scheme, IntScheme)
        values = fa.bitcast(parts["values"], fa.uint8)
        if _signed(scheme):
            values = fa.bitcast(values ^ 128, fa.int8)
        found = {"values": values, "scales": parts["scales"][..., :: times(scheme, shape[-1])]}
        return found | ({"zeros": parts["zeros"]} if "zeros" in parts else {})


AFFINE = Affine()


class Words(Layout):
    """The layout ``mlx-mxfp4`` of an :class:`~ferrum_ops.quant.mxfp4.Mxfp4Scheme`.

    * ``values``: uint32 [N, K / 8], the bytes of the plain layout.
    * ``scales``: those of the plain layout, none of which is 255: MLX takes that for infinity.
    """

    name = "mlx-mxfp4"

    def refusal(self, scheme: Scheme, n: int, k: int) -> str | None:
        return None if isinstance(scheme, Mxfp4Scheme) else f"it holds mxfp4, not {scheme.name}"

    def parts(self, scheme: Scheme, n: int, k: int) -> dict[str, Part]:
        plain = scheme.parts(n, k)
        return {"values": Part((n, k // 8), (fa.uint32,)), "scales": plain["scales"]}

    def pack(self, scheme: Scheme, parts: Parts, shape: tuple[int, ...]) -> dict[str, Tensor]:
        if fa.any(parts["scales"] == 255):
            raise ValueError(f"{self.name}: MLX has no scale that is NaN (255), as some are here")
        return {"values": fa.bitcast(parts["values"], fa.uint32), "scales": parts["scales"]}

    def unpack(self, scheme: Scheme, parts: Parts, shape: tuple[int, ...]) -> dict[str, Tensor]:
        return {"values": fa.bitcast(parts["values"], fa.uint8), "scales": parts["scales"]}


MXFP4 = Words()
