"""Attention over caches in Triton's interpreter: as the oracle says, whatever the tiles, the splits and the tables."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ferrum_array as fa
from ferrum_ops import KVCache, KVSpec, SequenceMeta, kv_append
from ferrum_ops.kernels.cuda import paged, plans
from ferrum_ops.kernels.cuda.paged import Config
from ferrum_ops.kv_cache import kept_as
from ferrum_ops.tiled import AttentionOptions
from tests.array.oracle import wide
from tests.ops.caches import Case, filled, poisoned, shuffled_tables
from tests.ops.oracle import Array, check, make, noise
from tests.ops.test_attention import exact_attention

#: one rounding of results, and one of probabilities
WITHIN = {fa.float32: 1e-6, fa.float16: 1e-3}


@st.composite
def long_cases(draw: Any, dtype: fa.Dtype | str) -> tuple[Case, int]:
    """Sequences of several tiles beside short and empty ones, and how many heads share keys."""
    sequences = draw(st.integers(1, 3))
    keys = tuple(draw(st.sampled_from([0, 1, 15, 16, 17, 50, 83])) for _ in range(sequences))
    queries = tuple(min(n, draw(st.sampled_from([0, 1, 2, 5, 30]))) for n in keys)
    if draw(st.booleans()):
        queries = tuple(min(1, n) for n in keys)
    layout = draw(st.sampled_from(["contiguous", "paged"]))
    size = draw(st.sampled_from([1, 3, 16, 32, 64])) if layout == "paged" else 83
    needed = sum(-(-max(n, 1) // size) for n in keys)
    blocks = needed + 1 if layout == "paged" else sequences + 1
    tables = shuffled_tables(keys, size, blocks, draw(st.integers(0, 99))) if layout == "paged" else None
    heads, dims = draw(st.sampled_from([1, 2])), draw(st.sampled_from([(16, 16), (20, 16), (8, 5)]))
    held, codes = kept_as(dtype)
    return Case(KVSpec(heads, dims[0], blocks, size, layout, held, dims[1], codes), keys, queries, tables), draw(
        st.sampled_from([1, 2, 3])
    )


def queries_of(case: Case, dtype: fa.Dtype, cpu: fa.Device, group: int, strided: bool) -> tuple[fa.Tensor, list[Array]]:
    total, heads = sum(case.queries), case.spec.kv_heads * group
    q, exact = make(noise(7, total, heads, case.spec.head_dim), dtype, cpu)
    if strided:  # heads of a wider tensor
        q = fa.concat([fa.full_like(q, fa.nan), q], axis=1)[:, heads:]
    starts = np.cumsum((0, *case.queries))
    return q, [exact[a:b] for a, b in pairwise(starts)]


@contextmanager
def tiles(config: Config, splits: int) -> Iterator[None]:
    plain = paged._code.__wrapped__

    def code(*call: Any) -> tuple[Config, dict[str, Any]]:
        return config, plain(*call)[1]

    with mock.patch.multiple(paged, _code=code, _splits=lambda *_: splits, _PIECE=2, _UNROLLED=2):
        yield


def attended(
    q: fa.Tensor, cache: KVCache, meta: SequenceMeta, **options: Any
) -> tuple[fa.Tensor, fa.Tensor, AttentionOptions]:
    """The result in memory that held NaN, as far as kernels write it."""
    given_ = AttentionOptions(**{"scale": q.shape[-1] ** -0.5, **options})
    with mock.patch.object(paged, "empty", poison):
        out, sums = paged.paged_attention_with_sums(q, cache, meta, (), given_)
        alone, nothing = paged.paged_attention(q, cache, meta, (), given_)
    assert nothing is None
    assert alone.numpy().tobytes() == out.numpy().tobytes(), "the sums change the result, or a second run differs"
    arrivals = plans.reading_plan(cache.spec, meta, q.device).arrivals
    assert not fa.any(arrivals), "the next launch would find parts that nobody has computed"
    return out, sums, given_


def poison(shape: tuple[int, ...], like: fa.Tensor, dtype: fa.Dtype | None = None) -> fa.Tensor:
    return fa.full(shape, fa.nan, dtype=dtype or like.dtype, device=like.device)


def expected_of(q: list[Array], k: list[Array], v: list[Array], options: AttentionOptions) -> tuple[Array, Array]:
    more = options._asdict()
    if options.sinks is not None:
        more["sinks"] = wide(options.sinks.numpy())
    parts = [exact_attention(*one, **more) for one in zip(q, k, v, strict=True)]
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])


def level(sums: fa.Tensor, expected: Array) -> None:
    """A sum near 1 has a logarithm near 0, which is as far off as the scores are."""
    np.testing.assert_allclose(wide(sums), expected, rtol=1e-6, atol=2e-6)


@settings(max_examples=40)
@given(data=st.data())
def test_as_the_oracle_says(cpu: fa.Device, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from([fa.float32, fa.float16]))
    case, group = data.draw(long_cases(data.draw(st.sampled_from(["f32", "f16", "int8", "fp8_e4m3"]))))
    cache, k, v = filled(case, cpu, fa.float32, data.draw(st.integers(0, 99)))
    q, exact = queries_of(case, dtype, cpu, group, data.draw(st.booleans()))
    window = data.draw(st.sampled_from([None, 1, 18, 1 << 62]))
    sinks = None
    if data.draw(st.booleans()):
        sinks, _ = make(noise(3, q.shape[1]), fa.float32, cpu, strided=True)
    options: dict[str, Any] = {
        "scale": data.draw(st.sampled_from([0.3, -0.5])),
        "window": window,
        "causal": window is not None or data.draw(st.booleans()),
        "softcap": data.draw(st.sampled_from([None, 2.0])),
        "sinks": sinks,
    }
    config = Config(data.draw(st.sampled_from([16, 32])), data.draw(st.sampled_from([16, 32])), 4, 2,
                    data.draw(st.booleans()))  # fmt: skip
    with tiles(config, data.draw(st.integers(1, 5))):
        out, sums, chosen = attended(q, cache, case.meta, **options)
    expected, levels = expected_of(exact, k, v, chosen)
    check(out, expected, dtype, WITHIN[dtype])
    level(sums, levels)


def test_parts_are_put_together_in_pieces(cpu: fa.Device) -> None:
    """Later pieces hold greater scores than the first, or smaller ones; some parts of the second sequence are empty."""
    keys = (83, 50)
    tables = shuffled_tables(keys, 16, 11, 1)
    case = Case(KVSpec(2, 16, 11, 16, "paged"), keys, (1, 1), tables)
    cache, k, v = filled(case, cpu, fa.float32, 1)
    q, exact = queries_of(case, fa.float32, cpu, 3, False)
    for rows in (16, 32):  # in one launch, and in two
        with tiles(Config(rows, 16, 4, 2, False), 6):
            out, sums, chosen = attended(q, cache, case.meta, scale=2.0)
        expected, levels = expected_of(exact, k, v, chosen)
        check(out, expected, fa.float32, WITHIN[fa.float32])
        level(sums, levels)


@settings(max_examples=15)
@given(data=st.data())
def test_rings(cpu: fa.Device, data: st.DataObject) -> None:
    """What a ring has forgotten was out of the window's reach."""
    keys, window = data.draw(st.integers(1, 70)), data.draw(st.integers(1, 20))
    count = min(keys, data.draw(st.integers(1, 6)))
    size = window + count - 1 + data.draw(st.integers(0, 3))
    spec = KVSpec(2, 8, 3, size, "ring")
    table = ((data.draw(st.integers(0, 2)),),)
    cache = poisoned(spec, cpu)
    k, exact_k = make(noise(0, keys, 2, 8), fa.float32, cpu)
    v, exact_v = make(noise(1, keys, 2, 8), fa.float32, cpu)
    for start in range(0, keys, size):
        stop = min(start + size, keys)
        meta = SequenceMeta((0, stop - start), kv_lens=(stop,), block_tables=table)
        kv_append(cache, k[start:stop], v[start:stop], meta)
    q, exact_q = make(noise(2, count, 4, 8), fa.float32, cpu)
    meta = SequenceMeta((0, count), kv_lens=(keys,), block_tables=table)
    with tiles(Config(16, 16, 4, 2, data.draw(st.booleans())), data.draw(st.integers(1, 3))):
        out, sums, chosen = attended(q, cache, meta, window=window)
    expected, levels = expected_of([exact_q], [exact_k], [exact_v], chosen)
    check(out, expected, fa.float32)
    level(sums, levels)


@pytest.mark.parametrize(("dtype", "value_dim"), [(fa.float16, 16), (fa.int8, 16), (fa.float16, 7)])
def test_the_configurations_as_they_are(cpu: fa.Device, dtype: fa.Dtype, value_dim: int) -> None:
    """A batch of prompts, single tokens and what has no tokens, with the real tiles."""
    keys, queries = (300, 90, 7, 0, 40, 40), (1, 90, 0, 0, 3, 5)
    spec = KVSpec(2, 16, 45, 16, "paged", dtype, value_dim)
    case = Case(spec, keys, queries, shuffled_tables(keys, 16, 45, 5))
    cache, k, v = filled(case, cpu, fa.float16, 0)
    q, exact = queries_of(case, fa.float16, cpu, 4, False)
    out, sums, chosen = attended(q, cache, case.meta)
    expected, levels = expected_of(exact, k, v, chosen)
    check(out, expected, fa.float16, WITHIN[fa.float16])
    level(sums, levels)


@pytest.mark.parametrize("scale", [1e-7, 1e4])
def test_scales_of_int8_leave_the_range_of_float16(cpu: fa.Device, scale: float) -> None:
    """Probabilities times scales are no float16s; results are, or nearly 0."""
    case = Case(KVSpec(1, 16, 4, 16, "paged", fa.int8), (40,), (2,), ((2, 0, 1),))
    cache, k, v = filled(case, cpu, fa.float32, 0)
    assert cache.v_scale is not None
    cache.v_scale[...] *= scale
    q, exact = queries_of(case, fa.float16, cpu, 1, False)
    out, _, chosen = attended(q, cache, case.meta)
    expected, _ = expected_of(exact, k, [v[0] * scale], chosen)
    np.testing.assert_allclose(wide(out), expected, rtol=2e-2, atol=6e-8)
    wide_q, exact = queries_of(case, fa.float32, cpu, 1, False)
    out, _, _ = attended(wide_q, cache, case.meta)
    check(out, expected_of(exact, k, [v[0] * scale], chosen)[0], fa.float32)


def test_nothing_at_all(cpu: fa.Device) -> None:
    cache = KVCache.empty(KVSpec(2, 8, 3, 4, "paged"), cpu)
    for meta in (SequenceMeta((0,), block_tables=()), SequenceMeta((0, 0), kv_lens=(0,), block_tables=((),))):
        out, sums, _ = attended(fa.ones((0, 4, 8), device=cpu), cache, meta)
        assert (out.shape, sums.shape) == ((0, 4, 8), (0, 4))
    # tokens that see no key
    meta = SequenceMeta((0, 2), kv_lens=(0,), block_tables=((),))
    for splits in (1, 3):
        with tiles(Config(16, 16, 4, 2, False), splits):
            out, sums, _ = attended(fa.ones((2, 4, 8), device=cpu), cache, meta)
        assert fa.all(out == 0)
        assert fa.all(sums == -fa.inf)


# Plans.


def test_plans_of_nothing(cpu: fa.Device) -> None:
    spec = KVSpec(1, 1, 3, 4, "paged")
    for meta, sequences in (
        (SequenceMeta((0,), block_tables=()), 0),
        (SequenceMeta((0, 0, 0), kv_lens=(0, 0), block_tables=((), ())), 2),
    ):
        plan = plans.plan_of(spec, meta, cpu)
        assert plan.starts.tolist() == [0] * (sequences + 1)
        assert (plan.keys.shape, plan.tables.shape, plan.slots.shape) == ((sequences,), (sequences, 1), (0,))
        assert (plan.sequences, plan.tokens, plan.most_tokens, plan.most_keys) == (sequences, 0, 0, 0)


def test_a_plan_is_made_once(cpu: fa.Device) -> None:
    spec = KVSpec(1, 1, 3, 4, "paged")
    meta = SequenceMeta((0, 1, 3), kv_lens=(5, 2), block_tables=((2, 0), (1,)))
    plan = plans.plan_of(spec, meta, cpu)
    assert plan.tables.tolist() == [[2, 0], [1, 0]]
    assert plan.slots.tolist() == [0, 4, 5]
    assert plans.plan_of(spec, meta, cpu) is plan
    assert plans.reading_plan(replace(spec, kv_heads=7), meta, cpu) is plan
    assert plans.slots_of(spec, meta, cpu) is plan.slots
    other = plans.reading_plan(replace(spec, blocks=4), meta, cpu)
    assert other is not plan
    assert plans.reading_plan(replace(spec, blocks=4), meta, cpu) is other


def test_a_plan_has_no_gaps(cpu: fa.Device) -> None:
    spec = KVSpec(1, 1, 3, 4, "paged")
    meta = SequenceMeta((0, 1, 2), kv_lens=(4, 2), block_tables=((2,), (1,)))
    plan = plans.plan_of(spec, meta, cpu)
    wider = fa.zeros((2, 5), dtype="i32", device=cpu)
    with pytest.raises(ValueError, match="tables must lie in C order without gaps"):
        plans.set_plan(spec, meta, replace(plan, tables=wider[:, :3]))
    plans.set_plan(spec, meta, replace(plan, tables=wider))
    assert plans.plan_of(spec, meta, cpu).tables is wider


def test_tokens_without_places_can_be_read_for(cpu: fa.Device) -> None:
    """More tokens than keys: nothing could be appended so, but queries may be asked."""
    spec = KVSpec(1, 8, 3, 4, "paged")
    meta = SequenceMeta((0, 3), kv_lens=(2,), block_tables=((1,),))
    case = Case(spec, (2,), (2,), ((1,),))
    cache, k, v = filled(case, cpu, fa.float32, 0)
    q, exact_q = make(noise(2, 3, 1, 8), fa.float32, cpu)
    out, sums, chosen = attended(q, cache, meta)
    expected, levels = expected_of([exact_q], k, v, chosen)
    check(out, expected, fa.float32)
    level(sums, levels)
    with pytest.raises(ValueError, match="fewer keys than tokens"):
        plans.plan_of(spec, meta, cpu)


@settings(max_examples=15)
@given(data=st.data())
def test_new_numbers_in_the_same_plan(cpu: fa.Device, data: st.DataObject) -> None:
    """What a captured graph does: grids of the greatest lengths, and what the device's memory says in this step."""
    spec = KVSpec(1, 8, 12, 16, "paged")
    most = SequenceMeta((0, 2, 4), kv_lens=(90, 90), block_tables=(tuple(range(6)), tuple(range(6, 12))))
    keys = tuple(data.draw(st.integers(2, 90)) for _ in range(2))
    counts = data.draw(st.sampled_from([(2, 2), (1, 2), (2, 1), (1, 1)]))
    case = Case(spec, keys, counts, shuffled_tables(keys, 16, 12, data.draw(st.integers(0, 99))))
    cache, k, v = filled(case, cpu, fa.float32, 0)
    now = plans.plan_of(spec, case.meta, cpu)
    plan = plans.plan_of(spec, most, cpu)
    plan.starts[...] = now.starts
    plan.keys[...] = now.keys
    plan.tables[:, : now.tables.shape[1]] = now.tables
    q, exact = queries_of(case, fa.float32, cpu, 2, False)
    padded = fa.concat([q, fa.full((4 - q.shape[0], 2, 8), fa.nan, device=cpu)])
    with tiles(Config(16, 16, 4, 2, data.draw(st.booleans())), data.draw(st.integers(1, 4))):
        out, sums, chosen = attended(padded, cache, most)
    expected, levels = expected_of(exact, k, v, chosen)
    check(out[: q.shape[0]], expected, fa.float32)
    level(sums[: q.shape[0]], levels)
    assert fa.all(fa.isnan(out[q.shape[0] :])), "rows of no sequence were written"


# Tables that are wrong in the device's memory.

WRONG = (-1, 4, 1 << 30, -(1 << 31))


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("size", [16, 5])
@settings(max_examples=10)
@given(data=st.data())
def test_wrong_tables_read_nothing_outside(cpu: fa.Device, splits: int, size: int, data: st.DataObject) -> None:
    """Memory around the cache and the queries is NaN: a result without NaN has seen none of it."""
    spec = KVSpec(1, 8, 4, size, data.draw(st.sampled_from(["paged", "contiguous", "ring"])))
    memory = np.full((2, 3, spec.slots, 1, 8), np.nan, np.float32)
    memory[:, 1] = noise(0, 2, spec.slots, 1, 8)
    cache = KVCache(spec, *(fa.asarray(memory[n, 1], device=cpu, copy=False) for n in range(2)))
    places = 2 if spec.layout == "paged" else 1
    meta = SequenceMeta((0, 1, 3), kv_lens=(size, size), block_tables=((0,) * places, (1,) * places))
    around = np.full((9, 2, 8), np.nan, np.float32)
    around[3:6] = 1
    q = fa.asarray(around[3:6], device=cpu, copy=False)

    def any_of(*good: int) -> st.SearchStrategy[int]:
        return st.sampled_from((*good, *WRONG))

    numbers = st.lists(any_of(0, 3), min_size=2 * places, max_size=2 * places)
    rows = np.array(data.draw(numbers), np.int32).reshape(2, places)
    starts = [data.draw(any_of(0)), data.draw(any_of(1, 2)), data.draw(any_of(3))]
    lengths = [data.draw(st.sampled_from([0, 1, size, 2 * size, 3 * size, 1 << 12, -5])) for _ in range(2)]
    plan = replace(
        plans.plan_of(spec, meta, cpu),
        tables=fa.asarray(rows, device=cpu),
        starts=fa.asarray(starts, dtype="i32", device=cpu),
        keys=fa.asarray(lengths, dtype="i32", device=cpu),
    )
    plans.set_plan(spec, meta, plan)
    result = np.full((9, 2, 8), 5, np.float32)
    levels = np.full((9, 2), 5, np.float32)
    # the third and later results of ``empty`` are the parts of splits
    inside = [fa.asarray(levels[3:6], device=cpu, copy=False), fa.asarray(result[3:6], device=cpu, copy=False)]

    def given_out(shape: tuple[int, ...], like: fa.Tensor, dtype: fa.Dtype | None = None) -> fa.Tensor:
        return inside.pop(0) if inside else poison(shape, like, dtype)

    with tiles(Config(16, 16, 4, 2, data.draw(st.booleans())), splits), mock.patch.object(paged, "empty", given_out):
        paged.paged_attention_with_sums(q, cache, meta, (), AttentionOptions(0.3, window=data.draw(any_window)))
    assert not np.isnan(result).any()
    for whole in (result, levels):
        assert np.all(whole[:3] == 5)
        assert np.all(whole[6:] == 5)


any_window = st.sampled_from([None, 4])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"tables": [[0, 9], [1, 2]]},
            "block table of sequence 0 names block 9 at place 1, but the cache has 4 blocks",
        ),
        ({"tables": [[0, 3], [-1, 9]]}, "block table of sequence 1 names block -1 at place 0"),
        ({"keys": [7, 11]}, "sequence 1 has 11 keys, but there are 2 blocks of 5 for it at most"),
    ],
)
def test_wrong_tables_are_named(cpu: fa.Device, change: dict[str, Any], message: str) -> None:
    spec = KVSpec(1, 8, 4, 5, "paged")
    cache = KVCache.empty(spec, cpu)
    meta = SequenceMeta((0, 1, 2), kv_lens=(7, 8), block_tables=((0, 1), (2, 3)))
    q = fa.ones((2, 1, 8), device=cpu)
    with mock.patch.object(plans, "CHECK", True):
        paged.paged_attention(q, cache, meta, (), AttentionOptions(1.0))
        made: dict[str, Any] = {name: fa.asarray(value, dtype="i32", device=cpu) for name, value in change.items()}
        plans.set_plan(spec, meta, replace(plans.plan_of(spec, meta, cpu), **made))
        with pytest.raises(ValueError, match=message):
            paged.paged_attention(q, cache, meta, (), AttentionOptions(1.0))


def test_places_that_are_not_used_may_hold_anything(cpu: fa.Device) -> None:
    spec = KVSpec(1, 8, 4, 5, "paged")
    meta = SequenceMeta((0, 1), kv_lens=(5,), block_tables=((0, 1),))
    plan = plans.plan_of(spec, meta, cpu)
    plan.tables[0, 1] = 77
    plans.check_tables(spec, plan)


# What the rows refuse.


def test_what_is_refused(cpu: fa.Device) -> None:
    def refusal(dim: int, sequences: int = 1, sinks: fa.Tensor | None = None) -> str | None:
        cache = KVCache.empty(KVSpec(1, dim, 1, 1, "paged", value_dim=16), cpu)
        meta = SequenceMeta((0,) * (sequences + 1), block_tables=((0,),) * sequences)
        return paged.refuses(fa.ones((0, 1, dim)), cache, meta, (), AttentionOptions(1.0, sinks=sinks))

    assert refusal(512) is None
    assert refusal(16, 65535) is None
    assert refusal(513) == "takes heads of up to 512, not 513+16"
    assert refusal(16, 65536) == "takes up to 65535 sequences, not 65536"
    assert refusal(16, sinks=fa.ones(1, dtype="f64")) == "does not take float64 sinks"


def test_more_blocks_than_a_grid_has_are_refused() -> None:
    spec = SimpleNamespace(head_dim=128, value_dim=128, kv_heads=1)
    cache, options = SimpleNamespace(spec=spec), AttentionOptions(1.0, True, None, None, None)
    for tokens, reason in (
        (65535 * 2, None),
        (65535 * 2 + 1, "takes up to 1048560 queries for each head of keys, not 1048568"),
    ):
        q = SimpleNamespace(shape=(tokens, 8, 128))
        meta = SimpleNamespace(lengths=(tokens,))
        assert paged.refuses(q, cache, meta, (), options) == reason
