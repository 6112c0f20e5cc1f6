"""Kernels of the CPU in captured functions: the same bits as without, whatever changes between replays."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ferrum_array as fa
import ferrum_ops as fo
from ferrum_ops import KVCache, KVSpec, SequenceMeta, cores
from ferrum_ops.placing import place

pytest.importorskip("numba")

HEADS, KV, DIM = 4, 2, 16
HIDDEN = HEADS * DIM


@contextmanager
def threads_are(count: int) -> Iterator[None]:
    before = cores.threads()
    fo.set_threads(count)
    try:
        yield
    finally:
        fo.set_threads(before)


def softmax(x: fa.Tensor) -> fa.Tensor:
    y = fa.exp(x - fa.max(x, axis=-1, keepdims=True))
    return y / fa.sum(y, axis=-1, keepdims=True)


def tensor(random: np.random.Generator, *shape: int, dtype: str = "f32") -> fa.Tensor:
    return fa.asarray(random.standard_normal(shape).astype("f4")).astype(dtype, copy=False)


def same(a: fa.Tensor, b: fa.Tensor) -> bool:
    return a.dtype is b.dtype and np.asarray(a.astype("f64")).tobytes() == np.asarray(b.astype("f64")).tobytes()


class Weights:
    """Enough of everything that programs multiply with."""

    def __init__(self, random: np.random.Generator, dtype: str) -> None:
        self.norm = tensor(random, HIDDEN, dtype=dtype)
        self.square = tensor(random, HIDDEN, HIDDEN, dtype=dtype) / 8
        self.bias = tensor(random, HIDDEN, dtype=dtype)
        self.bits8 = fo.quantize(self.square, "int8")
        self.bits4 = fo.quantize(self.square, "int4-g32")
        self.table = tensor(random, 9, HIDDEN, dtype=dtype)
        self.angles = tensor(random, 5, DIM // 2)


OPS: dict[str, Callable[[fa.Tensor, fa.Tensor, Weights], fa.Tensor]] = {
    "norm": lambda x, y, w: fo.rms_norm(x, w.norm, eps=1e-6),
    "norm of a sum": lambda x, y, w: fo.rms_norm(x, w.norm, eps=1e-6, residual=y)[0],
    "norm of halves": lambda x, y, w: (
        fo.rms_norm(x.reshape(5, 2, HIDDEN // 2)[:, 0], eps=1e-6) @ fa.ones((HIDDEN // 2, HIDDEN), dtype=x.dtype)
    ),
    "layer norm": lambda x, y, w: fo.layer_norm(x, w.norm, w.bias, eps=1e-5, residual=y)[1],
    "l2": lambda x, y, w: fo.l2_norm(x, eps=1e-6),
    "linear": lambda x, y, w: fo.linear(x, w.square, w.bias),
    "linear of gaps": lambda x, y, w: fo.linear(fa.concat([x, y], axis=1)[:, 3 : HIDDEN + 3], w.square),
    "turned": lambda x, y, w: fo.linear(fa.flip(x, axis=1), w.square, x[1]),
    "8 bits": lambda x, y, w: fo.linear(x, w.bits8),
    "4 bits": lambda x, y, w: fo.linear(x, w.bits4),
    "one row": lambda x, y, w: fo.linear(x[2:3], w.bits4) + y,
    "both": lambda x, y, w: sum(fo.linears(x, [w.square, w.bits8], [w.bias, None]), y),
    "gate": lambda x, y, w: fo.gated_linear(x, w.bits4, w.square, kind="silu"),
    "activation": lambda x, y, w: fo.activation(x, kind="gelu"),
    "gated": lambda x, y, w: fo.gated_activation(x, y, kind="silu"),
    "sigmoid": lambda x, y, w: fo.sigmoid_gate(x, y),
    "cap": lambda x, y, w: fo.softcap(x, 3.0),
    "turn": lambda x, y, w: fo.rope(x.reshape(5, HEADS, DIM), fa.cos(w.angles), fa.sin(w.angles)).reshape(5, HIDDEN),
    "attention": lambda x, y, w: fo.attention(*(z.reshape(5, HEADS, DIM) for z in (x, y, x)), causal=True).reshape(
        5, HIDDEN
    ),
    "rows": lambda x, y, w: fo.embedding(w.table, fa.argmax(x, axis=1) % 12, check=False),
    "softmax": lambda x, y, w: softmax(x),
    "sum": lambda x, y, w: x + y,
}

programs = st.lists(
    st.tuples(st.sampled_from(sorted(OPS)), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=8
)


def run(program: list[tuple[str, int, int]], w: Weights, x: fa.Tensor, y: fa.Tensor) -> list[fa.Tensor]:
    found = [x, y]
    for name, a, b in program:
        found.append(OPS[name](found[a % len(found)], found[b % len(found)], w))
    return found


@given(
    program=programs,
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from(["f32", "bf16", "f16"]),
    threads=st.permutations([1, 2, 3]),
)
def test_any_program_of_ops_gives_its_own_bits(
    program: list[tuple[str, int, int]], seed: int, dtype: str, threads: list[int]
) -> None:
    random = np.random.default_rng(seed)
    w = Weights(random, dtype)

    def inputs() -> list[fa.Tensor]:
        return [tensor(random, 5, HIDDEN, dtype=dtype) for _ in range(2)]

    with threads_are(threads[0]):
        captured = fa.capture(lambda x, y: run(program, w, x, y), *inputs())
    for count in threads:
        x, y = inputs()
        with threads_are(count):
            got, want = captured(x, y), run(program, w, x, y)
        assert all(same(a, b) for a, b in zip(got, want, strict=True)), [name for name, _, _ in program]


def test_large_work_is_shared_by_as_many_threads_as_there_are() -> None:
    random = np.random.default_rng(5)
    weight = tensor(random, 512, 700)
    for first in (1, 2):
        with threads_are(first):
            captured = fa.capture(lambda x: fo.activation(fo.linear(x, weight), kind="silu"), tensor(random, 8, 700))
        for count in (1, 2, 3):
            x = tensor(random, 8, 700)
            with threads_are(count):
                assert same(captured(x), fo.activation(fo.linear(x, weight), kind="silu"))


def test_calls_follow_each_other_without_python() -> None:
    random = np.random.default_rng(3)
    w = Weights(random, "bf16")

    def layer(x: fa.Tensor) -> fa.Tensor:
        for _ in range(40):
            x = fo.gated_linear(fo.rms_norm(x, w.norm, eps=1e-6), w.bits4, w.square, kind="silu")
        return x

    captured = fa.capture(layer, tensor(random, 1, HIDDEN, dtype="bf16"))
    assert captured._recording is not None
    assert len(captured._recording._items) == 1
    x = tensor(random, 1, HIDDEN, dtype="bf16")
    assert same(captured(x), layer(x))


def test_memory_stays_as_long_as_the_graph() -> None:
    random = np.random.default_rng(4)
    held = [Weights(random, "bf16")]
    x = tensor(random, 5, HIDDEN, dtype="bf16")
    program = [(name, number, number + 1) for number, name in enumerate(sorted(OPS))]
    captured = fa.capture(lambda x, y: run(program, held[0], x, y)[-1], x, x)
    want = run(program, held[0], x, x)[-1]
    held.clear()
    gc.collect()
    clutter = [np.full(size, 77, "u1") for size in (64, 512, 4096, 8192, 40000) for _ in range(50)]
    assert same(captured(x, x), want)
    assert len(clutter) == 250


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_graph_after_fork() -> None:
    random = np.random.default_rng(6)
    weight, x = tensor(random, 700, 700), tensor(random, 4, 700)
    with threads_are(2):
        captured = fa.capture(lambda x: fo.linear(fo.linear(x, weight), weight), x)
        want = captured(x)
        child = os.fork()
        if child == 0:
            os._exit(0 if all(same(captured(x), want) for _ in range(5)) else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert same(captured(x), want)


# Caches: lengths, blocks and slots are tensors that change from replay to replay.

BLOCKS, BLOCK, WIDTH = 12, 64, 5
BOUND = BLOCK * WIDTH


def cache_of(random: np.random.Generator, dtype: str, layout: str) -> KVCache:
    spec = (
        KVSpec(KV, DIM, BLOCKS, BLOCK, "paged", dtype=dtype)
        if layout == "paged"
        else KVSpec(KV, DIM, 3, BOUND, "contiguous", dtype=dtype)
    )
    cache = KVCache.empty(spec)
    filled = SequenceMeta.packed([spec.slots])
    k, v = (tensor(random, spec.slots, KV, DIM) for _ in range(2))
    slots = SequenceMeta(filled.cu_seqlens, slots=tuple(range(spec.slots)))
    fo.kv_append(cache, k, v, slots)
    return cache


def tensors(cache: KVCache) -> list[fa.Tensor]:
    return [one for one in (cache.k, cache.v, cache.k_scale, cache.v_scale) if one is not None]


@given(
    seed=st.integers(0, 2**32 - 1),
    lengths=st.lists(st.tuples(st.integers(1, BOUND), st.integers(1, BOUND)), min_size=3, max_size=3),
    dtype=st.sampled_from(["f32", "bf16", "int8"]),
    layout=st.sampled_from(["paged", "contiguous"]),
    options=st.sampled_from([{}, {"window": 40}, {"softcap": 5.0}]),
)
def test_attention_reads_lengths_when_it_is_replayed(
    seed: int, lengths: list[tuple[int, int]], dtype: str, layout: str, options: dict[str, Any]
) -> None:
    random = np.random.default_rng(seed)
    cache, twin = (cache_of(np.random.default_rng(seed), dtype, layout) for _ in range(2))
    spec = cache.spec
    width = WIDTH if layout == "paged" else 1
    starts = fa.arange(4, dtype=fa.int32)
    sinks = tensor(random, HEADS)

    def step(q: fa.Tensor, k: fa.Tensor, v: fa.Tensor, keys: fa.Tensor, blocks: fa.Tensor, slots: fa.Tensor) -> Any:
        host = tuple(range(width))
        meta = SequenceMeta((0, 1, 2, 3), kv_lens=(BOUND,) * 3, block_tables=(host,) * 3, slots=(0, 1, 2))
        place(spec, meta, starts=starts, keys=keys, tables=blocks, slots=slots)
        found = q
        for _ in range(2):
            fo.kv_append(cache, k, v, meta)
            found = found + fo.paged_attention(found, cache, meta, sinks=sinks, **options)
        return found

    def drawn(count: tuple[int, ...]) -> tuple[list[fa.Tensor], SequenceMeta]:
        blocks = random.permutation(BLOCKS)[: 2 * WIDTH].tolist()
        # the third sequence is a blank: no keys, and its token goes nowhere
        tables = [blocks[:WIDTH], blocks[WIDTH:], [0] * WIDTH] if layout == "paged" else [[1], [0], [0]]
        places = [table[(n - 1) // spec.block_size] * spec.block_size + (n - 1) % spec.block_size
                  for n, table in zip(count, tables, strict=False)]  # fmt: skip
        x = [tensor(random, 3, heads, DIM, dtype="bf16") for heads in (HEADS, KV, KV)]
        given_ = [*x, fa.asarray([*count, 0], dtype="i32"), fa.asarray(tables, dtype="i32"),
                  fa.asarray([*places, spec.slots], dtype="i64")]  # fmt: skip
        own = tuple(tuple(table) for table in tables[:2])
        return given_, SequenceMeta((0, 1, 2), kv_lens=count, block_tables=own)

    captured = fa.capture(step, *drawn((1, 1))[0], state=tensors(cache))
    for memory, other in zip(tensors(cache), tensors(twin), strict=True):
        other[...] = memory
    for count in lengths:
        given_, meta = drawn(count)
        got = captured(*given_)
        q, k, v = (one[:2] for one in given_[:3])
        want = q
        for _ in range(2):
            fo.kv_append(twin, k, v, meta)
            want = want + fo.paged_attention(want, twin, meta, sinks=sinks, **options)
        assert same(got[:2], want)
        assert same(got[2], given_[0][2]), "a blank reads something"
        assert all(same(a, b) for a, b in zip(tensors(cache), tensors(twin), strict=True))
    assert not captured.moved


def test_references_do_not_take_bounds_for_lengths() -> None:
    cache = KVCache.empty(KVSpec(1, 4, 1, 8, "contiguous", dtype="f64"))
    x = fa.zeros((1, 1, 4), dtype="f64")
    meta = SequenceMeta((0, 1), kv_lens=(8,), slots=(0,))
    numbers = {"starts": fa.arange(2, dtype="i32"), "keys": fa.asarray([3], dtype="i32")}
    place(cache.spec, meta, **numbers, tables=fa.zeros((1, 1), dtype="i32"), slots=fa.asarray([2]))
    for call in (lambda: fo.kv_append(cache, x, x, meta), lambda: fo.paged_attention(x, cache, meta)):
        with pytest.raises(fa.CaptureError, match="the lengths of sequences lie in memory, from which only kernels"):
            call()


def test_more_tokens_than_few_with_lengths_in_memory() -> None:
    cache = KVCache.empty(KVSpec(1, 16, 1, 128, "contiguous"))
    meta = SequenceMeta((0, 99), kv_lens=(128,), slots=tuple(range(99)))
    zeros = fa.zeros((1, 1), dtype="i32")
    place(cache.spec, meta, starts=fa.asarray([0, 99], dtype="i32"), keys=zeros[0], tables=zeros, slots=fa.arange(99))
    with pytest.raises(fa.CaptureError, match="a sequence can have 16 tokens at most, not 99"):
        fo.paged_attention(fa.zeros((99, 2, 16)), cache, meta)


def test_experts_are_run_aside() -> None:
    random = np.random.default_rng(7)
    w13, w2 = tensor(random, 4, 32, 16), tensor(random, 4, 16, 16)

    def experts(x: fa.Tensor) -> fa.Tensor:
        shares = softmax(x[:, :4])
        ids = fa.argsort(shares, axis=-1)[:, 2:]
        return fo.moe_ffn(x, w13, w2, ids, shares[:, 2:])

    captured = fa.capture(experts, tensor(random, 6, 16))
    for _ in range(3):
        x = tensor(random, 6, 16)
        assert same(captured(x), experts(x))
