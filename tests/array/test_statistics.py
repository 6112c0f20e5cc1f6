"""Statistical functions, searching, sorting, sets and utilities beside NumPy in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ferrum_array as fa
from ferrum_array.testing import shapes, tensors
from tests.array.differential import Row, agree, always, floating, real, summed
from tests.array.oracle import (
    ALL,
    BOOL,
    COMPLEX,
    FLOATS,
    HALVES,
    INTEGERS,
    check,
    moderate,
    on,
    to_numpy,
    wide,
)

REAL = (*BOOL, *INTEGERS, *FLOATS)
NUMERIC = (*INTEGERS, *FLOATS, *COMPLEX)
FULL = shapes(min_dims=1, max_dims=3, min_side=1, max_side=4)  # no empty axis
MATRIX = shapes(min_dims=2, max_dims=3, min_side=1, max_side=4)


def flag(call: Any, **options: Any) -> Callable[[Any], Any]:
    return lambda x: call(x, **options)


ROWS = [
    Row("sum", fa.sum, np.sum, summed, (*BOOL, *NUMERIC), atol=2000),
    Row("sum axis", flag(fa.sum, axis=-1), flag(np.sum, axis=-1), summed, (*BOOL, *NUMERIC), shape=FULL, atol=500),
    Row(
        "sum axes",
        flag(fa.sum, axis=(0, 1), keepdims=True),
        flag(np.sum, axis=(0, 1), keepdims=True),
        summed,
        (*BOOL, *NUMERIC),
        shape=MATRIX,
        atol=2000,
    ),
    Row("sum of none", flag(fa.sum, axis=()), np.positive, summed, NUMERIC),
    Row(
        "prod",
        fa.prod,
        np.prod,
        summed,
        (*BOOL, *NUMERIC),
        low=-2,
        high=2,
        shape=shapes(max_dims=2, max_side=2),
        ulps=64,
        atol=64,
    ),
    Row("mean", fa.mean, np.mean, floating, (*REAL, *COMPLEX), shape=FULL, atol=100),
    Row(
        "mean axis",
        flag(fa.mean, axis=0, keepdims=True),
        flag(np.mean, axis=0, keepdims=True),
        floating,
        (*REAL, *COMPLEX),
        shape=FULL,
        atol=100,
    ),
    Row("var", fa.var, np.var, real, (*REAL, *COMPLEX), shape=FULL, ulps=64, atol=64),
    Row(
        "var correction",
        flag(fa.var, axis=0, correction=0.5),
        flag(np.var, axis=0, ddof=0.5),
        real,
        REAL,
        shape=FULL,
        ulps=64,
        atol=64,
    ),
    Row("std", flag(fa.std, axis=-1), flag(np.std, axis=-1), real, (*REAL, *COMPLEX), shape=FULL, ulps=64, atol=64),
    Row("max", fa.max, np.max, dtypes=REAL, shape=FULL),
    Row("max axis", flag(fa.max, axis=0, keepdims=True), flag(np.max, axis=0, keepdims=True), dtypes=REAL, shape=FULL),
    Row("min", flag(fa.min, axis=(0, -1)), flag(np.min, axis=(0, -1)), dtypes=REAL, shape=MATRIX),
    Row(
        "cumulative_sum",
        flag(fa.cumulative_sum, axis=0),
        flag(np.cumsum, axis=0),
        summed,
        NUMERIC,
        shape=FULL,
        atol=500,
    ),
    Row(
        "cumulative_sum initial",
        flag(fa.cumulative_sum, axis=0, include_initial=True),
        lambda a: np.concatenate([np.zeros_like(a[:1]), np.cumsum(a, axis=0)]),
        summed,
        INTEGERS,
        shape=FULL,
    ),
    Row(
        "cumulative_prod",
        flag(fa.cumulative_prod, axis=-1),
        flag(np.cumprod, axis=-1),
        summed,
        NUMERIC,
        low=-3,
        high=3,
        shape=FULL,
        ulps=64,
        atol=64,
    ),
    Row(
        "count_nonzero",
        flag(fa.count_nonzero, axis=0),
        flag(np.count_nonzero, axis=0),
        always(fa.int64),
        (*BOOL, *NUMERIC),
        low=-1,
        high=1,
        shape=FULL,
    ),
    Row(
        "all", flag(fa.all, axis=0), flag(np.all, axis=0), always(fa.bool), (*BOOL, *NUMERIC), low=0, high=1, shape=FULL
    ),
    Row(
        "any",
        flag(fa.any, axis=-1),
        flag(np.any, axis=-1),
        always(fa.bool),
        (*BOOL, *NUMERIC),
        low=0,
        high=0,
        shape=FULL,
    ),
    Row("argmax", fa.argmax, np.argmax, always(fa.int64), REAL, low=0, high=3, shape=FULL),
    Row(
        "argmax axis",
        flag(fa.argmax, axis=0, keepdims=True),
        flag(np.argmax, axis=0, keepdims=True),
        always(fa.int64),
        REAL,
        low=0,
        high=3,
        shape=FULL,
    ),
    Row(
        "argmin", flag(fa.argmin, axis=-1), flag(np.argmin, axis=-1), always(fa.int64), REAL, low=0, high=3, shape=FULL
    ),
    Row("nonzero", fa.nonzero, np.nonzero, always(fa.int64), (*BOOL, *NUMERIC), low=-1, high=1, shape=FULL),
    Row("sort", fa.sort, np.sort, dtypes=REAL, shape=FULL),
    Row(
        "sort descending",
        flag(fa.sort, axis=0, descending=True),
        lambda a: np.flip(np.sort(a, axis=0), axis=0),
        dtypes=REAL,
        shape=FULL,
    ),
    Row(
        "argsort",
        flag(fa.argsort, axis=0),
        flag(np.argsort, axis=0, stable=True),
        always(fa.int64),
        REAL,
        low=0,
        high=2,
        shape=FULL,
    ),
    Row(
        "argsort descending",
        flag(fa.argsort, descending=True),
        lambda a: np.argsort(-a.astype(float), stable=True),
        always(fa.int64),
        REAL,
        low=0,
        high=2,
        shape=FULL,
    ),
    Row("unique_values", fa.unique_values, np.unique, dtypes=(*BOOL, *NUMERIC), low=-1, high=1),
    Row("diff", fa.diff, np.diff, dtypes=NUMERIC, low=0, high=50, shape=FULL),
    Row(
        "diff axis",
        flag(fa.diff, axis=0, n=2),
        flag(np.diff, axis=0, n=2),
        dtypes=COMPLEX + FLOATS,
        shape=FULL,
        atol=200,
    ),
    Row("diff of booleans", fa.diff, np.diff, dtypes=BOOL, shape=FULL),
]


@pytest.mark.parametrize("row", ROWS, ids=repr)
def test_beside_numpy(row: Row, device: fa.Device) -> None:
    if row.name.startswith("diff") and row.name != "diff of booleans":
        row = Row(**{**vars_of(row), "dtypes": tuple(d for d in row.dtypes if d.kind != "unsigned integer")})
    agree(row, device)


def vars_of(row: Row) -> dict[str, Any]:
    return {name: getattr(row, name) for name in Row.__dataclass_fields__}


def test_sums_take_the_dtype_that_is_asked_for(device: fa.Device) -> None:
    x = fa.asarray([100, 100], dtype="i8", device=device)
    for dtype, wanted in (("i8", -56), ("i16", 200), ("f16", 200.0), ("u64", 200), (None, 200)):
        found = fa.sum(x, dtype=dtype)
        assert found.dtype is (fa.int64 if dtype is None else fa.Dtype(dtype))
        assert found.item() == wanted
    assert fa.sum(fa.ones(3, dtype="bf16", device=device), dtype="f32").dtype is fa.float32


def test_reductions_of_nothing(device: fa.Device) -> None:
    none = fa.zeros((0, 2), device=device)
    assert fa.sum(none, axis=0).tolist() == [0.0, 0.0]
    assert fa.prod(none).item() == 1.0
    assert fa.isnan(fa.mean(none, axis=0)).tolist() == [True, True]
    assert fa.mean(none, axis=1).shape == (0,)
    assert fa.all(none).item() is True
    assert fa.any(none).item() is False
    assert fa.max(none, axis=1).shape == (0,)
    assert fa.sort(none, axis=0).shape == (0, 2)
    assert fa.unique_values(none).shape == (0,)
    assert [i.shape for i in fa.nonzero(none)] == [(0,), (0,)]


@pytest.mark.parametrize("dtype", FLOATS)
def test_nan_in_order(dtype: fa.Dtype, device: fa.Device) -> None:
    if not device.supports(dtype):
        return
    x = fa.asarray([2.0, fa.nan, -fa.inf, 1.0, fa.inf], dtype=dtype, device=device)
    assert repr(fa.sort(x).tolist()) == "[-inf, 1.0, 2.0, inf, nan]"
    assert repr(fa.sort(x, descending=True).tolist()) == "[nan, inf, 2.0, 1.0, -inf]"
    assert fa.argsort(x).tolist() == [2, 3, 0, 4, 1]
    assert (fa.argmax(x).item(), fa.argmin(x).item()) == (1, 1)
    assert fa.isnan(fa.max(x)).item() is True
    assert fa.isnan(fa.min(x)).item() is True
    assert fa.count_nonzero(x).item() == 5


def test_unique_all(device: fa.Device) -> None:
    @given(st.data())
    def property_(data: st.DataObject) -> None:
        dtype = data.draw(st.sampled_from(on(device, ALL)))
        x = data.draw(moderate(dtype, device=device, low=-1, high=1))
        found = fa.unique_all(x)
        wanted = np.unique_all(wide(x))
        check(found.values, wanted.values, dtype, device=device)
        check(found.indices, wanted.indices, fa.int64, device=device)
        check(found.inverse_indices, wanted.inverse_indices, fa.int64, device=device)
        check(found.counts, wanted.counts, fa.int64, device=device)
        assert np.array_equal(to_numpy(fa.unique_counts(x).counts), wanted.counts)
        assert np.array_equal(to_numpy(fa.unique_inverse(x).inverse_indices), wanted.inverse_indices)

    property_()


def test_every_nan_is_unique(device: fa.Device) -> None:
    x = fa.asarray([fa.nan, 1.0, fa.nan, -0.0, 0.0], device=device)
    values, counts = fa.unique_counts(x)
    assert values.shape == (4,)
    assert counts.tolist() == [2, 1, 1, 1]


def test_isin_and_searchsorted(device: fa.Device) -> None:
    @given(st.data())
    def property_(data: st.DataObject) -> None:
        dtype = data.draw(st.sampled_from(on(device, REAL)))
        x = data.draw(moderate(dtype, device=device, low=-5, high=5))
        tests = data.draw(moderate(dtype, shapes(max_dims=2), device=device, low=-5, high=5))
        invert = data.draw(st.booleans())
        check(fa.isin(x, tests, invert=invert), np.isin(wide(x), wide(tests), invert=invert), fa.bool)
        ordered = fa.sort(fa.reshape(tests, (-1,) if tests.size else (0,)))
        for side in ("left", "right"):
            wanted = np.searchsorted(wide(ordered), wide(x), side=side)
            check(fa.searchsorted(ordered, x, side=side), wanted, fa.int64, device=device)
            flat = fa.reshape(tests, (tests.size,))
            found = fa.searchsorted(flat, x, side=side, sorter=fa.argsort(flat))
            check(found, wanted, fa.int64, device=device)

    property_()


def test_isin_of_many(device: fa.Device) -> None:
    x = fa.arange(2000, device=device)
    tests = fa.arange(0, 4000, 3, device=device)
    check(fa.isin(x, tests), np.isin(to_numpy(x), to_numpy(tests)), fa.bool)
    assert fa.isin(fa.asarray(6, device=device), tests).item() is True
    assert not bool(fa.isin(fa.asarray([fa.nan]), fa.asarray([fa.nan])))


def test_where(device: fa.Device) -> None:
    @given(st.data())
    def property_(data: st.DataObject) -> None:
        shape = data.draw(shapes(max_dims=2))
        condition = data.draw(tensors("bool", shape, device=device))
        dtype = data.draw(st.sampled_from(on(device, ALL)))
        x, y = (data.draw(tensors(dtype, shape, device=device)) for _ in range(2))
        wanted = np.where(to_numpy(condition), to_numpy(x), to_numpy(y))
        check(fa.where(condition, x, y), wanted, dtype, device=device)

    property_()
    truth = fa.asarray([True, False], device=device)
    check(fa.where(truth, 1, 2), [1, 2], fa.int64, device=device)
    check(fa.where(truth, fa.ones(2, dtype="bf16", device=device), 2.0), [1, 2], fa.bfloat16)


def test_take(device: fa.Device) -> None:
    @given(st.data())
    def property_(data: st.DataObject) -> None:
        x = data.draw(tensors("i32", FULL, device=device))
        axis = data.draw(st.integers(-x.ndim, x.ndim - 1))
        inside = st.integers(-x.shape[axis], x.shape[axis] - 1)
        indices = data.draw(tensors("i64", shapes(max_dims=2), device=device, elements=inside))
        check(fa.take(x, indices, axis=axis), np.take(to_numpy(x), to_numpy(indices), axis), fa.int32)
        shape = list(x.shape)
        shape[axis] = data.draw(st.integers(0, 3))
        along = data.draw(tensors("i64", tuple(shape), device=device, elements=inside))
        wanted = np.take_along_axis(to_numpy(x), to_numpy(along), axis)
        check(fa.take_along_axis(x, along, axis=axis), wanted, fa.int32, device=device)

    property_()


def test_diff_with_ends(device: fa.Device) -> None:
    x = fa.asarray([[1, 4], [9, 16]], device=device)
    a, first = to_numpy(x), fa.asarray([[0], [0]], device=device)
    wanted = np.diff(a, prepend=[[0], [0]], append=[[7], [7]])
    check(fa.diff(x, prepend=first, append=first + 7), wanted, fa.int64, device=device)
    check(fa.diff(x, n=0), a, fa.int64)
    assert fa.diff(x, n=5).shape == (2, 0)


@pytest.mark.parametrize("dtype", HALVES)
def test_long_sums_of_halves_are_exact(dtype: fa.Dtype, device: fa.Device) -> None:
    """A 16-bit accumulator would stop at 2048 or 256 ones."""
    if not device.supports(dtype):
        return
    ones = fa.ones(10_000, dtype=dtype, device=device)
    check(fa.sum(ones), 10_000, dtype)
    check(fa.mean(ones), 1, dtype)
    check(fa.cumulative_sum(ones)[-1], 10_000, dtype)
    check(fa.std(ones), 0, dtype)
    check(fa.var(fa.concat([ones * 300, ones * 302])), 1, dtype)
