from __future__ import annotations

from itertools import pairwise
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ferrum_array as fa
from ferrum_ops import SequenceMeta, explain, gated_delta_rule
from ferrum_ops.delta_rule import unit_lower_inverse
from tests.array.oracle import wide
from tests.ops.oracle import Array, check, distance, floats, make, noise

# Sums of many terms, one after another.
TOLERANCE = {fa.float32: 2e-6, fa.float64: 1e-14}


def exact(
    q: Array, k: Array, v: Array, g: Array, beta: Array, state: Array, scale: float, normalize: bool
) -> tuple[Array, Array]:
    """One sequence, token by token: q and k [T, Hk, D], v [T, H, Dv], gates [T, H], state [H, D, Dv]."""
    state, o = state.copy(), np.zeros(v.shape)
    group = v.shape[1] // k.shape[1]
    for t in range(len(q)):
        for h in range(v.shape[1]):
            query, key = q[t, h // group], k[t, h // group]
            if normalize:
                query, key = (x / np.sqrt(x @ x + 1e-6) for x in (query, key))
            state[h] *= np.exp(g[t, h])
            state[h] += np.outer(key, beta[t, h] * (v[t, h] - state[h].T @ key))
            o[t, h] = scale * (state[h].T @ query)
    return o, state


def operands(
    seed: int, tokens: int, sequences: int, sizes: tuple[int, int, int, int], decay: float, dtype: fa.Dtype, **more: Any
) -> tuple[list[fa.Tensor], list[Array]]:
    key_heads, heads, size, value_size = sizes
    device, strided = more["device"], more.get("strided", False)
    q, k = noise(seed, tokens, key_heads, size), noise(seed + 1, tokens, key_heads, size)
    k /= np.maximum(np.linalg.norm(k, axis=-1, keepdims=True), 1e-9)  # longer ones make the state explode
    gates = np.random.default_rng(seed)
    values = [
        (q, dtype),
        (k, dtype),
        (noise(seed + 2, tokens, heads, value_size), dtype),
        (-decay * gates.exponential(size=(tokens, heads)), more.get("gate", dtype)),
        (gates.random((tokens, heads)), more.get("gate", dtype)),
        (noise(seed + 3, sequences, heads, size, value_size), fa.float64 if dtype is fa.float64 else fa.float32),
    ]
    made = [make(x, kind, device, strided=strided) for x, kind in values]
    return [x for x, _ in made], [x for _, x in made]


@given(
    seed=st.integers(0, 2**32 - 1),
    lengths=st.lists(st.one_of(st.integers(0, 5), st.integers(0, 70)), max_size=3),
    heads=st.sampled_from([(1, 1), (2, 2), (1, 3), (2, 4)]),
    size=st.integers(1, 6),
    value_size=st.integers(0, 5),
    decay=st.sampled_from([0.0, 0.05, 1.0, 30.0]),
    chunk=st.sampled_from([None, 1, 2, 8, 16, 128]),
    used=st.sets(st.sampled_from(["state", "scale", "normalize", "gate"])),
    strided=st.booleans(),
    data=st.data(),
)
def test_chunks_are_the_rule_token_by_token(
    device: fa.Device,
    seed: int,
    lengths: list[int],
    heads: tuple[int, int],
    size: int,
    value_size: int,
    decay: float,
    chunk: int | None,
    used: set[str],
    strided: bool,
    data: st.DataObject,
) -> None:
    dtype = data.draw(st.sampled_from(floats(device)))
    more = {"gate": fa.float32} if "gate" in used else {}
    tensors, arrays = operands(
        seed,
        sum(lengths),
        len(lengths),
        (*heads, size, value_size),
        decay,
        dtype,
        device=device,
        strided=strided,
        **more,
    )
    before = [wide(x).copy() for x in tensors]
    scale = 0.7 if "scale" in used else None
    o, last = gated_delta_rule(
        *tensors[:5],
        tensors[5] if "state" in used else None,
        SequenceMeta.packed(lengths),
        scale=scale,
        use_qk_l2norm="normalize" in used,
        chunk_size=chunk,
    )
    start = arrays[5] if "state" in used else np.zeros_like(arrays[5])
    parts = [
        exact(*(x[a:b] for x in arrays[:5]), start[i], scale or size**-0.5, "normalize" in used)
        for i, (a, b) in enumerate(pairwise(np.cumsum([0, *lengths])))
    ]
    want = np.concatenate([np.zeros((0, heads[1], value_size)), *(part[0] for part in parts)])
    check(o, want, dtype, TOLERANCE.get(dtype, 0.0))
    states = np.stack([part[1] for part in parts]) if parts else start
    check(last, states, tensors[5].dtype, TOLERANCE[tensors[5].dtype])
    assert all((wide(x) == y).all() for x, y in zip(tensors, before, strict=True))


@given(
    seed=st.integers(0, 2**32 - 1),
    length=st.integers(0, 80),
    cut=st.integers(0, 80),
    decay=st.sampled_from([0.05, 1.0]),
    data=st.data(),
)
def test_in_pieces_in_batches_and_packed(
    device: fa.Device, seed: int, length: int, cut: int, decay: float, data: st.DataObject
) -> None:
    dtype = data.draw(st.sampled_from(floats(device)))
    tensors, _ = operands(seed, 3 * length, 3, (1, 2, 4, 3), decay, dtype, device=device)
    dense = [x.reshape(3, length, *x.shape[1:]) for x in tensors[:5]]
    o, last = gated_delta_rule(*dense, tensors[5])
    assert o.dtype is dtype
    allowed, digits = TOLERANCE.get(dtype, 1.5e-2), TOLERANCE[last.dtype]

    def near(got: fa.Tensor, want: fa.Tensor, tolerance: float) -> None:
        assert got.shape == want.shape
        assert distance(wide(got), wide(want)) <= tolerance

    first, middle = gated_delta_rule(*(x[:, :cut] for x in dense), tensors[5])
    second, end = gated_delta_rule(*(x[:, cut:] for x in dense), middle)
    near(fa.concat([first, second], axis=1), o, allowed)
    near(end, last, digits)
    packed, states = gated_delta_rule(*tensors, SequenceMeta.packed([length] * 3))
    assert fa.all(packed == o.reshape(packed.shape))
    assert fa.all(states == last)
    for i in range(3):
        one, alone = gated_delta_rule(*(x[i] for x in dense), tensors[5][i])
        near(one, o[i], allowed)
        near(alone, last[i], digits)
    again, same = gated_delta_rule(*dense, tensors[5])
    assert fa.all(again == o)
    assert fa.all(same == last)


def test_neighbours_of_equal_lengths(device: fa.Device) -> None:
    lengths = [2, 2, 5, 5, 5, 1]
    tensors, arrays = operands(6, sum(lengths), 6, (1, 2, 4, 3), 0.1, fa.float32, device=device)
    o, last = gated_delta_rule(*tensors, SequenceMeta.packed(lengths))
    for i, (a, b) in enumerate(pairwise(np.cumsum([0, *lengths]))):
        want, state = exact(*(x[a:b] for x in arrays[:5]), arrays[5][i], 0.5, False)
        check(o[a:b], want, fa.float32, TOLERANCE[fa.float32])
        check(last[i], state, fa.float32, TOLERANCE[fa.float32])


def test_many_chunks_are_worked_in_spans(device: fa.Device, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors, arrays = operands(5, 150, 1, (1, 2, 4, 3), 0.1, fa.float32, device=device)
    want, state = exact(*arrays[:5], arrays[5][0], 0.5, True)
    for span in (1, 2 * 2 * 16 * 16, 5 * 2 * 16 * 16, 1 << 22):
        monkeypatch.setattr("ferrum_ops.delta_rule._SPAN", span)
        o, last = gated_delta_rule(*tensors[:5], tensors[5][0], use_qk_l2norm=True, chunk_size=16)
        check(o, want, fa.float32)
        check(last, state, fa.float32)


@pytest.mark.parametrize("chunk", [1, 4, 64])
def test_a_decay_that_forgets_everything(device: fa.Device, chunk: int) -> None:
    tensors, arrays = operands(3, 11, 1, (1, 2, 4, 3), 0.1, fa.float32, device=device)
    for g in (tensors[3], arrays[3]):
        g[0], g[6] = -np.inf, -np.inf
    o, last = gated_delta_rule(*tensors[:5], tensors[5][0], chunk_size=chunk)
    want, state = exact(*arrays[:5], arrays[5][0], 0.5, False)
    check(o, want, fa.float32, 2e-6)
    check(last, state, fa.float32, 2e-6)


@pytest.mark.parametrize("chunk", [1, 64])
def test_a_strong_decay_leaves_the_digits_of_weak_ones(device: fa.Device, chunk: int) -> None:
    tensors, arrays = operands(4, 64, 1, (1, 1, 8, 8), 0.01, fa.float32, device=device)
    for g in (tensors[3], arrays[3]):
        g[2] = -1e6
    o, _ = gated_delta_rule(*tensors[:5], chunk_size=chunk)
    want, _ = exact(*arrays[:5], np.zeros((1, 8, 8)), 8**-0.5, False)
    check(o, want, fa.float32)


def test_equal_keys_that_are_overwritten(device: fa.Device) -> None:
    """The last value remains, exactly; powers of the system's matrix would be as large as 1e18 here."""
    k = fa.zeros((64, 1, 4), device=device)
    k[..., 0] = 1.0
    v, v64 = make(noise(1, 64, 1, 3), fa.float32, device)
    o, state = gated_delta_rule(k, k, v, fa.zeros((64, 1), device=device), fa.ones((64, 1), device=device), scale=1.0)
    assert distance(wide(o), v64) < 1e-6
    assert distance(wide(state)[0, 0], v64[-1, 0]) < 1e-6


@given(seed=st.integers(0, 2**32 - 1), levels=st.integers(0, 6), batch=st.lists(st.integers(0, 3), max_size=2))
def test_inverse(device: fa.Device, seed: int, levels: int, batch: list[int]) -> None:
    n = 2**levels
    a, a64 = make(np.tril(noise(seed, *batch, n, n) / n**0.5, -1), fa.float32, device)
    check(unit_lower_inverse(a), np.linalg.inv(np.eye(n) + a64), fa.float32, 1e-5)


class InDoublePrecision(ModuleType):
    """PyTorch for a module that converts everything to float32: here it is float64."""

    def __getattr__(self, name: str) -> Any:
        import torch

        return torch.float64 if name == "float32" else getattr(torch, name)


@pytest.mark.parametrize("normalize", [False, True])
def test_as_in_transformers_in_float64(monkeypatch: pytest.MonkeyPatch, normalize: bool) -> None:
    import torch
    from transformers.models.qwen3_next import modeling_qwen3_next as peer

    monkeypatch.setattr(peer, "torch", InDoublePrecision("torch"))
    tensors, arrays = operands(1, 2 * 70, 2, (2, 4, 8, 5), 0.5, fa.float64, device=fa.Device("cpu"))
    dense = [x.reshape(2, 70, *x.shape[1:]) for x in arrays[:5]]
    theirs = [torch.from_numpy(x) for x in dense]
    more = {"output_final_state": True, "use_qk_l2norm_in_kernel": normalize}
    start = torch.from_numpy(arrays[5])
    chunked = peer.torch_chunk_gated_delta_rule(*theirs, initial_state=start, **more)
    recurrent = peer.torch_recurrent_gated_delta_rule(*theirs, initial_state=start, **more)
    ours = [fa.asarray(x) for x in dense]
    for chunk in (1, 64):
        got = gated_delta_rule(*ours, tensors[5], use_qk_l2norm=normalize, chunk_size=chunk)
        for want in (chunked, recurrent):
            assert want[0].dtype is torch.float64
            for mine, their in zip(got, want, strict=True):
                assert distance(wide(mine), their.numpy()) < 2e-15


def test_the_layer_of_transformers() -> None:
    """Convolution, gates, rule and gated norm together, as its Qwen3NextGatedDeltaNet computes them."""
    import torch
    from transformers.models.qwen3_next import Qwen3NextConfig
    from transformers.models.qwen3_next import modeling_qwen3_next as peer

    from ferrum_ops import causal_conv1d, gdn_gates, linear, rms_norm

    torch.manual_seed(0)
    config = Qwen3NextConfig(
        hidden_size=32,
        linear_num_value_heads=4,
        linear_num_key_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=6,
        linear_conv_kernel_dim=4,
    )
    layer = peer.Qwen3NextGatedDeltaNet(config, layer_idx=0)
    hidden = torch.randn(2, 70, 32)
    with torch.no_grad():
        want = layer(hidden)
        mixed = [layer.in_proj_qkvz(hidden), layer.in_proj_ba(hidden)]
        q, k, v, z, b, a = (fa.from_dlpack(x.contiguous()) for x in layer.fix_query_key_value_ordering(*mixed))
        weights = {name: fa.from_dlpack(x.detach().contiguous()) for name, x in layer.named_parameters()}
    flat = fa.concat([x.reshape(2, 70, x.shape[-1] * x.shape[-2]) for x in (q, k, v)], axis=-1)
    conv, _ = causal_conv1d(flat, weights["conv1d.weight"][:, 0])
    q, k = (conv[..., i : i + 16].reshape(2, 70, 2, 8) for i in (0, 16))
    g, beta = gdn_gates(a, b, weights["A_log"], weights["dt_bias"])
    o, _ = gated_delta_rule(q, k, conv[..., 32:].reshape(2, 70, 4, 6), g, beta, use_qk_l2norm=True)
    y = rms_norm(o, weights["norm.weight"], eps=config.rms_norm_eps, gate=z).reshape(2, 70, 24)
    assert distance(wide(linear(y, weights["out_proj.weight"])), want.double().numpy()) < 2e-6


def test_what_is_in_use_is_told() -> None:
    tensors, _ = operands(1, 5, 1, (1, 2, 4, 3), 0.1, fa.float32, device=fa.Device("cpu"))
    q, k, v, g, beta, state = tensors
    assert explain(gated_delta_rule, q, k, v, g, beta).features == ("grouped",)
    more = explain(
        gated_delta_rule, q, k, v[:, :1], g[:, :1], beta[:, :1].astype("f16"), state[:, :1], SequenceMeta.packed([5]),
        scale=1.0, use_qk_l2norm=True, chunk_size=2,
    )  # fmt: skip
    assert more.features == ("state", "meta", "scale", "qk_l2norm", "chunk_size", "mixed")


def test_bad_input_is_refused() -> None:
    device = fa.Device("cpu")
    q, k, v, g, beta, state = operands(1, 5, 1, (2, 4, 4, 3), 0.1, fa.float32, device=device)[0]
    with pytest.raises(ValueError, match=r"q must be \[..., T, H, D\], got float32\[5,2\]"):
        gated_delta_rule(q[..., 0], k, v, g, beta)
    with pytest.raises(TypeError, match="v is float16"):
        gated_delta_rule(q, k, v.astype("f16"), g, beta)
    with pytest.raises(ValueError, match="q and k must share a shape"):
        gated_delta_rule(q[:, :1], k, v, g, beta)
    with pytest.raises(ValueError, match="3 value heads are not a multiple of 2 key heads"):
        gated_delta_rule(q, k, v[:, :3], g[:, :3], beta[:, :3])
    with pytest.raises(ValueError, match="4 value heads are not a multiple of 0 key heads"):
        gated_delta_rule(q[:, :0], k[:, :0], v, g, beta)
    with pytest.raises(ValueError, match=r"beta must have one entry for each token and head .* got float32\[5\]"):
        gated_delta_rule(q, k, v, g, beta[:, 0])
    with pytest.raises(TypeError, match="g must be real floating-point, got int64"):
        gated_delta_rule(q, k, v, g.astype("i64"), beta)
    with pytest.raises(ValueError, match=r"state must have shape \(4, 4, 3\), got float32\[1,4,4,3\]"):
        gated_delta_rule(q, k, v, g, beta, state)
    with pytest.raises(TypeError, match="state must be float32 where q is float32, got float64"):
        gated_delta_rule(q, k, v, g, beta, state[0].astype("f64"))
    for scale in (fa.nan, fa.inf):
        with pytest.raises(ValueError, match=f"scale must be finite, got {scale}"):
            gated_delta_rule(q, k, v, g, beta, scale=scale)
    with pytest.raises(ValueError, match="head dimension 0, so scale is needed"):
        gated_delta_rule(q[..., :0], k[..., :0], v, g, beta)
    for chunk in (0, 3, -2, 48, True, 2.0):
        with pytest.raises(ValueError, match="chunk_size must be a power of two, got"):
            gated_delta_rule(q, k, v, g, beta, chunk_size=chunk)  # type: ignore[arg-type]  # what is tested
    with pytest.raises(ValueError, match=r"the input must be q \[T, Hk, D\] with T = 4, got float32\[5,2,4\]"):
        gated_delta_rule(q, k, v, g, beta, meta=SequenceMeta.packed([4]))
    with pytest.raises(ValueError, match="must come in order"):
        gated_delta_rule(q, k, v, g, beta, meta=SequenceMeta((0, 5), positions=(1, 0, 2, 3, 4)))


def test_heads_of_no_size(device: fa.Device) -> None:
    q, k, v, g, beta, _ = operands(1, 5, 1, (2, 4, 4, 3), 0.1, fa.float32, device=device)[0]
    o, state = gated_delta_rule(q[..., :0], k[..., :0], v, g, beta, scale=1.0)
    assert (wide(o) == 0).all()
    assert o.shape == v.shape
    assert state.shape == (4, 0, 3)


@pytest.mark.mlx
def test_other_devices_are_refused() -> None:
    q, k, v, g, beta, state = operands(1, 5, 1, (2, 4, 4, 3), 0.1, fa.float32, device=fa.Device("cpu"))[0]
    with pytest.raises(ValueError, match="gated_delta_rule: state is on device mlx:cpu but the input on cpu"):
        gated_delta_rule(q, k, v, g, beta, state[0].to_device("mlx:cpu"))
