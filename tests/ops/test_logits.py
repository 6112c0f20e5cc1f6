from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import ferrum_array as fa
from ferrum_ops import explain, process_logits, sample, token_counts
from tests.array.oracle import wide
from tests.ops.oracle import Array, check, floats, make, noise


def exact_process(x: Array, rules: dict[str, Any]) -> Array:
    """One row, as the docstring says it."""
    x = x.copy()
    counts = rules.get("counts", np.zeros(len(x), dtype=int))
    seen = (counts > 0) | rules.get("prompt", np.zeros(len(x), dtype=bool))
    if "mask" in rules:
        x[~rules["mask"]] = -np.inf
    r = rules.get("repetition", 1.0)
    for i in range(len(x)):
        if seen[i]:
            x[i] = x[i] / r if x[i] > 0 else x[i] * r
        if counts[i] > 0:
            x[i] -= rules.get("presence", 0.0)
        x[i] -= counts[i] * rules.get("frequency", 0.0)
    x += rules.get("bias", 0.0)
    temperature = rules.get("temperature", 1.0)
    left = sorted(range(len(x)), key=lambda i: (-x[i], i))
    if temperature == 0:
        left = left[:1]
    else:
        x /= temperature
    left = left[: rules.get("top_k", len(x))]
    if x[left[0]] == -np.inf:
        return x
    p = np.exp(x[left] - x[left[0]])
    if rules.get("top_p", 1.0) < 1:
        before = (p.cumsum() - p) / p.sum()
        assume(np.abs(before - rules["top_p"])[before > 0].min(initial=1.0) > 1e-6)
        left = [i for i, b in zip(left, before, strict=True) if b < rules["top_p"]]
    ratio = np.exp(x[left] - x[left[0]])
    assume(np.abs(ratio - rules.get("min_p", 0.0)).min() > 1e-6 or rules.get("min_p", 0.0) in (0.0, 1.0))
    left = [i for i, b in zip(left, ratio, strict=True) if b >= rules.get("min_p", 0.0)]
    result = np.full(len(x), -np.inf)
    result[left] = x[left]
    return result


RULES: dict[str, st.SearchStrategy[Any]] = {
    "repetition": st.sampled_from([0.5, 2.0, 4.0]),
    "presence": st.sampled_from([-0.5, 0.25, 2.0]),
    "frequency": st.sampled_from([-0.25, 0.5]),
    "temperature": st.sampled_from([0.0, 0.5, 2.0]),
    "top_k": st.integers(1, 40),
    "top_p": st.sampled_from([0.1, 0.5, 0.9, 0.99, 1.0]),
    "min_p": st.sampled_from([0.0, 0.05, 0.3, 1.0]),
}


@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(0, 4),
    size=st.integers(1, 30),
    used=st.sets(st.sampled_from([*RULES, "mask", "prompt", "bias"])),
    by_row=st.sets(st.sampled_from(list(RULES))),
    strided=st.booleans(),
    data=st.data(),
)
def test_rules_as_the_oracle_says(
    device: fa.Device,
    seed: int,
    rows: int,
    size: int,
    used: set[str],
    by_row: set[str],
    strided: bool,
    data: st.DataObject,
) -> None:
    dtype = data.draw(st.sampled_from(floats(device)))
    random = np.random.default_rng(seed)
    # quarters, of which the rules make numbers that every dtype holds: so ties are ties in all of them
    x, x64 = make(random.integers(-12, 13, (rows, size)) / 4, dtype, device, strided=strided)
    given_: dict[str, Any] = {"counts": random.integers(0, 3, (rows, size))}
    if "mask" in used:
        given_["mask"] = random.random((rows, size)) < 0.7
    if "prompt" in used:
        given_["prompt"] = random.random((rows, size)) < 0.5
    if "bias" in used:
        given_["bias"] = random.integers(-4, 5, (rows, size)) / 2
    ours: dict[str, Any] = {name: fa.asarray(value, device=device) for name, value in given_.items()}
    if "bias" in used:
        ours["bias"] = ours["bias"].astype("f16")
    for name, strategy in RULES.items():
        if name not in used:
            continue
        if name in by_row:
            given_[name] = np.asarray([data.draw(strategy) for _ in range(rows)])
            kind = "i32" if name == "top_k" else "f32"
            ours[name] = fa.asarray(given_[name], dtype=kind, device=device)
        else:
            ours[name] = data.draw(strategy)
            given_[name] = np.full(rows, ours[name])
    want = np.zeros((rows, size))
    for i in range(rows):
        want[i] = exact_process(x64[i], {name: value[i] for name, value in given_.items()})
    check(process_logits(x, **ours), want, dtype)


@given(
    seed=st.integers(0, 2**32 - 1),
    temperature=st.floats(0.05, 20),
    repetition=st.floats(0.1, 10),
    presence=st.floats(-5, 5),
    frequency=st.floats(-5, 5),
    data=st.data(),
)
def test_numbers_of_all_sizes(
    device: fa.Device,
    seed: int,
    temperature: float,
    repetition: float,
    presence: float,
    frequency: float,
    data: st.DataObject,
) -> None:
    dtype = data.draw(st.sampled_from(floats(device)))
    x, x64 = make(noise(seed, 21) * 4, dtype, device)
    bias, b64 = make(noise(seed + 1, 21), dtype, device)
    counts = np.random.default_rng(seed).integers(0, 4, 21)
    rules = {"temperature": temperature, "repetition": repetition, "presence": presence, "frequency": frequency}
    want = exact_process(x64, {**rules, "counts": counts, "bias": b64})
    got = process_logits(x, counts=fa.asarray(counts, device=device), bias=bias, **rules)
    check(got, want, dtype)


def test_rules_broadcast(device: fa.Device) -> None:
    x, _ = make(noise(1, 2, 3, 5), fa.float32, device)
    mask = fa.asarray([True, False, True, True, True], device=device)
    counts = fa.asarray([[[0, 1, 2, 0, 0]], [[0, 0, 0, 0, 3]]], device=device)
    got = process_logits(x, mask=mask, counts=counts, presence=1.0)
    want = wide(x) - (wide(counts) > 0)
    want[..., 1] = -np.inf
    check(got, want, fa.float32)


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 99])
def test_top_k_keeps_exactly_k_of_equals(device: fa.Device, k: int) -> None:
    x = fa.asarray([[2.0, 7.0, 7.0, 2.0, 7.0], [1.0, 1.0, 1.0, 1.0, 1.0]], device=device)
    left = np.isfinite(wide(process_logits(x, top_k=k)))
    order = [[1, 2, 4, 0, 3], [0, 1, 2, 3, 4]]
    for row, ids in zip(left, order, strict=True):
        assert np.nonzero(row)[0].tolist() == sorted(ids[:k])


def test_top_p_keeps_as_few_as_have_the_share(device: fa.Device) -> None:
    x = fa.log(fa.asarray([[0.25, 0.5, 0.125, 0.125]], device=device))

    def left(p: float) -> list[int]:
        number, tensor = (process_logits(x, top_p=q) for q in (p, fa.asarray([p], dtype="f32", device=device)))
        assert fa.all(number == tensor)
        return np.nonzero(np.isfinite(wide(number[0])))[0].tolist()

    assert left(2.0**-40) == [1]
    assert left(0.4) == [1]
    assert left(0.6) == [0, 1]
    assert left(0.8) == [0, 1, 2]
    assert left(0.9) == [0, 1, 2, 3]
    # equal shares of exactly 1/2 and 1/4: no more than needed
    for n in (2, 4, 8):
        y = fa.zeros((1, n), device=device)
        assert int(fa.sum(fa.isfinite(process_logits(y, top_p=0.5)).astype("i64"))) == n // 2


def test_a_share_that_lacks_the_least_part_needs_one_token_more(device: fa.Device) -> None:
    # 2**37 and 33 parts: the first alone lacks 33 / 2**32 - 1 of one part
    x = fa.asarray([[0.0, math.log(33.5) - 37 * math.log(2.0)]], device=device)
    assert np.isfinite(wide(process_logits(x, top_p=1 - 2.0**-32))).tolist() == [[True, True]]
    assert np.isfinite(wide(process_logits(x, top_p=1 - 2.0**-31))).tolist() == [[True, False]]


def test_a_share_of_all_keeps_also_what_is_too_small_to_count(device: fa.Device) -> None:
    x = fa.asarray([[0.0, -90.0, -30.0]], device=device)
    for p in (1.0, fa.asarray([1.0], device=device)):
        assert fa.all(process_logits(x, top_p=p) == x)
    assert fa.all(process_logits(x, min_p=0.0) == x)
    assert process_logits(x, top_p=0.9999999).tolist() == [[0.0, -math.inf, -math.inf]]


def test_rows_with_numbers_out_of_range_become_nan(device: fa.Device) -> None:
    x = fa.asarray([[1.0, 2.0, 3.0]] * 5, device=device)
    counts = fa.asarray([1, 0, 0], device=device)
    u = fa.full(5, 0.5, device=device)
    nan = math.nan
    for name, values, good in (
        ("temperature", [1.0, -1.0, nan, 0.0, 0.5], [True, False, False, True, True]),
        ("top_p", [1.0, 0.0, nan, 1.1, 0.5], [True, False, False, False, True]),
        ("min_p", [1.0, 0.0, nan, 1.1, -0.5], [True, True, False, False, False]),
        ("repetition", [1.0, 0.0, nan, -1.0, 0.5], [True, False, False, False, True]),
    ):
        more: dict[str, Any] = {name: fa.asarray(values, dtype="f32", device=device)}
        if name == "repetition":
            more |= {"counts": counts, "top_k": 3}
        got = process_logits(x, **more)
        assert (np.isnan(wide(got)).all(-1) == ~np.asarray(good)).all(), name
        assert ((wide(sample(got, u)) >= 0) == good).all()
    got = process_logits(x, top_k=fa.asarray([1, 0, -1, 3, 4], device=device))
    assert np.isnan(wide(got)).all(-1).tolist() == [False, True, True, False, False]
    x[1, 1] = nan
    assert np.isnan(wide(process_logits(x, top_k=2))).all(-1).tolist() == [False, True, False, False, False]


def test_as_the_warpers_of_transformers() -> None:
    import torch
    from transformers import (
        MinPLogitsWarper,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    x = (noise(1, 3, 50) * 3).astype(np.float32)
    ids = np.asarray([[1, 4, 4], [0, 9, 2], [7, 7, 7]])
    counts = np.stack([np.bincount(row, minlength=50) for row in ids])
    theirs = torch.from_numpy(x)
    chain: list[Any] = [
        RepetitionPenaltyLogitsProcessor(1.3),
        TemperatureLogitsWarper(0.7),
        TopKLogitsWarper(20),
        TopPLogitsWarper(0.8),
        MinPLogitsWarper(0.05),
    ]
    for step in chain:
        theirs = step(torch.from_numpy(ids), theirs)
    got = process_logits(
        fa.asarray(x), counts=fa.asarray(counts), repetition=1.3, temperature=0.7, top_k=20, top_p=0.8, min_p=0.05
    )
    assert 1 < np.isfinite(wide(got)).sum() < 60
    check(got, theirs.double().numpy(), fa.float32)


def test_what_is_in_use_is_told() -> None:
    x, counts = fa.ones((2, 5)), fa.ones((2, 5), dtype="i64")
    assert explain(process_logits, x).features == ()
    assert explain(process_logits, x, top_p=1.0, min_p=0.0).features == ()
    more = explain(process_logits, x, counts=counts, presence=1.0, temperature=fa.ones(2), top_k=3)
    assert more.features == ("counts", "presence", "temperature", "top_k", "by_row")


@pytest.mark.parametrize(
    ("rules", "error", "match"),
    [
        ({"mask": fa.ones((2, 5))}, TypeError, "mask must be a boolean Tensor, got float32"),
        ({"mask": [True]}, TypeError, "mask must be a boolean Tensor, got list"),
        ({"prompt": fa.ones(5, dtype="i64")}, TypeError, "prompt must be a boolean Tensor"),
        ({"counts": fa.ones(5)}, TypeError, "counts must be a Tensor of integers"),
        ({"bias": fa.ones(5, dtype="i64")}, TypeError, "bias must be real floating-point"),
        ({"bias": fa.ones(4)}, ValueError, "bias must broadcast to the logits"),
        ({"mask": fa.ones((1, 2, 5), dtype="bool")}, ValueError, "mask must broadcast to the logits"),
        ({"repetition": 0.0}, ValueError, "repetition must be finite and above 0, got 0.0"),
        ({"repetition": 2.0}, ValueError, "repetition needs counts, prompt, or both"),
        ({"presence": 1.0}, ValueError, "presence needs counts"),
        ({"frequency": 1.0, "prompt": fa.ones(5, dtype="bool")}, ValueError, "frequency needs counts"),
        ({"frequency": math.nan}, ValueError, "frequency must be finite, got nan"),
        ({"presence": math.inf}, ValueError, "presence must be finite, got inf"),
        ({"temperature": -0.1}, ValueError, "temperature must be finite and at least 0, got -0.1"),
        ({"temperature": fa.ones(3)}, ValueError, "temperature must be one number, or one for each row"),
        ({"temperature": fa.ones(2, dtype="i64")}, TypeError, "temperature must be real floating-point"),
        ({"top_k": 0}, ValueError, "top_k must be an integer at least 1, got 0"),
        ({"top_k": 2.0}, ValueError, "top_k must be an integer at least 1, got 2.0"),
        ({"top_k": fa.ones(2)}, TypeError, "top_k must be a Tensor of integers"),
        ({"top_p": 0.0}, ValueError, "top_p must be above 0 and at most 1, got 0.0"),
        ({"top_p": 1.5}, ValueError, "top_p must be above 0 and at most 1, got 1.5"),
        ({"min_p": -0.1}, ValueError, "min_p must be from 0 to 1, got -0.1"),
        ({"min_p": math.nan}, ValueError, "min_p must be from 0 to 1, got nan"),
    ],
)
def test_bad_rules_are_refused(rules: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        process_logits(fa.ones((2, 5)), **rules)


@pytest.mark.mlx
def test_other_devices_are_refused() -> None:
    for name, value in {"mask": fa.ones(5, dtype="bool"), "top_p": fa.ones(2)}.items():
        with pytest.raises(ValueError, match=f"process_logits: {name} is on device mlx:cpu but the input on cpu"):
            process_logits(fa.ones((2, 5)), **{name: value.to_device("mlx:cpu")})  # type: ignore[arg-type]  # one or the other


# Counts.


@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.lists(st.integers(0, 3), max_size=2),
    length=st.integers(0, 9),
    tokens=st.integers(1, 6),
    index=st.sampled_from(["i8", "i32", "i64"]),
)
def test_counts(device: fa.Device, seed: int, rows: list[int], length: int, tokens: int, index: str) -> None:
    ids = np.random.default_rng(seed).integers(-2, tokens, (*rows, length))
    got = token_counts(fa.asarray(ids, dtype=index, device=device), tokens)
    want = np.zeros((*rows, tokens), dtype=np.int64)
    for place in np.ndindex(*ids.shape):
        if ids[place] >= 0:
            want[(*place[:-1], ids[place])] += 1
    assert got.dtype is fa.int64
    assert got.shape == want.shape
    assert (wide(got) == want).all()


def test_counts_grow_by_what_is_drawn(device: fa.Device) -> None:
    ids = fa.asarray([[3, 1], [0, 0]], device=device)
    more = token_counts(ids, 5) + fa.one_hot(fa.asarray([3, 4], device=device), 5, dtype="i64")
    assert fa.all(more == token_counts(fa.asarray([[3, 1, 3], [0, 0, 4]], device=device), 5))


def test_bad_counts_are_refused() -> None:
    with pytest.raises(IndexError, match="the greatest of the ids is 5, but there are 5 tokens"):
        token_counts(fa.asarray([[0, 5]]), 5)
    with pytest.raises(TypeError, match="ids must be a Tensor of integers, got float32"):
        token_counts(fa.ones(3), 5)
    with pytest.raises(ValueError, match=r"ids must be \[..., L\], got int64\[\]"):
        token_counts(fa.asarray(1), 5)
    with pytest.raises(ValueError, match="V must be an integer at least 1, got 0"):
        token_counts(fa.asarray([1]), 0)


@pytest.mark.parametrize(  # below 1e-38 a tensor of float32 may hold 0
    ("temperature", "by_row"),
    [(1e-300, False), (1e-50, False), (1e-40, False), *((t, b) for t in (1e-37, 1e-5) for b in (False, True))],
)
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_a_temperature_near_0_leaves_the_greatest_and_no_infinity(
    device: fa.Device, temperature: float, sign: float, dtype: str, by_row: bool
) -> None:
    logits = fa.asarray([[12.0 * sign, 11.0 * sign, 11.5 * sign, -math.inf]], device=device).astype(dtype)
    given = fa.asarray([temperature], dtype="f32", device=device) if by_row else temperature
    found = process_logits(logits, temperature=given)
    best = 0 if sign > 0 else 1
    assert sample(found).tolist() == [best]
    numbers = found.tolist()[0]
    assert math.isfinite(numbers[best])
    assert all(number < numbers[best] for place, number in enumerate(numbers) if place != best)
