"""Linear algebra: the ``linalg`` extension of the array API standard.

Products and decompositions have files of their own.

Matrices are the last two axes, [..., M, N]; the others are a stack. 16-bit floats are computed in float32 and rounded.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from ferrum_array.decompositions import (
    cholesky,
    det,
    eig,
    eigh,
    eigvals,
    eigvalsh,
    floating_matrices,
    inv,
    qr,
    slogdet,
    solve,
    svd,
    svdvals,
)
from ferrum_array.dispatch import DEFAULT_FLOAT, integer, normalize_axes, tensor
from ferrum_array.dtype import Dtype
from ferrum_array.elementwise import abs as abs_
from ferrum_array.elementwise import conj, divide, greater, multiply, not_equal, pow, sqrt
from ferrum_array.manipulation import broadcast_to, reshape
from ferrum_array.names import advice
from ferrum_array.products import cross, matmul, matrices, matrix_transpose, numeric, outer, tensordot, vecdot
from ferrum_array.searching import count_nonzero, where
from ferrum_array.spec import spec_of
from ferrum_array.statistical import max as max_
from ferrum_array.statistical import min as min_
from ferrum_array.statistical import sum as sum_
from ferrum_array.tensor import Axis, Tensor, wrap

__all__ = [
    "cholesky", "cross", "det", "diagonal", "eig", "eigh", "eigvals", "eigvalsh", "inv", "matmul", "matrix_norm",
    "matrix_power", "matrix_rank", "matrix_transpose", "outer", "pinv", "qr", "slogdet", "solve", "svd", "svdvals",
    "tensordot", "trace", "vecdot", "vector_norm",
]  # fmt: skip


def diagonal(x: Tensor, /, *, offset: int = 0) -> Tensor:
    """The diagonals *offset* above the main one: [..., min(M, N) or fewer].

    Raises:
        ValueError: for fewer than two axes.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.linalg.diagonal(fa.asarray([[1, 2], [3, 4]]))
        Tensor([1, 4])
    """
    x = matrices("diagonal", x)
    return wrap(x._spec.call["diagonal"](x._data, integer("diagonal", "offset", offset)), x._spec)


def trace(x: Tensor, /, *, offset: int = 0, dtype: Any = None) -> Tensor:
    """The sums of the diagonals *offset* above the main one, with the dtype rules of ``sum``.

    Raises:
        ValueError: for fewer than two axes.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.linalg.trace(fa.asarray([[1, 2], [3, 4]]))
        Tensor(5)
    """
    return sum_(diagonal(matrices("trace", x), offset=offset), axis=-1, dtype=dtype)


def _relative_tolerance(x: Tensor, rtol: float | Tensor | None) -> Any:
    if rtol is None:
        from_dtype = {Dtype.F64: 2.0**-52, Dtype.F32: 2.0**-23, Dtype.F16: 2.0**-10, Dtype.BF16: 2.0**-7}
        return max(x.shape[-2:]) * from_dtype[x.dtype.real]
    return rtol[..., None] if isinstance(rtol, Tensor) else rtol


def matrix_rank(x: Tensor, /, *, rtol: float | Tensor | None = None) -> Tensor:
    """How many singular values exceed *rtol* times the largest; max(M, N) times the dtype's eps by default. int64.

    Raises:
        ValueError: for fewer than two axes.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.linalg.matrix_rank(fa.ones((3, 3)))
        Tensor(1)
    """
    x = floating_matrices("matrix_rank", x)
    values = svdvals(x)
    if not values.shape[-1]:
        return count_nonzero(values, axis=-1)
    bound = multiply(max_(values, axis=-1, keepdims=True), _relative_tolerance(x, rtol))
    return count_nonzero(greater(values, bound), axis=-1)


def pinv(x: Tensor, /, *, rtol: float | Tensor | None = None) -> Tensor:
    """The Moore-Penrose pseudo-inverses, singular values up to *rtol* times the largest counting as zero.

    Raises:
        ValueError: for fewer than two axes.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.linalg.pinv(fa.asarray([[2.0], [0.0]]))
        Tensor([[0.5, 0. ]])
    """
    x = floating_matrices("pinv", x)
    u, s, vh = svd(x, full_matrices=False)
    if s.size == 0:
        return matrix_transpose(conj(x)).copy()
    large = greater(s, multiply(max_(s, axis=-1, keepdims=True), _relative_tolerance(x, rtol)))
    inverse = where(large, divide(1.0, where(large, s, 1.0)), 0.0 * s)
    return matmul(conj(matrix_transpose(vh)), multiply(inverse[..., None], conj(matrix_transpose(u))))


def matrix_power(x: Tensor, n: int, /) -> Tensor:
    """Square matrices multiplied *n* times; the inverse that often for negative *n*.

    Raises:
        ValueError: for matrices that are not square, or singular ones and a negative *n*.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.linalg.matrix_power(fa.asarray([[1, 1], [0, 1]]), 3)
        Tensor([[1, 3],
                [0, 1]])
    """
    x = matrices("matrix_power", x, square=True)
    numeric("matrix_power", x._spec)
    count = integer("matrix_power", "n", n)
    if count < 0:
        x, count = inv(x), -count
    identity = wrap(x._spec.call["eye"](x.shape[-1], x.shape[-1], 0), x._spec)
    result: Tensor | None = None
    while count:
        if count & 1:
            result = x if result is None else matmul(result, x)
        count >>= 1
        x = matmul(x, x) if count else x
    return broadcast_to(identity, x.shape).copy() if result is None else result.copy()


# Norms.


def vector_norm(x: Tensor, /, *, axis: Axis = None, keepdims: bool = False, ord: float = 2) -> Tensor:
    """The *ord*-norm of vectors along *axis* (all elements for None): ``sum(|x|**ord)**(1/ord)``.

    ``inf`` and ``-inf`` give the greatest and least ``|x|``, 0 the number of elements that are not zero. Real.

    Raises:
        IndexError: for an axis out of bounds.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.linalg.vector_norm(fa.asarray([3.0, 4.0]))
        Tensor(5.)
    """
    x = tensor("vector_norm", x)
    if not (x.dtype.is_floating or x.dtype.is_complex):
        x = wrap(spec_of(DEFAULT_FLOAT, x.device).call["astype"](x._data), spec_of(DEFAULT_FLOAT, x.device))
    if x.dtype.bits == 16:  # squares and powers would overflow: computed in float32 and rounded once
        return vector_norm(x.astype(Dtype.F32), axis=axis, keepdims=keepdims, ord=ord).astype(x.dtype)
    axes = normalize_axes("vector_norm", axis, x.ndim)
    size = abs_(x)
    if ord in (math.inf, -math.inf):
        if ord > 0 and any(x.shape[a] == 0 for a in axes):
            return sum_(size, axis=axes, keepdims=keepdims)
        return (max_ if ord > 0 else min_)(size, axis=axes, keepdims=keepdims)
    if ord == 0:
        return sum_(not_equal(x, 0).astype(size.dtype), axis=axes, keepdims=keepdims)
    if ord == 1:
        return sum_(size, axis=axes, keepdims=keepdims)
    if ord == 2:
        return sqrt(sum_(multiply(size, size), axis=axes, keepdims=keepdims))
    return pow(sum_(pow(size, float(ord)), axis=axes, keepdims=keepdims), 1.0 / ord)


def matrix_norm(x: Tensor, /, *, keepdims: bool = False, ord: float | Literal["fro", "nuc"] | None = "fro") -> Tensor:
    """A norm of matrices, real.

    ``fro`` (Frobenius), ``nuc`` (sum of singular values), 1 and -1 (greatest and least column sum), 2 and -2 (greatest
    and least singular value), inf and -inf (greatest and least row sum).

    Raises:
        ValueError: for another *ord* or fewer than two axes.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.linalg.matrix_norm(fa.asarray([[3.0, 0.0], [4.0, 0.0]]))
        Tensor(5.)
    """
    x = floating_matrices("matrix_norm", x)
    if x.dtype.bits == 16:
        return matrix_norm(x.astype(Dtype.F32), keepdims=keepdims, ord=ord).astype(x.dtype)
    size = abs_(x)
    if ord is None or ord == "fro":
        return vector_norm(x, axis=(-2, -1), keepdims=keepdims)
    if ord in ("nuc", 2, -2):
        values = svdvals(x)
        reduce: Any = {"nuc": sum_, 2: max_, -2: min_}[ord]
        result: Tensor = sum_(values, axis=-1) if not values.shape[-1] else reduce(values, axis=-1)
        return reshape(result, (*result.shape, 1, 1)) if keepdims else result
    if ord in (1, -1, math.inf, -math.inf):
        sums = sum_(size, axis=-2 if abs(ord) == 1 else -1, keepdims=True)
        pick = max_ if ord > 0 else min_
        result = (
            sum_(sums, axis=(-2, -1), keepdims=True)
            if 0 in sums.shape[-2:]
            else pick(sums, axis=(-2, -1), keepdims=True)
        )
        return result if keepdims else reshape(result, result.shape[:-2])
    raise ValueError(f"matrix_norm: ord must be 'fro', 'nuc', 1, -1, 2, -2, inf or -inf, got {ord!r}")


if not TYPE_CHECKING:  # tools that check types shall find misspelt names

    def __getattr__(name: str) -> NoReturn:
        raise AttributeError(f"module 'ferrum_array.linalg' has no attribute {name!r}{advice(__name__, name)}")
