"""Random numbers: ranges, distributions against SciPy, permutations and choices."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import special, stats

import ferrum_array as fa
from ferrum_array.random import Generator
from ferrum_array.random.quantiles import (
    nearest,
)
from tests.array.draws import FLOATS, SEEDS, agrees, block, same_bits

# Ranges.


@pytest.mark.parametrize("dtype", FLOATS)
@given(st.data())
def test_uniform_stays_in_its_interval(dtype: str, data: st.DataObject) -> None:
    kind = fa.Dtype(dtype)
    numbers = st.floats(-60000.0, 60000.0).map(lambda v: nearest(v, kind))
    low = data.draw(numbers)
    high = data.draw(st.one_of(numbers, st.just(nearest(low + abs(low) * 2.0**-6, kind))))
    assume(low < high)
    drawn = Generator(data.draw(SEEDS)).uniform(100, low=low, high=high, dtype=dtype)
    assert drawn.dtype is kind
    wide = drawn.numpy().astype(np.float64)
    assert np.all((low <= wide) & (wide < high))


@pytest.mark.parametrize(("dtype", "digits"), list(zip(FLOATS, (11, 8, 24, 53), strict=True)))
def test_unit_uniforms_are_multiples_of_their_step(dtype: str, digits: int) -> None:
    drawn = Generator(1).uniform(50_000, dtype=dtype).numpy().astype(np.float64)
    scaled = drawn * 2.0**digits
    assert np.array_equal(scaled, np.floor(scaled))
    assert drawn.min() < 2e-3
    assert 1 - 2.0**-7 < drawn.max() < 1
    if digits <= 11:
        assert np.unique(scaled).size == 2**digits


INTEGERS = [d.standard_name for d in fa.Dtype.all() if d.is_integer]


@pytest.mark.parametrize("dtype", INTEGERS)
@given(st.data())
def test_integers_are_the_exact_products(dtype: str, data: st.DataObject) -> None:
    limits = fa.iinfo(fa.Dtype(dtype))
    low, last = sorted(data.draw(st.lists(st.integers(limits.min, limits.max), min_size=2, max_size=2)))
    seed, bound = data.draw(SEEDS), last + 1 - low
    words = 2 if bound <= 2**32 else 4
    got = Generator(seed).integers(low, last + 1, 9, dtype=dtype)
    expected = []
    for i in range(9):
        x = 0
        for w in range(words * i, words * (i + 1)):
            x = x << 32 | block(seed, w // 4)[w % 4]
        expected.append(low + (x * bound >> 32 * words))
    assert got.dtype.standard_name == dtype
    assert got.tolist() == expected


def test_integers_with_one_bound_start_at_zero() -> None:
    assert same_bits(Generator(1).integers(10, shape=9), Generator(1).integers(0, 10, 9))
    assert Generator(1).integers(10).shape == ()


# Distributions. Fixed seeds: these tests always give the same numbers.


def equally_likely(counts: Any, expected: Any = None) -> bool:
    """The chi-square test at the level 1e-3."""
    return bool(stats.chisquare(counts, expected).pvalue > 1e-3)


def test_the_statistical_tests_can_fail() -> None:
    sample = Generator(0).normal(200_000)
    assert not agrees(sample * 1.05, stats.norm.cdf)
    assert not equally_likely([1000, 1000, 1150])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_distributions(dtype: str, seed: int) -> None:
    n, g = 200_000, Generator(seed)
    assert agrees(g.uniform(n, low=-3, high=5, dtype=dtype), stats.uniform(-3, 8).cdf)
    assert agrees(g.normal(n, mean=2, std=3, dtype=dtype), stats.norm(2, 3).cdf)
    assert agrees(g.exponential(n, scale=0.5, dtype=dtype), stats.expon(scale=0.5).cdf)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_moments(dtype: str) -> None:
    n, g = 400_000, Generator(9)
    z = g.normal(n, dtype=dtype).numpy().astype(np.float64)
    for power, moment in enumerate([1, 0, 1, 0, 3, 0, 15]):
        deviation = math.sqrt(float(special.factorial2(max(4 * power // 2 - 1, 1))) / n)
        assert abs(np.mean(z**power) - moment) < 5 * deviation + 1e-3
    e = g.exponential(n, dtype=dtype).numpy().astype(np.float64)
    assert abs(e.mean() - 1) < 0.01
    assert abs(e.var() - 1) < 0.02


def test_tails_of_the_normal() -> None:
    """Beyond 4 deviations, where a coarse method shows first: 63 of a million are expected."""
    z = Generator(4).normal(4_000_000).numpy()
    for limit in (3.0, 4.0, 4.5):
        expected = 2 * stats.norm.sf(limit) * z.size
        assert abs(np.count_nonzero(np.abs(z) > limit) - expected) < 5 * math.sqrt(expected)


def test_neighbours_are_independent() -> None:
    """Pairs of successive numbers fill a square evenly, and so do those four apart (one block)."""
    cells = np.floor(Generator(6).uniform(400_000).numpy() * 16).astype(int)
    for lag in (1, 2, 4):
        pairs = cells[:-lag:8] * 16 + cells[lag::8][: len(cells[:-lag:8])]
        assert equally_likely(np.bincount(pairs, minlength=256))


def test_integers_are_equally_likely() -> None:
    for bound in (2, 6, 1000):
        drawn = Generator(bound).integers(bound, shape=200_000).numpy()
        assert equally_likely(np.bincount(drawn, minlength=bound))
    wide = Generator(1).integers(3 * 2**61, shape=100_000).numpy() // 2**59
    assert equally_likely(np.bincount(wide, minlength=12))


# Permutations and choices.


@given(SEEDS, st.integers(0, 200))
def test_a_permutation_has_every_integer_once(seed: int, n: int) -> None:
    order = Generator(seed).permutation(n)
    assert order.dtype is fa.int64
    assert sorted(order.tolist()) == list(range(n))


def test_all_orders_are_equally_likely() -> None:
    g, seen = Generator(0), {}
    for _ in range(6000):
        order = tuple(g.permutation(4).tolist())
        seen[order] = seen.get(order, 0) + 1
    assert len(seen) == 24
    assert equally_likely(list(seen.values()))


@given(SEEDS, st.integers(0, 2))
def test_a_tensor_is_permuted_along_one_axis(seed: int, axis: int) -> None:
    x = fa.reshape(fa.arange(60), (3, 4, 5))
    order = Generator(seed).permutation(x.shape[axis]).tolist()
    got = Generator(seed).permutation(x, axis=axis)
    assert np.array_equal(got.numpy(), np.take(x.numpy(), order, axis=axis))
    assert same_bits(Generator(seed).permutation(x, axis=axis - 3), got)


@given(SEEDS, st.integers(1, 30), st.data())
def test_choice_without_replacement_repeats_nothing(seed: int, n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, n))
    p = data.draw(st.one_of(st.none(), st.lists(st.floats(1e-3, 1), min_size=n, max_size=n)))
    shares = None if p is None else [one / sum(p) for one in p]
    drawn = Generator(seed).choice(n, k, replace=False, p=shares).tolist()
    assert len(set(drawn)) == k
    assert all(0 <= i < n for i in drawn)


@given(SEEDS, st.lists(st.integers(0, 3), min_size=1, max_size=20))
def test_what_has_no_probability_is_never_chosen(seed: int, weights: list[int]) -> None:
    assume(sum(weights))
    p = [w / sum(weights) for w in weights]
    possible = {i for i, w in enumerate(weights) if w}
    g = Generator(seed)
    assert set(g.choice(len(p), 200, p=p).tolist()) <= possible
    few = g.choice(len(p), len(possible), replace=False, p=p)
    assert set(few.tolist()) == possible


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_choice_honours_probabilities(dtype: str) -> None:
    p = np.array([0.1, 0.0, 0.25, 0.6, 0.05])
    drawn = Generator(2).choice(5, 100_000, p=fa.asarray(p, dtype=dtype)).numpy()
    counts = np.bincount(drawn, minlength=5)
    assert counts[1] == 0
    assert equally_likely(counts[p > 0], p[p > 0] * drawn.size)


def test_choice_without_replacement_honours_probabilities() -> None:
    p, g = np.array([0.5, 0.3, 0.2]), Generator(8)
    pairs = np.zeros((3, 3))
    for _ in range(6000):
        first, second = g.choice(3, 2, replace=False, p=p.tolist()).tolist()
        pairs[first, second] += 1
    expected = p[:, None] * p[None, :] / (1 - p[:, None]) * 6000
    off = ~np.eye(3, dtype=bool)
    assert equally_likely(pairs[off], expected[off])


def test_choice_takes_slices_of_a_tensor() -> None:
    x = fa.reshape(fa.arange(12), (3, 4))
    where = Generator(1).choice(4, (2, 5))
    got = Generator(1).choice(x, (2, 5), axis=1)
    assert np.array_equal(got.numpy(), np.take(x.numpy(), where.numpy(), axis=1))
    assert Generator(1).choice(x).shape == (4,)
