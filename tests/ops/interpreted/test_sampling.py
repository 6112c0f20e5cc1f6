"""The kernels from logits to tokens: the same tokens as the references give, and the same that is ruled out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ferrum_array as fa
from ferrum_ops import Sampled, embedding, process_logits, sample, use_fast_paths
from ferrum_ops.kernels.cuda import launch, sampling
from tests.array.oracle import wide
from tests.ops.interpreted.drawn import HALVES, LIES, Lie, lying
from tests.ops.interpreted.hopper import compiled

#: a row in one part, and in several
SIZES = st.sampled_from([1, 2, 7, 60, 127, 128, 129, 256, 300])
ROWS = st.sampled_from([(), (1,), (3,), (2, 2), (0,), (2, 0)])


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that rows of some hundreds have several parts."""
    monkeypatch.setattr(sampling, "_BLOCK", 128)


@contextmanager
def poison() -> Iterator[None]:
    """Inside, kernels write into memory full of NaN, or of numbers that are none of theirs."""

    def empty(shape: tuple[int, ...], like: fa.Tensor, dtype: fa.Dtype | None = None) -> fa.Tensor:
        out = launch.empty(shape, like, dtype)
        out[...] = fa.nan if out.dtype.is_floating else -(10**9) - 7
        return out

    with mock.patch.object(sampling, "empty", empty), np.errstate(all="ignore"):  # a GPU gives no warnings
        yield


def logits_of(seed: int, shape: tuple[int, ...], dtype: fa.Dtype, lie: Lie, spread: float, steps: int) -> fa.Tensor:
    """Logits in few or many steps, so that many are equal; some are infinite, and a row may have a NaN."""
    x, _ = lying(seed, shape, fa.float32, "whole", spread)
    x = fa.round(x * steps) / steps
    random = np.random.default_rng(seed)
    special = random.choice([0.0, -math.inf, math.inf, math.nan], shape, p=[0.97, 0.02, 0.007, 0.003])
    x = fa.where(fa.asarray(special == 0.0), x, fa.asarray(special, dtype="f32")).astype(dtype)
    if lie == "whole":
        return x
    y, _ = lying(seed, shape, dtype, lie)
    z = fa.flip(fa.flip(y, axis=-1), axis=-1) if lie == "whole" else y
    z[...] = x
    return z


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=ROWS,
    size=SIZES,
    dtype=st.sampled_from(HALVES),
    lie=st.sampled_from(LIES),
    spread=st.sampled_from([0.1, 3.0, 30.0]),
    drawn=st.booleans(),
)
def test_tokens_are_those_of_the_reference(
    seed: int, rows: tuple[int, ...], size: int, dtype: fa.Dtype, lie: Lie, spread: float, drawn: bool
) -> None:
    x = logits_of(seed, (*rows, size), dtype, lie, spread, 4)
    u = None
    if drawn:
        numbers = np.random.default_rng(seed).integers(-1, 65, rows) / 64  # some are no shares
        u = fa.asarray(numbers.astype("f4"))
    with poison():
        got = sampling.sample(x, u, 0, None)
    with use_fast_paths(False):
        want = sample(x, u)
    assert got.dtype is fa.int64
    assert got.tolist() == want.tolist()


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=ROWS,
    size=SIZES,
    dtype=st.sampled_from(HALVES),
    lie=st.sampled_from(LIES),
    spread=st.sampled_from([0.1, 3.0, 30.0]),
    drawn=st.booleans(),
    other=st.booleans(),
)
def test_logarithms_are_those_of_the_reference(
    seed: int, rows: tuple[int, ...], size: int, dtype: fa.Dtype, lie: Lie, spread: float, drawn: bool, other: bool
) -> None:
    x = logits_of(seed, (*rows, size), dtype, lie, spread, 4)
    model = logits_of(seed + 1, (*rows, size), dtype, lie, spread, 4) if other else None
    u = fa.asarray(np.random.default_rng(seed).random(rows).astype("f4")) if drawn else None
    with poison():
        got = sampling.sample_told(x, u, 1, model)
    with use_fast_paths(False):
        want = sample(x, u, logprobs=1, model=model)
    assert isinstance(want, Sampled)
    assert got.ids.tolist() == want.ids.tolist()
    assert got.top_ids.tolist() == want.top_ids.tolist()
    for ours, theirs in ((got.logprobs, want.logprobs), (got.top_logprobs, want.top_logprobs)):
        assert ours.dtype is theirs.dtype
        np.testing.assert_allclose(wide(ours), wide(theirs), rtol=2e-6, atol=2e-6)


def test_a_draw_between_two_parts() -> None:
    """All tokens are alike, so u says which one; some fall on the first of a part."""
    places = np.asarray([0, 127, 128, 255, 256, 299])
    u = fa.asarray(((places + 1e-3) / 300).astype("f4"))
    assert sampling.sample(fa.zeros((6, 300)), u, 0, None).tolist() == places.tolist()
    exact = fa.asarray([0.0, 0.25, 0.5, 0.75])
    assert sampling.sample(fa.zeros((4, 512)), exact, 0, None).tolist() == [0, 128, 256, 384]


#: the rules that are not in use
PLAIN = {"temperature": 1.0, "top_k": None, "top_p": None, "min_p": None, "bias": None}
RULES = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([1.0, 1.0, 0.0, 0.3, 0.7, 1.5, 1e-30]),
        "top_k": st.sampled_from([None, 1, 2, 5, 40, 200, 1000]),
        "top_p": st.sampled_from([None, None, 1e-9, 0.1, 0.5, 0.9, 0.999999]),
        "min_p": st.sampled_from([None, None, None, 0.01, 0.3, 1.0]),
    }
)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=ROWS,
    size=SIZES,
    dtype=st.sampled_from(HALVES),
    lie=st.sampled_from(LIES),
    spread=st.sampled_from([0.1, 3.0, 30.0]),
    steps=st.sampled_from([1, 16, 4096]),
    bias=st.sampled_from([None, "row", "all", "one"]),
    rules=RULES,
)
def test_what_stays_is_what_stays_in_the_reference(
    seed: int, rows: tuple[int, ...], size: int, dtype: fa.Dtype, lie: Lie, spread: float, steps: int,
    bias: str | None, rules: dict[str, Any],
) -> None:  # fmt: skip
    x = logits_of(seed, (*rows, size), dtype, lie, spread, steps)
    shape = {"row": (size,), "all": (*rows, size), "one": (1,), None: None}[bias]
    more = {} if shape is None else {"bias": lying(seed + 1, shape, fa.float32, "whole")[0]}
    with use_fast_paths(False):
        want = process_logits(x, **rules, **more)
    with poison():
        got = sampling.process_logits(x, SimpleNamespace(**{**PLAIN, **rules, **more}))
    assert got.dtype is dtype
    np.testing.assert_array_equal(wide(got), wide(want))


#: numbers next to each other, so that a key that is only nearly right shows
STEPS = [-1.0 - n * 2.0**-23 for n in range(20)] + [1.0 + n * 2.0**-23 for n in range(20)]


@pytest.mark.parametrize(
    ("row", "dtype", "rules"),
    [
        ([60000.0, 59968.0, -60000.0], "f16", {"temperature": 0.5}),
        ([-60000.0, -59968.0], "f16", {"temperature": 0.25, "min_p": 0.1}),
        ([3e38, -3e38, 2.9e38], "f32", {"temperature": 0.5, "top_k": 2}),
        ([3e38, 2.9e38], "f32", {"temperature": 1.5}),
        ([-0.0, 0.0, -1.0], "f32", {"top_k": 1}),
        ([0.0, -0.0, 0.0, -0.0, -1.0], "f32", {"top_p": 0.5}),
        ([-math.inf] * 3, "f32", {"top_k": 2, "top_p": 0.5}),
        ([math.inf, 0.0, math.inf], "f32", {"top_k": 1, "min_p": 0.5}),
        ([0.0, 0.0, 0.0, 0.0, -1.0], "f32", {"top_k": 3, "top_p": 0.5}),
        ([0.0] * 300, "f32", {"top_k": 200}),
        (STEPS, "f32", {"top_k": 7}),
        (STEPS, "f32", {"top_k": 30}),
        (STEPS, "f32", {"top_p": 0.3}),
        (STEPS, "f32", {"top_k": 30, "top_p": 0.7}),
        ([0.0] * 300 + [1.0], "f32", {"top_p": 0.5}),
    ],
)
def test_rows_at_the_bounds(row: list[float], dtype: str, rules: dict[str, Any]) -> None:
    x = fa.asarray([row], dtype=dtype)
    with use_fast_paths(False):
        want = process_logits(x, **rules)
    with poison():
        got = sampling.process_logits(x, SimpleNamespace(**{**PLAIN, **rules}))
    np.testing.assert_array_equal(wide(got), wide(want))


@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.lists(st.integers(0, 4), max_size=2).map(tuple),
    height=st.integers(1, 9),
    size=st.sampled_from([0, 1, 5, 64, 130]),
    dtype=st.sampled_from(HALVES),
    lie=st.sampled_from(LIES),
    scale=st.sampled_from([None, 0.3]),
    index=st.sampled_from(["i32", "i64", "u8"]),
)
def test_rows_of_a_table(
    seed: int,
    shape: tuple[int, ...],
    height: int,
    size: int,
    dtype: fa.Dtype,
    lie: Lie,
    scale: float | None,
    index: str,
) -> None:
    table, _ = lying(seed, (height, size), dtype, lie)
    ids = np.random.default_rng(seed).integers(0 if index == "u8" else -2, height + 2, shape)
    with poison():
        got = sampling.embedding(table, fa.asarray(ids.astype(fa.Dtype(index).standard_name)), scale)
    with use_fast_paths(False):
        want = embedding(table, fa.asarray(np.clip(ids, 0, height - 1)), scale=scale)
    assert got.shape == want.shape
    np.testing.assert_array_equal(wide(got), wide(want))


def test_what_is_refused() -> None:
    x = fa.zeros((1, sampling._LONGEST + 1))
    assert (
        sampling.sample_refuses(x, None, 0, None)
        == f"takes up to {sampling._LONGEST} tokens, not {sampling._LONGEST + 1}"
    )
    assert sampling.sample_refuses(fa.zeros((1, 5)), None, 2, None) == "tells one likeliest token, not 2"
    u = fa.zeros(1, dtype="f64")
    assert sampling.sample_refuses(fa.zeros((1, 5)), u, 0, None) == "does not take float64 numbers u"
    rules = SimpleNamespace(bias=fa.zeros(5, dtype="f64"))
    assert sampling.process_logits_refuses(fa.zeros((1, 5)), rules) == "does not take a float64 bias"
    rules = SimpleNamespace(bias=None)
    assert sampling.process_logits_refuses(fa.zeros((1, 5)), rules) is None
    assert sampling.process_logits_refuses(x, rules) is not None


def test_every_kernel_compiles_for_hopper() -> None:
    made = compiled(
        """
        from types import SimpleNamespace
        from ferrum_ops.kernels.cuda import launch, sampling
        for dtype in ("f32", "bf16"):
            x = fa.zeros((2, 151936), dtype=dtype)
            sampling.sample(x, None, 0, None)
            sampling.sample(x, fa.zeros(2), 0, None)
            sampling.sample_told(x, None, 1, x)
            rules = dict(temperature=0.7, top_k=20, top_p=0.9, min_p=0.1, bias=None)
            sampling.process_logits(x, SimpleNamespace(**rules))
            sampling.process_logits(x, SimpleNamespace(**{**rules, "top_k": None, "temperature": 0.0}))
            sampling.embedding(fa.zeros((9, 4096), dtype=dtype), fa.zeros(2, dtype="i64"), 2.0)
        """
    )
    assert {one.name for one in made} == {
        *("peak", "weigh", "pick", "spread", "tell", "tally", "level", "settle", "leave", "gather"),
    }
    for one in made:
        assert one.shared <= 227 * 1024
        assert not one.local, one
