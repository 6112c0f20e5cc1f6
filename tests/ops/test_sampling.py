from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import ferrum_array as fa
from ferrum_array.random import default_rng
from ferrum_ops import Sampled, explain, process_logits, sample
from ferrum_ops.draws import ONE, draw, share, weights_of_logits, weights_of_probabilities
from tests.array.oracle import wide
from tests.ops.oracle import Array, floats, make, noise


def softmax(x: Array) -> Array:
    with np.errstate(invalid="ignore"):
        e = np.exp(np.where(x == x.max(-1, keepdims=True), 0.0, x - x.max(-1, keepdims=True)))
    return e / e.sum(-1, keepdims=True)


# Whole numbers.


@given(seed=st.integers(0, 2**32 - 1), size=st.integers(1, 50), spread=st.sampled_from([0.1, 1.0, 10.0, 40.0]))
def test_weights_are_exponentials(device: fa.Device, seed: int, size: int, spread: float) -> None:
    for dtype in (fa.float32, *((fa.float64,) if device.supports(fa.float64) else ())):
        x, x64 = make(noise(seed, 3, size) * spread, dtype, device)
        top = x64.max(-1, keepdims=True)
        got = weights_of_logits(x, fa.max(x, axis=-1, keepdims=True))
        assert got.dtype is fa.int64
        assert (wide(got).max(-1) == ONE).all()
        # the difference is rounded to float32 first: half a unit in its last place is part of the error
        below = np.abs(x64 - top)
        error = np.abs(wide(got) - ONE * np.exp(-below))
        assert (error <= ONE * np.exp(-below) * (2e-7 + below * 2.0**-24) + 1).all()


@given(total=st.integers(0, 2**61), places=st.integers(0, 2**32))
def test_shares_are_exact(device: fa.Device, total: int, places: int) -> None:
    whole = fa.asarray([total], device=device)
    product = total * places
    assert share(whole, places / 2**32).item() == product // 2**32
    assert share(whole, places / 2**32, up=True).item() == -(-product // 2**32)
    if device.supports(fa.float64):
        part = fa.asarray([places / 2**32], dtype="f64", device=device)
        assert share(whole, part).item() == product // 2**32


@given(
    weights=st.lists(st.one_of(st.integers(0, 2), st.integers(0, 2**37)), min_size=1, max_size=9),
    u=st.one_of(st.integers(0, 7).map(lambda n: n / 8), st.floats(0, 1, exclude_max=True, width=32)),
)
def test_draws_invert_the_sums(device: fa.Device, weights: list[int], u: float) -> None:
    got = draw(fa.asarray([weights], device=device), fa.asarray([u], dtype="f32", device=device)).item()
    target = sum(weights) * int(u * 2**32)
    want = next((i for i in range(len(weights)) if sum(weights[: i + 1]) * 2**32 > target), -1)
    # the bound is rounded down, which is the same for whole numbers
    assert got == want
    assert got == -1 or weights[got] > 0


def test_a_draw_at_a_bound_takes_what_comes_after(device: fa.Device) -> None:
    u = fa.asarray([0.0, 0.25, 0.5, 0.75], device=device)
    assert draw(fa.asarray([[0, 1, 0, 2, 1]] * 4, device=device), u).tolist() == [1, 3, 3, 4]


@pytest.mark.parametrize("u", [-0.001, 1.0, 7.0, math.nan, math.inf])
def test_a_u_out_of_range_draws_nothing(device: fa.Device, u: float) -> None:
    assert draw(fa.asarray([[1, 2]], device=device), fa.asarray([u], device=device)).tolist() == [-1]
    assert sample(fa.zeros((1, 3), device=device), fa.asarray([u], device=device)).tolist() == [-1]


def test_weights_of_probabilities(device: fa.Device) -> None:
    p = fa.asarray([[0.0, 0.125, 0.5], [0.0, 0.0, 0.0], [1e-30, 2e-30, 0.0]], device=device)
    assert (wide(weights_of_probabilities(p)) / ONE).tolist() == [[0.0, 0.25, 1.0], [0.0, 0.0, 0.0], [0.5, 1.0, 0.0]]


# Samples.


@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.lists(st.integers(0, 4), max_size=2),
    size=st.integers(1, 60),
    spread=st.sampled_from([0.1, 1.0, 5.0]),
    masked=st.booleans(),
    strided=st.booleans(),
    data=st.data(),
)
def test_samples_invert_the_distribution(
    device: fa.Device,
    seed: int,
    rows: list[int],
    size: int,
    spread: float,
    masked: bool,
    strided: bool,
    data: st.DataObject,
) -> None:
    dtype = data.draw(st.sampled_from(floats(device)))
    kind = data.draw(st.sampled_from(floats(device)))
    values = noise(seed, *rows, size) * spread
    random = np.random.default_rng(seed)
    if masked:
        values[random.random(values.shape) < 0.5] = -np.inf
        values[..., 0] = 0.5
    x, x64 = make(values, dtype, device, strided=strided)
    u, u64 = make(random.random(rows) * 0.999, kind, device)
    assume((u64 < 1).all())
    sums = softmax(x64).cumsum(-1)
    sums /= sums[..., -1:]
    assume(np.abs(sums - u64[..., None]).min(initial=1.0) > 1e-6)
    got = sample(x, u)
    assert got.dtype is fa.int64
    assert got.device is device
    assert (wide(got) == (sums <= u64[..., None]).sum(-1)).all()
    assert (wide(sample(x)) == x64.argmax(-1)).all()


def test_over_a_grid_each_token_comes_as_often_as_it_is_likely(device: fa.Device) -> None:
    parts = np.asarray([3, 0, 10, 1, 0, 7, 43])
    x = fa.asarray(np.where(parts, np.log(np.maximum(parts, 1)), -np.inf), dtype="f32", device=device)
    grid = (np.arange(64) + 0.5) / 64
    ids = sample(fa.broadcast_to(x, (64, 7)), fa.asarray(grid, dtype="f32", device=device))
    assert (np.bincount(wide(ids), minlength=7) == parts).all()


def test_frequencies_follow_the_distribution() -> None:
    x = noise(1, 20) * 2
    n = 20000
    u = default_rng(3).uniform(shape=n)
    found = np.bincount(wide(sample(fa.broadcast_to(fa.asarray(x, dtype="f32"), (n, 20)), u)), minlength=20)
    want = softmax(x) * n
    # chi-square with 19 degrees of freedom: above 50 once in 7000 seeds; shifted logits are found
    assert ((found - want) ** 2 / want).sum() < 50
    shifted = softmax(np.roll(x, 1)) * n
    assert ((found - shifted) ** 2 / shifted).sum() > 1000


@pytest.mark.mlx
@given(seed=st.integers(0, 2**32 - 1), size=st.integers(1, 3000), spread=st.sampled_from([0.5, 3.0]))
def test_the_same_u_gives_the_same_token_on_every_storage(seed: int, size: int, spread: float) -> None:
    x = (noise(seed, 8, size) * spread).astype(np.float32)
    u = np.random.default_rng(seed).random(8).astype(np.float32)
    here, there = (fa.asarray(x, device=name) for name in ("cpu", "mlx:cpu"))
    weights = [weights_of_logits(y, fa.max(y, axis=-1, keepdims=True)).numpy() for y in (here, there)]
    assert (weights[0] == weights[1]).all()
    for rules in ({}, {"top_p": 0.9, "top_k": 40}, {"min_p": 0.05}, {"temperature": 0.7, "top_p": 0.5, "min_p": 0.1}):
        left = [process_logits(y, **rules) for y in (here, there)]  # type: ignore[arg-type]  # one set or another
        assert (np.isinf(wide(left[0])) == np.isinf(wide(left[1]))).all()
        first, second = (sample(y, fa.asarray(u, device=y.device)) for y in left)
        assert first.tolist() == second.tolist()


@pytest.mark.cuda
def test_the_same_u_gives_the_same_token_on_a_gpu() -> None:
    x = (noise(1, 64, 32000) * 3).astype(np.float32)
    u = np.random.default_rng(1).random(64).astype(np.float32)
    tokens = []
    for name in ("cpu", "cuda"):
        logits = process_logits(fa.asarray(x, device=name), temperature=0.8, top_k=400, top_p=0.95, min_p=0.01)
        tokens.append(sample(logits, fa.asarray(u, device=name)).tolist())
    assert tokens[0] == tokens[1]


def test_rows_do_not_meet(device: fa.Device) -> None:
    x, _ = make(noise(1, 5, 40), fa.float32, device)
    u = fa.asarray([0.1, 0.3, 0.5, 0.7, 0.9], device=device)
    together = sample(x, u, logprobs=3)
    assert isinstance(together, Sampled)
    for i in range(5):
        alone = sample(x[i], u[i], logprobs=3)
        assert isinstance(alone, Sampled)
        assert alone.ids.item() == together.ids[i].item()
        assert alone.top_ids.tolist() == together.top_ids[i].tolist()
        assert np.allclose(wide(alone.top_logprobs), wide(together.top_logprobs[i]), rtol=1e-6)


def test_ties_go_to_the_lowest_id(device: fa.Device) -> None:
    x = fa.asarray([[1.0, 5.0, 5.0], [2.0, 2.0, 2.0], [-math.inf, 0.0, -0.0]], device=device)
    assert sample(x).tolist() == [1, 0, 1]


def test_rows_without_a_token(device: fa.Device) -> None:
    inf, nan = math.inf, math.nan
    x = fa.asarray([[-inf, -inf], [nan, 1.0], [1.0, nan], [inf, 0.0], [inf, inf], [0.0, -inf]], device=device)
    u = fa.full(6, 0.75, device=device)
    assert sample(x).tolist() == [-1, -1, -1, 0, 0, 0]
    assert sample(x, u).tolist() == [-1, -1, -1, 0, 1, 0]
    got = sample(x, u, logprobs=2)
    assert isinstance(got, Sampled)
    half = math.log(0.5)
    np.testing.assert_allclose(wide(got.logprobs), [nan, nan, nan, 0.0, half, 0.0], rtol=1e-6)
    np.testing.assert_allclose(wide(got.top_logprobs)[:3], nan)
    np.testing.assert_allclose(wide(got.top_logprobs)[3:], [[0.0, -inf], [half, half], [0.0, -inf]], rtol=1e-6)


@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.lists(st.integers(0, 3), max_size=2),
    size=st.integers(1, 50),
    step=st.sampled_from([0.0, 0.5]),
    drawn=st.booleans(),
    data=st.data(),
)
def test_logprobs(
    device: fa.Device, seed: int, rows: list[int], size: int, step: float, drawn: bool, data: st.DataObject
) -> None:
    dtype = data.draw(st.sampled_from(floats(device)))
    n = data.draw(st.integers(1, size))
    values = noise(seed, *rows, size) * 3
    if step:  # many ties
        values = np.round(values / step) * step
        values[..., size // 2] = -np.inf if size > 1 else 0.0
    x, x64 = make(values, dtype, device)
    u = fa.asarray(np.random.default_rng(seed).random(rows), dtype="f32", device=device) if drawn else None
    got = sample(x, u, logprobs=n)
    assert isinstance(got, Sampled)
    assert (wide(got.ids) == wide(sample(x, u))).all()
    with np.errstate(divide="ignore"):
        logs = np.log(softmax(x64))
    out = fa.float64 if dtype is fa.float64 else fa.float32
    best = np.argsort(-x64, axis=-1, kind="stable")[..., :n]
    assert (wide(got.top_ids) == best).all()
    ids = wide(got.ids)
    for values_, want in (
        (got.logprobs, np.take_along_axis(logs, ids[..., None], -1)[..., 0]),
        (got.top_logprobs, np.take_along_axis(logs, best, -1)),
    ):
        assert values_.dtype is out
        np.testing.assert_allclose(wide(values_), want, rtol=1e-5, atol=1e-6 if out is fa.float32 else 1e-13)


def test_what_is_left_out_is_never_drawn(device: fa.Device) -> None:
    x, _ = make(noise(1, 200, 30), fa.float32, device)
    u = fa.asarray((np.arange(200) + 0.5) / 200, dtype="f32", device=device)
    left = process_logits(x, top_k=5, top_p=0.8, mask=fa.arange(30, device=device) % 2 == 0)
    ids = wide(sample(left, u))
    assert np.isfinite(wide(left)[np.arange(200), ids]).all()
    assert (ids % 2 == 0).all()


# What is in use, and bad input.


def test_what_is_in_use_is_told() -> None:
    x = fa.ones((2, 5))
    assert explain(sample, x).features == ()
    assert explain(sample, x, fa.zeros(2), logprobs=1).features == ("u", "logprobs")


def test_bad_logits_are_refused() -> None:
    for op in (process_logits, sample):
        with pytest.raises(TypeError, match=f"{op.__name__}: logits must be real floating-point, got int64"):
            op(fa.ones(3, dtype="i64"))
        for bad in (fa.asarray(1.0), fa.ones((3, 0))):
            with pytest.raises(
                ValueError, match=rf"{op.__name__}: logits must be \[..., V\] with 1 to 16777216 tokens"
            ):
                op(bad)


def test_bad_draws_are_refused() -> None:
    x = fa.ones((2, 5))
    with pytest.raises(TypeError, match="u must be real floating-point, got int64"):
        sample(x, fa.asarray([0, 0]))
    with pytest.raises(
        ValueError, match=r"u must have one number for each row of logits float32\[2,5\], got float32\[3\]"
    ):
        sample(x, fa.zeros(3))
    for n in (-1, 6, 1.5, True):
        with pytest.raises(ValueError, match="logprobs must be an integer from 1 to 5"):
            sample(x, logprobs=n)  # type: ignore[call-overload]  # what is tested


@pytest.mark.mlx
def test_another_device_is_refused() -> None:
    with pytest.raises(ValueError, match="sample: u is on device mlx:cpu but the input on cpu"):
        sample(fa.ones((2, 5)), fa.zeros(2, device="mlx:cpu"))


@given(seed=st.integers(0, 2**32 - 1), size=st.integers(1, 9), many=st.integers(1, 3))
def test_logprobs_of_the_model(device: fa.Device, seed: int, size: int, many: int) -> None:
    """What rules leave is chosen from, and the probabilities are those of the model."""
    x, x64 = make(noise(seed, 2, size), fa.float32, device)
    left = process_logits(x, top_k=1 + seed % size)
    u = fa.asarray(np.random.default_rng(seed).random(2), dtype="f32", device=device)
    got = sample(left, u, logprobs=min(many, size), model=x)
    assert isinstance(got, Sampled)
    assert got.ids.tolist() == sample(left, u).tolist()
    logs = np.log(softmax(x64))
    rows = np.arange(2)
    np.testing.assert_allclose(wide(got.logprobs), logs[rows, np.asarray(got.ids.tolist())], rtol=1e-5, atol=1e-6)
    assert got.top_ids.tolist() == np.argsort(-x64, axis=-1, kind="stable")[:, : min(many, size)].tolist()


def test_a_model_must_fit(device: fa.Device) -> None:
    x = fa.zeros((2, 3), device=device)
    with pytest.raises(ValueError, match="model must have the shape of logits"):
        sample(x, logprobs=1, model=x[:1])
    with pytest.raises(ValueError, match="write logprobs=1"):
        sample(x, model=x)  # type: ignore[call-overload]  # what is tested
    with pytest.raises(TypeError, match="model"):
        sample(x, logprobs=1, model=x.astype("i32"))
    none = fa.full((2, 3), -math.inf, device=device)
    told = sample(x, logprobs=1, model=none)
    assert isinstance(told, Sampled)
    assert all(map(math.isnan, told.logprobs.tolist()))
