"""Layers: an op together with its weights."""

from __future__ import annotations

from dataclasses import dataclass

from ferrum_array import Tensor
from ferrum_models.weights import Weights
from ferrum_ops import embedding, layer_norm, linear

__all__ = ["Embedding", "LayerNorm", "Linear"]


@dataclass(frozen=True)
class Linear:
    """``x @ weight.T + bias``: weight [out, in], bias [out] or absent.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_models.layers import Linear
        >>> Linear(fa.asarray([[2.0, 0.0]]), fa.asarray([1.0]))(fa.asarray([3.0, 4.0]))
        Tensor([7.])
    """

    weight: Tensor
    bias: Tensor | None = None

    @classmethod
    def load(cls, weights: Weights, inputs: int, outputs: int) -> Linear:
        """The layer whose tensors are ``weight`` and ``bias``."""
        return cls(weights.take("weight", (outputs, inputs)), weights.take("bias", (outputs,)))

    @classmethod
    def load_joined(cls, weights: Weights, parts: tuple[str, ...], inputs: int, outputs: int) -> Linear:
        """Several layers of the same input as one: their outputs lie side by side."""
        weight = weights.join(parts, "weight", (outputs, inputs))
        return cls(weight, weights.join(parts, "bias", (outputs,)))

    def __call__(self, x: Tensor) -> Tensor:
        """Apply to x [..., in]; the result is [..., out]."""
        return linear(x, self.weight, self.bias)


@dataclass(frozen=True)
class Embedding:
    """Rows of a table: weight [rows, D].

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_models.layers import Embedding
        >>> Embedding(fa.asarray([[1.0], [2.0]]))(fa.asarray([1, 0]))
        Tensor([[2.],
                [1.]])
    """

    weight: Tensor

    @classmethod
    def load(cls, weights: Weights, rows: int, size: int) -> Embedding:
        """The layer whose tensor is ``weight``."""
        return cls(weights.take("weight", (rows, size)))

    def __call__(self, ids: Tensor) -> Tensor:
        """The rows *ids* [...]; the result is [..., D]."""
        return embedding(self.weight, ids)


@dataclass(frozen=True)
class LayerNorm:
    """Normalisation over the last axis: weight and bias [D].

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_models.layers import LayerNorm
        >>> LayerNorm(fa.ones(2), fa.zeros(2), eps=0.0)(fa.asarray([1.0, 3.0]))
        Tensor([-1.,  1.])
    """

    weight: Tensor
    bias: Tensor
    eps: float

    @classmethod
    def load(cls, weights: Weights, size: int, eps: float) -> LayerNorm:
        """The layer whose tensors are ``weight`` and ``bias``."""
        return cls(weights.take("weight", (size,)), weights.take("bias", (size,)), eps)

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Normalise x [..., D], or its sum with *residual*."""
        if residual is None:
            return layer_norm(x, self.weight, self.bias, eps=self.eps)
        return layer_norm(x, self.weight, self.bias, eps=self.eps, residual=residual)[0]
