from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ferrum_array as fa
from ferrum_ops import KVCache, KVSpec, SequenceMeta, explain, kv_append, qk_norm_rope, rope, rope_append, rope_table
from ferrum_ops.kv_cache import kept_as
from tests.array.oracle import wide
from tests.ops.oracle import Array, check, floats, make, noise
from tests.ops.test_norm import exact_rms
from tests.ops.test_rope import exact_rope


def held(memory: fa.Tensor, scale: fa.Tensor | None) -> Array:
    """What a cache holds, in float64."""
    return wide(memory) * (1.0 if scale is None else wide(scale)[..., None])


@given(
    seed=st.integers(0, 2**32 - 1),
    tokens=st.integers(0, 5),
    groups=st.integers(1, 3),
    kv_heads=st.integers(1, 3),
    half=st.integers(1, 9),
    more=st.sampled_from([0, 0, 2, 5]),
    value=st.integers(1, 20),
    used=st.sets(st.sampled_from(["eps", "wq", "wk", "offset", "interleaved", "strided"])),
    quantised=st.booleans(),
    data=st.data(),
)
def test_as_the_oracle_says(
    device: fa.Device,
    seed: int,
    tokens: int,
    groups: int,
    kv_heads: int,
    half: int,
    more: int,
    value: int,
    used: set[str],
    quantised: bool,
    data: st.DataObject,
) -> None:
    """Tokens go to blocks in any order, and nothing else is written."""
    dtype, held_in = (data.draw(st.sampled_from(floats(device))) for _ in range(2))
    dim, strided = 2 * half + more, "strided" in used
    q, q64 = make(noise(seed, tokens, groups * kv_heads, dim), dtype, device, strided=strided)
    k, k64 = make(noise(seed + 1, tokens, kv_heads, dim), dtype, device, strided=strided)
    v, v64 = make(noise(seed + 2, tokens, kv_heads, value), dtype, device, strided=strided)
    cos, sin = rope_table(range(tokens), 2 * half, 100.0, device=device)
    options: dict[str, Any] = {"rotary_dim": 2 * half, "interleaved": "interleaved" in used}
    w64: list[Array | None] = [None, None]
    if "eps" in used:
        options["eps"] = 1e-6
        for i, name in enumerate(("wq", "wk")):
            if name in used:
                kind = data.draw(st.sampled_from([dtype, fa.float32]))
                options[name], w64[i] = make(noise(seed + 3 + i, dim), kind, device)
        if {"offset", "wq", "wk"} <= used:
            options["offset"] = 1.0
    slots = tuple(data.draw(st.permutations(range(8)))[:tokens])
    spec = KVSpec(kv_heads, dim, 4, 2, "paged", fa.int8 if quantised else held_in, value)
    cache = KVCache.empty(spec, device)
    meta = SequenceMeta((0, tokens), block_tables=((0, 1, 2, 3),), slots=slots)
    got = rope_append(cache, q, k, v, cos, sin, meta, **options)

    def turned(x: Array, w: Array | None) -> Array:
        y = exact_rms(x, w, 1e-6, options.get("offset", 0.0), None) if "eps" in options else x
        return exact_rope(y, wide(cos), wide(sin), 2 * half, options["interleaved"])

    check(got, turned(q64, w64[0]), dtype)
    others = [slot for slot in range(8) if slot not in slots]
    for memory, scale, want in ((cache.k, cache.k_scale, turned(k64, w64[1])), (cache.v, cache.v_scale, v64)):
        found = held(memory, scale)
        assert (found[others] == 0).all()
        coarse = max(fa.finfo(one).eps for one in (dtype, held_in) if not quantised or one is dtype)
        room = 4 * coarse + (0.51 / 127 if quantised else 0.0)
        largest = abs(want).max(axis=-1, keepdims=True, initial=1e-6)
        assert (abs(found[list(slots)] - want) <= room * largest).all()


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("held_in", ["float32", "float16", "int8", "fp8_e4m3"])
def test_it_is_what_it_is_composed_of(norm: bool, held_in: str) -> None:
    """On NumPy storage, where it is the composition, to the bit."""
    q, k, v = (make(noise(i, 3, heads, 8), fa.float32, fa.Device("cpu"))[0] for i, heads in enumerate((4, 2, 2)))
    cos, sin = rope_table(range(3), 8, 100.0)
    meta = SequenceMeta.packed([3])
    held, codes = kept_as(held_in)
    fused, composed = (KVCache.empty(KVSpec(2, 8, 1, 4, dtype=held, codes=codes)) for _ in range(2))
    if norm:
        got = rope_append(fused, q, k, v, cos, sin, meta, eps=1e-5)
        want, turned = qk_norm_rope(q, k, None, None, cos, sin, eps=1e-5)
    else:
        got = rope_append(fused, q, k, v, cos, sin, meta)
        want, turned = rope(q, cos, sin), rope(k, cos, sin)
    kv_append(composed, turned, v, meta)
    assert fa.all(got == want)
    for name in ("k", "v", "k_scale", "v_scale"):
        ours, theirs = getattr(fused, name), getattr(composed, name)
        assert (ours is None) == (theirs is None)
        assert ours is None or fa.all(ours == theirs)


def test_what_others_see_does_not_change(device: fa.Device) -> None:
    cache = KVCache.empty(KVSpec(1, 4, 1, 2), device)
    before = cache.k[:1]
    x = fa.ones((1, 1, 4), device=device)
    cos, sin = rope_table([0], 4, 100.0, device=device)
    rope_append(cache, x, x, x, cos, sin, SequenceMeta.packed([1]))
    assert not fa.any(before)
    assert fa.all(cache.k[0] == 1.0)
    array = id(cache.k._data)
    rope_append(cache, x, x, x, cos, sin, SequenceMeta.packed([1]))
    assert id(cache.k._data) == array, "the memory moved, though nobody else sees it"


def test_rows_that_are_not_finite_are_nan_in_int8(device: fa.Device) -> None:
    cache = KVCache.empty(KVSpec(1, 2, 1, 4, dtype=fa.int8), device)
    x = fa.asarray([[[fa.nan, 1.0]], [[fa.inf, 1.0]], [[0.0, 0.0]], [[3e38, -3e38]]], device=device)
    turns = rope_table([0] * 4, 2, 100.0, device=device)
    rope_append(cache, x, x, x, *turns, SequenceMeta.packed([4]))
    for memory, scale in ((cache.k, cache.k_scale), (cache.v, cache.v_scale)):
        assert scale is not None
        assert fa.all(fa.isnan(scale[:2]))
        assert not fa.any(memory[:3])
        assert float(scale[2, 0]) == 0.0
        assert memory[3].tolist() == [[127, -127]]


def test_what_is_in_use_is_told() -> None:
    x, w = fa.ones((1, 1, 4), dtype="f16"), fa.ones(4)
    cache = KVCache.empty(KVSpec(1, 4, 1, 2, dtype=fa.int8))
    cos, sin = rope_table([0], 2, 100.0)
    plain = explain(rope_append, cache, x, x, x, cos, sin, SequenceMeta.packed([1]), rotary_dim=2)
    assert (plain.dtypes, plain.features) == ((fa.float16, fa.float32, fa.int8), ("rotary_dim",))
    more = explain(
        rope_append, cache, x, x, x, cos, sin, SequenceMeta.packed([1]),
        wq=w, wk=w, eps=1e-5, offset=1.0, rotary_dim=2, interleaved=True,
    )  # fmt: skip
    assert more.features == ("norm", "offset", "rotary_dim", "interleaved", "mixed")
    assert not fa.any(cache.k)


X = fa.ones((2, 1, 4))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"wq": fa.ones(4)}, ValueError, "wq belongs to the norm of queries and keys, which needs eps"),
        ({"wk": fa.ones(4)}, ValueError, "wk belongs to the norm"),
        ({"offset": 1.0}, ValueError, "offset belongs to the norm"),
        ({"eps": -1.0}, ValueError, "eps must be finite and at least 0"),
        ({"eps": 1e-5, "wk": fa.ones(3)}, ValueError, r"wk must have shape \(4,\)"),
        ({"eps": 1e-5, "offset": 1.0}, ValueError, "offset=1.0 is added to wq, which is absent"),
        ({"q": fa.ones((1, 1, 4))}, ValueError, "cos and sin must be|q and k must share all axes"),
        ({"q": X.astype("f16")}, TypeError, "k is float32"),
        ({"v": X.astype("f16")}, TypeError, "v is float16"),
        ({"v": fa.ones((2, 1, 3))}, ValueError, r"rope_append: v must be \[2,1,4\]"),
        ({"k": fa.ones((2, 2, 4))}, ValueError, r"rope_append: k must be \[2,1,4\]"),
        ({"rotary_dim": 2}, ValueError, "cos and sin must be"),
        ({"meta": SequenceMeta.packed([3])}, ValueError, r"rope_append: k must be \[3,1,4\]"),
        ({"meta": SequenceMeta((0, 2), kv_lens=(9,))}, ValueError, "rope_append: sequence 0 reaches position 8"),
        (
            {"meta": SequenceMeta((0, 2), slots=(1, 1))},
            ValueError,
            "rope_append: two tokens would be written to slot 1",
        ),
        ({"meta": None}, TypeError, "rope_append: meta must be a SequenceMeta"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    cache = KVCache.empty(KVSpec(1, 4, 1, 4))
    cos, sin = rope_table([0, 1], 4, 100.0)
    good: dict[str, Any] = {"q": X, "k": X, "v": X, "cos": cos, "sin": sin, "meta": SequenceMeta.packed([2])}
    for eps in (None, 1e-5):  # what is in order for this meta is known after it
        rope_append(KVCache.empty(cache.spec), **good, eps=eps)
    given = good | arguments
    with pytest.raises(error, match=message) as caught:
        rope_append(cache, **given)
    assert str(caught.value).startswith("rope_append: "), "what it is composed of found it"
    assert not fa.any(cache.k)
    assert not fa.any(cache.v)
