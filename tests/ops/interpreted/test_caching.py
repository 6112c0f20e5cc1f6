"""Kernels of caches write and read what the references do, to the bit, and nothing beside it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import ferrum_array as fa
from ferrum_ops import KVCache, KVSpec, SequenceMeta, kv_append, kv_copy_blocks, kv_gather, use_fast_paths
from ferrum_ops.kernels.cuda import caching, plans
from ferrum_ops.kv_cache import kept_as
from ferrum_ops.kv_slots import cache_slots
from tests.ops.caches import Case, cases, filled, poisoned
from tests.ops.oracle import Array, make, noise

HELD = ("f32", "f16", "int8", "fp8_e4m3")


def tensors(cache: KVCache) -> list[fa.Tensor]:
    return [x for x in (cache.k, cache.v, cache.k_scale, cache.v_scale) if x is not None]


def same(found: KVCache, expected: KVCache) -> None:
    """In every bit, but for which NaN it is."""
    for a, b in zip(tensors(found), tensors(expected), strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


def new_tokens(
    case: Case, cpu: fa.Device, dtype: fa.Dtype, strided: bool, seed: int = 3
) -> tuple[fa.Tensor, fa.Tensor]:
    total = sum(case.queries)
    spec = case.spec
    k, _ = make(noise(seed, total, spec.kv_heads, spec.head_dim), dtype, cpu, strided=strided)
    if strided:  # heads of a wider tensor, as those of a fused projection are
        v, _ = make(noise(seed + 1, total, spec.kv_heads + 2, spec.value_dim), dtype, cpu)
        return k, v[:, 1:-1]
    return k, make(noise(seed + 1, total, spec.kv_heads, spec.value_dim), dtype, cpu)[0]


@settings(max_examples=40)
@given(data=st.data())
def test_append_is_the_reference(cpu: fa.Device, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from([fa.float32, fa.float16]))
    case = data.draw(cases(data.draw(st.sampled_from(HELD))))
    k, v = new_tokens(case, cpu, dtype, data.draw(st.booleans()))
    found, expected = poisoned(case.spec, cpu), poisoned(case.spec, cpu)
    slots = cache_slots("kv_append", case.spec, case.meta)
    caching.kv_append(found, k, v, slots, case.meta)
    with use_fast_paths(False):
        kv_append(expected, k, v, case.meta)
    same(found, expected)


@pytest.mark.parametrize("held", ["int8", "fp8_e4m3"])
@example(values=[float(np.finfo(np.float32).max), -1.0])
@example(values=[448.0, 0.0, -0.0, -1e-9])
@example(values=[127.0, 0.5, 1.5, -2.5, -0.5])
@example(values=[1e-45, -3e-45, 0.0])
@example(values=[fa.nan, 1.0, -2.0])
@example(values=[1.0, fa.inf])
@given(values=st.lists(st.floats(width=32), min_size=1, max_size=7))
def test_any_numbers_become_the_codes_of_the_reference(held: str, cpu: fa.Device, values: list[float]) -> None:
    dtype, codes = kept_as(held)
    spec = KVSpec(2, len(values), 1, 3, dtype=dtype, codes=codes)
    x = fa.asarray([[values, values[::-1]]], dtype="f32", device=cpu)
    meta = SequenceMeta((0, 1), kv_lens=(2,))
    found, expected = poisoned(spec, cpu), poisoned(spec, cpu)
    caching.kv_append(found, x, x, (1,), meta)
    with use_fast_paths(False):
        kv_append(expected, x, x, meta)
    same(found, expected)


@settings(max_examples=40)
@given(data=st.data())
def test_gather_is_the_reference(cpu: fa.Device, data: st.DataObject) -> None:
    case = data.draw(cases(data.draw(st.sampled_from(HELD))))
    cache, _, _ = filled(case, cpu, fa.float32, data.draw(st.integers(0, 99)))
    dtype = data.draw(st.sampled_from([fa.float32, fa.float16]))
    found = caching.kv_gather(cache, cache_slots("test", case.spec, case.prompts), dtype)
    with use_fast_paths(False):
        expected = kv_gather(cache, case.prompts, dtype=dtype)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype is dtype
        np.testing.assert_array_equal(a.numpy(), b.numpy())


@given(data=st.data())
def test_blocks_are_copied_as_they_were(cpu: fa.Device, data: st.DataObject) -> None:
    blocks = data.draw(st.integers(1, 6))
    held, codes = kept_as(data.draw(st.sampled_from(HELD)))
    spec = KVSpec(2, 3, blocks, data.draw(st.integers(1, 3)), "paged", held, 5, codes)
    case = Case(spec, (spec.slots,), (0,), (tuple(range(blocks)),))
    found, _, _ = filled(case, cpu, fa.float32, 1)
    expected, _, _ = filled(case, cpu, fa.float32, 1)
    dst = data.draw(st.lists(st.integers(0, blocks - 1), unique=True))
    src = [data.draw(st.integers(0, blocks - 1)) for _ in dst]
    with mock.patch.object(caching, "_PIECE", 4):
        caching.kv_copy_blocks(found, tuple(src), tuple(dst))
    with use_fast_paths(False):
        kv_copy_blocks(expected, src, dst)
    same(found, expected)


def test_what_others_hold_does_not_change(cpu: fa.Device) -> None:
    cache = KVCache.empty(KVSpec(1, 1, 2, 2), cpu)
    one = fa.ones((1, 1, 1), device=cpu)
    meta = SequenceMeta.packed([1])
    caching.kv_append(cache, one, one, (0,), meta)
    views = cache.k[:2], cache.v[:2]
    caching.kv_append(cache, cache.k[:1] * 5, one, (0,), meta)
    assert cache.k[:, 0, 0].tolist() == [5, 0, 0, 0]
    held = cache.k[:2]
    caching.kv_copy_blocks(cache, (0,), (1,))
    assert cache.k[:, 0, 0].tolist() == [5, 0, 5, 0]
    caching.kv_append(cache, cache.k[1:2], one, (0,), meta)  # from the memory that is written
    assert cache.k[:, 0, 0].tolist() == [0, 0, 5, 0]
    assert [x[:, 0, 0].tolist() for x in (*views, held)] == [[1, 0], [1, 0], [5, 0]]


def test_no_row_beyond_is_needed(cpu: fa.Device) -> None:
    cache = KVCache.empty(KVSpec(1, 2, 1, 2), cpu)
    k, v = caching.kv_gather(cache, (), fa.float32)
    assert k.shape == v.shape == (0, 1, 2)
    caching.kv_copy_blocks(cache, (0,), (0,))
    nothing = fa.zeros((0, 1, 2), device=cpu)
    caching.kv_append(cache, nothing, nothing, (), SequenceMeta((0, 0)))
    assert fa.all(cache.k == 0)


# Slots that are wrong in the device's memory.


def guarded(spec: KVSpec, cpu: fa.Device) -> tuple[KVCache, Array]:
    """A cache of ones that lies between zeros, and all of that memory."""
    memory = np.zeros((2, 3, spec.slots, spec.kv_heads, spec.head_dim), np.float32)
    memory[:, 1] = 1
    k, v = (fa.asarray(memory[n, 1], device=cpu, copy=False) for n in range(2))
    return KVCache(spec, k, v), memory


def planned(spec: KVSpec, meta: SequenceMeta, cpu: fa.Device, **change: Any) -> None:
    plans.set_plan(spec, meta, replace(plans.plan_of(spec, meta, cpu), **change))


def test_wrong_slots_touch_nothing(cpu: fa.Device) -> None:
    spec = KVSpec(1, 4, 2, 3, "paged")
    cache, memory = guarded(spec, cpu)
    x = fa.full((4, 1, 4), 7.0, device=cpu)
    meta = SequenceMeta((0, 1, 4), kv_lens=(1, 3), block_tables=((1,), (0,)))
    planned(spec, meta, cpu, slots=fa.asarray([-1, 5, 6, 1 << 40], dtype="i64", device=cpu))
    with mock.patch.object(caching, "owned", lambda memory: memory):
        caching.kv_append(cache, x, x, (), meta)
    written = np.argwhere(memory[0, :, :, 0, 0] == 7)
    assert written.tolist() == [[1, 5]]
    assert np.all(memory[:, 0] == 0)
    assert np.all(memory[:, 2] == 0)
    k, _ = caching.kv_gather(cache, (5, -1, 6), fa.float32)
    assert k[0, 0, 0] == 7


@pytest.mark.parametrize("slot", [-1, 6])
def test_wrong_slots_are_named(cpu: fa.Device, slot: int) -> None:
    spec = KVSpec(1, 4, 2, 3, "paged")
    cache = KVCache.empty(spec, cpu)
    x = fa.ones((4, 1, 4), device=cpu)
    meta = SequenceMeta((0, 1, 4), kv_lens=(1, 3), block_tables=((1,), (0,)))
    with mock.patch.object(plans, "CHECK", True):
        caching.kv_append(cache, x, x, (), meta)
        planned(spec, meta, cpu, slots=fa.asarray([3, 0, slot, 9], dtype="i64", device=cpu))
        before = cache.k.numpy().copy()
        message = f"token 2, of sequence 1, has slot {slot}, in block {slot // 3}, but the cache has 2 blocks of 3"
        with pytest.raises(ValueError, match=message):
            caching.kv_append(cache, x * 2, x, (), meta)
    np.testing.assert_array_equal(cache.k.numpy(), before)


def test_small_numbers_of_a_row_are_rounded_as_the_reference_rounds_them(cpu: fa.Device) -> None:
    """Beside 448 those below 2**-6 lie in even steps, and those below half a step are 0; ties go to even."""
    steps = [n / 4 * 2.0**-9 for n in range(40)]
    x = fa.asarray([[[448.0, *steps, *(-n for n in steps), *(n * 1.0625 for n in steps)]]], device=cpu)
    size = x.shape[2]
    spec = KVSpec(1, size, 1, 1, dtype="fp8_e4m3")  # type: ignore[arg-type] # names of dtypes are taken too
    found, expected = (KVCache.empty(spec, cpu) for _ in range(2))
    meta = SequenceMeta.packed([1])
    caching.kv_append(found, x, x, (0,), meta)
    with use_fast_paths(False):
        kv_append(expected, x, x, meta)
    assert fa.all(found.k == expected.k)
    assert len(set(found.k.reshape(-1).tolist())) > 20
