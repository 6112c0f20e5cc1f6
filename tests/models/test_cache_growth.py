"""Caches that grow token by token, as captured decode steps let them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferrum_models import CausalLM, random_model
from ferrum_ops import KVCache
from ferrum_ops.kv_slots import cache_slots
from ferrum_ops.types import SequenceMeta

TINY = {
    "model_type": "llama", "vocab_size": 9, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
    "num_attention_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip


@pytest.fixture(scope="module")
def model() -> CausalLM:
    return random_model(TINY)


@given(
    kind=st.sampled_from(["contiguous", "paged"]),
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=4),
    size=st.integers(1, 5),
    picks=st.lists(st.sets(st.integers(0, 3), min_size=1), max_size=12),
    unread=st.integers(0, 1),
)
def test_slots_are_those_of_a_plan(
    model: CausalLM, kind: Any, lengths: list[int], size: int, picks: list[set[int]], unread: int
) -> None:
    """A token more at a time: slots and blocks are what a pass of one token each would have planned."""
    cache = model.make_cache(len(lengths), 32, kind=kind, block_size=size)
    made = cache.plan(lengths)
    cache.commit(made, {})
    (layer,) = cache.layers
    assert isinstance(layer, KVCache)
    assert cache.slots == layer.spec.slots
    for pick in picks:
        rows = sorted(row for row in pick if row < len(lengths))
        if not rows:
            continue
        for ahead in range(unread + 1):
            slots, _ = cache.grow(rows, ahead)
            tables = tuple(map(tuple, cache.blocks_of(rows)))
            keys = tuple(cache.lengths[row] + ahead + 1 for row in rows)
            meta = SequenceMeta(tuple(range(len(rows) + 1)), kv_lens=keys, block_tables=tables)
            assert tuple(slots) == cache_slots("test", layer.spec, meta)
        before = list(cache.lengths)
        cache.grown(rows)
        assert cache.lengths == [n + (row in rows) for row, n in enumerate(before)]
        given_out = [block for row in range(len(lengths)) for block in cache.blocks_of([row])[0]]
        assert len(set(given_out)) == len(given_out)


def test_a_row_that_needs_a_block_is_told(model: CausalLM) -> None:
    cache = model.make_cache(2, 32, kind="paged", block_size=2)
    assert [cache.grow([0, 1])[1], cache.grown([0, 1])] == [True, None]
    assert [cache.grow([0])[1], cache.grown([0])] == [False, None]
    assert cache.grow([0])[1]
    assert not cache.grow([0], 1)[1]


def test_no_room(model: CausalLM) -> None:
    cache = model.make_cache(1, 3)
    cache.commit(cache.plan([3]), {})
    with pytest.raises(ValueError, match="would have 4 tokens, but the cache has room for 3"):
        cache.grow([0])
    paged = model.make_cache(2, 8, kind="paged", block_size=4, blocks=3)
    paged.commit(paged.plan([4, 8]), {})
    with pytest.raises(ValueError, match="1 more blocks of 4 tokens are needed, but 0 of 3 are free"):
        paged.grow([0])
    assert paged.lengths == [4, 8]
    paged.truncate([4, 4])
    paged.grow([0])
