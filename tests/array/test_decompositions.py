"""Decompositions, and systems of equations: the identities that define their results, and what has none."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ferrum_array as fa
from tests.array.oracle import check, moderate, on, wide
from tests.array.test_linalg import WIDE, dominant


def close(x: fa.Tensor, y: fa.Tensor, scale: float = 200) -> bool:
    eps = fa.finfo(x.dtype).eps
    return bool(np.allclose(wide(x), wide(y), rtol=scale * eps, atol=scale * eps))


def hermitian(x: fa.Tensor) -> fa.Tensor:
    return fa.conj(x.mT) if x.dtype.is_complex else x.mT


@pytest.mark.parametrize("shape", [(3, 3), (2, 4, 2), (2, 4), (1, 1)])
def test_decompositions_multiply_back(shape: tuple[int, ...], device: fa.Device) -> None:
    @settings(max_examples=max(1, settings.default.max_examples // 2))
    @given(st.data())
    def property_(data: st.DataObject) -> None:
        dtype = data.draw(st.sampled_from(on(device, WIDE)))
        x = data.draw(moderate(dtype, shape, device=device, low=-4, high=4))
        q, r = fa.linalg.qr(x)
        assert close(q @ r, x)
        assert close(hermitian(q) @ q, fa.eye(q.shape[-1], dtype=dtype, device=device) + 0 * (hermitian(q) @ q))
        assert bool(fa.all(fa.abs(fa.tril(r, k=-1)) == 0))
        u, s, vh = fa.linalg.svd(x, full_matrices=False)
        assert s.dtype is dtype.real
        assert close((u * s[..., None, :].astype(dtype)) @ vh, x)
        assert bool(fa.all(s[..., :-1] >= s[..., 1:]))
        full = fa.linalg.svd(x)
        assert (full.U.shape[-2:], full.Vh.shape[-2:]) == ((shape[-2],) * 2, (shape[-1],) * 2)
        complete = fa.linalg.qr(x, mode="complete")
        assert complete.Q.shape[-2:] == (shape[-2],) * 2
        assert close(complete.Q @ complete.R, x)
        if shape[-1] == shape[-2]:
            symmetric = x + hermitian(x)
            values, vectors = fa.linalg.eigh(symmetric)
            assert values.dtype is dtype.real
            assert close(symmetric @ vectors, vectors * values[..., None, :].astype(dtype), 2000)
            positive = x @ hermitian(x) + fa.eye(shape[-1], dtype=dtype, device=device)
            lower = fa.linalg.cholesky(positive)
            upper = fa.linalg.cholesky(positive, upper=True)
            assert close(lower @ hermitian(lower), positive)
            assert close(hermitian(upper) @ upper, positive)
            solution = fa.linalg.solve(dominant(x), x)
            assert close(dominant(x) @ solution, x, 500)
            vector = fa.linalg.solve(dominant(x), x[..., 0, :]) if x.ndim == 2 else None
            assert vector is None or close(dominant(x) @ vector, x[0], 500)
            sign, logabsdet = fa.linalg.slogdet(dominant(x))
            assert logabsdet.dtype is dtype.real
            found = sign * fa.exp(logabsdet).astype(dtype)
            assert np.allclose(wide(found), wide(fa.linalg.det(dominant(x))), rtol=1e-3)

    property_()


@pytest.mark.parametrize("dtype", ["f32", "f64", "c64", "c128"])
def test_eig(dtype: str, device: fa.Device) -> None:
    kind = fa.Dtype(dtype)
    if not device.supports(kind) or not device.supports(kind.complex):
        return
    x = fa.asarray([[0, -1], [1, 0]], dtype=kind, device=device)
    values, vectors = fa.linalg.eig(x)
    assert values.dtype is vectors.dtype is kind.complex
    assert close(x.astype(kind.complex) @ vectors, vectors * values)
    assert sorted(np.round(wide(values).imag)) == [-1.0, 1.0]
    assert sorted(np.round(wide(fa.linalg.eigvals(x)).imag)) == [-1.0, 1.0]


def test_solve_keeps_the_digits_of_integers_beside_doubles(device: fa.Device) -> None:
    if not device.supports(fa.float64):
        return
    x = fa.asarray([[2**24 + 1, 0], [0, 1]], device=device)
    found = fa.linalg.solve(x, fa.asarray([2.0**24 + 1, 3.0], dtype="f64", device=device))
    check(found, [1.0, 3.0], fa.float64)
    found = fa.linalg.solve(fa.asarray([[2, 0], [0, 4]], dtype="u64", device=device), fa.asarray([2, 2], device=device))
    check(found, [1.0, 0.5], fa.float32)


@pytest.mark.parametrize("bad", [fa.nan, fa.inf, -fa.inf])
def test_what_is_not_finite_has_no_eigenvalues(bad: float, device: fa.Device) -> None:
    for n in (2, 3):  # for some, LAPACK makes up numbers
        good = np.eye(n) * 2 + 1
        for row, column in ((1, 0), (1, 1), (0, 1)):
            stack = fa.asarray([good, good], dtype="f32", device=device)
            stack[1, row, column] = bad
            for call in (fa.linalg.eigvalsh, fa.linalg.eigh):
                if row < column:  # the upper triangle is not read
                    values = call(stack)
                    values = values if isinstance(values, fa.Tensor) else values.eigenvalues
                    assert np.allclose(wide(values), [np.linalg.eigvalsh(good)] * 2)
                    continue
                with pytest.raises(ValueError, match=r"float32\[2,") as caught:
                    call(stack)
                assert "lower triangle" in str(caught.value)


def test_results_have_names(device: fa.Device) -> None:
    x = fa.eye(2, device=device)
    assert fa.linalg.qr(x)._fields == ("Q", "R")
    assert fa.linalg.svd(x)._fields == ("U", "S", "Vh")
    assert fa.linalg.eigh(x)._fields == fa.linalg.eig(x)._fields == ("eigenvalues", "eigenvectors")
    assert fa.linalg.slogdet(x)._fields == ("sign", "logabsdet")
