"""Layers of one op and its weights: linear, embedding and normalisation."""

from __future__ import annotations

from typing import overload

import ferrum_array as fa
from ferrum_array import Dtype, Tensor
from ferrum_models.layers.module import Module, Parameter, layer
from ferrum_models.weights import Weights
from ferrum_ops import QuantTensor, dequantize, embedding, layer_norm, linear, linears, rms_norm

__all__ = ["Embedding", "LayerNorm", "Linear", "RMSNorm", "project"]


@layer
class Linear(Module):
    """``x @ weight.T + bias``: weight [out, in], dense or quantised; bias [out] or absent.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_models.layers import Linear
        >>> Linear(fa.asarray([[2.0, 0.0]]), fa.asarray([1.0]))(fa.asarray([3.0, 4.0]))
        Tensor([7.])
    """

    weight: Parameter
    bias: Tensor | None = None

    @classmethod
    def load(cls, weights: Weights, inputs: int, outputs: int, *, bias: bool = False) -> Linear:
        """The layer whose tensors are ``weight``, in whatever form it is stored, and ``bias``."""
        return cls(weights.linear((outputs, inputs)), weights.take("bias", (outputs,)) if bias else None)

    @classmethod
    def load_joined(cls, weights: Weights, parts: tuple[str, ...], inputs: int, outputs: int) -> Linear:
        """Several layers of the same input as one: their outputs lie side by side."""
        weight = weights.join(parts, "weight", (outputs, inputs))
        return cls(weight, weights.join(parts, "bias", (outputs,)))

    def __call__(self, x: Tensor, *, dtype: Dtype | None = None) -> Tensor:
        """Apply to x [..., in]; the result is [..., out], in *dtype* or that of *x*."""
        return linear(x, self.weight, self.bias, dtype=dtype)

    def joins(self) -> bool:
        """Whether the layer is its weight and bias and no more, so that one product may serve several layers."""
        return True

    @property
    def matrix(self) -> Tensor:
        """The numbers [out, in] by which inputs are multiplied: for layers that use them in another way."""
        return dequantize(self.weight) if isinstance(self.weight, QuantTensor) else self.weight


def project(x: Tensor, *layers: Linear) -> tuple[Tensor, ...]:
    """The results of several linear layers of one input, in one call where that is possible.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_models.layers import Linear
        >>> from ferrum_models.layers.basic import project
        >>> project(fa.asarray([3.0]), Linear(fa.asarray([[2.0]])), Linear(fa.asarray([[5.0]])))
        (Tensor([6.]), Tensor([15.]))
    """
    if all(one.joins() for one in layers):
        return linears(x, [one.weight for one in layers], [one.bias for one in layers])
    return tuple(one(x) for one in layers)


@layer
class Embedding(Module):
    """Rows of a table: weight [rows, D], dense or quantised.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_models.layers import Embedding
        >>> Embedding(fa.asarray([[1.0], [2.0]]))(fa.asarray([1, 0]))
        Tensor([[2.],
                [1.]])
    """

    weight: Parameter

    @classmethod
    def load(cls, weights: Weights, rows: int, size: int) -> Embedding:
        """The layer whose tensor is ``weight``, in whatever form it is stored."""
        return cls(weights.table((rows, size)))

    def __call__(self, ids: Tensor, *, scale: float | None = None, check: bool = True) -> Tensor:
        """The rows *ids* [...], times *scale*; the result is [..., D]. *check* is that of the op ``embedding``."""
        if isinstance(self.weight, QuantTensor):
            return _quantised_rows(self.weight, ids, scale, check)
        return embedding(self.weight, ids, scale=scale, check=check)

    def as_linear(self, x: Tensor, *, dtype: Dtype | None = None) -> Tensor:
        """x [..., D] times every row: the output layer of models that tie it to the embedding, [..., rows]."""
        return linear(x, self.weight, dtype=dtype)


def _quantised_rows(table: QuantTensor, ids: Tensor, scale: float | None, check: bool) -> Tensor:
    """The rows *ids* of a table in fewer bits: those that are asked for become numbers, and no others."""
    flat = ids.reshape(ids.size)
    if check and ids.size:
        low, high = int(fa.min(flat)), int(fa.max(flat))
        if low < 0 or high >= table.shape[0]:
            raise IndexError(
                f"embedding: ids run from {low} to {high}, but the table {table!r} "
                f"has {table.shape[0]} rows, counted from 0"
            )
    if table.row_step == 1:
        picked = table[flat] if check else table.rows_known(flat)
        rows = dequantize(picked, fa.float32 if scale is not None else table.dtype)
    else:  # rows that stand together can be cut, not picked
        rows = fa.take(dequantize(table), flat, axis=0)
    if scale is not None:
        rows = (rows * float(scale)).astype(table.dtype, copy=False)
    return rows.reshape(*ids.shape, table.shape[1])


@layer
class RMSNorm(Module):
    """Division by the root mean square of the last axis, then ``* (weight + offset)``: weight [D].

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_models.layers import RMSNorm
        >>> RMSNorm(fa.ones(2), eps=0.0)(fa.asarray([3.0, -3.0]))
        Tensor([ 1., -1.])
    """

    weight: Tensor
    eps: float
    offset: float = 0.0

    @classmethod
    def load(cls, weights: Weights, size: int, eps: float, offset: float = 0.0) -> RMSNorm:
        """The layer whose tensor is ``weight``."""
        return cls(weights.take("weight", (size,)), eps, offset)

    @overload
    def __call__(self, x: Tensor, residual: None = None) -> Tensor: ...

    @overload
    def __call__(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]: ...

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Normalise x [..., D]; with *residual* normalise the sum, and give the sum too."""
        if residual is None:
            return rms_norm(x, self.weight, eps=self.eps, offset=self.offset)
        return rms_norm(x, self.weight, eps=self.eps, offset=self.offset, residual=residual)

    def of_sum(self, x: Tensor, change: Tensor | None) -> tuple[Tensor, Tensor]:
        """``x + change`` normalised, and the sum itself; both of x alone where there is no change."""
        return (self(x), x) if change is None else self(change, x)


@layer
class LayerNorm(Module):
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
