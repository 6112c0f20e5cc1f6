"""Indexing and assignment: NumPy's answers to drawn keys, and errors for keys that are none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ferrum_array as fa
from ferrum_array.testing import indices, shapes, tensors
from tests.array.oracle import ALL, check, on, to_numpy


def for_numpy(key: Any) -> Any:
    """*key* with NumPy arrays in place of tensors."""
    if isinstance(key, tuple):
        return tuple(for_numpy(part) for part in key)
    return to_numpy(key) if isinstance(key, fa.Tensor) else key


def counting(shape: tuple[int, ...], device: fa.Device, dtype: str = "i64") -> fa.Tensor:
    """A tensor in which every element differs."""
    count = int(np.prod(shape, dtype=np.int64))
    return fa.reshape(fa.arange(count, device=device), shape).astype(dtype)


def test_reading_beside_numpy(device: fa.Device) -> None:
    @given(st.data())
    def property_(data: st.DataObject) -> None:
        x = data.draw(tensors("i32", shapes(max_dims=4, max_side=4), device=device))
        key = data.draw(indices(x.shape, device=device))
        before = to_numpy(x)
        check(x[key], before[for_numpy(key)], fa.int32, device=device)
        assert np.array_equal(to_numpy(x), before)

    property_()


def test_writing_beside_numpy(device: fa.Device) -> None:
    @given(st.data())
    def property_(data: st.DataObject) -> None:
        x = data.draw(tensors("i32", shapes(max_dims=3, max_side=4), device=device))
        key = data.draw(indices(x.shape, device=device))
        model = to_numpy(x)
        part = model[for_numpy(key)].shape
        kept = data.draw(st.integers(0, len(part)))
        ones = [data.draw(st.booleans()) for _ in part[kept:]]
        shape = tuple(1 if one else n for one, n in zip(ones, part[kept:], strict=True))
        value = data.draw(
            st.one_of(
                tensors(data.draw(st.sampled_from(["i32", "i8", "u16"])), shape, device=device),
                st.integers(-100, 100),
            )
        )
        other = x[...]  # shares memory, and must keep its elements
        unchanged = model.copy()
        # integer arrays may name an element twice: the last one wins in both
        model[for_numpy(key)] = to_numpy(value) if isinstance(value, fa.Tensor) else value
        x[key] = value
        check(x, model, fa.int32, device=device)
        check(other, unchanged, fa.int32, device=device)

    property_()


def test_every_dtype_is_moved_unchanged(device: fa.Device) -> None:
    @given(st.data())
    def property_(data: st.DataObject) -> None:
        dtype = data.draw(st.sampled_from(on(device, ALL)))
        x = data.draw(tensors(dtype, shapes(min_dims=1, max_dims=2, min_side=1), device=device))
        key = data.draw(indices(x.shape, device=device))
        check(x[key], to_numpy(x)[for_numpy(key)], dtype, device=device)
        y, model = x.copy(), to_numpy(x)
        y[key] = x[key]
        check(y, model, dtype, device=device)

    property_()


@given(st.data())
def test_parts_as_numpy_arrays_and_lists(data: st.DataObject) -> None:
    x = data.draw(tensors("i32", shapes(max_dims=3, max_side=4)))
    key = for_numpy(data.draw(indices(x.shape)))
    check(x[key], to_numpy(x)[key], fa.int32)
    parts = key if isinstance(key, tuple) else (key,)
    lists = tuple(p.tolist() if isinstance(p, np.ndarray) and p.ndim else p for p in parts)
    check(x[lists], to_numpy(x)[lists], fa.int32)


# Shapes of NumPy's advanced indexing, once more by hand.
KEYS: list[tuple[Any, tuple[int, ...]]] = [
    ((0, slice(None), [0, 1]), (2, 3)),
    ((slice(None), [0, 1], [0, 1]), (2, 2)),
    (([0, 1], slice(None), [0, 1]), (2, 3)),
    ((..., [[0, 1], [1, 0]]), (2, 3, 2, 2)),
    (([[0], [1]], [0, 1]), (2, 2, 4)),
    ((None, [0, 1, 1]), (1, 3, 3, 4)),
    (([], slice(None), 0), (0, 3)),
    ([True, False], (1, 3, 4)),
    ((slice(None), [True, False, True]), (2, 2, 4)),
    (([True, False], slice(None), [0, 1]), (2, 3)),
    (True, (1, 2, 3, 4)),
    (False, (0, 2, 3, 4)),
    ((None, True, ..., None), (1, 1, 2, 3, 4, 1)),
    ((), (2, 3, 4)),
    (..., (2, 3, 4)),
    ((slice(5, 1), slice(None, None, -2)), (0, 2, 4)),
    ((slice(-(2**70), 2**70),), (2, 3, 4)),
]


@pytest.mark.parametrize(("key", "shape"), KEYS)
def test_shapes_of_results(key: Any, shape: tuple[int, ...], device: fa.Device) -> None:
    x = counting((2, 3, 4), device)
    assert x[key].shape == shape
    check(x[key], to_numpy(x)[key], fa.int64, device=device)


@pytest.mark.parametrize("dtype", ["i8", "i16", "i32", "i64", "u8", "u16", "u32", "u64"])
def test_every_integer_dtype_indexes(dtype: str, device: fa.Device) -> None:
    x = counting((4,), device)
    assert x[fa.asarray([3, 0], dtype=dtype, device=device)].tolist() == [3, 0]
    assert x[fa.asarray(2, dtype=dtype, device=device)].item() == 2
    assert fa.take(x, fa.asarray([1], dtype=dtype, device=device)).tolist() == [1]


@pytest.mark.parametrize("number", [1, np.int8(1), np.int64(1), np.uint64(1), True, np.True_])
def test_integers_of_other_kinds(number: Any) -> None:
    x = counting((3, 2), fa.Device("cpu"))
    check(x[number], to_numpy(x)[number], fa.int64)
    check(x[number, ...], to_numpy(x)[number, ...], fa.int64)


BAD_KEYS: list[tuple[Any, str]] = [
    (2, "2"),
    (-3, "-3"),
    (2**70, ""),
    ((0, 3), "3"),
    ((0, 0, 0, 0), "3"),
    ((..., ...), "ellipsis"),
    ((0, ..., 5), "5"),
    ([0, 2], "2"),
    ([-3], "-3"),
    ((slice(None), [0, 3]), "3"),
    (([0, 1], [0, 1, 2]), ""),
    ([True, False, True], ""),
    ([[True]], ""),
    (1.0, "float"),
    ("a", "str"),
    (b"a", "bytes"),
    (1j, "complex"),
    ([0.5], "float"),
    (object(), "object"),
    ({1}, "set"),
    ((0, "a"), "str"),
    ((0, 1.5), "float"),
]


@pytest.mark.parametrize(("key", "words"), BAD_KEYS)
def test_bad_keys(key: Any, words: str, device: fa.Device) -> None:
    x = counting((2, 3, 4), device)
    before = x.tolist()
    with pytest.raises(IndexError) as read:
        x[key]
    with pytest.raises(IndexError) as written:
        x[key] = 0
    for caught in (read, written):
        assert words in str(caught.value)
        assert len(str(caught.value)) > 15
    assert x.tolist() == before


def test_bad_tensors_as_keys(device: fa.Device) -> None:
    x = counting((2, 3), device)
    for key in (
        fa.asarray([5], device=device),
        fa.asarray([-3], device=device),
        fa.asarray([2**63], dtype="u64", device=device),
        fa.asarray([2**64 - 1], dtype="u64", device=device),
        fa.asarray([0.0], device=device),
        fa.asarray([True], device=device),
        fa.ones((2, 2), dtype="bool", device=device),
        fa.ones((2, 3, 1), dtype="bool", device=device),
    ):
        with pytest.raises(IndexError):
            x[key]
        with pytest.raises(IndexError):
            x[key] = 0
    assert x.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_slices_of_other_things(device: fa.Device) -> None:
    x = counting((4,), device)
    with pytest.raises(ValueError, match="zero"):
        x[::0]
    with pytest.raises(TypeError):
        x[1.0:2]
    with pytest.raises(TypeError):
        x["a":]  # type: ignore[misc]  # wrong on purpose
    assert x[fa.asarray(1) : np.int64(3)].tolist() == [1, 2]


def test_zero_dimensions(device: fa.Device) -> None:
    x = fa.asarray(5, device=device)
    assert x[()].shape == x[...].shape == ()
    assert x[None].tolist() == x[True].tolist() == [5]
    assert x[False].tolist() == []
    for key in (0, slice(None), [0], (0, ...), [True]):
        with pytest.raises(IndexError):
            x[key]
    x[()] = 6
    x[...] = x + 1
    assert x.item() == 7


# What can be written.

WRONG_VALUES: list[tuple[str, Any, type[Exception], list[str]]] = [
    ("i64", 1.5, TypeError, ["int64[2]", "real floating"]),
    ("i64", 1j, TypeError, ["int64[2]", "complex"]),
    ("f32", 1j, TypeError, ["float32[2]", "complex"]),
    ("bool", 2, TypeError, ["bool[2]", "integer"]),
    ("i8", 300, OverflowError, ["300", "int8", "-128 to 127"]),
    ("u8", -1, OverflowError, ["-1", "uint8", "0 to 255"]),
    ("f32", 10**400, OverflowError, ["float32"]),
    ("f32", "a", TypeError, ["str"]),
    ("f32", None, TypeError, ["NoneType"]),
    ("f32", object(), TypeError, ["object"]),
    ("f32", [1.0, 2.0, 3.0], ValueError, ["(3,)", "(2,)"]),
    ("f32", [[1.0], [2.0]], ValueError, ["(2, 1)", "(2,)"]),
    ("f32", [[1.0], [2.0, 3.0]], ValueError, ["ragged"]),
    ("i64", [1.5, 2.5], TypeError, ["int64[2]"]),
    ("i64", np.ones(2), TypeError, ["int64[2]"]),
    ("i64", fa.ones(2), TypeError, ["int64[2]"]),
    ("f32", fa.ones(2, dtype="c64"), TypeError, ["float32[2]"]),
]


@pytest.mark.parametrize(("dtype", "value", "error", "words"), WRONG_VALUES)
def test_wrong_values(dtype: str, value: Any, error: type[Exception], words: list[str], device: fa.Device) -> None:
    if isinstance(value, fa.Tensor):
        value = value.to_device(device)
    x = fa.asarray([0, 1], device=device).astype(dtype)
    for key in (slice(None), ..., [0, 1], [True, True]):
        with pytest.raises(error) as caught:
            x[key] = value
        message = str(caught.value)
        assert "setitem" in message or "asarray" in message
        assert [word for word in words if word not in message] == []
    assert x.tolist() == fa.asarray([0, 1]).astype(dtype).tolist()


def test_values_of_other_dtypes_are_converted(device: fa.Device) -> None:
    x = fa.zeros(4, dtype="f16", device=device)
    x[0] = 1
    x[1] = True
    x[2:] = fa.asarray([2, 1e9], device=device)  # rounding, also to infinity, is no error
    assert x.tolist() == [1.0, 1.0, 2.0, float("inf")]
    y = fa.zeros(3, dtype="c64", device=device)
    y[:2] = [1, 2.5]
    y[2] = np.float64(3)
    assert y.tolist() == [1, 2.5, 3]


def test_overlapping_reads_and_writes(device: fa.Device) -> None:
    for key, source in (
        (slice(1, None), slice(None, -1)),
        (slice(None, -1), slice(1, None)),
        (slice(None, None, -1), slice(None)),
        ([3, 2, 1, 0], slice(None)),
    ):
        x = fa.arange(4, device=device)
        model = np.arange(4)
        model[key] = model[source].copy()
        x[key] = x[source]
        assert x.tolist() == model.tolist()


def test_leading_ones_of_a_value_are_dropped(device: fa.Device) -> None:
    x = fa.zeros(3, device=device)
    x[:] = fa.ones((1, 1, 3), device=device)
    assert x.tolist() == [1.0, 1.0, 1.0]


def test_masks_of_the_whole(device: fa.Device) -> None:
    x = fa.asarray([[1.0, -2.0], [-3.0, 4.0]], device=device)
    assert x[x > 0].tolist() == [1.0, 4.0]
    x[x < 0] = 0
    assert x.tolist() == [[1.0, 0.0], [0.0, 4.0]]
    x[x > 0] = fa.asarray([7.0, 8.0], device=device)
    assert x.tolist() == [[7.0, 0.0], [0.0, 8.0]]
    x[x > 100] = 5
    assert x.tolist() == [[7.0, 0.0], [0.0, 8.0]]
