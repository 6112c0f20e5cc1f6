"""4-bit floats in groups of 32 with a power of two as their scale."""

from __future__ import annotations

from dataclasses import dataclass

import ferrum_array as fa
from ferrum_array import Tensor
from ferrum_ops.quant.bits import pack_bits, unpack_bits
from ferrum_ops.quant.integer import amax
from ferrum_ops.quant.minifloat import E2M1
from ferrum_ops.quant.types import Part, Parts, Scheme, divided

__all__ = ["GROUP", "Mxfp4Scheme"]

#: How many numbers share a scale.
GROUP = 32


@dataclass(frozen=True)
class Mxfp4Scheme(Scheme):
    """``float * 2**(e - 127)``, with floats of 4 bits (0, 0.5, 1, 1.5, 2, 3, 4, 6 and a sign) in groups of 32 along K.

    The tensors of an [N, K] matrix:

    * ``values``: uint8 [N, K / 2]: byte j of a row holds number 2 j in its low half and 2 j + 1 in its high half.
    * ``scales``: uint8 [N, K / 32]: e; 255 stands for NaN.

    Quantising takes the least power of two with which no number is beyond 7 times it, so that what is rounded to 6 was
    no farther from it than half the last step, and rounds to nearest, half to even. (The conversion that the
    specification gives as an example lets numbers up to 8 times the scale become 6.) Infinities and NaN make their
    group NaN.

    Source: Open Compute Project, "OCP Microscaling Formats (MX) Specification", version 1.0, 2023.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_ops import dequantize, quantize
        >>> q = quantize(fa.asarray([[6.0, 1.4, -2.6] + [0.0] * 29]), "mxfp4")
        >>> q.parts["scales"], dequantize(q)[0, :3]
        (Tensor([[127]], dtype=uint8), Tensor([ 6. ,  1.5, -3. ]))
    """

    @property
    def kind(self) -> str:
        """``mxfp4``."""
        return "mxfp4"

    @property
    def name(self) -> str:
        """``mxfp4``."""
        return "mxfp4"

    def parts(self, n: int, k: int) -> dict[str, Part]:
        groups = divided(self, "K", k, GROUP, "the group")
        return {"values": Part((n, k // 2), (fa.uint8,)), "scales": Part((n, groups), (fa.uint8,))}

    def decode(self, parts: Parts, shape: tuple[int, ...]) -> Tensor:
        groups = (*shape[:-1], shape[-1] // GROUP, GROUP)
        numbers = E2M1.decode(unpack_bits(parts["values"], 4)).reshape(groups)
        return (numbers * fa.expand_dims(_power(parts["scales"]), -1)).reshape(shape)

    def encode(self, x: Tensor) -> dict[str, Tensor]:
        count = x.shape[-1] // GROUP
        groups = x.reshape((*x.shape[:-1], count, GROUP))
        # the bits of a number that is a power of two are its exponent and zeros: adding all ones rounds up to the next
        least = amax(groups) * (1.0 / 7.0)
        e = (fa.bitcast(least, fa.uint32) + 0x007FFFFF) >> 23
        e = fa.clip(e, 0, 255).astype("u8")
        codes = E2M1.encode(groups / fa.expand_dims(_power(e), -1))
        return {"values": pack_bits(codes.reshape(x.shape), 4), "scales": e}


def _power(e: Tensor) -> Tensor:
    """2**(e - 127) as float32, by its bits; NaN for 255. The least is subnormal."""
    wide = e.astype("u32")
    bits = fa.where(wide == 0, 0x00400000, fa.where(wide == 255, 0x7FC00000, wide << 23))
    return fa.bitcast(bits, fa.float32)
