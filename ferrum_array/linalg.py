"""Linear algebra: the ``linalg`` extension of the array API standard.

Products and decompositions have files of their own.

Matrices are the last two axes, [..., M, N]; the others are a stack. 16-bit floats are computed in float32 and rounded
once; integers become the default float wherever there is more than products.

Source: array API standard 2025.12, ``linalg`` extension; decompositions are those of LAPACK, and of cuSOLVER on CUDA.
"""

from __future__ import annotations

import math
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from ferrum_array.data_types import finfo
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
from ferrum_array.dispatch import DEFAULT_FLOAT, broadcast, integer, normalize_axes, tensor
from ferrum_array.dtype import Dtype
from ferrum_array.elementwise import abs as abs_
from ferrum_array.elementwise import conj, divide, greater, multiply, not_equal, pow, sqrt
from ferrum_array.manipulation import broadcast_to
from ferrum_array.names import advice
from ferrum_array.products import cross, matmul, matrices, matrix_transpose, numeric, outer, tensordot, vecdot, widened
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
    """The sums [...] of the diagonals *offset* above the main one of [..., M, N], with the dtype rules of ``sum``.

    Raises:
        ValueError: for fewer than two axes.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.linalg.trace(fa.asarray([[1, 2], [3, 4]]))
        Tensor(5)
    """
    return sum_(diagonal(matrices("trace", x), offset=offset), axis=-1, dtype=dtype)


def _counting(name: str, x: Tensor, values: Tensor, rtol: float | Tensor | None) -> Tensor:
    """Which singular *values* [..., K] of the matrices *x* count as more than zero: bool."""
    if rtol is None:
        rtol = max(x.shape[-2:]) * finfo(x.dtype).eps
    elif not isinstance(rtol, Real):
        rtol = tensor(name, rtol, "rtol")
        broadcast(f"{name} (stacks of x and rtol)", x.shape[:-2], rtol.shape)
        rtol = rtol[..., None]
    return greater(values, multiply(max_(values, axis=-1, keepdims=True), rtol))


def matrix_rank(x: Tensor, /, *, rtol: float | Tensor | None = None) -> Tensor:
    """How many singular values of each matrix [..., M, N] exceed *rtol* times the largest: int64 [...].

    Args:
        rtol: a number or [...]; max(M, N) times the eps of the dtype of *x* by default.

    Raises:
        ValueError: for fewer than two axes, an *rtol* that does not broadcast, or matrices that hold NaN.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.linalg.matrix_rank(fa.ones((3, 3)))
        Tensor(1)
    """
    x = floating_matrices("matrix_rank", x)
    values = svdvals(widened(x))
    if not values.shape[-1]:
        return count_nonzero(values, axis=-1)
    return count_nonzero(_counting("matrix_rank", x, values, rtol), axis=-1)


def pinv(x: Tensor, /, *, rtol: float | Tensor | None = None) -> Tensor:
    """The Moore-Penrose pseudo-inverses [..., N, M] of matrices [..., M, N].

    Args:
        rtol: singular values up to this times the largest count as zero: a number or [...]; max(M, N) times the eps of
            the dtype of *x* by default.

    Raises:
        ValueError: for fewer than two axes, an *rtol* that does not broadcast, or matrices that hold NaN.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.linalg.pinv(fa.asarray([[2.0], [0.0]]))
        Tensor([[0.5, 0. ]])
    """
    x = floating_matrices("pinv", x)
    u, s, vh = svd(widened(x), full_matrices=False)
    if s.size == 0:
        return matrix_transpose(conj(x)).copy()
    large = _counting("pinv", x, s, rtol)
    inverse = where(large, divide(1.0, where(large, s, 1.0)), 0.0 * s)
    found = matmul(conj(matrix_transpose(vh)), multiply(inverse[..., None], conj(matrix_transpose(u))))
    return found.astype(x.dtype, copy=False)


def matrix_power(x: Tensor, n: int, /) -> Tensor:
    """Square matrices [..., M, M] multiplied *n* times, by repeated squaring; the inverse that often for negative *n*.

    Raises:
        ValueError: for matrices that are not square, or singular ones and a negative *n*. TypeError: for booleans.

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
        x = floating_matrices("matrix_power", x)
    dtype, x = x.dtype, widened(x)
    if count < 0:
        x, count = inv(x), -count
    if not count:
        identity = wrap(x._spec.call["eye"](x.shape[-1], x.shape[-1], 0), x._spec)
        return broadcast_to(identity, x.shape).astype(dtype)
    result: Tensor | None = None
    while count:
        if count & 1:
            result = x if result is None else matmul(result, x)
        count >>= 1
        x = matmul(x, x) if count else x
    assert result is not None  # count has a highest bit
    return result.astype(dtype)


# Norms.


def _extreme(name: str, x: Tensor, sizes: Tensor, axes: tuple[int, ...], keepdims: bool, ord: float) -> Tensor:
    """The greatest of the magnitudes *sizes*, of *x*, for *ord* above 0, else the least. The greatest of none is 0."""
    if all(sizes.shape[a] for a in axes):
        return (max_ if ord > 0 else min_)(sizes, axis=axes, keepdims=keepdims)
    if ord > 0:
        return sum_(sizes, axis=axes, keepdims=keepdims)
    raise ValueError(f"{name}: ord={ord} asks for the least of no magnitudes, got {x._summary()}")


def vector_norm(x: Tensor, /, *, axis: Axis = None, keepdims: bool = False, ord: float = 2) -> Tensor:
    """The *ord*-norm of vectors along *axis* (all elements for None): ``sum(|x|**ord)**(1/ord)``.

    ``inf`` and ``-inf`` give the greatest and least ``|x|``, 0 the number of elements that are not zero. Real; the
    default float for integers.

    Raises:
        IndexError: for an axis out of bounds. TypeError: for an *ord* that is no real number.
        ValueError: for ``ord=-inf`` and no elements.

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
        return _extreme("vector_norm", x, size, axes, keepdims, ord)
    if ord == 0:
        return sum_(not_equal(x, 0).astype(size.dtype), axis=axes, keepdims=keepdims)
    if ord == 1:
        return sum_(size, axis=axes, keepdims=keepdims)
    if ord == 2:
        return sqrt(sum_(multiply(size, size), axis=axes, keepdims=keepdims))
    try:
        power = float(ord)
    except (TypeError, ValueError):
        advice = "; norms of matrices are matrix_norm's" if isinstance(ord, str) else ""
        raise TypeError(
            f"vector_norm: ord must be a real number, got {type(ord).__name__} {ord!r:.60}{advice}"
        ) from None
    return pow(sum_(pow(size, power), axis=axes, keepdims=keepdims), 1.0 / power)


def _matrix_like(norms: Tensor, keepdims: bool) -> Tensor:
    return norms[..., None, None] if keepdims else norms


def matrix_norm(x: Tensor, /, *, keepdims: bool = False, ord: float | Literal["fro", "nuc"] | None = "fro") -> Tensor:
    """A norm of each matrix [..., M, N]: real, [...] or [..., 1, 1].

    ``fro`` (Frobenius), ``nuc`` (sum of singular values), 1 and -1 (greatest and least column sum), 2 and -2 (greatest
    and least singular value), inf and -inf (greatest and least row sum).

    Raises:
        ValueError: for another *ord* or fewer than two axes; for a negative *ord* where there is no sum or value; for
            matrices that hold NaN and an *ord* that needs their singular values.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.linalg.matrix_norm(fa.asarray([[3.0, 0.0], [4.0, 0.0]]))
        Tensor(5.)
    """
    x = floating_matrices("matrix_norm", x)
    if x.dtype.bits == 16:
        return matrix_norm(x.astype(Dtype.F32), keepdims=keepdims, ord=ord).astype(x.dtype)
    if ord is None or ord == "fro":
        return vector_norm(x, axis=(-2, -1), keepdims=keepdims)
    if ord == "nuc":
        return _matrix_like(sum_(svdvals(x), axis=-1), keepdims)
    if ord in (2, -2):
        return _matrix_like(_extreme("matrix_norm", x, svdvals(x), (x.ndim - 2,), False, ord), keepdims)
    if ord in (1, -1, math.inf, -math.inf):
        sums = sum_(abs_(x), axis=-2 if abs(ord) == 1 else -1, keepdims=True)
        return _extreme("matrix_norm", x, sums, (x.ndim - 2, x.ndim - 1), keepdims, ord)
    raise ValueError(f"matrix_norm: ord must be 'fro', 'nuc', 1, -1, 2, -2, inf or -inf, got {ord!r}")


if not TYPE_CHECKING:  # tools that check types shall find misspelt names

    def __getattr__(name: str) -> NoReturn:
        raise AttributeError(f"module 'ferrum_array.linalg' has no attribute {name!r}{advice(__name__, name)}")
