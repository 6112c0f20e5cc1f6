"""The kernel that turns heads, after a norm or not, into a tensor or into a cache."""

from __future__ import annotations

import itertools
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ferrum_array as fa
from ferrum_ops import ActivationKind, KVCache, KVSpec, SequenceMeta, rope_table
from ferrum_ops.kernels.cuda import ropes
from ferrum_ops.kv_cache import kept_as, quantised
from ferrum_ops.registry import _rows, load_kernels
from tests.array.oracle import wide
from tests.ops.interpreted.drawn import HALVES, LIES, Lie, lying, poison
from tests.ops.interpreted.hopper import compiled
from tests.ops.oracle import Array, check
from tests.ops.test_norm import exact_rms
from tests.ops.test_rope import exact_rope

BEFORE = st.sampled_from([(0,), (1,), (3,), (2, 2), (1, 3), (2, 0), (2, 1, 3)])
DIMS = st.one_of(
    st.tuples(st.integers(1, 9), st.integers(0, 5)), st.sampled_from([(16, 0), (32, 64), (48, 0), (64, 1), (8, 24)])
)


def tables(
    seed: int, before: tuple[int, ...], half: int, dtype: fa.Dtype, lie: Lie, broadcast: str
) -> tuple[fa.Tensor, fa.Tensor, Array, Array]:
    """Cosines and sines for tokens of these axes, which they have, or have not all."""
    lead = {"none": before, "shared": before[-1:], "ones": (*(1 for _ in before[1:]), before[-1])}[broadcast]
    if broadcast == "ones" and len(before) > 1:
        lead = (before[0], *(1 for _ in before[1:-1]), before[-1])
    cos, cos64 = lying(seed, (*lead, half), dtype, lie)
    sin, sin64 = lying(seed + 1, (*lead, half), dtype, "whole")
    return cos, sin, np.broadcast_to(cos64, (*before, half)), np.broadcast_to(sin64, (*before, half))


@settings(max_examples=80)
@given(
    seed=st.integers(0, 2**32 - 1),
    before=BEFORE,
    heads=st.integers(0, 5),
    dims=DIMS,
    pairs=st.booleans(),
    dtypes=st.tuples(st.sampled_from(HALVES), st.sampled_from(HALVES)),
    lies=st.tuples(st.sampled_from(LIES), st.sampled_from(LIES)),
    broadcast=st.sampled_from(["none", "shared", "ones"]),
)
def test_turns_as_the_oracle_says(
    seed: int,
    before: tuple[int, ...],
    heads: int,
    dims: tuple[int, int],
    pairs: bool,
    dtypes: tuple[fa.Dtype, fa.Dtype],
    lies: tuple[Lie, Lie],
    broadcast: str,
) -> None:
    half, beyond = dims
    x, x64 = lying(seed, (*before, heads, 2 * half + beyond), dtypes[0], lies[0])
    cos, sin, cos64, sin64 = tables(seed + 1, before, half, dtypes[1], lies[1], broadcast)
    with poison(ropes):
        got = ropes.rope(x, cos, sin, 2 * half, pairs)
    check(got, exact_rope(x64, cos64, sin64, 2 * half, pairs), dtypes[0])
    assert fa.all(got[..., 2 * half :] == x[..., 2 * half :])


@settings(max_examples=80)
@given(
    seed=st.integers(0, 2**32 - 1),
    before=BEFORE,
    heads=st.tuples(st.integers(0, 5), st.integers(0, 5)),
    dims=DIMS,
    pairs=st.booleans(),
    weighted=st.sets(st.sampled_from(["q", "k"])),
    offset=st.sampled_from([0.0, 1.0]),
    dtypes=st.tuples(*(st.sampled_from(HALVES) for _ in range(4))),
    lies=st.tuples(*(st.sampled_from(LIES) for _ in range(4))),
)
def test_norms_and_turns_as_the_oracle_says(
    seed: int,
    before: tuple[int, ...],
    heads: tuple[int, int],
    dims: tuple[int, int],
    pairs: bool,
    weighted: set[str],
    offset: float,
    dtypes: tuple[fa.Dtype, ...],
    lies: tuple[Lie, ...],
) -> None:
    """Queries and keys with as many heads as each has, in one launch."""
    half, beyond = dims
    dim = 2 * half + beyond
    cos, sin, cos64, sin64 = tables(seed, before, half, dtypes[1], "whole", "none")
    offset = offset if len(weighted) == 2 else 0.0
    given_to = {}
    for i, name in enumerate("qk"):
        x = lying(seed + 2 + i, (*before, heads[i], dim), dtypes[0], lies[i])
        w = lying(seed + 4 + i, (dim,), dtypes[2 + i], lies[2 + i]) if name in weighted else (None, None)
        given_to[name] = x, w
    (q, q64), (wq, wq64) = given_to["q"]
    (k, k64), (wk, wk64) = given_to["k"]
    with poison(ropes):
        got = ropes.qk_norm_rope(q, k, wq, wk, cos, sin, 1e-6, offset, 2 * half, pairs)
    for one, x64, w64 in zip(got, (q64, k64), (wq64, wk64), strict=True):
        check(one, exact_rope(exact_rms(x64, w64, 1e-6, offset, None), cos64, sin64, 2 * half, pairs), dtypes[0])


def blank(spec: KVSpec) -> KVCache:
    """A cache of numbers that no test writes."""
    cache = KVCache.empty(spec)
    for memory in (cache.k, cache.v, cache.k_scale, cache.v_scale):
        if memory is not None:
            memory[...] = 77
    return cache


@settings(max_examples=80)
@given(
    seed=st.integers(0, 2**32 - 1),
    tokens=st.integers(0, 6),
    groups=st.integers(1, 4),
    kv_heads=st.integers(1, 5),
    dims=DIMS,
    value=st.sampled_from([1, 3, 16, 33, 130]),
    pairs=st.booleans(),
    normed=st.booleans(),
    dtype=st.sampled_from(HALVES),
    held_in=st.sampled_from(["f32", "f16", "int8", "fp8_e4m3"]),
    lies=st.tuples(*(st.sampled_from(LIES) for _ in range(3))),
    data=st.data(),
)
def test_what_goes_into_caches(
    seed: int,
    tokens: int,
    groups: int,
    kv_heads: int,
    dims: tuple[int, int],
    value: int,
    pairs: bool,
    normed: bool,
    dtype: fa.Dtype,
    held_in: str,
    lies: tuple[Lie, ...],
    data: st.DataObject,
) -> None:
    """Rows at their slots and nowhere else; int8 and E4M3 rows as the reference rounds them, but for ties."""
    half, beyond = dims
    dim = 2 * half + beyond
    q, q64 = lying(seed, (tokens, groups * kv_heads, dim), dtype, lies[0])
    k, k64 = lying(seed + 1, (tokens, kv_heads, dim), dtype, lies[1])
    v, v64 = lying(seed + 2, (tokens, kv_heads, value), dtype, lies[2])
    cos, sin = rope_table(range(tokens), 2 * half, 100.0)
    slots = tuple(data.draw(st.permutations(range(8)))[:tokens])
    held, codes_of = kept_as(held_in)
    cache = blank(KVSpec(kv_heads, dim, 4, 2, "paged", held, value, codes_of))
    meta = SequenceMeta((0, tokens), block_tables=((0, 1, 2, 3),), slots=slots)
    norm = (1e-6, 0.0) if normed else None
    with poison(ropes):
        got = ropes.rope_append(cache, q, k, v, cos, sin, meta, None, None, norm, 2 * half, pairs)

    def turned(x: Array) -> Array:
        y = exact_rms(x, None, 1e-6, 0.0, None) if normed else x
        return exact_rope(y, wide(cos), wide(sin), 2 * half, pairs)

    check(got, turned(q64), dtype)
    others = [slot for slot in range(8) if slot not in slots]
    index = list(slots)
    for memory, scale, want in ((cache.k, cache.k_scale, turned(k64)), (cache.v, cache.v_scale, v64)):
        numbers = wide(memory)
        assert (numbers[others] == 77).all()
        if scale is None:
            assert np.allclose(numbers[index], want, rtol=0, atol=fa.finfo(held).eps * 4)
            continue
        assert (wide(scale)[others] == 77).all()
        codes, steps = quantised(fa.asarray(want.astype(np.float32)), codes_of)
        assert np.allclose(wide(scale)[index], wide(steps), rtol=1e-6)
        off = np.abs(in_order(numbers[index], codes_of) - in_order(wide(codes), codes_of))
        assert (off <= 1).all()
        assert (off > 0).sum() <= 2 + codes.size // 20


def in_order(codes: Array, codes_of: str) -> Array:
    """Codes as numbers in the order of what they stand for, one apart."""
    return np.where(codes > 127, 128 - codes, codes) if codes_of else codes


@pytest.mark.parametrize("held_in", ["int8", "fp8_e4m3"])
def test_values_in_8_bits_are_the_references_to_the_bit(held_in: str) -> None:
    held, codes_of = kept_as(held_in)
    v, _ = lying(3, (4, 3, 33), fa.float32, "whole")
    v[0, 0, 0], v[1, 1, 1], v[2, 2] = fa.nan, fa.inf, 0.0
    v[3, 0], v[3, 1], v[3, 2] = 3e38, 9e-43, -9e-43  # scales far below 1 are less than they ought to be
    cache = blank(KVSpec(3, 2, 1, 4, dtype=held, value_dim=33, codes=codes_of))
    k = fa.ones((4, 3, 2))
    with np.errstate(all="ignore"):
        turns = rope_table(range(4), 2, 100.0)
        ropes.rope_append(cache, k, k, v, *turns, SequenceMeta.packed([4]), None, None, None, 2, False)
        codes, scale = quantised(v, codes_of)
    assert cache.v_scale is not None
    assert fa.all(cache.v == codes)
    assert fa.all((cache.v_scale == scale) | fa.isnan(scale))
    assert fa.all(fa.isnan(cache.v_scale) == fa.isnan(scale))


def test_slots_that_a_cache_has_not_are_not_written() -> None:
    """Numbers that come from the device are not trusted: another row would be overwritten, or another tensor."""
    cache = blank(KVSpec(1, 2, 1, 4))
    x = fa.ones((3, 1, 2))
    written = ropes.Written(x, fa.asarray([-1, 4, 2]), cache.k, cache.v, None, None)
    ropes.turn(x, x, None, None, *rope_table([0, 0, 0], 2, 100.0), None, 2, False, written)
    for memory in (cache.k, cache.v):
        assert memory[:, 0, 0].tolist() == [77.0, 77.0, 1.0, 77.0]


@pytest.mark.parametrize("tokens", [1, 64, 300])
@pytest.mark.parametrize("fewest", [1, 8])
def test_a_program_has_powers_of_two(tokens: int, fewest: int) -> None:
    for length in (32, 128, 256, 1024, 4096):
        shape = ropes._shape(tokens, fewest, length)
        assert all(n & (n - 1) == 0 for n in shape)
        assert shape[0] < 2 * tokens
        assert shape[1] < 2 * fewest


def test_table_that_goes_round() -> None:
    x, x64 = lying(1, (3, 5, 1, 4), fa.float32, "whole")
    cos, sin = rope_table(range(5), 4, 100.0)
    found = ropes._tables(cos, sin, (3, 5))
    assert found[2:] == (5, 2)
    assert ropes._tables(cos[None], sin[None], (3, 5))[2] == 5
    assert ropes._tables(cos, sin, (5,))[2:] == (None, None)
    got = ropes.rope(x, cos, sin, 4, False)
    check(got, exact_rope(x64, wide(cos)[None], wide(sin)[None], 4, False), fa.float32)
    assert fa.all(got[1] == ropes.rope(x[1], cos, sin, 4, False))


def test_code_for_hopper_moves_16_bytes_at_a_time() -> None:
    found = compiled("""
        from ferrum_ops import KVCache, KVSpec, SequenceMeta, rope_table
        from ferrum_ops.kernels.cuda import ropes
        for tokens, dim in ((300, 128), (300, 80), (300, 64)):
            q, k = (fa.ones((tokens, heads, dim), dtype=fa.bfloat16) for heads in (32, 8))
            w, turns = fa.ones(dim, dtype=fa.bfloat16), rope_table(range(tokens), dim, 1e4)
            for pairs in (False, True):
                ropes.qk_norm_rope(q, k, w, w, *turns, 1e-6, 0.0, dim, pairs)
            for held in ("bf16", "int8", "fp8_e4m3"):
                cache, meta = KVCache.empty(KVSpec(8, dim, 1, tokens, dtype=held)), SequenceMeta.packed([tokens])
                ropes.rope_append(cache, q, k, k, *turns, meta, None, None, None, dim, False)
    """)
    assert len(found) == 15
    for made in found:
        assert made.shared <= 8192
        assert not made.local
        assert made.wide >= made.moves // 4, made  # the others are slots, scales, tables and weights


@pytest.mark.parametrize(
    ("op", "dtypes", "features"),
    [
        ("rms_norm", 1, ("offset", "residual", "gate", "mixed")),
        ("layer_norm", 1, ("residual", "mixed")),
        ("l2_norm", 1, ()),
        *(("activation", 1, (kind,)) for kind in get_args(ActivationKind)),
        *(("gated_activation", 1, (kind, "limit", "alpha", "up_offset")) for kind in get_args(ActivationKind)),
        ("sigmoid_gate", 1, ("by_row", "residual")),
        ("softcap", 1, ()),
        ("rope", 2, ("rotary_dim", "interleaved")),
        ("qk_norm_rope", 2, ("offset", "rotary_dim", "interleaved", "mixed")),
        ("rope_append", 3, ("norm", "offset", "rotary_dim", "interleaved", "mixed")),
    ],
)
def test_kernels_cover_every_feature_in_every_dtype_but_float64(
    op: str, dtypes: int, features: tuple[str, ...]
) -> None:
    load_kernels("cuda")
    rows = _rows[op, "cuda"]
    for kinds in itertools.product((fa.float32, fa.float16, fa.bfloat16), repeat=dtypes):
        for some in (features, features[:1], ()):
            if some or not op.endswith("activation"):
                assert any(row.refusal(kinds, some) is None for row in rows), (kinds, some)
    assert all(row.refusal((fa.float64,) * dtypes, features) for row in rows)
