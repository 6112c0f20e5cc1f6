"""Mixtures of experts as kernels for processors with AVX-512 compute them, number by number."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ferrum_array as fa
from ferrum_ops import (
    QuantTensor,
    explain,
    grouped_linear,
    moe_combine,
    moe_ffn,
    moe_plan,
    set_threads,
    threads,
    use_fast_paths,
)
from ferrum_ops.kernels.cpu.features import KNOWN, lacks
from tests.array.oracle import wide
from tests.ops.cpu_products import DTYPES, ROUNDED, group_of, numbers_of, rounded, same, tensor, weights
from tests.ops.oracle import Array, check, distance, make, noise

pytest.importorskip("numba")

CPU = fa.Device("cpu")
SCHEMES = (None, "int8", "int8-g64", "int4-g32", "int4-g64-asym", "int8-a8", "int4-g64-a8")
wide_registers = pytest.mark.skipif(lacks(*KNOWN) is not None, reason=f"here: {lacks(*KNOWN)}")


@pytest.fixture(autouse=True)
def fast() -> Iterator[None]:
    before = threads()
    with use_fast_paths(True):
        yield
    set_threads(before)


def named(op: str, dtype: fa.Dtype, scheme: str | None) -> str:
    """The row that takes inputs of a dtype and such weights."""
    suffix = "_a8" if scheme in ROUNDED else "_bf16" if dtype is fa.bfloat16 else ""
    return f"cpu.{op}{suffix}"


def matrices(seed: int, scheme: str | None, dtype: fa.Dtype, *shape: int) -> tuple[fa.Tensor | QuantTensor, Array]:
    """Weights [E, N, K], and what they are."""
    if scheme is None:
        return make(noise(seed, *shape) / 8, dtype, CPU)
    return weights(seed, scheme, *shape)


@wide_registers
@given(
    dtype=st.sampled_from(DTYPES),
    scheme=st.sampled_from(SCHEMES),
    counts=st.lists(st.sampled_from([0, 0, 1, 2, 3, 15, 16, 19]), min_size=1, max_size=6),
    nobody=st.integers(0, 3),
    inner=st.integers(0, 4),
    outer=st.sampled_from([1, 5, 32, 67, 130]),
    odd=st.integers(0, 3),
    biased=st.sampled_from([None, "same", "wide"]),
    seed=st.integers(0, 2**32 - 1),
    data=st.data(),
)
def test_grouped_linear(
    dtype: fa.Dtype, scheme: str | None, counts: list[int], nobody: int, inner: int, outer: int, odd: int,
    biased: str | None, seed: int, data: st.DataObject,
) -> None:  # fmt: skip
    experts, size = len(counts), 64 * inner + (odd if scheme is None else 0)
    bounds = [0, *np.cumsum(counts).tolist()]
    x, x64 = tensor(data.draw, seed, dtype, bounds[-1] + nobody, size)
    w, w64 = matrices(seed + 1, scheme, dtype, experts, outer, size)
    bias, b64 = make(noise(seed + 2, experts, outer), fa.float32 if biased == "wide" else dtype, CPU)
    arguments = x, w, fa.asarray(bounds), bias if biased else None
    assert explain(grouped_linear, *arguments).runs == named("grouped_linear", dtype, scheme)
    got = grouped_linear(*arguments)
    x64 = rounded(x64, group_of(scheme or "")) if scheme in ROUNDED else x64
    want, sizes = np.zeros((x.shape[0], outer)), np.zeros((x.shape[0], outer))
    for e, (start, stop) in enumerate(pairwise(bounds)):
        added = b64[e] if biased else np.zeros(outer)
        want[start:stop] = x64[start:stop] @ w64[e].T + added
        sizes[start:stop] = np.abs(x64[start:stop]) @ np.abs(w64[e]).T + np.abs(added)
    same(got, want, 8e-6 * sizes, dtype)
    assert (wide(got[bounds[-1] :]) == 0).all()


@wide_registers
@pytest.mark.parametrize("offsets", [[1, 2, 3], [0, 3, 2], [0, 2, 5]])
def test_offsets_out_of_order(offsets: list[int]) -> None:
    with pytest.raises(ValueError, match="offsets must begin with 0, never decrease and end at 4 at most"):
        grouped_linear(fa.ones((4, 3)), fa.ones((2, 5, 3)), fa.asarray(offsets))


@given(
    dtype=st.sampled_from(DTYPES),
    tokens=st.sampled_from([(), (0,), (1,), (7,), (2, 3), (400,)]),
    experts=st.sampled_from([1, 3, 60]),
    size=st.sampled_from([0, 1, 17, 64, 200]),
    block=st.sampled_from([1, 4]),
    added=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
    data=st.data(),
)
def test_combine(
    dtype: fa.Dtype, tokens: tuple[int, ...], experts: int, size: int, block: int, added: bool, seed: int,
    data: st.DataObject,
) -> None:  # fmt: skip
    k = min(experts, 3)
    rng = np.random.default_rng(seed)
    ids = rng.permuted(np.tile(np.arange(experts), (*tokens, 1)), axis=-1)[..., :k]
    plan = moe_plan(fa.asarray(ids), experts, block=block)
    y, y64 = tensor(data.draw, seed, dtype, plan.rows, size)
    w, w64 = make(rng.random((*tokens, k)), data.draw(st.sampled_from(DTYPES)), CPU)
    residual, r64 = make(noise(seed + 1, *tokens, size), dtype, CPU)
    given_residual = residual if added else None
    assert explain(moe_combine, y, plan, w, residual=given_residual).runs == "cpu.moe_combine"
    got = moe_combine(y, plan, w, residual=given_residual)
    rows = y64[plan.inverse.numpy()]
    want = np.sum(rows * w64[..., None], axis=-2) + (r64 if added else 0.0)
    sizes = np.sum(np.abs(rows * w64[..., None]), axis=-2) + (np.abs(r64) if added else 0.0)
    same(got, want, 1e-6 * sizes, dtype)


@wide_registers
@given(
    dtype=st.sampled_from(DTYPES),
    first=st.sampled_from(SCHEMES),
    second=st.sampled_from(SCHEMES),
    tokens=st.sampled_from([(), (0,), (1,), (9,), (2, 3), (50,)]),
    experts=st.sampled_from([1, 2, 7, 40]),
    biased=st.booleans(),
    options=st.sampled_from([{}, {"kind": "gelu_tanh"}, {"limit": 0.5, "alpha": 1.7, "up_offset": 1.0}]),
    seed=st.integers(0, 2**32 - 1),
)
def test_ffn(
    dtype: fa.Dtype, first: str | None, second: str | None, tokens: tuple[int, ...], experts: int, biased: bool,
    options: dict[str, Any], seed: int,
) -> None:  # fmt: skip
    """As the experts one by one, in float64 where nothing is rounded to 8 bits, in whatever order tokens come."""
    size, inner, outer, k = 64, 64, 35, min(experts, 2)
    rng = np.random.default_rng(seed)
    ids = rng.permuted(np.tile(np.arange(experts), (*tokens, 1)), axis=-1)[..., :k]
    x, x64 = make(noise(seed, *tokens, size), dtype, CPU)
    w13, w13_64 = matrices(seed + 1, first, dtype, experts, 2 * inner, size)
    w2, w2_64 = matrices(seed + 2, second, dtype, experts, outer, inner)
    w, w64 = make(rng.random((*tokens, k)), fa.float32, CPU)
    b13, b13_64 = make(noise(seed + 3, experts, 2 * inner), dtype, CPU)
    b2, b2_64 = make(noise(seed + 4, experts, outer), dtype, CPU)
    biases: dict[str, Any] = {"b13": b13, "b2": b2} if biased else {}
    told = explain(moe_ffn, x, w13, w2, fa.asarray(ids), w, **options, **biases)
    if (first in ROUNDED) == (second in ROUNDED):
        assert told.runs == named("moe_ffn", dtype, first)
    else:  # made of products that have kernels of their own
        assert told.runs == "reference"
    got = moe_ffn(x, w13, w2, fa.asarray(ids), w, **options, **biases)
    want = np.zeros((*tokens, outer))
    for place in np.ndindex(*tokens):
        for j in range(k):
            e = ids[(*place, j)]
            row = rounded(x64[place][None], group_of(first or ""))[0] if first in ROUNDED else x64[place]
            h = activated(w13_64[e] @ row + (b13_64[e] if biased else 0.0), options)
            h = rounded(h[None], group_of(second or ""))[0] if second in ROUNDED else h
            want[place] += w64[(*place, j)] * (w2_64[e] @ h + (b2_64[e] if biased else 0.0))
    # inputs that are rounded to 8 bits jump where others change by a rounding
    loose = 2e-3 if second in ROUNDED else 2e-6
    check(got, want, dtype, {fa.float32: loose, fa.float16: max(loose, 2e-3), fa.bfloat16: 1.5e-2}[dtype])


def activated(h: Array, options: dict[str, Any]) -> Array:
    gate, up = np.split(h, 2)
    if options.get("kind") == "gelu_tanh":
        return np.asarray(0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3))) * up)
    alpha = 1.0
    if "limit" in options:
        gate, up, alpha = np.minimum(gate, 0.5), np.clip(up, -0.5, 0.5) + 1.0, 1.7
    return np.asarray(gate / (1 + np.exp(-gate * alpha)) * up)


@wide_registers
def test_ids_out_of_range() -> None:
    for ids in ([[0, 2]], [[-1, 0]]):
        with pytest.raises(IndexError, match="there are 2 experts"):
            moe_ffn(fa.ones((1, 4)), fa.ones((2, 6, 4)), fa.ones((2, 4, 3)), fa.asarray(ids), fa.ones((1, 2)))


@wide_registers
def test_threads_change_no_bit_and_arguments_stay() -> None:
    rng = np.random.default_rng(0)
    ids = fa.asarray(rng.permuted(np.tile(np.arange(8), (90, 1)), axis=-1)[:, :3])
    for dtype in DTYPES:
        x, w = make(noise(1, 90, 192), dtype, CPU)[0], make(noise(2, 90, 3), fa.float32, CPU)[0]
        for scheme in (None, "int4-g64", "int8-a8"):
            w13, w2 = matrices(3, scheme, dtype, 8, 256, 192)[0], matrices(4, scheme, dtype, 8, 70, 128)[0]
            held = [t.numpy().tobytes() for t in (x, ids, w)]
            set_threads(1)
            want = moe_ffn(x, w13, w2, ids, w)
            set_threads(2)
            for _ in range(3):
                assert moe_ffn(x, w13, w2, ids, w).numpy().tobytes() == want.numpy().tobytes()
            assert [t.numpy().tobytes() for t in (x, ids, w)] == held
            with use_fast_paths(False):
                reference = moe_ffn(x, w13, w2, ids, w)
            assert distance(wide(want), wide(reference)) < 8e-3


@wide_registers
def test_a_stack_cut_from_a_larger_one() -> None:
    q, _ = weights(5, "int4-g32", 6, 40, 64)
    part = q[1:5]
    x, x64 = make(noise(6, 8, 64), fa.bfloat16, CPU)
    got = grouped_linear(x, part, fa.asarray([0, 2, 4, 6, 8]))
    numbers = numbers_of(q)[1:5]
    want = np.concatenate([x64[2 * e : 2 * e + 2] @ numbers[e].T for e in range(4)])
    check(got, want, fa.bfloat16, 4e-3)
