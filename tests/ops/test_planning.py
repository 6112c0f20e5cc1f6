"""Plans are compared with what they stand for, written out pair by pair."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferrum_ops import SequenceMeta
from ferrum_ops.planning import runs, tiles, visible

lengths = st.lists(st.integers(0, 4), max_size=12)


@given(
    first=st.integers(0, 12),
    count=st.integers(0, 12),
    keys=st.integers(0, 30),
    offset=st.integers(-15, 20),
    causal=st.booleans(),
    window=st.none() | st.integers(1, 20),
    block=st.integers(1, 9),
)
def test_tiles_cover_what_is_visible(
    first: int, count: int, keys: int, offset: int, causal: bool, window: int | None, block: int
) -> None:
    window = window if causal else None
    plan = tiles(first, first + count, keys, offset, causal, window, block)
    queries = range(first, first + count)
    seen = {(q, k) for q in queries for k in range(keys) if visible(q, k, offset, causal, window)}
    met: set[tuple[int, int]] = set()
    for tile in plan:
        assert 0 <= tile.start < tile.stop <= keys
        assert tile.stop - tile.start <= block
        pairs = {(q, k) for q in queries for k in range(tile.start, tile.stop)}
        assert not pairs & met
        met |= pairs
        if not tile.masked:
            assert pairs <= seen
        elif pairs:
            assert not pairs <= seen
    assert seen <= met


@given(query=st.integers(0, 9), key=st.integers(0, 9), window=st.integers(1, 9))
def test_a_window_counts_the_token_itself(query: int, key: int, window: int) -> None:
    assert visible(query, key, 0, True, window) == (0 <= query - key < window)


@given(query_lengths=lengths, data=st.data())
def test_runs_are_the_sequences(query_lengths: list[int], data: st.DataObject) -> None:
    size = len(query_lengths)
    key_lengths = data.draw(st.lists(st.integers(0, 4), min_size=size, max_size=size))
    found = []
    for run in runs(query_lengths, key_lengths):
        assert run.sequences > 0
        for n in range(run.sequences):
            found.append(
                (
                    *(run.query + n * run.query_length, run.query_length),
                    *(run.key + n * run.key_length, run.key_length),
                )
            )
    want = [(sum(query_lengths[:i]), query_lengths[i], sum(key_lengths[:i]), key_lengths[i]) for i in range(size)]
    assert found == want


@given(same=st.integers(1, 50), length=st.integers(0, 9))
def test_equal_lengths_are_one_run(same: int, length: int) -> None:
    assert len(runs([length] * same, [length] * same)) == 1


@given(sizes=lengths)
def test_packed_meta(sizes: list[int]) -> None:
    meta = SequenceMeta.packed(sizes)
    assert meta.lengths == tuple(sizes)
    assert meta.tokens == sum(sizes)
    assert meta.token_positions == tuple(place for size in sizes for place in range(size))
    assert meta.in_order
    assert meta == SequenceMeta.packed(sizes)
    assert hash(meta) == hash(SequenceMeta.packed(sizes))


def test_tokens_are_the_last_ones_of_their_sequence() -> None:
    meta = SequenceMeta((0, 2, 3), kv_lens=(5, 1))
    assert meta.token_positions == (3, 4, 0)
    assert SequenceMeta((0, 2, 3), positions=(3, 4, 0), kv_lens=(5, 1)).in_order
    assert not SequenceMeta((0, 2, 3), positions=(0, 1, 0), kv_lens=(5, 1)).in_order


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cu_seqlens": ()}, "must begin with 0"),
        ({"cu_seqlens": (1, 2)}, "must begin with 0"),
        ({"cu_seqlens": (0, 3, 2)}, "never decrease"),
        ({"cu_seqlens": (0, 2), "positions": (0,)}, "positions needs one entry per token, 2, got 1"),
        ({"cu_seqlens": (0, 2), "slots": (0, 1, 2)}, "slots needs one entry per token, 2, got 3"),
        ({"cu_seqlens": (0, 2), "kv_lens": (1, 1)}, "kv_lens needs one entry per sequence, 1"),
        ({"cu_seqlens": (0, 2), "block_tables": ()}, "block_tables needs one entry per sequence"),
        ({"cu_seqlens": (0, 1), "kv_lens": (-1,)}, "kv_lens must not be negative, got -1"),
        ({"cu_seqlens": (0, 1), "positions": (-2,)}, "positions must not be negative, got -2"),
    ],
)
def test_bad_metas_are_refused(fields: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SequenceMeta(**fields)  # type: ignore[arg-type]  # also the empty table


def test_lengths_below_zero_are_refused() -> None:
    with pytest.raises(ValueError, match="lengths must not be negative, got -1"):
        SequenceMeta.packed([3, -1, 2])
