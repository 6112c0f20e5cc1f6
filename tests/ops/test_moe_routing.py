from __future__ import annotations

import itertools
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import special

import ferrum_array as fa
from ferrum_ops import explain, moe_route, use_fast_paths
from tests.array.oracle import wide
from tests.ops.oracle import TOLERANCE, Array, check, distance, floats, make, noise


def exact_route(
    logits: Array, k: int, *, score: str = "softmax", norm: bool = True, bias: Array | None = None, n_group: int = 1,
    topk_group: int = 1, scale: float = 1.0,
) -> tuple[Array, Array, float]:  # fmt: skip
    """Ids and weights token by token in float64, and how near two unequal things that were compared came."""
    ids, weights, gaps = [], [], [np.inf]
    for row in logits.reshape(-1, logits.shape[-1]):
        scores = special.softmax(row) if score == "softmax" else special.expit(row)
        keys = scores if bias is None else scores + bias
        groups = np.split(np.arange(row.size), n_group)
        worth = [sum(sorted(keys[group])[-2:]) for group in groups]
        best = sorted(range(n_group), key=lambda g: (-worth[g], g))[:topk_group]
        if bias is None:
            keys = row  # where sigmoids saturate they are equal though the logits are not
        else:
            gaps.append(gap(keys))
        if topk_group < n_group:
            gaps.append(gap(worth))
        chosen = sorted(itertools.chain(*(groups[g] for g in best)), key=lambda e: (-keys[e], e))[:k]
        if norm:  # in logarithms, which stay in range where scores vanish
            logs = row[chosen] if score == "softmax" else special.log_expit(row[chosen])
            weights.append(special.softmax(logs) * scale)
        else:
            weights.append(scores[chosen] * scale)
        ids.append(chosen)
    shape = (*logits.shape[:-1], k)
    return np.reshape(np.asarray(ids, dtype=np.int64), shape), np.reshape(weights, shape), min(gaps)


def gap(values: Any) -> float:
    """The least difference of two values that differ, relative to the greatest."""
    steps = np.diff(np.sort(values))
    return float(np.min(steps[steps > 0], initial=np.inf) / max(np.abs(values).max(), 1e-300))


@dataclass
class Case:
    logits: Array
    k: int
    options: dict[str, Any]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    tokens = draw(st.sampled_from([(), (0,), (1,), (7,), (2, 3), (3, 0)]))
    n_group, size = draw(st.sampled_from([(1, 1), (1, 5), (1, 512), (2, 3), (4, 1), (8, 4), (3, 64)]))
    topk_group = draw(st.integers(1, n_group))
    seed = draw(st.integers(0, 2**32 - 1))
    logits = noise(seed, *tokens, n_group * size) * draw(st.sampled_from([0.1, 1.0, 30.0]))
    if draw(st.booleans()):  # many ties
        logits = np.round(logits)
    bias = draw(st.sampled_from(["none", "none", "some", "coarse"]))
    options = {
        "score": draw(st.sampled_from(["softmax", "sigmoid"])),
        "norm": draw(st.booleans()),
        "bias": None if bias == "none" else noise(seed + 1, n_group * size),
        "n_group": n_group,
        "topk_group": topk_group,
        "scale": draw(st.sampled_from([1.0, 2.5, -0.5])),
    }
    if bias == "coarse":
        options["bias"] = np.round(options["bias"])
    most = size * topk_group
    return Case(logits, draw(st.sampled_from(sorted({1, min(8, most), most}))), options)


@given(case=cases(), strided=st.booleans(), data=st.data())
def test_as_the_oracle_says(device: fa.Device, case: Case, strided: bool, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(floats(device)))
    logits, x64 = make(case.logits, dtype, device, strided=strided)
    options, exact = dict(case.options), dict(case.options)
    if case.options["bias"] is not None:
        options["bias"], exact["bias"] = make(case.options["bias"], fa.float32, device)
    want_ids, want, nearest = exact_route(x64, case.k, **exact)
    assume(nearest > 1e-5)  # else rounding decides
    ids, weights = moe_route(logits, case.k, **options)
    assert ids.dtype is fa.int64
    assert (wide(ids) == want_ids).all()
    check(weights, want, dtype, {fa.float32: 2e-6}.get(dtype, 0.0))


@given(case=cases(), data=st.data())
def test_weights_sum_to_the_scale(device: fa.Device, case: Case, data: st.DataObject) -> None:
    """Also where every score has vanished."""
    dtype = data.draw(st.sampled_from(floats(device)))
    offset = data.draw(st.sampled_from([0.0, -300.0, -3e4, 3e4]))
    logits, _ = make(case.logits + offset, dtype, device)
    options = {**case.options, "norm": True}
    if options["bias"] is not None:
        options["bias"] = make(options["bias"], dtype, device)[0]
    ids, weights = moe_route(logits, case.k, **options)
    sums = wide(weights).sum(-1)
    assert np.allclose(sums, options["scale"], rtol=8 * TOLERANCE[dtype] if dtype is fa.float64 else TOLERANCE[dtype])
    assert all(len(set(row)) == case.k for row in wide(ids).reshape(-1, case.k))
    assert fa.all(ids >= 0)
    assert fa.all(ids < case.logits.shape[-1])


@given(case=cases(), seed=st.integers(0, 2**32 - 1))
def test_each_token_is_routed_alone(device: fa.Device, case: Case, seed: int) -> None:
    logits, _ = make(case.logits.reshape(-1, case.logits.shape[-1]), fa.float32, device)
    options = dict(case.options)
    if options["bias"] is not None:
        options["bias"] = make(options["bias"], fa.float32, device)[0]
    places = fa.asarray(np.random.default_rng(seed).permutation(logits.shape[0]), dtype="i64", device=device)
    ids, weights = moe_route(logits, case.k, **options)
    ids_there, weights_there = moe_route(fa.take(logits, places, axis=0), case.k, **options)
    assert fa.all(fa.take(ids, places, axis=0) == ids_there)
    assert fa.all(fa.take(weights, places, axis=0) == weights_there)


def test_ties_take_the_lowest_index_and_exactly_k(device: fa.Device) -> None:
    logits = fa.asarray([[1.0, 3.0, 3.0, 1.0, 3.0, 3.0]] * 2, dtype="f16", device=device)
    for score in ("softmax", "sigmoid"):
        ids, weights = moe_route(logits, 3, score=score)
        assert ids.tolist() == [[1, 2, 4]] * 2
        assert weights.shape == (2, 3)
    # two equal groups of the best, and the first is taken
    ids, _ = moe_route(logits, 2, n_group=3, topk_group=1)
    assert ids.tolist() == [[4, 5]] * 2
    ids, _ = moe_route(fa.zeros((1, 8), device=device), 3, score="sigmoid", n_group=4, topk_group=2)
    assert ids.tolist() == [[0, 1, 2]]


def test_the_bias_chooses_and_does_not_weigh(device: fa.Device) -> None:
    logits = fa.zeros((1, 4), device=device)
    bias = fa.asarray([0.0, 0.5, -1.0, 0.25], device=device)
    ids, weights = moe_route(logits, 2, score="sigmoid", bias=bias, norm=False)
    assert ids.tolist() == [[1, 3]]
    assert weights.tolist() == [[0.5, 0.5]]


def test_a_bias_may_choose_among_scores_that_vanish(device: fa.Device) -> None:
    logits = fa.asarray([[0.0, -500.0, -501.0]], device=device)
    bias = fa.asarray([0.0, 9.0, 9.0], device=device)
    for score in ("softmax", "sigmoid"):
        ids, weights = moe_route(logits, 2, score=score, bias=bias)
        assert ids.tolist() == [[1, 2]]
        assert wide(weights)[0] == pytest.approx(special.softmax([1.0, 0.0]))


def test_a_group_counts_its_two_best(device: fa.Device) -> None:
    # by its best the first would win, by the sum of all the last
    logits = fa.asarray([[5.0, -5.0, -5.0, 2.0, 2.0, -9.0, 0.5, 0.5, 0.5]], device=device)
    bias = fa.asarray([0.3, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], device=device)
    ids, _ = moe_route(logits, 2, score="sigmoid", bias=bias, n_group=3, topk_group=1)
    assert ids.tolist() == [[3, 4]]


def test_scores_that_round_to_one_value_still_differ(device: fa.Device) -> None:
    ids, _ = moe_route(fa.asarray([[40.0, 50.0, 60.0]], device=device), 1, score="sigmoid")
    assert ids.tolist() == [[2]]


@pytest.mark.parametrize("options", [{}, {"norm": False}, {"score": "sigmoid"}, {"n_group": 2}])
def test_a_nan_is_not_hidden(device: fa.Device, options: dict[str, Any]) -> None:
    logits = fa.asarray([[1.0, 2.0, fa.nan, 0.0], [1.0, 2.0, 3.0, 0.0]], device=device)
    ids, weights = moe_route(logits, 2, **options)
    assert np.isnan(wide(weights)[0]).all()
    assert np.isfinite(wide(weights)[1]).all()
    assert all(len(set(row)) == 2 and set(row) <= {0, 1, 2, 3} for row in ids.tolist())


def test_minus_infinity_is_never_preferred(device: fa.Device) -> None:
    logits = fa.asarray([[-fa.inf, 0.0, -fa.inf, 1.0]], device=device)
    ids, weights = moe_route(logits, 3)
    assert ids.tolist() == [[3, 1, 0]]
    assert wide(weights)[0, 2] == 0
    assert wide(weights).sum() == pytest.approx(1)


def test_16_bit_weights_are_rounded_once(device: fa.Device) -> None:
    values = noise(4, 20, 16)
    for dtype in (fa.float16, fa.bfloat16):
        logits, _ = make(values, dtype, device)
        _, narrow = moe_route(logits, 4, scale=2.5)
        _, precise = moe_route(logits.astype("f32"), 4, scale=2.5)
        assert fa.all(narrow == precise.astype(dtype))


# Peers: the routers of transformers, which go from hidden states over logits to ids and weights.

HIDDEN, EXPERTS, K = 24, 16, 4


#: what the routers of a family are called, and the entries of its config that say what the options of a call say
FAMILIES = {
    "mixtral": ("MixtralConfig", "MixtralTopKRouter", {"num_local_experts": EXPERTS}),
    "qwen3_moe": ("Qwen3MoeConfig", "Qwen3MoeTopKRouter", {"num_experts": EXPERTS}),
    "gpt_oss": ("GptOssConfig", "GptOssTopKRouter", {"num_local_experts": EXPERTS}),
    "deepseek_v3": ("DeepseekV3Config", "DeepseekV3TopkRouter", {"n_routed_experts": EXPERTS}),
}
ENTRIES = {"norm": "norm_topk_prob", "n_group": "n_group", "topk_group": "topk_group", "scale": "routed_scaling_factor"}


def router_of(family: str, options: dict[str, Any]) -> Any:
    """The router of a family, a module of PyTorch, with random weights."""
    import torch

    config_name, name, entries = FAMILIES[family]
    package = f"transformers.models.{family}"
    config = getattr(import_module(f"{package}.configuration_{family}"), config_name)
    entries = entries | {ENTRIES[option]: value for option, value in options.items() if option in ENTRIES}
    settings = config(hidden_size=HIDDEN, num_experts_per_tok=K, **entries)
    router = getattr(import_module(f"{package}.modeling_{family}"), name)(settings)
    state = router.state_dict().items()
    router.load_state_dict({key: torch.from_numpy(noise(i, *x.shape)).float() for i, (key, x) in enumerate(state)})
    return router


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("mixtral", {}),
        ("qwen3_moe", {"norm": True}),
        ("qwen3_moe", {"norm": False}),
        ("gpt_oss", {}),
        ("deepseek_v3", {"score": "sigmoid", "n_group": 4, "topk_group": 2, "norm": True, "scale": 2.5}),
        ("deepseek_v3", {"score": "sigmoid", "n_group": 1, "topk_group": 1, "norm": False, "scale": 2.5}),
        ("deepseek_v3", {"score": "sigmoid", "n_group": 8, "topk_group": 8, "norm": True, "scale": 1.0}),
    ],
)
def test_as_the_routers_of_transformers(device: fa.Device, family: str, options: dict[str, Any]) -> None:
    import torch

    router = router_of(family, options)
    with torch.no_grad():
        logits, peer_weights, peer_ids = router(torch.from_numpy(noise(9, 50, HIDDEN)).float())
    if family == "deepseek_v3":
        options = {**options, "bias": fa.asarray(router.e_score_correction_bias.numpy(), device=device)}
    ids, weights = moe_route(fa.asarray(logits.numpy(), device=device), K, **options)
    # DeepSeek's are in no order
    order, peer_order = np.argsort(wide(ids)), np.argsort(peer_ids.numpy())
    assert (np.take_along_axis(wide(ids), order, -1) == np.take_along_axis(peer_ids.numpy(), peer_order, -1)).all()
    ours = np.take_along_axis(wide(weights), order, -1)
    theirs = np.take_along_axis(peer_weights.double().numpy(), peer_order, -1)
    assert distance(ours, theirs) < 1e-6
    if family != "deepseek_v3":
        assert (wide(ids) == peer_ids.numpy()).all()


def test_explained() -> None:
    with use_fast_paths(False):
        found = explain(moe_route, fa.zeros((2, 8)), 2, score="sigmoid", bias=fa.zeros(8), n_group=2, scale=2.0)
    assert found.features == ("sigmoid", "norm", "bias", "groups", "scale")


X = fa.zeros((2, 12))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 13}, r"k must be an integer from 1 to 12, the experts of logits float32\[2,12\], got 13"),
        ({"k": 0}, "k must be an integer from 1 to 12"),
        ({"k": True}, "k must be an integer from 1 to 12"),
        ({"k": 2.0}, "k must be an integer from 1 to 12"),
        ({"k": 5, "n_group": 3}, "k=5 experts are not in topk_group=1 of n_group=3 groups of 4"),
        ({"n_group": 5}, "12 experts do not form n_group=5 groups"),
        ({"n_group": 0}, "n_group must be an integer from 1 to 12"),
        ({"n_group": 2, "topk_group": 3}, "topk_group must be an integer from 1 to 2, n_group, got 3"),
        ({"topk_group": 2}, "topk_group must be an integer from 1 to 1"),
        ({"bias": fa.zeros(11)}, r"bias must have shape \(12,\), got float32\[11\]"),
        ({"scale": fa.inf}, "scale must be finite, got inf"),
        ({"score": "softmin"}, "score must be 'softmax' or 'sigmoid', got 'softmin'"),
        ({"logits": fa.zeros((2, 0))}, "at least one expert"),
        ({"logits": fa.asarray(1.0)}, "at least one expert"),
    ],
)
def test_bad_values_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        moe_route(**{"logits": X, "k": 2, **arguments})


def test_bad_types_are_refused() -> None:
    with pytest.raises(TypeError, match="logits must be real floating-point, got int64"):
        moe_route(X.astype("i64"), 2)
    with pytest.raises(TypeError, match="bias must be real floating-point, got int64"):
        moe_route(X, 2, bias=fa.zeros(12, dtype="i64"))


@pytest.mark.mlx
def test_devices_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="bias is on device mlx:cpu but the input on cpu"):
        moe_route(X, 2, bias=fa.zeros(12, device="mlx:cpu"))
