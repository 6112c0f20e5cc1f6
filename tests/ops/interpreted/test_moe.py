"""The kernels of experts' products, and of networks that are made of them."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ferrum_array as fa
from ferrum_array import Tensor
from ferrum_ops import ActivationKind, QuantTensor, dequantize, moe_plan, quantize
from ferrum_ops.kernels.cuda import moe, routing
from ferrum_ops.kernels.cuda import moe_products as products
from ferrum_ops.kernels.cuda.moe_products import Cut, Gate, Listed, Pass, Product, Sorted, stack_of
from tests.array.oracle import wide
from tests.ops.interpreted.drawn import LIES, Lie, lying, poison
from tests.ops.interpreted.hopper import Made, compiled
from tests.ops.oracle import Array, distance, make, noise
from tests.ops.test_activation import EXACT

SCHEMES = ("int4-g32", "int4-g64-asym", "int4-g96-f16", "int4", "int8", "int8-g32", "int8-g64-asym", "mxfp4")
#: with sums of one K in another order, and results rounded to float16
CLOSE = 1e-3


def weights(
    seed: int, shape: tuple[int, int, int], scheme: str | None, gaps: bool = False
) -> tuple[Tensor | QuantTensor, Array]:
    """Weights [E, N, K], and what they are; with gaps there is NaN between experts."""
    values = noise(seed, *shape) / shape[2] ** 0.5
    if scheme is None:
        dense, exact = lying(seed, shape, fa.float16, "whole", shape[2] ** -0.5)
        if gaps:
            dense = fa.concat([dense, fa.full_like(dense, fa.nan)], axis=1)[:, : shape[1]]
        return dense, exact
    found = quantize(fa.asarray(values, dtype="f32", device="cpu"), scheme)
    return found, wide(dequantize(found))


@st.composite
def stacks(draw: st.DrawFn) -> tuple[Tensor | QuantTensor, Array]:
    """Weights whose rows are of odd numbers, where the scheme allows it."""
    scheme = draw(st.sampled_from([None, None, None, *SCHEMES]))
    experts, columns = draw(st.sampled_from([(1, 3), (3, 20)]))
    size = draw(st.sampled_from([1, 7, 100] if scheme is None else [192]))
    return weights(draw(st.integers(0, 2**32 - 1)), (experts, columns, size), scheme, draw(st.booleans()))


@settings(max_examples=14)
@given(
    made=stacks(), seed=st.integers(0, 2**32 - 1), tail=st.sampled_from([0, 0, 3]), biased=st.booleans(),
    lie=st.sampled_from(LIES), data=st.data(),
)  # fmt: skip
def test_sorted_rows_as_the_oracle_says(
    made: tuple[Tensor | QuantTensor, Array], seed: int, tail: int, biased: bool, lie: Lie, data: st.DataObject
) -> None:
    """Experts without rows, rows of nobody, and tiles that are narrower than others."""
    w, w64 = made
    experts, columns, size = w64.shape
    counts = [data.draw(st.sampled_from([0, 0, 1, 5, 17])) for _ in range(experts)]
    offsets = np.asarray([0, *np.cumsum(counts)])
    x, x64 = lying(seed, (offsets[-1] + tail, size), fa.float16, lie)
    bias, b64 = lying(seed + 1, (experts, columns), fa.float32, "gaps")
    where = Sorted(None, fa.asarray(offsets, device="cpu"), len(x64), 1)
    product = Product(x, stack_of(w), bias if biased else None, columns, None)
    want = np.zeros((len(x64), columns))
    for e, (a, b) in enumerate(pairwise(offsets)):
        want[a:b] = x64[a:b] @ w64[e].T + (b64[e] if biased else 0.0)
    cuts: list[Cut | Pass] = [
        data.draw(st.sampled_from([Cut(16, 0, 32, 64, 4, 3, True), Cut(32, 16, 16, 64, 4, 3, False)]))
    ]
    if not tail:
        cuts.append(Pass(2, 2, 1))
    for cut in cuts:
        with poison(products):
            got = products.few(product, where, cut) if isinstance(cut, Pass) else products.many(product, where, cut)
        assert distance(wide(got), want) < CLOSE, cut
        assert not wide(got)[offsets[-1] :].any()


@pytest.mark.parametrize("scheme", [None, "int4-g32-asym", "int8-g32", "mxfp4", "int4"])
@pytest.mark.parametrize("cut", [Cut(16, 0, 16, 64, 4, 3, True), Cut(32, 16, 32, 64, 4, 3, False)])
def test_gates_of_sorted_rows(scheme: str | None, cut: Cut) -> None:
    """Experts have several tiles, one, or none; rows are those of choices, in their order."""
    counts, inner, size, k = (17, 0, 33, 1, 13), 20, 64, 2
    w, w64 = weights(1, (5, 2 * inner, size), scheme)
    x, x64 = lying(2, (sum(counts) // k, size), fa.float16, "columns")
    bias, b64 = lying(3, (5, 2 * inner), fa.float32, "whole")
    order = np.random.default_rng(4).permutation(sum(counts))
    offsets = fa.asarray(np.asarray([0, *np.cumsum(counts)]), device="cpu")
    product = Product(x, stack_of(w), bias, inner, Gate("silu", 1.0, 1.5, 1.0))
    with poison(products):
        got = products.many(product, Sorted(fa.asarray(order, device="cpu"), offsets, sum(counts), k), cut)
    h = np.concatenate(
        [x64[order[a:b] // k] @ w64[e].T + b64[e] for e, (a, b) in enumerate(pairwise(offsets.tolist()))]
    )
    gate, up = np.minimum(h[:, :inner], 1.0), np.clip(h[:, inner:], -1.0, 1.0)
    assert distance(wide(got), gate / (1.0 + np.exp(-1.5 * gate)) * (up + 1.0)) < CLOSE


@settings(max_examples=8)
@given(
    made=st.sampled_from([None, None, "int4-g32", "int8-g32-asym", "mxfp4", "mxfp4", "int8"]),
    seed=st.integers(0, 2**32 - 1), tokens=st.sampled_from([1, 5]), k=st.sampled_from([1, 3, 4]),
    biased=st.booleans(), limit=st.booleans(), kind=st.sampled_from(["silu", "gelu", "relu2"]), sort=st.booleans(),
    wide_scales=st.booleans(), together=st.booleans(),
)  # fmt: skip
def test_networks_as_the_oracle_says(
    made: str | None,
    seed: int,
    tokens: int,
    k: int,
    biased: bool,
    limit: bool,
    kind: ActivationKind,
    sort: bool,
    wide_scales: bool,
    together: bool,
) -> None:
    """With the products that belong to each way of finding the rows."""
    rng = np.random.default_rng(seed)
    experts, size, inner, columns = 5, 128 if made else 72, 32 if made else 20, 17
    w13, w13_64 = weights(seed, (experts, 2 * inner, size), made)
    w2, w2_64 = weights(seed + 1, (experts, columns, inner), made)
    x, x64 = lying(seed + 2, (tokens, size), fa.float16, "columns")
    chosen = np.stack([rng.permutation(experts)[:k] for _ in range(tokens)])
    ids = fa.asarray(chosen, device="cpu")
    scale, s64 = lying(seed + 3, (tokens, k), fa.float32, "gaps")
    b13, b13_64 = lying(seed + 4, (experts, 2 * inner), fa.float32, "whole")
    b2, b2_64 = lying(seed + 5, (experts, columns), fa.float16, "whole")
    want = np.zeros((tokens, columns))
    for t, j in np.ndindex(*chosen.shape):
        e = chosen[t, j]
        h = w13_64[e] @ x64[t] + (b13_64[e] if biased else 0.0)
        g, u = h[:inner], h[inner:]
        if limit:
            g, u = np.minimum(g, 0.5), np.clip(u, -0.5, 0.5)
        y = EXACT[kind](g) * (u + 1.0 if limit else u)
        want[t] += s64[t, j] * (w2_64[e] @ y + (b2_64[e] if biased else 0.0))
    with pytest.MonkeyPatch.context() as patch, poison(products), np.errstate(all="ignore"):
        patch.setattr(moe, "FEW", 0 if sort else products.FEW)
        patch.setattr(moe, "_together", lambda *_: Pass(1, 2, 1, 1, True) if together and made else None)
        patch.setattr(products, "WIDE", (fa.float16,) if wide_scales else ())  # the scales here are not far from 1
        got = moe.moe_ffn(
            x, w13, w2, ids, scale, kind, b13 if biased else None, b2 if biased else None, 0.5 if limit else None, 1.0,
            1.0 if limit else 0.0,
        )  # fmt: skip
    assert got.shape == (tokens, columns)
    assert distance(wide(got), want) < 2 * CLOSE


@pytest.mark.parametrize("scheme", ["int4-g32", "int4-g64-asym", "int4", "int8-g64-asym", "int8-g32", "mxfp4", "wide"])
@pytest.mark.parametrize("cut", [Pass(1, 2, 1), Pass(2, 1, 2), Pass(1, 2, 1, 1, True)])
def test_few_rows_with_quantised_weights(scheme: str, cut: Pass) -> None:
    """Sorted rows, of which an expert has more than a pass takes, and rows that are not sorted: the same."""
    experts, columns, size, k = 3, 19, 256, 2
    w, w64 = weights(1, (experts, columns, size), "mxfp4" if scheme == "wide" else scheme)
    x, x64 = lying(2, (9, size), fa.float16, "columns")
    chosen = np.where(np.arange(18) < 3, 2, np.where(np.arange(18) == 9, 1, 0)).reshape(9, k)
    ids = fa.asarray(chosen, device="cpu")
    plan = moe_plan(ids, experts)
    product = Product(x, stack_of(w), None, columns, None)
    want = np.einsum("tjnk,tk->tjn", w64[chosen], x64).reshape(-1, columns)
    with pytest.MonkeyPatch.context() as patch, poison(products):
        patch.setattr(products, "WIDE", (fa.float16,) if scheme == "wide" else ())
        by_ids = products.few(product, Listed(ids, k), cut)
        sorted_ = products.few(product, Sorted(plan.order, plan.offsets, 18, k), cut)
    assert distance(wide(by_ids), want) < CLOSE
    assert distance(wide(sorted_), want[wide(plan.order).astype(np.int64)]) < CLOSE


@settings(max_examples=6)
@given(
    scheme=st.sampled_from(["int4-g32", "int4-g64-asym", "int4", "int8-g64-asym", "int8-g32", "mxfp4", "wide"]),
    seed=st.integers(0, 2**32 - 1), tokens=st.sampled_from([1, 3]), k=st.sampled_from([1, 3, 5]),
    columns=st.sampled_from([7, 32, 40]), biased=st.booleans(),
    cut=st.sampled_from([Pass(1, 2, 1), Pass(2, 4, 2), Pass(1, 8, 1, 1, True), Pass(2, 2, 2, 1, True)]),
)  # fmt: skip
def test_what_the_experts_of_a_token_give_together(
    scheme: str, seed: int, tokens: int, k: int, columns: int, biased: bool, cut: Pass
) -> None:
    """Always the same bits; more experts than warps, and fewer; experts twice; experts that there are none of."""
    experts, size = 4, 384
    w, w64 = weights(seed, (experts, columns, size), "mxfp4" if scheme == "wide" else scheme, True)
    x, x64 = lying(seed + 1, (tokens * k, size), fa.float16, "columns")
    chosen = np.random.default_rng(seed).integers(0, experts, (tokens, k))
    share, s64 = make(noise(seed + 2, tokens, k), fa.float32, fa.Device("cpu"))
    bias, b64 = lying(seed + 3, (experts, columns), fa.float16, "whole")
    product = Product(x, stack_of(w), bias if biased else None, columns, None)
    each = np.einsum("tjnk,tjk->tjn", w64[chosen], x64.reshape(tokens, k, -1)) + (b64[chosen] if biased else 0.0)
    want = np.einsum("tjn,tj->tn", each, s64)
    with pytest.MonkeyPatch.context() as patch, poison(products):
        patch.setattr(products, "WIDE", (fa.float16,) if scheme == "wide" else ())
        got = products.down(product, fa.asarray(chosen, device="cpu"), share, cut)
        again = products.down(product, fa.asarray(chosen, device="cpu"), share, cut)
        chosen[0, -1] = data = (-1, experts, 2**40)[seed % 3]
        none = products.down(product, fa.asarray(chosen, device="cpu"), share, cut)
    assert data not in range(experts)
    assert got.shape == (tokens, columns)
    assert np.linalg.norm(wide(got) - want) < CLOSE * max(np.linalg.norm(want), np.linalg.norm(each * s64[..., None]))
    assert np.array_equal(wide(got), wide(again))
    assert np.isnan(wide(none)[0]).all()
    assert np.array_equal(wide(none)[1:], wide(got)[1:])


@pytest.mark.parametrize("scheme", ["int4-g32", "int4-g64-asym", "int4", "int8-g64-asym", "mxfp4"])
def test_very_many_rows_meet_widened_weights(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    w, w64 = weights(1, (3, 10, 192), scheme)
    x, x64 = lying(2, (5, 192), fa.float16, "columns")
    monkeypatch.setattr(moe, "_WORTH", 1)
    assert moe._stack(w, x, 5).form != "dense"
    monkeypatch.setattr(moe, "_TIMED", (fa.float16,))
    assert moe._stack(w, x, 2).form != "dense"
    assert moe._stack(w, x, 3).form == "dense"
    got = moe.grouped_linear(x, w, fa.asarray([0, 2, 2, 5], device="cpu"), None)
    want = np.concatenate([x64[:2] @ w64[0].T, x64[2:] @ w64[2].T])
    assert distance(wide(got), want) < CLOSE
    monkeypatch.setattr(moe, "_ROOM", 3 * 10 * 192 - 1)
    assert moe._stack(w, x, 5).form != "dense"


@pytest.mark.parametrize(
    ("scheme", "tokens"), [("int4-g128", 1), ("int4-g32", 1), ("int8-g128", 3), ("mxfp4", 3), ("mxfp4", 5)]
)
def test_a_network_in_the_ways_of_the_tables(scheme: str, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The programs for 8 choices of a token meet the same numbers as those for any."""
    experts, size, inner = 2, 256, 128
    x, _ = lying(1, (tokens, size), fa.float16, "columns")
    w13, _ = weights(2, (experts, 2 * inner, size), scheme)
    w2, _ = weights(3, (experts, 16, inner), scheme)
    ids = fa.asarray(np.random.default_rng(tokens).integers(0, experts, (tokens, 8)), device="cpu")
    share, _ = make(noise(4, tokens, 8), fa.float32, fa.Device("cpu"))
    monkeypatch.setattr(moe, "_DEEP", 200)
    monkeypatch.setattr(products, "WIDE", (fa.float16,))  # the scales here are not far from 1
    launched: list[Pass] = []

    def down(product: Product, ids: fa.Tensor, weights: fa.Tensor, cut: Pass) -> fa.Tensor:
        launched.append(cut)
        return products.down(product, ids, weights, cut)

    monkeypatch.setattr(moe, "down", down)
    general = moe.moe_ffn(x, w13, w2, ids, share, "silu", None, None, None, 1.0, 0.0)
    assert not launched
    monkeypatch.setattr(moe, "_TIMED", (fa.float16,))
    got = moe.moe_ffn(x, w13, w2, ids, share, "silu", None, None, None, 1.0, 0.0)
    assert len(launched) == (tokens < 5)
    assert distance(wide(got), wide(general).astype(np.float64)) < CLOSE


def test_the_tables_are_for_what_was_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for zero points, other dtypes, one scale a row, other numbers of choices and longer rows."""
    monkeypatch.setattr(moe, "_TIMED", (fa.float16,))

    def product(scheme: str | None, dtype: fa.Dtype = fa.float16) -> Product:
        w, _ = weights(1, (2, 4, 384), scheme)
        return Product(fa.ones((8, 384), dtype=dtype, device="cpu"), stack_of(w), None, 4, None)

    assert moe._together(product("int4-g128"), 8, 16) == Pass(1, 8, 2)
    assert moe._together(product("int4-g128"), 8, 17) == Pass(2, 8, 1)
    assert moe._together(product("int4-g128"), 4, 16) is None
    assert moe._together(product("int4-g128", fa.float32), 8, 16) is None
    for scheme in ("int4-g128-asym", "int4", "int8", None):
        assert moe._together(product(scheme), 8, 16) is None
    monkeypatch.setattr(moe, "_DEEP", 384)
    assert moe._together(product("int4-g128"), 8, 16) is None


def test_dense_experts_are_looked_up_while_there_are_few_choices() -> None:
    assert moe._listed(32, 4, False)
    assert not moe._listed(33, 128, False)
    assert moe._listed(128, 128, True)
    assert not moe._listed(129, 256, True)
    assert not moe._listed(64, 63, True)


@settings(max_examples=10)
@given(seed=st.integers(0, 2**32 - 1), tokens=st.sampled_from([1, 8]), narrow=st.booleans(), tall=st.booleans())
def test_few_rows_with_dense_weights_in_registers(seed: int, tokens: int, narrow: bool, tall: bool) -> None:
    """And those rows of an expert that are more than a pass takes."""
    experts, size, columns = 2, 71, 19
    w, w64 = weights(seed, (experts, columns, size), None)
    x, x64 = lying(seed + 1, (tokens, size), fa.float16, "columns")
    chosen = np.random.default_rng(seed).integers(0, experts, (tokens, 4))
    chosen[0, 0] = 1
    product = Product(x, stack_of(w), None, columns, None)
    with poison(products):
        got = products.few(product, Listed(fa.asarray(chosen, device="cpu"), 4), Pass(2 if tall else 1, 2, 1))
    want = np.einsum("tjnk,tk->tjn", w64[chosen], x64).reshape(-1, columns)
    assert distance(wide(got), want) < CLOSE


def test_wrong_offsets_lead_nowhere() -> None:
    """Rows that no expert has are 0 or not what anyone asked for, and nothing outside is read or written."""
    w, _ = weights(0, (3, 20, 64), None)
    x, _ = lying(1, (10, 64), fa.float16, "whole")
    for wrong in ([0, -5, 2**40, 7], [5, 3, 1, 0], [-(2**60), 2**60, 0, 2**62]):
        where = Sorted(None, fa.asarray(wrong, dtype="i64", device="cpu"), 10, 1)
        got = products.many(Product(x, stack_of(w), None, 20, None), where, Cut(16, 0, 16, 64, 4, 3, False))
        assert got.shape == (10, 20)


def test_ids_of_no_expert_make_tokens_nan() -> None:
    w13, _ = weights(0, (3, 16, 32), None)
    w2, _ = weights(1, (3, 5, 8), None)
    x, _ = lying(2, (4, 32), fa.float16, "whole")
    ids = fa.asarray([[0, 1], [3, 1], [2, -1], [2**33, 0]], dtype="i64", device="cpu")
    one = fa.ones((4, 2), dtype="f32", device="cpu")
    for few in (0, products.FEW):
        with pytest.MonkeyPatch.context() as patch, np.errstate(all="ignore"):
            patch.setattr(moe, "FEW", few)
            got = moe.moe_ffn(x, w13, w2, ids, one, "silu", None, None, None, 1.0, 0.0)
        assert np.isnan(wide(got)).all(axis=1).tolist() == [False, True, True, True]
        assert np.isfinite(wide(got)[0]).all()


@pytest.mark.parametrize("tokens", [1, 20])
@pytest.mark.parametrize("scheme", [None, "int4-g32"])
def test_no_value_is_looked_at(tokens: int, scheme: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the router's numbers to the result: on a GPU the host would wait, and a graph could not hold it."""
    inner = 8 if scheme is None else 32
    w13, _ = weights(0, (5, 2 * inner, 32), scheme)
    w2, _ = weights(1, (5, 7, inner), scheme)
    x, _ = lying(2, (tokens, 32), fa.float16, "whole")
    logits, _ = lying(3, (tokens, 5), fa.float16, "whole")

    def seen(self: Tensor, *_: object, **__: object) -> None:
        raise AssertionError("a value is looked at")

    def run() -> Tensor:
        ids, shares = routing.moe_route(logits, 2, "softmax", True, None, 1, 1, 1.0)
        return moe.moe_ffn(x, w13, w2, ids, shares, "silu", None, None, None, 1.0, 0.0)

    with monkeypatch.context() as patch:
        for name in ("__array__", "__bool__", "__float__", "__index__", "__int__", "item", "numpy", "tolist"):
            patch.setattr(Tensor, name, seen)
        got = run()
        patch.setattr(moe, "CHECK", True)
        with pytest.raises(AssertionError, match="looked at"):
            run()
    assert got.shape == (tokens, 7)


def test_what_no_kernel_takes() -> None:
    w, _ = weights(0, (3, 16, 32), None)
    assert isinstance(w, Tensor)
    x = fa.zeros((4, 32), dtype="f16", device="cpu")
    offsets = fa.asarray([0, 1, 2, 4], device="cpu")

    def why(w: Tensor | QuantTensor) -> str | None:
        return moe.grouped_linear_refuses(x, w, offsets, None)

    assert why(w) is None
    assert why(w[:, ::2]) is None
    assert why(w[..., ::2]) == "the rows of weights have gaps"
    assert why(w[..., :0]) == "takes weights of some numbers"
    assert why(fa.zeros((1024, 1, 1), dtype="f16", device="cpu")) == "takes less than 1024 experts, not 1024"
    for scheme, reason in (
        ("int4-g32", None),
        ("int3-g32", "reads integers of 4 and 8 bits"),
        ("int4-g16", "groups are of multiples of 32"),
        ("fp8_e4m3", "reads integers with scales and mxfp4"),
    ):
        found = why(quantize(w, scheme))
        assert found == reason if reason is None else found is not None and reason in found
    ids = fa.zeros((4, 1), dtype="i64", device="cpu")
    assert moe.moe_ffn_refuses(x, w, w, ids) is None
    assert moe.moe_ffn_refuses(x, w, w[..., ::2], ids) == "the rows of weights have gaps"


def test_the_kernel_with_copying_warps_is_asked_before() -> None:
    """It is not interpreted; what it does not take goes to another."""
    w, _ = weights(0, (3, 16, 64), None)
    x, _ = lying(1, (4, 64), fa.float16, "whole")
    gate = Gate("silu", None, None, None)
    assert isinstance(w, Tensor)
    assert products.bulk_refuses(Product(x, stack_of(w), None, 16, None)) is None
    assert products.bulk_refuses(Product(x, stack_of(w), None, 8, gate)) is None
    assert products.bulk_refuses(Product(x, stack_of(w), None, 8, gate._replace(kind="gelu")))
    assert products.bulk_refuses(Product(x, stack_of(w[:, :8]), None, 8, None))
    narrow, _ = lying(1, (4, 65), fa.float16, "whole")
    assert products.bulk_refuses(Product(narrow[:, 1:], stack_of(w), None, 16, None))
    assert products.bulk_refuses(Product(x, stack_of(quantize(w, "int8")), None, 16, None))


def test_what_the_compiler_makes_for_a_hopper_gpu() -> None:
    """At the shapes of a network of 128 experts: sorted rows, few rows, and weights of 4 bits."""
    found = compiled(
        """
        launch.processors = lambda device: 132
        from ferrum_ops import QuantTensor
        from ferrum_ops.kernels.cuda import moe
        from ferrum_ops.quant.integer import IntScheme

        def network(tokens, w13, w2):
            x, ids = fa.empty((tokens, 2048), dtype="bf16"), fa.empty((tokens, 8), dtype="i64")
            moe.moe_ffn(x, w13, w2, ids, fa.empty((tokens, 8)), "silu", None, None, None, 1.0, 0.0)

        def int4(*shape):
            parts = {"values": fa.empty((*shape[:2], shape[2] // 2), dtype="u8")}
            parts["scales"] = fa.empty((*shape[:2], shape[2] // 128), dtype="bf16")
            return QuantTensor(IntScheme(4, 128), shape, parts)

        dense = fa.empty((128, 1536, 2048), dtype="bf16"), fa.empty((128, 2048, 768), dtype="bf16")
        network(4096, *dense)
        network(64, *dense)
        network(1, *dense)
        network(64, int4(128, 1536, 2048), int4(128, 2048, 768))
        network(2, int4(128, 1536, 2048), int4(128, 2048, 768))
        """
    )
    made: dict[str, list[Made]] = {}
    for code in found:
        made.setdefault(code.name, []).append(code)
        assert code.shared <= 227 * 1024, code
    assert {name: len(codes) for name, codes in made.items()} == {
        "count": 3, "place": 3, "bulk": 2, "many": 2, "some": 2, "few": 3, "down": 1, "combine": 4,
    }  # fmt: skip
    assert all(code.wide for code in made["few"])
    assert any(code.wide for code in made["combine"])  # where there are many tokens
    for name in ("down", "few", "many", "some"):
        for code in made[name]:
            assert not code.local, code
