"""Integers with a scale for each row, or for each group of a row."""

from __future__ import annotations

import math
from dataclasses import dataclass

import ferrum_array as fa
from ferrum_array import Dtype, Tensor
from ferrum_ops.quant.bits import pack_bits, unpack_bits
from ferrum_ops.quant.types import Part, Parts, Scheme, divided, whole

__all__ = ["SCALES", "WIDTHS", "IntScheme", "amax", "least", "scale_up"]

#: How many bits a number may have: those that fill bytes after a few numbers.
WIDTHS = (2, 3, 4, 5, 6, 8)

#: The dtypes that scales may have, and what they add to a scheme's name.
SCALES = {fa.float32: "", fa.float16: "-f16", fa.bfloat16: "-bf16"}


@dataclass(frozen=True)
class IntScheme(Scheme):
    """``(value - zero) * scale``, with integers of 2 to 8 bits along K; their scale belongs to a group of the row.

    The tensors of an [N, K] matrix, G groups a row (1 without *group*, 0 if K is 0), all of them in order of rows:

    * ``values``: of 8 bits and symmetric, int8 [N, K]: the integers themselves. Otherwise uint8 [N, K * bits / 8], a
      stream of unsigned integers, the first in the lowest bits of the first byte: of 4 bits, byte j of a row holds
      number 2 j in its low half and 2 j + 1 in its high half. Symmetric ones are stored with 2**(bits - 1) added, so
      that 8 stands for 0 in 4 bits.
    * ``scales``: [N, G], float32, float16 or bfloat16.
    * ``zeros``: only where not symmetric: uint8 [N, G], the integer that stands for 0.

    Numbers are computed in float32. Quantising takes the least scale that the dtype of the scales has and that clips
    nothing, and rounds to the nearest integer, half to even; symmetric integers go from -m to m with
    m = 2**(bits - 1) - 1, the others from 0 to 2**bits - 1, with 0 itself among the numbers that they stand for. A
    group whose scale leaves the range of its dtype, or that holds infinities or NaN, becomes NaN.

    Source: Jacob et al., "Quantization and training of neural networks for efficient integer-arithmetic-only
    inference", 2018, for the formula; Dettmers et al., "LLM.int8()", 2022, for rows, and for inputs rounded as they
    come.

    Attributes:
        bits: 2, 3, 4, 5, 6 or 8.
        group: how many numbers of a row share a scale; None: the whole row.
        symmetric: whether 0 stands in the middle, or each group has a zero of its own.
        scale: the dtype of the scales that ``quantize`` makes.
        activations: None, or 8: the inputs of products with such weights are rounded too, to integers from -127 to 127
            with a scale for each group of each row, see ``inputs``. Products of integers are several times as fast;
            of normal numbers, the rounding moves a result by about one hundredth.

    Raises:
        ValueError: for other bits, a group below 1, a dtype that scales cannot have, or other activations.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_ops import dequantize, quantize
        >>> q = quantize(fa.asarray([[1.0, -7.0, 0.4, 3.0]]), "int4")
        >>> q.parts["scales"], dequantize(q)
        (Tensor([[1.]]), Tensor([[ 1., -7.,  0.,  3.]]))
        >>> [hex(byte) for byte in q.parts["values"].tolist()[0]]
        ['0x19', '0xb8']
    """

    bits: int = 8
    group: int | None = None
    symmetric: bool = True
    scale: Dtype = fa.float32
    activations: int | None = None

    def __post_init__(self) -> None:
        if not whole(self.bits) or self.bits not in WIDTHS:
            raise ValueError(f"IntScheme: bits must be one of {WIDTHS}, got {self.bits!r}")
        if self.group is not None and not whole(self.group):
            raise ValueError(
                f"IntScheme: group must be an integer of at least 1, or None for the whole row, got {self.group!r}"
            )
        if self.scale not in SCALES:
            raise ValueError(f"IntScheme: scales are {', '.join(map(str, SCALES))}, not {self.scale}")
        if self.activations not in (None, 8):
            raise ValueError(f"IntScheme: activations must be None or 8 bits, got {self.activations!r}")

    @property
    def kind(self) -> str:
        """The family: ``int4``, ``int8`` and so on."""
        return f"int{self.bits}"

    @property
    def name(self) -> str:
        """For example ``int8``, ``int8-a8``, ``int4-g32``, ``int4-g128-asym``, ``int4-g32-a8-f16``."""
        words = [self.kind]
        words += [f"g{self.group}"] if self.group is not None else []
        words += [] if self.symmetric else ["asym"]
        words += [] if self.activations is None else [f"a{self.activations}"]
        return "-".join(words) + SCALES[self.scale]

    @property
    def features(self) -> tuple[str, ...]:
        """``quant:int4`` and so on; ``zeros`` where groups have their own zero; ``a8`` where inputs are rounded."""
        return (
            f"quant:{self.kind}",
            *(() if self.symmetric else ("zeros",)),
            *(() if self.activations is None else (f"a{self.activations}",)),
        )

    def groups(self, k: int) -> int:
        """G: how many scales a row of *k* numbers has.

        Raises:
            ValueError: if *k* is not divisible by the group.
        """
        return min(k, 1) if self.group is None else divided(self, "K", k, self.group, "the group")

    def parts(self, n: int, k: int) -> dict[str, Part]:
        groups = self.groups(k)
        size = divided(self, "K * bits", k * self.bits, 8, "so a row would end inside a byte")
        signed = self.bits == 8 and self.symmetric
        found = {
            "values": Part((n, size), (fa.int8 if signed else fa.uint8,)),
            "scales": Part((n, groups), tuple(SCALES)),
        }
        if not self.symmetric:
            found["zeros"] = Part((n, groups), (fa.uint8,))
        return found

    def decode(self, parts: Parts, shape: tuple[int, ...]) -> Tensor:
        if 0 in shape:
            return fa.zeros(shape, dtype="f32", device=parts["scales"].device)
        values = unpack_bits(parts["values"], self.bits)
        grouped = (*shape[:-1], self.groups(shape[-1]), -1)
        numbers = values.astype("f32").reshape(grouped)
        if not self.symmetric:
            numbers -= fa.expand_dims(parts["zeros"].astype("f32"), -1)
        elif self.bits < 8:
            numbers -= float(1 << (self.bits - 1))
        numbers *= fa.expand_dims(parts["scales"].astype("f32"), -1)
        return numbers.reshape(shape)

    def inputs(self, x: Tensor) -> Tensor:
        """With *activations*, the numbers that the rounded *x* stands for, in its dtype; else *x*.

        In float32: the scale of a group of a row is its greatest magnitude over 127, at least 2**-126; each number is
        multiplied by one over the scale and rounded to the nearest integer, half to even, and stands for that times
        the scale. A group that holds infinities or NaN becomes NaN.
        """
        if self.activations is None or 0 in x.shape:
            return x
        grouped = x.astype("f32", copy=False).reshape((*x.shape[:-1], self.groups(x.shape[-1]), -1))
        most = amax(grouped)
        scale = fa.where(fa.isfinite(most), fa.maximum(most / 127.0, 2.0**-126), math.nan)
        scale = fa.expand_dims(scale, -1)
        return (fa.round(grouped * (1.0 / scale)) * scale).reshape(x.shape).astype(x.dtype, copy=False)

    def packed(self, values: Tensor, zeros: Tensor, scales: Tensor) -> tuple[IntScheme, dict[str, Tensor]]:
        """This scheme, which has zeros, and its parts: of values [..., N, K], zeros and scales [..., N, G]."""
        return self, {"values": pack_bits(values, self.bits), "scales": scales.copy(), "zeros": zeros.copy()}

    def encode(self, x: Tensor) -> dict[str, Tensor]:
        groups = self.groups(x.shape[-1])
        grouped = x.reshape((*x.shape[:-1], groups, x.shape[-1] // groups if groups else 1))
        if self.symmetric:
            top = (1 << (self.bits - 1)) - 1
            scale = scale_up(amax(grouped) / top, self.scale)
            q = fa.clip(fa.round(grouped / fa.expand_dims(scale.astype("f32"), -1)), -top, top)
            zero = None
        else:
            top = (1 << self.bits) - 1
            low, high = fa.minimum(least(grouped), 0.0), fa.maximum(-least(-grouped), 0.0)
            # halves, whose difference is in range
            scale = scale_up((high * 0.5 - low * 0.5) / (0.5 * top), self.scale)
            wide = scale.astype("f32")
            zero = fa.clip(fa.round(-low / wide), 0, top)
            q = fa.round(grouped / fa.expand_dims(wide, -1)) + fa.expand_dims(zero, -1)
            q = fa.clip(q, 0, top)
        if self.symmetric and self.bits < 8:
            q += float(1 << (self.bits - 1))
        integers = q.reshape(x.shape).astype("i8" if self.symmetric and self.bits == 8 else "u8")
        parts = {"values": pack_bits(integers, self.bits), "scales": scale}
        if zero is not None:
            parts["zeros"] = zero.astype("u8")
        return parts


def least(x: Tensor) -> Tensor:
    """The least number of the last axis; 0 for none."""
    return fa.min(x, axis=-1) if x.size else fa.zeros(x.shape[:-1], dtype=x.dtype, device=x.device)


def amax(x: Tensor) -> Tensor:
    """The greatest magnitude of the last axis; 0 where there are no numbers."""
    return fa.max(fa.abs(x), axis=-1) if x.size else fa.zeros(x.shape[:-1], dtype=x.dtype, device=x.device)


def scale_up(scale: Tensor, dtype: Dtype) -> Tensor:
    """*scale*, float32 and not negative, rounded up to a positive number of *dtype*, so that nothing is clipped.

    It is at least 2**-126, and so never 0: dividing by it is safe, and numbers smaller than it lose their bits. What is
    not finite, or beyond *dtype*, becomes NaN: then so does every number of the group, whatever is stored for it.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_ops.quant.integer import scale_up
        >>> scale_up(fa.asarray([0.5, 2048.0, 2049.0]), fa.float16).tolist()
        [0.5, 2048.0, 2050.0]
    """
    scale = fa.maximum(scale, 2.0**-126)
    if dtype is not fa.float32:
        near = scale.astype(dtype)
        # positive floats follow one another as their bits do
        up = fa.bitcast(fa.bitcast(near, fa.uint16) + 1, dtype)
        scale = fa.where(near.astype("f32") < scale, up, near)
    return fa.where(fa.isfinite(scale), scale, math.nan)
