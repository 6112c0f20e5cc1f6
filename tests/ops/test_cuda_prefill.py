"""Attention of long sequences on a CUDA device, where kernels with large tiles run: against float64, and themselves."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ferrum_array as fa
from ferrum_ops import SequenceMeta, attention, explain
from tests.array.oracle import wide
from tests.ops.oracle import Array, check, make, noise

pytestmark = pytest.mark.cuda

CUDA = "cuda:0"
#: one rounding of results, and one of weights, most of which averages out
WITHIN = {fa.float32: 1e-6, fa.float16: 5e-4, fa.bfloat16: 4e-3}


def exact(
    q: Array, k: Array, v: Array, *, causal: bool = True, window: int | None = None, softcap: float | None = None,
    sinks: Array | None = None,
) -> tuple[Array, Array]:  # fmt: skip
    """The definition for [T, H, D] in float64, head by head."""
    count, heads, dim = q.shape
    length, key_heads, value_dim = v.shape
    place = np.arange(count)[:, None] + length - count
    key = np.arange(length)
    seen = key <= place if causal else np.ones((count, length), bool)
    if window is not None:
        seen &= key > place - window
    out, sums = np.zeros((count, heads, value_dim)), np.full((count, heads), -np.inf)
    for head in range(heads):
        shared = head // (heads // key_heads)
        scores = q[:, head] @ k[:, shared].T / np.sqrt(dim)
        if softcap is not None:
            scores = softcap * np.tanh(scores / softcap)
        scores = np.where(seen, scores, -np.inf)
        top = scores.max(axis=1, initial=-np.inf if sinks is None else sinks[head])
        base = np.where(top == -np.inf, 0.0, top)[:, None]
        weights = np.exp(scores - base)
        total = weights.sum(axis=1) + (0.0 if sinks is None else np.exp(sinks[head] - base[:, 0]))
        some = total > 0
        out[some, head] = (weights @ v[:, shared])[some] / total[some, None]
        sums[some, head] = base[some, 0] + np.log(total[some])
    return out, sums


def compared(got: fa.Tensor, sums: fa.Tensor, want: Array, want_sums: Array) -> None:
    check(got, want, got.dtype, WITHIN[got.dtype])
    np.testing.assert_allclose(wide(sums), want_sums, rtol=2e-6, atol=4e-6)


@settings(max_examples=16)  # most of them compile two kernels
@given(data=st.data())
def test_long_sequences_are_as_the_definition_says(data: st.DataObject) -> None:
    draw = data.draw
    dtype = draw(st.sampled_from([fa.bfloat16, fa.float16, fa.float32]))
    queries, keys = draw(st.sampled_from([64, 127, 128, 300, 513])), draw(st.sampled_from([129, 255, 256, 600]))
    key_heads, group = draw(st.sampled_from([(1, 1), (2, 1), (1, 4), (2, 3)]))
    dim, value_dim = draw(st.sampled_from([(64, 64), (128, 128), (80, 96), (192, 128), (256, 256), (24, 8), (33, 7)]))
    causal = draw(st.booleans())
    heads = key_heads * group
    seed = draw(st.integers(0, 99))
    strided = draw(st.booleans())
    q, q64 = make(noise(seed, 2, queries, heads, dim), dtype, fa.Device(CUDA), strided=strided)
    k, k64 = make(noise(seed + 1, 2, keys, key_heads, dim), dtype, fa.Device(CUDA))
    v, v64 = make(noise(seed + 2, 2, keys, key_heads, value_dim), dtype, fa.Device(CUDA))
    if draw(st.booleans()):  # heads beside those of something else, as in a product for q, k and v at once
        k = fa.concat([fa.full_like(k, fa.nan), k], axis=-2)[..., key_heads:, :]
    options: dict[str, Any] = {
        "causal": causal,
        "window": draw(st.sampled_from([None, 1, 100, 200])) if causal else None,
        "softcap": draw(st.sampled_from([None, 5.0])),
    }
    sinks = fa.asarray(noise(seed + 3, heads), dtype="f32", device=CUDA) if draw(st.booleans()) else None
    got, sums = attention(q, k, v, sinks=sinks, return_lse=True, **options)
    parts = [exact(q64[b], k64[b], v64[b], sinks=None if sinks is None else wide(sinks), **options) for b in range(2)]
    want, want_sums = map(np.stack, zip(*parts, strict=True))
    compared(got, sums, want, want_sums)
    alone = attention(q, k, v, sinks=sinks, **options)  # may be another kernel
    check(alone, want, dtype, WITHIN[dtype])
    assert fa.all(attention(q, k, v, sinks=sinks, **options) == alone), "a second run differs"


@pytest.mark.parametrize("tokens", [40, 300])
@pytest.mark.parametrize(("dim", "value_dim"), [(33, 7), (20, 30), (64, 7), (100, 60), (127, 129), (250, 3)])
def test_odd_heads_of_halves(tokens: int, dim: int, value_dim: int) -> None:
    """Their rows are no whole words: nothing copies them ahead of their products."""
    device = fa.Device(CUDA)
    (q, q64), (k, k64) = (make(noise(dim + i, tokens, 4 >> i, dim), fa.bfloat16, device) for i in range(2))
    v, v64 = make(noise(7, tokens, 2, value_dim), fa.bfloat16, device)
    got, sums = attention(q, k, v, return_lse=True)
    compared(got, sums, *exact(q64, k64, v64))
    assert explain(attention, q, k, v).runs == "cuda.attention"


@pytest.mark.parametrize("own_keys", [False, True])
@pytest.mark.parametrize("options", [{}, {"causal": False}, {"window": 150}])
def test_packed_sequences_do_not_meet(own_keys: bool, options: dict[str, Any]) -> None:
    """The last sequence holds NaN in a second run: no other may show any."""
    lengths = (130, 0, 1, 300, 64, 500)
    keys = (200, 3, 1, 301, 513, 640) if own_keys else lengths
    starts, ends = np.cumsum((0, *lengths)), np.cumsum((0, *keys))
    meta = SequenceMeta(tuple(starts.tolist()), kv_lens=keys if own_keys else None)
    q, q64 = make(noise(1, starts[-1], 8, 128), fa.bfloat16, fa.Device(CUDA))
    k, k64 = make(noise(2, ends[-1], 2, 128), fa.bfloat16, fa.Device(CUDA))
    v, v64 = make(noise(3, ends[-1], 2, 64), fa.bfloat16, fa.Device(CUDA))
    got, sums = attention(q, k, v, meta=meta, return_lse=True, **options)
    parts = [
        exact(q64[a:b], k64[c:d], v64[c:d], **options)
        for (a, b), (c, d) in zip(pairwise(starts), pairwise(ends), strict=True)
    ]
    compared(got, sums, *map(np.concatenate, zip(*parts, strict=True)))
    k[int(ends[-2]) :] = fa.nan
    v[int(ends[-2]) :] = fa.nan
    again = attention(q, k, v, meta=meta, **options)
    before = int(starts[-2])
    assert fa.all(again[:before] == got[:before])
    assert fa.all(fa.isnan(again[before:]))


@pytest.mark.parametrize(("tokens", "dim"), [(2000, 128), (1100, 64), (2000, 64), (4200, 64), (700, 256)])
def test_runs_do_not_differ(tokens: int, dim: int) -> None:
    """Copies and products that run at once must not meet: a hundred runs with the same bits."""
    (q, q64), (k, k64), (v, v64) = (make(noise(s, 1, tokens, 2, dim), fa.bfloat16, fa.Device(CUDA)) for s in range(3))
    first = attention(q, k, v)
    check(first[0], exact(q64[0], k64[0], v64[0])[0], fa.bfloat16, WITHIN[fa.bfloat16])
    assert all(bool(fa.all(attention(q, k, v) == first)) for _ in range(100))


def test_a_kernel_runs_and_not_the_reference() -> None:
    q = fa.ones((1, 256, 4, 128), dtype=fa.bfloat16, device=CUDA)
    assert explain(attention, q, q, q).runs == "cuda.attention"
    assert explain(attention, q, q, q, return_lse=True).runs == "cuda.attention_with_sums"
