"""The kernels of routing to experts, of plans, and of sums."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import ferrum_array as fa
from ferrum_ops import moe_plan
from ferrum_ops.kernels.cuda import routing
from ferrum_ops.moe_planning import RoutePlan
from tests.array.oracle import wide
from tests.ops.interpreted.drawn import HALVES, LIES, Lie, lying
from tests.ops.oracle import check, noise
from tests.ops.test_moe import Choices, choices, exact_plan, room
from tests.ops.test_moe_routing import Case, cases, exact_route


@settings(max_examples=40)
@given(case=cases(), dtype=st.sampled_from(HALVES), lie=st.sampled_from(LIES), many=st.booleans())
@np.errstate(all="ignore")  # kernels do not warn, NumPy in their place would
def test_routes_as_the_oracle_says(case: Case, dtype: fa.Dtype, lie: Lie, many: bool) -> None:
    """Ties, groups and biases too; also where a program has several tokens."""
    assume(case.k <= 64)
    rounded = fa.asarray(case.logits, dtype=dtype, device="cpu")
    logits = fa.stack([rounded, rounded * fa.nan], axis=-1)[..., 0] if lie == "gaps" else rounded
    x64, options = wide(rounded), case.options
    bias = None if options["bias"] is None else fa.asarray(options["bias"], dtype="f32", device="cpu")
    exact = {**options, "bias": None if bias is None else wide(bias)}
    want_ids, want, nearest = exact_route(x64, case.k, **exact)
    assume(nearest > 1e-5)  # else rounding decides
    words = {**options, "bias": bias}
    names = ("score", "norm", "bias", "n_group", "topk_group", "scale")
    assert routing.route_refuses(logits, case.k, *(words[name] for name in names)) is None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(routing, "MANY", 2 if many else routing.MANY)
        ids, weights = routing.moe_route(logits, case.k, *(words[name] for name in names))
    assert ids.dtype is fa.int64
    assert (wide(ids) == want_ids).all()
    check(weights, want, dtype, {fa.float32: 2e-6}.get(dtype, 0.0))


@np.errstate(all="ignore")
def test_a_nan_is_the_greatest_and_spoils_its_token_alone() -> None:
    logits = fa.asarray([[1.0, fa.nan, 3.0, fa.nan], [0.0, -fa.inf, -0.0, 5.0]], dtype="f32", device="cpu")
    ids, weights = routing.moe_route(logits, 3, "softmax", True, None, 1, 1, 1.0)
    assert ids.tolist() == [[1, 3, 2], [3, 0, 2]]
    assert np.isnan(wide(weights)[0]).all()
    assert np.isfinite(wide(weights)[1]).all()
    _, weights = routing.moe_route(logits, 3, "sigmoid", False, None, 1, 1, 1.0)
    assert np.isnan(wide(weights)).tolist() == [[True] * 3, [False] * 3]


def test_zeros_of_both_signs_are_equal() -> None:
    ids, _ = routing.moe_route(fa.asarray([[-1.0, -0.0, 0.0]], device="cpu"), 2, "softmax", True, None, 1, 1, 1.0)
    assert ids.tolist() == [[1, 2]]


@settings(max_examples=40)
@given(case=choices(), block=st.sampled_from([1, 1, 2, 16]), alone=st.booleans(), turned=st.booleans())
def test_plans_as_the_oracle_says(case: Choices, block: int, alone: bool, turned: bool) -> None:
    """By one program, and by many."""
    ids = fa.asarray(case.ids, device="cpu")
    if turned and ids.ndim:
        axes = tuple(range(ids.ndim))[::-1]
        ids = fa.permute_dims(fa.permute_dims(ids, axes) + 0, axes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(routing, "ALONE", routing.ALONE if alone else 3)
        patch.setattr(routing, "_PROGRAMS", 5)
        plan = routing.moe_plan(ids, case.experts, block)
    order, inverse, offsets = exact_plan(case.ids, case.experts, block)
    assert plan.order.tolist() == order
    assert plan.inverse.shape == case.ids.shape
    assert plan.inverse.reshape(case.ids.size).tolist() == inverse
    assert plan.offsets.tolist() == offsets


def test_choices_of_no_expert_have_no_row() -> None:
    """And nothing is written outside the plan for them."""
    bad = fa.asarray([[0, 2], [7, 1], [-1, 2**40], [2, 0]], dtype="i64", device="cpu")
    plan = routing.plan_of(bad, 3)
    assert plan.offsets.tolist() == [0, 2, 3, 5]
    assert plan.order.tolist()[:5] == [0, 7, 3, 1, 6]
    places = plan.inverse.tolist()
    assert [places[0], places[3], places[1][1]] == [[0, 3], [4, 1], 2]
    with pytest.raises(IndexError, match=re.escape("moe_plan: ids run from -1 to 1099511627776")):
        routing.moe_plan(bad, 3, 1)


@settings(max_examples=30)
@given(case=choices(most=60), block=st.sampled_from([1, 4]), width=st.sampled_from([0, 1, 9, 70, 300]), data=st.data())
def test_permuting_copies_rows(case: Choices, block: int, width: int, data: st.DataObject) -> None:
    dtype, lie = data.draw(st.sampled_from(HALVES)), data.draw(st.sampled_from(LIES))
    x, x64 = lying(case.seed, (*case.tokens, width), dtype, lie)
    plan = moe_plan(fa.asarray(case.ids, device="cpu"), case.experts, block=block)
    got = routing.moe_permute(x, plan)
    want = np.zeros((plan.rows, width))
    rows = x64.reshape(int(np.prod(case.tokens)), width)
    for place, choice in enumerate(plan.order.tolist()):
        if choice >= 0:
            want[place] = rows[choice // case.k]
    assert got.dtype is dtype
    assert (wide(got) == want).all()


@settings(max_examples=40)
@given(
    case=choices(most=60), block=st.sampled_from([1, 4]), width=st.sampled_from([0, 1, 9, 130]), added=st.booleans(),
    data=st.data(),
)  # fmt: skip
def test_sums_as_the_oracle_says(case: Choices, block: int, width: int, added: bool, data: st.DataObject) -> None:
    dtype, third = (data.draw(st.sampled_from(HALVES)) for _ in range(2))
    lies = [data.draw(st.sampled_from(LIES)) for _ in range(3)]
    plan = moe_plan(fa.asarray(case.ids, device="cpu"), case.experts, block=block)
    y, y64 = lying(case.seed, (plan.rows, width), dtype, lies[0])
    w, w64 = lying(case.seed + 1, case.ids.shape, fa.float32, lies[1])
    residual, r64 = lying(case.seed + 2, (*case.tokens, width), third, lies[2])
    got = routing.moe_combine(y, plan, w, residual if added else None)
    rows = y64[wide(plan.inverse).astype(np.int64)]
    want = (rows * w64[..., None]).sum(-2) + (r64 if added else 0.0)
    size = (np.abs(rows) * np.abs(w64)[..., None]).sum(-2) + (np.abs(r64) if added else 0.0)
    check(got, want, dtype, room(dtype, want, size))


def test_sums_begin_with_the_residual_and_go_on_in_order() -> None:
    """In float32 (2**24 + 1) + 1 is 2**24, and 1 + 1 + 2**24 is not."""
    ids = fa.asarray([[2, 0, 1]], device="cpu")
    plan = moe_plan(ids, 3)
    y = fa.take(fa.asarray([[1.0], [1.0], [1.0]], device="cpu"), plan.order, axis=0)
    w = fa.ones((1, 3), device="cpu")
    many = fa.asarray([[2.0**24]], device="cpu")
    assert routing.moe_combine(y, plan, w, many).item() == 2.0**24
    y = fa.take(fa.asarray([[1.0], [1.0], [2.0**24]], device="cpu"), plan.order, axis=0)
    assert routing.moe_combine(y, plan, w, None).item() == 2.0**24 + 2


@np.errstate(all="ignore")
def test_a_choice_of_no_expert_makes_its_token_nan() -> None:
    ids = fa.asarray([[0, 1], [3, 1], [1, -1]], dtype="i64", device="cpu")
    y = fa.asarray(noise(0, 6, 3), dtype="f32", device="cpu")
    got = routing.combined(y, None, fa.ones((3, 2), device="cpu"), ids=ids, experts=3)
    assert np.isnan(wide(got)).all(axis=1).tolist() == [False, True, True]


def test_what_no_kernel_takes() -> None:
    def why(x: Any, k: int = 2, bias: Any = None, n_group: int = 1) -> str | None:
        return routing.route_refuses(x, k, "softmax", True, bias, n_group, 1, 1.0)

    x = fa.zeros((1, 1025), device="cpu")
    assert why(x) == "takes up to 1024 experts, not 1025"
    assert why(x[:, :1024]) is None
    assert why(x[:, :100], 65) == "takes up to 64 choices of a token, not 65"
    assert why(x[:, :4], 2, fa.zeros(4, dtype="f64", device="cpu")) == "does not take a bias in float64"
    assert routing.plan_refuses(fa.zeros((3, 1), dtype="i64", device="cpu"), 1025, 1)
    assert routing.plan_refuses(fa.zeros((3, 1), dtype="i64", device="cpu"), 8, 1 << 28)
    plan: RoutePlan = moe_plan(fa.zeros((1, 1), dtype="i64", device="cpu"), 1)
    assert routing.combine_refuses(x, plan, x, fa.zeros((1, 1), dtype="f64", device="cpu"))
    assert routing.combine_refuses(x, plan, x, None) is None
