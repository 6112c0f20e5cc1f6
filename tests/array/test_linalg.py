"""Linear algebra beside NumPy in float64: matrices into matrices and numbers, norms and ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ferrum_array as fa
from ferrum_array.testing import shapes
from tests.array.differential import Row, agree, always, floating, real, summed
from tests.array.oracle import BOOL, COMPLEX, FLOATS, HALVES, INTEGERS, check, moderate, wide

NUMERIC = (*INTEGERS, *FLOATS, *COMPLEX)
WIDE = (fa.float32, fa.float64, *COMPLEX)
LAYOUTS = ("contiguous", "transposed", "strided")
inf = float("inf")

MATRICES = shapes(min_dims=2, max_dims=3, min_side=1, max_side=4)
SMALL = {"low": -3, "high": 3}


def square(n: int = 3) -> Any:
    return st.sampled_from([(n, n), (2, n, n), (1, 1), (0, n, n)])


def norm(**options: Any) -> Any:
    return lambda a: np.linalg.norm(a, **options)


def dominant(x: fa.Tensor) -> fa.Tensor:
    """Square matrices that are far from singular: a large diagonal is added."""
    return x + 20 * fa.eye(x.shape[-1], dtype=x.dtype, device=x.device)


def dominant_numpy(a: Any) -> Any:
    return a + 20 * np.eye(a.shape[-1])


ROWS = [
    Row("matrix_transpose", fa.matrix_transpose, np.matrix_transpose, dtypes=(*BOOL, *NUMERIC), shape=MATRICES),
    Row(
        "diagonal",
        lambda x: fa.linalg.diagonal(x, offset=1),
        lambda a: np.linalg.diagonal(a, offset=1),
        dtypes=NUMERIC,
        shape=MATRICES,
    ),
    Row("trace", fa.linalg.trace, np.linalg.trace, summed, NUMERIC, shape=MATRICES, atol=400),
    Row(
        "det",
        lambda x: fa.linalg.det(dominant(x)),
        lambda a: np.linalg.det(dominant_numpy(a)),
        dtypes=WIDE,
        shape=square(),
        ulps=100,
        **SMALL,
    ),
    Row(
        "inv",
        lambda x: fa.linalg.inv(dominant(x)),
        lambda a: np.linalg.inv(dominant_numpy(a)),
        dtypes=WIDE,
        shape=square(),
        atol=10,
        **SMALL,
    ),
    Row(
        "matrix_power",
        lambda x: fa.linalg.matrix_power(x, 3),
        lambda a: np.linalg.matrix_power(a, 3),
        dtypes=(fa.int64, *WIDE),
        shape=square(),
        ulps=64,
        atol=5000,
        **SMALL,
    ),
    Row(
        "matrix_power -2",
        lambda x: fa.linalg.matrix_power(dominant(x), -2),
        lambda a: np.linalg.matrix_power(dominant_numpy(a), -2),
        dtypes=WIDE,
        shape=square(),
        atol=10,
        **SMALL,
    ),
    Row("svdvals", fa.linalg.svdvals, np.linalg.svdvals, real, WIDE, shape=MATRICES, atol=800),
    Row(
        "eigvalsh",
        lambda x: fa.linalg.eigvalsh(x + x.mT),
        lambda a: np.linalg.eigvalsh(a + a.mT),
        dtypes=(fa.float32, fa.float64),
        shape=square(),
        atol=400,
        **SMALL,
    ),
    Row(
        "pinv",
        lambda x: fa.linalg.pinv(dominant(x)),
        lambda a: np.linalg.inv(dominant_numpy(a)),
        dtypes=WIDE,
        shape=square(),
        atol=20,
        **SMALL,
    ),
    Row(
        "matrix_rank",
        fa.linalg.matrix_rank,
        np.linalg.matrix_rank,
        always(fa.int64),
        WIDE,
        shape=MATRICES,
        low=-1,
        high=1,
    ),
    Row(
        "vector_norm",
        fa.linalg.vector_norm,
        lambda a: np.linalg.norm(a.reshape(-1)),
        real,
        (*INTEGERS, *FLOATS, *COMPLEX),
        shape=MATRICES,
        ulps=32,
    ),
    *(
        Row(
            f"vector_norm {ord}",
            lambda x, ord=ord: fa.linalg.vector_norm(x, axis=-1, ord=ord, keepdims=True),
            norm(axis=-1, ord=ord, keepdims=True),
            real,
            (*FLOATS, *COMPLEX),
            shape=MATRICES,
            ulps=64,
        )
        for ord in (0, 1, 2, 3, inf, -inf)
    ),
    *(
        Row(
            f"matrix_norm {ord}",
            lambda x, ord=ord: fa.linalg.matrix_norm(x, ord=ord),
            norm(axis=(-2, -1), ord=ord),
            real,
            WIDE,
            shape=MATRICES,
            ulps=64,
            atol=800,
        )
        for ord in ("fro", "nuc", 1, -1, 2, -2, inf, -inf)
    ),
    Row(
        "outer",
        lambda x: fa.linalg.outer(x, x),
        lambda a: np.outer(a, a),
        dtypes=(fa.int64, *FLOATS, *COMPLEX),
        shape=(4,),
        atol=400,
    ),
    Row(
        "cross",
        lambda x: fa.linalg.cross(x, fa.flip(x, axis=-1)),
        lambda a: np.cross(a, np.flip(a, -1)),
        dtypes=(fa.int64, *WIDE),
        shape=(2, 3),
        atol=5000,
    ),
    Row(
        "tensordot",
        lambda x: fa.tensordot(x, x, axes=((0, 1), (0, 1))),
        lambda a: np.tensordot(a, a, ((0, 1), (0, 1))),
        dtypes=(fa.int64, *WIDE),
        shape=(2, 3, 2),
        atol=20000,
    ),
    Row(
        "tensordot 0",
        lambda x: fa.tensordot(x, x, axes=0),
        lambda a: np.tensordot(a, a, 0),
        dtypes=(fa.int64, *FLOATS),
        shape=(2, 2),
    ),
    Row("kron", lambda x: fa.kron(x, x), lambda a: np.kron(a, a), dtypes=(fa.int64, *FLOATS), shape=(2, 3)),
]


@pytest.mark.parametrize("row", ROWS, ids=repr)
def test_beside_numpy(row: Row, device: fa.Device) -> None:
    agree(row, device)


def test_norms_neither_overflow_nor_stop_early_in_halves(device: fa.Device) -> None:
    x = fa.full(100, 300.0, dtype="f16", device=device)
    check(fa.linalg.vector_norm(x), 3000, fa.float16)
    check(fa.linalg.vector_norm(x, ord=3), 300 * 100 ** (1 / 3), fa.float16, ulps=1)
    check(fa.linalg.matrix_norm(fa.reshape(x, (10, 10))), 3000, fa.float16)
    check(fa.linalg.trace(fa.full((5, 5), 60000.0, dtype="f16", device=device)), inf, fa.float16)


def halves(device: fa.Device, *shape: int, top: float = 300) -> st.SearchStrategy[fa.Tensor]:
    return st.sampled_from(HALVES).flatmap(lambda dtype: moderate(dtype, shape, device=device, low=-top, high=top))


def test_halves_are_rounded_once_by_what_takes_several_steps(device: fa.Device) -> None:
    @settings(max_examples=max(1, settings.default.max_examples // 2))
    @given(st.data())
    def property_(data: st.DataObject) -> None:
        a, b = (data.draw(halves(device, 2, 3)) for _ in range(2))
        wanted = np.cross(wide(a), wide(b))
        dtype = fa.float32 if a.dtype is not b.dtype else a.dtype
        # of two products, each below 2**17, float32 keeps all but a few of the last bits
        check(fa.linalg.cross(a, b), wanted, dtype, ulps=1, atol=2.0**-6, device=device)
        x = data.draw(halves(device, 3, 3, top=4))
        for n in (2, 5):
            power = np.linalg.matrix_power(wide(x), n)
            size = np.linalg.matrix_power(np.abs(wide(x)), n).max()
            check(fa.linalg.matrix_power(x, n), power, x.dtype, ulps=1, atol=2.0**-20 * size, device=device)
        inverse = fa.linalg.pinv(dominant(x))
        check(inverse, np.linalg.inv(wide(dominant(x))), x.dtype, ulps=1, atol=1e-6, device=device)

    property_()


@pytest.mark.parametrize("dtype", HALVES)
def test_singular_values_beyond_float16_count(dtype: fa.Dtype, device: fa.Device) -> None:
    x = fa.full((3, 3), 60000.0, dtype=dtype, device=device)
    assert fa.linalg.matrix_rank(x).item() == 1
    check(fa.linalg.pinv(x), np.full((3, 3), 1 / (9 * x[0, 0].item())), dtype, ulps=1)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0), (2, 0, 3)])
@pytest.mark.parametrize("ord", ["fro", "nuc", 1, -1, 2, -2, inf, -inf])
def test_norms_of_nothing(shape: tuple[int, ...], ord: Any, device: fa.Device) -> None:
    x = fa.zeros(shape, device=device)
    try:
        wanted = np.linalg.matrix_norm(np.zeros(shape), ord=ord)
    except ValueError:  # there is no least of no numbers
        with pytest.raises(ValueError, match=r"matrix_norm: ord=-.*float32\["):
            fa.linalg.matrix_norm(x, ord=ord)
        return
    check(fa.linalg.matrix_norm(x, ord=ord), wanted, fa.float32)
    check(fa.linalg.matrix_norm(x, ord=ord, keepdims=True), wanted[..., None, None], fa.float32)


def test_tolerances_of_ranks_are_numbers_or_one_for_each_matrix(device: fa.Device) -> None:
    x = fa.broadcast_to(fa.asarray([[1.0, 0.0], [0.0, 0.5]], device=device), (3, 2, 2))
    rtol = fa.asarray([0.1, 0.7, 2.0], device=device)
    assert fa.linalg.matrix_rank(x, rtol=rtol).tolist() == [2, 1, 0]
    assert fa.linalg.matrix_rank(x, rtol=np.float32(0.7)).tolist() == [1, 1, 1]
    assert wide(fa.linalg.pinv(x, rtol=rtol))[:, 0, 0].tolist() == [1.0, 1.0, 0.0]


def test_integers_become_the_default_float(device: fa.Device) -> None:
    x = fa.asarray([[2, 0], [0, 4]], device=device)
    assert fa.linalg.inv(x).tolist() == [[0.5, 0.0], [0.0, 0.25]]
    for call in (fa.linalg.inv, fa.linalg.det, fa.linalg.svdvals, fa.linalg.cholesky, fa.linalg.pinv):
        assert call(x).dtype is fa.float32
    assert fa.linalg.matrix_power(x, 2).dtype is fa.int64
    assert fa.linalg.matrix_power(x, 0).tolist() == [[1, 0], [0, 1]]
    assert floating(x.dtype) is fa.float32
