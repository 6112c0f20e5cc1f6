"""Tensor: its operators beside NumPy's for every dtype, scalars, NumPy on the left, and Python's protocols."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ferrum_array as fa
from ferrum_array.testing import dtypes, shapes, tensors
from tests.array.oracle import (
    ALL,
    BOOL,
    COMPLEX,
    FLOATS,
    HALVES,
    INTEGERS,
    NP,
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


# NumPy on the left.

NUMPY_LEFT: dict[str, Callable[[fa.Tensor], Any]] = {
    "array + t": lambda t: np.ones(2, "f4") + t,
    "array - t": lambda t: np.ones(2, "f4") - t,
    "array * t": lambda t: np.ones(2, "f4") * t,
    "array / t": lambda t: np.ones(2, "f4") / t,
    "array == t": lambda t: np.ones(2, "f4") == t,
    "array < t": lambda t: np.ones(2, "f4") < t,
    "array @ t": lambda t: np.ones(2, "f4") @ t,
    "t @ array": lambda t: t @ np.ones(2, "f4"),
    "t + array": lambda t: t + np.ones(2, "f4"),
    "float32 * t": lambda t: np.float32(2) * t,
    "float64 * t": lambda t: np.float64(2) * t,
    "t ** float32": lambda t: t ** np.float32(2),
    "float64 < t": lambda t: np.float64(2) < t,
    "0-d array + t": lambda t: np.asarray(2.0) + t,
    "np.exp": np.exp,
    "np.add": lambda t: np.add(t, 1),
    "np.arctan2": lambda t: np.arctan2(t, t),
    "np.isnan": np.isnan,
    "np.add.reduce": np.add.reduce,
    "np.maximum.accumulate": np.maximum.accumulate,
    "np.multiply.outer": lambda t: np.multiply.outer(t, t),
    "np.cbrt": np.cbrt,
    "np.sum": np.sum,
    "np.mean": np.mean,
    "np.max": np.max,
    "np.std": np.std,
    "np.cumsum": np.cumsum,
    "np.reshape": lambda t: np.reshape(t, (2, 1)),
    "np.clip": lambda t: np.clip(t, 1, 1.5),
    "np.round": np.round,
    "np.abs": np.abs,
    "np.transpose": np.transpose,
    "np.squeeze": np.squeeze,
    "np.argmax": np.argmax,
    "np.all": np.all,
}


@pytest.mark.parametrize("name", NUMPY_LEFT)
def test_numpy_on_the_left_gives_a_tensor(name: str) -> None:
    call = NUMPY_LEFT[name]
    t = fa.asarray([1.5, 2.5])
    found, wanted = call(t), call(to_numpy(t))  # type: ignore[arg-type]  # NumPy's answer to itself
    assert type(found) is fa.Tensor
    check(found, wanted, fa.Dtype(np.asarray(wanted).dtype), ulps=4)


def test_ufuncs_with_several_results_give_tensors() -> None:
    t = fa.asarray([1.5, -2.5])
    for ufunc in (np.modf, np.frexp):
        for found, wanted in zip(ufunc(t), ufunc(to_numpy(t)), strict=True):
            check(found, wanted, fa.Dtype(wanted.dtype))


def test_arrays_can_be_written_by_tensors() -> None:
    t = fa.asarray([1.0, 2.0])
    array = np.ones(2)
    array += t
    assert type(array) is np.ndarray
    assert array.tolist() == [2.0, 3.0]
    array[:] = t
    assert array.tolist() == [1.0, 2.0]
    np.add.at(array, fa.asarray([1, 1]), 10)
    assert array.tolist() == [1.0, 22.0]
    with pytest.raises(TypeError, match=r"cannot write into a Tensor.*t\[\.\.\.\]"):
        np.add(array, array, out=t)
    assert t.tolist() == [1.0, 2.0]


def test_numpy_functions_take_tensors() -> None:
    t = fa.asarray([[1.0, 2.0], [3.0, 4.0]])
    assert np.concatenate([t, t]).shape == (4, 2)
    assert np.linalg.norm(t) == pytest.approx(30**0.5)
    assert np.array_equal(t, to_numpy(t))
    assert np.array([t, t]).shape == (2, 2, 2)
    assert np.where(t > 2, 1, 0).sum() == 2


# Python's protocols.


@given(tensors(shape=shapes(max_dims=3, max_side=3)))
def test_tolist_is_that_of_numpy(x: fa.Tensor) -> None:
    found, wanted = x.tolist(), wide(x).tolist()
    assert repr(found) == repr(wanted)


@pytest.mark.parametrize("dtype", ALL)
def test_item_is_a_python_number(dtype: fa.Dtype, device: fa.Device) -> None:
    if not device.supports(dtype):
        return
    x = fa.asarray([[0, 1]], device=device).astype(dtype)
    kind = {"b": bool, "i": int, "u": int, "c": complex}.get(NP[dtype].kind, float)
    assert x.item(0, 1) == 1
    assert type(x.item(0, -1)) is kind
    assert type(x[0, 0].item()) is kind
    assert type(fa.asarray([1], device=device).astype(dtype).item()) is kind
    with pytest.raises(ValueError, match="2 elements"):
        x.item()
    with pytest.raises(ValueError, match=r"index \(0,\) of .*\[1,2\].* names 2 elements"):
        x.item(0)
    with pytest.raises(IndexError):
        x.item(0, 2)


def test_sequence_protocol(device: fa.Device) -> None:
    x = fa.asarray([[1, 2], [3, 4], [5, 6]], device=device)
    assert len(x) == 3
    rows = list(x)
    assert [type(row) for row in rows] == [fa.Tensor] * 3
    assert [row.tolist() for row in rows] == x.tolist()
    assert 4 in x
    assert 7 not in x
    assert "a" not in x
    assert None not in x
    assert next(reversed(x[:, 0])).item() == 5
    first, *rest = x
    assert (first.tolist(), len(rest)) == ([1, 2], 2)
    for bad in (len, list, reversed):
        with pytest.raises(TypeError):
            bad(fa.asarray(1, device=device))


def test_truth(device: fa.Device) -> None:
    for one, truth in ((0, False), (3, True), (0.0, False), (-0.0, False), (float("nan"), True)):
        assert bool(fa.asarray(one, device=device)) is truth
        assert bool(fa.asarray([[one]], device=device)) is truth
    for several in (fa.ones(2, device=device), fa.ones(0, device=device)):
        with pytest.raises(ValueError, match=r"use any\(\) or all\(\)"):
            bool(several)


def test_conversion_to_numbers(device: fa.Device) -> None:
    x = fa.asarray(3.75, device=device)
    assert (int(x), float(x), complex(x)) == (3, 3.75, 3.75 + 0j)
    assert (int(fa.asarray(True, device=device)), float(fa.asarray(7, device=device))) == (1, 7.0)
    assert int(fa.asarray(2**64 - 1, dtype="u64")) == 2**64 - 1
    assert operator.index(fa.asarray(5, dtype="u8", device=device)) == 5
    assert [10, 20, 30][fa.asarray(1, device=device)] == 20
    for value, convert in ((1j, float), (1j, int), (1.5, operator.index), (True, operator.index)):
        with pytest.raises(TypeError, match=f"{convert.__name__}\\(\\)"):
            convert(fa.asarray(value, device=device))
    for convert in (int, float, complex):
        with pytest.raises(TypeError, match="2 elements"):
            convert(fa.ones(2, device=device))
    with pytest.raises(ValueError, match="NaN"):
        int(fa.asarray(float("nan"), device=device))


def test_format_and_hash(device: fa.Device) -> None:
    assert f"{fa.asarray(3.14159, device=device):.2f}" == "3.14"
    assert f"{fa.asarray(255, device=device):#x}" == "0xff"
    assert f"{fa.asarray([1, 2], device=device)}" == "[1 2]"
    with pytest.raises(TypeError, match="0-d"):
        format(fa.ones(2, device=device), ".2f")
    with pytest.raises(TypeError, match="unhashable"):
        hash(fa.ones(2, device=device))


def test_attributes(device: fa.Device) -> None:
    x = fa.ones((2, 3), dtype="f16", device=device)
    assert (x.shape, x.ndim, x.size, x.nbytes, x.itemsize) == ((2, 3), 2, 6, 12, 2)
    assert (x.dtype, x.device) == (fa.float16, device)
    assert (x.T.shape, x.mT.shape) == ((3, 2), (3, 2))
    assert fa.ones((2, 3, 4), device=device).T.shape == (4, 3, 2)
    assert fa.ones((2, 3, 4), device=device).mT.shape == (2, 4, 3)
    with pytest.raises(ValueError, match="at least two axes"):
        _ = fa.ones(3, device=device).mT
    for name in ("shape", "dtype", "device", "ndim", "size", "T", "new"):
        with pytest.raises(AttributeError):
            setattr(x, name, 1)
    for name in ("dtype", "new"):
        with pytest.raises(AttributeError):
            delattr(x, name)
    with pytest.raises(AttributeError, match="'Tensor' object has no attribute 'foo'"):
        _ = x.foo
    with pytest.raises(TypeError, match="asarray"):
        fa.Tensor([1])
    assert not hasattr(x, "__dict__")


def test_the_class_is_final() -> None:
    import weakref

    x = fa.ones(2)
    assert weakref.ref(x)() is x
    assert isinstance(x, fa.Tensor)


METHODS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "sum": (lambda x: x.sum(axis=0), lambda a: a.sum(axis=0)),
    "prod": (lambda x: x.prod(1, keepdims=True), lambda a: a.prod(1, keepdims=True)),
    "mean": (lambda x: x.mean(), lambda a: a.mean()),
    "var": (lambda x: x.var(axis=1, ddof=1), lambda a: a.var(axis=1, ddof=1)),
    "std": (lambda x: x.std(correction=1), lambda a: a.std(ddof=1)),
    "max": (lambda x: x.max(axis=(0, 1)), lambda a: a.max(axis=(0, 1))),
    "min": (lambda x: x.min(-1), lambda a: a.min(-1)),
    "all": (lambda x: x.all(axis=0), lambda a: a.all(axis=0)),
    "any": (lambda x: x.any(), lambda a: a.any()),
    "argmax": (lambda x: x.argmax(), lambda a: a.argmax()),
    "argmin": (lambda x: x.argmin(axis=1), lambda a: a.argmin(axis=1)),
    "cumsum": (lambda x: x.cumsum(), lambda a: a.cumsum()),
    "cumsum axis": (lambda x: x.cumsum(1), lambda a: a.cumsum(1)),
    "reshape": (lambda x: x.reshape(3, -1), lambda a: a.reshape(3, -1)),
    "reshape tuple": (lambda x: x.reshape((6,)), lambda a: a.reshape((6,))),
    "flatten": (lambda x: x.T.flatten(), lambda a: a.T.flatten()),
    "transpose": (lambda x: x.transpose(1, 0), lambda a: a.transpose(1, 0)),
    "permute_dims": (lambda x: x.permute_dims((1, 0)), lambda a: a.transpose(1, 0)),
    "squeeze": (lambda x: x[None].squeeze(), lambda a: a),
    "squeeze axis": (lambda x: x[None].squeeze(0), lambda a: a),
    "clip": (lambda x: x.clip(2, 4), lambda a: a.clip(2, 4)),
    "round": (lambda x: x.round(), lambda a: a.round()),
    "conj": (lambda x: x.conj(), lambda a: a.conj()),
    "copy": (lambda x: x.copy(), lambda a: a.copy()),
    "real": (lambda x: x.real, lambda a: a.real),
    "imag": (lambda x: x.imag, lambda a: a.imag),
}


@pytest.mark.parametrize("name", METHODS)
def test_methods_beside_numpy(name: str, device: fa.Device) -> None:
    ours, numpys = METHODS[name]
    x = fa.asarray([[1.0, 5.5, 2.0], [4.0, 3.25, 6.0]], device=device)
    wanted = np.asarray(numpys(to_numpy(x)))
    check(ours(x), wanted, fa.Dtype(wanted.dtype), ulps=4, device=device)


def test_methods_refuse_out(device: fa.Device) -> None:
    x = fa.ones(2, device=device)
    for name in ("sum", "mean", "max", "argmax", "cumsum", "std"):
        with pytest.raises(TypeError, match=r"no out="):
            getattr(x, name)(out=x)


def test_methods_refuse_what_they_do_not_do(device: fa.Device) -> None:
    x = fa.ones((2, 2), device=device)
    with pytest.raises(ValueError, match="order 'C' alone"):
        x.reshape(4, order="F")
    with pytest.raises(ValueError, match="decimals=1"):
        x.round(1)
    with pytest.raises(ValueError, match="decimals=1"):
        round(x, 1)


def test_fill(device: fa.Device) -> None:
    x = fa.ones((2, 2), device=device)
    x.fill(3)
    assert x.tolist() == [[3.0, 3.0], [3.0, 3.0]]


@given(dtypes(), dtypes())
def test_astype(start: fa.Dtype, end: fa.Dtype) -> None:
    x = fa.asarray([[0, 1], [2, 100]]).astype(start)
    if start in COMPLEX and end not in COMPLEX:
        with pytest.raises(TypeError, match=r"would drop the imaginary parts.*real\(\)"):
            x.astype(end)
        return
    found = x.astype(end)
    check(found, to_numpy(x), end)
    assert found is not x
    assert (x.astype(end, copy=False) is x) == (start is end)


def test_api_versions() -> None:
    x = fa.ones(1)
    for version in (None, "2021.12", "2022.12", "2023.12", "2024.12", "2025.12"):
        assert x.__array_namespace__(api_version=version) is fa
    for bad in ("2020.01", "", "2025"):
        with pytest.raises(ValueError, match=r"2025\.12"):
            x.__array_namespace__(api_version=bad)
