"""Matrix products on CUDA: cuBLAS called on the arrays as they lie in memory, 16-bit floats accumulated in float32.

CuPy's own ``matmul`` widens float16 to float32 above two axes and refuses bfloat16 there. Here every product of floats
is one call of ``cublasGemmEx`` or ``cublasGemmStridedBatchedEx``: transposed and padded operands are passed with their
strides, a stack of left matrices times one right matrix is one 2-D product, and broadcast axes have stride zero.

cuBLAS counts columns first. Row-major memory of X reads there as X transposed, so C = L R is computed as C' = R' L'.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from itertools import product
from math import prod
from typing import Any, NamedTuple

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


Shape = tuple[int, ...]


class _Call(NamedTuple):
    """One call of cuBLAS, in elements: sizes, readings of the operands, and where each begins and goes on."""

    m: int
    n: int
    k: int
    left: tuple[int, int, int, int]  # transposed or not, leading dimension, first element, step to the next matrix
    right: tuple[int, int, int, int]
    out: tuple[int, int]  # first element, step
    matrices: int  # of the stack; 0 for one product without a stack


class _Plan(NamedTuple):
    """How to compute a product of operands that lie in memory in a certain way."""

    shape: Shape
    left_stack: Shape | None  # first write the left operand out for these axes
    right_stack: Shape | None
    calls: tuple[_Call, ...]


def _layout(shape: Shape, steps: Shape) -> tuple[int, int] | None:
    """How cuBLAS reads such matrices: (0 as they are, 1 transposed; leading dimension), or None if it cannot."""
    (rows, columns), (down, right) = shape[-2:], steps[-2:]
    if (right == 1 or columns == 1) and (rows == 1 or down >= columns):
        return 0, down if rows > 1 else columns
    if (down == 1 or rows == 1) and (columns == 1 or right >= rows):
        return 1, right if columns > 1 else rows
    return None


def _spread(shape: Shape, steps: Shape, stack: Shape) -> Shape:
    """How many elements lie between neighbours along each axis of *stack*; 0 where the operand is broadcast."""
    own = tuple(0 if n == 1 else step for n, step in zip(shape[:-2], steps[:-2], strict=True))
    return (0,) * (len(stack) - len(own)) + own


def _merged(stack: Shape, *steps: Shape) -> list[Shape]:
    """The axes of *stack* as (length, step, step, ...), neighbours joined wherever they are one run in every array."""
    axes: list[Shape] = []
    for length, *inner in zip(stack, *steps, strict=True):
        if length == 1:
            continue
        if axes and all(outer == length * step for outer, step in zip(axes[-1][1:], inner, strict=True)):
            axes[-1] = (axes[-1][0] * length, *inner)
        else:
            axes.append((length, *inner))
    return axes


@lru_cache(maxsize=4096)
def _plan(left: Shape, left_strides: Shape, right: Shape, right_strides: Shape, itemsize: int) -> _Plan:
    """The plan for operands of these shapes and strides: made once, because a small product takes less time than it."""
    (m, k), n = left[-2:], right[-1]
    if right[-2] != k:
        raise ValueError(f"matrices of shapes {left[-2:]} and {right[-2:]} have no product")
    stack = tuple(np.broadcast_shapes(left[:-2], right[:-2]))
    shape = (*stack, m, n)
    if not prod(shape) or not k:
        return _Plan(shape, None, None, ())
    left_steps, right_steps = (tuple(s // itemsize for s in strides) for strides in (left_strides, right_strides))
    left_reading, right_reading = _layout(left, left_steps), _layout(right, right_steps)
    if left_reading is None or right_reading is None:
        return _Plan(shape, None if left_reading else left[:-2], None if right_reading else right[:-2], ())
    a, b = _spread(left, left_steps, stack), _spread(right, right_steps, stack)
    out_steps = tuple(prod(shape[i + 1 :]) for i in range(len(stack)))
    axes = _merged(stack, a, b, out_steps)
    if len(axes) > 1 and max(axes)[0] * m * n < _FILLS_A_GPU:
        uneven = [stack if len(_merged(stack, steps)) > 1 else None for steps in (a, b)]
        return _Plan(shape, uneven[0], uneven[1], ())
    # One right matrix for all: the stack is more rows, if the rows go on from matrix to matrix.
    if len(axes) == 1 and axes[0][2] == 0 and left_reading[0] == 0:
        count, step = axes[0][:2]
        if (m > 1 and step == m * left_reading[1]) or (m == 1 and step >= k):
            left_reading = 0, step if m == 1 else left_reading[1]
            m, axes = m * count, []
    if not axes:
        return _Plan(shape, None, None, (_Call(m, n, k, (*left_reading, 0, 0), (*right_reading, 0, 0), (0, 0), 0),))
    batch = max(axes)
    others = [axis for axis in axes if axis is not batch]
    calls = []
    for place in product(*(range(axis[0]) for axis in others)):
        first = [sum(i * axis[which] for i, axis in zip(place, others, strict=True)) for which in (1, 2, 3)]
        operands = (*left_reading, first[0], batch[1]), (*right_reading, first[1], batch[2])
        calls.append(_Call(m, n, k, *operands, (first[2], batch[3]), batch[0]))
    return _Plan(shape, None, None, tuple(calls))


def _written_out(x: Raw, stack: Shape) -> Raw:
    """*x* for each place of *stack*, in one run of memory; its matrices stay transposed if they are."""
    size = x.itemsize
    reading = _layout(x.shape, tuple(step // size for step in x.strides))
    if reading is not None and reading[0] == 1:
        return _written_out(x.swapaxes(-1, -2), stack).swapaxes(-1, -2)
    whole = cp.empty((*stack, *x.shape[-2:]), x.dtype)
    whole_rows, rows = whole, x
    if x.strides[-1] == size:
        apart = (x.shape[-1] * size, x.data.ptr, *x.strides[:-1])
        for wide, name in ((16, "complex128"), (8, "uint64")):  # a thread of the copy moves one element
            if size < wide and not any(n % wide for n in apart):
                whole_rows, rows = whole.view(name), x.view(name)
                break
    cp.positive(rows, out=whole_rows)
    return whole


def _gemm(left: Raw, right: Raw, dtype: Any, number: int, out_number: int, compute: int, factor: str) -> Raw:
    plan = _plan(left.shape, left.strides, right.shape, right.strides, left.itemsize)
    if plan.left_stack is not None or plan.right_stack is not None:
        left = left if plan.left_stack is None else _written_out(left, plan.left_stack)
        right = right if plan.right_stack is None else _written_out(right, plan.right_stack)
        return _gemm(left, right, dtype, number, out_number, compute, factor)
    if not plan.calls:
        return cp.zeros(plan.shape, dtype)
    out = cp.empty(plan.shape, dtype)
    (one, zero), size, out_size = _ADDRESSES[factor], left.itemsize, out.itemsize
    handle, cublas = device.get_cublas_handle(), libs.cublas
    for m, n, k, (turn1, ld1, first1, step1), (turn2, ld2, first2, step2), (first, step), matrices in plan.calls:
        at1, at2 = left.data.ptr + first1 * size, right.data.ptr + first2 * size
        if not matrices:
            cublas.gemmEx(
                handle, turn2, turn1, n, m, k, one, at2, number, ld2, at1, number, ld1,
                zero, out.data.ptr, out_number, n, compute, _DEFAULT_ALGORITHM,
            )  # fmt: skip
        else:
            cublas.gemmStridedBatchedEx(
                handle, turn2, turn1, n, m, k, one, at2, number, ld2, step2, at1, number, ld1, step1,
                zero, out.data.ptr + first * out_size, out_number, n, step, matrices, compute, _DEFAULT_ALGORITHM,
            )  # fmt: skip
    return out
