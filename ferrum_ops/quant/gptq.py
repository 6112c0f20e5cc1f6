"""The format of GPTQ checkpoints: words of 32 bits with several rows of K each, and groups that K may name."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

import ferrum_array as fa
from ferrum_array import Tensor
from ferrum_ops.quant.bits import unpack_bits
from ferrum_ops.quant.integer import IntScheme
from ferrum_ops.quant.types import Part, Parts, Scheme, divided, whole

__all__ = ["GptqScheme"]

_SCALES = (fa.float16, fa.bfloat16, fa.float32)


@dataclass(frozen=True)
class GptqScheme(Scheme):
    """``(value - zero) * scale`` in the format of GPTQ checkpoints, which hold the transposed matrix.

    The tensors of an [N, K] matrix, with G = K / group, rounded up:

    * ``qweight``: int32 [K * bits / 32, N]: the unsigned values of a column, a stream along K, the first in the lowest
      bits.
    * ``qzeros``: int32 [G, N * bits / 32]: the zeros, a stream along N. Version 1 stores them less one, so that a zero
      may be 2**bits; version 2 stores them as they are.
    * ``scales``: [G, N], float16, bfloat16 or float32.
    * ``g_idx``: only where *ordered*: int32 [K], the group of each number, in any order. Otherwise number k is of group
      k // group. That its entries are from 0 to G - 1 is checked by reading back the least and the greatest.

    Numbers are computed in float32. Rows can be cut where the zeros are at the edge of a word.

    Source: Frantar et al., "GPTQ: Accurate post-training quantization for generative pre-trained transformers", 2023;
    the format is that of AutoGPTQ (version 1) and GPTQModel (both).

    Attributes:
        bits: 2, 3, 4 or 8.
        group: how many numbers share a scale; None: all of a row.
        version: 1 or 2.
        ordered: whether ``g_idx`` says which group a number belongs to ("act order").

    Raises:
        ValueError: for other bits, groups or versions.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_ops import QuantTensor, dequantize
        >>> from ferrum_ops.quant.gptq import GptqScheme
        >>> qweight = fa.asarray([[0x76543210] * 8], dtype="i32")
        >>> qzeros, scales = fa.full((1, 1), 0x11111111, dtype="i32"), fa.full((1, 8), 0.5, dtype="f16")
        >>> q = QuantTensor(GptqScheme(), (8, 8), {"qweight": qweight, "qzeros": qzeros, "scales": scales})
        >>> dequantize(q)[0]
        Tensor([-1. , -0.5,  0. ,  0.5,  1. ,  1.5,  2. ,  2.5])
    """

    bits: int = 4
    group: int | None = 128
    version: int = 1
    ordered: bool = False

    def __post_init__(self) -> None:
        if not whole(self.bits) or self.bits not in (2, 3, 4, 8):
            raise ValueError(f"GptqScheme: bits must be 2, 3, 4 or 8, got {self.bits!r}")
        if self.group is not None and not whole(self.group):
            raise ValueError(
                f"GptqScheme: group must be an integer of at least 1, or None for the whole row, got {self.group!r}"
            )
        if self.version not in (1, 2):
            raise ValueError(f"GptqScheme: version must be 1 or 2, got {self.version!r}")

    @property
    def kind(self) -> str:
        """``gptq4`` and so on."""
        return f"gptq{self.bits}"

    @property
    def name(self) -> str:
        """For example ``gptq4-g128``, ``gptq4-g128-v2``, ``gptq8-g32-order``."""
        group = [] if self.group is None else [f"g{self.group}"]
        return "-".join([self.kind, *group, *["v2"] * (self.version == 2), *["order"] * self.ordered])

    @property
    def features(self) -> tuple[str, ...]:
        """``quant:gptq4`` and so on; ``order`` where ``g_idx`` names the groups."""
        return (f"quant:{self.kind}", "order") if self.ordered else (f"quant:{self.kind}",)

    def groups(self, k: int) -> int:
        """G: how many scales there are for a row of *k* numbers."""
        return min(k, 1) if self.group is None else -(-k // self.group)

    def parts(self, n: int, k: int) -> dict[str, Part]:
        groups, words = self.groups(k), (fa.int32,)
        down = divided(self, "K * bits", k * self.bits, 32, "the bits of a word of qweight")
        across = divided(self, "N * bits", n * self.bits, 32, "the bits of a word of qzeros")
        common = gcd(32, self.bits)  # the stream is at the edge of a word after 32 / common numbers
        found = {
            "qweight": Part((down, n), words, axis=-1),
            "qzeros": Part((groups, across), words, axis=-1, per=32 // common, places=self.bits // common),
            "scales": Part((groups, n), _SCALES, axis=-1),
        }
        if self.ordered:
            found["g_idx"] = Part((k,), words, axis=None)
        return found

    def integers(self, parts: Parts) -> tuple[Tensor, Tensor, Tensor]:
        """The values [..., N, K], uint8, the zeros [..., N, G], int16, and the scales [..., N, G]."""
        values = unpack_bits(fa.bitcast(_turned(parts["qweight"]), fa.uint8), self.bits)
        zeros = _turned(unpack_bits(fa.bitcast(parts["qzeros"], fa.uint8), self.bits)).astype("i16")
        return values, zeros + 1 if self.version == 1 else zeros, _turned(parts["scales"])

    def decode(self, parts: Parts, shape: tuple[int, ...]) -> Tensor:
        if 0 in shape:
            return fa.zeros(shape, dtype="f32", device=parts["scales"].device)
        if self.ordered and len(shape) == 3:
            # each matrix has an order of its own
            matrices = [{name: part[e] for name, part in parts.items()} for e in range(shape[0])]
            return fa.stack([self.decode(one, shape[1:]) for one in matrices])
        values, zeros, scales = self.integers(parts)
        each = self._group_of_each(parts, shape[-1], values)
        zero = fa.take(zeros.astype("f32"), each, axis=-1)
        return (values.astype("f32") - zero) * fa.take(scales.astype("f32"), each, axis=-1)

    def _group_of_each(self, parts: Parts, k: int, like: Tensor) -> Tensor:
        if not self.ordered:
            return fa.arange(k, device=like.device) // (self.group or k)
        groups = self.groups(k)
        low, high = int(fa.min(parts["g_idx"])), int(fa.max(parts["g_idx"]))
        if low < 0 or high >= groups:
            raise IndexError(f"{self.name}: g_idx runs from {low} to {high}, but there are {groups} groups")
        return parts["g_idx"]

    def as_integers(self, parts: Parts, shape: tuple[int, ...]) -> tuple[IntScheme, dict[str, Tensor]] | None:
        if self.ordered or 0 in shape or shape[-1] % (self.group or shape[-1]):
            return None
        values, zeros, scales = self.integers(parts)
        if int(fa.max(zeros)) > 255:  # 8 bits and version 1 may have it
            return None
        return IntScheme(self.bits, self.group, False, scales.dtype).packed(values, zeros.astype("u8"), scales)


def _turned(x: Tensor) -> Tensor:
    return fa.moveaxis(x, -1, -2)
