from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special

import ferrum_array as fa
from ferrum_ops import ActivationKind, activation
from tests.array.oracle import wide
from tests.ops.oracle import Array, check, floats, make, noise

EXACT: dict[ActivationKind, Callable[[Array], Array]] = {
    "silu": lambda x: x * special.expit(x),
    "gelu": lambda x: x * special.ndtr(x),
    "gelu_tanh": lambda x: x * special.expit(2 * np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)),
    "relu": lambda x: np.maximum(x, 0),
    "relu2": lambda x: np.maximum(x, 0) ** 2,
    "sigmoid": special.expit,
    "softplus": lambda x: np.logaddexp(x, 0),
}
KINDS = list(EXACT)

#: limits at -inf and inf
LIMITS = {kind: (0.0, 1.0 if kind == "sigmoid" else np.inf) for kind in KINDS}


def test_every_kind_has_an_oracle() -> None:
    assert set(KINDS) == set(get_args(ActivationKind))


@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.lists(st.integers(0, 9), max_size=3),
    kind=st.sampled_from(KINDS),
    spread=st.sampled_from([0.01, 1.0, 8.0]),
    strided=st.booleans(),
    data=st.data(),
)
def test_as_the_oracle_says(
    device: fa.Device,
    seed: int,
    shape: list[int],
    kind: ActivationKind,
    spread: float,
    strided: bool,
    data: st.DataObject,
) -> None:
    dtype = data.draw(st.sampled_from(floats(device)))
    x, exact = make(noise(seed, *shape) * spread, dtype, device, strided=strided)
    check(activation(x, kind), EXACT[kind](exact), dtype)


# In float64 the oracle itself is off by as much as we are, by mpmath's reckoning twice as much.
@pytest.mark.parametrize(("name", "digits", "slack"), [("float32", 24, 1), ("float64", 53, 4)])
def test_gelu_is_right_to_the_last_places(device: fa.Device, name: str, digits: int, slack: int) -> None:
    """Point by point and in both tails, where a formula with erf has lost every digit."""
    dtype = fa.Dtype(name)
    if not device.supports(dtype):
        with pytest.raises(TypeError, match=name):
            fa.ones(1, dtype=dtype, device=device)
        return
    grid = np.concatenate([np.linspace(-12, 12, 9001), *(np.logspace(-30, 0, 301) * s for s in (-1, 1))])
    x, exact = make(grid, dtype, device)
    want = EXACT["gelu"](exact)
    error = np.abs(wide(activation(x, "gelu")) - want) * 2.0**digits
    allowed = np.abs(want) * (6 + np.where(exact < 0, exact**2, 0)) * slack
    assert (error <= allowed).all(), exact[error > allowed]


@pytest.mark.parametrize("kind", KINDS)
def test_limits(device: fa.Device, kind: ActivationKind) -> None:
    x = fa.asarray([-fa.inf, fa.inf, fa.nan, -1e30, 0.0], device=device)
    low, high, nan, far, zero = wide(activation(x, kind))
    assert (low, high) == LIMITS[kind]
    assert np.isnan(nan)
    assert far == 0
    assert zero == EXACT[kind](np.asarray(0.0)).astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_change_nothing(device: fa.Device, kind: ActivationKind) -> None:
    """More elements than one block, not a multiple of it; every element depends on itself alone."""
    x = fa.asarray(noise(1, 3, 50_001), dtype="f32", device=device)
    whole = activation(x, kind)
    rows = fa.stack([activation(x[i], kind) for i in range(3)])
    assert whole.shape == x.shape
    assert fa.all(whole == rows)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'gelu_new'.*gelu_tanh"):
        activation(fa.ones(2), "gelu_new")  # type: ignore[arg-type]  # what is tested
    with pytest.raises(TypeError, match=r"real floating-point, got int64\[2\]"):
        activation(fa.asarray([1, 2]), "relu")
    with pytest.raises(TypeError, match="must be a Tensor, got list"):
        activation([1.0], "relu")  # type: ignore[arg-type]  # what is tested
