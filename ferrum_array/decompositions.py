"""Decompositions and solvers of the ``linalg`` extension of the array API standard.

Matrices are the last two axes, [..., M, N]; the others are a stack. 16-bit floats are computed in float32 and rounded.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from ferrum_array.dispatch import DEFAULT_FLOAT, broadcast, tensor, unify
from ferrum_array.manipulation import broadcast_to, reshape
from ferrum_array.products import matrices, widened
from ferrum_array.spec import spec_of
from ferrum_array.tensor import Tensor, wrap

__all__ = [
    "cholesky", "det", "eig", "eigh", "eigvals", "eigvalsh", "inv", "qr", "slogdet", "solve", "svd", "svdvals",
]  # fmt: skip


class EighResult(NamedTuple):
    """Eigenvalues in ascending order and eigenvectors in columns."""

    eigenvalues: Tensor
    eigenvectors: Tensor


class EigResult(NamedTuple):
    """Eigenvalues and eigenvectors in columns, complex."""

    eigenvalues: Tensor
    eigenvectors: Tensor


class QRResult(NamedTuple):
    """Orthonormal Q and upper triangular R."""

    Q: Tensor
    R: Tensor


class SlogdetResult(NamedTuple):
    """Sign and logarithm of the absolute value of a determinant."""

    sign: Tensor
    logabsdet: Tensor


class SVDResult(NamedTuple):
    """The singular value decomposition U S Vh."""

    U: Tensor
    S: Tensor
    Vh: Tensor


def floating_matrices(name: str, x: Tensor, *, square: bool = False) -> Tensor:
    """Matrices of a floating dtype; integers become the default float."""
    x = matrices(name, x, square=square)
    if x.dtype.is_floating or x.dtype.is_complex:
        return x
    spec = spec_of(DEFAULT_FLOAT, x.device)
    return wrap(spec.call["astype"](x._data), spec)


#: what to do where a library finds no answer
_HINTS = {
    **dict.fromkeys(("inv", "solve"), "; linalg.pinv has an answer for such a matrix"),
    **dict.fromkeys(("svd", "svdvals"), "; matrices that hold NaN have no singular values"),
}


def _result(x: Tensor, name: str, *arguments: Any) -> Any:
    try:
        return x._spec.call[name](x._data, *arguments)
    except ValueError as error:  # the libraries' LinAlgError is one
        raise ValueError(f"{name}: {error}, for {x._summary()}{_HINTS.get(name, '')}") from error


def cholesky(x: Tensor, /, *, upper: bool = False) -> Tensor:
    """The triangular L with x = L L^H (or U with x = U^H U for *upper*) of positive definite matrices.

    Raises:
        ValueError: for matrices that are not square or not positive definite.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.linalg.cholesky(fa.asarray([[4.0, 0.0], [0.0, 9.0]]))
        Tensor([[2., 0.],
                [0., 3.]])
    """
    x = floating_matrices("cholesky", x, square=True)
    return wrap(_result(x, "cholesky", bool(upper)), x._spec)


def inv(x: Tensor, /) -> Tensor:
    """The inverses [..., M, M] of square matrices [..., M, M].

    Raises:
        ValueError: for matrices that are not square or singular.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.linalg.inv(fa.asarray([[2.0, 0.0], [0.0, 4.0]]))
        Tensor([[0.5 , 0.  ],
                [0.  , 0.25]])
    """
    x = floating_matrices("inv", x, square=True)
    return wrap(_result(x, "inv"), x._spec)


def det(x: Tensor, /) -> Tensor:
    """The determinants [...] of square matrices [..., M, M].

    Raises:
        ValueError: for matrices that are not square.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.linalg.det(fa.asarray([[2.0, 0.0], [0.0, 4.0]]))
        Tensor(8.)
    """
    x = floating_matrices("det", x, square=True)
    return wrap(_result(x, "det"), x._spec)


def slogdet(x: Tensor, /) -> SlogdetResult:
    """Sign [...] and logarithm of the absolute value [...] of the determinants: no overflow for large matrices.

    Raises:
        ValueError: for matrices that are not square.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.linalg.slogdet(-fa.eye(3)).sign
        Tensor(-1.)
    """
    x = floating_matrices("slogdet", x, square=True)
    sign, logabsdet = _result(x, "slogdet")
    return SlogdetResult(wrap(sign, x._spec), wrap(logabsdet, spec_of(x.dtype.real, x.device)))


def solve(x1: Tensor, x2: Tensor, /) -> Tensor:
    """The solutions of x1 @ y = x2, for x1 [..., M, M] and x2 [M] or [..., M, K].

    Raises:
        ValueError: for matrices that are not square or singular, or lengths that do not fit.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.linalg.solve(fa.asarray([[2.0, 0.0], [0.0, 4.0]]), fa.asarray([2.0, 2.0]))
        Tensor([1. , 0.5])
    """
    x1, x2 = matrices("solve", x1, square=True), tensor("solve", x2, "x2")
    if not (x2.dtype.is_floating or x2.dtype.is_complex):
        x1 = floating_matrices("solve", x1)  # else x2 decides: integers beside float64 keep their digits
    spec, (left, right) = unify("solve", x1, x2)
    if not x2.ndim or x2.shape[-2 if x2.ndim > 1 else 0] != x1.shape[-1]:
        raise ValueError(f"solve: {x2._summary()} does not fit the matrices {x1._summary()}")
    a, b = wrap(left, spec), wrap(right, spec)
    vector = b.ndim == 1
    b = reshape(b, (*b.shape, 1)) if vector else b
    stack = broadcast("solve (stacks)", a.shape[:-2], b.shape[:-2])
    a, b = broadcast_to(a, (*stack, *a.shape[-2:])), broadcast_to(b, (*stack, *b.shape[-2:]))
    result = wrap(_result(a, "solve", b._data), spec)
    return reshape(result, result.shape[:-1]) if vector else result


def qr(x: Tensor, /, *, mode: Literal["reduced", "complete"] = "reduced") -> QRResult:
    """Orthonormal Q and upper triangular R with x = Q R: [..., M, K] and [..., K, N].

    K is min(M, N), or M for ``complete``.

    Raises:
        ValueError: for another *mode* or fewer than two axes.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.linalg.qr(fa.ones((3, 2))).Q.shape
        (3, 2)
    """
    if mode not in ("reduced", "complete"):
        raise ValueError(f"qr: mode must be 'reduced' or 'complete', got {mode!r}")
    x = floating_matrices("qr", x)
    q, r = _result(x, "qr", mode)
    return QRResult(wrap(q, x._spec), wrap(r, x._spec))


def eigh(x: Tensor, /) -> EighResult:
    """Eigenvalues [..., M], ascending, and eigenvectors [..., M, M] (columns) of symmetric or Hermitian matrices.

    Only the lower triangle is read.

    Raises:
        ValueError: for matrices that are not square, or not finite.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.linalg.eigh(fa.asarray([[2.0, 0.0], [0.0, 1.0]])).eigenvalues
        Tensor([1., 2.])
    """
    x = floating_matrices("eigh", x, square=True)
    values, vectors = _result(x, "eigh")
    return EighResult(wrap(values, spec_of(x.dtype.real, x.device)), wrap(vectors, x._spec))


def eigvalsh(x: Tensor, /) -> Tensor:
    """The eigenvalues of :func:`eigh`.

    Raises:
        ValueError: for matrices that are not square, or not finite.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.linalg.eigvalsh(fa.asarray([[2.0, 0.0], [0.0, 1.0]]))
        Tensor([1., 2.])
    """
    x = floating_matrices("eigvalsh", x, square=True)
    return wrap(_result(x, "eigvalsh"), spec_of(x.dtype.real, x.device))


def eig(x: Tensor, /) -> EigResult:
    """Eigenvalues [..., M], in no order, and eigenvectors [..., M, M] (columns) of square matrices: always complex.

    Raises:
        ValueError: for matrices that are not square, or not finite.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.linalg.eig(fa.eye(2)).eigenvalues
        Tensor([1.+0.j, 1.+0.j])
    """
    x = widened(floating_matrices("eig", x, square=True))
    spec = spec_of(x.dtype.complex, x.device)
    values, vectors = (spec.call["astype"](one) for one in _result(x, "eig"))
    return EigResult(wrap(values, spec), wrap(vectors, spec))


def eigvals(x: Tensor, /) -> Tensor:
    """The eigenvalues of :func:`eig`.

    Raises:
        ValueError: for matrices that are not square, or not finite.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.linalg.eigvals(fa.eye(2))
        Tensor([1.+0.j, 1.+0.j])
    """
    x = widened(floating_matrices("eigvals", x, square=True))
    spec = spec_of(x.dtype.complex, x.device)
    return wrap(spec.call["astype"](_result(x, "eigvals")), spec)


def svd(x: Tensor, /, *, full_matrices: bool = True) -> SVDResult:
    """The singular value decomposition x = U S Vh, with the values descending: [..., M, K], [..., K], [..., K, N].

    Raises:
        ValueError: for fewer than two axes, or matrices that hold NaN.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.linalg.svd(fa.ones((3, 2)), full_matrices=False).U.shape
        (3, 2)
    """
    x = floating_matrices("svd", x)
    u, s, vh = _result(x, "svd", bool(full_matrices))
    return SVDResult(wrap(u, x._spec), wrap(s, spec_of(x.dtype.real, x.device)), wrap(vh, x._spec))


def svdvals(x: Tensor, /) -> Tensor:
    """The singular values of :func:`svd`.

    Raises:
        ValueError: for fewer than two axes, or matrices that hold NaN.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.linalg.svdvals(fa.eye(2))
        Tensor([1., 1.])
    """
    x = floating_matrices("svdvals", x)
    return wrap(_result(x, "svdvals"), spec_of(x.dtype.real, x.device))
