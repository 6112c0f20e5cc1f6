"""Attention in Triton's interpreter: as the oracle says, whatever the tiles, the masks and the steps."""

from __future__ import annotations

from itertools import pairwise
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ferrum_array as fa
from ferrum_ops import SequenceMeta
from ferrum_ops.kernels.cuda import attending
from ferrum_ops.kernels.cuda.attending import Config
from ferrum_ops.tiled import AttentionOptions
from tests.array.oracle import wide
from tests.ops.interpreted.drawn import HALVES, LIES, lying, poison
from tests.ops.oracle import Array, check, noise
from tests.ops.test_attention import exact_attention

#: one rounding of results, and one of weights
WITHIN = {fa.float32: 2e-6, fa.float16: 1.2e-3}


def attended(
    q: fa.Tensor, k: fa.Tensor, v: fa.Tensor, bias: fa.Tensor | None, meta: SequenceMeta | None, config: Config,
    options: AttentionOptions,
) -> tuple[fa.Tensor, fa.Tensor]:  # fmt: skip
    """The result in memory that held NaN; it must not depend on whether the sums are asked for."""
    assert attending.refuses(q, k, v, bias, meta, options) is None
    with poison(attending), mock.patch.object(attending, "_config", return_value=config):
        out, sums = attending.attention_with_sums(q, k, v, bias, meta, options)
        alone, nothing = attending.attention(q, k, v, bias, meta, options)
    assert nothing is None
    assert alone.numpy().tobytes() == out.numpy().tobytes()
    return out, sums


def level(sums: fa.Tensor, expected: Array) -> None:
    """A sum near 1 has a logarithm near 0, which is as far off as the scores are."""
    assert sums.dtype is fa.float32
    np.testing.assert_allclose(wide(sums), expected, rtol=1e-6, atol=4e-6)


def exact_options(options: AttentionOptions) -> dict[str, Any]:
    more = options._asdict()
    if options.sinks is not None:
        more["sinks"] = wide(options.sinks)
    return more


@st.composite
def drawn_options(draw: st.DrawFn, heads: int, longest: int) -> AttentionOptions:
    causal = draw(st.booleans())
    return AttentionOptions(
        scale=draw(st.sampled_from([0.25, 1.0, -0.5, 0.0])),
        causal=causal,
        window=draw(st.none() | st.integers(1, longest)) if causal else None,
        softcap=draw(st.sampled_from([None, 0.5, 20.0])),
        sinks=fa.asarray(noise(5, heads), dtype="f32", device="cpu") if draw(st.booleans()) else None,
    )


@settings(max_examples=40)
@given(data=st.data(), dtype=st.sampled_from(HALVES), seed=st.integers(0, 99))
def test_as_the_oracle_says(data: st.DataObject, dtype: fa.Dtype, seed: int) -> None:
    draw = data.draw
    batch = draw(st.sampled_from([(), (2,), (2, 2)]))
    queries, keys = draw(st.sampled_from([1, 5, 16, 37])), draw(st.sampled_from([0, 1, 16, 33, 50]))
    key_heads, group = draw(st.sampled_from([(1, 1), (2, 1), (1, 3), (2, 2)]))
    dim, value_dim = draw(st.sampled_from([(16, 16), (8, 24), (5, 3), (20, 8)]))
    heads = key_heads * group
    lies = st.sampled_from(LIES)
    q, q64 = lying(seed, (*batch, queries, heads, dim), dtype, draw(lies))
    k, k64 = lying(seed + 1, (*batch, keys, key_heads, dim), dtype, draw(lies))
    v, v64 = lying(seed + 2, (*batch, keys, key_heads, value_dim), dtype, draw(lies))
    options = draw(drawn_options(heads, keys + 2))
    bias, more = None, exact_options(options)
    full = (*batch, heads, queries, keys)
    if draw(st.booleans()):
        shape = tuple(n if draw(st.booleans()) else 1 for n in full)
        values = np.where(np.random.default_rng(seed).random(shape) < 0.3, -np.inf, noise(seed + 3, *shape))
        bias = fa.asarray(values, dtype="f32", device="cpu")
        more["bias"] = wide(bias)
    config = Config(draw(st.sampled_from([16, 32])), 16, 4, 2)
    with mock.patch.object(attending, "_PACKED", draw(st.sampled_from([0, 64]))):
        out, sums = attended(q, k, v, bias, None, config, options)
    want, want_sums = exact_attention(q64, k64, v64, **more)
    # values near 0 may be means of large ones
    loose = np.linalg.norm(want) < 0.3 * np.linalg.norm(np.where(np.isfinite(want_sums), 1.0, 0.0))
    check(out, want, dtype, WITHIN[dtype] * (10 if loose else 1))
    level(sums, want_sums)


@settings(max_examples=25)
@given(
    sizes=st.lists(st.tuples(st.sampled_from([0, 1, 15, 17, 30]), st.sampled_from([0, 1, 20])), min_size=1, max_size=4),
    dtype=st.sampled_from(HALVES),
    data=st.data(),
)
def test_packed_sequences_see_only_themselves(
    sizes: list[tuple[int, int]], dtype: fa.Dtype, data: st.DataObject
) -> None:
    lengths, keys = [a for a, _ in sizes], [a + b for a, b in sizes]
    if not sum(lengths):
        return
    meta = SequenceMeta((0, *np.cumsum(lengths).tolist()), kv_lens=tuple(keys))
    q, q64 = lying(1, (sum(lengths), 4, 16), dtype, data.draw(st.sampled_from(LIES)))
    k, k64 = lying(2, (sum(keys), 2, 16), dtype, "whole")
    v, v64 = lying(3, (sum(keys), 2, 8), dtype, "whole")
    options = data.draw(drawn_options(4, max(keys) + 2))
    out, sums = attended(q, k, v, None, meta, Config(16, 16, 4, 2), options)
    more = exact_options(options)
    starts, ends = np.cumsum((0, *lengths)), np.cumsum((0, *keys))
    parts = [
        exact_attention(q64[a:b], k64[c:d], v64[c:d], **more)
        for (a, b), (c, d) in zip(pairwise(starts), pairwise(ends), strict=True)
    ]
    check(out, np.concatenate([p[0] for p in parts]), dtype, WITHIN[dtype] * 4)
    level(sums, np.concatenate([p[1] for p in parts]))


@pytest.mark.parametrize("rows", [16, 32])
def test_what_a_sequence_does_not_see_may_be_anything(rows: int) -> None:
    """A neighbour's NaN times a weight of 0 would be NaN."""
    meta = SequenceMeta.packed((9, 12))
    x = noise(1, 21, 1, 16)
    x[9:] = np.nan
    q = fa.asarray(x, dtype="f16", device="cpu")
    out, _ = attended(q, q, q, None, meta, Config(rows, 16, 4, 2), AttentionOptions(0.25))
    assert np.isfinite(wide(out)[:9]).all()
    assert np.isnan(wide(out)[9:]).all()


def test_weights_of_few_keys_are_not_rounded() -> None:
    """With so few, the errors do not average out where values cancel."""
    q = fa.zeros((1, 1, 16), dtype="f16", device="cpu")
    k = fa.zeros((3, 1, 16), dtype="f16", device="cpu")
    k[1, 0, 0], q[0, 0, 0] = 0.69, 1.0  # weights of nearly 1/2, 1 and 1/2
    v = fa.asarray([[[1000.0]], [[-1000.0]], [[1000.0]]], dtype="f16", device="cpu")
    options = AttentionOptions(1.0, causal=False)
    out, _ = attended(q, k, v, None, None, Config(16, 16, 4, 2), options)
    want, _ = exact_attention(*map(wide, (q, k, v)), scale=1.0, causal=False)
    check(out, want, fa.float16, 2e-3)


def launched(q: fa.Tensor, k: fa.Tensor, v: fa.Tensor) -> dict[str, Any]:
    """The constants that the general kernel is launched with."""
    with mock.patch.object(attending, "_ATTENTION") as kernel:
        attending.attention(q, k, v, None, None, AttentionOptions(1.0))
    return dict(kernel.call_args.kwargs)


@pytest.mark.parametrize(("dtype", "dim", "value_dim", "bulk", "columns"), [
    ("f16", 64, 128, True, 128), ("f16", 32, 32, True, 32), ("f16", 33, 64, False, 64), ("f16", 64, 7, False, 64),
    ("f32", 64, 64, False, 64), ("f32", 9, 7, False, 16),
])  # fmt: skip
def test_halves_are_copied_by_descriptors_or_in_many_columns(
    dtype: str, dim: int, value_dim: int, bulk: bool, columns: int
) -> None:
    q = fa.zeros((100, 2, dim), dtype=dtype, device="cpu")
    constants = launched(q, q, fa.zeros((100, 2, value_dim), dtype=dtype, device="cpu"))
    assert (constants["BULK"], constants["BV"]) == (bulk, columns)


@pytest.mark.parametrize(("dim", "value_dim"), [(33, 7), (20, 30)])
def test_odd_heads_with_the_real_tiles(dim: int, value_dim: int) -> None:
    q, k, v = (fa.asarray(noise(i, 150, 1, n), dtype="f16", device="cpu") for i, n in enumerate((dim, dim, value_dim)))
    with poison(attending):
        out, _ = attending.attention_with_sums(q, k, v, None, None, AttentionOptions(0.25))
    check(out, exact_attention(*map(wide, (q, k, v)), scale=0.25)[0], fa.float16, WITHIN[fa.float16])


def test_halves_that_lie_askew_are_copied_for_descriptors() -> None:
    q, v = (fa.asarray(noise(i, 40, 2, 16), dtype="f16", device="cpu") for i in range(2))
    k = fa.asarray(noise(2, 40, 2, 20), dtype="f16", device="cpu")[..., :16]  # a step of 40 bytes
    assert launched(q, k, v)["BULK"] is True
    out, _ = attended(q, k, v, None, None, Config(16, 16, 4, 2), AttentionOptions(0.25))
    check(out, exact_attention(*map(wide, (q, k, v)), scale=0.25)[0], fa.float16, WITHIN[fa.float16])


def test_long_heads_are_refused() -> None:
    x = fa.zeros((1, 1, 257), device="cpu")
    assert attending.refuses(x, x, x, None, None, AttentionOptions(1.0)) == "takes heads of up to 256, not 257+257"


def test_a_scale_of_0_forgets_no_nan() -> None:
    q, k = (fa.asarray(noise(i, 4, 1, 16), dtype="f16", device="cpu") for i in range(2))
    q[1, 0, 3], q[2, 0, 5] = fa.nan, fa.inf
    got = attending.attention(q, k, k, None, None, AttentionOptions(0.0, False, None, None, None))[0].numpy()
    assert np.isnan(got[1:3]).all()
    assert np.isfinite(got[[0, 3]]).all()
