"""The host's own float16 conversions have the bits of NumPy's, for every float16 and for drawn float32."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from ferrum_array.backends import float16

EVERY = np.arange(1 << 16, dtype=np.uint16).view(np.float16)


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    bits = {2: np.uint16, 4: np.uint32}[a.itemsize]
    numbers = ~np.isnan(b)
    return bool(np.array_equal(np.isnan(a), ~numbers) and np.array_equal(a.view(bits)[numbers], b.view(bits)[numbers]))


def test_same_bits_can_fail() -> None:
    zero = np.zeros(1, np.float16)
    assert not same_bits(zero, -zero)
    assert not same_bits(zero, zero * np.float16(np.nan))


def test_every_float16_widens_as_in_numpy() -> None:
    assert same_bits(float16.widen(EVERY), EVERY.astype(np.float32))


def test_normal_numbers_alone() -> None:
    normal = EVERY[np.isfinite(EVERY) & (np.abs(EVERY) >= 2**-14)]
    assert same_bits(float16.widen(normal), normal.astype(np.float32))
    assert same_bits(float16.narrow(normal.astype(np.float32)), normal)


@given(seed=st.integers(0, 2**32 - 1))
def test_any_float32_bits_narrow_as_in_numpy(seed: int) -> None:
    bits = np.random.default_rng(seed).integers(0, 1 << 32, 1 << 14, dtype=np.uint32)
    with np.errstate(all="ignore"):
        assert same_bits(float16.narrow(bits.view(np.float32)), bits.view(np.float32).astype(np.float16))


@given(seed=st.integers(0, 2**32 - 1))
def test_float32_in_the_normal_range_narrow_as_in_numpy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    bits = rng.integers(112 << 23, 144 << 23, 1 << 14, dtype=np.uint32) | (
        rng.integers(0, 2, 1 << 14, dtype=np.uint32) << 31
    )
    with np.errstate(all="ignore"):
        assert same_bits(float16.narrow(bits.view(np.float32)), bits.view(np.float32).astype(np.float16))


@pytest.mark.parametrize(
    "value", [65504.0, 65519.996, 65520.0, 2**-14, 1 + 2**-11, 1 + 3 * 2**-11, -0.0, 2**-25, np.inf]
)
def test_edges(value: float) -> None:
    x = np.full(1 << 14, value, np.float32)
    with np.errstate(all="ignore"):
        assert same_bits(float16.narrow(x), x.astype(np.float16))


@given(x=npst.arrays(np.float16, npst.array_shapes(max_side=5)))
def test_small_and_strided_arrays(x: np.ndarray) -> None:
    assert same_bits(float16.widen(x.T).copy(), x.T.astype(np.float32).copy())
