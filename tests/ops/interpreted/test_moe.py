"""Networks of experts: which of the products' kernels are launched, and that they give what the oracle says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ferrum_array as fa
from ferrum_array import Tensor
from ferrum_ops import ActivationKind, QuantTensor, quantize
from ferrum_ops.kernels.cuda import moe, routing
from ferrum_ops.kernels.cuda import moe_products as products
from ferrum_ops.kernels.cuda.moe_products import Pass, Product, stack_of
from tests.array.oracle import wide
from tests.ops.interpreted.drawn import lying, poison
from tests.ops.interpreted.experts import CLOSE, weights
from tests.ops.interpreted.hopper import Made, compiled
from tests.ops.oracle import distance, make, noise
from tests.ops.test_activation import EXACT


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


@pytest.mark.parametrize(
    ("scheme", "tokens"),
    [("int4-g128", 1), ("int4-g32", 1), ("int4-g32-f16", 3), ("int8-g128", 3), ("mxfp4", 3), ("mxfp4", 5)],
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

    def down(product: Product, ids: fa.Tensor, weights: fa.Tensor, cut: Pass, chained: bool) -> fa.Tensor:
        assert not chained  # the interpreter has no launches that come early
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
    assert moe._together(product("int8-g128"), 8, 8) == Pass(1, 8, 4, 1, True)
    assert moe._together(product("int8-g128"), 8, 9) == Pass(1, 8, 2, 1, True)
    assert moe._together(product("int4-g32-f16"), 8, 8) == Pass(1, 8, 8, 1, True)  # scales would round before
    assert moe._together(product("int4-g128"), 4, 16) is None
    assert moe._together(product("int4-g128", fa.float32), 8, 16) is None
    for scheme in ("int4-g128-asym", "int4", "int8", None):
        assert moe._together(product(scheme), 8, 16) is None
    monkeypatch.setattr(products, "WIDE", (fa.float16,))
    assert moe._together(product("int4-g32-f16"), 8, 8) == Pass(1, 8, 2, 1, True)
    monkeypatch.setattr(moe, "_DEEP", 384)
    assert moe._together(product("int4-g128"), 8, 16) is None


def test_dense_experts_are_looked_up_while_there_are_few_choices() -> None:
    assert moe._listed(32, 4, False)
    assert not moe._listed(33, 128, False)
    assert moe._listed(128, 128, True)
    assert not moe._listed(129, 256, True)
    assert not moe._listed(64, 63, True)


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
    waiting = {"some": 1, "down": 1, "combine": 1}  # second products of few tokens, and their sums
    assert {name: sum(code.waits for code in codes) for name, codes in made.items() if name in waiting} == waiting
    assert sum(code.waits for code in found) == 3
    assert all(code.wide for code in made["few"])
    assert any(code.wide for code in made["combine"])  # where there are many tokens
    for name in ("down", "few", "many", "some"):
        for code in made[name]:
            assert not code.local, code
