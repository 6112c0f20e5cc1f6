"""Manipulation and creation functions beside NumPy: exact, in every dtype."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ferrum_array as fa
from ferrum_array.testing import broadcastable_shapes, shapes, tensors
from tests.array.oracle import (
    ALL,
    COMPLEX,
    FLOATS,
    INTEGERS,
    NP,
    check,
    moderate,
    on,
    to_dtype,
    to_numpy,
)


def factorings(size: int) -> st.SearchStrategy[tuple[int, ...]]:
    """Shapes of *size* elements."""
    divisors = [n for n in range(1, size + 1) if size % n == 0] if size else [0, 1, 3]

    @st.composite
    def shape(draw: Any) -> tuple[int, ...]:
        if not size:
            return tuple(draw(st.permutations([0, *draw(st.lists(st.sampled_from(divisors), max_size=2))])))
        first = draw(st.sampled_from(divisors))
        rest = size // first
        second = draw(st.sampled_from([n for n in divisors if rest % n == 0]))
        return tuple(draw(st.permutations([first, second, rest // second])))

    return shape()


Draw = Callable[..., Any]


def axis_of(draw: Draw, x: fa.Tensor) -> int:
    return int(draw(st.integers(-x.ndim, x.ndim - 1)))


def axes_of(draw: Draw, x: fa.Tensor) -> tuple[int, ...]:
    order = draw(st.permutations(range(x.ndim)))
    return tuple(order[: draw(st.integers(0, x.ndim))])


def repeats(draw: Draw, x: fa.Tensor) -> tuple[Any, Any]:
    axis = axis_of(draw, x)
    counts = draw(st.lists(st.integers(0, 3), min_size=x.shape[axis], max_size=x.shape[axis]))
    if draw(st.booleans()):
        count = draw(st.integers(0, 3))
        return fa.repeat(x, count, axis=axis), np.repeat(to_numpy(x), count, axis)
    if not counts:
        return fa.repeat(x, 2), np.repeat(to_numpy(x), 2)
    many = fa.asarray(counts, device=x.device)
    return fa.repeat(x, many, axis=axis), np.repeat(to_numpy(x), counts, axis)


def rolled(draw: Draw, x: fa.Tensor) -> tuple[Any, Any]:
    axes = axes_of(draw, x)
    if not axes:
        shift = draw(st.integers(-9, 9))
        return fa.roll(x, shift), np.roll(to_numpy(x), shift)
    shifts = tuple(draw(st.integers(-9, 9)) for _ in axes)
    return fa.roll(x, shifts, axis=axes), np.roll(to_numpy(x), shifts, axes)


def moved(draw: Draw, x: fa.Tensor) -> tuple[Any, Any]:
    source = axes_of(draw, x)
    target = tuple(draw(st.permutations(range(x.ndim)))[: len(source)])
    return fa.moveaxis(x, source, target), np.moveaxis(to_numpy(x), source, target)


def reshaped(draw: Draw, x: fa.Tensor) -> tuple[Any, Any]:
    shape = list(draw(factorings(x.size)))
    if x.size and shape and draw(st.booleans()):
        shape[draw(st.integers(0, len(shape) - 1))] = -1
    copy = draw(st.sampled_from([None, True]))
    return fa.reshape(x, tuple(shape), copy=copy), np.reshape(to_numpy(x), shape)


def broadcasted(draw: Draw, x: fa.Tensor) -> tuple[Any, Any]:
    x = fa.expand_dims(x, draw(st.integers(0, x.ndim)))
    shape = [draw(st.integers(0, 3)) if n == 1 else n for n in x.shape]
    shape = [2, *shape] if draw(st.booleans()) else shape
    return fa.broadcast_to(x, tuple(shape)), np.broadcast_to(to_numpy(x), shape)


def expanded(draw: Draw, x: fa.Tensor) -> tuple[Any, Any]:
    axis = draw(st.one_of(st.integers(-x.ndim - 1, x.ndim), st.just((0, -1)), st.just(())))
    return fa.expand_dims(x, axis), np.expand_dims(to_numpy(x), axis)


def squeezed(draw: Draw, x: fa.Tensor) -> tuple[Any, Any]:
    x = fa.expand_dims(x, (0, -1))
    ones = [i for i, n in enumerate(x.shape) if n == 1]
    axis = tuple(draw(st.lists(st.sampled_from(ones), unique=True)))
    return fa.squeeze(x, axis), np.squeeze(to_numpy(x), axis)


def tiled(draw: Draw, x: fa.Tensor) -> tuple[Any, Any]:
    counts = tuple(draw(st.lists(st.integers(0, 3), max_size=3)))
    return fa.tile(x, counts), np.tile(to_numpy(x), counts)


def joined(draw: Draw, x: fa.Tensor) -> tuple[Any, Any]:
    axis = draw(st.one_of(st.none(), st.just(axis_of(draw, x))))
    parts = [x, fa.flip(x), x]
    return fa.concat(parts, axis=axis), np.concatenate([to_numpy(p) for p in parts], axis=axis)


def stacked(draw: Draw, x: fa.Tensor) -> tuple[Any, Any]:
    axis = draw(st.integers(-x.ndim - 1, x.ndim))
    return fa.stack([x, fa.flip(x)], axis=axis), np.stack([to_numpy(x), np.flip(to_numpy(x))], axis)


def unstacked(draw: Draw, x: fa.Tensor) -> tuple[Any, Any]:
    axis = axis_of(draw, x)
    return fa.unstack(x, axis=axis), np.unstack(to_numpy(x), axis=axis)


def permuted(draw: Draw, x: fa.Tensor) -> tuple[Any, Any]:
    order = tuple(draw(st.permutations(range(x.ndim))))
    order = tuple(i - x.ndim if draw(st.booleans()) else i for i in order)
    return fa.permute_dims(x, order), np.transpose(to_numpy(x), order)


def flipped(draw: Draw, x: fa.Tensor) -> tuple[Any, Any]:
    axes = draw(st.one_of(st.none(), st.just(axes_of(draw, x))))
    return fa.flip(x, axis=axes), np.flip(to_numpy(x), axes)


def triangle(draw: Draw, x: fa.Tensor) -> tuple[Any, Any]:
    k = draw(st.integers(-3, 3))
    x = x[None]
    return (fa.tril(x, k=k), fa.triu(x, k=k)), (np.tril(to_numpy(x), k), np.triu(to_numpy(x), k))


MOVES = [broadcasted, expanded, flipped, joined, moved, permuted, repeats, reshaped, rolled, squeezed, stacked, tiled,
         triangle, unstacked]  # fmt: skip


@pytest.mark.parametrize("move", MOVES, ids=lambda m: m.__name__)
def test_moves_beside_numpy(move: Callable[..., tuple[Any, Any]], device: fa.Device) -> None:
    @given(st.data())
    def property_(data: st.DataObject) -> None:
        dtype = data.draw(st.sampled_from(on(device, ALL)))
        x = data.draw(tensors(dtype, shapes(min_dims=1, max_dims=3, max_side=4), device=device))
        before = to_numpy(x)
        found, wanted = move(data.draw, x)
        found = found if isinstance(found, tuple) else (found,)
        wanted = wanted if isinstance(wanted, tuple) else (wanted,)
        for ours, theirs in zip(found, wanted, strict=True):
            check(ours, theirs, dtype, device=device)
        for ours in found:  # written results leave the operand alone
            if ours.size:
                ours[...] = fa.zeros((), dtype=dtype, device=device)
        check(x, before, dtype)

    property_()


@given(broadcastable_shapes(3))
def test_broadcast_shapes(given_shapes: tuple[tuple[int, ...], ...]) -> None:
    wanted = np.broadcast_shapes(*given_shapes)
    assert fa.broadcast_shapes(*given_shapes) == wanted
    arrays = fa.broadcast_arrays(*(fa.ones(shape) for shape in given_shapes))
    assert [x.shape for x in arrays] == [wanted] * 3


@given(st.lists(shapes(max_dims=2, max_side=3), max_size=3))
def test_broadcast_shapes_or_an_error(given_shapes: list[tuple[int, ...]]) -> None:
    try:
        wanted = np.broadcast_shapes(*given_shapes)
    except ValueError:
        with pytest.raises(ValueError, match=r"broadcast_shapes: shapes .* do not broadcast"):
            fa.broadcast_shapes(*given_shapes)
    else:
        assert fa.broadcast_shapes(*given_shapes) == wanted


def test_joining_promotes(device: fa.Device) -> None:
    x, y = fa.ones(2, dtype="i8", device=device), fa.ones(1, dtype="f16", device=device)
    check(fa.concat([x, y]), [1, 1, 1], fa.float16, device=device)
    check(fa.stack([x[0], y[0]]), [1, 1], fa.float16, device=device)


def test_reshape_without_a_copy(device: fa.Device) -> None:
    x = fa.ones((2, 3), device=device)
    assert fa.reshape(x, (6,), copy=False).shape == (6,)
    assert fa.reshape(x, 6).shape == (6,)
    assert fa.reshape(fa.ones(1, device=device), ()).shape == ()
    if device.kind == "cpu":
        with pytest.raises(ValueError, match="copy"):
            fa.reshape(x.T, (6,), copy=False)


# Creation.


@pytest.mark.parametrize("name", ["zeros", "ones", "empty"])
def test_full_of_one_number(name: str, device: fa.Device) -> None:
    for dtype in on(device, ALL):
        for shape in ((), 3, (2, 0), (2, 3), [1, 2]):
            found = getattr(fa, name)(shape, dtype=dtype, device=device)
            wanted = getattr(np, name)(shape, NP[dtype])
            assert (found.shape, found.dtype, found.device) == (wanted.shape, dtype, device)
            like = getattr(fa, f"{name}_like")(found)
            assert (like.shape, like.dtype, like.device) == (wanted.shape, dtype, device)
            assert getattr(fa, f"{name}_like")(found, dtype="i8").dtype is fa.int8
            if name != "empty":
                check(found, wanted, dtype)
                check(like, wanted, dtype)


@pytest.mark.parametrize("value", [True, 7, -2, 2.5, 1 + 2j, float("nan"), float("inf"), -0.0])
def test_full(value: complex, device: fa.Device) -> None:
    check(fa.full((2, 2), value, device=device), np.full((2, 2), value), fa.Dtype(type(value)))
    for dtype in on(device, (*FLOATS, *COMPLEX)):
        if isinstance(value, complex) and dtype not in COMPLEX:
            continue
        found = fa.full(3, value, dtype=dtype, device=device)
        check(found, to_dtype(np.full(3, value), dtype), dtype, device=device)
        check(fa.full_like(found, value), to_dtype(np.full(3, value), dtype), dtype, device=device)
        if not isinstance(value, complex):
            number = fa.real(found)
            assert fa.signbit(number).tolist() == [bool(np.signbit(value))] * 3


@given(st.integers(-50, 50), st.integers(-50, 50), st.integers(-9, 9).filter(bool))
def test_arange_of_integers(start: int, stop: int, step: int) -> None:
    check(fa.arange(start, stop, step), np.arange(start, stop, step), fa.int64)
    check(fa.arange(start, stop, step, dtype="f32"), np.arange(start, stop, step), fa.float32)
    check(fa.arange(stop), np.arange(stop), fa.int64)


@given(st.integers(-50, 50), st.integers(-50, 50), st.sampled_from([0.25, -0.5, 3.0, 1.5]))
def test_arange_of_floats(start: int, stop: int, step: float) -> None:
    check(fa.arange(start, stop, step), np.arange(start, stop, step), fa.float32)
    check(fa.arange(float(start), stop), np.arange(float(start), stop), fa.float32)


def test_arange_at_the_limits(device: fa.Device) -> None:
    top = 2**63
    assert fa.arange(top - 2, top, device=device).tolist() == [top - 2, top - 1]
    assert fa.arange(-top, -top + 2, device=device).tolist() == [-top, -top + 1]
    assert fa.arange(2 * top - 2, 2 * top, dtype="u64", device=device).tolist() == [2 * top - 2, 2 * top - 1]
    with pytest.raises(OverflowError, match="arange"):
        fa.arange(top - 1, top + 2, device=device)
    with pytest.raises(OverflowError, match="arange"):
        fa.arange(0, 300, dtype="u8", device=device)


@given(st.integers(-50, 50), st.integers(-50, 50), st.integers(0, 20), st.booleans())
def test_linspace(start: int, stop: int, num: int, endpoint: bool) -> None:
    wanted = np.linspace(start, stop, num, endpoint=endpoint)
    for dtype in (fa.float32, fa.float64):
        found = fa.linspace(start, stop, num, dtype=dtype, endpoint=endpoint)
        check(found, wanted, dtype, ulps=2, atol=1e-14)
        if num > 1 and endpoint:
            assert (found[0].item(), found[-1].item()) == (start, stop)


def test_linspace_of_complex_numbers(device: fa.Device) -> None:
    check(fa.linspace(0, 4 + 2j, 3, device=device), [0, 2 + 1j, 4 + 2j], fa.complex64)


@given(st.integers(0, 5), st.one_of(st.none(), st.integers(0, 5)), st.integers(-6, 6))
def test_eye(rows: int, columns: int | None, k: int) -> None:
    for dtype in (fa.float32, fa.bool, fa.bfloat16, fa.complex64):
        check(fa.eye(rows, columns, k=k, dtype=dtype), np.eye(rows, columns, k), dtype)


@given(st.lists(shapes(min_dims=1, max_dims=1, max_side=3), max_size=3), st.sampled_from(["xy", "ij"]))
def test_meshgrid(lengths: list[tuple[int, ...]], indexing: Any) -> None:
    arrays = [fa.arange(math.prod(n)) for n in lengths]
    wanted = np.meshgrid(*map(to_numpy, arrays), indexing=indexing)
    found = fa.meshgrid(*arrays, indexing=indexing)
    for ours, theirs in zip(found, wanted, strict=True):
        check(ours, theirs, fa.int64)


# Functions beside the standard.


def test_extra_functions(device: fa.Device) -> None:
    @given(st.data())
    def property_(data: st.DataObject) -> None:
        dtype = data.draw(st.sampled_from(on(device, (*INTEGERS, *FLOATS))))
        x = data.draw(moderate(dtype, (3, 2), device=device))
        a = to_numpy(x)
        check(fa.pad(x, ((1, 0), (0, 2))), np.pad(a, ((1, 0), (0, 2))), dtype, device=device)
        check(fa.atleast_nd(x, ndim=4), a[None, None], dtype, device=device)
        check(fa.create_diagonal(x[:, 0], offset=1), np.diag(a[:, 0], 1), dtype, device=device)
        assert int(fa.nunique(x)) == np.unique(a).size
        close = fa.isclose(x, x + 1)
        check(close, np.isclose(a.astype(float), a.astype(float) + 1), fa.bool, device=device)
        assert fa.allclose(x, x)

    property_()
    x = fa.asarray([fa.nan, fa.inf, -fa.inf, 1.0], device=device)
    check(fa.nan_to_num(x), np.nan_to_num(to_numpy(x)), fa.float32, device=device)
    hot = fa.one_hot(fa.asarray([2, 0], device=device), 3)
    assert hot.tolist() == [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
