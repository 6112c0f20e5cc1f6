from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special

import ferrum_array as fa
from ferrum_ops import ActivationKind, activation, explain, gated_activation, sigmoid_gate, softcap
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


# Gates.


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_right_to_the_last_digits(device: fa.Device, kind: ActivationKind) -> None:
    """On a grid, so that a constant that is off in its fourth digit is seen."""
    x, x64 = make(np.linspace(-4.0, 4.0, 1001), fa.float32, device)
    check(activation(x, kind), EXACT[kind](x64), fa.float32, 2e-7)
    check(gated_activation(x, x, kind), EXACT[kind](x64) * x64, fa.float32, 2e-7)


def exact_gate(gate: Array, up: Array, kind: ActivationKind, limit: float | None, alpha: float, offset: float) -> Array:
    if limit is not None:
        gate, up = np.minimum(gate, limit), np.clip(up, -limit, limit)
    activated = gate * special.expit(alpha * gate) if kind == "silu" else EXACT[kind](gate)
    return activated * (up + offset)


@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.lists(st.integers(0, 9), max_size=3),
    kind=st.sampled_from(KINDS),
    spread=st.sampled_from([0.1, 1.0, 8.0]),
    limit=st.sampled_from([None, 0.5, 7.0]),
    alpha=st.sampled_from([1.0, 1.702]),
    offset=st.sampled_from([0.0, 1.0, -0.5]),
    strided=st.booleans(),
    data=st.data(),
)
def test_gates_as_the_oracle_says(
    device: fa.Device,
    seed: int,
    shape: list[int],
    kind: ActivationKind,
    spread: float,
    limit: float | None,
    alpha: float,
    offset: float,
    strided: bool,
    data: st.DataObject,
) -> None:
    dtype = data.draw(st.sampled_from(floats(device)))
    alpha = alpha if kind == "silu" else 1.0
    gate, gate64 = make(noise(seed, *shape) * spread, dtype, device, strided=strided)
    up, up64 = make(noise(seed + 1, *shape) * spread, dtype, device, strided=strided)
    got = gated_activation(gate, up, kind, limit=limit, alpha=alpha, up_offset=offset)
    # one unit in the last place of up + offset is more, where the two cancel
    loose = 2e-6 if dtype is fa.float32 else 0.0
    check(got, exact_gate(gate64, up64, kind, limit, alpha, offset), dtype, loose)
    if limit is None and not offset and alpha == 1.0 and dtype in (fa.float32, fa.float64):
        assert fa.all(got == activation(gate, kind) * up)


def test_the_gate_of_gpt_oss(device: fa.Device) -> None:
    import torch
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

    both = (noise(1, 50, 12) * 6).astype(np.float32)
    settings = SimpleNamespace(limit=7.0, alpha=1.702)
    want = GptOssExperts._apply_gate(settings, torch.from_numpy(both)).double().numpy()
    x = fa.asarray(both, device=device)
    got = gated_activation(x[:, ::2], x[:, 1::2], "silu", limit=7.0, alpha=1.702, up_offset=1.0)
    np.testing.assert_allclose(wide(got), want, rtol=1e-5, atol=1e-6)


def test_gates_at_their_limits(device: fa.Device) -> None:
    gate = fa.asarray([-fa.inf, fa.inf, fa.nan, 1.0, 1.0], device=device)
    up = fa.asarray([2.0, 2.0, 2.0, fa.nan, fa.inf], device=device)
    low, high, *nans, capped = wide(gated_activation(gate, up, "relu", limit=3.0))
    assert (low, high, capped) == (0, 6, 3)
    assert np.isnan(nans).all()
    assert wide(gated_activation(gate, up, "silu"))[0] == 0
    assert wide(gated_activation(gate, up, "silu", alpha=1.702))[0] == 0


def test_gates_by_blocks(device: fa.Device) -> None:
    gate, up = (fa.asarray(noise(i, 3, 50_001), dtype="f32", device=device) for i in range(2))
    whole = gated_activation(gate, up, "silu")
    assert fa.all(whole == fa.stack([gated_activation(gate[i], up[i], "silu") for i in range(3)]))


@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.lists(st.integers(0, 5), max_size=3),
    by_row=st.booleans(),
    added=st.booleans(),
    strided=st.booleans(),
    data=st.data(),
)
def test_sigmoid_gates_as_the_oracle_says(
    device: fa.Device,
    seed: int,
    shape: list[int],
    by_row: bool,
    added: bool,
    strided: bool,
    data: st.DataObject,
) -> None:
    dtype = data.draw(st.sampled_from(floats(device)))
    x, x64 = make(noise(seed, *shape), dtype, device, strided=strided)
    gate, gate64 = make(noise(seed + 1, *(*shape[:-1], 1) if by_row and shape else shape) * 4, dtype, device)
    residual, r64 = make(noise(seed + 2, *shape), dtype, device, strided=strided)
    got = sigmoid_gate(x, gate, residual=residual if added else None)
    # a residual may cancel
    loose = {fa.float32: 2e-6, fa.float64: 2e-14}.get(dtype, 0.0) if added else 0.0
    check(got, x64 * special.expit(gate64) + (r64 if added else 0.0), dtype, loose)


def test_a_closed_gate_lets_nothing_through(device: fa.Device) -> None:
    gate = fa.asarray([-fa.inf, -1e30, fa.inf], device=device)
    assert wide(sigmoid_gate(fa.asarray([5.0, 5.0, 5.0], device=device), gate)).tolist() == [0.0, 0.0, 5.0]


@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.lists(st.integers(0, 9), max_size=3),
    cap=st.sampled_from([0.5, 30.0, 50]),
    spread=st.sampled_from([0.01, 1.0, 100.0]),
    strided=st.booleans(),
    data=st.data(),
)
def test_caps_as_the_oracle_says(
    device: fa.Device, seed: int, shape: list[int], cap: float, spread: float, strided: bool, data: st.DataObject
) -> None:
    dtype = data.draw(st.sampled_from(floats(device)))
    x, x64 = make(noise(seed, *shape) * spread, dtype, device, strided=strided)
    got = softcap(x, cap)
    check(got, cap * np.tanh(x64 / cap), dtype)
    assert (np.abs(wide(got)) <= cap).all()


def test_caps_at_their_limits(device: fa.Device) -> None:
    x = fa.asarray([-fa.inf, fa.inf, fa.nan, 0.0], device=device)
    low, high, nan, zero = wide(softcap(x, 30.0))
    assert (low, high, zero) == (-30, 30, 0)
    assert np.isnan(nan)


def test_what_is_in_use_is_told() -> None:
    x = fa.ones((2, 3))
    assert explain(activation, x, "gelu").features == ("gelu",)
    assert explain(gated_activation, x, x, "silu").features == ("silu",)
    more = explain(gated_activation, x, x, "silu", limit=7, alpha=1.702, up_offset=1)
    assert more.features == ("silu", "limit", "alpha", "up_offset")
    assert explain(sigmoid_gate, x, x[:, :1], residual=x).features == ("by_row", "residual")
    assert explain(softcap, x, 3.0).features == ()


X = fa.ones((2, 3))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"kind": "swish"}, ValueError, "gated_activation: no kind is called 'swish'; known are silu"),
        ({"limit": 0.0}, ValueError, r"limit must be finite and above 0, or None, got 0.0"),
        ({"limit": fa.inf}, ValueError, "limit must be finite and above 0"),
        ({"alpha": fa.nan}, ValueError, "alpha must be finite and above 0, got nan"),
        ({"alpha": -1.0}, ValueError, r"alpha must be finite and above 0, got -1.0"),
        ({"kind": "gelu", "alpha": 2.0}, ValueError, r"alpha=2.0 belongs to kind 'silu', got kind 'gelu'"),
        ({"up_offset": fa.inf}, ValueError, "up_offset must be finite, got inf"),
        ({"up": fa.ones(3)}, ValueError, r"share a shape, got float32\[2,3\] and float32\[3\]"),
        ({"up": X.astype("f16")}, TypeError, r"up is float16\[2,3\] but the input is float32\[2,3\]"),
        ({"gate": X.astype("i64")}, TypeError, "gate must be real floating-point, got int64"),
    ],
)
def test_bad_gates_are_refused(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        gated_activation(**{"gate": X, "up": X, "kind": "silu", **arguments})


def test_bad_sigmoid_gates_and_caps_are_refused() -> None:
    for gate in (fa.ones(3), fa.ones((2, 2)), fa.ones((1, 3))):
        with pytest.raises(ValueError, match=r"gate must have the shape of x float32\[2,3\], or 1 for the last axis"):
            sigmoid_gate(X, gate)
    with pytest.raises(ValueError, match="gate must have the shape of x"):
        sigmoid_gate(fa.asarray(1.0), fa.ones(1))
    with pytest.raises(ValueError, match=r"residual must have the shape of x float32\[2,3\], got float32\[2,1\]"):
        sigmoid_gate(X, X, residual=X[:, :1])
    with pytest.raises(TypeError, match=r"residual is float16\[2,3\]"):
        sigmoid_gate(X, X, residual=X.astype("f16"))
    with pytest.raises(TypeError, match=r"gate is float16\[2,3\]"):
        sigmoid_gate(X, X.astype("f16"))
    for cap in (0.0, -1.0, fa.inf, fa.nan):
        with pytest.raises(ValueError, match=f"cap must be finite and above 0, got {cap}"):
            softcap(X, cap)
    with pytest.raises(TypeError, match="x must be real floating-point, got int64"):
        softcap(X.astype("i64"), 1.0)
