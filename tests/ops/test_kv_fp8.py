"""Keys and values as floats of 8 bits: the codes are those of others, and whatever a cache does it does with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
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
    mla_attention,
    paged_attention,
    qk_norm_rope,
    rope_append,
    rope_table,
)
from ferrum_ops.kv_cache import kept_as, read
from ferrum_ops.quant.minifloat import E4M3
from tests.array.oracle import wide
from tests.ops.caches import cases, e4m3, filled, int8
from tests.ops.oracle import check, floats, make, noise
from tests.ops.test_paged_attention import exact, options, queries


def kept(kv_heads: int, head_dim: int, blocks: int, block_size: int, **more: Any) -> KVSpec:
    dtype, codes = kept_as("fp8_e4m3")
    return KVSpec(kv_heads, head_dim, blocks, block_size, dtype=dtype, codes=codes, **more)


def test_all_codes_are_those_of_others(device: fa.Device) -> None:
    codes = np.arange(256, dtype=np.uint8)
    memory = fa.asarray(codes.reshape(256, 1, 1), device=device)
    ones = fa.ones((256, 1), device=device)
    found = read(memory, ones, fa.arange(256, device=device), fa.float32).numpy().reshape(-1)
    np.testing.assert_array_equal(found, codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32))
    np.testing.assert_array_equal(found, torch.from_numpy(codes).view(torch.float8_e4m3fn).float().numpy())
    assert np.flatnonzero(np.isnan(found)).tolist() == [127, 255]
    whole = E4M3.encode(fa.asarray(found, device=device)).numpy()
    np.testing.assert_array_equal(whole & 127, codes & 127)  # the sign of NaN is nobody's


def test_all_middles_round_to_even(device: fa.Device) -> None:
    """Halfway between neighbours, and the float32 on either side."""
    numbers = np.arange(127, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    middles = (numbers[1:] + numbers[:-1]) / 2
    x = np.concatenate([middles, np.nextafter(middles, np.float32(0)), np.nextafter(middles, np.float32(999))])
    x = np.concatenate([x, -x])
    found = E4M3.encode(fa.asarray(x, device=device)).numpy()
    np.testing.assert_array_equal(found, x.astype(ml_dtypes.float8_e4m3fn).view(np.uint8))
    peer = torch.from_numpy(x).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    np.testing.assert_array_equal(found, peer)


@settings(max_examples=60)
@given(x=st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=9))
def test_what_is_beyond_the_greatest_becomes_the_greatest(device: fa.Device, x: list[float]) -> None:
    given = np.asarray(x, np.float32)
    found = E4M3.encode(fa.asarray(given, device=device)).numpy()
    expected = given.clip(-448, 448).astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    tiny = np.abs(given) < 2.0**-126  # devices may take what is below float32's normal numbers for 0, without a sign
    np.testing.assert_array_equal(np.where(tiny, found & 127, found), np.where(tiny, expected & 127, expected))


@example(values=[float(np.finfo(np.float32).max), -1.0])
@example(values=[448.0, 2.0**-9, 2.0**-10, 1.5 * 2.0**-9])
@given(values=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=6))
def test_numbers_are_within_a_sixteenth(device: fa.Device, values: list[float]) -> None:
    """Or within half of the least subnormal step, 448 * 2**9 * 2 of which make the greatest magnitude."""
    cache = KVCache.empty(kept(1, len(values), 1, 1), device)
    x = fa.asarray([[values]], dtype="f32", device=device)
    kv_append(cache, x, x, SequenceMeta.packed([1]))
    k, _ = kv_gather(cache, SequenceMeta.packed([1]))
    given = np.asarray(values, np.float64)
    room = np.maximum(np.abs(given) / 16, np.max(np.abs(given)) / (448 * 2**10))
    assert np.all(np.abs(wide(k.numpy())[0, 0] - given) <= room * 1.000001 + 1e-42)


@pytest.mark.parametrize("bad", [fa.nan, fa.inf, -fa.inf])
def test_rows_that_are_no_numbers_are_nan(device: fa.Device, bad: float) -> None:
    cache = KVCache.empty(kept(2, 2, 1, 1), device)
    x = fa.asarray([[[bad, 1.0], [2.0, 0.0]]], device=device)
    kv_append(cache, x, x, SequenceMeta.packed([1]))
    k, _ = kv_gather(cache, SequenceMeta.packed([1]))
    assert fa.all(fa.isnan(k[0, 0]))
    np.testing.assert_allclose(k[0, 1].numpy(), [2.0, 0.0], rtol=1e-6)


def test_why_there_are_scales() -> None:
    """Rows of any size lose as much as others, and few great numbers cost the others less than in int8."""
    plain = noise(0, 64, 128)
    great = plain.copy()
    great[:, :2] *= 60.0

    def lost(kept_of: Any, x: Any, part: slice = slice(None)) -> float:
        x = x.astype(np.float32).astype(np.float64)
        return float(np.linalg.norm((kept_of(x) - x)[:, part]) / np.linalg.norm(x[:, part]))

    def bare(x: Any) -> Any:
        return x.clip(-448, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float64)

    for size in (1e-6, 1e-3, 1.0, 1e3):
        assert 0.02 < lost(e4m3, size * plain) < 0.03
    assert lost(bare, 1e-3 * plain) > 0.1 < lost(bare, 1e3 * plain)
    assert lost(int8, plain) < 0.01 < lost(e4m3, plain)
    assert lost(int8, great, slice(2, None)) > 4 * lost(e4m3, great, slice(2, None))


@settings(max_examples=30)
@given(data=st.data())
def test_attention_as_the_oracle_says(device: fa.Device, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(floats(device)))
    case = data.draw(cases("fp8_e4m3"))
    group = data.draw(st.sampled_from([1, 3]))
    chosen: dict[str, Any] = data.draw(options)
    causal = chosen["window"] is not None or data.draw(st.booleans())
    cache, k, v = filled(case, device, dtype, data.draw(st.integers(0, 99)))
    q, exact_q = queries(case, dtype, device, group, 7)
    out, lse = paged_attention(q, cache, case.meta, causal=causal, return_lse=True, **chosen)
    expected, sums = exact(case, exact_q, k, v, causal=causal, **chosen)
    check(out, expected, dtype)
    check(lse, sums, fa.float64 if dtype is fa.float64 else fa.float32, 1e-6 if dtype is not fa.float64 else 1e-14)


def test_queries_and_keys_are_turned_into_it(device: fa.Device) -> None:
    q, k, v = (make(noise(i, 3, heads, 8), fa.float32, device)[0] for i, heads in enumerate((4, 2, 2)))
    cos, sin = rope_table(range(3), 8, 100.0, device=device)
    fused, composed = (KVCache.empty(kept(2, 8, 1, 4), device) for _ in range(2))
    got = rope_append(fused, q, k, v, cos, sin, SequenceMeta.packed([3]), eps=1e-5)
    want, turned = qk_norm_rope(q, k, None, None, cos, sin, eps=1e-5)
    kv_append(composed, turned, v, SequenceMeta.packed([3]))
    np.testing.assert_allclose(got.numpy(), want.numpy(), rtol=1e-5, atol=1e-6)
    for a, b in zip(kv_gather(fused, SequenceMeta.packed([3])), kv_gather(composed, SequenceMeta.packed([3])),
                    strict=True):  # fmt: skip
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=0.13, atol=1e-3)
    assert float(fa.max(fa.abs(fused.k.astype("f32")))) > 0


def test_latents_are_kept_in_it(device: fa.Device) -> None:
    q, w, latent, turned = (
        make(noise(n, *shape), fa.float32, device)[0] for n, shape in enumerate(((5, 3, 9), (3, 11, 8), (5, 8), (5, 4)))
    )
    cache = KVCache.empty(kept(1, 8, 1, 8, value_dim=4), device)
    kv_append(cache, latent[:, None], turned[:, None], SequenceMeta.packed([5]))
    found = mla_attention(q, w, cache=cache, meta=SequenceMeta.packed([5]))
    want = mla_attention(q, w, *(fa.asarray(e4m3(x.numpy()), dtype="f32", device=device) for x in (latent, turned)))
    assert isinstance(want, fa.Tensor)
    assert isinstance(found, fa.Tensor)
    check(found, want.numpy().astype(np.float64), fa.float32, 2e-6)


def test_no_kernel_takes_codes_for_numbers(device: fa.Device) -> None:
    """A kernel that knows int8 alone would give wrong numbers: references are what runs, but for kernels of CUDA."""
    cache = KVCache.empty(kept(1, 4, 2, 2, layout="paged"), device)
    x = fa.ones((1, 1, 4), device=device)
    meta = SequenceMeta((0, 1), block_tables=((0,),))
    cos, sin = rope_table([0], 4, 100.0, device=device)
    calls: tuple[tuple[Callable[..., Any], tuple[Any, ...]], ...] = (
        (kv_append, (cache, x, x, meta)),
        (rope_append, (cache, x, x, x, cos, sin, meta)),
        (paged_attention, (x, cache, meta)),
        (kv_gather, (cache, meta)),
        (kv_copy_blocks, (cache, [0], [1])),
    )
    for op, arguments in calls:
        runs = explain(op, *arguments).runs
        assert runs.startswith("cuda.") if device.kind == "cuda" else runs == "reference"


def test_it_is_said_what_is_kept() -> None:
    spec = kept(8, 128, 10, 16)
    assert spec == KVSpec(8, 128, 10, 16, dtype="fp8_e4m3")  # type: ignore[arg-type] # names of dtypes are taken too
    assert replace(spec, blocks=3).codes == spec.codes == spec.kept == "fp8_e4m3"
    assert (spec.dtype, spec.quantised) == (fa.uint8, True)
    assert spec.nbytes == KVSpec(8, 128, 10, 16, dtype=fa.int8).nbytes
    cache = KVCache.empty(spec)
    assert repr(cache) == "KVCache(contiguous, fp8_e4m3, 10 blocks of 16 slots, 8 heads of 128+128)"
    kv_copy_blocks(cache, [0], [1])
    assert kv_gather(cache, SequenceMeta.packed([2]))[0].dtype is fa.float32


def test_what_is_refused() -> None:
    with pytest.raises(TypeError, match="dtype must be real floating-point, int8 or 'fp8_e4m3', got uint8"):
        KVSpec(1, 1, 1, 1, dtype=fa.uint8)
    with pytest.raises(TypeError, match="codes must be 'fp8_e4m3', of uint8, got 'fp8_e4m3' of int8"):
        KVSpec(1, 1, 1, 1, dtype=fa.int8, codes="fp8_e4m3")
    with pytest.raises(TypeError, match="codes must be 'fp8_e4m3', of uint8, got 'fp8_e5m2' of uint8"):
        KVSpec(1, 1, 1, 1, dtype=fa.uint8, codes="fp8_e5m2")  # type: ignore[arg-type] # what is tested
    spec = kept(1, 2, 1, 3)
    good = KVCache.empty(spec)
    with pytest.raises(ValueError, match=r"k_scale must be float32\[3,1\], got None"):
        KVCache(spec, good.k, good.v)
