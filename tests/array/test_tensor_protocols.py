"""Tensor: NumPy on the left of its operators, Python's protocols, and its methods beside NumPy's."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given

import ferrum_array as fa
from ferrum_array.testing import dtypes, shapes, tensors
from tests.array.oracle import ALL, COMPLEX, NP, check, to_numpy, wide

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
