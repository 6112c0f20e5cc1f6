from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ferrum_array as fa
from ferrum_ops import (
    ActivationKind,
    grouped_linear,
    moe_combine,
    moe_ffn,
    moe_permute,
    moe_plan,
    moe_route,
)
from tests.array.oracle import wide
from tests.ops.oracle import TOLERANCE, Array, check, distance, floats, make, noise
from tests.ops.test_activation import EXACT

# Choices.


@dataclass
class Choices:
    """The experts of some tokens."""

    ids: Array
    experts: int
    seed: int

    @property
    def tokens(self) -> tuple[int, ...]:
        return self.ids.shape[:-1]

    @property
    def k(self) -> int:
        return self.ids.shape[-1]


@st.composite
def choices(draw: st.DrawFn, *, most: int = 512) -> Choices:
    tokens = draw(st.sampled_from([(0,), (1,), (5,), (33,), (2, 3), (0, 4), ()]))
    experts = draw(st.sampled_from([n for n in (1, 2, 3, 8, 60, 512) if n <= most]))
    k = draw(st.sampled_from(sorted({1, min(2, experts), min(7, experts), min(60, experts)})))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    # a part of the experts has all the tokens in some cases, so that others have none
    popular = draw(st.integers(k, experts))
    rows = [rng.permutation(popular)[:k] for _ in range(int(np.prod(tokens)))]
    return Choices(np.reshape(np.asarray(rows, dtype=np.int64), (*tokens, k)), experts, seed)


def exact_plan(ids: Array, experts: int, block: int) -> tuple[list[int], list[int], list[int]]:
    """Order, inverse and offsets, choice by choice."""
    flat = ids.reshape(-1).tolist()
    order: list[int] = []
    offsets = [0]
    for e in range(experts):
        order += [i for i, chosen in enumerate(flat) if chosen == e]
        order += [-1] * (-len(order) % block)
        offsets.append(len(order))
    inverse = [order.index(i) for i in range(len(flat))]
    rows = (len(flat) + min(experts, len(flat)) * (block - 1)) // block * block
    return order + [-1] * (rows - len(order)), inverse, offsets


@given(case=choices(), block=st.sampled_from([1, 1, 2, 3, 16]), narrow=st.sampled_from(["i64", "i32", "u16"]))
def test_plans_are_as_the_oracle_says(device: fa.Device, case: Choices, block: int, narrow: str) -> None:
    plan = moe_plan(fa.asarray(case.ids, dtype=narrow, device=device), case.experts, block=block)
    order, inverse, offsets = exact_plan(case.ids, case.experts, block)
    assert plan.order.tolist() == order
    assert plan.inverse.shape == case.ids.shape
    assert plan.inverse.reshape(case.ids.size).tolist() == inverse
    assert plan.offsets.tolist() == offsets
    assert (plan.rows, plan.experts, plan.k, plan.block) == (len(order), case.experts, case.k, block)
    assert {x.dtype for x in (plan.order, plan.inverse, plan.offsets)} == {fa.int64}


def test_the_rows_of_a_plan_depend_on_shapes_alone(device: fa.Device) -> None:
    """And they are enough for the worst case: here each of the experts has one row in a block of its own."""
    spread = moe_plan(fa.asarray([[0, 1], [2, 3]], device=device), 4, block=8)
    close = moe_plan(fa.asarray([[0, 1], [1, 0]], device=device), 4, block=8)
    assert spread.rows == close.rows == spread.offsets.tolist()[-1] == 32
    assert close.offsets.tolist() == [0, 8, 16, 16, 16]


@given(case=choices(), block=st.sampled_from([1, 4]), width=st.integers(0, 9), strided=st.booleans(), data=st.data())
def test_permuting_copies_rows(
    device: fa.Device, case: Choices, block: int, width: int, strided: bool, data: st.DataObject
) -> None:
    dtype = data.draw(st.sampled_from(floats(device)))
    x, x64 = make(noise(case.seed, *case.tokens, width), dtype, device, strided=strided)
    plan = moe_plan(fa.asarray(case.ids, device=device), case.experts, block=block)
    got = moe_permute(x, plan)
    assert got.dtype is dtype
    want = np.zeros((plan.rows, width))
    rows = x64.reshape(-1, width) if width else np.zeros((int(np.prod(case.tokens)), 0))
    for place, choice in enumerate(plan.order.tolist()):
        if choice >= 0:
            want[place] = rows[choice // case.k]
    assert (wide(got) == want).all()


@given(case=choices(), block=st.sampled_from([1, 1, 4]), width=st.integers(0, 9), data=st.data())
def test_permute_then_combine_is_the_identity(
    device: fa.Device, case: Choices, block: int, width: int, data: st.DataObject
) -> None:
    dtype = data.draw(st.sampled_from(floats(device)))
    x, x64 = make(noise(case.seed, *case.tokens, width), dtype, device)
    plan = moe_plan(fa.asarray(case.ids, device=device), case.experts, block=block)
    one = np.zeros(case.ids.shape)
    one[..., case.seed % case.k] = 1.0
    assert fa.all(moe_combine(moe_permute(x, plan), plan, fa.asarray(one, dtype=dtype, device=device)) == x)
    wide_ = fa.float64 if dtype is fa.float64 else fa.float32
    _, weights = moe_route(make(noise(case.seed, *case.tokens, case.experts), wide_, device)[0], case.k)
    check(moe_combine(moe_permute(x, plan), plan, weights), x64, dtype)


@given(case=choices(), block=st.sampled_from([1, 1, 4]), added=st.booleans(), strided=st.booleans(), data=st.data())
def test_combining_is_as_the_oracle_says(
    device: fa.Device, case: Choices, block: int, added: bool, strided: bool, data: st.DataObject
) -> None:
    dtype, other, third = (data.draw(st.sampled_from(floats(device))) for _ in range(3))
    plan = moe_plan(fa.asarray(case.ids, device=device), case.experts, block=block)
    y, y64 = make(noise(case.seed, plan.rows, 5), dtype, device, strided=strided)
    w, w64 = make(noise(case.seed + 1, *case.ids.shape), other, device, strided=strided)
    residual, r64 = make(noise(case.seed + 2, *case.tokens, 5), third, device)
    got = moe_combine(y, plan, w, residual=residual if added else None)
    rows = y64[wide(plan.inverse)]
    want = (rows * w64[..., None]).sum(-2) + (r64 if added else 0.0)
    size = (np.abs(rows) * np.abs(w64)[..., None]).sum(-2) + (np.abs(r64) if added else 0.0)
    check(got, want, dtype, room(dtype, want, size, 6e-8 if other is fa.float64 else 0.0))


def room(dtype: fa.Dtype, want: Array, size: Array, more: float = 0.0) -> float:
    """The tolerance, larger where *want* is a difference of terms of *size* that cancel."""
    length = float(np.linalg.norm(want))
    loss = float(np.linalg.norm(size)) / length if length else 1.0
    return (TOLERANCE[dtype] + (more if dtype is not fa.float64 else 0.0)) * max(1.0, loss)


def test_combining_rounds_once(device: fa.Device) -> None:
    """2048 + 1 + 1 + 1 + 1 is not 2048, which it were if float16 held the sum in between."""
    plan = moe_plan(fa.asarray([[0, 1, 2, 3]], device=device), 4)
    y = fa.ones((4, 1), dtype="f16", device=device)
    residual = fa.asarray([[2048.0]], dtype="f16", device=device)
    assert moe_combine(y, plan, fa.ones((1, 4), device=device), residual=residual).item() == 2052.0
    # and a wide residual keeps its digits till the end
    residual = fa.asarray([[2049.0]], device=device)
    one = fa.asarray([[1.0, 0.0, 0.0, 0.0]], device=device)
    assert moe_combine(y, plan, one, residual=residual).item() == 2050.0
    assert residual.item() == 2049.0


@given(case=choices(most=60))
def test_combining_a_token_does_not_depend_on_the_others(device: fa.Device, case: Choices) -> None:
    ids = case.ids.reshape(-1, case.k)
    values, w = noise(case.seed, *ids.shape, 5), noise(case.seed + 1, *ids.shape)

    def combined(tokens: slice) -> Array:
        plan = moe_plan(fa.asarray(ids[tokens], device=device), case.experts)
        sorted_ = values[tokens].reshape(-1, 5)[wide(plan.order)]
        return wide(
            moe_combine(
                fa.asarray(sorted_, dtype="f32", device=device), plan, fa.asarray(w[tokens], dtype="f32", device=device)
            )
        )

    whole = combined(slice(None))
    for t in range(min(len(ids), 3)):
        assert (combined(slice(t, t + 1))[0] == whole[t]).all()


# Products.


@given(
    counts=st.lists(st.sampled_from([0, 0, 1, 2, 17]), min_size=1, max_size=9),
    tail=st.sampled_from([0, 0, 3]),
    inner=st.integers(0, 20),
    outer=st.integers(0, 9),
    seed=st.integers(0, 2**32 - 1),
    biased=st.sampled_from(["no", "like x", "wide"]),
    strided=st.booleans(),
    narrow=st.sampled_from(["i64", "i32"]),
    data=st.data(),
)
def test_grouped_products_are_as_the_oracle_says(
    device: fa.Device,
    counts: list[int],
    tail: int,
    inner: int,
    outer: int,
    seed: int,
    biased: str,
    strided: bool,
    narrow: str,
    data: st.DataObject,
) -> None:
    dtype = data.draw(st.sampled_from(floats(device)))
    offsets = np.asarray([0, *np.cumsum(counts)])
    x, x64 = make(noise(seed, offsets[-1] + tail, inner), dtype, device, strided=strided)
    w, w64 = make(noise(seed + 1, len(counts), outer, inner), dtype, device, strided=strided)
    of = dtype if biased == "like x" or dtype is fa.float64 else fa.float32
    bias, b64 = make(noise(seed + 2, len(counts), outer), of, device)
    got = grouped_linear(x, w, fa.asarray(offsets, dtype=narrow, device=device), None if biased == "no" else bias)
    want, size = np.zeros((len(x64), outer)), np.zeros((len(x64), outer))
    for e, (a, b) in enumerate(pairwise(offsets)):
        for row in range(a, b):
            want[row] = w64[e] @ x64[row] + (0 if biased == "no" else b64[e])
            size[row] = np.abs(w64[e]) @ np.abs(x64[row]) + (0 if biased == "no" else np.abs(b64[e]))
    check(got, want, dtype, room(dtype, want, size))
    assert not wide(got)[offsets[-1] :].any()


# The whole network.


@dataclass
class Network:
    """Operands of ``moe_ffn`` in float64, and its options."""

    x: Array
    w13: Array
    w2: Array
    case: Choices
    w: Array
    biases: dict[str, Array]
    gate: dict[str, Any]


def exact_ffn(net: Network, kind: ActivationKind) -> tuple[Array, Array]:
    """Token by token and expert by expert in float64; and the size of the terms that are added up."""
    shape = (*net.case.tokens, net.w2.shape[1])
    want, size = np.zeros(shape), np.zeros(shape)
    inner = net.w2.shape[2]
    limit, alpha = net.gate.get("limit"), net.gate.get("alpha", 1.0)
    b13 = net.biases.get("b13", np.zeros(net.w13.shape[:2]))
    b2 = net.biases.get("b2", np.zeros(net.w2.shape[:2]))
    for at in np.ndindex(*net.case.ids.shape):
        e, token = net.case.ids[at], net.x[at[:-1]]
        h = net.w13[e] @ token + b13[e]
        terms = np.abs(net.w13[e]) @ np.abs(token) + np.abs(b13[e])
        gate, up = h[:inner], h[inner:]
        if limit is not None:
            gate, up = np.minimum(gate, limit), np.clip(up, -limit, limit)
        act = EXACT[kind](alpha * gate) / alpha
        y = net.w2[e] @ (act * (up + net.gate.get("up_offset", 0.0))) + b2[e]
        want[at[:-1]] += net.w[at] * y
        steep = 2 * terms[:inner] ** 2 if kind == "relu2" else terms[:inner] + 1
        middle = steep * (terms[inner:] + net.gate.get("up_offset", 0.0))
        size[at[:-1]] += np.abs(net.w[at]) * (np.abs(net.w2[e]) @ middle + np.abs(b2[e]))
    return want, size


@st.composite
def networks(draw: st.DrawFn, kind: ActivationKind) -> Network:
    case = draw(choices(most=60))
    hidden, inner, outer = draw(st.integers(1, 12)), draw(st.integers(1, 9)), draw(st.integers(1, 12))
    experts, seed = case.experts, case.seed
    biases = {
        "b13": noise(seed + 5, experts, 2 * inner),
        "b2": noise(seed + 6, experts, outer),
    }
    gate: dict[str, Any] = {}
    if draw(st.booleans()):
        gate["limit"] = draw(st.sampled_from([0.5, 7.0]))
    if kind == "silu" and draw(st.booleans()):
        gate["alpha"] = 1.702
    if draw(st.booleans()):
        gate["up_offset"] = 1.0
    return Network(
        noise(seed + 1, *case.tokens, hidden),
        noise(seed + 2, experts, 2 * inner, hidden) / hidden**0.5,
        noise(seed + 3, experts, outer, inner) / inner**0.5,
        case,
        np.random.default_rng(seed + 4).random(case.ids.shape),
        {name: biases[name] for name in draw(st.sampled_from([(), ("b13",), ("b2",), ("b13", "b2")]))},
        gate,
    )


def given_to(net: Network, dtype: fa.Dtype, device: fa.Device, strided: bool) -> tuple[dict[str, Any], Network]:
    """The arguments of ``moe_ffn`` in *dtype*, and what they hold."""
    arrays = {"x": net.x, "w13": net.w13, "w2": net.w2, **net.biases}
    made = {name: make(values, dtype, device, strided=strided) for name, values in arrays.items()}
    made["w"] = make(net.w, fa.float64 if dtype is fa.float64 else fa.float32, device)
    arguments = {name: tensor for name, (tensor, _) in made.items()}
    arguments["ids"] = fa.asarray(net.case.ids, device=device)
    held = {name: values for name, (_, values) in made.items()}
    biases = {name: held.pop(name) for name in net.biases}
    return {**arguments, **net.gate}, Network(case=net.case, biases=biases, gate=net.gate, **held)


@given(kind=st.sampled_from(get_args(ActivationKind)), strided=st.booleans(), data=st.data())
def test_the_network_is_as_the_oracle_says(
    device: fa.Device, kind: ActivationKind, strided: bool, data: st.DataObject
) -> None:
    dtype = data.draw(st.sampled_from(floats(device)))
    arguments, held = given_to(data.draw(networks(kind)), dtype, device, strided)
    got = moe_ffn(kind=kind, **arguments)
    want, size = exact_ffn(held, kind)
    check(got, want, dtype, room(dtype, want, size))


@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_the_order_of_tokens_does_not_matter(device: fa.Device, data: st.DataObject, seed: int) -> None:
    net = data.draw(networks("silu"))
    arguments, held = given_to(net, fa.float32, device, False)
    tokens = int(np.prod(net.case.tokens))
    flat = {name: arguments[name].reshape(tokens, arguments[name].shape[-1]) for name in ("x", "ids", "w")}
    places = fa.asarray(np.random.default_rng(seed).permutation(tokens), dtype="i64", device=device)
    moved = {name: fa.take(x, places, axis=0) for name, x in flat.items()}
    want, size = exact_ffn(held, "silu")
    straight = fa.take(moe_ffn(**{**arguments, **flat}), places, axis=0)
    check(moe_ffn(**{**arguments, **moved}), wide(straight), fa.float32, room(fa.float32, want, size))


@given(data=st.data())
def test_the_network_is_its_parts(device: fa.Device, data: st.DataObject) -> None:
    """Blocks of a plan change nothing either."""
    net = data.draw(networks("relu"))
    net.biases.clear()
    net.gate.clear()
    a, held = given_to(net, fa.float32, device, False)
    plan = moe_plan(a["ids"], net.case.experts, block=4)
    h = grouped_linear(moe_permute(a["x"], plan), a["w13"], plan.offsets)
    inner = net.w2.shape[2]
    h = fa.maximum(h[:, :inner], 0.0) * h[:, inner:]
    parts = moe_combine(grouped_linear(h, a["w2"], plan.offsets), plan, a["w"])
    want, size = exact_ffn(held, "relu")
    check(moe_ffn(kind="relu", **a), wide(parts), fa.float32, room(fa.float32, want, size))


def test_same_input_twice_gives_the_same_bits(device: fa.Device) -> None:
    x, w13, w2 = (make(noise(i, *s), fa.float32, device)[0] for i, s in enumerate([(40, 8), (6, 10, 8), (6, 8, 5)]))
    ids, w = moe_route(make(noise(4, 40, 6), fa.float32, device)[0], 2)
    assert fa.all(moe_ffn(x, w13, w2, ids, w) == moe_ffn(x, w13, w2, ids, w))


# Peers: the experts of transformers.

HIDDEN, INNER, EXPERTS, K = 24, 10, 8, 3


NAMES = {
    "mixtral": {"intermediate_size": INNER, "num_local_experts": EXPERTS},
    "qwen3_moe": {"moe_intermediate_size": INNER, "num_experts": EXPERTS},
    "deepseek_v3": {"moe_intermediate_size": INNER, "n_routed_experts": EXPERTS},
    "gpt_oss": {"intermediate_size": INNER, "num_local_experts": EXPERTS},
}


def peer_of(family: str) -> Any:
    """The experts of a family, a module of PyTorch."""
    package = f"transformers.models.{family}"
    name = {"mixtral": "Mixtral", "qwen3_moe": "Qwen3Moe", "deepseek_v3": "DeepseekV3", "gpt_oss": "GptOss"}[family]
    config = getattr(import_module(f"{package}.configuration_{family}"), f"{name}Config")
    experts = getattr(import_module(f"{package}.modeling_{family}"), f"{name}Experts")
    return experts(config(hidden_size=HIDDEN, num_experts_per_tok=K, **NAMES[family]))


@pytest.mark.parametrize("family", list(NAMES))
def test_as_the_experts_of_transformers(device: fa.Device, family: str) -> None:
    import torch

    dtype = fa.float64 if device.supports(fa.float64) else fa.float32
    experts = peer_of(family).double()
    # gates reach the limit of gpt-oss, which is 7
    state = {key: 2 * noise(i, *x.shape) for i, (key, x) in enumerate(experts.state_dict().items())}
    experts.load_state_dict({key: torch.from_numpy(x) for key, x in state.items()})
    ids, w = moe_route(make(noise(7, 50, EXPERTS), dtype, device)[0], K)
    x, x64 = make(noise(8, 50, HIDDEN), dtype, device)
    with torch.no_grad():
        want = experts(torch.from_numpy(x64), torch.from_numpy(wide(ids)), torch.from_numpy(wide(w))).numpy()
    w13, w2 = state["gate_up_proj"], state["down_proj"]
    options: dict[str, Any] = {}
    if family == "gpt_oss":  # its weights lie [E, K, N], with gate and up in turns
        w13, w2 = np.swapaxes(w13, 1, 2), np.swapaxes(w2, 1, 2)
        w13 = np.concatenate([w13[:, ::2], w13[:, 1::2]], axis=1)
        b13 = state["gate_up_proj_bias"]
        b13 = np.concatenate([b13[:, ::2], b13[:, 1::2]], axis=1)
        options = {"b13": make(b13, dtype, device)[0], "b2": make(state["down_proj_bias"], dtype, device)[0]}
        options |= {"limit": experts.limit, "alpha": experts.alpha, "up_offset": 1.0}
    got = moe_ffn(x, make(w13, dtype, device)[0], make(w2, dtype, device)[0], ids, w, **options)
    assert distance(wide(got), want) < (1e-14 if dtype is fa.float64 else 2e-6)
