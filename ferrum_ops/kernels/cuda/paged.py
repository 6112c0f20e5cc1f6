"""Rows of ``paged_attention``: decode over split keys, prompts over block tables, and batches of both."""

from __future__ import annotations

from functools import cache
from typing import Any, Final, NamedTuple

import ferrum_array as fa
from ferrum_array import Dtype, Tensor
from ferrum_ops.kernels.cuda import plans
from ferrum_ops.kernels.cuda.launch import INTERPRETED, Kernel, empty, power_of_two, processors
from ferrum_ops.kernels.cuda.layouts import heads, in_order
from ferrum_ops.kernels.cuda.plans import ReadPlan, reading_plan
from ferrum_ops.kernels.cuda.source import paged as source
from ferrum_ops.kernels.cuda.source.parts import combine
from ferrum_ops.kv_cache import KVCache, KVSpec
from ferrum_ops.tiled import AttentionOptions
from ferrum_ops.types import SequenceMeta

__all__ = ["Config", "attended", "paged_attention", "paged_attention_with_sums", "refuses"]

_ATTEND: Final = Kernel(source.attend, aligned=("kv_heads", "q_token", "q_head"))
_COMBINE: Final = Kernel(combine)

#: the longest keys and values for which there are registers
_LONGEST: Final = 512
_MOST_SPLITS: Final = 128
#: programs along the second and third axis of a grid
_MOST_BLOCKS: Final = 65535
_FEWEST_ROWS: Final = 16  # of a block
#: float32 as three parts of fewer bits: as exact as float32 in its sums, and on tensor cores
_EXACT: Final = "tf32x3"
#: with more rows for each processor than this, programs of 128 rows are faster than of 64
_CROWD: Final = 256
#: with so many rows tensor cores read values from shared memory; in 16 bits, best in so many columns
_MANY_ROWS: Final = 64
_COLUMNS: Final = 64
_COMBINE_WARPS: Final = 2
_MERGED: Final = 16  # rows whose parts one program can put together
_UNROLLED: Final = 8  # parts that it asks for at a time
_PIECE: Final = 16  # parts that are put together at a time
#: a window as wide as this sees all that comes before
_WIDEST: Final = (1 << 31) - 1

Tables = tuple[tuple[int, ...], ...]


class Config(NamedTuple):
    """How ``attend`` is compiled: rows and keys of a tile, warps, stages, and whether whole tiles go without masks."""

    rows: int
    keys: int
    warps: int
    stages: int
    whole: bool


def refuses(q: Tensor, cache: KVCache, meta: SequenceMeta, tables: Tables, options: AttentionOptions) -> str | None:
    """Why the kernels cannot take a call that dtypes and features allow, or None."""
    spec = cache.spec
    if max(spec.head_dim, spec.value_dim) > _LONGEST:
        return f"takes heads of up to {_LONGEST}, not {spec.head_dim}+{spec.value_dim}"
    if len(meta.lengths) > _MOST_BLOCKS:
        return f"takes up to {_MOST_BLOCKS} sequences, not {len(meta.lengths)}"
    if (rows := max(meta.lengths, default=0) * (q.shape[1] // spec.kv_heads)) > _MOST_BLOCKS * _FEWEST_ROWS:
        return f"takes up to {_MOST_BLOCKS * _FEWEST_ROWS} queries for each head of keys, not {rows}"
    if options.sinks is not None and options.sinks.dtype is fa.float64:
        return "does not take float64 sinks"
    return None


def paged_attention(
    q: Tensor, cache: KVCache, meta: SequenceMeta, tables: Tables, options: AttentionOptions
) -> tuple[Tensor, None]:
    """The op without its log-sum-exp."""
    return attended(q, cache, reading_plan(cache.spec, meta, q.device), options, None), None


def paged_attention_with_sums(
    q: Tensor, cache: KVCache, meta: SequenceMeta, tables: Tables, options: AttentionOptions
) -> tuple[Tensor, Tensor]:
    """The op."""
    sums = empty(q._data.shape[:2], q, fa.float32)
    return attended(q, cache, reading_plan(cache.spec, meta, q.device), options, sums), sums


def attended(q: Tensor, cache: KVCache, plan: ReadPlan, options: AttentionOptions, sums: Tensor | None) -> Tensor:
    """Attention of queries [T, H, D] to the keys of *plan*; the log-sum-exp goes into *sums* [T, H] if it is given."""
    spec = cache.spec
    tokens, head_count, _ = q._data.shape
    out = empty((tokens, head_count, spec.value_dim), q)
    if not (tokens and head_count and plan.sequences):
        return out
    if plans.CHECK:
        plans.check_tables(spec, plan)
    group = head_count // spec.kv_heads
    most, few = plan.most_tokens, max(1, 16 // group)
    if most * group <= 64 or plan.sequences == 1 or most <= few:
        _attend(q, cache, plan, options, out, sums, 1, most)
    else:  # sequences with few tokens need their keys split, those with many do not
        _attend(q, cache, plan, options, out, sums, 1, few)
        _attend(q, cache, plan, options, out, sums, few + 1, most)
    return out


def _attend(
    q: Tensor,
    cache: KVCache,
    plan: ReadPlan,
    options: AttentionOptions,
    out: Tensor,
    sums: Tensor | None,
    fewest: int,
    most: int,
    config: Config | None = None,
    splits: int = 0,
) -> None:
    """The sequences that have *fewest* to *most* tokens."""
    spec = cache.spec
    tokens, head_count, _ = q._data.shape
    group = head_count // spec.kv_heads
    window = None if options.window is None else min(options.window, _WIDEST)
    reach = plan.most_keys if window is None else min(plan.most_keys, window + most)
    rows = power_of_two(most * group)
    crowded = plan.sequences * spec.kv_heads * most * group > _CROWD * processors(q.device)
    code, constants = _code(spec, q.dtype, rows, crowded, _in_pairs(q, cache, rows))
    config = config or code
    blocks = -(-most * group // config.rows)
    programs = plan.sequences * spec.kv_heads * blocks
    half = q.dtype.itemsize == 2 == spec.dtype.itemsize
    splits = splits or _splits(
        programs, reach, config.keys, processors(q.device), constants["PAIRS"], half, blocks == 1
    )
    split = splits > 1
    parts = None
    if split:  # with a place for the sum of each, behind them all
        parts = empty((plan.sequences * most * head_count * splits * (spec.value_dim + 1),), q, fa.float32)
    x, q_token, q_head = heads(q)
    sinks = None if options.sinks is None else in_order(options.sinks)
    # the last program to come puts the parts of its rows together, where one block holds all rows of a head
    merged = split and blocks == 1 and config.rows <= _MERGED and spec.kv_heads <= plans.COUNTED_HEADS
    whole = merged or not split  # one launch writes what is asked for
    width = plan.tables._data.shape[1]
    _ATTEND(
        (spec.kv_heads, blocks * splits, plan.sequences),
        *(x, in_order(cache.k), in_order(cache.v), cache.k_scale, cache.v_scale, sinks if whole else None),
        *(plan.starts, plan.keys, plan.tables, out, sums if whole else None, parts),
        plan.arrivals if merged else None,
        *(tokens, spec.blocks, width, spec.block_size, _room(spec, width), spec.kv_heads, q_token, q_head),
        *(fewest, most, splits),
        *(float(options.scale), None if options.softcap is None else float(options.softcap), window),
        warps=config.warps,
        stages=config.stages,
        SPLIT=split,
        CAUSAL=bool(options.causal),
        BM=config.rows,
        BN=config.keys,
        WHOLE=config.whole,
        GROUP=group,
        ROWS=rows if merged else 0,
        PIECE=_UNROLLED if merged else 0,
        **constants,
    )
    if split and not merged:
        _COMBINE(
            (head_count, most, plan.sequences),
            *(parts, sinks, plan.starts, plan.keys, out, sums, tokens, head_count, fewest, most, splits),
            warps=_COMBINE_WARPS,
            VALUE_DIM=spec.value_dim,
            BV=power_of_two(spec.value_dim),
            PIECE=_PIECE,
        )


def _room(spec: KVSpec, width: int) -> int:
    """Beyond so many keys tables of this width lead nowhere; a ring has no such end."""
    return _WIDEST if spec.layout == "ring" else min(width * spec.block_size, _WIDEST)


def _in_pairs(q: Tensor, cache: KVCache, rows: int) -> bool:
    """Whether keys and values of 8 bits are read two by two: for few queries, of 16 bits."""
    spec = cache.spec
    if not spec.quantised or rows > 16 or q.dtype is fa.float32 or spec.head_dim % 2 or spec.value_dim % 2:
        return False
    return INTERPRETED or all(x._data.data.ptr % 2 == 0 for x in (cache.k, cache.v))


@cache
def _code(spec: KVSpec, queries: Dtype, rows: int, crowded: bool, pairs: bool) -> tuple[Config, dict[str, Any]]:
    """For sequences of at most so many rows, tokens times the heads that share keys; and what else is compiled in.

    It is *crowded* where there is work enough for larger programs.
    """
    exact = not pairs and (queries is fa.float32 or spec.dtype is fa.float32)
    size = spec.block_size
    fast = spec.layout == "paged" and 16 <= size <= 256 and size & (size - 1) == 0
    key_block = max(32 if pairs else 16, power_of_two(spec.head_dim))
    value_block = max(16, power_of_two(spec.value_dim))
    constants = {
        "DIM": spec.head_dim,
        "VALUE_DIM": spec.value_dim,
        "BD": key_block,
        "BV": value_block,
        "PAGE": size if fast else 0,  # of other sizes it is read when the kernel runs
        "LAYOUT": spec.layout,
        "PRECISION": _EXACT if exact else "tf32",
        "PAIRS": pairs,
        "ASSEMBLY": not INTERPRETED,
    }
    wide = max(key_block, value_block)
    if exact:
        config = Config(max(16, min(rows, 64 if wide <= 256 else 16)), 32 if wide <= 128 else 16, 4, 2, False)
    elif rows <= 64:
        config = _for_few(rows, wide, pairs, spec.layout == "paged")
    else:
        config = _for_many(wide, crowded, spec.quantised)
    if not exact and config.rows >= _MANY_ROWS and (spec.quantised or spec.value_dim % 8):
        # Such values are not copied ahead of their product. If their rows are swizzled over 32 or 64 bytes, ptxas 12.8
        # may leave registers unset that say where they lie.
        constants["BV"] = max(_COLUMNS, value_block)
    return config, constants


# The fastest that were found on an H200.


def _for_few(rows: int, wide: int, pairs: bool, paged: bool) -> Config:
    keys = max(16, min(64, 8192 // wide))
    stages = 5 if paged else 4  # one goes into looking up blocks
    return Config(16, keys, 2, stages, True) if pairs else Config(max(16, rows), keys, 4, stages, False)


def _for_many(wide: int, crowded: bool, quantised: bool) -> Config:
    if wide > 128:
        return Config(64, 32 if wide <= 256 else 16, 4, 2, True)
    if quantised:
        return Config(64, 128, 4, 3, True)
    return Config(128 if crowded else 64, 64, 4, 3, True)


def _splits(programs: int, keys: int, tile: int, processors: int, pairs: bool, half: bool, decode: bool) -> int:
    """Into how many parts the keys of each sequence go, in whole tiles, for so many programs without it.

    So many that all programs run at once: two on a processor, four of the smaller ones that read pairs. Lengths may
    differ much from the bound, so in *decode*, where a block has all rows of a head, a part has no more keys than
    others can wait for; nor so few that what a part costs counts, which is little where keys are read in pairs or
    queries and keys are of 16 bits (*half*), and parts are not many.
    """
    most, least, few, short = (4, 256, 32, 64) if pairs else (2, 512, 16, 128)
    wanted = max(most * processors // programs, -(-keys // 8192) if decode else 1)
    worth = -(-keys // least)
    if half or pairs:
        worth = max(worth, min(-(-keys // short), few))
    parts = max(1, min(wanted, worth, _MOST_SPLITS))
    tiles = max(1, -(-keys // tile))
    return -(-tiles // -(-tiles // parts))  # so that no part is empty if a sequence is as long as the bound
