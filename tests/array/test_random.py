"""Random numbers: bits against integer arithmetic in Python, distributions against SciPy."""

from __future__ import annotations

import copy
import hashlib
import math
import pickle
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import special, stats

import ferrum_array as fa
from ferrum_array.random import Generator, stream
from ferrum_array.random.quantiles import (
    below,
    exponential_from_bits,
    nearest,
    normal_from_bits,
)

FLOATS = ("float16", "bfloat16", "float32", "float64")
SEEDS = st.integers(0, 2**128 - 1)
PLACES = st.integers(0, 2**66 - 200)

#: name -> a draw of some elements, for every distribution with a fixed number of words an element
DRAWS: dict[str, Callable[[Generator, Any], fa.Tensor]] = {
    "bits32": lambda g, n: g.bits(n),
    "bits64": lambda g, n: g.bits(n, dtype="uint64"),
    "integers": lambda g, n: g.integers(-5, 17, n),
    "wide integers": lambda g, n: g.integers(-(2**62), 2**60, n),
    "choice": lambda g, n: g.choice(5, n),
    "weighted choice": lambda g, n: g.choice(3, n, p=[0.2, 0.5, 0.3]),
}
for dtype in FLOATS:
    DRAWS[f"uniform {dtype}"] = lambda g, n, d=dtype: g.uniform(n, low=-2, high=3, dtype=d)
    DRAWS[f"normal {dtype}"] = lambda g, n, d=dtype: g.normal(n, mean=1, std=2, dtype=d)
    DRAWS[f"exponential {dtype}"] = lambda g, n, d=dtype: g.exponential(n, scale=3, dtype=d)


def same_bits(a: fa.Tensor, b: fa.Tensor) -> bool:
    """Whether two tensors are equal in shape, dtype and every bit."""
    x, y = (np.ascontiguousarray(t.numpy()) for t in (a, b))
    return a.dtype is b.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()


def test_same_bits_can_fail() -> None:
    assert not same_bits(fa.asarray([0.0]), fa.asarray([-0.0]))
    assert not same_bits(fa.asarray([1]), fa.asarray([1], dtype="uint64"))
    assert not same_bits(fa.asarray([1]), fa.asarray([[1]]))


# The stream of words.

M0, M1, W0, W1, LOW = 0xD2511F53, 0xCD9E8D57, 0x9E3779B9, 0xBB67AE85, 0xFFFFFFFF


def block(seed: int, number: int) -> list[int]:
    """One block of Philox4x32-10 in Python's integers."""
    counter = number | (seed >> 64) << 64
    c = [counter >> (32 * i) & LOW for i in range(4)]
    k = [seed & LOW, seed >> 32 & LOW]
    for _ in range(10):
        a, b = c[0] * M0, c[2] * M1
        c = [b >> 32 ^ c[1] ^ k[0], b & LOW, a >> 32 ^ c[3] ^ k[1], a & LOW]
        k = [k[0] + W0 & LOW, k[1] + W1 & LOW]
    return c


# Random123 1.14, tests/kat_vectors, philox4x32 with 10 rounds: counter, key, answer
KNOWN = [
    (
        "00000000 00000000 00000000 00000000",
        "00000000 00000000",
        "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
    ),
    (
        "ffffffff ffffffff ffffffff ffffffff",
        "ffffffff ffffffff",
        "408f276d 41c83b0e a20bc7c6 6d5451fd",
    ),
    (
        "243f6a88 85a308d3 13198a2e 03707344",
        "a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_known_answers(counter: str, key: str, answer: str, device: fa.Device) -> None:
    c, k, expected = ([int(word, 16) for word in text.split()] for text in (counter, key, answer))
    seed = k[0] | k[1] << 32 | c[2] << 64 | c[3] << 96
    generator = Generator(seed, position=4 * (c[0] | c[1] << 32))
    assert generator.bits(4, device=device).tolist() == expected


@given(SEEDS, PLACES, st.integers(0, 30))
def test_the_words_are_those_of_philox(seed: int, place: int, count: int) -> None:
    expected = [block(seed, w // 4)[w % 4] for w in range(place, place + count)]
    generator = Generator(seed, position=place)
    assert generator.bits(count).tolist() == expected
    assert generator.position == place + count
    pairs = Generator(seed, position=place).bits(count // 2, dtype="uint64")
    assert pairs.tolist() == [expected[i] << 32 | expected[i + 1] for i in range(0, count - 1, 2)]


@pytest.mark.parametrize("name", DRAWS)
@given(SEEDS, PLACES, st.integers(0, 20), st.integers(0, 20))
def test_drawing_n_and_then_m_is_drawing_both(name: str, seed: int, place: int, n: int, m: int) -> None:
    draw, parts = DRAWS[name], Generator(seed, position=place)
    together = draw(Generator(seed, position=place), n + m)
    assert same_bits(fa.concat([draw(parts, n), draw(parts, m)]), together)


@pytest.mark.parametrize("name", DRAWS)
def test_drawing_in_parts_changes_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = DRAWS[name](Generator(3), (7, 11))
    for size in (4, 12, 64):
        monkeypatch.setattr(stream, "_CHUNK", size)
        assert same_bits(DRAWS[name](Generator(3), (7, 11)), whole)


# Every storage gives the bits that scalar IEEE arithmetic gives.


def rounding(width: int) -> Callable[[float], float]:
    """Rounding to float32 for 32-bit words. For + - * / sqrt, float64 first changes nothing."""
    if width == 64:
        return float
    return lambda value: float(struct.unpack("f", struct.pack("f", value))[0])


def scalar_to_float(x: int, width: int) -> float:
    r, half = rounding(width), width // 2
    return r(r(float(x >> half)) * 2.0**half + float(x & ((1 << half) - 1)))


def scalar_exponential(bits: int, width: int) -> float:
    r, x, top = rounding(width), bits | 1, 1 << (width - 1)
    zeros = width - x.bit_length()
    y = x << zeros
    if y >= math.isqrt(2 * top * top):
        gap, halvings = -scalar_to_float(2 * top - y, width) * 2.0**-width, zeros
    else:
        gap, halvings = scalar_to_float(y - top, width) * 2.0 ** (1 - width), zeros + 1
    s = r(gap / r(gap + 2.0))
    square = r(s * s)
    terms = [r(2.0 / (2 * n + 1)) for n in range(5 if width == 32 else 11)]
    series = terms[-1]
    for term in terms[-2::-1]:
        series = r(r(series * square) + term)
    return r(r(halvings * r(math.log(2.0))) - r(series * s))


@pytest.mark.parametrize(("dtype", "width"), [("float32", 32), ("float64", 64)])
def test_exponentials_are_those_of_scalar_arithmetic(dtype: str, width: int, device: fa.Device) -> None:
    if not device.supports(fa.Dtype(dtype)):
        with pytest.raises(TypeError, match=dtype):
            Generator(5).exponential(1, dtype=dtype, device=device)
        return
    bits = Generator(5).bits(2000, dtype=f"uint{width}").tolist()
    got = Generator(5).exponential(2000, dtype=dtype, device=device)
    assert got.tolist() == [scalar_exponential(b, width) for b in bits]


@pytest.mark.parametrize("name", DRAWS)
def test_every_storage_gives_the_same_bits(name: str, device: fa.Device) -> None:
    wide = name.endswith("float64") and not device.supports(fa.float64)
    with fa.default_device(device):
        if wide:
            with pytest.raises(TypeError, match="float64"):
                DRAWS[name](Generator(11), 3)
            return
        got = DRAWS[name](Generator(11), (301,))
        order = Generator(12).permutation(100)
        few = Generator(13).choice(50, 20, replace=False, p=[0.02] * 50)
    assert got.device is device
    with fa.default_device("cpu"):
        assert same_bits(got.to_device("cpu"), DRAWS[name](Generator(11), (301,)))
        assert same_bits(order.to_device("cpu"), Generator(12).permutation(100))
        chosen = Generator(13).choice(50, 20, replace=False, p=[0.02] * 50)
        assert same_bits(few.to_device("cpu"), chosen)


# sha256 of 1000 elements of seed 2024, first 16 digits. A change here breaks every user's results.
FROZEN = {
    "bits32": "2411729dd972ac7d",
    "bits64": "af347023c36ffca5",
    "integers": "25907bea0863c9f0",
    "wide integers": "9b91ce2ff92c867b",
    "choice": "636224a0602e0037",
    "weighted choice": "c1e3cbd0e5dbf0a6",
    "uniform float16": "57223e33ddf48971",
    "normal float16": "2b7b26957717c8e8",
    "exponential float16": "d1bca1c7418be8b6",
    "uniform bfloat16": "844eae2d99b15f2e",
    "normal bfloat16": "7a5a8be584fcacdd",
    "exponential bfloat16": "fd1396921129ec87",
    "uniform float32": "90baf1aad4c0e45d",
    "normal float32": "c185944979f8eabe",
    "exponential float32": "2e050daa2108d22c",
    "uniform float64": "40d61953836d46ee",
    "normal float64": "37f59c95475aecbe",
    "exponential float64": "25754162142fecf3",
}


@pytest.mark.parametrize("name", DRAWS)
def test_results_stay_what_they_were(name: str) -> None:
    data = DRAWS[name](Generator(2024), 1000).numpy().tobytes()
    assert hashlib.sha256(data).hexdigest()[:16] == FROZEN[name]


# Accuracy of the two quantile functions.


@pytest.mark.parametrize(("width", "normal_error", "exponential_error"), [(32, 4.5e-7, 2.5e-7), (64, 1.5e-15, 5e-16)])
def test_quantiles_are_accurate_everywhere(width: int, normal_error: float, exponential_error: float) -> None:
    words = Generator(1).bits(20_000, dtype=f"uint{width}").numpy()
    spread = np.concatenate([words >> k for k in range(0, width, 2)])  # all sizes
    bits = np.concatenate([spread, ~spread])
    x = fa.asarray(bits)
    u = (bits | np.array(1, bits.dtype)).astype(np.longdouble) / np.longdouble(2) ** width
    exponential = exponential_from_bits(x).numpy()
    logarithm = -np.log1p(u - 1)
    assert np.max(np.abs(exponential / logarithm - 1)) < exponential_error
    magnitude = np.where(
        u < 0.5,
        -special.ndtri((u / 2).astype(float)),
        math.sqrt(2) * special.erfinv((1 - u).astype(float)),
    )
    sign = 1.0 - 2.0 * (bits & np.array(1, bits.dtype)).astype(float)
    normal = normal_from_bits(x).numpy()
    assert np.max(np.abs(normal / (magnitude * sign) - 1)) < normal_error


@pytest.mark.parametrize("dtype", ["uint32", "uint64"])
def test_quantiles_at_the_ends(dtype: str) -> None:
    most = 2 ** (32 if dtype == "uint32" else 64) - 1
    ends = fa.asarray([0, 1, most - 1, most], dtype=dtype)
    big, minus_big, small, minus_small = normal_from_bits(ends).tolist()
    assert big == -minus_big
    assert small == -minus_small
    assert 0 < small < 1e-9
    assert big == pytest.approx(stats.norm.isf(0.5 / (most + 1)), rel=1e-6)
    e = exponential_from_bits(ends).tolist()
    assert e[0] == e[1] == pytest.approx(math.log(most + 1))
    assert e[2] == e[3] == pytest.approx(1 / most)


# Rounding on the host.


@given(st.floats(allow_nan=False, width=64), st.sampled_from(["float16", "float32"]))
def test_nearest_rounds_as_numpy_does(value: float, dtype: str) -> None:
    with np.errstate(over="ignore"):
        expected = float(np.dtype(dtype).type(value))
    assume(math.isfinite(expected))
    assert nearest(value, fa.Dtype(dtype)) == expected
    under = below(value, fa.Dtype(dtype))
    assert under < value
    if math.isfinite(under) and abs(under) <= fa.finfo(dtype).max:
        assert nearest(under, fa.Dtype(dtype)) == under
        assert float(np.nextafter(np.dtype(dtype).type(under), np.dtype(dtype).type(math.inf))) >= value


@given(st.floats(-1e30, 1e30))
def test_nearest_rounds_bfloat16_as_the_tensor_does(value: float) -> None:
    single = nearest(value, fa.float32)
    assert nearest(single, fa.bfloat16) == fa.asarray(single, dtype="bfloat16").item()


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


def agrees(sample: fa.Tensor, cdf: Callable[[Any], Any]) -> bool:
    """Kolmogorov and Smirnov's test at the level 1e-3."""
    return bool(stats.kstest(sample.numpy().astype(np.float64), cdf).pvalue > 1e-3)


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


# Generators as objects.


@given(SEEDS, PLACES)
def test_generators_travel(seed: int, place: int) -> None:
    g = Generator(seed, position=place)
    for other in (pickle.loads(pickle.dumps(g)), copy.copy(g), copy.deepcopy(g), eval(repr(g))):
        assert other == g
        assert other is not g
        assert same_bits(other.normal(5), g.copy().normal(5))
        assert other != g


@given(SEEDS, st.integers(0, 8))
def test_split_gives_generators_of_their_own(seed: int, n: int) -> None:
    parent = Generator(seed)
    children = parent.split(n)
    seeds = {child.seed for child in (*children, *parent.split(n), parent)}
    assert len(seeds) == 2 * n + 1
    assert all(child.position == 0 for child in children)
    assert children == Generator(seed).split(n)
    assert parent.position == 8 * n


def test_split_streams_are_uncorrelated() -> None:
    parent = Generator(0)
    children = parent.split(30)
    samples = np.stack([g.normal(20_000).numpy() for g in (parent, *children, *children[0].split(9))])
    correlation = np.corrcoef(samples)[~np.eye(len(samples), dtype=bool)]
    assert np.max(np.abs(correlation)) < 5 / math.sqrt(20_000)
    assert agrees(fa.asarray(samples.ravel()), stats.norm.cdf)


def test_small_seeds_are_as_good_as_any() -> None:
    first = np.array([Generator(seed).uniform(dtype="float64").item() for seed in range(5000)])
    assert agrees(fa.asarray(first), stats.uniform.cdf)


def test_threads_share_a_generator_without_using_a_word_twice() -> None:
    g = Generator(77)
    with ThreadPoolExecutor(8) as pool:
        drawn = list(pool.map(lambda _: g.bits(7).tolist(), range(200)))
    whole = Generator(77).bits(1400).tolist()
    assert sorted(word for words in drawn for word in words) == sorted(whole)


def test_default_rng_is_the_name_that_numpy_users_know() -> None:
    assert fa.random.default_rng(3) == Generator(3)


# Bad input: the error says what was wrong, and no word is used.

BAD: dict[str, tuple[Callable[[Generator], object], type[Exception], str]] = {
    "no number": (lambda g: g.uniform(low="a"), TypeError, "low must be a real number, got str"),
    "bool": (lambda g: g.normal(mean=True), TypeError, "mean must be a real number, got bool"),
    "numpy's order": (lambda g: g.uniform(0, 1, 10), TypeError, "positional"),
    "empty interval": (lambda g: g.uniform(low=1, high=1), ValueError, "low must be below high"),
    "equal in f16": (lambda g: g.uniform(low=1, high=1.0001, dtype="f16"), ValueError, "float16"),
    "too wide": (lambda g: g.uniform(low=-3e38, high=3e38), ValueError, "not finite in float32"),
    "nan": (lambda g: g.normal(std=math.nan), ValueError, "std must be finite"),
    "too big": (lambda g: g.normal(mean=10**400), ValueError, "mean must be finite"),
    "std": (lambda g: g.normal(std=-1), ValueError, "must not be negative, got -1"),
    "scale": (lambda g: g.exponential(scale=-2), ValueError, "must not be negative, got -2"),
    "complex": (lambda g: g.normal(dtype="c64"), TypeError, "got complex64"),
    "float dtype": (lambda g: g.integers(3, dtype="f32"), TypeError, "got float32"),
    "float bound": (lambda g: g.integers(0.5), TypeError, "low must be an integer, got float 0.5"),
    "bool bound": (lambda g: g.integers(True), TypeError, "low must be an integer, got bool True"),
    "no integer": (lambda g: g.integers(5, 5), ValueError, r"no integer lies in \[5, 5\)"),
    "too small": (lambda g: g.integers(256, 257, dtype="u8"), OverflowError, "uint8 does not hold"),
    "negative shape": (lambda g: g.normal((2, -1)), ValueError, "negative length -1"),
    "huge shape": (lambda g: g.normal((2**31, 2**31)), ValueError, "more elements"),
    "no memory": (lambda g: g.normal(2**50), MemoryError, "."),
    "list": (lambda g: g.permutation([1, 2]), TypeError, "an integer or a Tensor, got list"),
    "0-d": (lambda g: g.permutation(fa.asarray(1.0)), IndexError, "axis 0 is out of bounds"),
    "negative n": (lambda g: g.permutation(-1), ValueError, "got -1"),
    "nothing": (lambda g: g.choice(0), ValueError, "nothing to choose from"),
    "too few": (lambda g: g.choice(3, 4, replace=False), ValueError, "4 of 3 elements"),
    "zeros": (
        lambda g: g.choice(3, 2, replace=False, p=[1.0, 0, 0]),
        ValueError,
        "2 of 1 elements",
    ),
    "p shape": (lambda g: g.choice(3, p=[0.5, 0.5]), ValueError, r"shape \(3,\)"),
    "p sum": (lambda g: g.choice(2, p=[0.5, 0.6]), ValueError, "add up to 1.1"),
    "p sign": (lambda g: g.choice(2, p=[1.5, -0.5]), ValueError, r"p\[1\] is -0.5"),
    "p nan": (lambda g: g.choice(2, p=[math.nan, 1]), ValueError, r"p\[0\] is nan"),
    "p dtype": (lambda g: g.choice(2, p=fa.asarray([0, 1])), TypeError, "real floating"),
    "bits dtype": (lambda g: g.bits(dtype="i8"), TypeError, "uint32 or uint64, got int8"),
    "split": (lambda g: g.split(-1), ValueError, "got -1"),
    "device": (lambda g: g.uniform(device="abacus"), ValueError, "abacus"),
    "seed": (lambda g: Generator(-1), ValueError, "seed must lie in"),
    "seed bits": (lambda g: Generator(2**128), ValueError, "seed must lie in"),
    "no seed": (lambda g: Generator(None), TypeError, "seed must be an integer, got NoneType"),
    "position": (lambda g: Generator(0, position=-1), ValueError, "position must lie in"),
    "the end": (
        lambda g: Generator(0, position=2**66 - 1).bits(2),
        OverflowError,
        "has 1 words left, and 2 are wanted",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str) -> None:
    call, kind, message = BAD[name]
    g = Generator(0, position=5)
    with pytest.raises(kind, match=message):
        call(g)
    assert g.position == 5
