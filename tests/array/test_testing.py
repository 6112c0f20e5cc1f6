"""The public helpers: every rule of the comparisons can fail, and strategies give what they say."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st

import ferrum_array as fa
from ferrum_array.testing import (
    TOLERANCES,
    assert_close,
    assert_equal,
    broadcastable_pairs,
    broadcastable_shapes,
    devices,
    dtypes,
    elements,
    indices,
    shapes,
    tensors,
    tolerance,
)
from tests.array.oracle import ALL, FLOATS, NP, check, to_numpy

nan, inf = float("nan"), float("inf")
BOTH = pytest.mark.parametrize("helper", [assert_close, assert_equal])


# Each row breaks one rule; the words must be in the message.
FAILURES: list[tuple[Any, Any, dict[str, Any], list[str]]] = [
    (fa.ones(2), [1.0, 2.0], {}, ["1 of 2", "(1,)", "actual 1.0", "expected 2.0"]),
    (fa.ones((2, 3)), [[1, 1, 1], [1, 1, 9]], {}, ["1 of 6", "(1, 2)", "expected 9", "16.7%"]),
    (fa.ones(2), fa.ones((2, 1)), {}, ["shapes differ", "(2,)", "(2, 1)"]),
    (fa.ones(2), 1.0, {}, ["shapes differ", "(2,)", "()"]),
    (fa.ones(2), fa.ones(2, dtype="f64"), {}, ["dtypes differ", "float32", "float64"]),
    (fa.ones(2), np.ones(2), {}, ["dtypes differ", "float32", "float64", "check_dtype=False"]),
    (np.ones(2), np.ones(2), {}, ["must be a Tensor", "ndarray"]),
    (1.0, 1.0, {}, ["must be a Tensor", "float"]),
    (fa.asarray([nan, 1.0]), [1.0, 1.0], {}, ["only one is NaN", "(0,)"]),
    (fa.asarray([1.0]), [nan], {}, ["only one is NaN"]),
    (fa.asarray([nan]), [nan], {"equal_nan": False}, ["both NaN"]),
    (fa.asarray([inf]), [-inf], {}, ["an infinity equals only itself"]),
    (fa.asarray([inf]), [1e30], {}, ["an infinity equals only itself"]),
    (fa.asarray([1.0]), [inf], {}, ["an infinity equals only itself"]),
    (fa.asarray([0.0]), [-0.0], {"signed_zero": True}, ["zeros of different sign"]),
    (fa.asarray([-0.0]), fa.asarray([0.0]), {"signed_zero": True}, ["zeros of different sign"]),
    (fa.asarray([1 + 1j]), [1 + 2j], {}, ["1 of 1", "(1+1j)", "(1+2j)"]),
    (fa.asarray([complex(1, nan)]), [1 + 0j], {}, ["only one is NaN"]),
    (fa.asarray([complex(nan, 1)]), [complex(1, nan)], {}, ["only one is NaN"]),
    (fa.asarray([complex(0, -0.0)]), [0j], {"signed_zero": True}, ["zeros of different sign"]),
    (fa.asarray([1, 2]), [1, 3], {}, ["actual 2", "expected 3"]),
    (fa.asarray([2**62 + 1]), [2**62], {}, ["|difference| 1 "]),
    (fa.asarray([2**63], dtype="u64"), [2**63 + 1], {}, ["|difference| 1 "]),
    (fa.asarray([2**53 + 1]), [float(2**53)], {}, ["|difference| 1 "]),
    (fa.asarray([True]), [False], {}, ["actual True", "expected False"]),
    (fa.asarray([1, 3]), [1.5, 3.0], {}, ["actual 1", "expected 1.5"]),
    (fa.asarray([1.5, 3.0]), [1, 3], {}, ["actual 1.5", "expected 1"]),
    (fa.asarray([1.0, 100.0]), [1.1, 105.0], {}, ["2 of 2"]),
]


@BOTH
@pytest.mark.parametrize(("actual", "expected", "options", "words"), FAILURES)
def test_each_rule_can_fail(helper: Any, actual: Any, expected: Any, options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(AssertionError) as caught:
        helper(actual, expected, **options)
    message = str(caught.value)
    assert message.startswith(f"{helper.__name__}: ")
    assert [word for word in words if word not in message] == []


@BOTH
def test_devices_are_compared_on_demand(helper: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    other = fa.Device("cuda:7")
    backend = fa.Device("cpu").backend
    object.__setattr__(other, "_backend", backend)
    try:
        there = fa.ones(2).to_device(other)
        helper(there, fa.ones(2))
        helper(there, there, check_device=True)
        with pytest.raises(AssertionError, match=r"devices differ: actual cuda:7, expected cpu"):
            helper(there, fa.ones(2), check_device=True)
    finally:
        object.__setattr__(other, "_backend", None)


PASSES: list[tuple[Any, Any, dict[str, Any]]] = [
    (fa.ones(2), [1.0, 1.0], {}),
    (fa.ones(2), (1, 1), {}),
    (fa.asarray(2.5), 2.5, {}),
    (fa.asarray(3), 3, {}),
    (fa.ones(2), fa.ones(2), {}),
    (fa.ones(2), np.ones(2, "f4"), {}),
    (fa.ones(2), np.ones(2), {"check_dtype": False}),
    (fa.ones(2), fa.ones(2, dtype="i8"), {"check_dtype": False}),
    (fa.asarray([nan, inf, -inf]), [nan, inf, -inf], {}),
    (fa.asarray([0.0]), [-0.0], {}),
    (fa.asarray([-0.0]), [-0.0], {"signed_zero": True}),
    (fa.asarray([complex(nan, inf)]), [complex(nan, inf)], {}),
    (fa.asarray([2**64 - 1], dtype="u64"), [2**64 - 1], {}),
    (fa.zeros((0, 3)), fa.zeros((0, 3)), {}),
    (fa.zeros((2, 0)), [[], []], {}),
    (fa.asarray([True, False]), [True, False], {}),
]


@BOTH
@pytest.mark.parametrize(("actual", "expected", "options"), PASSES)
def test_what_agrees_passes(helper: Any, actual: Any, expected: Any, options: dict[str, Any]) -> None:
    helper(actual, expected, **options)


def test_equality_rounds_bare_numbers_and_nothing_else() -> None:
    assert_equal(fa.asarray([0.1]), [0.1])
    assert_equal(fa.asarray([0.1], dtype="bf16"), [0.1])
    assert_equal(fa.asarray([0.1j], dtype="c64"), [0.1j])
    with pytest.raises(AssertionError):
        assert_equal(fa.asarray([0.1]), np.asarray([0.1]), check_dtype=False)


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_stated_tolerance_is_the_boundary(dtype: fa.Dtype) -> None:
    rtol, atol = TOLERANCES[dtype]
    one = fa.ones(1, dtype=dtype)
    assert_close(one, [1 + 0.9 * rtol])
    assert_close(fa.zeros(1, dtype=dtype), [0.9 * atol])
    with pytest.raises(AssertionError):
        assert_close(one, [1 + 1.1 * rtol + 2 * atol])
    with pytest.raises(AssertionError):
        assert_close(fa.zeros(1, dtype=dtype), [1.1 * atol])


def test_given_tolerances_replace_the_stated_ones() -> None:
    assert_close(fa.asarray([10]), [11], atol=1)
    assert_close(fa.asarray([10.0]), [11.0], rtol=0.1, atol=0)
    for bounds in ({"rtol": 0.09, "atol": 0}, {"rtol": 0, "atol": 0.9}, {"rtol": 0.0}):
        with pytest.raises(AssertionError):
            assert_close(fa.asarray([10.0]), [11.0], **bounds)
    for bad in ({"rtol": -1.0}, {"atol": nan}):
        with pytest.raises(ValueError, match="non-negative"):
            assert_close(fa.ones(1), [1.0], **bad)


def test_complex_parts_share_the_modulus() -> None:
    assert_close(fa.asarray([1e6 + 1j]), [1e6 + 2j])  # 1 is little beside 1e6
    with pytest.raises(AssertionError):
        assert_close(fa.asarray([1e2 + 1j]), [1e2 + 2j])


def test_the_least_exact_dtype_decides() -> None:
    assert tolerance(fa.float64, fa.bfloat16, fa.int8) == TOLERANCES[fa.bfloat16]
    assert tolerance() == tolerance(fa.int64, fa.bool) == (0, 0)
    third = fa.asarray([1 / 3], dtype="bf16")
    assert_close(third, np.asarray([1 / 3]), check_dtype=False)


def test_expected_must_hold_numbers() -> None:
    for bad in ("x", None, [1, "x"], {1: 2}):
        with pytest.raises(TypeError, match="expected must be"):
            assert_close(fa.ones(1), bad)


def test_the_worst_element_is_named() -> None:
    with pytest.raises(AssertionError, match=r"3 of 4 .*\n.*worst at index \(1, 0\): .*5\.0") as e:
        assert_close(fa.asarray([[1.0, 2.0], [5.0, 4.0]]), [[1.0, 2.1], [1.0, 4.1]])
    assert "actual   float32[2,2]:" in str(e.value)
    assert "expected numbers[2,2]:" in str(e.value)


@given(st.data())
def test_an_element_of_another_value_is_always_found(data: st.DataObject) -> None:
    dtype = data.draw(dtypes(("integral", "real floating")))
    x = data.draw(tensors(dtype, shapes(min_side=1, max_dims=3)))
    place = tuple(data.draw(st.integers(0, n - 1)) for n in x.shape)
    other = data.draw(elements(dtype))
    changed = x.copy()
    changed[place] = other
    values, found = to_numpy(x), to_numpy(changed)
    assert_equal(changed, changed.copy())
    if np.array_equal(values, found, equal_nan=dtype.is_floating):
        assert_equal(x, changed)
    else:
        with pytest.raises(AssertionError):
            assert_equal(x, changed)


# The comparison of these tests themselves.


def test_the_oracle_can_fail() -> None:
    x = fa.asarray([1.0, 2.0])
    check(x, [1, 2], fa.float32, device=fa.Device("cpu"))
    check(x, [1 + 1e-7, 2], fa.float32, ulps=1)
    for bad in (
        lambda: check(x, [1, 2], fa.float64),
        lambda: check(x, [[1, 2]], fa.float32),
        lambda: check(x, [1, 3], fa.float32),
        lambda: check(x, [1, 2.1], fa.float32, ulps=4),
        lambda: check(x, [1, 2], fa.float32, device=fa.Device("cuda:7")),
        lambda: check(np.ones(2, "f4"), [1, 1], fa.float32),
        lambda: check(x, [1, nan], fa.float32, ulps=4),
        lambda: check(x, [1, nan], fa.float32),
    ):
        with pytest.raises(AssertionError):
            bad()


# Strategies.


def test_strategies_need_hypothesis_and_say_so() -> None:
    script = (
        "import sys; sys.modules['hypothesis'] = None\n"
        "import ferrum_array as fa\n"
        "fa.testing.assert_close(fa.ones(2), [1, 1])\n"
        "try: fa.testing.tensors()\n"
        "except ImportError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "pip install hypothesis" in done.stdout


def test_importing_testing_does_not_import_hypothesis() -> None:
    script = "import sys, ferrum_array.testing; assert 'hypothesis' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)


@given(st.data())
def test_dtypes_are_of_the_kind(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["bool", "integral", "real floating", ("bool", fa.complex64)]))
    assert fa.isdtype(data.draw(dtypes(kind)), kind)


def test_dtypes_reach_all_and_refuse_nonsense() -> None:
    for dtype in ALL:
        assert find(dtypes(), lambda d, dtype=dtype: d is dtype) is dtype
    with pytest.raises(ValueError, match="unknown kind"):
        dtypes("real")


def test_devices_are_those_of_the_machine() -> None:
    assert find(devices(), lambda d: True) is fa.Device("cpu")


@given(shapes(min_dims=1, max_dims=3, min_side=2, max_side=4))
def test_shapes_keep_their_bounds(shape: tuple[int, ...]) -> None:
    assert 1 <= len(shape) <= 3
    assert all(2 <= n <= 4 for n in shape)


@given(broadcastable_shapes(3))
def test_broadcastable_shapes_broadcast(found: tuple[tuple[int, ...], ...]) -> None:
    assert len(found) == 3
    np.broadcast_shapes(*found)


@given(broadcastable_pairs())
def test_pairs_broadcast_and_share_a_dtype(pair: tuple[fa.Tensor, fa.Tensor]) -> None:
    a, b = pair
    assert a.dtype is b.dtype
    np.broadcast_shapes(a.shape, b.shape)


@pytest.mark.parametrize("dtype", ALL)
def test_elements_are_exact(dtype: fa.Dtype) -> None:
    @given(elements(dtype))
    def exact(value: Any) -> None:
        kept = np.asarray(value).astype(NP[dtype]).item()
        assert kept == value or kept != kept

    exact()


@pytest.mark.parametrize("dtype", [d for d in ALL if d.is_integer or d.is_floating])
def test_elements_keep_their_bounds(dtype: fa.Dtype) -> None:
    @given(elements(dtype, min_value=1, max_value=3))
    def bounded(value: Any) -> None:
        assert 1 <= value <= 3

    bounded()
    assert find(elements(dtype, min_value=1, max_value=3), lambda v: v > 1) > 1


def test_elements_refuse_bounds_outside_the_dtype() -> None:
    for dtype, bound in (("i8", 200), ("u8", -1), ("bf16", 1.001), ("f16", 1e6), ("f16", 0.1)):
        with pytest.raises(ValueError, match="bound"):
            elements(dtype, **{"max_value" if bound > 0 else "min_value": bound})
    with pytest.raises(ValueError, match="complex"):
        elements("c64", min_value=0)
    assert find(elements("bf16", max_value=2.0**-133), lambda v: v > 0) == 2.0**-133


@pytest.mark.parametrize("special", [nan, inf, -inf, -0.0])
@pytest.mark.parametrize("dtype", FLOATS)
def test_elements_reach_special_values(dtype: fa.Dtype, special: float) -> None:
    found = find(elements(dtype), lambda v: repr(v) == repr(special))
    assert repr(found) == repr(special)


@given(st.data())
def test_elements_leave_special_values_out(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(FLOATS))
    value = data.draw(elements(dtype, allow_nan=False, allow_infinity=False))
    assert value == value
    assert abs(value) < inf


@given(tensors("i32", (2, 3), elements=st.integers(5, 6)))
def test_tensors_are_as_given(x: fa.Tensor) -> None:
    assert (x.dtype, x.shape, x.device) == (fa.int32, (2, 3), fa.get_default_device())
    assert set(to_numpy(x).flat) <= {5, 6}


def test_tensors_vary_in_layout_and_size() -> None:
    flat = tensors("f32", (3, 4))
    for test in (
        lambda x: x.numpy().flags.c_contiguous,
        lambda x: x.numpy().flags.f_contiguous,
        lambda x: min(x.numpy().strides) < 0,
        lambda x: x.numpy().strides[-1] == 8,
    ):
        assert test(find(flat, test))
    find(tensors("f32", (100,)), lambda x: len(set(x.tolist())) > 5)
    find(tensors(), lambda x: x.ndim == 0)
    find(tensors(shape=shapes(max_dims=2)), lambda x: 0 in x.shape)


@given(st.data())
def test_keys_are_valid(data: st.DataObject) -> None:
    x = data.draw(tensors("i64", shapes(max_dims=3)))
    x[data.draw(indices(x.shape))]


def test_keys_reach_every_kind_of_part() -> None:
    seen: set[Any] = set()

    @settings(max_examples=400, phases=[Phase.generate])
    @given(indices((3, 4, 2)))
    def collect(key: Any) -> None:
        parts = key if isinstance(key, tuple) else (key,)
        found = [p for p in parts if isinstance(p, fa.Tensor)]
        seen.update(type(p) for p in parts)
        seen.update((p.dtype, p.ndim, len(found)) for p in found)

    collect()
    assert {slice, int, type(None), type(...), fa.Tensor} <= seen
    assert {(fa.bool, 1, 1), (fa.bool, 2, 1), (fa.int64, 0, 1), (fa.int64, 2, 2)} <= seen


@given(indices((3, 2), arrays=False, masks=False, newaxis=False))
def test_kinds_of_parts_can_be_left_out(key: Any) -> None:
    parts = key if isinstance(key, tuple) else (key,)
    assert all(isinstance(part, (int, slice, type(...))) for part in parts)
