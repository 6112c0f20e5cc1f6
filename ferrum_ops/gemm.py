"""Products with weight matrices."""

from __future__ import annotations

import math
from typing import Any

from ferrum_array import Dtype, Tensor
from ferrum_ops.checks import accumulator, alike, describe, floating

__all__ = ["linear"]


def linear(x: Tensor, w: Tensor, bias: Tensor | None = None, *, dtype: Any = None) -> Tensor:
    """``x @ w.T + bias``: x [..., K], w [N, K], bias [N] give [..., N].

    Products accumulate in float32 (float64 for float64), the bias is added there, and the sum is
    rounded once, to *dtype* or else the dtype of *x*. *bias* may have the dtype of *x* or the wider
    one of the sums. The bits of a row may depend on how many rows there are, because the storage
    library chooses its kernel by shape.

    Raises:
        TypeError: if *x* and *w* differ in dtype, or anything is not real floating-point.
        ValueError: for shapes that do not fit, or different devices.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_ops import linear
        >>> w = fa.asarray([[3.0, 4.0], [0.5, 0.0]])
        >>> linear(fa.asarray([[1.0, 2.0]]), w, fa.asarray([0.0, 1.0]))
        Tensor([[11. ,  1.5]])
    """
    floating("linear", "x", x)
    floating("linear", "w", w)
    alike("linear", x, "w", w)
    if not x.ndim or w.ndim != 2 or x.shape[-1] != w.shape[1]:
        raise ValueError(f"linear: x [..., K] and w [N, K] must share K, got {describe(x)} and {describe(w)}")
    out = x.dtype if dtype is None else _result(dtype)
    wide = accumulator(x.dtype)
    if bias is not None:
        floating("linear", "bias", bias)
        alike("linear", x, "bias", bias, dtype=bias.dtype is not wide)
        if bias.shape != (w.shape[0],):
            raise ValueError(f"linear: bias must have shape ({w.shape[0]},) for w {describe(w)}, got {describe(bias)}")

    # One 2-D product: a stack of small ones would be slower, and w.T costs nothing.
    rows = x if x.ndim == 2 else x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    if bias is None and out is x.dtype:
        y = rows @ w.T
    else:
        y = rows.astype(wide, copy=False) @ w.astype(wide, copy=False).T
        if bias is not None:
            y += bias.astype(wide, copy=False)
        y = y.astype(out, copy=False)
    return y if x.ndim == 2 else y.reshape(*x.shape[:-1], w.shape[0])


def _result(dtype: Any) -> Dtype:
    wanted = Dtype(dtype)
    if not wanted.is_floating:
        raise TypeError(f"linear: dtype must be real floating-point, got {wanted}")
    return wanted
