from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ferrum_array as fa
from ferrum_array.random import default_rng
from ferrum_ops import explain, spec_verify
from tests.array.oracle import wide
from tests.ops.oracle import Array, floats, make


def distributions(seed: int, *shape: int, parts: int = 64) -> Array:
    """Distributions over the last axis in multiples of 1 / parts, many of them 0: what every dtype holds exactly."""
    random = np.random.default_rng(seed)
    found = np.zeros(shape)
    for place in np.ndindex(*shape[:-1]):
        cuts = np.sort(random.integers(0, parts + 1, shape[-1] - 1))
        found[place] = np.diff(cuts, prepend=0, append=parts) / parts
    return found


def exact(p: Array, q: Array | None, drafts: list[int], u: list[float]) -> tuple[list[int], int]:
    """One sequence, in fractions, as the docstring says it."""
    tokens = p.shape[1]
    for i, x in enumerate(drafts):
        row = [Fraction(float(v)) for v in p[i]]
        is_draft = 0 <= x < tokens
        proposal = [Fraction(0)] * tokens
        if is_draft:
            proposal = (
                [Fraction(float(v)) for v in q[i]] if q is not None else [Fraction(int(j == x)) for j in range(tokens)]
            )
        if is_draft and row[x] > 0 and (proposal[x] <= row[x] or Fraction(u[i]) * proposal[x] < row[x]):
            continue
        rest = [max(a - b, Fraction(0)) for a, b in zip(row, proposal, strict=True)]
        return [*drafts[:i], inverse(rest, u[-1])] + [-1] * (len(drafts) - i), i
    return [*drafts, inverse([Fraction(float(v)) for v in p[-1]], u[-1])], len(drafts)


def inverse(weights: list[Fraction], u: float) -> int:
    sums = list(itertools.accumulate(weights))
    return next(i for i, total in enumerate(sums) if total > Fraction(u) * sums[-1])


@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(0, 5),
    k=st.integers(0, 4),
    tokens=st.integers(1, 6),
    certain=st.booleans(),
    strided=st.booleans(),
    data=st.data(),
)
def test_as_the_oracle_says(
    device: fa.Device, seed: int, rows: int, k: int, tokens: int, certain: bool, strided: bool, data: st.DataObject
) -> None:
    kinds = [data.draw(st.sampled_from(floats(device))) for _ in range(2)]
    p, p64 = make(distributions(seed, rows, k + 1, tokens), kinds[0], device, strided=strided)
    q, q64 = make(distributions(seed + 1, rows, k, tokens), kinds[1], device, strided=strided)
    random = np.random.default_rng(seed)
    # near p, so that drafts are accepted often; sometimes outside
    ids = random.integers(-2, tokens + 1, (rows, k))
    # odd multiples of 2**-11 never meet a bound, and are exact in float16
    u = fa.asarray((random.integers(0, 1024, (rows, k + 1)) * 2 + 1) / 2048, dtype="f16", device=device)
    got = spec_verify(p, None if certain else q, fa.asarray(ids, device=device), u)
    assert got.ids.dtype is got.accepted.dtype is fa.int64
    assert got.ids.shape == (rows, k + 1)
    for i in range(rows):
        want = exact(p64[i], None if certain else q64[i], ids[i].tolist(), wide(u)[i].tolist())
        assert (got.ids[i].tolist(), got.accepted[i].item()) == want


@pytest.mark.parametrize("seed", range(12))
def test_every_pair_of_numbers_gives_the_distribution_of_the_model(device: fa.Device, seed: int) -> None:
    """All drafts and a grid of both numbers: each token comes exactly as often as p says."""
    parts, tokens = 6, 4
    p, q = distributions(seed, tokens, parts=parts), distributions(seed + 50, tokens, parts=parts)
    # Both numbers have their bounds at quotients of whole numbers up to 6, all of which are multiples of 1 / 60.
    grid = math.lcm(*range(1, parts + 1))
    u = fa.asarray((np.indices((grid, grid)).reshape(2, -1).T + 0.5) / grid, dtype="f32", device=device)
    rows = fa.broadcast_to(fa.asarray([p, p], dtype="f32", device=device), (grid**2, 2, tokens))
    drafts = fa.broadcast_to(fa.asarray([q], dtype="f32", device=device), (grid**2, 1, tokens))
    found = np.zeros(tokens, dtype=int)
    for x in range(tokens):
        got = spec_verify(rows, drafts, fa.full((grid**2, 1), x, device=device), u)
        found += round(q[x] * parts) * np.bincount(wide(got.ids[:, 0]), minlength=tokens)
    assert (found == np.round(p * parts) * grid**2).all()


def test_texts_follow_the_distribution_of_the_model() -> None:
    """Two drafts and what follows, from models that look one token back: the frequencies of the texts they make."""
    random = np.random.default_rng(1)
    tokens, k, n = 3, 2, 40000
    model, drafter = random.dirichlet(np.ones(tokens), (2, tokens))  # [before, token]
    start = 0
    uniform = default_rng(7)

    def choose(rows: Array, numbers: Array) -> Array:
        chosen: Array = (rows.cumsum(-1) <= numbers[:, None]).sum(-1).clip(max=tokens - 1)
        return chosen

    drafts, qs = np.zeros((n, k), dtype=int), np.zeros((n, k, tokens))
    before = np.full(n, start)
    for i in range(k):
        qs[:, i] = drafter[before]
        before = drafts[:, i] = choose(qs[:, i], uniform.uniform(shape=n, dtype="f64").numpy())
    ps = model[np.concatenate([np.full((n, 1), start), drafts], axis=1)]
    u = uniform.uniform(shape=(n, k + 1), dtype="f64")
    text = wide(spec_verify(fa.asarray(ps), fa.asarray(qs), fa.asarray(drafts), u).ids)
    # what the drafts leave open, the model goes on to write
    for i in range(1, k + 1):
        open_ = text[:, i] < 0
        text[open_, i] = choose(model[text[open_, i - 1]], uniform.uniform(shape=int(open_.sum()), dtype="f64").numpy())
    found = np.bincount(text @ tokens ** np.arange(k + 1), minlength=tokens ** (k + 1))

    def chi_square(model: Array) -> float:
        want = np.zeros(tokens ** (k + 1))
        for words in itertools.product(range(tokens), repeat=k + 1):
            pairs = itertools.pairwise([start, *words])
            want[np.dot(words, tokens ** np.arange(k + 1))] = n * math.prod(model[a, b] for a, b in pairs)
        return float(((found - want) ** 2 / want).sum())

    # 26 degrees of freedom: above 60 once in 5000 seeds; the drafter's own distribution is far off
    assert chi_square(model) < 60
    assert chi_square(drafter) > 1000


def test_drafts_that_the_model_would_make_are_all_accepted(device: fa.Device) -> None:
    p = fa.asarray(np.random.default_rng(1).dirichlet(np.ones(50), (8, 4)), dtype="f32", device=device)
    ids = fa.asarray(np.random.default_rng(2).integers(0, 50, (8, 3)), device=device)
    for u in (0.0, 0.5, 1 - 2.0**-24):
        got = spec_verify(p, p[:, :3], ids, fa.full((8, 4), u, dtype="f32", device=device))
        assert got.accepted.tolist() == [3] * 8
        assert fa.all(got.ids[:, :3] == ids)
    if device.supports(fa.float64):  # this u is 1 in float32
        almost = fa.full((8, 4), 1 - 2.0**-53, dtype="f64", device=device)
        assert spec_verify(p, p[:, :3], ids, almost).accepted.tolist() == [3] * 8


def test_certain_drafts_are_as_one_hot_ones(device: fa.Device) -> None:
    p, _ = make(distributions(3, 40, 4, 5), fa.float32, device)
    ids = fa.asarray(np.random.default_rng(2).integers(0, 5, (40, 3)), device=device)
    u = fa.asarray(np.random.default_rng(3).random((40, 4)), dtype="f32", device=device)
    certain = spec_verify(p, None, ids, u)
    spelled = spec_verify(p, fa.one_hot(ids, 5, dtype="f32"), ids, u)
    assert fa.all(certain.ids == spelled.ids)
    assert 0 < int(fa.sum(certain.accepted)) < 120


def test_sequences_with_fewer_drafts(device: fa.Device) -> None:
    p = fa.asarray([[[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]] * 3, device=device)
    q = fa.full((3, 2, 2), 0.5, device=device)
    ids = fa.asarray([[1, 0], [1, -1], [-1, 0]], device=device)
    got = spec_verify(p, q, ids, fa.full((3, 3), 0.5, device=device))
    assert got.ids.tolist() == [[1, 0, 1], [1, 0, -1], [1, -1, -1]]
    assert got.accepted.tolist() == [2, 1, 0]


def test_greedy_models_accept_what_they_would_say(device: fa.Device) -> None:
    p = fa.one_hot(fa.asarray([[2, 0, 1]], device=device), 3, dtype="f32")
    q = fa.one_hot(fa.asarray([[2, 1]], device=device), 3, dtype="f32")
    got = spec_verify(p, q, fa.asarray([[2, 1]], device=device), fa.full((1, 3), 0.99, device=device))
    assert got.ids.tolist() == [[2, 0, -1]]


def test_rounded_sums_that_leave_nothing(device: fa.Device) -> None:
    q = fa.asarray([[[0.5, 0.5]]], device=device)
    p = fa.asarray([[[0.499, 0.499], [1.0, 0.0]]], device=device)
    got = spec_verify(p, q, fa.asarray([[0]], device=device), fa.asarray([[0.999, 0.75]], device=device))
    assert got.ids.tolist() == [[1, -1]]


def test_what_is_not_a_number_gives_no_token(device: fa.Device) -> None:
    half, nan = [0.5, 0.5], math.nan
    p = fa.asarray([[half, half], [[nan, 1.0], half], [half, [nan, 1.0]], [half, half]], device=device)
    q = fa.asarray([[[0.9, 0.1]]] * 3 + [[[nan, 0.1]]], device=device)
    ids = fa.zeros((4, 1), dtype="i64", device=device)
    numbers = [[0.9, 0.3], [0.9, 0.3], [0.0, 0.3], [0.9, 0.3]]
    got = spec_verify(p, q, ids, fa.asarray(numbers, device=device))
    assert got.ids.tolist() == [[1, -1], [-1, -1], [0, -1], [-1, -1]]
    for bad in (nan, 1.0, -0.5):
        u = fa.asarray([[bad, 0.3], [0.0, bad]], device=device)
        assert spec_verify(p[:1], q[:1], ids[:1], u[:1]).ids.tolist() == [[-1, -1]]
        assert spec_verify(p[:1], q[:1], ids[:1], u[1:]).ids.tolist() == [[0, -1]]


@pytest.mark.mlx
def test_storages_agree() -> None:
    random = np.random.default_rng(5)
    p, q = random.dirichlet(np.full(500, 0.1), (16, 5)), random.dirichlet(np.full(500, 0.1), (16, 4))
    q = 0.7 * p[:, :4] + 0.3 * q
    ids = np.asarray([[random.choice(500, p=row / row.sum()) for row in rows] for rows in q])
    u = random.random((16, 5))
    texts = []
    for name in ("cpu", "mlx:cpu"):
        args = [fa.asarray(x, dtype="f32", device=name) for x in (p, q, u)]
        texts.append(spec_verify(args[0], args[1], fa.asarray(ids, device=name), args[2]).ids.tolist())
    assert texts[0] == texts[1]


def test_what_is_in_use_is_told() -> None:
    p, ids, u = fa.ones((2, 3)), fa.asarray([0]), fa.zeros(2)
    assert explain(spec_verify, p, p[:1], ids, u).features == ()
    assert explain(spec_verify, p, None, ids, u).features == ("certain",)


def test_bad_input_is_refused() -> None:
    p, q, ids, u = fa.ones((2, 3, 4)), fa.ones((2, 2, 4)), fa.zeros((2, 2), dtype="i64"), fa.zeros((2, 3))
    with pytest.raises(TypeError, match="target_p must be real floating-point, got int64"):
        spec_verify(p.astype("i64"), q, ids, u)
    with pytest.raises(TypeError, match="draft_p must be real floating-point, got bool"):
        spec_verify(p, q.astype("bool"), ids, u)
    with pytest.raises(TypeError, match="draft_ids must be a Tensor of integers, got float32"):
        spec_verify(p, q, ids.astype("f32"), u)
    for bad in (fa.ones(4), fa.ones((2, 0, 4)), fa.ones((2, 3, 0))):
        with pytest.raises(ValueError, match=r"target_p must be \[..., K \+ 1, V\]"):
            spec_verify(bad, q, ids, u)
    with pytest.raises(
        ValueError, match=r"draft_p must have shape \(2, 2, 4\) for target_p float32\[2,3,4\], got float32\[2,3,4\]"
    ):
        spec_verify(p, p, ids, u)
    with pytest.raises(ValueError, match=r"draft_ids must have shape \(2, 2\)"):
        spec_verify(p, q, ids[:, :1], u)
    with pytest.raises(ValueError, match=r"u must have shape \(2, 3\)"):
        spec_verify(p, q, ids, u[:, :2])


@pytest.mark.mlx
def test_other_devices_are_refused() -> None:
    p, q, ids, u = fa.ones((3, 4)), fa.ones((2, 4)), fa.zeros(2, dtype="i64"), fa.zeros(3)
    with pytest.raises(ValueError, match="spec_verify: draft_ids is on device mlx:cpu but the input on cpu"):
        spec_verify(p, q, ids.to_device("mlx:cpu"), u)
