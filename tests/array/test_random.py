"""Random numbers: bits against integer arithmetic in Python, generators as objects, and bad input."""

from __future__ import annotations

import copy
import hashlib
import math
import pickle
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

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
from tests.array.draws import DRAWS, PLACES, SEEDS, agrees, block, same_bits


def test_same_bits_can_fail() -> None:
    assert not same_bits(fa.asarray([0.0]), fa.asarray([-0.0]))
    assert not same_bits(fa.asarray([1]), fa.asarray([1], dtype="uint64"))
    assert not same_bits(fa.asarray([1]), fa.asarray([[1]]))


# The stream of words.

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
