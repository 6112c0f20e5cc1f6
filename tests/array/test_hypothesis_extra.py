"""Hypothesis's own strategies for the array API work on the namespace as it is."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.array_api import make_strategies_namespace

import ferrum_array as fa

with warnings.catch_warnings():
    warnings.simplefilter("error")
    xps = make_strategies_namespace(fa)


def test_the_version_is_inferred() -> None:
    assert xps.api_version == "2024.12" or xps.api_version == fa.__array_api_version__
    assert xps.name == "ferrum_array"


@given(xps.arrays(xps.scalar_dtypes(), xps.array_shapes()))
def test_arrays_of_every_dtype(x: Any) -> None:
    assert type(x) is fa.Tensor
    assert x.dtype in fa.Dtype.all()
    assert fa.asarray(x, copy=True).shape == x.shape


@pytest.mark.parametrize(
    "dtypes",
    ["boolean_dtypes", "integer_dtypes", "unsigned_integer_dtypes", "floating_dtypes", "complex_dtypes",
     "numeric_dtypes", "real_dtypes"],
)  # fmt: skip
def test_kinds_of_dtypes(dtypes: str) -> None:
    @given(xps.arrays(getattr(xps, dtypes)(), (2, 3)))
    def property_(x: Any) -> None:
        assert x.shape == (2, 3)

    property_()


@given(st.data())
def test_elements_fill_and_uniqueness(data: st.DataObject) -> None:
    x = data.draw(xps.arrays(fa.float32, 5, elements={"min_value": 0, "max_value": 1}))
    assert bool(fa.all((x >= 0) & (x <= 1)))
    y = data.draw(xps.arrays(fa.int8, 6, unique=True))
    assert fa.unique_values(y).shape == (6,)
    z = data.draw(xps.arrays(fa.bool, (20,), fill=st.just(True)))
    assert z.dtype is fa.bool


@given(st.data())
def test_indices_and_shapes(data: st.DataObject) -> None:
    x = fa.ones(data.draw(xps.array_shapes(max_dims=3)))
    key = data.draw(xps.indices(x.shape, allow_newaxis=True))
    assert x[key].dtype is fa.float32
    shapes = data.draw(xps.mutually_broadcastable_shapes(2)).input_shapes
    assert (fa.ones(shapes[0]) + fa.ones(shapes[1])).shape == fa.broadcast_shapes(*shapes)


@given(xps.from_dtype(fa.float64), xps.from_dtype(fa.uint8))
def test_values_of_a_dtype(number: float, small: int) -> None:
    assert repr(fa.asarray(number, dtype="f64").item()) == repr(number)
    assert fa.asarray(small, dtype="u8").item() == small
