"""Attention over caches is attention: whatever the layout, the batch and the pieces."""

from __future__ import annotations

import sys
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ferrum_array as fa
from ferrum_ops import KVCache, KVSpec, SequenceMeta, attention, kv_append, merge_attention, paged_attention
from tests.array.oracle import wide
from tests.ops.caches import Case, cases, filled, poisoned
from tests.ops.oracle import Array, check, floats, make, noise
from tests.ops.test_attention import exact_attention

MODULE = sys.modules["ferrum_ops.tiled"]

options = st.fixed_dictionaries(
    {
        "scale": st.sampled_from([None, 0.3]),
        "window": st.sampled_from([None, 1, 3, 50]),
        "softcap": st.sampled_from([None, 2.0]),
    }
)


def queries(case: Case, dtype: fa.Dtype, device: fa.Device, group: int, seed: int) -> tuple[fa.Tensor, list[Array]]:
    """Queries for the new tokens, and those of each sequence in float64."""
    q, exact = make(noise(seed, sum(case.queries), case.spec.kv_heads * group, case.spec.head_dim), dtype, device)
    starts = np.cumsum((0, *case.queries))
    return q, [exact[starts[n] : starts[n + 1]] for n in range(len(case.queries))]


def exact(case: Case, q: list[Array], k: list[Array], v: list[Array], **more: Any) -> tuple[Array, Array]:
    """The definition, sequence by sequence."""
    parts = [exact_attention(*one, **more) for one in zip(q, k, v, strict=True)]
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])


@settings(max_examples=40)
@given(data=st.data())
def test_as_the_oracle_says(device: fa.Device, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(floats(device)))
    case = data.draw(cases(data.draw(st.sampled_from([dtype, fa.int8]))))
    group = data.draw(st.sampled_from([1, 2, 3]))
    chosen: dict[str, Any] = data.draw(options)
    causal = chosen["window"] is not None or data.draw(st.booleans())
    sinks = noise(3, case.spec.kv_heads * group) if data.draw(st.booleans()) else None
    cache, k, v = filled(case, device, dtype, data.draw(st.integers(0, 99)))
    q, exact_q = queries(case, dtype, device, group, 7)
    sunk = None if sinks is None else fa.asarray(sinks, device=device, dtype="f32")
    with mock.patch.multiple(MODULE, _QUERY_BLOCK=3, _KEY_BLOCK=4):
        out, lse = paged_attention(q, cache, case.meta, causal=causal, sinks=sunk, return_lse=True, **chosen)
    rounded = None if sunk is None else wide(sunk.numpy())
    expected, sums = exact(case, exact_q, k, v, causal=causal, sinks=rounded, **chosen)
    check(out, expected, dtype)
    check(lse, sums, fa.float64 if dtype is fa.float64 else fa.float32, 1e-6 if dtype is not fa.float64 else 1e-14)


@settings(max_examples=30)
@given(data=st.data())
def test_paged_is_contiguous_is_dense(device: fa.Device, data: st.DataObject) -> None:
    """The same numbers in another place give the same bits."""
    case = data.draw(cases(fa.float32, layouts=["paged"]))
    cache, k, v = filled(case, device, fa.float32, 5)
    q, _ = queries(case, fa.float32, device, 2, 7)
    found = paged_attention(q, cache, case.meta)
    plain = Case(KVSpec(case.spec.kv_heads, case.spec.head_dim, 4, 11, value_dim=case.spec.value_dim), case.keys,
                 case.queries, None)  # fmt: skip
    other, _, _ = filled(plain, device, fa.float32, 5)
    assert fa.all(paged_attention(q, other, plain.meta) == found)
    dense = attention(q, *(fa.asarray(np.concatenate(x), dtype="f32", device=device) for x in (k, v)),
                      meta=SequenceMeta(case.meta.cu_seqlens, kv_lens=case.keys))  # fmt: skip
    np.testing.assert_allclose(found.numpy(), dense.numpy(), rtol=1e-5, atol=1e-6)


@settings(max_examples=25)
@given(data=st.data())
def test_chunks_are_one_shot(device: fa.Device, data: st.DataObject) -> None:
    layout = data.draw(st.sampled_from(["contiguous", "paged", "ring"]))
    total, window = data.draw(st.integers(1, 14)), data.draw(st.sampled_from([None, 1, 2, 4]))
    chunks = []
    while sum(chunks) < total:
        chunks.append(data.draw(st.integers(1, min(5, total - sum(chunks)))))
    if layout == "ring":
        window = window or 3
        spec = KVSpec(1, 4, 1, window + 4, "ring")
        table: tuple[tuple[int, ...], ...] | None = None
    else:
        spec = KVSpec(1, 4, 20, 3 if layout == "paged" else 14, layout)
        table = ((9, 4, 17, 0, 2),) if layout == "paged" else ((3,),)
    x = [fa.asarray(noise(n, total, 2 if n == 0 else 1, 4), dtype="f32", device=device) for n in range(3)]
    cache, done, parts = poisoned(spec, device), 0, []
    for n in chunks:
        meta = SequenceMeta((0, n), kv_lens=(done + n,), block_tables=table)
        kv_append(cache, x[1][done : done + n], x[2][done : done + n], meta)
        parts.append(paged_attention(x[0][done : done + n], cache, meta, window=window))
        done += n
    whole = attention(*x, window=window)
    np.testing.assert_allclose(fa.concat(parts).numpy(), whole.numpy(), rtol=1e-5, atol=1e-6)


@settings(max_examples=25)
@given(data=st.data())
def test_a_batch_is_its_items(device: fa.Device, data: st.DataObject) -> None:
    case = data.draw(cases(data.draw(st.sampled_from([fa.float32, fa.int8]))))
    cache, _, _ = filled(case, device, fa.float32, 5)
    q, _ = queries(case, fa.float32, device, 2, 7)
    together = paged_attention(q, cache, case.meta)
    meta = case.meta
    for n, (start, stop) in enumerate(zip(meta.cu_seqlens, meta.cu_seqlens[1:], strict=False)):
        table = ((n,),) if case.tables is None else (case.tables[n],)
        one = SequenceMeta((0, stop - start), kv_lens=(case.keys[n],), block_tables=table)
        alone = paged_attention(q[start:stop], cache, one)
        np.testing.assert_allclose(alone.numpy(), together[start:stop].numpy(), rtol=1e-5, atol=1e-6)


@given(data=st.data())
def test_the_same_twice_gives_the_same_bits(device: fa.Device, data: st.DataObject) -> None:
    case = data.draw(cases(fa.int8))
    cache, _, _ = filled(case, device, fa.float32, 5)
    q, _ = queries(case, fa.float32, device, 1, 7)
    assert fa.all(paged_attention(q, cache, case.meta) == paged_attention(q, cache, case.meta))


def test_memory_grows_with_blocks_and_not_with_keys() -> None:
    import tracemalloc

    keys, heads = 16384, 2
    cache = KVCache.empty(KVSpec(heads, 64, 1, keys))
    meta = SequenceMeta((0, 1), kv_lens=(keys,))
    q = fa.ones((1, heads, 64))
    paged_attention(q, cache, meta)
    tracemalloc.start()
    paged_attention(q, cache, meta)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < cache.spec.nbytes / 4


# Parts put together.


@settings(max_examples=30)
@given(data=st.data())
def test_parts_merge_to_the_whole(device: fa.Device, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(floats(device)))
    keys = data.draw(st.integers(1, 9))
    cuts = sorted(data.draw(st.lists(st.integers(0, keys), max_size=3)))
    q, exact_q = make(noise(0, 3, 4, 5), dtype, device)
    k, exact_k = make(noise(1, keys, 2, 5), dtype, device)
    v, exact_v = make(noise(2, keys, 2, 6), dtype, device)
    bounds = list(zip([0, *cuts], [*cuts, keys], strict=True))
    parts = [attention(q, k[a:b], v[a:b], causal=False, return_lse=True) for a, b in bounds]
    # what a part that saw nothing holds does not matter
    outs = [out if a < b else fa.full_like(out, fa.nan) for (out, _), (a, b) in zip(parts, bounds, strict=True)]
    merged, lse = merge_attention(outs, [part[1] for part in parts])
    expected, sums = exact_attention(exact_q, exact_k, exact_v, causal=False)
    check(merged, expected, dtype)
    check(lse, sums, lse.dtype, 1e-6 if dtype is not fa.float64 else 1e-14)


def test_nothing_merges_to_nothing(device: fa.Device) -> None:
    out, lse = fa.full((1, 1, 2), fa.nan, device=device), fa.full((1, 1), -fa.inf, device=device)
    merged, total = merge_attention([out, out], [lse, lse])
    assert fa.all(merged == 0)
    assert fa.all(total == -fa.inf)


def test_parts_that_do_not_fit() -> None:
    out, lse = fa.ones((2, 3, 4)), fa.ones((2, 3))
    for outs, lses, error, message in (
        ([], [], ValueError, "lists of one length, got 0 and 0"),
        ([out], [lse, lse], ValueError, "got 1 and 2"),
        (out, [lse], TypeError, r"outs must be a list or another sequence, got float32\[2,3,4\]"),
        ([out], lse, TypeError, r"lses must be a list or another sequence, got float32\[2,3\]"),
        ([out, out[:1]], [lse, lse[:1]], ValueError, r"outs\[1\] is float32\[1,3,4\]"),
        ([out, out.astype("f16")], [lse, lse], TypeError, r"outs\[1\] is float16"),
        ([out], [fa.ones((2, 4))], ValueError, r"outs must be \[..., H, Dv\] and lses \[..., H\]"),
        ([out], [lse.astype("f16")], TypeError, "lses must be float32"),
    ):
        with pytest.raises(error, match=message):
            merge_attention(outs, lses)


# What is refused.


SPEC = KVSpec(2, 4, 3, 4, "paged")
GOOD: dict[str, Any] = {"cu_seqlens": (0, 2), "kv_lens": (6,), "block_tables": ((2, 0),)}


@pytest.mark.parametrize(
    ("meta", "more", "message"),
    [
        ({}, {"window": 2, "causal": False}, "window=2 looks back from each token and needs causal=True"),
        ({}, {"window": 0}, "window must be an integer of at least 1"),
        ({}, {"softcap": -1.0}, "softcap must be finite and above 0"),
        ({}, {"scale": float("nan")}, "scale must be finite"),
        ({}, {"sinks": fa.ones(3)}, "sinks must have one entry for each of 4 heads"),
        ({"block_tables": None}, {}, "the cache is paged, so meta needs block_tables"),
        ({"block_tables": ((2, 3),)}, {}, "runs from 2 to 3, but the cache has 3 blocks"),
        ({"kv_lens": (9,)}, {}, "reaches position 8"),
        ({"positions": (0, 1)}, {}, "causal is not implemented for meta.positions"),
        ({"cu_seqlens": (0, 3)}, {}, r"q must be \[3, H, 4\]"),
    ],
)
def test_what_is_refused(device: fa.Device, meta: dict[str, Any], more: dict[str, Any], message: str) -> None:
    if "sinks" in more:
        more = {"sinks": more["sinks"].to_device(device)}
    cache = KVCache.empty(SPEC, device)
    with pytest.raises(ValueError, match=message):
        paged_attention(fa.ones((2, 4, 4), device=device), cache, SequenceMeta(**{**GOOD, **meta}), **more)


def test_heads_and_shapes_that_do_not_fit() -> None:
    cache, meta = KVCache.empty(SPEC), SequenceMeta(**GOOD)
    with pytest.raises(ValueError, match="3 query heads are not a multiple of the 2 heads"):
        paged_attention(fa.ones((2, 3, 4)), cache, meta)
    with pytest.raises(ValueError, match=r"q must be \[2, H, 4\]"):
        paged_attention(fa.ones((2, 4, 5)), cache, meta)
    with pytest.raises(TypeError, match="q must be real floating-point"):
        paged_attention(fa.ones((2, 4, 4), dtype="i32"), cache, meta)


def test_a_ring_that_is_too_short() -> None:
    cache = KVCache.empty(KVSpec(1, 1, 1, 4, "ring"))
    q, meta = fa.ones((2, 1, 1)), SequenceMeta((0, 2), kv_lens=(9,))
    assert paged_attention(q, cache, meta, window=3).shape == (2, 1, 1)
    with pytest.raises(ValueError, match="see keys from position 4 on, but the ring keeps 4 and begins at 5"):
        paged_attention(q, cache, meta, window=4)
    with pytest.raises(ValueError, match="see keys from position 0 on"):
        paged_attention(q, cache, meta)
