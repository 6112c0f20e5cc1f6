"""Products, decompositions and Fourier transforms on CuPy arrays; the reasons stand in ``cupy_fixes.FIXES``."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import cupy as cp
import cupyx
import numpy as np

from ferrum_array.backends import cupy_blas, host
from ferrum_array.backends import numpy as numpy_storage
from ferrum_array.backends.base import Raw
from ferrum_array.backends.shared import SharedBackend
from ferrum_array.dtype import Dtype

__all__ = ["CupyLinalg"]


def _on_host(name: str, shapes: tuple[tuple[int, ...], ...], dtype: Any, *args: Any) -> Any:
    """What NumPy makes of empty arrays: nothing is computed, but every shape and dtype is right."""
    function = numpy_storage.make(0).implement(name, host.dtype_of(dtype))
    found = function(*(np.zeros(shape, dtype) for shape in shapes), *args)
    return tuple(map(cp.asarray, found)) if isinstance(found, tuple) else cp.asarray(found)


def _checked(function: Callable[..., Any], *args: Any) -> Any:
    """*function*, raising numpy.linalg.LinAlgError (a ValueError) where cuSOLVER reports that it failed."""
    with cupyx.errstate(linalg="raise"):
        found = function(*args)
    return tuple(found) if isinstance(found, tuple) else found


class CupyLinalg(SharedBackend):
    """Functions of matrices, and transforms."""

    def make_matmul(self, raw: Any, dtype: Dtype) -> Callable[..., Raw]:
        return cupy_blas.matmul_of(raw)

    def make_einsum(self, raw: Any, dtype: Dtype) -> Callable[..., Raw]:
        matmul = cupy_blas.matmul_of(raw)
        by_cupy = self._widened(self._einsum, raw) if dtype.bits == 16 and dtype.is_floating else self._einsum

        def einsum(subscripts: str, *arrays: Raw) -> Raw:
            plan = _pair(subscripts, arrays) if not dtype.is_integer else None
            if plan is None:
                return by_cupy(subscripts, *arrays)
            (left, right), shapes, order, (first, second) = plan
            product = matmul(arrays[0].transpose(left).reshape(first), arrays[1].transpose(right).reshape(second))
            return product.reshape(shapes).transpose(order)

        return einsum

    @staticmethod
    def _einsum(subscripts: str, *arrays: Raw) -> Raw:
        return cp.einsum(subscripts, *arrays, optimize=True)

    def fn_vecdot(self, x1: Raw, x2: Raw) -> Raw:
        return cp.sum((cp.conj(x1) if x1.dtype.kind == "c" else x1) * x2, axis=-1, dtype=x1.dtype)

    def fn_cholesky(self, x: Raw, upper: bool) -> Raw:
        if not x.size:
            return _on_host("cholesky", (x.shape,), x.dtype, upper)
        lower = _checked(cp.linalg.cholesky, x)
        return cp.conj(cp.swapaxes(lower, -1, -2)) if upper else lower

    def fn_inv(self, x: Raw) -> Raw:
        return _checked(cp.linalg.inv, x) if x.size else _on_host("inv", (x.shape,), x.dtype)

    def fn_solve(self, x1: Raw, x2: Raw) -> Raw:
        if not x2.size:
            return cp.empty(x2.shape, x2.dtype)
        return _checked(cp.linalg.solve, cp.ascontiguousarray(x1), cp.ascontiguousarray(x2))

    def fn_eigh(self, x: Raw) -> Any:
        return _checked(cp.linalg.eigh, self._finite(x)) if x.size else _on_host("eigh", (x.shape,), x.dtype)

    def fn_eigvalsh(self, x: Raw) -> Raw:
        return _checked(cp.linalg.eigvalsh, self._finite(x)) if x.size else _on_host("eigvalsh", (x.shape,), x.dtype)

    def fn_eig(self, x: Raw) -> Any:
        return _checked(cp.linalg.eig, x) if x.size else _on_host("eig", (x.shape,), x.dtype)

    def fn_eigvals(self, x: Raw) -> Raw:
        return _checked(cp.linalg.eigvals, x) if x.size else _on_host("eigvals", (x.shape,), x.dtype)

    def fn_svd(self, x: Raw, full_matrices: bool) -> Any:
        if not x.size:
            return _on_host("svd", (x.shape,), x.dtype, full_matrices)
        return _checked(cp.linalg.svd, x, full_matrices)

    def fn_svdvals(self, x: Raw) -> Raw:
        return _checked(cp.linalg.svd, x, False, False) if x.size else _on_host("svdvals", (x.shape,), x.dtype)

    def fn_qr(self, x: Raw, mode: str) -> Any:
        return tuple(cp.linalg.qr(x, mode)) if x.size else _on_host("qr", (x.shape,), x.dtype, mode)

    def fn_slogdet(self, x: Raw) -> Any:
        return tuple(cp.linalg.slogdet(x)) if x.size else _on_host("slogdet", (x.shape,), x.dtype)

    def fn_det(self, x: Raw) -> Raw:
        if not x.size:
            return _on_host("det", (x.shape,), x.dtype)
        sign, logarithm = cp.linalg.slogdet(x.astype("complex128" if x.dtype.kind == "c" else "float64"))
        return (sign * cp.exp(logarithm)).astype(x.dtype)

    # Fourier transforms: f(x, n, axis, norm).

    def fn_fft(self, x: Raw, *how: Any) -> Raw:
        return cp.fft.fft(x, *how) if x.size else _on_host("fft", (x.shape,), x.dtype, *how)

    def fn_ifft(self, x: Raw, *how: Any) -> Raw:
        return cp.fft.ifft(x, *how) if x.size else _on_host("ifft", (x.shape,), x.dtype, *how)

    def fn_rfft(self, x: Raw, *how: Any) -> Raw:
        return cp.fft.rfft(x, *how) if x.size else _on_host("rfft", (x.shape,), x.dtype, *how)

    def fn_ihfft(self, x: Raw, *how: Any) -> Raw:
        return cp.fft.ihfft(x, *how) if x.size else _on_host("ihfft", (x.shape,), x.dtype, *how)

    def fn_irfft(self, x: Raw, *how: Any) -> Raw:
        return cp.fft.irfft(_hermitian(x, *how[:2]), *how) if x.size else _on_host("irfft", (x.shape,), x.dtype, *how)

    def fn_hfft(self, x: Raw, *how: Any) -> Raw:
        return cp.fft.hfft(_hermitian(x, *how[:2]), *how) if x.size else _on_host("hfft", (x.shape,), x.dtype, *how)


def _pair(subscripts: str, arrays: tuple[Raw, ...]) -> Any:
    """How to compute *subscripts* as one product of matrices: orders of axes and shapes; None if it is not one."""
    terms, _, result = subscripts.partition("->")
    names = terms.split(",")
    if len(names) != 2 or "." in terms or any(len(set(name)) < len(name) for name in names):
        return None
    a, b = names
    lengths = dict(zip(a, arrays[0].shape, strict=True))
    if any(lengths.setdefault(c, n) != n for c, n in zip(b, arrays[1].shape, strict=True)):
        return None
    stack = [c for c in a if c in b and c in result]
    inner = [c for c in a if c in b and c not in result]
    rows, columns = [c for c in a if c not in b], [c for c in b if c not in a]
    if not inner or any(c not in result for c in (*rows, *columns)):
        return None
    m, k, n = (prod(lengths[c] for c in part) for part in (rows, inner, columns))
    outer = tuple(lengths[c] for c in stack)
    made = [*stack, *rows, *columns]
    orders = [a.index(c) for c in (*stack, *rows, *inner)], [b.index(c) for c in (*stack, *inner, *columns)]
    return orders, tuple(lengths[c] for c in made), [made.index(c) for c in result], ((*outer, m, k), (*outer, k, n))


def _hermitian(x: Raw, n: int | None, axis: int) -> Raw:
    """*x* with real ends: the points 0 and n/2 of the spectrum of real numbers have no imaginary part."""
    points = 2 * (x.shape[axis] - 1) if n is None else n
    x = x.copy()
    for end in {0, points // 2} if points % 2 == 0 else {0}:
        if end < x.shape[axis]:
            x.imag[(slice(None),) * axis + (end,)] = 0
    return x
