"""What tests of the CPU's products share: weights of every kind with the numbers that they stand for, and a comparison.

All of it is computed here, in NumPy, from the bytes of the parts.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

import ferrum_array as fa
from ferrum_ops import QuantTensor, quantize
from ferrum_ops.quant.integer import IntScheme
from tests.array.oracle import wide
from tests.ops.oracle import Array, make, noise

DTYPES = (fa.float32, fa.float16, fa.bfloat16)
#: schemes of weights that the kernels read, of rows and of groups, and those that ask for inputs of 8 bits
SCHEMES = (
    "int8", "int8-f16", "int8-g32", "int8-g64-bf16", "int8-g128", "int4", "int4-asym", "int4-g32", "int4-g32-asym",
    "int4-g64", "int4-g64-asym-f16", "int4-g128", "int4-g128-asym", "int4-g256",
)  # fmt: skip
ROUNDED = (
    "int8-a8", "int8-g32-a8", "int8-g64-a8", "int8-g128-a8", "int4-a8", "int4-asym-a8", "int4-g32-a8", "int4-g64-a8",
    "int4-g64-asym-a8", "int4-g128-a8-f16", "int4-g128-asym-a8", "int4-g256-a8",
)  # fmt: skip
_HALF_A_PLACE = {fa.float32: 2.0**-24, fa.float16: 2.0**-11, fa.bfloat16: 2.0**-8}
_SMALLEST = {fa.float32: 2.0**-120, fa.float16: 2.0**-24, fa.bfloat16: 2.0**-120}


def group_of(name: str) -> int | None:
    """The group that a scheme's name states."""
    found = [word[1:] for word in name.split("-") if word[0] == "g"]
    return int(found[0]) if found else None


def weights(seed: int, name: str, *shape: int) -> tuple[QuantTensor, Array]:
    """Quantised normal numbers [..., N, K], with NaN, infinities and zeros nowhere, and what they are in float64."""
    q = quantize(make(noise(seed, *shape), fa.float32, fa.Device("cpu"))[0], name)
    return q, numbers_of(q)


def numbers_of(q: QuantTensor) -> Array:
    """The float64 numbers of integers of 4 and 8 bits."""
    assert isinstance(q.scheme, IntScheme)
    values, scales = q.parts["values"].numpy(), wide(q.parts["scales"])
    if q.scheme.bits == 4:
        values = np.stack([values & 15, values >> 4], axis=-1).reshape(q.shape)
    numbers = values.astype(np.float64).reshape(*scales.shape, -1) if values.size else np.zeros((*scales.shape, 0))
    if not q.scheme.symmetric:
        numbers = numbers - q.parts["zeros"].numpy().astype(np.float64)[..., None]
    elif q.scheme.bits == 4:
        numbers = numbers - 8
    return (numbers * scales[..., None]).reshape(q.shape)


def rounded(x: Array, group: int | None) -> Array:
    """Inputs as integers from -127 to 127 times a scale for each group, in the words of the scheme."""
    size = group or max(x.shape[-1], 1)
    parts = x.astype(np.float32).reshape(*x.shape[:-1], x.shape[-1] // size, size)
    most = np.max(np.abs(parts), axis=-1, keepdims=True, initial=0.0)
    scale = np.maximum(most / np.float32(127), np.float32(2.0**-126))
    integers = np.rint(parts * (np.float32(1) / scale))
    return (integers.astype(np.float64) * scale.astype(np.float64)).reshape(x.shape)


def close(got: fa.Tensor, x: Array, w: Array, bias: Array | None, dtype: fa.Dtype, within: float) -> None:
    """Each number of *got* must be ``x @ w.T + bias``, rounded once to *dtype*, after sums of float32.

    *within* is what sums may lose, over the sum of the magnitudes that are added.
    """
    want, sizes = x @ w.T, np.abs(x) @ np.abs(w).T
    if bias is not None:
        want, sizes = want + bias, sizes + np.abs(bias)
    same(got, want, within * sizes, dtype)


def same(got: fa.Tensor, want: Array, allowed: Array, dtype: fa.Dtype) -> None:
    """Each number of *got* must be as wanted, but for what is allowed and one rounding."""
    assert got.dtype is dtype
    assert got.shape == want.shape
    allowed = allowed + _HALF_A_PLACE[dtype] * np.abs(want) * 1.01 + _SMALLEST[dtype]
    over = np.abs(wide(got) - want) / allowed
    assert over.size == 0 or np.max(over) <= 1.0, f"{np.max(over):.3g} times what is allowed, at {np.argmax(over)}"


def tensor(draw: Any, seed: int, dtype: fa.Dtype, *shape: int) -> tuple[fa.Tensor, Array]:
    """Normal numbers, side by side, with gaps in rows, between rows, or turned."""
    how = draw(st.sampled_from(["plain", "gaps in rows", "gaps between rows", "turned"]))
    device = fa.Device("cpu")
    if how == "gaps between rows":
        values = noise(seed, *shape[:-1], shape[-1] + 3)
        whole, held = make(values, dtype, device)
        return whole[..., 1:-2], held[..., 1:-2]
    if how == "turned" and len(shape) >= 2:
        turned, held = make(np.swapaxes(noise(seed, *shape), -1, -2).copy(), dtype, device)
        return turned.mT, np.swapaxes(held, -1, -2)
    return make(noise(seed, *shape), dtype, device, strided=how == "gaps in rows")
