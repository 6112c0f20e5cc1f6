"""Floats of 4 and 8 bits, by way of float16: its bits hold theirs, with another offset of the exponent."""

from __future__ import annotations

from dataclasses import dataclass

import ferrum_array as fa
from ferrum_array import Tensor

__all__ = ["E2M1", "E4M3", "E5M2", "Minifloat"]


@dataclass(frozen=True)
class Minifloat:
    """A sign, a few bits of exponent and a few of mantissa, with subnormal numbers, rounded half to even.

    Attributes:
        bits: how many there are, with the sign.
        mantissa: how many of them are the mantissa.
        lowest: the exponent of the least normal number.
        top: the greatest number.
        nan: whether the last code, all ones but for the sign, is NaN.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_ops.quant.minifloat import E2M1, E4M3
        >>> E2M1.decode(fa.asarray([1, 7, 9], dtype="u8"))
        Tensor([ 0.5,  6. , -0.5])
        >>> E4M3.encode(fa.asarray([1.0, 448.0, -1.07])).tolist()
        [56, 126, 185]
    """

    bits: int
    mantissa: int
    lowest: int
    top: float
    nan: bool = False

    @property
    def _ones(self) -> int:
        return (1 << (self.bits - 1)) - 1

    @property
    def _shift(self) -> int:
        """How far the mantissa stands from that of float16, which has 10 bits."""
        return 10 - self.mantissa

    @property
    def _scale(self) -> float:
        """Float16 has the least normal exponent -14."""
        return 2.0 ** (self.lowest + 14)

    def decode(self, codes: Tensor) -> Tensor:
        """The numbers, float32, of *codes*, uint8."""
        magnitude = codes & self._ones
        sign = (codes >> (self.bits - 1)).astype("u16") << 15
        half = fa.bitcast(sign | (magnitude.astype("u16") << self._shift), fa.float16)
        numbers = half.astype("f32") * self._scale
        return fa.where(magnitude == self._ones, fa.nan, numbers) if self.nan else numbers

    def encode(self, x: Tensor) -> Tensor:
        """The codes of the numbers nearest to *x*, float32; what is beyond the greatest becomes the greatest.

        NaN becomes NaN, where there is one.
        """
        x = fa.clip(x, -self.top, self.top)
        # the power of two at or below each number gives the distance of its neighbours
        power = fa.bitcast(fa.bitcast(x, fa.uint32) & 0x7F800000, fa.float32)
        step = fa.maximum(power, 2.0**self.lowest) * 2.0**-self.mantissa
        # all of float16's numbers are exact here, so its own rounding does nothing
        half = (fa.round(x / step) * step * (1.0 / self._scale)).astype("f16")
        code = fa.bitcast(half, fa.uint16)
        sign = (code >> 15) << (self.bits - 1)
        magnitude = (code >> self._shift) & self._ones
        if self.nan:
            magnitude = fa.where(fa.isnan(x), self._ones, magnitude)
        return (sign | magnitude).astype("u8")


#: 0, 0.5, 1, 1.5, 2, 3, 4, 6 (OCP Microscaling Formats 1.0).
E2M1 = Minifloat(4, 1, 0, 6.0)
#: To 448, without infinities; the last code is NaN (Micikevicius et al., "FP8 formats for deep learning", 2022).
E4M3 = Minifloat(8, 3, -6, 448.0, nan=True)
#: To 57344, as float16 with fewer bits (the same).
E5M2 = Minifloat(8, 2, -14, 57344.0, nan=True)
