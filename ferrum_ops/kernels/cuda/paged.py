"""Rows of ``paged_attention``: decode over split keys, prompts over block tables, and batches of both."""

from __future__ import annotations

from functools import cache
from typing import Final, NamedTuple

import ferrum_array as fa
from ferrum_array import Dtype, Tensor
from ferrum_ops.kernels.cuda import plans
from ferrum_ops.kernels.cuda.launch import Kernel, empty, power_of_two, processors
from ferrum_ops.kernels.cuda.layouts import heads
from ferrum_ops.kernels.cuda.plans import ReadPlan, reading_plan
from ferrum_ops.kernels.cuda.source import paged as source
from ferrum_ops.kv_cache import KVCache, KVSpec
from ferrum_ops.tiled import AttentionOptions
from ferrum_ops.types import SequenceMeta

__all__ = ["Config", "attended", "paged_attention", "paged_attention_with_sums", "refuses"]

_ATTEND: Final = Kernel(source.attend, aligned=("kv_heads", "q_token", "q_head"))
_COMBINE: Final = Kernel(source.combine)

#: the longest keys and values for which there are registers
_LONGEST: Final = 512
_MOST_SPLITS: Final = 128
#: programs along the second and third axis of a grid
_MOST_BLOCKS: Final = 65535
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
    if config is None:
        config = _config(power_of_two(most * group), spec.head_dim, spec.value_dim, q.dtype, spec.dtype)
    blocks = -(-most * group // config.rows)
    splits = splits or _splits(plan.sequences * spec.kv_heads * blocks, reach, processors(q.device))
    parts = part_sums = None
    if splits > 1:
        rows = plan.sequences * most * head_count * splits
        parts = empty((rows, spec.value_dim), q, fa.float32)
        part_sums = empty((rows,), q, fa.float32)
    x, q_token, q_head = heads(q)
    width = plan.tables._data.shape[1]
    ring = spec.layout == "ring"
    exact = q.dtype is fa.float32 or spec.dtype is fa.float32
    _ATTEND(
        (spec.kv_heads, blocks * splits, plan.sequences),
        *(x, cache.k, cache.v, cache.k_scale, cache.v_scale, options.sinks if splits == 1 else None),
        *(plan.starts, plan.keys, plan.tables, out, sums if splits == 1 else None, parts, part_sums),
        *(tokens, spec.blocks, width, spec.block_size, _WIDEST if ring else min(width * spec.block_size, _WIDEST)),
        *(spec.kv_heads, q_token, q_head, fewest, most, splits),
        *(float(options.scale), None if options.softcap is None else float(options.softcap), window),
        warps=config.warps,
        stages=config.stages,
        SPLIT=splits > 1,
        CAUSAL=bool(options.causal),
        GROUP=group,
        DIM=spec.head_dim,
        VALUE_DIM=spec.value_dim,
        BD=max(16, power_of_two(spec.head_dim)),
        BV=max(16, power_of_two(spec.value_dim)),
        BM=config.rows,
        BN=config.keys,
        PAGE=_page(spec),
        LAYOUT=spec.layout,
        WHOLE=config.whole,
        PRECISION="ieee" if exact else "tf32",
    )
    if splits > 1:
        _COMBINE(
            (head_count, most, plan.sequences),
            *(parts, part_sums, options.sinks, plan.starts, plan.keys, out, sums),
            *(tokens, head_count, fewest, most, splits),
            warps=_COMBINE_WARPS,
            VALUE_DIM=spec.value_dim,
            BV=power_of_two(spec.value_dim),
            BS=power_of_two(splits),
            PIECE=min(_PIECE, power_of_two(splits)),
        )


_COMBINE_WARPS: Final = 2
_PIECE: Final = 16


def _page(spec: KVSpec) -> int:
    """The block size where code is made for it; 0 if it is read when the kernel runs."""
    size = spec.block_size
    return size if spec.layout == "paged" and 16 <= size <= 256 and size & (size - 1) == 0 else 0


@cache
def _config(rows: int, dim: int, value_dim: int, queries: Dtype, held: Dtype) -> Config:
    """For sequences of at most so many rows, tokens times the heads that share keys."""
    wide = max(16, power_of_two(max(dim, value_dim)))
    exact = queries is fa.float32 or held is fa.float32
    if exact:
        return Config(16, 32 if wide <= 128 else 16, 4, 2, False)
    if rows <= 64:
        keys = max(16, min(64, 8192 // wide))
        return Config(max(16, rows), keys, 4, 3, False)
    if wide <= 128:
        return Config(128, 64, 8, 3, True)
    return Config(64, 32 if wide <= 256 else 16, 4, 2, True)


def _splits(programs: int, keys: int, processors: int) -> int:
    """Into how many parts the keys of each sequence go, for so many programs without it."""
    wanted = -(-2 * processors // programs)
    # Lengths may differ much from the bound: a program has no more keys than it takes others to wait.
    wanted = max(wanted, -(-keys // 8192))
    return max(1, min(wanted, -(-keys // 256), _MOST_SPLITS))
