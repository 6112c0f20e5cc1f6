"""Products with weight matrices."""

from __future__ import annotations

import math
from typing import Any

import ferrum_array as fa
from ferrum_array import Dtype, Tensor
from ferrum_ops.checks import accumulator, alike, describe, floating
from ferrum_ops.quant.tensor import QuantTensor
from ferrum_ops.quantize import dequantize
from ferrum_ops.registry import Op

__all__ = ["linear", "result_dtype", "weights"]

# Rows are chosen by the dtype of x. A call has the features of quantised weights (``QuantTensor.features``), "bias",
# "mixed" if the bias has the dtype of the sums and x has not, and "dtype" if the result has not the dtype of x.
_LINEAR: Op[Tensor] = Op("linear")


def linear(x: Tensor, w: Tensor | QuantTensor, bias: Tensor | None = None, *, dtype: Any = None) -> Tensor:
    """``x @ w.T + bias``: x [..., K], w [N, K], bias [N] give [..., N].

    Products accumulate in float32 (float64 for float64), the bias is added there, and the sum is
    rounded once, to *dtype* or else the dtype of *x*. *bias* may have the dtype of *x* or the wider
    one of the sums. The bits of a row may depend on how many rows there are, because the storage
    library chooses its kernel by shape.

    *w* may be quantised, in any scheme and with any dtype of its own: its numbers are used as
    ``dequantize`` gives them in float32, a block of rows at a time, so that memory stays bounded.
    *x* is rounded to integers where the scheme says so (``activations`` of ``IntScheme``), and only
    then, whatever runs.

    Raises:
        TypeError: if *x* and a dense *w* differ in dtype, or anything is not real floating-point.
        ValueError: for shapes that do not fit, or different devices.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_ops import linear, quantize
        >>> w = fa.asarray([[3.0, 4.0], [0.5, 0.0]])
        >>> linear(fa.asarray([[1.0, 2.0]]), w, fa.asarray([0.0, 1.0]))
        Tensor([[11. ,  1.5]])
        >>> linear(fa.asarray([[1.0, 2.0]]), quantize(fa.asarray([[3.0, 127.0]]), "int8"))
        Tensor([[257.]])
    """
    floating("linear", "x", x)
    quantised = weights("linear", "w", x, w)
    if not x.ndim or w.ndim != 2 or x.shape[-1] != w.shape[1]:
        raise ValueError(f"linear: x [..., K] and w [N, K] must share K, got {describe(x)} and {describe(w)}")
    out = x.dtype if dtype is None else result_dtype("linear", dtype)
    if bias is None and out is x.dtype:
        return _LINEAR(x.device, (x.dtype,), quantised, x, w, None, out)
    features = list(quantised)
    if bias is not None:
        wide = accumulator(x.dtype)
        floating("linear", "bias", bias)
        alike("linear", x, "bias", bias, dtype=bias.dtype is not wide)
        if bias.shape != (w.shape[0],):
            raise ValueError(f"linear: bias must have shape ({w.shape[0]},) for w {describe(w)}, got {describe(bias)}")
        features.append("bias")
        if bias.dtype is not x.dtype:
            features.append("mixed")
    if out is not x.dtype:
        features.append("dtype")
    return _LINEAR(x.device, (x.dtype,), tuple(features), x, w, bias, out)


@_LINEAR.reference
def _linear(x: Tensor, w: Tensor | QuantTensor, bias: Tensor | None, out: Dtype) -> Tensor:
    # One 2-D product: a stack of small ones would be slower, and w.T costs nothing.
    rows = x if x.ndim == 2 else x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    wide = accumulator(x.dtype)
    if isinstance(w, Tensor):
        if bias is None and out is x.dtype:
            y = rows @ w.T
        else:
            y = _rounded(rows.astype(wide, copy=False) @ w.astype(wide, copy=False).T, bias, out)
    else:
        rows = w.scheme.inputs(rows.astype(wide, copy=False))
        blocks = list(w.row_blocks())
        parts = [
            _rounded(rows @ dequantize(w[block], wide).T, None if bias is None else bias[block], out)
            for block in blocks
        ]
        y = fa.concat(parts, axis=1) if parts else fa.zeros((rows.shape[0], 0), dtype=out, device=x.device)
    return y if x.ndim == 2 else y.reshape(*x.shape[:-1], w.shape[0])


def _rounded(y: Tensor, bias: Tensor | None, out: Dtype) -> Tensor:
    if bias is not None:
        y += bias.astype(y.dtype, copy=False)
    return y.astype(out, copy=False)


def weights(op: str, what: str, x: Tensor, w: Tensor | QuantTensor) -> tuple[str, ...]:
    """The features of the weights *w*: those of a QuantTensor, or none for a Tensor, which must have the dtype of *x*.

    Raises:
        TypeError: for anything else, or another dtype. ValueError: for another device than that of *x*.
    """
    if isinstance(w, QuantTensor):
        alike(op, x, what, w, dtype=False)
        return w.features
    floating(op, what, w)
    alike(op, x, what, w)
    return ()


def result_dtype(op: str, dtype: Any) -> Dtype:
    """The dtype that the results of *op* shall have.

    Raises:
        TypeError: for one that is not real floating-point.
    """
    wanted = Dtype(dtype)
    if not wanted.is_floating:
        raise TypeError(f"{op}: dtype must be real floating-point, got {wanted}")
    return wanted
