"""Attention's kernels on the CPU, as compiled: tiles of many queries, stretches of few, and what lies between.

Sizes lie around those at which the code does something else: 32 and 48 rows, 64 keys a tile, and stretches of 32 to
256 keys that are read in pieces of up to 80.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import ferrum_array as fa
from ferrum_ops import SequenceMeta, attention
from ferrum_ops.kernels.cpu.decode import GRAIN, most_stretches, stretches
from tests.array.oracle import wide
from tests.ops import kernel_runs
from tests.ops.kernel_runs import LAYOUTS, WITHIN, is_portable, laid, near, portable, run
from tests.ops.oracle import Array, distance, noise

pytest.importorskip("numba")

#: portable loops know dtypes by nothing but how a number is read
DTYPES = kernel_runs.DTYPES[:1] if is_portable() else kernel_runs.DTYPES
SEED = st.integers(0, 2**32 - 1)
QUERIES = st.sampled_from([0, 1, 2, 3, 16, 31, 32, 33, 47, 48, 49, 97, 200])
KEYS = st.sampled_from([0, 1, 2, 15, 33, 63, 64, 65, 127, 129, 255, 256, 257, 300, 330])
#: dimensions of keys and of values
SIZES = st.sampled_from([(1, 1), (3, 5), (16, 16), (64, 64), (96, 40), (128, 128), (67, 17), (192, 128), (256, 256)])
#: heads of keys, and how many of queries for each
HEADS = st.sampled_from([(1, 1), (2, 1), (2, 2), (1, 4), (3, 3), (1, 7), (2, 16)])


def modest(seed: int, *shape: int) -> Array:
    """Queries whose products with keys are about as large in every dimension: errors of scores grow with them."""
    return noise(seed, *shape) / max(1.0, math.sqrt(shape[-1]) / 4)


def exact(
    q: Array, k: Array, v: Array, *, scale: float | None = None, causal: bool = True, window: int | None = None,
    softcap: float | None = None, sinks: Array | None = None, bias: Array | None = None,
) -> tuple[Array, Array]:  # fmt: skip
    """The definition in float64 for one sequence: results [T, H, Dv] and logarithms of sums [T, H]."""
    (count, heads, dim), (length, key_heads, value_dim) = q.shape, v.shape
    group = heads // key_heads
    scores = np.einsum("thd,shd->hts", q, np.repeat(k, group, axis=1)) * (dim**-0.5 if scale is None else scale)
    if softcap is not None:
        scores = softcap * np.tanh(scores / softcap)
    if bias is not None:
        scores = scores + bias
    at = np.arange(count)[:, None] + (length - count)
    place = np.arange(length)
    seen = np.ones((count, length), bool)
    if causal:
        seen &= place <= at
        if window is not None:
            seen &= place > at - window
    scores = np.where(seen, scores, -np.inf)
    sunk = np.full((heads, 1, 1), -np.inf) if sinks is None else sinks[:, None, None]
    top = np.maximum(scores.max(-1, keepdims=True, initial=-np.inf), sunk)
    base = np.where(np.isneginf(top), 0.0, top)
    weights = np.exp(scores - base)
    total = weights.sum(-1, keepdims=True) + np.exp(sunk - base)
    out = np.einsum("hts,shd->thd", np.divide(weights, total, where=total > 0, out=np.zeros_like(weights)),
                    np.repeat(v, group, axis=1))  # fmt: skip
    with np.errstate(divide="ignore"):
        return out.reshape(count, heads, value_dim), (base + np.log(total))[:, :, 0].T


@st.composite
def options(draw: st.DrawFn) -> dict[str, Any]:
    """What is alike for the oracle and for the op."""
    causal = draw(st.sampled_from([True, True, False]))
    return {
        "causal": causal,
        "scale": draw(st.sampled_from([None, None, 0.3, -0.1, 0.0])),
        "window": draw(st.none() | st.sampled_from([1, 2, 17, 64, 65, 190, 400])) if causal else None,
        "softcap": draw(st.sampled_from([None, 0.5, 20.0])),
    }


def agree(found: list[fa.Tensor], want: Array, sums: Array, values: Array) -> None:
    """Results and logarithms of sums; results near 0 may be means of large values."""
    out, lse = found
    assert out.shape == want.shape
    span = max(float(np.linalg.norm(want)), 0.05 * float(np.abs(values).max(initial=0.0)) * math.sqrt(want.size))
    assert np.linalg.norm(wide(out) - want) <= WITHIN[out.dtype] * max(span, 1e-30)
    near(lse, sums, 4e-6)


@settings(max_examples=120)
@given(
    seed=SEED, batch=st.sampled_from([(), (2,), (2, 1), (0,)]), count=QUERIES, length=KEYS, heads=HEADS, sizes=SIZES,
    dtype=st.sampled_from(DTYPES), layout=st.sampled_from(LAYOUTS), chosen=options(), sunk=st.booleans(),
    biased=st.sampled_from(["", "", "full", "heads", "keys", "hidden"]),
)  # fmt: skip
@example(1, (), 1, 300, (1, 7), (64, 64), fa.float32, "plain", {"window": 190}, True, "")
@example(2, (), 3, 300, (2, 2), (128, 128), DTYPES[-1], "part", {"window": 65}, True, "")
@example(3, (), 97, 300, (1, 4), (64, 64), fa.float32, "plain", {"window": 64}, True, "full")
@example(4, (2,), 200, 257, (2, 1), (96, 40), fa.float32, "part", {"causal": False, "softcap": 2.0}, False, "heads")
@example(5, (), 1, 1300, (2, 2), (67, 64), DTYPES[-1], "plain", {}, False, "")
@example(6, (), 2, 1023, (1, 2), (64, 67), DTYPES[-1], "part", {"window": 1000}, True, "")
def test_as_the_definition_says(
    seed: int, batch: tuple[int, ...], count: int, length: int, heads: tuple[int, int], sizes: tuple[int, int],
    dtype: fa.Dtype, layout: str, chosen: dict[str, Any], sunk: bool, biased: str,
) -> None:  # fmt: skip
    key_heads, group = heads
    both = key_heads * group
    q, q64 = laid(modest(seed, *batch, count, both, sizes[0]), dtype, layout)
    k, k64 = laid(noise(seed + 1, *batch, length, key_heads, sizes[0]), dtype, layout)
    v, v64 = laid(noise(seed + 2, *batch, length, key_heads, sizes[1]), dtype, layout)
    more: dict[str, Any] = {}
    exactly: dict[str, Any] = {}
    if sunk:
        more["sinks"], exactly["sinks"] = laid(noise(seed + 3, both), fa.float32)
    bias: Array | None = None
    if biased:
        shapes = {
            "full": (*batch, both, count, length),
            "heads": (both, 1, 1),
            "keys": (length,),
            "hidden": (count, length),
        }
        bias = noise(seed + 4, *shapes[biased])
        bias = np.where(bias > 0, 0.0, -np.inf) if biased == "hidden" else bias
        more["bias"], bias = laid(bias, fa.float32)
        bias = np.broadcast_to(bias, (*batch, both, count, length))
    found = run("cpu.attention", attention, q, k, v, return_lse=True, **chosen, **more)
    want, sums = np.zeros((*batch, count, both, sizes[1])), np.zeros((*batch, count, both))
    for at in np.ndindex(*batch):
        own = {} if bias is None else {"bias": bias[at]}
        want[at], sums[at] = exact(q64[at], k64[at], v64[at], **chosen, **exactly, **own)
    agree(found, want, sums, v64)
    assert attention(q, k, v, **chosen, **more).numpy().tobytes() == found[0].numpy().tobytes()


@given(keys=st.integers(0, 20000), fewer=st.integers(0, 20000))
@example(575, 0)
@example(1024, 1)
@example(1025, 1)
def test_stretches_are_even_and_cover_all_keys(keys: int, fewer: int) -> None:
    count = stretches(keys)
    assert count <= most_stretches(keys)
    assert stretches(max(0, keys - fewer)) <= most_stretches(keys)  # what memory is set aside by
    if keys > 128:  # of one length, the last of them shorter by less than a grain for each
        grains = -(-keys // (GRAIN * count))
        assert grains * GRAIN <= 256
        assert 0 <= grains * GRAIN * count - keys < GRAIN * count
    if 128 < keys <= 1024:
        assert count == 4


@settings(max_examples=50)
@given(
    seed=SEED, lengths=st.lists(st.tuples(QUERIES, st.sampled_from([0, 1, 40, 64, 200, 300])), max_size=5), heads=HEADS,
    sizes=SIZES, dtype=st.sampled_from(DTYPES), chosen=options(), sunk=st.booleans(),
)  # fmt: skip
def test_sequences_one_after_another(
    seed: int, lengths: list[tuple[int, int]], heads: tuple[int, int], sizes: tuple[int, int], dtype: fa.Dtype,
    chosen: dict[str, Any], sunk: bool,
) -> None:  # fmt: skip
    """Each is as if it were alone, in its bits too."""
    counts, keys = [count for count, _ in lengths], [count + before for count, before in lengths]
    meta = SequenceMeta(SequenceMeta.packed(counts).cu_seqlens, kv_lens=tuple(keys))
    key_heads, group = heads
    q, q64 = laid(modest(seed, sum(counts), key_heads * group, sizes[0]), dtype)
    k, k64 = laid(noise(seed + 1, sum(keys), key_heads, sizes[0]), dtype)
    v, v64 = laid(noise(seed + 2, sum(keys), key_heads, sizes[1]), dtype)
    sinks, sinks64 = laid(noise(seed + 3, key_heads * group), fa.float32) if sunk else (None, None)
    found = run("cpu.attention", attention, q, k, v, meta=meta, sinks=sinks, return_lse=True, **chosen)
    first = start = 0
    for count, length in zip(counts, keys, strict=True):
        rows, places = slice(first, first + count), slice(start, start + length)
        first, start = first + count, start + length
        want, sums = exact(q64[rows], k64[places], v64[places], sinks=sinks64, **chosen)
        own = [found[0][rows], found[1][rows]]
        agree(own, want, sums, v64)
        alone = attention(q[rows], k[places], v[places], sinks=sinks, return_lse=True, **chosen)
        for one, other in zip(alone, own, strict=True):
            assert one.numpy().tobytes() == other.numpy().tobytes()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("count", [1, 130])
@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_what_is_no_number_spoils_what_reads_it(dtype: fa.Dtype, count: int, wrong: float) -> None:
    """A query spoils its head's row, and a sequence no other."""
    q, k, v = (noise(n, count if n == 0 else 300, 2, 64) for n in range(3))
    clean = attention(*(laid(x, dtype)[0] for x in (q, k, v)))
    q[-1, 1, 3] = wrong
    (found,) = run("cpu.attention", attention, *(laid(x, dtype)[0] for x in (q, k, v)))
    assert np.isnan(wide(found)[-1, 1]).all()
    others = np.ones(found.shape[:2], bool)
    others[-1, 1] = False
    assert wide(found)[others].tobytes() == wide(clean)[others].tobytes()
    meta = SequenceMeta((0, count, 2 * count), kv_lens=(300, 300))
    k2 = k.copy()
    k2[:, :, 0] = v[0] = wrong
    pairs = [np.concatenate(two) for two in ((q, noise(0, count, 2, 64)), (k2, k), (v, noise(2, 300, 2, 64)))]
    (found,) = run("cpu.attention", attention, *(laid(x, dtype)[0] for x in pairs), meta=meta)
    assert np.isnan(wide(found)[:count]).all()
    assert wide(found)[count:].tobytes() == wide(clean).tobytes()


@pytest.mark.parametrize("count", [1, 100])
@pytest.mark.parametrize("large", [1e4, 1e18])
def test_scores_beyond_what_exponentials_hold(count: int, large: float) -> None:
    q, k, v = (laid(noise(n, count if n == 0 else 200, 2, 16) * (large if n == 0 else 1), fa.float32) for n in range(3))
    found = run("cpu.attention", attention, q[0], k[0], v[0], return_lse=True)
    want, sums = exact(q[1], k[1], v[1])
    assert distance(wide(found[0]), want) <= 2e-2  # scores of 1e4 have three digits behind the point
    near(found[1], sums, 4e-6)


def test_the_comparison_can_fail() -> None:
    q, q64 = laid(noise(1, 70, 2, 16), fa.float32)
    found = list(attention(q, q, q, return_lse=True))
    for wrong in ({"window": 69}, {"scale": 0.2501}, {"sinks": np.full(2, -9.0)}, {"softcap": 300.0}):
        with pytest.raises(AssertionError):
            agree(found, *exact(q64, q64, q64, **wrong), q64)
    agree(found, *exact(q64, q64, q64), q64)


@pytest.mark.skipif(is_portable(), reason="this process is the portable one")
def test_processors_without_special_instructions() -> None:
    done = portable(__file__)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 skipped" in done.stdout
