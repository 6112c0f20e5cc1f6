"""The kernel of attention for Hopper on NumPy: as the oracle says, in whatever order its groups of warps come."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ferrum_array as fa
from ferrum_ops.kernels.cuda import attending
from ferrum_ops.tiled import AttentionOptions
from tests.array.oracle import wide
from tests.ops.interpreted.drawn import poison
from tests.ops.interpreted.gluon_groups import Program, stand_in
from tests.ops.oracle import check, noise
from tests.ops.test_attention import exact_attention

#: one rounding of results, and one of weights, most of which averages out
WITHIN = {fa.float16: 5e-4, fa.bfloat16: 4e-3}


@cache
def _kernel() -> Program:
    return stand_in(Path(attending.__file__).parent / "source" / "prefill_hopper.py", "attention")


def attended(
    q: fa.Tensor, k: fa.Tensor, v: fa.Tensor, options: AttentionOptions, *, processors: int, cached: int = 40 << 20,
    seed: int = 0,
) -> fa.Tensor:  # fmt: skip
    """The result of the kernel for Hopper, in memory that held NaN."""
    kernel = _kernel()
    kernel.seed, before = seed, kernel.launches
    with (
        poison(attending),
        mock.patch.object(attending, "capability", return_value=90),
        mock.patch.object(attending, "processors", return_value=processors),
        mock.patch.object(attending, "_hopper_kernel", return_value=kernel),
        mock.patch.object(attending, "_CACHED", cached),
    ):
        out, _ = attending.attention(q, k, v, None, None, options)
    assert kernel.launches == before + 1
    return out


@settings(max_examples=25)
@given(data=st.data(), dtype=st.sampled_from(sorted(WITHIN, key=str)), seed=st.integers(0, 999))
def test_as_the_oracle_says(data: st.DataObject, dtype: fa.Dtype, seed: int) -> None:
    draw = data.draw
    batch, key_heads, group = draw(st.sampled_from([(1, 1, 1), (2, 1, 3), (1, 2, 2), (3, 1, 1)]))
    queries = draw(st.sampled_from([66, 128, 129, 300]))
    keys = draw(st.sampled_from([129, 256, 257, 400]))
    dim = draw(st.sampled_from([64, 128, 256]))
    heads = key_heads * group
    q, k, v = (
        fa.asarray(noise(seed + i, batch, n, h, dim), dtype=dtype, device="cpu")
        for i, (n, h) in enumerate([(queries, heads), (keys, key_heads), (keys, key_heads)])
    )
    want, _ = exact_attention(*map(wide, (q, k, v)), scale=0.125, causal=(causal := draw(st.booleans())))
    if draw(st.booleans()):  # heads beside those of something else, as in a product for q, k and v at once
        k = fa.concat([fa.full_like(k, fa.nan), k], axis=-2)[..., key_heads:, :]
        q = fa.concat([q, fa.full_like(q, fa.nan)], axis=-2)[..., :heads, :]
    # the order of tiles depends on how often the keys and values would fill the cache
    cached = max(1, keys * dim * 4 * batch * key_heads // draw(st.sampled_from([1, 2, 10_000])))
    programs = draw(st.integers(1, 7))
    out = attended(q, k, v, AttentionOptions(0.125, causal=causal), processors=programs, cached=cached, seed=seed)
    check(out, want, dtype, WITHIN[dtype])


@pytest.mark.parametrize("keys", [254, 255, 256, 257])
def test_tiles_at_the_edge_of_what_is_seen(keys: int) -> None:
    """A block's first query sees the last key of a tile, or just not; the last chunk of heads has fewer than others."""
    q, k, v = (fa.asarray(noise(i, 3, n, 1, 64), dtype="f16", device="cpu") for i, n in enumerate([192, keys, keys]))
    out = attended(q, k, v, AttentionOptions(0.125), processors=2, cached=keys * 64 * 4 * 3 // 2 + 1)
    want, _ = exact_attention(*map(wide, (q, k, v)), scale=0.125)
    check(out, want, fa.float16, WITHIN[fa.float16])


@pytest.mark.parametrize("dim", [64, 256])
def test_the_order_of_copies_and_groups_does_not_matter(dim: int) -> None:
    q, k, v = (
        fa.asarray(noise(i, 1, n, h, dim), dtype="f16", device="cpu")
        for i, n, h in [(0, 300, 2), (1, 700, 1), (2, 700, 1)]
    )
    runs = [attended(q, k, v, AttentionOptions(0.125), processors=2, seed=seed).numpy() for seed in range(8)]
    assert all(run.tobytes() == runs[0].tobytes() for run in runs)


def test_results_of_more_elements_than_32_bits_count_are_left_to_the_other_kernel() -> None:
    x = fa.zeros((2, 200, 4, 64), dtype="f16", device="cpu")
    with (
        mock.patch.object(attending, "capability", return_value=90),
        mock.patch.object(attending, "_on_hopper") as launched,
    ):
        attending.attention(x, x, x, None, None, AttentionOptions(0.125))
        call = launched.call_args.args[0]
        assert attending._fits_hopper(call._replace(queries=(1 << 23) - 1))
        assert not attending._fits_hopper(call._replace(queries=1 << 23))


def test_queries_that_see_no_key_are_zero() -> None:
    q, k, v = (fa.asarray(noise(i, 1, n, 1, 64), dtype="f16", device="cpu") for i, n in enumerate([500, 130, 130]))
    out = attended(q, k, v, AttentionOptions(0.125), processors=2)
    assert (wide(out)[:, :370] == 0.0).all()
    assert np.isfinite(wide(out)).all()
    assert (wide(out)[:, 370:] != 0.0).any(axis=-1).all()
