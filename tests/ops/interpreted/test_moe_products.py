"""The kernels of experts' products, of few rows and of many."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ferrum_array as fa
from ferrum_array import Tensor
from ferrum_ops import QuantTensor, moe_plan, quantize
from ferrum_ops.kernels.cuda import moe
from ferrum_ops.kernels.cuda import moe_products as products
from ferrum_ops.kernels.cuda.moe_products import Cut, Gate, Listed, Pass, Product, Sorted, stack_of
from tests.array.oracle import wide
from tests.ops.interpreted.drawn import LIES, Lie, lying, poison
from tests.ops.interpreted.experts import CLOSE, SCHEMES, weights
from tests.ops.oracle import Array, distance, make, noise


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
    where = Sorted(None, fa.asarray(offsets, device="cpu"), len(x64), 1, tail=True)
    product = Product(x, stack_of(w), bias if biased else None, columns, None)
    want = np.zeros((len(x64), columns))
    for e, (a, b) in enumerate(pairwise(offsets)):
        want[a:b] = x64[a:b] @ w64[e].T + (b64[e] if biased else 0.0)
    cuts: list[Cut | Pass] = [
        data.draw(st.sampled_from([Cut(16, 0, 32, 64, 4, 3, True), Cut(32, 16, 16, 64, 4, 3, False)]))
    ]
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


FORMS = ("int4-g32", "int4-g64-asym", "int4", "int8-g64-asym", "int8-g32", "mxfp4")
#: where rows are in a dtype that has what comes of these scales
WIDE = ("wide mxfp4", "wide int4-g32-f16", "wide int4-g32-asym-f16")


@pytest.mark.parametrize("scheme", [*FORMS, *WIDE])
@pytest.mark.parametrize("cut", [Pass(1, 2, 1), Pass(2, 1, 2), Pass(1, 2, 1, 1, True)])
def test_few_rows_with_quantised_weights(scheme: str, cut: Pass) -> None:
    """Sorted rows, of which an expert has more than a pass takes, and rows that are not sorted: the same."""
    experts, columns, size, k = 3, 19, 256, 2
    w, w64 = weights(1, (experts, columns, size), scheme.removeprefix("wide "))
    x, x64 = lying(2, (9, size), fa.float16, "columns")
    chosen = np.where(np.arange(18) < 3, 2, np.where(np.arange(18) == 9, 1, 0)).reshape(9, k)
    ids = fa.asarray(chosen, device="cpu")
    plan = moe_plan(ids, experts)
    product = Product(x, stack_of(w), None, columns, None)
    want = np.einsum("tjnk,tk->tjn", w64[chosen], x64).reshape(-1, columns)
    with pytest.MonkeyPatch.context() as patch, poison(products):
        patch.setattr(products, "WIDE", (fa.float16,) if scheme in WIDE else ())
        by_ids = products.few(product, Listed(ids, k), cut)
        sorted_ = products.few(product, Sorted(plan.order, plan.offsets, 18, k), cut)
    assert distance(wide(by_ids), want) < CLOSE
    assert distance(wide(sorted_), want[wide(plan.order).astype(np.int64)]) < CLOSE


def test_quarters_of_units_have_scales_of_their_own_where_weights_would_round_alike() -> None:
    """Scales in another dtype would be rounded before they are multiplied."""

    def units(scheme: str, size: int = 256, dtype: fa.Dtype = fa.float16) -> tuple[int, int]:
        w, _ = weights(1, (2, 3, size), scheme)
        found = products.fours(Product(fa.ones((1, size), dtype=dtype, device="cpu"), stack_of(w), None, 3, None))
        return found.w.unit, found.w.per

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "WIDE", (fa.float16,))
        assert units("int4-g32-f16") == units("mxfp4") == (128, -1)
        assert units("int4-g32") == units("int4-g32-f16", 192) == units("int4-g32-f16", 256, fa.float32) == (32, 1)
        assert units("mxfp4", 192) == (32, 1)
        assert units("int4-g128") == (128, 1)
        assert units("int8-g32")[1] != -1


@settings(max_examples=6)
@given(
    scheme=st.sampled_from([*FORMS, *WIDE]),
    seed=st.integers(0, 2**32 - 1), tokens=st.sampled_from([1, 3]), k=st.sampled_from([1, 3, 5]),
    columns=st.sampled_from([7, 32, 40]), biased=st.booleans(),
    cut=st.sampled_from([Pass(1, 2, 1), Pass(2, 4, 2), Pass(1, 8, 1, 1, True), Pass(2, 2, 2, 1, True)]),
)  # fmt: skip
def test_what_the_experts_of_a_token_give_together(
    scheme: str, seed: int, tokens: int, k: int, columns: int, biased: bool, cut: Pass
) -> None:
    """Always the same bits; more experts than warps, and fewer; experts twice; experts that there are none of."""
    experts, size = 4, 384
    w, w64 = weights(seed, (experts, columns, size), scheme.removeprefix("wide "), True)
    x, x64 = lying(seed + 1, (tokens * k, size), fa.float16, "columns")
    chosen = np.random.default_rng(seed).integers(0, experts, (tokens, k))
    share, s64 = make(noise(seed + 2, tokens, k), fa.float32, fa.Device("cpu"))
    bias, b64 = lying(seed + 3, (experts, columns), fa.float16, "whole")
    product = Product(x, stack_of(w), bias if biased else None, columns, None)
    each = np.einsum("tjnk,tjk->tjn", w64[chosen], x64.reshape(tokens, k, -1)) + (b64[chosen] if biased else 0.0)
    want = np.einsum("tjn,tj->tn", each, s64)
    with pytest.MonkeyPatch.context() as patch, poison(products):
        patch.setattr(products, "WIDE", (fa.float16,) if scheme in WIDE else ())
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
    monkeypatch.setattr(moe, "_WORTH", dict.fromkeys(moe._WORTH, 1))
    assert moe._stack(w, x, 5).form != "dense"
    monkeypatch.setattr(moe, "_TIMED", (fa.float16,))
    assert moe._stack(w, x, 2).form != "dense"
    assert moe._stack(w, x, 3).form == "dense"
    got = moe.grouped_linear(x, w, fa.asarray([0, 2, 2, 5], device="cpu"), None)
    want = np.concatenate([x64[:2] @ w64[0].T, x64[2:] @ w64[2].T])
    assert distance(wide(got), want) < CLOSE
    monkeypatch.setattr(moe, "_ROOM", 3 * 10 * 192 - 1)
    assert moe._stack(w, x, 5).form != "dense"


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
