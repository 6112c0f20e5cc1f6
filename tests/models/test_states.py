"""Caches of recurrent and latent layers: what they hold, what they can forget, and what a failed pass leaves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ferrum_array as fa
from ferrum_models import random_model
from ferrum_models.layers import RecurrentState
from ferrum_ops import KVCache
from tests.models.memories import LATENT, RECURRENT

MODEL = random_model(RECURRENT, seed=3, device="cpu")
FEEDS = st.lists(st.lists(st.integers(0, 5), min_size=2, max_size=2), min_size=1, max_size=5)


def fed(ids: Any, tokens: list[int], cache: Any) -> Any:
    return MODEL(fa.asarray(ids), lengths=tokens, cache=cache).numpy()


@settings(max_examples=settings().max_examples // 2)
@given(feeds=FEEDS, seed=st.integers(0, 99))
def test_pieces_of_any_lengths(feeds: list[list[int]], seed: int) -> None:
    """Two texts that grow by some tokens or none in each pass, as alone in one go."""
    random = np.random.default_rng(seed)
    cache = MODEL.make_cache(2, 25)
    texts: list[list[int]] = [[], []]
    found: list[list[Any]] = [[], []]
    for tokens in feeds:
        ids = random.integers(0, 41, (2, 5))
        logits = fed(ids, tokens, cache)
        for row, n in enumerate(tokens):
            texts[row] += ids[row, :n].tolist()
            found[row] += list(logits[row, :n])
    assert cache.lengths == [len(text) for text in texts]
    for text, rows in zip(texts, found, strict=True):
        if text:
            np.testing.assert_allclose(np.stack(rows), MODEL(fa.asarray([text])).numpy()[0], rtol=1e-3, atol=1e-4)


def test_sequences_are_forgotten_whole_and_never_in_part() -> None:
    ids = [[1, 2, 3], [4, 5, 6]]
    cache = MODEL.make_cache(2, 9)
    first = fed(ids, [3, 3], cache)
    for lengths in ([3, 2], [0, 2]):
        with pytest.raises(ValueError, match="a recurrent layer cannot forget its last tokens alone"):
            cache.truncate(lengths)
    assert cache.lengths == [3, 3]
    cache.truncate([0, 3])
    again = fed(ids, [3, 2], cache)
    assert cache.lengths == [3, 5]
    np.testing.assert_allclose(again[0], first[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(again[1, :2], MODEL(fa.asarray([[4, 5, 6, 4, 5]])).numpy()[0, 3:], rtol=1e-4, atol=1e-5)


def test_states_that_were_kept_bring_tokens_back() -> None:
    cache = MODEL.make_cache(1, 9)
    fed([[1, 2, 3]], [3], cache)
    kept = cache.states
    first = fed([[7, 8]], [2], cache)
    cache.truncate([3], kept)
    assert np.array_equal(fed([[7, 8]], [2], cache), first)


def test_a_pass_that_fails_changes_nothing() -> None:
    cache = MODEL.make_cache(1, 9)
    fed([[1, 2, 3]], [3], cache)
    before = cache.states
    with pytest.raises(IndexError):
        fed([[99]], [1], cache)
    with pytest.raises(ValueError, match="has room for 9"):
        fed([[1] * 7], [7], cache)
    assert cache.states == before
    assert cache.lengths == [3]


def test_what_layers_keep(device: fa.Device) -> None:
    model = random_model(RECURRENT, device=device, dtype="bf16")
    cache = model.make_cache(2, 16, dtype="int8")
    state, keys, _ = cache.layers
    assert isinstance(state, RecurrentState)
    assert isinstance(keys, KVCache)
    # keys may be of 8 bits; states add up what thousands of tokens have left
    assert (state.conv.dtype, state.delta.dtype, keys.spec.dtype) == (fa.float32, fa.float32, fa.int8)
    channels = 2 * 2 * 6 + 4 * 5
    assert (state.conv.shape, state.delta.shape) == ((2, 3, channels), (2, 4, 6, 5))
    assert cache.nbytes == 2 * 4 * 2 * (3 * channels + 4 * 6 * 5) + keys.spec.nbytes
    latent = random_model(LATENT, device=device).make_cache(2, 16).layers[0]
    assert isinstance(latent, KVCache)
    assert (latent.spec.kv_heads, latent.spec.head_dim, latent.spec.value_dim) == (1, 8, 4)


@pytest.mark.parametrize("config", [RECURRENT, LATENT])
def test_quantised_keys_and_short_floats_change_little(config: dict[str, Any], device: fa.Device) -> None:
    ids = fa.asarray([[5, 17, 3, 40, 8, 8, 1, 30]], device=device)
    model = random_model(config, seed=3, device=device)
    exact = model(ids).numpy()
    eight = model(ids, cache=model.make_cache(1, 9, dtype="int8")).numpy()
    short = model.to(dtype="bf16")
    found = short(ids, cache=short.make_cache(1, 9)).numpy()
    for one, limit in ((eight, 0.05), (found, 0.1)):
        assert 0 < np.linalg.norm(one - exact) / np.linalg.norm(exact) < limit
