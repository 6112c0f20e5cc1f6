"""The kernel of attention for Hopper on NumPy: as the oracle says, in whatever order its groups of warps come."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ferrum_array as fa
from ferrum_ops import SequenceMeta
from ferrum_ops.kernels.cuda import attending
from ferrum_ops.kernels.cuda.attending import HopperConfig
from ferrum_ops.tiled import AttentionOptions
from tests.array.oracle import wide
from tests.ops.interpreted.drawn import poison
from tests.ops.interpreted.gluon_groups import Program, stand_in
from tests.ops.interpreted.hopper import compiled
from tests.ops.interpreted.test_prefill import exact_options, level
from tests.ops.oracle import check, noise
from tests.ops.test_attention import exact_attention

#: one rounding of results, and one of weights, most of which averages out
WITHIN = {fa.float16: 5e-4, fa.bfloat16: 4e-3}
#: lengths of heads and values, and whether three groups have registers for them
LENGTHS = [(64, 64, True), (128, 128, False), (256, 256, False), (80, 96, False), (192, 128, False), (24, 8, True),
           (96, 64, False)]  # fmt: skip


@cache
def _kernel() -> Program:
    path = Path(attending.__file__).parent / "source" / "prefill_hopper.py"
    return stand_in(path, "attention", ["prefill_copies"])


def attended(
    q: fa.Tensor, k: fa.Tensor, v: fa.Tensor, options: AttentionOptions, *, processors: int, cached: int = 40 << 20,
    seed: int = 0, meta: SequenceMeta | None = None, config: HopperConfig | None = None,
) -> tuple[fa.Tensor, fa.Tensor]:  # fmt: skip
    """What the kernel for Hopper makes of memory that held NaN, with the sums or without."""
    kernel = _kernel()
    kernel.seed, before = seed, kernel.launches
    chosen = mock.Mock(side_effect=attending._hopper_config if config is None else lambda call: config)
    with (
        poison(attending),
        mock.patch.object(attending, "capability", return_value=90),
        mock.patch.object(attending, "processors", return_value=processors),
        mock.patch.object(attending, "_hopper_kernel", return_value=kernel),
        mock.patch.object(attending, "_hopper_config", chosen),
        mock.patch.object(attending, "_CACHED", cached),
    ):
        out, sums = attending.attention_with_sums(q, k, v, None, meta, options)
        kernel.seed += 100
        alone, _ = attending.attention(q, k, v, None, meta, options)
    assert kernel.launches == before + 2
    assert alone.numpy().tobytes() == out.numpy().tobytes()
    return out, sums


@st.composite
def drawn_options(draw: st.DrawFn, heads: int) -> AttentionOptions:
    causal = draw(st.booleans())
    return AttentionOptions(
        draw(st.sampled_from([0.125, 1.0, -0.5])),
        causal=causal,
        window=draw(st.sampled_from([None, None, 1, 50, 200])) if causal else None,
        softcap=draw(st.sampled_from([None, None, 5.0])),
        sinks=fa.asarray(noise(draw(st.integers(0, 9)), heads), dtype=draw(st.sampled_from(["f32", "f16", "f64"])))
        if draw(st.booleans())
        else None,
    )


@st.composite
def drawn_config(draw: st.DrawFn) -> tuple[int, int, HopperConfig]:
    """Lengths of heads and values, and a kernel for them."""
    dim, value_dim, three = draw(st.sampled_from(LENGTHS))
    wide = max(dim, value_dim) > 128
    keys, stages = draw(st.sampled_from([(64, 2), (64, 3)] if wide else [(128, 2), (128, 3), (64, 4)]))
    return (
        dim,
        value_dim,
        HopperConfig(
            keys,
            stages,
            slots=1 if wide else draw(st.integers(1, 2)),
            turns=draw(st.booleans()),
            shared=min(dim, value_dim) > 128,
            parts=draw(st.integers(2, 3)) if three else 2,
        ),
    )


@settings(max_examples=25)
@given(data=st.data(), dtype=st.sampled_from(sorted(WITHIN, key=str)), seed=st.integers(0, 999), how=drawn_config())
def test_as_the_oracle_says(
    data: st.DataObject, dtype: fa.Dtype, seed: int, how: tuple[int, int, HopperConfig]
) -> None:
    draw = data.draw
    batch, key_heads, group = draw(st.sampled_from([(1, 1, 1), (2, 1, 3), (1, 2, 2), (3, 1, 1)]))
    queries = draw(st.sampled_from([66, 128, 129, 300]))
    keys = draw(st.sampled_from([129, 256, 257, 400]))
    dim, value_dim, config = how
    heads = key_heads * group
    q, k, v = (
        fa.asarray(noise(seed + i, batch, n, h, d), dtype=dtype, device="cpu")
        for i, (n, h, d) in enumerate([(queries, heads, dim), (keys, key_heads, dim), (keys, key_heads, value_dim)])
    )
    options = draw(drawn_options(heads))
    want, want_sums = exact_attention(*map(wide, (q, k, v)), **exact_options(options))
    if draw(st.booleans()):  # heads beside those of something else, as in a product for q, k and v at once
        k = fa.concat([fa.full_like(k, fa.nan), k], axis=-2)[..., key_heads:, :]
        q = fa.concat([q, fa.full_like(q, fa.nan)], axis=-2)[..., :heads, :]
    # the order of tiles depends on how often the keys and values would fill the cache
    size = keys * (dim + value_dim) * 2 * batch * key_heads
    cached = max(1, size // draw(st.sampled_from([1, 2, 10_000])))
    programs = draw(st.integers(1, 7))
    out, sums = attended(q, k, v, options, processors=programs, cached=cached, seed=seed, config=config)
    check(out, want, dtype, WITHIN[dtype])
    level(sums, want_sums)


@settings(max_examples=15)
@given(data=st.data(), seed=st.integers(0, 999), how=drawn_config())
def test_packed_sequences_see_only_themselves(
    data: st.DataObject, seed: int, how: tuple[int, int, HopperConfig]
) -> None:
    """The last sequence is NaN: no other may show any."""
    draw = data.draw
    lengths = (*draw(st.lists(st.sampled_from([0, 1, 64, 129, 130, 300]), min_size=1, max_size=4)), 140)
    own_keys = draw(st.booleans())
    key_lengths = [draw(st.sampled_from([1, 128, 200, 257])) for _ in lengths] if own_keys else lengths
    starts, ends = np.cumsum((0, *lengths)), np.cumsum((0, *key_lengths))
    meta = SequenceMeta(tuple(starts.tolist()), kv_lens=tuple(key_lengths) if own_keys else None)
    dim, value_dim, config = how
    q, k, v = (
        fa.asarray(noise(seed + i, int(n), h, d), dtype="f16", device="cpu")
        for i, (n, h, d) in enumerate([(starts[-1], 2, dim), (ends[-1], 1, dim), (ends[-1], 1, value_dim)])
    )
    k[int(ends[-2]) :] = fa.nan
    v[int(ends[-2]) :] = fa.nan
    options = draw(drawn_options(2))
    with mock.patch.object(attending, "_FEW", 0):
        out, sums = attended(q, k, v, options, processors=draw(st.integers(1, 7)), seed=seed, meta=meta, config=config)
    for (a, b), (c, d) in list(zip(pairwise(starts), pairwise(ends), strict=True))[:-1]:
        want, want_sums = exact_attention(*map(wide, (q[a:b], k[c:d], v[c:d])), **exact_options(options))
        check(out[a:b], want, fa.float16, WITHIN[fa.float16])
        level(sums[a:b], want_sums)


@pytest.mark.parametrize("keys", [254, 255, 256, 257])
def test_tiles_at_the_edge_of_what_is_seen(keys: int) -> None:
    """A block's first query sees the last key of a tile, or just not; the last chunk of heads has fewer than others."""
    q, k, v = (fa.asarray(noise(i, 3, n, 1, 64), dtype="f16", device="cpu") for i, n in enumerate([192, keys, keys]))
    out, sums = attended(q, k, v, AttentionOptions(0.125), processors=2, cached=keys * 64 * 4 * 3 // 2 + 1)
    want, want_sums = exact_attention(*map(wide, (q, k, v)), scale=0.125)
    check(out, want, fa.float16, WITHIN[fa.float16])
    level(sums, want_sums)


@pytest.mark.parametrize(("dim", "config"), [
    (64, HopperConfig(128, 2, 2, True, False, 2)), (64, HopperConfig(64, 4, 2, False, False, 3)),
    (64, HopperConfig(128, 2, 2, True, False, 3)), (256, HopperConfig(64, 2, 1, True, True, 2)),
])  # fmt: skip
def test_the_order_of_copies_and_groups_does_not_matter(dim: int, config: HopperConfig) -> None:
    q, k, v = (
        fa.asarray(noise(i, 1, n, h, dim), dtype="f16", device="cpu")
        for i, n, h in [(0, 300, 2), (1, 700, 1), (2, 700, 1)]
    )
    options = AttentionOptions(0.125)
    runs = [attended(q, k, v, options, processors=2, seed=seed, config=config)[0].numpy() for seed in range(6)]
    assert all(run.tobytes() == runs[0].tobytes() for run in runs)


@pytest.mark.parametrize("tokens", [129, 1280, 2100])
def test_long_calls_with_the_real_tiles(tokens: int) -> None:
    """One head: all queries of the first block of three, and some of the last."""
    q, k, v = (fa.asarray(noise(i, tokens, 1, 64), dtype="f16", device="cpu") for i in range(3))
    out, sums = attended(q, k, v, AttentionOptions(0.125), processors=5)
    want, want_sums = exact_attention(*map(wide, (q, k, v)), scale=0.125)
    check(out, want, fa.float16, WITHIN[fa.float16])
    level(sums, want_sums)


def test_queries_that_see_no_key_are_zero() -> None:
    q, k, v = (fa.asarray(noise(i, 1, n, 1, 64), dtype="f16", device="cpu") for i, n in enumerate([500, 130, 130]))
    out, sums = attended(q, k, v, AttentionOptions(0.125), processors=2)
    assert (wide(out)[:, :370] == 0.0).all()
    assert (wide(sums)[:, :370] == -np.inf).all()
    assert np.isfinite(wide(out)).all()
    assert (wide(out)[:, 370:] != 0.0).any(axis=-1).all()


def test_other_calls_are_left_to_the_other_kernel() -> None:
    x, y = (fa.zeros((2, 200, 4, n), dtype="f16", device="cpu") for n in (64, 60))
    options = AttentionOptions(0.125)
    with (
        mock.patch.object(attending, "capability", return_value=90) as capability,
        mock.patch.object(attending.assembling, "sound", return_value=True) as sound,
        mock.patch.object(attending, "_on_hopper") as launched,
        mock.patch.object(attending, "_general"),
    ):
        attending.attention(x, x, x, None, None, options)
        assert launched.call_count == 1
        bias = fa.zeros((2, 4, 200, 200), dtype="f16", device="cpu")
        attending.attention(x, x, x, bias, None, options)
        attending.attention(x, x[:, :128], x[:, :128], None, None, options)
        attending.attention(x[:, :64], x, x, None, None, options)
        attending.attention(x, x, y, None, None, options)
        attending.attention(y, y, x, None, None, options)
        attending.attention(*(x.astype("f32"),) * 3, None, None, options)
        capability.return_value = 80
        attending.attention(x, x, x, None, None, options)
        capability.return_value, sound.return_value = 90, False
        attending.attention(x, x, x, None, None, options)
        assert launched.call_count == 1


def test_it_compiles_for_hopper_and_reads_what_was_set() -> None:
    made = compiled("""
        from ferrum_ops import SequenceMeta
        from ferrum_ops.kernels.cuda import attending
        from ferrum_ops.tiled import AttentionOptions
        attending.INTERPRETED = True  # addresses of NumPy's storage need not be aligned
        attending.capability, attending.processors = lambda device: 90, lambda device: 132
        plain, full = AttentionOptions(1.0), AttentionOptions(1.0, causal=False)
        every = AttentionOptions(1.0, window=100, softcap=5.0, sinks=fa.zeros(2, dtype="f32"))
        for tokens, dim, value_dim, options in (
            (300, 64, 64, plain), (2048, 64, 64, plain), (4096, 64, 64, full), (300, 128, 128, full),
            (300, 256, 256, plain), (300, 192, 128, every),
        ):
            q, k, v = (fa.zeros((tokens, 2, n), dtype="bf16") for n in (dim, dim, value_dim))
            attending.attention(q, k, v, None, None, options)
        attending.attention_with_sums(q, k, v, None, SequenceMeta((0, 100, 300)), options)
    """, looked_at=True)  # fmt: skip
    assert len(made) == 7
    assert [code.unset for code in made] == [[]] * 7
    assert all(code.bulk and not code.local and code.shared <= 227 * 1024 for code in made)
    assert [code.spilled for code in made[:6]] == [0] * 6
    assert made[6].spilled is not None
    assert made[6].spilled <= 4  # numbers that a block asks for once
