from __future__ import annotations

import math
import sys
import tracemalloc
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ferrum_array as fa
from ferrum_ops import SequenceMeta, attention
from ferrum_ops.planning import visible
from tests.array.oracle import wide
from tests.ops.oracle import Array, check, floats, make, noise

MODULE = sys.modules["ferrum_ops.tiled"]


def blocks(queries: int, keys: int) -> Any:
    """Attention with other block sizes, so that short inputs meet every edge."""
    return mock.patch.multiple(MODULE, _QUERY_BLOCK=queries, _KEY_BLOCK=keys)


def exact_attention(
    q: Array, k: Array, v: Array, *, scale: float | None = None, causal: bool = True,
    window: int | None = None, softcap: float | None = None, sinks: Array | None = None,
    bias: Array | None = None,
) -> tuple[Array, Array]:  # fmt: skip
    """The definition, query by query and head by head, in float64."""
    *batch, count, heads, dim = q.shape
    length, key_heads, value_dim = v.shape[-3:]
    scale = 1 / math.sqrt(dim) if scale is None else scale
    if bias is not None:
        bias = np.broadcast_to(bias, (*batch, heads, count, length))
    out = np.zeros((*batch, count, heads, value_dim))
    lse = np.full((*batch, count, heads), -np.inf)
    for at in np.ndindex(*batch, count, heads):
        *b, i, h = at
        kept = [j for j in range(length) if visible(i, j, length - count, causal, window)]
        group = h // (heads // key_heads)
        keys, values = k[(*b, kept, group)], v[(*b, kept, group)]
        scores = scale * (keys @ q[at])
        if softcap is not None:
            scores = softcap * np.tanh(scores / softcap)
        if bias is not None:
            scores = scores + bias[(*b, h, i, kept)]
        parts = scores if sinks is None else np.append(scores, sinks[h])
        top = parts.max(initial=-np.inf)
        if top == -np.inf:
            continue
        total = np.exp(parts - top).sum()
        out[at] = np.exp(scores - top) @ values / total
        lse[at] = top + np.log(total)
    return out, lse


@dataclass
class Case:
    """Operands and options of one call."""

    q: Array
    k: Array
    v: Array
    dtype: fa.Dtype
    strided: bool
    options: dict[str, Any]


@st.composite
def cases(draw: st.DrawFn, device: fa.Device, *, dtype: fa.Dtype | None = None) -> Case:
    batch = draw(st.sampled_from([(), (2,), (1, 3), (0,)]))
    queries, keys = draw(st.integers(0, 9)), draw(st.integers(0, 12))
    key_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    dim, value_dim = draw(st.integers(1, 8)), draw(st.integers(0, 5))
    seed = draw(st.integers(0, 2**32 - 1))
    causal = draw(st.booleans())
    heads = key_heads * group
    options: dict[str, Any] = {
        "causal": causal,
        "scale": draw(st.sampled_from([None, 0.5, -1.0, 0.0])),
        "window": draw(st.none() | st.integers(1, 14)) if causal else None,
        "softcap": draw(st.sampled_from([None, 0.5, 20.0])),
        "sinks": noise(seed + 3, heads) if draw(st.booleans()) else None,
    }
    kind = draw(st.sampled_from(["none", "full", "row", "key", "mask"]))
    if kind == "mask":  # hides some keys, in places all of them
        hidden = np.random.default_rng(seed).random((queries, keys)) < 0.6
        options["bias"] = np.where(hidden, -np.inf, 0.0)
    elif kind != "none":
        shapes = {"full": (*batch, heads, queries, keys), "row": (queries, 1), "key": (1, keys)}
        options["bias"] = noise(seed + 4, *shapes[kind])
    return Case(
        noise(seed, *batch, queries, heads, dim),
        noise(seed + 1, *batch, keys, key_heads, dim),
        noise(seed + 2, *batch, keys, key_heads, value_dim),
        dtype or draw(st.sampled_from(floats(device))),
        draw(st.booleans()),
        options,
    )


@given(data=st.data(), sizes=st.tuples(st.integers(1, 5), st.integers(1, 5)), tiled=st.booleans())
def test_as_the_oracle_says(device: fa.Device, data: st.DataObject, sizes: tuple[int, int], tiled: bool) -> None:
    case = data.draw(cases(device))
    q, q64 = make(case.q, case.dtype, device, strided=case.strided)
    k, k64 = make(case.k, case.dtype, device, strided=case.strided)
    v, v64 = make(case.v, case.dtype, device, strided=case.strided)
    options, exact = dict(case.options), dict(case.options)
    for name in ("sinks", "bias"):
        if options.get(name) is not None:
            options[name], exact[name] = make(options[name], fa.float32, device)
    with blocks(*(sizes if tiled else (256, 512))):
        got, lse = attention(q, k, v, return_lse=True, **options)
        alone = attention(q, k, v, **options)
    want, want_lse = exact_attention(q64, k64, v64, **exact)
    # the bias is given in float32 in every case, and values near 0 may be means of large ones
    loose = {fa.float64: 1e-12, fa.float32: 2e-6}.get(case.dtype, 0.0)
    for result in (got, alone):  # a fast path may cover the one and not the other
        check(result, want, case.dtype, loose * (1 + np.abs(v64).max(initial=0.0)) / _scale_of(want, v64))
    check(lse, want_lse, fa.float64 if case.dtype is fa.float64 else fa.float32, 4e-6)


def _scale_of(want: Array, values: Array) -> float:
    """How large the result is, against how large the values are that cancel in it."""
    if not want.size or not np.linalg.norm(want):
        return 1.0
    return min(1.0, float(np.abs(want).max() / max(np.abs(values).max(initial=0.0), 1e-3)))


@given(data=st.data(), sizes=st.tuples(st.integers(1, 4), st.integers(1, 4)))
def test_blocks_change_nothing(device: fa.Device, data: st.DataObject, sizes: tuple[int, int]) -> None:
    case = data.draw(cases(device, dtype=fa.float32))
    q, k, v = (make(x, fa.float32, device)[0] for x in (case.q, case.k, case.v))
    options = {
        name: fa.asarray(x, dtype="f32", device=device) if isinstance(x, np.ndarray) else x
        for name, x in case.options.items()
    }
    whole = attention(q, k, v, **options)
    with blocks(*sizes):
        tiled = attention(q, k, v, **options)
    assert np.allclose(wide(whole), wide(tiled), rtol=2e-5, atol=2e-6)


@given(
    sizes=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 6)), max_size=6),
    seed=st.integers(0, 2**32 - 1),
    causal=st.booleans(),
    window=st.none() | st.integers(1, 4),
    own_keys=st.booleans(),
)
def test_packed_sequences_are_as_one_by_one(
    device: fa.Device,
    sizes: list[tuple[int, int]],
    seed: int,
    causal: bool,
    window: int | None,
    own_keys: bool,
) -> None:
    """Prefill, chunked prefill and decoding in one batch: each sequence as if it were alone."""
    lengths = [a for a, _ in sizes]
    keys = [a + b for a, b in sizes] if own_keys else lengths
    meta = SequenceMeta((0, *np.cumsum(lengths).tolist()), kv_lens=tuple(keys) if own_keys else None)
    q, _ = make(noise(seed, sum(lengths), 4, 3), fa.float32, device)
    k, _ = make(noise(seed + 1, sum(keys), 2, 3), fa.float32, device)
    v, _ = make(noise(seed + 2, sum(keys), 2, 5), fa.float32, device)
    options: dict[str, Any] = {"causal": causal, "window": window if causal else None}
    got, lse = attention(q, k, v, meta=meta, return_lse=True, **options)
    assert got.shape == (sum(lengths), 4, 5)
    assert lse.shape == (sum(lengths), 4)
    at = start = 0
    for length, many in zip(lengths, keys, strict=True):
        here, there = slice(at, at + length), slice(start, start + many)
        want, want_lse = attention(q[here], k[there], v[there], return_lse=True, **options)
        assert np.allclose(wide(got[here]), wide(want), rtol=1e-5, atol=1e-6)
        assert np.allclose(wide(lse[here]), wide(want_lse), rtol=1e-5, atol=1e-6)
        at, start = at + length, start + many


def test_a_window_as_long_as_the_keys_is_none(device: fa.Device) -> None:
    q, k, v = (make(noise(s, 7, 2, 4), fa.float32, device)[0] for s in range(3))
    assert fa.all(attention(q, k, v, window=7) == attention(q, k, v))
    assert not fa.all(attention(q, k, v, window=6) == attention(q, k, v))
    # of a window of 1 the token sees itself
    assert np.allclose(wide(attention(q, k, v, window=1)), wide(v), rtol=1e-6)


def test_a_row_that_sees_nothing(device: fa.Device) -> None:
    ones = fa.ones((3, 1, 2), device=device)
    out, lse = attention(ones, ones[:2], ones[:2], return_lse=True)  # the first comes too early
    assert wide(out).tolist() == [[[0, 0]], [[1, 1]], [[1, 1]]]
    assert wide(lse)[0, 0] == -np.inf
    out, lse = attention(ones, ones[:2], ones[:2], return_lse=True, sinks=fa.asarray([0.5], device=device))
    assert (wide(out)[0] == 0).all()
    assert wide(lse)[0, 0] == 0.5
    hidden = fa.full((3, 3), -fa.inf, device=device)
    out, lse = attention(ones, ones, ones, bias=hidden, causal=False, return_lse=True)
    assert (wide(out) == 0).all()
    assert (wide(lse) == -np.inf).all()


def test_large_scores_do_not_overflow(device: fa.Device) -> None:
    q = fa.asarray([[[300.0]]], dtype="f16", device=device)
    k = fa.asarray([[[300.0]], [[-300.0]]], dtype="f16", device=device)
    v = fa.asarray([[[1.0]], [[2.0]]], dtype="f16", device=device)
    out, lse = attention(q, k, v, return_lse=True)
    assert out.item() == 1.0
    assert lse.item() == 90000.0


def test_memory_grows_with_the_length_not_its_square() -> None:
    def peak(length: int) -> int:
        q = fa.ones((length, 1, 8))
        tracemalloc.start()
        attention(q, q, q, causal=False)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    short, long = peak(2048), peak(8192)
    assert long < 8 * short
    assert long < 8192 * 8192  # the scores alone, had they a byte each


def test_same_input_twice_gives_the_same_bits(device: fa.Device) -> None:
    q, k, v = (make(noise(s, 40, 2, 4), fa.float32, device)[0] for s in range(3))
    assert fa.all(attention(q, k, v) == attention(q, k, v))


X = fa.ones((4, 2, 3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"q": fa.ones((4, 3, 3))}, "3 query heads are not a multiple of 2 key heads"),
        ({"q": fa.ones((4, 2, 5))}, r"share the head dimension; got q float32\[4,2,5\]"),
        ({"k": fa.ones((5, 2, 3))}, "k and v also T and heads"),
        ({"v": fa.ones((4, 1, 3))}, "k and v also T and heads"),
        ({"q": fa.ones((2, 4, 2, 3))}, "share the axes before T"),
        ({"q": fa.ones((4, 3))}, r"q must be \[..., T, H, D\], got float32\[4,3\]"),
        ({"k": fa.ones((4, 0, 3)), "v": fa.ones((4, 0, 3))}, "not a multiple of 0 key heads"),
        ({"scale": math.inf}, "scale must be finite, got inf"),
        ({"window": 0}, "window must be an integer of at least 1.* got 0"),
        ({"window": 2.0}, "window must be an integer of at least 1.* got 2.0"),
        ({"window": True}, "window must be an integer"),
        ({"window": 2, "causal": False}, "window=2 looks back .* needs causal=True"),
        ({"softcap": 0.0}, "softcap must be finite and above 0"),
        ({"softcap": math.nan}, "softcap must be finite and above 0"),
        ({"sinks": fa.ones(3)}, r"sinks must have one entry for each of 2 heads, got float32\[3\]"),
        ({"bias": fa.ones((3, 4))}, r"bias must broadcast .*\(2, 4, 4\), got float32\[3,4\]"),
        ({"bias": fa.ones((1, 1, 4, 4))}, "bias must broadcast"),
        ({"meta": SequenceMeta.packed([3])}, r"q must be \[3, H, D\]"),
        ({"meta": SequenceMeta((0, 4), kv_lens=(5,))}, r"k \[5, Hkv, D\]"),
        ({"meta": SequenceMeta((0, 4), slots=(0, 1, 2, 3))}, "paged cache"),
        ({"meta": SequenceMeta((0, 4), block_tables=((0,),))}, "paged cache"),
        ({"meta": SequenceMeta((0, 4), positions=(3, 2, 1, 0))}, "positions"),
        ({"meta": SequenceMeta.packed([4]), "bias": fa.ones((4, 4))}, "bias and meta together"),
    ],
)
def test_bad_values_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attention(**{"q": X, "k": X, "v": X, **arguments})


def test_bad_types_are_refused() -> None:
    with pytest.raises(TypeError, match=r"k is float16\[4,2,3\] but the input is float32"):
        attention(X, X.astype("f16"), X)
    with pytest.raises(TypeError, match="q must be real floating-point, got int64"):
        attention(X.astype("i64"), X, X)
    with pytest.raises(TypeError, match="bias must be real floating-point, got bool"):
        attention(X, X, X, bias=fa.ones((4, 4), dtype="bool"))
    with pytest.raises(ValueError, match="has head dimension 0, so scale is needed"):
        attention(fa.ones((4, 2, 0)), fa.ones((4, 2, 0)), X)


def test_positions_in_any_order_are_fine_without_a_mask(device: fa.Device) -> None:
    q = make(noise(1, 4, 2, 3), fa.float32, device)[0]
    meta = SequenceMeta((0, 4), positions=(3, 2, 1, 0))
    got = attention(q, q, q, meta=meta, causal=False)
    assert np.allclose(wide(got), wide(attention(q, q, q, causal=False)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("window", [2**31, 2**63 - 1, 10**30])
def test_a_window_of_any_width_is_a_window(device: fa.Device, window: int) -> None:
    q, k = (make(noise(seed, length, 2, 8), fa.float32, device)[0] for seed, length in ((0, 5), (1, 3)))
    for keys in (k, fa.concat([k, k, k])):
        found, all_ = attention(q, keys, keys, window=window), attention(q, keys, keys)
        assert float(fa.max(fa.abs(found - all_))) < 1e-6
