"""MLX's own format: integers with a scale and an offset for each group."""

from __future__ import annotations

from dataclasses import dataclass

import ferrum_array as fa
from ferrum_array import Dtype, Tensor
from ferrum_ops.quant.bits import pack_bits, unpack_bits
from ferrum_ops.quant.integer import SCALES, WIDTHS, least, scale_up
from ferrum_ops.quant.types import Part, Parts, Scheme, divided, whole

__all__ = ["MlxScheme"]


@dataclass(frozen=True)
class MlxScheme(Scheme):
    """``value * scale + bias``, as MLX stores affine weights.

    The tensors of an [N, K] matrix, with G = K / group:

    * ``values``: uint32 [N, K * bits / 32]: unsigned integers, a stream along K, the first in the lowest bits.
    * ``scales`` and ``biases``: [N, G], float32, float16 or bfloat16, which may be negative.

    Numbers are computed in float32. (MLX itself computes them in the dtype of the scales when asked for the matrix.)
    Quantising takes the least number of a group as its bias and the least scale that reaches the greatest, both
    rounded so that nothing is clipped, and rounds to the nearest integer, half to even. MLX's own function chooses the
    scale so that 0 is met exactly, for which it clips the other end.

    Source: MLX, ``mlx.core.quantize``, mode "affine".

    Attributes:
        bits: 2, 3, 4, 5, 6 or 8.
        group: how many numbers of a row share a scale.
        scale: the dtype of the scales and biases that ``quantize`` makes.

    Raises:
        ValueError: for other bits, a group below 1, or a dtype that scales cannot have.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_ops import dequantize, quantize
        >>> q = quantize(fa.arange(32, dtype="f32").reshape(1, 32) * 0.5, "mlx8-g32")
        >>> q.parts["values"].shape, q.parts["biases"], dequantize(q, "f16")[0, -1].item()
        ((1, 8), Tensor([[0.]]), 15.5)
    """

    bits: int = 4
    group: int = 64
    scale: Dtype = fa.float32

    def __post_init__(self) -> None:
        if not whole(self.bits) or self.bits not in WIDTHS:
            raise ValueError(f"MlxScheme: bits must be one of {WIDTHS}, got {self.bits!r}")
        if not whole(self.group):
            raise ValueError(f"MlxScheme: group must be an integer of at least 1, got {self.group!r}")
        if self.scale not in SCALES:
            raise ValueError(f"MlxScheme: scales are {', '.join(map(str, SCALES))}, not {self.scale}")

    @property
    def kind(self) -> str:
        """``mlx4`` and so on."""
        return f"mlx{self.bits}"

    @property
    def name(self) -> str:
        """For example ``mlx4-g64``, ``mlx8-g32-f16``."""
        return f"{self.kind}-g{self.group}{SCALES[self.scale]}"

    def parts(self, n: int, k: int) -> dict[str, Part]:
        groups = divided(self, "K", k, self.group, "the group")
        words = divided(self, "K * bits", k * self.bits, 32, "the bits of a word")
        scales = Part((n, groups), tuple(SCALES))
        return {"values": Part((n, words), (fa.uint32,)), "scales": scales, "biases": scales}

    def decode(self, parts: Parts, shape: tuple[int, ...]) -> Tensor:
        if 0 in shape:
            return fa.zeros(shape, dtype="f32", device=parts["scales"].device)
        values = unpack_bits(fa.bitcast(parts["values"], fa.uint8), self.bits).astype("f32")
        numbers = values.reshape((*shape[:-1], shape[-1] // self.group, self.group))
        numbers *= fa.expand_dims(parts["scales"].astype("f32"), -1)
        numbers += fa.expand_dims(parts["biases"].astype("f32"), -1)
        return numbers.reshape(shape)

    def encode(self, x: Tensor) -> dict[str, Tensor]:
        top = (1 << self.bits) - 1
        groups = x.reshape((*x.shape[:-1], x.shape[-1] // self.group, self.group))
        bias = _down(least(groups), self.scale)
        low = bias.astype("f32")
        # halves, whose difference is in range
        scale = scale_up((-least(-groups) * 0.5 - low * 0.5) / (0.5 * top), self.scale)
        steps = (groups - fa.expand_dims(low, -1)) / fa.expand_dims(scale.astype("f32"), -1)
        values = fa.clip(fa.round(steps), 0, top).astype("u8").reshape(x.shape)
        return {"values": fa.bitcast(pack_bits(values, self.bits), fa.uint32), "scales": scale, "biases": bias}


def _down(x: Tensor, dtype: Dtype) -> Tensor:
    """*x*, float32, rounded down to a number of *dtype*."""
    near = x.astype(dtype)
    if dtype is fa.float32:
        return near
    # below a negative number comes the one with the next higher bits; below 0 the least negative one
    bits = fa.bitcast(near, fa.uint16)
    below = fa.where(near > 0, bits - 1, fa.where(near < 0, bits + 1, 0x8001))
    return fa.where(near.astype("f32") > x, fa.bitcast(below, dtype), near)
