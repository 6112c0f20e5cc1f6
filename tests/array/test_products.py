"""Products of tensors, and einsum, beside NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ferrum_array as fa
from tests.array.oracle import COMPLEX, FLOATS, HALVES, INTEGERS, check, moderate, on, to_numpy, wide

NUMERIC = (*INTEGERS, *FLOATS, *COMPLEX)

PRODUCTS = [((3,), (3,)), ((2, 3), (3,)), ((3,), (3, 2)), ((2, 3), (3, 4)), ((5, 2, 3), (3, 2)),
            ((5, 1, 2, 3), (4, 3, 2)), ((0, 3), (3, 2)), ((2, 0), (0, 3)), ((1, 1), (1, 1)),
            ((3,), (2, 3, 4))]  # fmt: skip


@pytest.mark.parametrize(("left", "right"), PRODUCTS)
def test_matmul(left: tuple[int, ...], right: tuple[int, ...], device: fa.Device) -> None:
    @settings(max_examples=max(1, settings.default.max_examples // 2))
    @given(st.data())
    def property_(data: st.DataObject) -> None:
        dtype = data.draw(st.sampled_from(on(device, NUMERIC)))
        x = data.draw(moderate(dtype, left, device=device, low=-5, high=5))
        y = data.draw(moderate(dtype, right, device=device, low=-5, high=5))
        wanted = wide(x) @ wide(y)
        if dtype.is_integer:
            wanted = np.asarray(wanted).astype(to_numpy(x).dtype)
        eps = fa.finfo(dtype).eps if not dtype.is_integer else 0
        ulps = 1 if dtype in HALVES else 8
        for found in (x @ y, fa.matmul(x, y), fa.linalg.matmul(x, y)):
            check(found, wanted, dtype, ulps=ulps, atol=0 if dtype in HALVES else 100 * eps, device=device)

    property_()


def test_matmul_promotes(device: fa.Device) -> None:
    x = fa.ones((2, 2), dtype="i32", device=device)
    assert (x @ fa.ones((2, 2), dtype="f16", device=device)).dtype is fa.float16
    assert (x @ fa.ones(2, dtype="i8", device=device)).dtype is fa.int32
    found = fa.ones(2, dtype="f16", device=device) @ fa.ones(2, dtype="bf16", device=device)
    assert found.dtype is fa.float32


def test_vecdot(device: fa.Device) -> None:
    @given(st.data())
    def property_(data: st.DataObject) -> None:
        dtype = data.draw(st.sampled_from(on(device, NUMERIC)))
        x = data.draw(moderate(dtype, (2, 1, 3), device=device, low=-5, high=5))
        y = data.draw(moderate(dtype, (4, 3), device=device, low=-5, high=5))
        wanted = np.vecdot(wide(x), wide(y))
        if dtype.is_integer:
            wanted = wanted.astype(to_numpy(x).dtype)
        eps = fa.finfo(dtype).eps if not dtype.is_integer else 0
        atol = 0 if dtype in HALVES else 200 * eps
        check(fa.vecdot(x, y), wanted, dtype, ulps=1, atol=atol, device=device)
        found = fa.vecdot(fa.moveaxis(x, -1, 0), fa.moveaxis(y, -1, 0)[:, None], axis=0)
        check(found, wanted, dtype, ulps=1, atol=atol, device=device)

    property_()


EINSUMS = ["ij,jk->ik", "ij,jk", "ii", "ii->i", "ij->ji", "ij->", "i,j->ij", "...ij,...jk->...ik", "ij,ij->i",
           "ab,bc,cd->ad", "ij...->j...", " i j , j k -> i k ", "ij,j"]  # fmt: skip


@pytest.mark.parametrize("subscripts", EINSUMS)
def test_einsum(subscripts: str, device: fa.Device) -> None:
    count = subscripts.count(",") + 1
    sides = [
        (3,) * len(part.strip().replace(" ", "").replace("...", ""))
        for part in subscripts.partition("->")[0].split(",")
    ]

    @settings(max_examples=max(1, settings.default.max_examples // 2))
    @given(st.data())
    def property_(data: st.DataObject) -> None:
        dtype = data.draw(st.sampled_from(on(device, NUMERIC)))
        operands = [data.draw(moderate(dtype, side, device=device, low=0, high=4)) for side in sides[:count]]
        wanted = np.einsum(subscripts, *map(wide, operands))
        if dtype.is_integer:
            wanted = np.asarray(wanted).astype(to_numpy(operands[0]).dtype)
        ulps = 1 if dtype in HALVES else 32
        atol = 0 if not dtype.is_complex else 5000 * fa.finfo(dtype).eps
        check(fa.einsum(subscripts, *operands), wanted, dtype, ulps=ulps, atol=atol, device=device)

    property_()
