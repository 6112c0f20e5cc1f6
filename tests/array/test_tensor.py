"""Tensor: its operators beside NumPy's for every dtype, scalars, and operands that are no numbers."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ferrum_array as fa
from ferrum_array.testing import shapes
from tests.array.oracle import (
    ALL,
    BOOL,
    COMPLEX,
    FLOATS,
    HALVES,
    INTEGERS,
    check,
    moderate,
    moderate_pairs,
    on,
    to_dtype,
    to_numpy,
    wide,
)

Operator = Callable[[Any, Any], Any]

ARITHMETIC = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow")
BITWISE = ("and_", "or_", "xor", "lshift", "rshift")
COMPARE = ("eq", "ne", "lt", "le", "gt", "ge")

NUMERIC = (*INTEGERS, *FLOATS, *COMPLEX)
REAL = (*INTEGERS, *FLOATS)
KINDS: dict[str, tuple[fa.Dtype, ...]] = {
    **dict.fromkeys(("add", "sub", "mul", "truediv", "pow"), NUMERIC),
    **dict.fromkeys(("floordiv", "mod"), REAL),
    **dict.fromkeys(("and_", "or_", "xor"), (*BOOL, *INTEGERS)),
    **dict.fromkeys(("lshift", "rshift"), INTEGERS),
    **dict.fromkeys(("eq", "ne"), ALL),
    **dict.fromkeys(("lt", "le", "gt", "ge"), REAL),
}


def expected(name: str, a: Any, b: Any, dtype: fa.Dtype) -> np.ndarray[Any, Any]:
    """What NumPy says for operands of *dtype*: exactly for integers, in float64 for floats."""
    operate: Operator = getattr(operator, name)
    a, b = to_dtype(a, dtype), to_dtype(b, dtype)
    if dtype in FLOATS + COMPLEX:
        a, b = wide(a), wide(b)
    with np.errstate(all="ignore"):
        found = operate(a, b)
    if name == "floordiv" and dtype in FLOATS:  # infinite quotients: the standard rounds them too
        with np.errstate(all="ignore"):
            return np.where(b == 0, np.divide(a, b), found)
    return np.asarray(found)


def result(name: str, dtype: fa.Dtype) -> fa.Dtype:
    if name in COMPARE:
        return fa.bool
    return fa.float32 if name == "truediv" and dtype in (*BOOL, *INTEGERS) else dtype


def ulps(name: str, dtype: fa.Dtype) -> float:
    if dtype in COMPLEX and name in ("truediv", "pow", "mul"):
        return 64
    return 8 if name == "pow" else 0 if dtype in HALVES or name in COMPARE else 1


@pytest.mark.parametrize("name", [*ARITHMETIC, *BITWISE, *COMPARE])
def test_operators_beside_numpy(name: str, device: fa.Device) -> None:
    @given(st.data())
    def property_(data: st.DataObject) -> None:
        dtype = data.draw(st.sampled_from(on(device, KINDS[name])))
        low = 0 if name in ("pow", "lshift", "rshift") else -50
        high = 4 if name == "pow" else 7 if name in ("lshift", "rshift") else 10
        x = data.draw(moderate(dtype, shapes(max_dims=2), device=device, low=low, high=high))
        y = data.draw(moderate(dtype, x.shape, device=device, low=low, high=high))
        if name == "mod" or (name == "floordiv" and dtype in INTEGERS):
            y = fa.where(y == 0, fa.ones_like(y), y)  # an integer divided by zero is not specified
        a, b = to_numpy(x), to_numpy(y)
        found = getattr(operator, name)(x, y)
        atol = 1e-4 if dtype in COMPLEX and name == "pow" else 0
        wanted = expected(name, a, b, dtype)
        if name == "truediv" and dtype in INTEGERS:
            with np.errstate(all="ignore"):
                wanted = a.astype(np.float64) / b.astype(np.float64)
        if name == "pow" and dtype in COMPLEX:  # 0 to a complex power is its own special case
            keep = a != 0
            found, wanted = fa.where(fa.asarray(keep, device=device), found, 1), np.where(keep, wanted, 1)
        if name == "truediv" and dtype in COMPLEX:
            keep = b != 0
            found, wanted = fa.where(fa.asarray(keep, device=device), found, 1), np.where(keep, wanted, 1)
        check(found, wanted, result(name, dtype), ulps=ulps(name, dtype), atol=atol, device=device)
        assert np.array_equal(to_numpy(x), a, equal_nan=True)  # the operands are as they were
        assert np.array_equal(to_numpy(y), b, equal_nan=True)

    property_()


@pytest.mark.parametrize("name", ["add", "mul", "sub", "lt", "eq"])
def test_operators_promote_and_broadcast(name: str, device: fa.Device) -> None:
    @given(st.data())
    def property_(data: st.DataObject) -> None:
        allowed = on(device, REAL)
        first, second = data.draw(st.sampled_from(allowed)), data.draw(st.sampled_from(allowed))
        x, y = data.draw(moderate_pairs(first, second, device))
        try:
            common = fa.result_type(first, second)
        except TypeError:
            with pytest.raises(TypeError, match="no common type"):
                getattr(operator, name)(x, y)
            return
        wanted = expected(name, to_numpy(x), to_numpy(y), common)
        check(getattr(operator, name)(x, y), wanted, result(name, common), ulps=1, device=device)

    property_()


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("scalar", [True, 3, 2.5, 1.5 + 0.5j])
@pytest.mark.parametrize("name", ["add", "sub", "mul", "truediv"])
def test_python_scalars_on_both_sides(name: str, scalar: complex, dtype: fa.Dtype, device: fa.Device) -> None:
    common = fa.result_type(dtype, scalar)
    if not device.supports(dtype) or not device.supports(common) or common is fa.bool:
        return
    x = fa.asarray([1, 2, 4], device=device).astype(dtype)
    for left, right in ((x, scalar), (scalar, x)):
        a, b = (to_numpy(v) if isinstance(v, fa.Tensor) else v for v in (left, right))
        target = result(name, common)
        wanted = expected(name, a, b, target)
        check(getattr(operator, name)(left, right), wanted, target, ulps=8, device=device)


@pytest.mark.parametrize("name", ["floordiv", "mod", "pow", "and_", "or_", "xor", "lshift", "rshift"])
def test_integer_scalars_on_both_sides(name: str, device: fa.Device) -> None:
    for dtype in on(device, INTEGERS):
        x = fa.asarray([1, 2, 3], dtype=dtype, device=device)
        a = to_numpy(x)
        check(getattr(operator, name)(x, 2), expected(name, a, 2, dtype), dtype)
        check(getattr(operator, name)(2, x), expected(name, 2, a, dtype), dtype)


def test_comparisons_with_integers_outside_the_dtype(device: fa.Device) -> None:
    x = fa.asarray([0, 255], dtype="u8", device=device)
    assert (x < 256).tolist() == (x > -1).tolist() == (x != 300).tolist() == [True, True]
    assert (x == -1).tolist() == (x >= 2**70).tolist() == (x < -(2**70)).tolist() == [False, False]


def test_unary_operators(device: fa.Device) -> None:
    for dtype in on(device, NUMERIC):
        x = fa.asarray([0, 1, 5], device=device).astype(dtype)
        a = to_numpy(x)
        check(-x, np.negative(a), dtype)
        check(+x, a, dtype)
        check(abs(x), np.abs(a), dtype.real)
    for dtype in on(device, (*BOOL, *INTEGERS)):
        x = fa.asarray([0, 1, 5], device=device).astype(dtype)
        check(~x, ~to_numpy(x), dtype)


IN_PLACE = {
    "iadd": "add",
    "isub": "sub",
    "imul": "mul",
    "itruediv": "truediv",
    "ifloordiv": "floordiv",
    "imod": "mod",
    "ipow": "pow",
    "iand": "and_",
    "ior": "or_",
    "ixor": "xor",
    "ilshift": "lshift",
    "irshift": "rshift",
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_in_place_operators(name: str, device: fa.Device) -> None:
    plain = getattr(operator, IN_PLACE[name])
    for dtype in on(device, KINDS[IN_PLACE[name]]):
        if result(IN_PLACE[name], dtype) is not dtype:
            continue
        scalar = True if dtype is fa.bool else 2
        for other in (fa.asarray([[2], [1]], device=device).astype(dtype), scalar):
            x = fa.asarray([[1, 2], [3, 4]], device=device).astype(dtype)
            y, before = x, x.copy()
            changed = getattr(operator, name)(x, other)
            assert changed is x
            check(y, to_numpy(plain(before, other)), dtype, device=device)


def test_in_place_keeps_dtype_and_shape(device: fa.Device) -> None:
    x = fa.asarray([1, 2], device=device)
    for bad, error in ((1.5, TypeError), (fa.ones((3, 2), dtype="i64", device=device), ValueError)):
        with pytest.raises(error, match=r"\+= keeps dtype and shape, but int64\[2\]"):
            x += bad
    with pytest.raises(TypeError, match=r"/= keeps .*write x = x / y instead"):
        x /= 2
    with pytest.raises(TypeError, match="unsupported operand"):
        x += "a"  # type: ignore[arg-type]  # wrong on purpose
    assert x.tolist() == [1, 2]


@pytest.mark.parametrize("other", ["a", None, [1, 2], (1, 2), {1}, object(), b"a"])
@pytest.mark.parametrize("name", ["add", "truediv", "lt", "and_", "matmul"])
def test_operands_that_are_no_numbers(name: str, other: Any) -> None:
    x = fa.asarray([1, 2])
    for left, right in ((x, other), (other, x)):
        with pytest.raises(TypeError):
            getattr(operator, name)(left, right)
    if isinstance(other, (list, tuple)):
        for compare in (operator.eq, operator.ne):
            with pytest.raises(TypeError, match=r"equal: operand 2 must be a Tensor, got .*; make one with asarray"):
                compare(x, other)
    else:
        assert (x == other) is False
        assert (x != other) is True


class Left:
    """An object whose operators know what to do with tensors."""

    def __radd__(self, other: object) -> str:
        return "radd"

    def __rmatmul__(self, other: object) -> str:
        return "rmatmul"

    def __gt__(self, other: object) -> str:  # type: ignore[override]  # any result will do
        return "gt"


def test_other_classes_are_asked() -> None:
    x: Any = fa.ones(2)
    assert x + Left() == "radd"
    assert x @ Left() == "rmatmul"
    assert (x < Left()) == "gt"
    x += Left()
    assert x == "radd"
