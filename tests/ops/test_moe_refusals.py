"""Wrong calls of the ops for mixtures of experts, and what ``explain`` says of right ones."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import ferrum_array as fa
from ferrum_ops import (
    RoutePlan,
    explain,
    grouped_linear,
    moe_combine,
    moe_ffn,
    moe_permute,
    moe_plan,
    use_fast_paths,
)

IDS = fa.asarray([[0, 1], [2, 1]])
PLAN = moe_plan(IDS, 3)
NET = {"x": fa.ones((2, 4)), "w13": fa.ones((3, 6, 4)), "w2": fa.ones((3, 4, 3)), "ids": IDS, "w": fa.ones((2, 2))}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: moe_plan(IDS, 1), r"k from 1 to 1, the experts, got int64\[2,2\]"),
        (lambda: moe_plan(fa.asarray(1), 3), r"ids must be \[\.\.\., k\]"),
        (lambda: moe_plan(fa.zeros((2, 0), dtype="i64"), 3), "k from 1 to 3"),
        (lambda: moe_plan(IDS, 0), "E must be an integer at least 1, got 0"),
        (lambda: moe_plan(IDS, 3, block=0), "block must be an integer at least 1, got 0"),
        (lambda: moe_plan(IDS, 3, block=True), "block must be an integer"),
        (lambda: moe_permute(fa.ones((3, 4)), PLAN), r"the plan's tokens \(2,\), got float32\[3,4\]"),
        (lambda: moe_permute(fa.asarray(1.0), PLAN), "the plan's tokens"),
        (lambda: moe_combine(fa.ones((3, 4)), PLAN, fa.ones((2, 2))), r"y must be \[4, D\].* got float32\[3,4\]"),
        (lambda: moe_combine(fa.ones((4, 4)), PLAN, fa.ones((2, 1))), r"the plan's shape \(2, 2\), got float32\[2,1\]"),
        (
            lambda: moe_combine(fa.ones((4, 4)), PLAN, fa.ones((2, 2)), residual=fa.ones((2, 3))),
            r"residual must have shape \(2, 4\), got float32\[2,3\]",
        ),
        (lambda: grouped_linear(fa.ones((4, 5)), fa.ones((3, 6, 4)), PLAN.offsets), "with one K"),
        (lambda: grouped_linear(fa.ones((4, 4)), fa.ones((6, 4)), PLAN.offsets), "with one K"),
        (lambda: grouped_linear(fa.ones((4, 4)), fa.ones((4, 6, 4)), PLAN.offsets), r"offsets must have shape \(5,\)"),
        (
            lambda: grouped_linear(fa.ones((4, 4)), fa.ones((3, 6, 4)), PLAN.offsets, fa.ones((3, 4))),
            r"bias must have shape \(3, 6\), got float32\[3,4\]",
        ),
        *(
            (
                lambda o=o: grouped_linear(fa.ones((4, 4)), fa.ones((2, 6, 4)), fa.asarray(o)),
                "offsets must begin with 0",
            )
            for o in ([1, 2, 4], [0, 3, 2], [0, 2, 5], [-1, 2, 4])
        ),
        (lambda: moe_ffn(**{**NET, "x": fa.ones((2, 5))}), r"must share K; got x float32\[2,5\]"),
        (lambda: moe_ffn(**{**NET, "w13": fa.ones((6, 4))}), "w13 must have three axes"),
        (lambda: moe_ffn(**{**NET, "w13": fa.ones((3, 5, 4))}), "must share E and I"),
        (lambda: moe_ffn(**{**NET, "w2": fa.ones((2, 4, 3))}), "must share E and I"),
        (lambda: moe_ffn(**{**NET, "ids": fa.zeros((2, 4), dtype="i64")}), r"k from 1 to 3"),
        (lambda: moe_ffn(**{**NET, "ids": fa.zeros((3, 2), dtype="i64")}), r"ids must be \(2,\) and k"),
        (lambda: moe_ffn(**{**NET, "w": fa.ones((2, 1))}), r"w must be \(2,\) and k"),
        (lambda: moe_ffn(**NET, b13=fa.ones((3, 3))), r"b13 must have shape \(3, 6\)"),
        (lambda: moe_ffn(**NET, b2=fa.ones((3, 3))), r"b2 must have shape \(3, 4\)"),
        (lambda: moe_ffn(**NET, limit=-1.0), "moe_ffn: limit must be finite and above 0"),
        (lambda: moe_ffn(**NET, kind="relu", alpha=2.0), "moe_ffn: alpha=2.0 belongs to kind 'silu'"),
        (lambda: moe_ffn(**NET, kind="swish"), "moe_ffn: .*'swish'"),
        (lambda: RoutePlan(PLAN.inverse, PLAN.inverse, PLAN.offsets), r"order must be \[R\]"),
        (lambda: RoutePlan(PLAN.order, PLAN.inverse, PLAN.offsets[:0]), r"offsets \[E \+ 1\]"),
    ],
)
def test_bad_values_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("bad", [3, -1, 2**62])
def test_experts_that_do_not_exist(device: fa.Device, bad: int) -> None:
    ids = fa.asarray([[0, 1], [bad, 1]], device=device)
    net = {name: x.to_device(device) for name, x in NET.items()}
    with pytest.raises(IndexError, match=f"moe_plan: ids run from {min(bad, 0)} to {max(bad, 1)}, .* 3 experts"):
        moe_plan(ids, 3)
    with pytest.raises(IndexError, match=f"moe_ffn: ids run from {min(bad, 0)} to {max(bad, 1)}, .* 3 experts"):
        moe_ffn(**{**net, "ids": ids})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: moe_plan(fa.ones((2, 2)), 3), r"ids must be a Tensor of integers, got float32\[2,2\]; convert it"),
        (lambda: moe_plan([[1]], 3), "ids must be a Tensor of integers, got list; make one with ferrum_array"),
        (lambda: moe_permute(IDS, PLAN), "x must be real floating-point, got int64"),
        (lambda: moe_combine(fa.ones((4, 4)), PLAN, IDS), "w must be real floating-point, got int64"),
        (
            lambda: grouped_linear(fa.ones((4, 4)), fa.ones((3, 6, 4), dtype="f16"), PLAN.offsets),
            r"w is float16\[3,6,4\] but the input is float32\[4,4\]",
        ),
        (
            lambda: grouped_linear(fa.ones((4, 4)), fa.ones((3, 6, 4)), PLAN.offsets.astype("f32")),
            "offsets must be a Tensor of integers",
        ),
        (
            lambda: grouped_linear(fa.ones((4, 4)), fa.ones((3, 6, 4)), PLAN.offsets, fa.ones((3, 6), dtype="f16")),
            "bias is float16",
        ),
        (lambda: moe_ffn(**{**NET, "w2": NET["w2"].astype("f16")}), "w2 is float16"),
        (lambda: moe_ffn(**{**NET, "ids": NET["w"]}), "ids must be a Tensor of integers"),
        (lambda: moe_ffn(**{**NET, "w": IDS}), "w must be real floating-point"),
        (
            lambda: RoutePlan(PLAN.order.astype("i32"), PLAN.inverse, PLAN.offsets),
            r"order must be int64, got int32\[4\]",
        ),
    ],
)
def test_bad_types_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        call()


@pytest.mark.mlx
@pytest.mark.parametrize("name", ["w13", "w2", "ids", "w"])
def test_devices_that_do_not_fit(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is on device mlx:cpu but the input on cpu"):
        moe_ffn(**{**NET, name: NET[name].to_device("mlx:cpu")})
    with pytest.raises(ValueError, match="the plan is on device cpu but the input on mlx:cpu"):
        moe_permute(NET["x"].to_device("mlx:cpu"), PLAN)


def test_explained() -> None:
    mixed = {**{name: x.astype("f16") for name, x in NET.items() if name != "ids"}, "ids": IDS}
    with use_fast_paths(False):
        found = explain(moe_ffn, **mixed, b13=fa.ones((3, 6)), limit=7.0, alpha=1.702, up_offset=1.0)
        assert found.features == ("silu", "limit", "alpha", "up_offset", "b13", "mixed")
        assert explain(moe_plan, IDS, 3, block=2).features == ("block",)
        assert explain(moe_permute, NET["x"], PLAN).features == ()
        assert explain(grouped_linear, fa.ones((4, 4)), NET["w13"], PLAN.offsets, fa.ones((3, 6))).features == ("bias",)
        residual = fa.ones((2, 4), dtype="f16")
        found = explain(moe_combine, fa.ones((4, 4)), PLAN, NET["w"], residual=residual)
        assert found.features == ("residual", "mixed")
