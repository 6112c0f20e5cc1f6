"""Linear layers with low-rank changes beside their weight."""

from __future__ import annotations

import ferrum_array as fa
from ferrum_array import Dtype, Tensor
from ferrum_models.layers.basic import Linear
from ferrum_models.layers.module import Module, layer
from ferrum_ops import QuantTensor, dequantize, linear, lora_delta

__all__ = ["LoRA", "LowRank"]


@layer
class LowRank(Module):
    """A change of a weight [out, in] by ``scale * lora_B @ lora_A``: lora_A [r, in], lora_B [out, r].

    Source: Hu et al., "LoRA: Low-rank adaptation of large language models", 2021.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_models.layers import LowRank
        >>> LowRank(fa.ones((1, 2)), fa.ones((3, 1)), 0.5)(fa.asarray([1.0, 2.0]))
        Tensor([1.5, 1.5, 1.5])
    """

    lora_A: Tensor
    lora_B: Tensor
    scale: float

    def __call__(self, x: Tensor) -> Tensor:
        """What x [..., in] adds to the layer's result, [..., out]."""
        return lora_delta(x, self.lora_A, self.lora_B, self.scale)


@layer
class LoRA(Linear):
    """A linear layer, dense or quantised, to whose result its *adapters* add theirs.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_models.layers import LoRA, LowRank
        >>> change = LowRank(fa.ones((1, 1)), fa.ones((1, 1)), 10.0)
        >>> LoRA(fa.ones((1, 1)), None, (change, change))(fa.asarray([2.0]))
        Tensor([42.])
    """

    adapters: tuple[LowRank, ...] = ()

    def __call__(self, x: Tensor, *, dtype: Dtype | None = None) -> Tensor:
        """Apply to x [..., in]; the result is [..., out], in *dtype* or that of *x*."""
        y = linear(x, self.weight, self.bias, dtype=dtype)
        for one in self.adapters:
            y = y + one(x).astype(y.dtype, copy=False)
        return y

    def joins(self) -> bool:
        """Not where there are adapters: they add to each result."""
        return not self.adapters

    @property
    def matrix(self) -> Tensor:
        """The numbers [out, in] by which inputs are multiplied, all changes added in float32 and rounded once."""
        wide = fa.float64 if self.weight.dtype is fa.float64 else fa.float32
        stored = self.weight
        total = dequantize(stored, wide) if isinstance(stored, QuantTensor) else stored.astype(wide)
        for one in self.adapters:
            total = total + (one.lora_B.astype(wide) @ one.lora_A.astype(wide)) * one.scale
        return total.astype(stored.dtype)
