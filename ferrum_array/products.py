"""Products of the array API standard: of matrices, vectors and whole tensors.

Matrices are the last two axes, [..., M, N]; the others are a stack. 16-bit floats accumulate in float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ferrum_array.dispatch import broadcast, integer, normalize_axes, normalize_axis, tensor, unify
from ferrum_array.dtype import Dtype
from ferrum_array.elementwise import multiply, subtract
from ferrum_array.manipulation import moveaxis, permute_dims, reshape, stack
from ferrum_array.spec import Spec
from ferrum_array.tensor import Tensor, wrap

__all__ = ["matmul", "matrix_transpose", "tensordot", "vecdot"]


def widened(x: Tensor) -> Tensor:
    """*x*, floats of 16 bits as float32: for what takes several steps and is rounded once, after the last."""
    return x.astype(x.dtype.complex.real, copy=False) if x.dtype.is_floating else x


def matrices(name: str, x: Tensor, *, square: bool = False) -> Tensor:
    """*x*, which must hold matrices; ValueError otherwise."""
    x = tensor(name, x)
    if x.ndim < 2:
        raise ValueError(f"{name}: needs matrices, at least two axes, got {x._summary()}")
    if square and x.shape[-1] != x.shape[-2]:
        raise ValueError(f"{name}: needs square matrices, got {x._summary()}")
    return x


def matmul(x1: Tensor, x2: Tensor, /) -> Tensor:
    """The matrix product [..., M, K] @ [..., K, N]; a 1-D operand is a row (left) or column (right) vector.

    16-bit floats accumulate in float32; integers in their own dtype, modulo its size.

    Raises:
        ValueError: if the inner lengths differ, the stacks do not broadcast, or an operand is 0-d.
        TypeError: for booleans.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.matmul(fa.asarray([[1, 2]]), fa.asarray([[3], [4]]))
        Tensor([[11]])
    """
    if x1.__class__ is x2.__class__ is Tensor and x1._spec is x2._spec and x1._spec.dtype is not Dtype.BOOL:
        a, b = x1._data.shape, x2._data.shape
        fits = len(a) > 1 < len(b) and a[-1] == b[-2]
        if fits and (a[:-2] == b[:-2] or 2 in (len(a), len(b)) or _joins(a[:-2], b[:-2])):
            return wrap(x1._spec.call["matmul"](x1._data, x2._data), x1._spec)  # nothing to check or to convert
    x1, x2 = tensor("matmul", x1, "x1"), tensor("matmul", x2, "x2")
    spec, (left, right) = unify("matmul", x1, x2)
    numeric("matmul", spec)
    if not x1.ndim or not x2.ndim:
        raise ValueError(f"matmul: needs at least one axis each, got {x1._summary()} and {x2._summary()}")
    inner = x2.shape[-2] if x2.ndim > 1 else x2.shape[0]
    if x1.shape[-1] != inner:
        raise ValueError(
            f"matmul: {x1._summary()} @ {x2._summary()}: the last axis of the first has length {x1.shape[-1]}, "
            f"the one that it meets {inner}; turn one over, for example with .mT"
        )
    broadcast("matmul (stacks)", x1.shape[:-2], x2.shape[:-2])
    return wrap(spec.call["matmul"](left, right), spec)


def _joins(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    return len(a) == len(b) and all(p == q or 1 in (p, q) for p, q in zip(a, b, strict=True))


def numeric(name: str, spec: Spec) -> None:
    """TypeError for booleans, which have no products."""
    if spec.dtype is Dtype.BOOL:
        raise TypeError(f"{name}: not defined for bool; convert first, for example with astype('int64')")


def vecdot(x1: Tensor, x2: Tensor, /, *, axis: int = -1) -> Tensor:
    """The sum of conj(x1) * x2 along *axis*; the other axes broadcast.

    Raises:
        ValueError: if the lengths along *axis* differ. IndexError: if *axis* is not negative and out of bounds.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.vecdot(fa.asarray([1, 2, 3]), fa.asarray([4, 5, 6]))
        Tensor(32)
    """
    if (
        x1.__class__ is x2.__class__ is Tensor
        and x1._spec is x2._spec
        and axis == -1
        and x1._data.shape == x2._data.shape != ()
        and x1._spec.dtype is not Dtype.BOOL
    ):
        return wrap(x1._spec.call["vecdot"](x1._data, x2._data), x1._spec)  # nothing to check or to convert
    x1, x2 = tensor("vecdot", x1, "x1"), tensor("vecdot", x2, "x2")
    a, b = (normalize_axis("vecdot", axis, x.ndim) for x in (x1, x2))
    if x1.shape[a] != x2.shape[b]:
        raise ValueError(
            f"vecdot: {x1._summary()} and {x2._summary()} have lengths {x1.shape[a]} and {x2.shape[b]} "
            f"along axis {axis}"
        )
    spec, (left, right) = unify("vecdot", moveaxis(x1, a, -1), moveaxis(x2, b, -1))
    numeric("vecdot", spec)
    broadcast("vecdot", tuple(left.shape), tuple(right.shape))
    return wrap(spec.call["vecdot"](left, right), spec)


def tensordot(x1: Tensor, x2: Tensor, /, *, axes: int | tuple[Sequence[int], Sequence[int]] = 2) -> Tensor:
    """The products of *x1* and *x2* summed over pairs of axes: the last and first *axes*, or those of two sequences.

    Raises:
        ValueError: if the paired lengths differ. IndexError: for an axis out of bounds. TypeError: for *axes* of
            another form.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.tensordot(fa.ones((2, 3)), fa.ones((3, 4)), axes=1).shape
        (2, 4)
    """
    x1, x2 = tensor("tensordot", x1, "x1"), tensor("tensordot", x2, "x2")
    if isinstance(axes, (tuple, list)):
        if len(axes) != 2 or not all(isinstance(one, (tuple, list)) for one in axes):
            raise TypeError(f"tensordot: axes must be an integer or two sequences of integers, got {axes!r:.60}")
        first, second = (normalize_axes("tensordot", one, x.ndim) for one, x in zip(axes, (x1, x2), strict=True))
    else:
        count = integer("tensordot", "axes (or else two sequences of them)", axes)
        if not 0 <= count <= min(x1.ndim, x2.ndim):
            raise ValueError(f"tensordot: axes={count} does not fit {x1._summary()} and {x2._summary()}")
        first, second = tuple(range(x1.ndim - count, x1.ndim)), tuple(range(count))
    lengths = [x1.shape[a] for a in first]
    if lengths != [x2.shape[a] for a in second]:
        raise ValueError(f"tensordot: axes {first} of {x1._summary()} and {second} of {x2._summary()} differ in length")
    rest1 = [a for a in range(x1.ndim) if a not in first]
    rest2 = [a for a in range(x2.ndim) if a not in second]
    shape = tuple(x1.shape[a] for a in rest1) + tuple(x2.shape[a] for a in rest2)
    inner = math.prod(lengths)
    left = reshape(permute_dims(x1, (*rest1, *first)), (math.prod(x1.shape[a] for a in rest1), inner))
    right = reshape(permute_dims(x2, (*second, *rest2)), (inner, math.prod(x2.shape[a] for a in rest2)))
    return reshape(matmul(left, right), shape)


def matrix_transpose(x: Tensor, /) -> Tensor:
    """The last two axes swapped.

    Raises:
        ValueError: for fewer than two axes.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.matrix_transpose(fa.ones((2, 3))).shape
        (3, 2)
    """
    x = matrices("matrix_transpose", x)
    return permute_dims(x, (*range(x.ndim - 2), x.ndim - 1, x.ndim - 2))


def outer(x1: Tensor, x2: Tensor, /) -> Tensor:
    """The products of each element of *x1* [M] with each of *x2* [N]: [M, N].

    Raises:
        ValueError: if an operand is not 1-D. TypeError: for booleans.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.linalg.outer(fa.asarray([1, 2]), fa.asarray([3, 4]))
        Tensor([[3, 4],
                [6, 8]])
    """
    x1, x2 = tensor("outer", x1, "x1"), tensor("outer", x2, "x2")
    if x1.ndim != 1 or x2.ndim != 1:
        raise ValueError(f"outer: needs two 1-D tensors, got {x1._summary()} and {x2._summary()}")
    spec, (left, right) = unify("outer", x1, x2)
    numeric("outer", spec)
    return multiply(reshape(wrap(left, spec), (x1.size, 1)), wrap(right, spec))


def cross(x1: Tensor, x2: Tensor, /, *, axis: int = -1) -> Tensor:
    """The cross product of vectors of three components along *axis*; the other axes broadcast.

    Raises:
        ValueError: if an operand has not length 3 along *axis*, or the other axes do not broadcast.
        IndexError: for an axis out of bounds. TypeError: for booleans.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.linalg.cross(fa.asarray([1, 0, 0]), fa.asarray([0, 1, 0]))
        Tensor([0, 0, 1])
    """
    x1, x2 = tensor("cross", x1, "x1"), tensor("cross", x2, "x2")
    a, b = (normalize_axis("cross", axis, x.ndim) for x in (x1, x2))
    if x1.shape[a] != 3 or x2.shape[b] != 3:
        raise ValueError(f"cross: {x1._summary()} and {x2._summary()} must have length 3 along axis {axis}")
    spec, (left, right) = unify("cross", moveaxis(x1, a, -1), moveaxis(x2, b, -1))
    numeric("cross", spec)
    broadcast("cross", tuple(left.shape), tuple(right.shape))
    u, v = widened(wrap(left, spec)), widened(wrap(right, spec))
    parts = [
        subtract(multiply(u[..., i], v[..., j]), multiply(u[..., j], v[..., i])) for i, j in ((1, 2), (2, 0), (0, 1))
    ]
    return moveaxis(stack(parts, axis=-1).astype(spec.dtype, copy=False), -1, axis)
