"""Kernels of caches on the CPU, as compiled: what they write and read, and attention over blocks where they lie."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ferrum_array as fa
from ferrum_ops import (
    KVCache,
    KVSpec,
    SequenceMeta,
    explain,
    kv_append,
    kv_copy_blocks,
    kv_gather,
    paged_attention,
    use_fast_paths,
)
from tests.ops.caches import Case, filled, poisoned, shuffled_tables
from tests.ops.kernel_runs import DTYPES, LAYOUTS, is_portable, laid, on_threads, portable, run
from tests.ops.oracle import Array, noise
from tests.ops.test_cpu_attention import agree, exact

pytest.importorskip("numba")

CPU = fa.Device("cpu")
SEED = st.integers(0, 2**32 - 1)
#: dtypes of what comes in and of a cache; each pair is code of its own
STORES = [*zip(DTYPES, DTYPES, strict=True), *((dtype, fa.int8) for dtype in DTYPES), (fa.bfloat16, fa.float32)]
STORES = [(fa.float32, fa.float32), (fa.float32, fa.int8)] if is_portable() else STORES


def contents(cache: KVCache) -> list[bytes]:
    return [x.numpy().tobytes() for x in (cache.k, cache.v, cache.k_scale, cache.v_scale) if x is not None]


@given(
    seed=SEED, of=st.sampled_from(STORES), tokens=st.sampled_from([0, 1, 7, 130]), heads=st.integers(1, 3),
    sizes=st.sampled_from([(1, 3), (16, 16), (67, 5), (128, 64)]), layout=st.sampled_from(LAYOUTS),
    spread=st.sampled_from([1.0, 1e-5, 1e-40, 1e30]), wrong=st.sampled_from([None, np.nan, np.inf, -np.inf, 0.0]),
)  # fmt: skip
def test_the_bytes_are_those_of_the_references(
    seed: int, of: tuple[fa.Dtype, fa.Dtype], tokens: int, heads: int, sizes: tuple[int, int], layout: str,
    spread: float, wrong: float | None,
) -> None:  # fmt: skip
    """Written, gathered and copied, and on two threads as on one."""
    dtype, store = of
    spec = KVSpec(heads, sizes[0], 30, 5, "paged", store, sizes[1])
    table = shuffled_tables([tokens], 5, 30, seed % 97)
    meta = SequenceMeta((0, tokens), block_tables=table)
    rows = [noise(seed + n, tokens, heads, size) * spread for n, size in enumerate(sizes)]
    if tokens and wrong is not None:
        rows[0][tokens // 2, -1, 0 if np.isfinite(wrong) else slice(1)] = wrong
        if wrong == 0:
            rows[1][tokens // 2] = -0.0
    k, v = (laid(x, dtype, layout)[0] for x in rows)
    caches = [poisoned(spec, CPU) for _ in range(3)]
    moves = [0, 1, 2], [1, 2, 7]
    if tokens:
        assert explain(kv_append, caches[0], k, v, meta).runs == "cpu.kv_append"
    assert explain(kv_copy_blocks, caches[0], *moves).runs == "cpu.kv_copy_blocks"
    assert explain(kv_gather, caches[0], meta).runs == "cpu.kv_gather"
    gathered = []
    for cache, fast, count in zip(caches, (False, True, True), (1, 1, 2), strict=True):
        with on_threads(count), use_fast_paths(fast):
            kv_append(cache, k, v, meta)
            found = [x.numpy().tobytes() for x in kv_gather(cache, meta, dtype=dtype if store is fa.int8 else None)]
            kv_copy_blocks(cache, *moves)
            gathered.append(found)
    assert contents(caches[1]) == contents(caches[0]), "the kernel writes other bytes than the reference"
    assert contents(caches[2]) == contents(caches[1]), "two threads write other bytes than one"
    assert gathered[1] == gathered[0]
    assert gathered[2] == gathered[0]


@pytest.mark.parametrize("store", ["float32", "int8"])
def test_others_that_see_the_memory_keep_what_they_saw(store: str) -> None:
    """A cache that is written through its own rows, and a tensor that was taken from it before."""
    spec = KVSpec(1, 4, 2, 4, "paged", fa.Dtype(store))
    cache = KVCache.empty(spec)
    x = fa.asarray(noise(1, 4, 1, 4), dtype="f32")
    kv_append(cache, x, x, SequenceMeta((0, 4), block_tables=((0,),)))
    before, rows = cache.k[...], cache.k.numpy(copy=True)
    held = cache.k[1:4] if store == "float32" else x[1:4]
    want = held.numpy(copy=True)
    kv_append(cache, held, held, SequenceMeta((0, 3), block_tables=((0,),)))
    assert before.numpy().tobytes() == rows.tobytes()
    if store == "float32":
        assert cache.k[:3].numpy().tobytes() == want.tobytes()
    kv_copy_blocks(cache, [0], [1])
    assert before.numpy().tobytes() == rows.tobytes()
    assert cache.k[:4].numpy().tobytes() == cache.k[4:].numpy().tobytes()


@st.composite
def batches(draw: st.DrawFn) -> Case:
    """Prompts, parts of prompts and single tokens, in caches of every layout with blocks of every size."""
    keys = tuple(draw(st.lists(st.sampled_from([0, 1, 5, 63, 64, 65, 130, 255, 257, 300]), min_size=1, max_size=4)))
    queries = tuple(min(draw(st.sampled_from([0, 1, 1, 2, 33, 150])), n) for n in keys)
    layout = draw(st.sampled_from(["paged", "paged", "contiguous"]))
    size = draw(st.sampled_from([1, 3, 16, 64, 100])) if layout == "paged" else 300
    heads, (dim, value_dim) = draw(st.integers(1, 3)), draw(st.sampled_from([(1, 1), (64, 64), (67, 17), (128, 256)]))
    blocks = sum(-(-max(n, 1) // size) for n in keys) + 1 if layout == "paged" else len(keys) + 1
    tables = shuffled_tables(keys, size, blocks, draw(st.integers(0, 99))) if layout == "paged" else None
    return Case(KVSpec(heads, dim, blocks, size, layout, fa.float32, value_dim), keys, queries, tables)


def cast(case: Case, store: fa.Dtype) -> Case:
    s = case.spec
    spec = KVSpec(s.kv_heads, s.head_dim, s.blocks, s.block_size, s.layout, store, s.value_dim)
    return Case(spec, case.keys, case.queries, case.tables)


@settings(max_examples=60)
@given(
    seed=SEED, case=batches(), of=st.sampled_from(STORES), group=st.sampled_from([1, 2, 4, 7]), sunk=st.booleans(),
    window=st.sampled_from([None, None, 1, 17, 64, 65, 190]), cap=st.sampled_from([None, 2.0]), causal=st.booleans(),
)  # fmt: skip
def test_attention_over_a_cache(
    seed: int, case: Case, of: tuple[fa.Dtype, fa.Dtype], group: int, sunk: bool, window: int | None,
    cap: float | None, causal: bool,
) -> None:  # fmt: skip
    dtype, store = of
    case = cast(case, store)
    cache, k, v = filled(case, CPU, dtype, seed)
    heads = case.spec.kv_heads * group
    q, q64 = laid(noise(seed + 2, sum(case.queries), heads, case.spec.head_dim), dtype)
    options: dict[str, Any] = {"window": window, "softcap": cap, "causal": causal or window is not None}
    sinks, sinks64 = laid(noise(seed + 3, heads), fa.float32) if sunk else (None, None)
    found = run("cpu.paged_attention", paged_attention, q, cache, case.meta, sinks=sinks, return_lse=True, **options)
    start = 0
    for count, keys, values in zip(case.queries, k, v, strict=True):
        rows = slice(start, start + count)
        start += count
        want, sums = exact(q64[rows], keys, values, sinks=sinks64, **options)
        agree([found[0][rows], found[1][rows]], want, sums, values)


@settings(max_examples=30)
@given(
    seed=SEED, of=st.sampled_from(STORES), keys=st.integers(1, 400), count=st.sampled_from([1, 2, 40]),
    window=st.sampled_from([1, 30, 64, 100]), spare=st.integers(0, 9), group=st.sampled_from([1, 4]),
)  # fmt: skip
def test_rings_that_have_gone_round(
    seed: int, of: tuple[fa.Dtype, fa.Dtype], keys: int, count: int, window: int, spare: int, group: int
) -> None:
    dtype, store = of
    count = min(count, keys)
    size = window + count - 1 + spare
    cache = poisoned(KVSpec(2, 64, 2, size, "ring", store, 17), CPU)
    k, _ = laid(noise(seed, keys, 2, 64), dtype)
    v, _ = laid(noise(seed + 1, keys, 2, 17), dtype)
    for start in range(0, keys, size):
        stop = min(start + size, keys)
        kv_append(cache, k[start:stop], v[start:stop], SequenceMeta((0, stop - start), kv_lens=(stop,)))
    held = min(keys, size)
    order = (np.arange(keys - held, keys) % size).tolist()

    def kept(memory: fa.Tensor, scale: fa.Tensor | None) -> Array:
        numbers: Array = memory.numpy()[order].astype(np.float64)
        return numbers if scale is None else numbers * scale.numpy()[order][..., None]

    k64, v64 = kept(cache.k, cache.k_scale), kept(cache.v, cache.v_scale)
    q, q64 = laid(noise(seed + 2, count, 2 * group, 64), dtype)
    meta = SequenceMeta((0, count), kv_lens=(keys,))
    found = run("cpu.paged_attention", paged_attention, q, cache, meta, window=window, return_lse=True)
    agree(found, *exact(q64, k64, v64, window=window), v64)


@pytest.mark.skipif(is_portable(), reason="this process is the portable one")
def test_processors_without_special_instructions() -> None:
    done = portable(__file__)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 skipped" in done.stdout
