from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ferrum_array as fa
from ferrum_ops import ActivationKind, SequenceMeta, causal_conv1d, explain, gdn_gates
from tests.array.oracle import to_dtype, wide
from tests.ops.oracle import Array, check, distance, floats, make, noise

KINDS = get_args(ActivationKind)


def exact_activation(x: Array, kind: str | None) -> Array:
    with np.errstate(over="ignore"):
        functions: dict[str | None, Any] = {
            None: lambda: x,
            "silu": lambda: x / (1 + np.exp(-x)),
            "gelu": lambda: x * 0.5 * (1 + np.vectorize(math.erf, otypes=[float])(x / math.sqrt(2))),
            "gelu_tanh": lambda: x * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
            "relu": lambda: np.maximum(x, 0),
            "relu2": lambda: np.maximum(x, 0) ** 2,
            "sigmoid": lambda: 1 / (1 + np.exp(-x)),
            "softplus": lambda: np.logaddexp(x, 0),
        }
    result: Array = functions[kind]()
    return result


def exact_conv(x: Array, w: Array, state: Array, bias: Array | None) -> tuple[Array, Array]:
    """One sequence: x [T, C], state [K - 1, C]."""
    inputs = np.concatenate([state, x])
    width = w.shape[1]
    y = np.zeros(x.shape)
    for t in range(len(x)):
        for j in range(width):
            y[t] += w[:, j] * inputs[t + j]
    return (y if bias is None else y + bias), inputs[len(inputs) - (width - 1) :]


@given(
    seed=st.integers(0, 2**32 - 1),
    lengths=st.lists(st.sampled_from([0, 1, 3, 6]), max_size=5),
    channels=st.integers(0, 9),
    width=st.integers(1, 5),
    kind=st.sampled_from([None, *KINDS]),
    used=st.sets(st.sampled_from(["bias", "state"])),
    strided=st.booleans(),
    alike=st.booleans(),
    data=st.data(),
)
def test_conv_over_packed_sequences(
    device: fa.Device,
    seed: int,
    lengths: list[int],
    channels: int,
    width: int,
    kind: ActivationKind | None,
    used: set[str],
    strided: bool,
    alike: bool,
    data: st.DataObject,
) -> None:
    dtype = data.draw(st.sampled_from(floats(device)))
    others = [dtype if alike else data.draw(st.sampled_from(floats(device))) for _ in range(3)]
    x, x64 = make(noise(seed, sum(lengths), channels), dtype, device, strided=strided)
    w, w64 = make(noise(seed + 1, channels, width), others[0], device, strided=strided)
    bias, b64 = make(noise(seed + 2, channels), others[1], device)
    state, s64 = make(noise(seed + 3, len(lengths), width - 1, channels), others[2], device, strided=strided)
    before = wide(state).copy()
    if "state" not in used:
        s64 = np.zeros_like(s64)
    y, last = causal_conv1d(
        x,
        w,
        state if "state" in used else None,
        SequenceMeta.packed(lengths),
        bias=bias if "bias" in used else None,
        activation=kind,
    )
    pieces = [
        exact_conv(x64[a:b], w64, s, b64 if "bias" in used else None)
        for (a, b), s in zip(pairwise(np.cumsum([0, *lengths])), s64, strict=True)
    ]
    linear = np.concatenate([np.zeros((0, channels)), *(piece[0] for piece in pieces)])
    # sums that cancel keep the error of their terms, whose size is near 1
    scale = np.linalg.norm(linear) / max(np.linalg.norm(exact_activation(linear, kind)), 1e-30)
    check(y, exact_activation(linear, kind), dtype, {fa.float32: 1e-6, fa.float64: 1e-14}.get(dtype, 0) * max(scale, 1))
    assert last.shape == s64.shape
    assert last.dtype is (others[2] if "state" in used else dtype)
    for i, (_, want) in enumerate(pieces):
        assert (wide(last[i]) == wide(to_dtype(want, last.dtype))).all()
    assert (wide(state) == before).all()


@given(
    seed=st.integers(0, 2**32 - 1),
    batch=st.lists(st.integers(0, 3), max_size=2),
    cut=st.integers(0, 9),
    width=st.integers(1, 5),
    data=st.data(),
)
def test_conv_in_pieces_and_by_item_gives_the_same_bits(
    device: fa.Device, seed: int, batch: list[int], cut: int, width: int, data: st.DataObject
) -> None:
    dtype = data.draw(st.sampled_from(floats(device)))
    x, _ = make(noise(seed, *batch, 9, 7), dtype, device)
    w, _ = make(noise(seed + 1, 7, width), dtype, device)
    y, last = causal_conv1d(x, w)
    first, middle = causal_conv1d(x[..., :cut, :], w)
    second, end = causal_conv1d(x[..., cut:, :], w, middle)
    assert (wide(fa.concat([first, second], axis=-2)) == wide(y)).all()
    assert (wide(end) == wide(last)).all()
    for place in np.ndindex(*batch):
        assert (wide(causal_conv1d(x[place], w)[0]) == wide(y[place])).all()
    rows = math.prod(batch)
    packed, states = causal_conv1d(x.reshape(rows * 9, 7), w, meta=SequenceMeta.packed([9] * rows))
    assert (wide(packed.reshape(y.shape)) == wide(y)).all()
    assert (wide(states.reshape(last.shape)) == wide(last)).all()


@pytest.mark.parametrize("kind", ["silu", None])
def test_conv_as_in_transformers(kind: ActivationKind | None) -> None:
    import torch
    from transformers.models.qwen3_next import modeling_qwen3_next as peer

    x, w, bias, more = noise(1, 2, 9, 6), noise(2, 6, 4), noise(3, 6), noise(4, 2, 1, 6)
    theirs = [torch.from_numpy(np.ascontiguousarray(values.swapaxes(1, 2))) for values in (x, more)]
    ours = [fa.asarray(values) for values in (x, w, bias, more)]
    want = peer.causal_conv1d_fn(theirs[0], torch.from_numpy(w), torch.from_numpy(bias), activation=kind)
    got, state = causal_conv1d(ours[0], ours[1], bias=ours[2], activation=kind)
    assert distance(wide(got), want.numpy().swapaxes(1, 2)) < 1e-15
    # its state may hold more inputs than are needed; here as many as the filter is wide
    kept = theirs[0][..., -4:].clone()
    want = peer.causal_conv1d_update(theirs[1], kept, torch.from_numpy(w), torch.from_numpy(bias), activation=kind)
    got, state = causal_conv1d(ours[3], ours[1], state, bias=ours[2], activation=kind)
    assert distance(wide(got), want.numpy().swapaxes(1, 2)) < 1e-15
    assert (wide(state) == kept.numpy().swapaxes(1, 2)[:, 1:]).all()


def test_an_unmarked_token_changes_no_earlier_one(device: fa.Device) -> None:
    x, _ = make(noise(1, 8, 3), fa.float32, device)
    w, _ = make(noise(2, 3, 4), fa.float32, device)
    changed = x.copy()
    changed[5] = 100.0
    before, after = (wide(causal_conv1d(y, w)[0]) for y in (x, changed))
    assert (before[:5] == after[:5]).all()
    assert (before[5:] != after[5:]).all()


@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.lists(st.integers(0, 4), max_size=2),
    heads=st.integers(0, 9),
    spread=st.sampled_from([0.1, 1.0, 20.0]),
    strided=st.booleans(),
    alike=st.booleans(),
    data=st.data(),
)
def test_gates_as_the_oracle_says(
    device: fa.Device,
    seed: int,
    rows: list[int],
    heads: int,
    spread: float,
    strided: bool,
    alike: bool,
    data: st.DataObject,
) -> None:
    dtype = data.draw(st.sampled_from(floats(device)))
    other = dtype if alike else data.draw(st.sampled_from(floats(device)))
    a, a64 = make(noise(seed, *rows, heads) * spread, dtype, device, strided=strided)
    b, b64 = make(noise(seed + 1, *rows, heads) * spread, dtype, device, strided=strided)
    A_log, l64 = make(noise(seed + 2, heads), other, device, strided=strided)
    dt_bias, d64 = make(noise(seed + 3, heads), other, device)
    g, beta = gdn_gates(a, b, A_log, dt_bias)
    out = fa.float64 if dtype is fa.float64 else fa.float32
    check(g, -np.exp(l64) * np.logaddexp(a64 + d64, 0), out)
    check(beta, 1 / (1 + np.exp(-b64)), out)
    assert not np.any(wide(g) > 0)


def test_gates_as_in_transformers() -> None:
    """As the forward of its Qwen3NextGatedDeltaNet computes them."""
    import torch

    a, b, log, bias = (torch.from_numpy(noise(i, *shape)) for i, shape in enumerate([(2, 5, 4), (2, 5, 4), (4,), (4,)]))
    g, beta = gdn_gates(*(fa.asarray(x.numpy()) for x in (a, b, log, bias)))
    assert distance(wide(g), (-log.exp() * torch.nn.functional.softplus(a + bias)).numpy()) < 1e-15
    assert distance(wide(beta), b.sigmoid().numpy()) < 1e-15


def test_what_is_in_use_is_told() -> None:
    x, w, state = fa.ones((3, 2)), fa.ones((2, 4)), fa.ones((3, 2))
    assert explain(causal_conv1d, x, w).features == ("silu",)
    full = explain(
        causal_conv1d, x, w, fa.ones((1, 3, 2), dtype="f16"), SequenceMeta.packed([3]), bias=x[0], activation="relu"
    )
    assert full.features == ("relu", "bias", "state", "meta", "mixed")
    assert explain(causal_conv1d, x, w, state, activation=None).features == ("state",)
    assert explain(gdn_gates, x, x, x[0], x[0].astype("f16")).features == ("mixed",)


def test_bad_conv_input_is_refused() -> None:
    x, w = fa.ones((3, 2)), fa.ones((2, 4))
    with pytest.raises(TypeError, match="w must be real floating-point, got int64"):
        causal_conv1d(x, w.astype("i64"))
    for bad in (fa.ones((3, 4)), fa.ones((2, 1, 4)), fa.ones((2, 0))):
        with pytest.raises(ValueError, match=r"x must be \[..., T, C\] and w \[C, K\]"):
            causal_conv1d(x, bad)
    with pytest.raises(ValueError, match=r"bias must have shape \(2,\) .* got float32\[3\]"):
        causal_conv1d(x, w, bias=fa.ones(3))
    with pytest.raises(ValueError, match=r"activation must be None or one of .*, got 'swish'"):
        causal_conv1d(x, w, activation="swish")  # type: ignore[arg-type]  # what is tested
    for shape in ((4, 2), (2, 2), (1, 3, 2)):
        with pytest.raises(ValueError, match=r"state must have shape \(3, 2\)"):
            causal_conv1d(x, w, fa.ones(shape))
    with pytest.raises(ValueError, match=r"state must have shape \(2, 3, 2\), got float32\[1,3,2\]"):
        causal_conv1d(x, w, fa.ones((1, 3, 2)), SequenceMeta.packed([1, 2]))
    for bad in (fa.ones((4, 2)), fa.ones((1, 3, 2))):
        with pytest.raises(ValueError, match=r"the input must be x \[T, C\] with T = 3"):
            causal_conv1d(bad, w, meta=SequenceMeta.packed([1, 2]))


def test_tokens_out_of_order_are_refused() -> None:
    x, w = fa.ones((4, 2)), fa.ones((2, 4))
    for places in ((0, 7, 6, 8), (0, 7, 9, 10), (3, 7, 7, 8)):
        with pytest.raises(ValueError, match=r"must come in order, .* has \(7, "):
            causal_conv1d(x, w, meta=SequenceMeta((0, 1, 4), positions=places))
    # what belongs to the caches of attention has no part in it
    meta = SequenceMeta((0, 1, 4), positions=(5, 7, 8, 9), kv_lens=(6, 10), block_tables=((0,), (1,)))
    assert fa.all(causal_conv1d(x, w, meta=meta)[0] == causal_conv1d(x, w, meta=SequenceMeta((0, 1, 4)))[0])


def test_bad_gates_are_refused() -> None:
    a, log = fa.ones((3, 2)), fa.ones(2)
    with pytest.raises(ValueError, match=r"a and b must both be \[..., H\], got float32\[3,2\] and float32\[2\]"):
        gdn_gates(a, log, log, log)
    with pytest.raises(TypeError, match="b is float16"):
        gdn_gates(a, a.astype("f16"), log, log)
    with pytest.raises(ValueError, match=r"A_log must have shape \(2,\)"):
        gdn_gates(a, a, fa.ones(3), log)
    with pytest.raises(TypeError, match="dt_bias must be real floating-point, got bool"):
        gdn_gates(a, a, log, fa.ones(2, dtype="bool"))


@pytest.mark.mlx
def test_other_devices_are_refused() -> None:
    x, w = fa.ones((3, 2)), fa.ones((2, 4))
    with pytest.raises(ValueError, match="causal_conv1d: w is on device mlx:cpu but the input on cpu"):
        causal_conv1d(x, w.to_device("mlx:cpu"))
    with pytest.raises(ValueError, match="gdn_gates: A_log is on device mlx:cpu"):
        gdn_gates(x, x, x[0].to_device("mlx:cpu"), x[0])
