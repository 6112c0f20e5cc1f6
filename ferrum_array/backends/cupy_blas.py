"""Matrix products on CUDA: cuBLAS called on the arrays as they lie in memory, 16-bit floats accumulated in float32.

CuPy's own ``matmul`` widens float16 to float32 above two axes and refuses bfloat16 there. Here every product of floats
is one call of ``cublasGemmEx`` or ``cublasGemmStridedBatchedEx``: transposed and padded operands are passed with their
strides, a stack of left matrices times one right matrix is one 2-D product, and broadcast axes have stride zero.

cuBLAS counts columns first. Row-major memory of X reads there as X transposed, so C = L R is computed as C' = R' L'.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import cupy as cp
import numpy as np
from cupy.cuda import device
from cupy_backends.cuda import libs

from ferrum_array.backends.base import Raw

__all__ = ["int8_product", "matmul_of"]

# Numbers of cuBLAS's headers: cudaDataType_t and cublasComputeType_t.
_R_8I, _R_32I, _COMPUTE_32F, _COMPUTE_64F, _COMPUTE_32I = 3, 10, 68, 70, 72
_DEFAULT_ALGORITHM = -1

#: dtype -> (its number, in what to accumulate, the dtype of the factors alpha and beta)
_FLOATS = {
    "float16": (2, _COMPUTE_32F, "float32"),
    "bfloat16": (14, _COMPUTE_32F, "float32"),
    "float32": (0, _COMPUTE_32F, "float32"),
    "float64": (1, _COMPUTE_64F, "float64"),
    "complex64": (4, _COMPUTE_32F, "complex64"),
    "complex128": (5, _COMPUTE_64F, "complex128"),
}
# The factors lie on the host, for as long as the process lives: cuBLAS takes their addresses.
_FACTORS = {
    name: (np.ones((), name), np.zeros((), name)) for name in ("float32", "float64", "complex64", "complex128", "int32")
}
_ADDRESSES = {name: (one.ctypes.data, zero.ctypes.data) for name, (one, zero) in _FACTORS.items()}

#: Below this many elements, copying an operand costs less than finding out whether it must be.
_SMALL = 1 << 16

#: Results of fewer elements than this do not fill a large GPU: an operand whose matrices do not lie at even distances,
#: such as a broadcast one, is written out for one call instead of several.
_FILLS_A_GPU = 1 << 22


def matmul_of(raw: Any) -> Callable[..., Raw]:
    """The product by the standard's rules for arrays of the dtype *raw*, the last axes of both matching."""
    if raw.name in _FLOATS:
        number, compute, factor = _FLOATS[raw.name]

        def stacks(left: Raw, right: Raw) -> Raw:
            return _gemm(left, right, raw, number, number, compute, factor)

    elif raw.itemsize == 1:

        def stacks(left: Raw, right: Raw) -> Raw:
            # modulo 256 the sign does not matter, so uint8 goes the way of int8
            return int8_product(left.view("int8"), right.view("int8")).astype("int8").view(raw)

    else:
        stacks = cp.matmul
    plain = raw.name in _FLOATS

    def matmul(x1: Raw, x2: Raw) -> Raw:
        if plain and x1.ndim == x2.ndim == 2 and (x1.size + x2.size < _SMALL or (_one_run(x1) and _one_run(x2))):
            return x1.dot(x2)  # the same call of cuBLAS, made by compiled code; it copies operands with gaps
        if x1.ndim > 1 < x2.ndim:
            return stacks(x1, x2)
        out = stacks(x1 if x1.ndim > 1 else x1[None, :], x2 if x2.ndim > 1 else x2[:, None])
        return out.reshape(out.shape[:-2] + out.shape[-2:-1] * (x1.ndim > 1) + out.shape[-1:] * (x2.ndim > 1))

    return matmul


def _one_run(x: Raw) -> bool:
    flags = x.flags
    return bool(flags.c_contiguous or flags.f_contiguous)


def int8_product(left: Raw, right: Raw) -> Raw:
    """The int32 product of int8 matrices [..., M, K] @ [..., K, N]."""
    sizes = (*left.shape[-2:], right.shape[-1])
    if any(size % 4 for size in sizes):  # cuBLAS moves four bytes at once
        return cp.matmul(left.astype("int32"), right.astype("int32"))
    # The tensor cores take bytes only with K running fastest in both operands.
    left = cp.ascontiguousarray(left)
    right = cp.ascontiguousarray(right.swapaxes(-1, -2)).swapaxes(-1, -2)
    return _gemm(left, right, np.dtype("int32"), _R_8I, _R_32I, _COMPUTE_32I, "int32")


def _layout(x: Raw) -> tuple[int, int] | None:
    """How cuBLAS reads the matrices of *x*: (0 as they are, 1 transposed; leading dimension), or None if it cannot."""
    rows, columns = x.shape[-2:]
    down, right = (step // x.itemsize for step in x.strides[-2:])
    if (right == 1 or columns == 1) and (rows == 1 or down >= columns):
        return 0, down if rows > 1 else columns
    if (down == 1 or rows == 1) and (columns == 1 or right >= rows):
        return 1, right if columns > 1 else rows
    return None


def _steps(x: Raw, stack: tuple[int, ...]) -> list[int]:
    """How many elements lie between neighbours along each axis of *stack*; 0 where *x* is broadcast."""
    own = [0 if n == 1 else step // x.itemsize for n, step in zip(x.shape[:-2], x.strides[:-2], strict=True)]
    return [0] * (len(stack) - len(own)) + own


def _merged(stack: tuple[int, ...], *steps: list[int]) -> list[tuple[int, ...]]:
    """The axes of *stack* as (length, step, step, ...), neighbours joined wherever they are one run in every array."""
    axes: list[tuple[int, ...]] = []
    for length, *inner in zip(stack, *steps, strict=True):
        if length == 1:
            continue
        if axes and all(outer == length * step for outer, step in zip(axes[-1][1:], inner, strict=True)):
            axes[-1] = (axes[-1][0] * length, *inner)
        else:
            axes.append((length, *inner))
    return axes


def _written_out(x: Raw, stack: tuple[int, ...]) -> Raw:
    """*x* for each place of *stack*, in one run of memory; its matrices stay transposed if they are."""
    reading = _layout(x)
    turned = reading is not None and reading[0] == 1
    whole = cp.empty((*stack, *(x.shape[:-3:-1] if turned else x.shape[-2:])), x.dtype)
    whole = whole.swapaxes(-1, -2) if turned else whole
    whole[...] = x
    return whole


def _gemm(left: Raw, right: Raw, dtype: Any, number: int, out_number: int, compute: int, factor: str) -> Raw:
    m, k = left.shape[-2:]
    n = right.shape[-1]
    stack = left.shape[:-2]
    if stack != right.shape[:-2]:
        stack = np.broadcast_shapes(stack, right.shape[:-2])
    out = cp.empty((*stack, m, n), dtype)
    if not out.size:
        return out
    if not k:
        out.fill(0)
        return out
    left, right = (x if _layout(x) else x.copy(order="C") for x in (left, right))
    axes = _merged(stack, _steps(left, stack), _steps(right, stack), _steps(out, stack)) if stack else []
    if len(axes) > 1 and max(axes)[0] * m * n < _FILLS_A_GPU:
        left, right = (
            x if len(_merged(stack, _steps(x, stack))) < 2 else _written_out(x, stack) for x in (left, right)
        )
        axes = _merged(stack, _steps(left, stack), _steps(right, stack), _steps(out, stack))
    (left_turn, left_ld), (right_turn, right_ld) = _layout(left), _layout(right)  # type: ignore[misc]  # not None now
    one, zero = _ADDRESSES[factor]
    handle = device.get_cublas_handle()
    # One right matrix for all: the stack is more rows, if the rows go on from matrix to matrix.
    if (
        len(axes) == 1
        and axes[0][2] == 0
        and left_turn == 0
        and (axes[0][1] == m * left_ld if m > 1 else axes[0][1] >= k)
    ):
        left_ld = left_ld if m > 1 else axes[0][1]
        m, axes = m * axes[0][0], []
    if not axes:
        libs.cublas.gemmEx(
            handle, right_turn, left_turn, n, m, k, one,
            right.data.ptr, number, right_ld, left.data.ptr, number, left_ld,
            zero, out.data.ptr, out_number, n, compute, _DEFAULT_ALGORITHM,
        )  # fmt: skip
        return out
    batch = max(axes)
    others = [axis for axis in axes if axis is not batch]
    for place in product(*(range(axis[0]) for axis in others)):
        from_left, from_right, to = (
            sum(i * axis[which] for i, axis in zip(place, others, strict=True)) for which in (1, 2, 3)
        )
        libs.cublas.gemmStridedBatchedEx(
            handle, right_turn, left_turn, n, m, k, one,
            right.data.ptr + from_right * right.itemsize, number, right_ld, batch[2],
            left.data.ptr + from_left * left.itemsize, number, left_ld, batch[1],
            zero, out.data.ptr + to * out.itemsize, out_number, n, batch[3],
            batch[0], compute, _DEFAULT_ALGORITHM,
        )  # fmt: skip
    return out
