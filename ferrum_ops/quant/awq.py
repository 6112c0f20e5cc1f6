"""The format of AWQ checkpoints: words of 32 bits with eight rows of N each, in an order of their own."""

from __future__ import annotations

from dataclasses import dataclass

import ferrum_array as fa
from ferrum_array import Tensor
from ferrum_ops.quant.bits import unpack_bits
from ferrum_ops.quant.integer import IntScheme
from ferrum_ops.quant.types import Part, Parts, Scheme, divided, whole

__all__ = ["AwqScheme"]


@dataclass(frozen=True)
class AwqScheme(Scheme):
    """``(value - zero) * scale`` with 4 bits in the format of AWQ checkpoints, which hold the transposed matrix.

    The tensors of an [N, K] matrix, with G = K / group:

    * ``qweight``: int32 [K, N / 8]: a word holds eight neighbours along N; from its lowest bits on, those with the
      numbers 0, 2, 4, 6, 1, 3, 5, 7.
    * ``qzeros``: int32 [G, N / 8]: the zeros, in the same way.
    * ``scales``: [G, N], float16, bfloat16 or float32.

    Numbers are computed in float32. Rows can be cut at multiples of 8.

    Source: Lin et al., "AWQ: Activation-aware weight quantization for LLM compression and acceleration", 2024; the
    format is that of its kernels for matrix products ("gemm").

    Attributes:
        group: how many numbers share a scale; None: all of a row.

    Raises:
        ValueError: for a group below 1.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_ops import QuantTensor, dequantize
        >>> from ferrum_ops.quant.awq import AwqScheme
        >>> qweight, qzeros = fa.full((1, 1), 0x76543210, dtype="i32"), fa.zeros((1, 1), dtype="i32")
        >>> parts = {"qweight": qweight, "qzeros": qzeros, "scales": fa.ones((1, 8), dtype="f16")}
        >>> dequantize(QuantTensor(AwqScheme(1), (8, 1), parts)).tolist()
        [[0.0], [4.0], [1.0], [5.0], [2.0], [6.0], [3.0], [7.0]]
    """

    group: int | None = 128

    def __post_init__(self) -> None:
        if self.group is not None and not whole(self.group):
            raise ValueError(
                f"AwqScheme: group must be an integer of at least 1, or None for the whole row, got {self.group!r}"
            )

    @property
    def kind(self) -> str:
        """``awq4``."""
        return "awq4"

    @property
    def name(self) -> str:
        """For example ``awq4-g128``."""
        return self.kind if self.group is None else f"{self.kind}-g{self.group}"

    def parts(self, n: int, k: int) -> dict[str, Part]:
        groups = min(k, 1) if self.group is None else divided(self, "K", k, self.group, "the group")
        words = divided(self, "N", n, 8, "the numbers of a word")
        return {
            "qweight": Part((k, words), (fa.int32,), axis=-1, per=8),
            "qzeros": Part((groups, words), (fa.int32,), axis=-1, per=8),
            "scales": Part((groups, n), (fa.float16, fa.bfloat16, fa.float32), axis=-1),
        }

    def decode(self, parts: Parts, shape: tuple[int, ...]) -> Tensor:
        if 0 in shape:
            return fa.zeros(shape, dtype="f32", device=parts["scales"].device)
        k = shape[-1]
        size = self.group or k
        values, zeros = _neighbours(parts["qweight"]).astype("f32"), _neighbours(parts["qzeros"]).astype("f32")
        grouped = values.reshape((*values.shape[:-2], k // size, size, values.shape[-1]))
        numbers = (grouped - fa.expand_dims(zeros, -2)) * fa.expand_dims(parts["scales"].astype("f32"), -2)
        return fa.moveaxis(numbers.reshape(values.shape), -1, -2)

    def as_integers(self, parts: Parts, shape: tuple[int, ...]) -> tuple[IntScheme, dict[str, Tensor]] | None:
        if shape[-1] % 2:  # a row would end inside a byte
            return None
        stored = (_neighbours(parts["qweight"]), _neighbours(parts["qzeros"]), parts["scales"])
        values, zeros, scales = (fa.moveaxis(x, -1, -2) for x in stored)
        return IntScheme(4, self.group, False, scales.dtype).packed(values, zeros, scales)


def _neighbours(words: Tensor) -> Tensor:
    """Words [..., M] as their 4-bit numbers in order, uint8 [..., 8 M]."""
    numbers = unpack_bits(fa.bitcast(words, fa.uint8), 4)
    # the lower half of a word holds the even ones, the upper half the odd ones
    halves = numbers.reshape((*words.shape, 2, 4))
    return fa.moveaxis(halves, -1, -2).reshape(numbers.shape)
