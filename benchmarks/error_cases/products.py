"""Products with weights, rows of tables, and mixtures of experts."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np

import ferrum_array as fa
from benchmarks.ops_error import Draw, Results, case
from ferrum_ops import (
    ActivationKind,
    conv,
    embedding,
    grouped_linear,
    linear,
    lora_delta,
    moe_combine,
    moe_ffn,
    moe_permute,
    moe_plan,
    moe_route,
)
from tests.array.oracle import wide
from tests.ops.oracle import Array
from tests.ops.test_activation import exact_gate
from tests.ops.test_moe import Choices, exact_plan
from tests.ops.test_moe_routing import exact_route

#: Decisions nearer to each other than this are left to rounding, and the case is drawn again.
NEAR = 1e-5


@case("linear")
def _linear(draw: Draw) -> Results:
    rows = draw.one_of((), (draw.between(1, 64),), (2, draw.between(1, 16)))
    inner, outer = draw.between(1, 512), draw.between(32, 256)
    x, x64 = draw.noise(*rows, inner)
    w, w64 = draw.noise(outer, inner)
    bias, b64 = draw.noise(outer, dtype=draw.one_of(draw.dtype, draw.wide)) if draw.flag() else (None, np.zeros(()))
    out = draw.one_of(None, draw.wide)
    yield draw.call(linear, x, w, bias, dtype=out), x64 @ w64.T + b64


@case("embedding")
def _embedding(draw: Draw) -> Results:
    table, held = draw.noise(draw.between(1, 200), draw.between(16, 256))
    ids = draw.rng.integers(0, len(held), draw.one_of((), (7,), (2, 30)))
    scale = draw.one_of(None, 0.3)
    got = draw.call(embedding, table, draw.integers(ids), scale=scale)
    yield got, held[ids] * (1.0 if scale is None else scale)


@case("lora_delta")
def _lora_delta(draw: Draw) -> Results:
    many, rank = draw.one_of(0, 1, 4), draw.one_of(1, 8, 16)
    rows, inner, outer = draw.between(1, 32), draw.between(1, 256), draw.between(32, 128)
    stack = (many,) if many else ()
    (x, x64), (a, a64), (b, b64) = (
        draw.noise(*s) for s in ((rows, inner), (*stack, rank, inner), (*stack, outer, rank))
    )
    if not many:
        scale = draw.one_of(1.0, 0.3)
        yield draw.call(lora_delta, x, a, b, scale), scale * (x64 @ a64.T @ b64.T)
        return
    ids = draw.rng.integers(-1, many, rows)
    scales, s64 = draw.tensor(draw.rng.random(many) + 0.5, draw.wide)
    exact = [s64[i] * (b64[i] @ (a64[i] @ row)) if i >= 0 else np.zeros(outer) for i, row in zip(ids, x64, strict=True)]
    yield draw.call(lora_delta, x, a, b, scales, draw.integers(ids)), np.stack(exact)


@case("conv")
def _conv(draw: Draw) -> Results:
    dims, groups = draw.one_of(1, 2), draw.one_of(1, 1, 2, 4)
    depth, own = draw.one_of(1, 4, 8), draw.one_of(4, 8)
    kernel, stride, dilation = (tuple(draw.one_of(1, 2, 3) for _ in range(dims)) for _ in range(3))
    pads = tuple((draw.one_of(0, 1, 2), draw.one_of(0, 1)) for _ in range(dims))
    sizes = [d * (k - 1) + draw.between(1, 80 if dims == 1 else 12) for k, d in zip(kernel, dilation, strict=True)]
    x, x64 = draw.noise(2, groups * depth, *sizes)
    w, w64 = draw.noise(groups * own, depth, *kernel)
    b, b64 = draw.noise(groups * own) if draw.flag() else (None, np.zeros(groups * own))
    # all patches, [N, C, *out, *kernel]
    reach = tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True))
    patches = np.lib.stride_tricks.sliding_window_view(
        np.pad(x64, ((0, 0), (0, 0), *pads)), reach, axis=tuple(range(2, 2 + dims))
    )[(..., *(slice(None, None, s) for s in stride), *(slice(None, None, d) for d in dilation))]
    out = patches.shape[2 : 2 + dims]
    grouped = np.moveaxis(patches, 1, 1 + dims).reshape(2, np.prod(out, dtype=int), groups, -1)
    exact = np.einsum("npgk,gok->ngop", grouped, w64.reshape(groups, own, -1)).reshape(2, groups * own, *out)
    got = draw.call(conv, x, w, b, stride=stride, padding=pads, dilation=dilation, groups=groups)
    yield got, exact + b64.reshape(-1, *(1,) * dims)


# Mixtures of experts.


def choices(draw: Draw) -> Choices:
    """Experts of some tokens; in part of the cases most experts have none."""
    tokens = draw.one_of((draw.between(1, 100),), (2, draw.between(1, 20)), ())
    experts = draw.one_of(1, 3, 8, 64, 512)
    k = min(experts, draw.one_of(1, 2, 8, 60))
    popular = int(draw.rng.integers(k, experts + 1))
    ids = np.reshape([draw.rng.permutation(popular)[:k] for _ in range(int(np.prod(tokens)))], (*tokens, k))
    return Choices(ids.astype(np.int64), experts, 0)


@case("moe_route")
def _moe_route(draw: Draw) -> Results:
    n_group, size = draw.one_of((1, 8), (1, 64), (1, 512), (8, 32), (4, 4))
    options: dict[str, Any] = {
        "score": draw.one_of("softmax", "sigmoid"), "norm": draw.flag(), "n_group": n_group,
        "topk_group": int(draw.rng.integers(1, n_group + 1)), "scale": draw.one_of(1.0, 2.5),
    }  # fmt: skip
    k = min(size, draw.one_of(1, 2, 8, 512))
    while True:
        logits, x64 = draw.tensor(draw.values(draw.between(1, 50), n_group * size) * draw.one_of(0.5, 2.0, 10.0))
        bias, b64 = draw.noise(n_group * size, dtype=fa.float32) if draw.flag() else (None, None)
        ids, weights, nearest = exact_route(x64, k, bias=b64, **options)
        if nearest > NEAR:
            break
    got = draw.call(moe_route, logits, k, bias=bias, **options)
    yield from zip(got, (ids, weights), strict=True)


@case("moe_plan")
def _moe_plan(draw: Draw) -> Results:
    case_, block = choices(draw), draw.one_of(1, 1, 8, 64)
    plan = draw.call(moe_plan, draw.integers(case_.ids), case_.experts, block=block)
    order, inverse, offsets = map(np.asarray, exact_plan(case_.ids, case_.experts, block))
    yield from ((plan.order, order), (plan.inverse, inverse.reshape(case_.ids.shape)), (plan.offsets, offsets))


@case("moe_permute")
def _moe_permute(draw: Draw) -> Results:
    case_ = choices(draw)
    plan = moe_plan(draw.integers(case_.ids), case_.experts, block=draw.one_of(1, 1, 8))
    x, x64 = draw.noise(*case_.tokens, draw.between(16, 128))
    order = wide(plan.order)
    rows = x64.reshape(-1, x64.shape[-1])[order // case_.k]
    yield draw.call(moe_permute, x, plan), np.where(order[:, None] >= 0, rows, 0.0)


@case("moe_combine")
def _moe_combine(draw: Draw) -> Results:
    case_ = choices(draw)
    plan = moe_plan(draw.integers(case_.ids), case_.experts, block=draw.one_of(1, 1, 8))
    y, y64 = draw.noise(plan.rows, draw.between(16, 128))
    w, w64 = draw.tensor(draw.rng.random(case_.ids.shape), draw.one_of(draw.dtype, draw.wide))
    shape = (*case_.tokens, y64.shape[1])
    residual, r64 = draw.noise(*shape) if draw.flag() else (None, np.zeros(()))
    got = draw.call(moe_combine, y, plan, w, residual=residual)
    yield got, (y64[wide(plan.inverse)] * w64[..., None]).sum(-2) + r64


@case("grouped_linear")
def _grouped_linear(draw: Draw) -> Results:
    experts = draw.one_of(1, 3, 8, 64)
    offsets = np.cumsum([0, *(draw.one_of(0, 1, 2, 17) for _ in range(experts))])
    inner, outer = draw.between(1, 256), draw.between(32, 128)
    x, x64 = draw.noise(int(offsets[-1]) + draw.one_of(0, 0, 3), inner)
    w, w64 = draw.noise(experts, outer, inner)
    bias, b64 = draw.noise(experts, outer) if draw.flag() else (None, np.zeros((experts, outer)))
    want = np.zeros((len(x64), outer))
    for e in range(experts):
        rows = slice(offsets[e], offsets[e + 1])
        want[rows] = x64[rows] @ w64[e].T + b64[e]
    yield draw.call(grouped_linear, x, w, draw.integers(offsets), bias), want


def exact_experts(x: Array, w13: Array, w2: Array, ids: Array, w: Array, kind: ActivationKind, **more: Any) -> Array:
    """The network of each expert for the tokens that chose it."""
    result = np.zeros((len(x), w2.shape[1]))
    inner = w2.shape[2]
    b13, b2 = more.get("b13", np.zeros(w13.shape[:2])), more.get("b2", np.zeros(w2.shape[:2]))
    gate = (more.get("limit"), more.get("alpha", 1.0), more.get("up_offset", 0.0))
    for e in range(len(w13)):
        tokens, places = np.nonzero(ids == e)
        h = x[tokens] @ w13[e].T + b13[e]
        y = exact_gate(h[:, :inner], h[:, inner:], kind, *gate) @ w2[e].T + b2[e]
        np.add.at(result, tokens, w[tokens, places][:, None] * y)
    return result


@case("moe_ffn")
def _moe_ffn(draw: Draw) -> Results:
    tokens, experts = draw.between(1, 24), draw.one_of(1, 4, 16)
    k = min(experts, draw.one_of(1, 2, 4))
    ids = np.asarray([draw.rng.permutation(experts)[:k] for _ in range(tokens)])
    hidden, inner = draw.between(8, 96), draw.between(8, 64)
    kind = draw.one_of(*get_args(ActivationKind))
    gate: dict[str, Any] = draw.one_of({}, {}, {"limit": 7.0, "up_offset": 1.0})
    if gate and kind == "silu":
        gate = {**gate, "alpha": 1.702}
    x, x64 = draw.noise(tokens, hidden)
    w13, w13_64 = draw.tensor(draw.values(experts, 2 * inner, hidden) / hidden**0.5)
    w2, w2_64 = draw.tensor(draw.values(experts, hidden, inner) / inner**0.5)
    w, w64 = draw.tensor(draw.rng.random(ids.shape), draw.one_of(draw.dtype, draw.wide))
    biases: dict[str, fa.Tensor] = {}
    held: dict[str, Array] = {}
    if draw.flag():
        for name, size in (("b13", 2 * inner), ("b2", hidden)):
            biases[name], held[name] = draw.noise(experts, size)
    got = draw.call(moe_ffn, x, w13, w2, draw.integers(ids), w, kind=kind, **biases, **gate)
    yield got, exact_experts(x64, w13_64, w2_64, ids, w64, kind, **held, **gate)
