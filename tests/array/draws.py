"""Random numbers: what the tests of them share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st
from scipy import stats

import ferrum_array as fa
from ferrum_array.random import Generator

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

M0, M1, W0, W1, LOW = 0xD2511F53, 0xCD9E8D57, 0x9E3779B9, 0xBB67AE85, 0xFFFFFFFF


def same_bits(a: fa.Tensor, b: fa.Tensor) -> bool:
    """Whether two tensors are equal in shape, dtype and every bit."""
    x, y = (np.ascontiguousarray(t.numpy()) for t in (a, b))
    return a.dtype is b.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()


def agrees(sample: fa.Tensor, cdf: Callable[[Any], Any]) -> bool:
    """Kolmogorov and Smirnov's test at the level 1e-3."""
    return bool(stats.kstest(sample.numpy().astype(np.float64), cdf).pvalue > 1e-3)


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
