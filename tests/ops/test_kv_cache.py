"""Caches hold what was written, where it was written, in every layout."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import ferrum_array as fa
from ferrum_ops import KVCache, KVSpec, SequenceMeta, kv_append, kv_copy_blocks, kv_gather
from ferrum_ops.kv_cache import kept_as
from ferrum_ops.kv_slots import cache_slots
from ferrum_ops.planning import block_slots, stretches
from tests.array.oracle import wide
from tests.ops.caches import Case, cases, filled, held_by, poisoned, shuffled_tables
from tests.ops.oracle import Array, floats, make, noise

# Plans, without arrays.


@given(st.lists(st.integers(0, 30), max_size=20))
def test_stretches_are_the_slots_again(slots: list[int]) -> None:
    runs = stretches(slots)
    assert [s for run in runs for s in range(run.slot, run.slot + run.length)] == slots
    assert [t for run in runs for t in range(run.token, run.token + run.length)] == list(range(len(slots)))
    for a, b in pairwise(runs):
        assert a.slot + a.length != b.slot


@given(case=cases())
def test_every_position_has_a_slot_of_its_own(case: Case) -> None:
    slots = cache_slots("test", case.spec, case.prompts)
    assert len(slots) == len(set(slots)) == sum(case.keys)
    assert all(0 <= s < case.spec.slots for s in slots)
    assert cache_slots("test", case.spec, case.meta) == tuple(
        slot
        for start, n, q in zip(np.cumsum((0, *case.keys)), case.keys, case.queries, strict=False)
        for slot in slots[start + n - q : start + n]
    )


@given(st.integers(1, 6), st.lists(st.integers(0, 40), max_size=8))
def test_a_ring_goes_round(size: int, positions: list[int]) -> None:
    assert block_slots([2], size, positions, ring=True) == [2 * size + p % size for p in positions]


# Writing and reading.


@settings(max_examples=30)
@given(data=st.data())
def test_what_was_written_is_read(device: fa.Device, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(floats(device)))
    case = data.draw(cases(data.draw(st.sampled_from([*floats(device), fa.int8, "fp8_e4m3"]))))
    cache, keys, values = filled(case, device, dtype, data.draw(st.integers(0, 99)))
    k, v = kv_gather(cache, case.prompts, dtype="f32")
    np.testing.assert_array_equal(wide(k.numpy()), np.concatenate(keys).astype(np.float32))
    np.testing.assert_array_equal(wide(v.numpy()), np.concatenate(values).astype(np.float32))


@settings(max_examples=30)
@given(data=st.data())
def test_in_pieces_as_in_one(device: fa.Device, data: st.DataObject) -> None:
    case = data.draw(cases(data.draw(st.sampled_from([fa.float32, fa.int8, "fp8_e4m3"]))))
    spec, seed = case.spec, data.draw(st.integers(0, 99))
    whole, _, _ = filled(case, device, fa.float32, seed)
    total = sum(case.keys)
    k, _ = make(noise(seed, total, spec.kv_heads, spec.head_dim), fa.float32, device)
    v, _ = make(noise(seed + 1, total, spec.kv_heads, spec.value_dim), fa.float32, device)
    cache = poisoned(spec, device)
    starts = np.cumsum((0, *case.keys)).tolist()
    done = [0] * len(case.keys)
    while done != list(case.keys):
        more = [data.draw(st.integers(0, n - d)) for n, d in zip(case.keys, done, strict=True)]
        after = [d + m for d, m in zip(done, more, strict=True)]
        meta = SequenceMeta(SequenceMeta.packed(more).cu_seqlens, kv_lens=tuple(after), block_tables=case.tables)
        rows = [start + p for start, a, b in zip(starts, done, after, strict=False) for p in range(a, b)]
        index = fa.asarray(rows, dtype="i64", device=device)
        kv_append(cache, fa.take(k, index, axis=0), fa.take(v, index, axis=0), meta)
        done = after if any(more) else list(case.keys) if not total else done
    for name in ("k", "v", "k_scale", "v_scale"):
        a, b = getattr(cache, name), getattr(whole, name)
        if a is not None:
            np.testing.assert_array_equal(wide(a.numpy()), wide(b.numpy()))


def test_explicit_slots_and_positions(device: fa.Device) -> None:
    cache = KVCache.empty(KVSpec(1, 1, 2, 4), device)
    x = fa.asarray([[[1.0]], [[2.0]], [[3.0]]], device=device)
    kv_append(cache, x, -x, SequenceMeta((0, 3), slots=(7, 0, 5)))
    assert cache.k[:, 0, 0].tolist() == [2, 0, 0, 0, 0, 3, 0, 1]
    kv_append(cache, x, -x, SequenceMeta((0, 2, 3), positions=(2, 1, 3), kv_lens=(4, 4)))
    assert cache.k[:, 0, 0].tolist() == [2, 2, 1, 0, 0, 3, 0, 3]
    assert cache.v[:, 0, 0].tolist() == [-2, -2, -1, 0, 0, -3, 0, -3]


@example(values=[float(np.finfo(np.float32).max), -1.0])
@given(values=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=6))
def test_int8_is_within_half_a_step(device: fa.Device, values: list[float]) -> None:
    cache = KVCache.empty(KVSpec(1, len(values), 1, 1, dtype="int8"), device)
    x = fa.asarray([[values]], dtype="f32", device=device)
    kv_append(cache, x, x, SequenceMeta.packed([1]))
    k, _ = kv_gather(cache, SequenceMeta.packed([1]))
    exact = np.asarray(values, np.float64)
    step = np.max(np.abs(exact)) / 127
    assert np.all(np.abs(wide(k.numpy())[0, 0] - exact) <= step * 0.5000003 + 1.5e-43)


@pytest.mark.parametrize("bad", [fa.nan, fa.inf, -fa.inf])
def test_int8_rows_that_are_no_numbers_are_nan(device: fa.Device, bad: float) -> None:
    cache = KVCache.empty(KVSpec(2, 2, 1, 1, dtype=fa.int8), device)
    x = fa.asarray([[[bad, 1.0], [2.0, 0.0]]], device=device)
    kv_append(cache, x, x, SequenceMeta.packed([1]))
    k, _ = kv_gather(cache, SequenceMeta.packed([1]))
    assert fa.all(fa.isnan(k[0, 0]))
    np.testing.assert_allclose(k[0, 1].numpy(), [2.0, 0.0], rtol=1e-6)


def test_a_row_of_zeros_is_zeros(device: fa.Device) -> None:
    cache = poisoned(KVSpec(1, 4, 1, 1, dtype=fa.int8), device)
    zero = fa.zeros((1, 1, 4), device=device)
    kv_append(cache, zero, zero, SequenceMeta.packed([1]))
    assert fa.all(kv_gather(cache, SequenceMeta.packed([1]))[0] == 0)


def test_what_was_given_out_does_not_change(device: fa.Device) -> None:
    """The cache is written in place, and yet no tensor that anybody holds changes."""
    cache = KVCache.empty(KVSpec(1, 1, 1, 4), device)
    one = fa.ones((1, 1, 1), device=device)
    kv_append(cache, one, one, SequenceMeta.packed([1]))
    view, copy = cache.k[:2], kv_gather(cache, SequenceMeta.packed([1]))[0]
    kv_append(cache, one * 5, one, SequenceMeta.packed([1]))
    assert view[:, 0, 0].tolist() == [1, 0]
    assert copy[:, 0, 0].tolist() == [1]
    assert cache.k[:, 0, 0].tolist() == [5, 0, 0, 0]


def test_appending_does_not_copy_the_cache() -> None:
    cache = KVCache.empty(KVSpec(1, 64, 1, 4096))
    address = cache.k.numpy().__array_interface__["data"][0]
    step = SequenceMeta((0, 1), kv_lens=(7,))
    one = fa.ones((1, 1, 64))
    kv_append(cache, one, one, step)  # what numpy() gave out is shared: this write moves the cache
    address = cache.k._data.__array_interface__["data"][0]
    for n in range(8, 12):
        kv_append(cache, one, one, replace(step, kv_lens=(n,)))
        assert cache.k._data.__array_interface__["data"][0] == address


@given(data=st.data())
def test_blocks_are_copied_as_they_were(device: fa.Device, data: st.DataObject) -> None:
    blocks, size = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 3))
    dtype = data.draw(st.sampled_from(["f32", "i8", "fp8_e4m3"]))
    held, codes = kept_as(dtype)
    cache = KVCache.empty(KVSpec(1, 2, blocks, size, "paged", held, codes=codes), device)
    x = fa.asarray(noise(0, blocks * size, 1, 2), dtype="f32", device=device)
    kv_append(cache, x, -x, SequenceMeta((0, blocks * size), block_tables=(tuple(range(blocks)),)))
    before = kv_gather(cache, SequenceMeta((0, 0), kv_lens=(blocks * size,), block_tables=(tuple(range(blocks)),)))
    dst = data.draw(st.lists(st.integers(0, blocks - 1), unique=True))
    src = [data.draw(st.integers(0, blocks - 1)) for _ in dst]
    kv_copy_blocks(cache, src, dst)
    now = {**{b: b for b in range(blocks)}, **dict(zip(dst, src, strict=True))}
    after = kv_gather(cache, SequenceMeta((0, 0), kv_lens=(blocks * size,), block_tables=(tuple(range(blocks)),)))
    for a, b in zip(before, after, strict=True):
        expected = a.numpy().reshape(blocks, size, 1, 2)[[now[i] for i in range(blocks)]]
        np.testing.assert_array_equal(b.numpy().reshape(blocks, size, 1, 2), expected)


# A machine: sequences come, grow, fork and go, beside plain lists.


class Serving(RuleBasedStateMachine):
    """A paged cache with shared prefixes: blocks are copied before a shared one is written."""

    @initialize(size=st.integers(1, 3), dtype=st.sampled_from(["f32", "i8", "fp8_e4m3"]))
    def start(self, size: int, dtype: str) -> None:
        held, codes = kept_as(dtype)
        self.cache = KVCache.empty(KVSpec(2, 3, 12, size, "paged", held, codes=codes))
        self.size = size
        self.free = list(range(12))
        self.tables: dict[int, list[int]] = {}
        self.rows: dict[int, list[Array]] = {}
        self.count = 0

    def users(self, block: int) -> int:
        return sum(block in table for table in self.tables.values())

    @rule()
    def begin(self) -> None:
        self.tables[self.count] = []
        self.rows[self.count] = []
        self.count += 1

    @precondition(lambda self: self.tables)
    @rule(data=st.data(), tokens=st.integers(1, 4))
    def grow(self, data: st.DataObject, tokens: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.tables)))
        table, rows = self.tables[name], self.rows[name]
        needed = -(-(len(rows) + tokens) // self.size) - len(table)
        shared = bool(table) and len(rows) % self.size != 0 and self.users(table[-1]) > 1
        if needed + shared > len(self.free):
            return
        if shared:
            fresh = self.free.pop()
            kv_copy_blocks(self.cache, [table[-1]], [fresh])
            table[-1] = fresh
        table += [self.free.pop() for _ in range(needed)]
        x = noise(self.count * 100 + len(rows), tokens, 2, 3).astype(np.float32)
        meta = SequenceMeta((0, tokens), kv_lens=(len(rows) + tokens,), block_tables=(tuple(table),))
        kv_append(self.cache, fa.asarray(x), fa.asarray(-x), meta)
        rows += list(x)

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.tables)))
        self.tables[self.count] = list(self.tables[name])
        self.rows[self.count] = list(self.rows[name])
        self.count += 1

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.tables)))
        blocks = self.tables.pop(name)
        del self.rows[name]
        self.free += [b for b in blocks if not self.users(b)]

    @invariant()
    def every_sequence_is_whole(self) -> None:
        for name, table in getattr(self, "tables", {}).items():
            rows = self.rows[name]
            meta = SequenceMeta((0, 0), kv_lens=(len(rows),), block_tables=(tuple(table),))
            k, v = kv_gather(self.cache, meta)
            expected = np.asarray(rows, np.float64).reshape(len(rows), 2, 3)
            if self.cache.spec.quantised:
                expected = held_by(self.cache.spec, expected)
            np.testing.assert_array_equal(wide(k.numpy()), expected.astype(np.float32))
            np.testing.assert_array_equal(wide(v.numpy()), -expected.astype(np.float32))


TestServing = Serving.TestCase
TestServing.settings = settings(max_examples=25, stateful_step_count=15, deadline=None)


# What is refused, with the cache as it was.


SPEC = KVSpec(2, 4, 3, 4, "paged")
GOOD: dict[str, Any] = {"cu_seqlens": (0, 2), "kv_lens": (6,), "block_tables": ((2, 0),)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block_tables": None}, "the cache is paged, so meta needs block_tables"),
        ({"block_tables": ((2, 3),)}, "block table of sequence 0 runs from 2 to 3, but the cache has 3 blocks"),
        ({"block_tables": ((-1, 0),)}, "runs from -1 to 0"),
        ({"block_tables": ((2,),)}, "sequence 0 reaches position 5, but its 1 blocks of 4 end at 3"),
        ({"kv_lens": (9,)}, "reaches position 8, but its 2 blocks of 4 end at 7"),
        ({"kv_lens": (1,)}, "sequence 0 has fewer keys than tokens"),
        ({"slots": (11, 12)}, "slots run from 11 to 12, but the cache has 12"),
        ({"slots": (3, 3)}, "two tokens would be written to slot 3"),
        ({"positions": (4, 4)}, "two tokens would be written to slot"),
    ],
)
def test_bad_places_leave_the_cache_as_it_was(device: fa.Device, change: dict[str, Any], message: str) -> None:
    cache = KVCache.empty(SPEC, device)
    x = fa.ones((2, 2, 4), device=device)
    with pytest.raises(ValueError, match=message):
        kv_append(cache, x, x, SequenceMeta(**{**GOOD, **change}))
    assert fa.all(cache.k == 0)
    assert fa.all(cache.v == 0)


def test_bad_tensors_leave_the_cache_as_it_was(device: fa.Device) -> None:
    cache, meta = KVCache.empty(SPEC, device), SequenceMeta(**GOOD)
    x = fa.ones((2, 2, 4), device=device)
    for k, v, error, message in (
        (x[:1], x, ValueError, r"k must be \[2,2,4\]"),
        (x, x[:, :1], ValueError, r"v must be \[2,2,4\]"),
        (x, x.astype("f16"), TypeError, "v is float16"),
        (x.astype("i32"), x, TypeError, "k must be real floating-point"),
        (x, None, TypeError, "v must be a Tensor"),
    ):
        with pytest.raises(error, match=message):
            kv_append(cache, k, v, meta)  # type: ignore[arg-type] # what is tested
    assert fa.all(cache.k == 0)


def test_lengths_beyond_a_contiguous_cache() -> None:
    cache = KVCache.empty(KVSpec(1, 1, 2, 4))
    x = fa.ones((5, 1, 1))
    with pytest.raises(ValueError, match="reaches position 4, but its 1 blocks of 4 end at 3"):
        kv_append(cache, x, x, SequenceMeta.packed([5]))
    with pytest.raises(ValueError, match="meta has 3 sequences, but the cache has room for 2"):
        kv_append(cache, x[:3], x[:3], SequenceMeta.packed([1, 1, 1]))
    with pytest.raises(ValueError, match="each sequence has one block, but sequence 0 has 2"):
        kv_append(cache, x[:1], x[:1], SequenceMeta((0, 1), block_tables=((0, 1),)))
    with pytest.raises(ValueError, match="reaches position 8"):
        kv_gather(cache, SequenceMeta((0, 0), kv_lens=(9,)))
    ring = KVCache.empty(KVSpec(1, 1, 1, 4, "ring"))
    with pytest.raises(ValueError, match=r"two tokens would be written to slot 0.*a ring of 4"):
        kv_append(ring, x, x, SequenceMeta.packed([5]))
    with pytest.raises(ValueError, match="has 5 keys, but the ring keeps the last 4"):
        kv_gather(ring, SequenceMeta((0, 0), kv_lens=(5,)))


def test_bad_copies() -> None:
    cache = KVCache.empty(SPEC)
    for src, dst, message in (
        ([0], [], "must have one length, got 1 and 0"),
        ([3], [0], "src has 3, but blocks are 0 to 2"),
        ([0], [-1], "dst has -1"),
        ([0, 1], [2, 2], "dst names a block twice"),
    ):
        with pytest.raises(ValueError, match=message):
            kv_copy_blocks(cache, src, dst)


def test_bad_specs() -> None:
    with pytest.raises(ValueError, match="block_size must be an integer at least 1"):
        KVSpec(1, 1, 1, 0)
    with pytest.raises(ValueError, match="layout must be one of contiguous, ring, paged, got 'tree'"):
        KVSpec(1, 1, 1, 1, "tree")  # type: ignore[arg-type] # what is tested
    with pytest.raises(TypeError, match="dtype must be real floating-point, int8 or 'fp8_e4m3', got int16"):
        KVSpec(1, 1, 1, 1, dtype=fa.int16)
    spec = KVSpec(1, 2, 1, 3, dtype=fa.int8)
    good = KVCache.empty(spec)
    with pytest.raises(ValueError, match=r"k_scale must be float32\[3,1\], got None"):
        KVCache(spec, good.k, good.v)
    with pytest.raises(ValueError, match=r"v must be int8\[3,1,2\], got float32"):
        KVCache(spec, good.k, fa.zeros((3, 1, 2)), good.k_scale, good.v_scale)
    with pytest.raises(ValueError, match="k_scale belongs to int8 and fp8_e4m3 caches"):
        KVCache(KVSpec(1, 2, 1, 3), fa.zeros((3, 1, 2)), fa.zeros((3, 1, 2)), fa.zeros((3, 1)))
    with pytest.raises(TypeError, match="dtype must be real floating-point, got int8"):
        kv_gather(good, SequenceMeta.packed([1]), dtype="i8")


def test_tables_of_the_tests_are_shuffled() -> None:
    tables = shuffled_tables([9, 9], 2, 20, 0)
    assert sorted(b for t in tables for b in t) != [b for t in tables for b in t]
    assert len({b for t in tables for b in t}) == 10
