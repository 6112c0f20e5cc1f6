"""Elementwise functions beside NumPy in float64, in every dtype that they take."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ferrum_array as fa
from ferrum_array.testing import broadcastable_pairs, shapes, tensors
from tests.array.differential import Row, agree, always, floating, real
from tests.array.oracle import (
    ALL,
    BOOL,
    COMPLEX,
    FLOATS,
    INTEGERS,
    check,
    moderate,
    moderate_pairs,
    on,
    to_dtype,
    to_numpy,
    wide,
)

REAL = (*INTEGERS, *FLOATS)
NUMERIC = (*REAL, *COMPLEX)
ANY_FLOAT = (*BOOL, *INTEGERS, *FLOATS)  # integers and booleans become the default float

ROWS = [
    Row("acos", fa.acos, np.arccos, low=-1, high=1, atol=1),
    Row("acosh", fa.acosh, np.arccosh, low=1),
    Row("asin", fa.asin, np.arcsin, low=-1, high=1),
    Row("asinh", fa.asinh, np.arcsinh, floating, ANY_FLOAT),
    Row("atan", fa.atan, np.arctan, floating, ANY_FLOAT),
    Row("atanh", fa.atanh, np.arctanh, low=-1, high=1),
    Row("cos", fa.cos, np.cos, floating, ANY_FLOAT, atol=1),
    Row("cosh", fa.cosh, np.cosh, floating, ANY_FLOAT, low=-8, high=8),
    Row("exp", fa.exp, np.exp, floating, ANY_FLOAT, low=-8, high=8),
    Row("expm1", fa.expm1, np.expm1, floating, ANY_FLOAT, low=-8, high=8),
    Row("log", fa.log, np.log, floating, ANY_FLOAT, low=0),
    Row("log10", fa.log10, np.log10, floating, ANY_FLOAT, low=0),
    Row("log1p", fa.log1p, np.log1p, floating, ANY_FLOAT, low=0),
    Row("log2", fa.log2, np.log2, floating, ANY_FLOAT, low=0),
    Row("reciprocal", fa.reciprocal, lambda a: 1 / a, floating, INTEGERS + FLOATS),
    Row("sin", fa.sin, np.sin, floating, ANY_FLOAT, atol=1),
    Row("sinh", fa.sinh, np.sinh, floating, ANY_FLOAT, low=-8, high=8),
    Row("sqrt", fa.sqrt, np.sqrt, floating, ANY_FLOAT, low=0),
    Row("tan", fa.tan, np.tan, floating, ANY_FLOAT, low=-1, high=1),
    Row("tanh", fa.tanh, np.tanh, floating, ANY_FLOAT),
    Row("abs", fa.abs, np.abs, real, FLOATS + COMPLEX),
    Row("abs of integers", fa.abs, np.abs, dtypes=INTEGERS),
    Row("ceil", fa.ceil, np.ceil, dtypes=REAL),
    Row("floor", fa.floor, np.floor, dtypes=REAL),
    Row("trunc", fa.trunc, np.trunc, dtypes=REAL),
    Row("round", fa.round, np.round, dtypes=NUMERIC),
    Row("square", fa.square, np.square, dtypes=FLOATS + COMPLEX, high=11, low=-11),
    Row("square of integers", fa.square, np.square, dtypes=INTEGERS, high=11, low=-11),
    Row("sign", fa.sign, np.sign, dtypes=NUMERIC),
    Row("negative", fa.negative, np.negative, dtypes=(*FLOATS, *COMPLEX)),
    Row("positive", fa.positive, np.positive, dtypes=NUMERIC),
    Row("conj", fa.conj, np.conj, dtypes=NUMERIC),
    Row("real", fa.real, np.real, real, FLOATS + COMPLEX),
    Row("imag", fa.imag, np.imag, real, COMPLEX),
    Row("isfinite", fa.isfinite, np.isfinite, always(fa.bool), NUMERIC),
    Row("isinf", fa.isinf, np.isinf, always(fa.bool), NUMERIC),
    Row("isnan", fa.isnan, np.isnan, always(fa.bool), NUMERIC),
    Row("signbit", fa.signbit, np.signbit, always(fa.bool), FLOATS),
    Row("logical_not", fa.logical_not, np.logical_not, dtypes=BOOL),
    Row("bitwise_invert", fa.bitwise_invert, np.invert, dtypes=BOOL),
    *(
        Row(f"complex {f.__name__}", f, g, dtypes=COMPLEX, low=-4, high=4, ulps=64, atol=64)
        for f, g in (
            (fa.exp, np.exp),
            (fa.sin, np.sin),
            (fa.cos, np.cos),
            (fa.sinh, np.sinh),
            (fa.cosh, np.cosh),
            (fa.tanh, np.tanh),
            (fa.sqrt, np.sqrt),
            (fa.expm1, np.expm1),
            (fa.asinh, np.arcsinh),
        )
    ),
]


@pytest.mark.parametrize("row", ROWS, ids=repr)
def test_one_operand(row: Row, device: fa.Device) -> None:
    agree(row, device)


PAIRS = [
    ("atan2", fa.atan2, np.arctan2, FLOATS, -50),
    ("copysign", fa.copysign, np.copysign, FLOATS, -50),
    ("divide", fa.divide, np.divide, FLOATS, -50),
    ("floor_divide", fa.floor_divide, np.floor_divide, INTEGERS, 1),
    ("hypot", fa.hypot, np.hypot, FLOATS, -50),
    ("logaddexp", fa.logaddexp, np.logaddexp, FLOATS, -50),
    ("maximum", fa.maximum, np.maximum, REAL, -50),
    ("minimum", fa.minimum, np.minimum, REAL, -50),
    ("remainder", fa.remainder, np.remainder, INTEGERS, 1),
    ("logical_and", fa.logical_and, np.logical_and, BOOL, 0),
    ("logical_or", fa.logical_or, np.logical_or, BOOL, 0),
    ("logical_xor", fa.logical_xor, np.logical_xor, BOOL, 0),
    ("bitwise_and", fa.bitwise_and, np.bitwise_and, BOOL, 0),
]


@pytest.mark.parametrize(("name", "ours", "numpys", "allowed", "low"), PAIRS)
def test_two_operands(name: str, ours, numpys, allowed, low: int, device: fa.Device) -> None:  # type: ignore[no-untyped-def]  # a row
    @given(st.data())
    def property_(data: st.DataObject) -> None:
        dtype = data.draw(st.sampled_from(on(device, allowed)))
        x, y = data.draw(moderate_pairs(dtype, dtype, device, low))
        with np.errstate(all="ignore"):
            wanted = numpys(wide(x), wide(y))
        check(ours(x, y), wanted, dtype, ulps=4, device=device)

    property_()


def test_floor_divide_and_remainder_belong_together(device: fa.Device) -> None:
    @given(broadcastable_pairs("f64", elements=st.integers(-40, 40).map(float)))
    def property_(pair: tuple[fa.Tensor, fa.Tensor]) -> None:
        x, y = pair
        y = fa.where(y == 0, fa.ones_like(y), y)
        quotient, rest = x // y, x % y
        assert bool(fa.all(quotient * y + rest == x))
        assert bool(fa.all((rest == 0) | (fa.sign(rest) == fa.sign(y))))

    if device.supports(fa.float64):
        property_()


@pytest.mark.parametrize("dtype", FLOATS)
def test_nextafter(dtype: fa.Dtype, device: fa.Device) -> None:
    if not device.supports(dtype):
        return
    limits = fa.finfo(dtype)
    one = fa.ones(3, dtype=dtype, device=device)
    there = fa.asarray([2.0, 0.0, 1.0], dtype=dtype, device=device)
    wanted = [1 + limits.eps, 1 - limits.eps / 2, 1.0]
    check(fa.nextafter(one, there), wanted, dtype)
    smallest = limits.smallest_normal * limits.eps
    zero = fa.zeros(2, dtype=dtype, device=device)
    check(fa.nextafter(zero, fa.asarray([1.0, -1.0]).astype(dtype).to_device(device)),
          [smallest, -smallest], dtype)  # fmt: skip


def test_clip(device: fa.Device) -> None:
    @given(st.data())
    def property_(data: st.DataObject) -> None:
        dtype = data.draw(st.sampled_from(on(device, REAL)))
        x = data.draw(moderate(dtype, shapes(max_dims=2), device=device))
        bounds = [
            data.draw(st.one_of(st.none(), st.integers(0, 20), moderate(dtype, x.shape, device=device)))
            for _ in range(2)
        ]
        wanted = wide(x)
        for limit, bound in zip((np.maximum, np.minimum), bounds, strict=True):
            if bound is not None:
                wanted = limit(wanted, wide(bound) if isinstance(bound, fa.Tensor) else bound)
        check(fa.clip(x, *bounds), wanted, dtype, device=device)
        check(fa.clip(x, min=bounds[0], max=bounds[1]), wanted, dtype, device=device)

    property_()
    nan = fa.asarray([fa.nan, 1.0], device=device)
    assert fa.isnan(fa.clip(nan, 0, 2)).tolist() == [True, False]
    assert fa.isnan(fa.clip(fa.ones(2, device=device), nan)).tolist() == [True, False]


# Special values: NumPy's and the standard's agree for these.

SPECIAL = [fa.nan, fa.inf, -fa.inf, 0.0, -0.0, 1.0, -1.0, 2.5]
UNARY = [
    *("acos", "asin", "atan", "asinh", "exp", "expm1", "floor", "ceil", "trunc", "round", "sqrt"),
    *("log1p", "tanh", "sin", "cos", "abs", "sign", "negative"),
]
NUMPY_NAMES = {"acos": "arccos", "asin": "arcsin", "atan": "arctan", "asinh": "arcsinh"}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", UNARY)
def test_special_values(name: str, dtype: fa.Dtype, device: fa.Device) -> None:
    if not device.supports(dtype):
        return
    x = fa.asarray(SPECIAL, dtype=dtype, device=device)
    with np.errstate(all="ignore"):
        wanted = to_dtype(getattr(np, NUMPY_NAMES.get(name, name))(np.asarray(SPECIAL)), dtype)
    found = getattr(fa, name)(x)
    check(found, wanted, dtype, ulps=8)
    assert fa.signbit(found).tolist()[3:5] == np.signbit(wide(wanted)).tolist()[3:5]


@pytest.mark.parametrize(
    ("call", "wanted"),
    [
        (lambda x: x // fa.inf, [0.0, -0.0]),
        (lambda x: x // 0.0, [fa.inf, -fa.inf]),
        (lambda x: (x * fa.inf) // 2.0, [fa.inf, -fa.inf]),
        (lambda x: x**0.0, [1.0, 1.0]),
        (lambda x: (x * fa.nan) ** 0.0, [1.0, 1.0]),
        (lambda x: fa.logaddexp(-fa.inf * fa.abs(x), -fa.inf), [-fa.inf, -fa.inf]),
        (lambda x: fa.hypot(x * fa.inf, x * fa.nan), [fa.inf, fa.inf]),
        (lambda x: fa.maximum(x, x * fa.nan), [fa.nan, fa.nan]),
        (lambda x: fa.atan2(0.0 * x, -fa.ones_like(x)), [fa.pi, -fa.pi]),
    ],
)
def test_special_pairs(call, wanted: list[float], device: fa.Device) -> None:  # type: ignore[no-untyped-def]  # a row
    check(call(fa.asarray([1.0, -1.0], device=device)), wanted, fa.float32, ulps=4, device=device)


@given(tensors(), st.booleans())
def test_equal_is_reflexive_but_for_nan(x: fa.Tensor, reverse: bool) -> None:
    same = fa.not_equal(x, x) if reverse else fa.equal(x, x)
    number = fa.isnan(x) if x.dtype is not fa.bool else fa.zeros_like(x)
    assert bool(fa.all(same == (number if reverse else ~number)))


@given(broadcastable_pairs())
def test_equality_is_that_of_numpy(pair: tuple[fa.Tensor, fa.Tensor]) -> None:
    x, y = pair
    check(x == y, to_numpy(x) == to_numpy(y), fa.bool)
    check(x != y, to_numpy(x) != to_numpy(y), fa.bool)


def test_every_function_takes_what_it_says() -> None:
    """A dtype outside the kinds of a function is refused by name, never computed in silence."""
    from ferrum_array.spec import ELEMENTWISE

    for name, kinds in ELEMENTWISE.items():
        for dtype in ALL:
            x = fa.ones(2, dtype=dtype)
            arguments = (x,) if name in ROW_NAMES or name == "clip" else (x, x)
            lifted = "real floating" in kinds and "integral" not in kinds and not dtype.is_complex
            if fa.isdtype(dtype, kinds) or lifted:
                getattr(fa, name)(*arguments)
                continue
            with pytest.raises(TypeError, match=f"{name}: .*{dtype}"):
                getattr(fa, name)(*arguments)


ROW_NAMES = {row.name for row in ROWS}
