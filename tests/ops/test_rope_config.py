"""Frequencies, their scalings, and what configs say of them."""

from __future__ import annotations

import math
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferrum_ops import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    ProportionalScaling,
    RopeScaling,
    YarnScaling,
    rope_frequencies,
    rope_scaling,
)
from tests.ops.oracle import Array


def numbers(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high).map(lambda x: float(f"{x:.3g}"))


KINDS = ["default", "linear", "dynamic", "yarn", "longrope", "llama3", "proportional"]


@st.composite
def configs(draw: st.DrawFn, kind: str, dim: int) -> dict[str, Any]:
    """The entries of a config, as models have them."""
    found: dict[str, Any] = {"rope_type": kind}
    if kind not in ("default", "proportional"):
        found["factor"] = draw(numbers(1, 64))
    if kind in ("yarn", "longrope", "llama3"):
        found["original_max_position_embeddings"] = draw(st.integers(64, 8192))
    if kind in ("yarn", "longrope") and draw(st.integers(0, 2)) == 0:
        found["attention_factor"] = draw(numbers(0.5, 2))
    if kind == "yarn":
        if draw(st.booleans()):
            found |= {"beta_fast": draw(numbers(8, 64)), "beta_slow": draw(numbers(0.5, 4))}
        if draw(st.booleans()):
            found |= {"mscale": draw(numbers(0.5, 1)), "mscale_all_dim": draw(numbers(0.5, 1))}
        found["truncate"] = draw(st.booleans())
    elif kind == "longrope":
        for name in ("short_factor", "long_factor"):
            found[name] = draw(st.lists(numbers(1, 64), min_size=dim // 2, max_size=dim // 2))
    elif kind == "llama3":
        found |= {"low_freq_factor": draw(numbers(0.5, 2)), "high_freq_factor": draw(numbers(3, 8))}
    elif kind == "proportional" and draw(st.booleans()):
        found |= {"partial_rotary_factor": draw(numbers(0.1, 1)), "factor": draw(numbers(1, 8))}
    return found


def peer(config: dict[str, Any], dim: int, theta: float, length: int, longest: int) -> tuple[Array, float]:
    """What transformers computes; in double precision, but for the divisors of longrope."""
    import torch
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    settings = LlamaConfig(
        hidden_size=dim,
        num_attention_heads=1,
        head_dim=dim,
        max_position_embeddings=longest,
        rope_parameters={**config, "rope_theta": theta},
    )
    find = ROPE_INIT_FUNCTIONS.get(config["rope_type"], LlamaRotaryEmbedding.compute_default_rope_parameters)
    with mock.patch.multiple(torch, float=torch.float64, float32=torch.float64):
        found, factor = find(settings, seq_len=length)
    return found.numpy().astype(np.float64), factor


@pytest.mark.parametrize("kind", KINDS)
@given(
    data=st.data(),
    half=st.integers(2, 40),
    theta=st.sampled_from([100.0, 10000.0, 500000.0, 5e6]),
)
def test_frequencies_are_those_of_transformers(kind: str, data: st.DataObject, half: int, theta: float) -> None:
    config = data.draw(configs(kind, 2 * half))
    original = int(config.get("original_max_position_embeddings", 4096))
    length = data.draw(st.integers(1, 8 * original) | st.integers(original - 1, original + 1))
    want, factor = peer(config, 2 * half, theta, length, 2 * original)
    ours = dict(config)
    if config["rope_type"] == "dynamic":
        ours["max_position_embeddings"] = 2 * original
    got, magnitude = rope_frequencies(2 * half, theta, ours, length=length)
    tolerance = 1e-6 if config["rope_type"] == "longrope" else 1e-12
    np.testing.assert_allclose(got, want, rtol=tolerance)
    assert math.isclose(magnitude, factor, rel_tol=1e-12)
    spelled = {"type": ours.pop("rope_type"), **ours, "rope_theta": theta, "attention_mask": None}
    assert rope_frequencies(2 * half, theta, spelled, length=length) == (got, magnitude)


def test_configs_become_scalings() -> None:
    yarn = {"type": "yarn", "original_max_position_embeddings": 1024, "max_position_embeddings": 4096}
    assert rope_scaling(yarn) == YarnScaling(4.0, 1024)
    assert rope_scaling({**yarn, "factor": 2.0}) == YarnScaling(2.0, 1024)
    su = {"type": "su", "short_factor": [1.0], "long_factor": [2.0], "original_max_position_embeddings": 8}
    assert rope_scaling({**su, "factor": 2}) == LongRopeScaling((1.0,), (2.0,), 8, 2)
    assert rope_scaling({**su, "max_position_embeddings": 16}) == LongRopeScaling((1.0,), (2.0,), 8, 2.0)
    llama3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    assert rope_scaling({"rope_type": "llama3", **llama3}) == Llama3Scaling(8.0, 1.0, 4.0, 8192)
    assert rope_scaling({"rope_type": "dynamic", "factor": 2.0, "max_position_embeddings": 9}) == DynamicScaling(2.0, 9)
    assert rope_scaling({"rope_type": "linear", "type": "linear", "factor": 2.0}) == LinearScaling(2.0)
    assert rope_scaling({"rope_type": "proportional"}) == ProportionalScaling()
    for nothing in ({}, {"rope_type": "default"}, {"type": "mrope", "mrope_section": [1]}, {"type": None}):
        assert rope_scaling(nothing) is None
    assert rope_scaling({"rope_theta": 1e4, "partial_rotary_factor": 1.0, "rope_type": "default"}) is None


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"rope_type": "ntk"}, "no kind is called 'ntk'; known are default, linear, dynamic, yarn, .* su$"),
        ({"rope_type": "linear", "factors": 2.0}, "'factors' for 'linear'; known are factor, rope_type, .*rope_theta"),
        ({"rope_type": "default", "factor": 2.0}, "'factor' for 'default'; known are rope_type"),
        ({"rope_type": "linear"}, "'linear' needs factor; got nothing"),
        ({"rope_type": "llama3", "factor": 2.0}, "'llama3' needs low_freq_factor, high_freq_factor, .*; got factor"),
        ({"rope_type": "yarn", "max_position_embeddings": 8}, "'yarn' needs factor, original_max_position_embeddings"),
        ({"rope_type": "linear", "type": "yarn"}, "rope_type is 'linear' but type is 'yarn'"),
        ({"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}, "dimensions that rotate as dim"),
        ({"rope_type": "linear", "factor": 0.0}, "LinearScaling: factor must be finite and above 0, got 0.0"),
        ({"rope_type": "linear", "factor": "2"}, "factor must be finite and above 0, got '2'"),
        ({"rope_type": "linear", "factor": True}, "factor must be finite and above 0, got True"),
        ({"rope_type": "linear", "factor": math.inf}, "factor must be finite"),
        ({"rope_type": "proportional", "partial_rotary_factor": 1.5}, "must be at most 1, got 1.5"),
    ],
)
def test_bad_configs_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rope_scaling(config)


def test_bad_scalings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"beta_fast must be at least beta_slow, got 1.0 and 2.0"):
        YarnScaling(2.0, 64, beta_fast=1.0, beta_slow=2.0)
    with pytest.raises(ValueError, match=r"mscale and mscale_all_dim are needed together, got 1.0 and None"):
        YarnScaling(2.0, 64, mscale=1.0)
    with pytest.raises(ValueError, match="truncate must be True or False, got 1"):
        YarnScaling(2.0, 64, truncate=1)  # type: ignore[arg-type]  # what is tested
    with pytest.raises(ValueError, match=r"high_freq_factor must be above low_freq_factor, got 1.0 and 1.0"):
        Llama3Scaling(2.0, 1.0, 1.0, 64)
    with pytest.raises(ValueError, match="factor or attention_factor is needed"):
        LongRopeScaling((1.0,), (1.0,), 64)
    with pytest.raises(ValueError, match="original_max_position_embeddings must be above 1, got 1"):
        LongRopeScaling((1.0,), (1.0,), 1, factor=2.0)
    with pytest.raises(ValueError, match=r"long_factor must be finite and above 0, got -1.0"):
        LongRopeScaling((1.0,), (-1.0,), 64, factor=2.0)
    with pytest.raises(ValueError, match="long_factor must have dim / 2 numbers, 2 for dim=4, got 1"):
        rope_frequencies(4, 1e4, LongRopeScaling((1.0, 1.0), (1.0,), 64, 2.0), length=1)
    with pytest.raises(ValueError, match="dim of at least 4"):
        rope_frequencies(2, 1e4, DynamicScaling(2.0, 64), length=99)
    with pytest.raises(TypeError, match="abstract"):
        RopeScaling()  # type: ignore[abstract]  # what is tested


def test_bad_frequencies_are_refused() -> None:
    for dim in (0, 3, -2, 4.0, True):
        with pytest.raises(ValueError, match="dim must be an even integer of at least 2"):
            rope_frequencies(dim, 1e4)  # type: ignore[arg-type]  # what is tested
    for theta in (1.0, 0.0, -2.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="theta must be finite and above 1"):
            rope_frequencies(4, theta)
    with pytest.raises(TypeError, match=r"scaling must be a RopeScaling, .* got float"):
        rope_frequencies(4, 1e4, 2.0)  # type: ignore[arg-type]  # what is tested
    with pytest.raises(ValueError, match="dynamic scaling depends on the length of the sequence; pass length"):
        rope_frequencies(4, 1e4, DynamicScaling(2.0, 64))
    with pytest.raises(ValueError, match="length must be an integer of at least 0, got -1"):
        rope_frequencies(4, 1e4, length=-1)
    with pytest.raises(ValueError, match=r"theta is 10000.0, but the entries of scaling say rope_theta=500000.0"):
        rope_frequencies(4, 1e4, {"rope_type": "default", "rope_theta": 5e5})
