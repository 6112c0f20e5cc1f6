"""The kernels of activations and gates."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

import ferrum_array as fa
from ferrum_ops import ActivationKind
from ferrum_ops.kernels.cuda import activations
from ferrum_ops.kernels.cuda.launch import Kernel
from tests.array.oracle import wide
from tests.ops.interpreted.coarse import coarse
from tests.ops.interpreted.drawn import HALVES, LIES, Lie, lying, poison
from tests.ops.interpreted.hopper import compiled
from tests.ops.oracle import check
from tests.ops.test_activation import EXACT, LIMITS, exact_gate

SHAPES = st.one_of(
    st.lists(st.integers(0, 9), max_size=3).map(tuple), st.sampled_from([(1, 130), (3, 1025), (2, 2, 1500), (2100,)])
)
KINDS = get_args(ActivationKind)


@pytest.fixture(autouse=True)
def _without_warnings() -> object:
    """Kernels do not warn of exponentials that are infinite; NumPy in their place would."""
    with np.errstate(all="ignore"):
        yield


@given(
    seed=st.integers(0, 2**32 - 1),
    shape=SHAPES,
    kind=st.sampled_from(KINDS),
    spread=st.sampled_from([0.01, 1.0, 8.0]),
    dtype=st.sampled_from(HALVES),
    lie=st.sampled_from(LIES),
)
def test_as_the_oracle_says(
    seed: int, shape: tuple[int, ...], kind: ActivationKind, spread: float, dtype: fa.Dtype, lie: Lie
) -> None:
    x, x64 = lying(seed, shape, dtype, lie, spread)
    with poison(activations):
        got = activations.activation(x, kind)
    check(got, EXACT[kind](x64), dtype)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_right_to_the_last_digits(kind: ActivationKind) -> None:
    x = fa.linspace(-4.0, 4.0, 1001)
    check(activations.activation(x, kind), EXACT[kind](wide(x)), fa.float32, 2e-7)


def test_both_tails_of_gelu() -> None:
    """Where a formula with erf has lost every digit."""
    x = fa.asarray(np.concatenate([np.linspace(-12, 12, 4001), *(np.logspace(-30, 0, 101) * s for s in (-1, 1))]))
    x = x.astype(fa.float32)
    want = EXACT["gelu"](wide(x))
    error = np.abs(wide(activations.activation(x, "gelu")) - want) * 2.0**24
    assert (error <= np.abs(want) * (6 + np.where(wide(x) < 0, wide(x) ** 2, 0))).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", HALVES)
def test_limits(kind: ActivationKind, dtype: fa.Dtype) -> None:
    x = fa.asarray([-fa.inf, fa.inf, fa.nan, -60000.0, 0.0], dtype=dtype)
    low, high, nan, far, zero = wide(activations.activation(x, kind))
    assert (low, high) == LIMITS[kind]
    assert np.isnan(nan)
    assert far == 0
    assert zero == wide(fa.asarray(EXACT[kind](np.asarray(0.0)), dtype=dtype))


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=SHAPES,
    kind=st.sampled_from(KINDS),
    limit=st.sampled_from([None, 0.5, 7.0]),
    alpha=st.sampled_from([1.0, 1.702]),
    offset=st.sampled_from([0.0, 1.0, -0.5]),
    dtype=st.sampled_from(HALVES),
    lies=st.tuples(st.sampled_from(LIES), st.sampled_from(LIES)),
)
def test_gates_as_the_oracle_says(
    seed: int,
    shape: tuple[int, ...],
    kind: ActivationKind,
    limit: float | None,
    alpha: float,
    offset: float,
    dtype: fa.Dtype,
    lies: tuple[Lie, Lie],
) -> None:
    alpha = alpha if kind == "silu" else 1.0
    gate, gate64 = lying(seed, shape, dtype, lies[0], 3.0)
    up, up64 = lying(seed + 1, shape, dtype, lies[1], 3.0)
    with poison(activations):
        got = activations.gated_activation(gate, up, kind, limit, alpha, offset)
    loose = 2e-6 if dtype is fa.float32 else 0.0  # as up + offset may cancel
    check(got, exact_gate(gate64, up64, kind, limit, alpha, offset), dtype, loose)


def test_gates_at_their_limits() -> None:
    gate, up = fa.asarray([-fa.inf, fa.inf, fa.nan, 1.0, 1.0]), fa.asarray([2.0, 2.0, 2.0, fa.nan, fa.inf])
    low, high, *nans, capped = wide(activations.gated_activation(gate, up, "relu", 3.0, 1.0, 0.0))
    assert (low, high, capped) == (0, 6, 3)
    assert np.isnan(nans).all()
    assert wide(activations.gated_activation(gate, up, "silu", None, 1.702, 0.0))[0] == 0


def test_halves_of_one_tensor() -> None:
    h, h64 = lying(3, (5, 2 * 1100), fa.float16, "whole")
    with poison(activations):
        got = activations.gated_activation(h[:, :1100], h[:, 1100:], "gelu_tanh", None, 1.0, 0.0)
    check(got, exact_gate(h64[:, :1100], h64[:, 1100:], "gelu_tanh", None, 1.0, 0.0), fa.float16)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=SHAPES,
    by_row=st.booleans(),
    added=st.booleans(),
    dtype=st.sampled_from(HALVES),
    lies=st.tuples(*(st.sampled_from(LIES) for _ in range(3))),
)
def test_sigmoid_gates_as_the_oracle_says(
    seed: int, shape: tuple[int, ...], by_row: bool, added: bool, dtype: fa.Dtype, lies: tuple[Lie, Lie, Lie]
) -> None:
    x, x64 = lying(seed, shape, dtype, lies[0])
    gate, gate64 = lying(seed + 1, (*shape[:-1], 1) if by_row and shape else shape, dtype, lies[1], 4.0)
    residual, r64 = lying(seed + 2, shape, dtype, lies[2])
    with poison(activations):
        got = activations.sigmoid_gate(x, gate, residual if added else None)
    loose = {fa.float32: 2e-6}.get(dtype, 0.0) if added else 0.0
    check(got, x64 * special.expit(gate64) + (r64 if added else 0.0), dtype, loose)


@given(
    seed=st.integers(0, 2**32 - 1),
    shape=SHAPES,
    cap=st.sampled_from([0.5, 30.0, 50.0]),
    spread=st.sampled_from([0.01, 1.0, 100.0]),
    dtype=st.sampled_from(HALVES),
    lie=st.sampled_from(LIES),
)
def test_caps_as_the_oracle_says(
    seed: int, shape: tuple[int, ...], cap: float, spread: float, dtype: fa.Dtype, lie: Lie
) -> None:
    x, x64 = lying(seed, shape, dtype, lie, spread)
    with poison(activations):
        got = activations.softcap(x, cap)
    check(got, cap * np.tanh(x64 / cap), dtype)
    assert (np.abs(wide(got)) <= cap).all()


def test_caps_at_their_limits() -> None:
    low, high, nan, zero = wide(activations.softcap(fa.asarray([-fa.inf, fa.inf, fa.nan, 0.0]), 30.0))
    assert (low, high, zero) == (-30, 30, 0)
    assert np.isnan(nan)


def test_a_cap_where_two_forms_of_tanh_meet() -> None:
    x = fa.linspace(0.05, 0.7, 3001)
    for cap in (1.0, 0.5):
        got = wide(activations.softcap(x * cap, cap))
        want = cap * np.tanh(wide(x * cap) / cap)
        assert (np.abs(got / want - 1.0) < 2.1e-7).all()


@pytest.mark.parametrize("kind", [*KINDS, "tanh"])
def test_what_16_bits_are_rounded_from(kind: ActivationKind) -> None:
    """Far below half a unit in the last place of float16, point by point and in the tails, the right one near 1."""
    grid = np.concatenate([np.linspace(-9, 9, 3601), *(s * np.logspace(-6, 1, 400) for s in (-1, 1))])
    x = fa.asarray(grid.astype(np.float32))
    out = fa.full_like(x, fa.nan)
    Kernel(coarse)((1,), x, out, x.size, KIND=kind, BLOCK=8192)
    want = np.tanh(wide(x)) if kind == "tanh" else EXACT[kind](wide(x))
    error = np.abs(wide(out) - want)
    assert (error <= 3e-5 * np.abs(want)).all(), wide(x)[error > 3e-5 * np.abs(want)]


def test_code_for_hopper_moves_16_bytes_at_a_time() -> None:
    found = compiled("""
        from ferrum_ops.kernels.cuda import activations as a
        for dtype in (fa.bfloat16, fa.float32):
            x, h = fa.ones((2, 4096), dtype=dtype), fa.ones((2, 1536), dtype=dtype)
            for kind in ("gelu", "softplus"):
                a.activation(x, kind)
            a.gated_activation(h[:, :768], h[:, 768:], "silu", 7.0, 1.702, 1.0)
            a.sigmoid_gate(x, x, x)
            a.softcap(x, 30.0)
    """)
    assert len(found) == 10
    for made in found:
        assert made.shared == 0
        assert not made.local
        assert made.wide == made.moves, made


def test_operands_that_lie_each_in_its_way() -> None:
    shape = (3, 40)
    (x, x64), (gate, gate64), (added, added64) = (
        lying(i, shape, fa.float32, lie) for i, lie in enumerate(("whole", "columns", "gaps"))
    )
    check(activations.gated_activation(x, gate, "relu", None, 1.0, 0.0), np.maximum(x64, 0) * gate64, fa.float32)
    check(activations.gated_activation(gate, x, "relu", None, 1.0, 0.0), np.maximum(gate64, 0) * x64, fa.float32)
    tensors, numbers = (x, gate, added), (x64, gate64, added64)
    for a, b, c in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        got = activations.sigmoid_gate(tensors[a], tensors[b], tensors[c])
        check(got, numbers[a] * special.expit(numbers[b]) + numbers[c], fa.float32, 2e-6)
