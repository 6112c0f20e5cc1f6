"""Rows of ``attention``: a program has a block of queries, and passes over the keys that they see."""

from __future__ import annotations

from functools import cache
from math import prod
from typing import Final, NamedTuple

import ferrum_array as fa
from ferrum_array import Device, Dtype, Tensor
from ferrum_array.tensor import wrap
from ferrum_ops.kernels.cuda import assembling
from ferrum_ops.kernels.cuda.launch import INTERPRETED, Kernel, capability, empty, power_of_two, processors
from ferrum_ops.kernels.cuda.layouts import in_order
from ferrum_ops.kernels.cuda.maps import Map
from ferrum_ops.kernels.cuda.source import prefill as source
from ferrum_ops.tiled import AttentionOptions
from ferrum_ops.types import SequenceMeta

__all__ = ["Config", "HopperConfig", "attention", "attention_with_sums", "refuses"]

_STEPS: Final = tuple(f"{x}_{step}" for x in "qkv" for step in ("batch", "token", "head"))
_ATTENTION: Final = Kernel(source.attention, aligned=_STEPS)

#: the longest queries and values for which there are registers
_LONGEST: Final = 256
#: with so few keys, the error of rounding weights to 16 bits may not average out
_FEW: Final = 128
#: rows of a block in which heads that share keys are put together
_PACKED: Final = 64
#: of values in 16 bits, in shared memory, the fewest columns: of fewer whose copies do not go ahead, ptxas 12.8 forgets
#: where they lie, which was an illegal address on an H200
_COLUMNS: Final = 64
#: what a descriptor asks of addresses and steps, in bytes
_ALIGNED: Final = 16
#: queries of a group of warps of the kernel for Hopper
_ROWS: Final = 64
#: bytes of keys and values that are to stay in the second cache while blocks of queries pass over them
_CACHED: Final = 40 << 20


class Config(NamedTuple):
    """How the general kernel is compiled: rows and keys of a tile, warps and stages."""

    rows: int
    keys: int
    warps: int
    stages: int


class HopperConfig(NamedTuple):
    """How the kernel for Hopper is compiled: keys of a tile, and the constants that its source explains.

    Of the tiles of a block, each of *parts* consumers leaves out those that it does not see, unless they take *turns*:
    so that at most *stages* tiles may differ.
    """

    keys: int
    stages: int
    slots: int
    turns: bool
    shared: bool
    parts: int


class _Laid(NamedTuple):
    """A tensor [..., T, H, D] whose last axis has no gaps, and its steps, in elements."""

    tensor: Tensor
    batch: int
    token: int
    head: int


class _Call(NamedTuple):
    """What a kernel is to do. With a meta, *batches* counts sequences, and none is longer than *queries* and *keys*."""

    q: _Laid
    k: _Laid
    v: _Laid
    bias: Tensor | None
    meta: SequenceMeta | None
    out: Tensor
    sums: Tensor | None
    batches: int
    queries: int
    keys: int
    heads: int
    group: int
    dim: int
    value_dim: int
    numbers: tuple[float, float | None, int | None]
    causal: bool
    sinks: Tensor | None


def refuses(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, meta: SequenceMeta | None, options: AttentionOptions
) -> str | None:
    """Why the kernels cannot take a call that dtypes and features allow, or None."""
    if max(q.shape[-1], v.shape[-1]) > _LONGEST:
        return f"takes heads of up to {_LONGEST}, not {q.shape[-1]}+{v.shape[-1]}"
    return None


def attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, meta: SequenceMeta | None, options: AttentionOptions
) -> tuple[Tensor, None]:
    """The op without its log-sum-exp."""
    return _attend(q, k, v, bias, meta, options, None), None


def attention_with_sums(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, meta: SequenceMeta | None, options: AttentionOptions
) -> tuple[Tensor, Tensor]:
    """The op."""
    sums = empty(q._data.shape[:-1], q, fa.float32)
    return _attend(q, k, v, bias, meta, options, sums), sums


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    meta: SequenceMeta | None,
    options: AttentionOptions,
    sums: Tensor | None,
) -> Tensor:
    *lead, queries, heads, dim = q._data.shape
    keys, key_heads, value_dim = v._data.shape[-3:]
    out = empty((*lead, queries, heads, value_dim), q)
    if not prod(out._data.shape if sums is None else sums._data.shape):
        return out
    batches = prod(lead)
    if meta is not None:
        batches, queries, keys = len(meta.lengths), max(meta.lengths), max(meta.key_lengths)
    scale = float(options.scale)
    if scale <= 0.0:  # the greatest product must be that of the greatest score
        q, scale = (-q, -scale) if scale < 0.0 else (q * 0.0, 1.0)
    call = _Call(
        _laid(q),
        _laid(k),
        _laid(v),
        None if bias is None else _one_step(_narrow(bias), tuple(lead)),
        meta,
        out,
        sums,
        batches,
        queries,
        keys,
        heads,
        heads // key_heads,
        dim,
        value_dim,
        (
            scale,
            None if options.softcap is None else float(options.softcap),
            None if options.window is None or options.window >= keys else options.window,
        ),
        bool(options.causal),
        None if options.sinks is None else in_order(_narrow(options.sinks)),
    )
    if _fits_hopper(call):
        _on_hopper(call, _hopper_config(call))
    else:
        _general(call)
    return out


def _narrow(x: Tensor) -> Tensor:
    return x.astype(fa.float32) if x.dtype is fa.float64 else x


def _one_step(bias: Tensor, lead: tuple[int, ...]) -> Tensor:
    """*bias* [..., H, Tq, Tk] with one step from batch to batch: a copy where several axes broadcast unalike."""
    first = bias._data.shape[: len(lead)]
    if len(lead) < 2 or prod(first) == 1:
        return bias
    return in_order(fa.broadcast_to(bias, (*lead, *bias._data.shape[len(lead) :])))


def _bias_steps(bias: Tensor, leading: int) -> tuple[int, int, int, int]:
    """The steps of a bias [..., H, Tq, Tk]; 0 along axes of one element."""
    data = bias._data
    steps = [0 if n == 1 else step // data.itemsize for n, step in zip(data.shape, data.strides, strict=True)]
    batch = 0 if not leading else steps[leading - 1]
    return batch, steps[-3], steps[-2], steps[-1]


def _laid(x: Tensor) -> _Laid:
    """*x* [..., T, H, D] and its steps; a copy if the last axis has gaps or the first ones have no one step."""
    data = x._data
    shape = data.shape
    if not data.flags.c_contiguous:
        strides, item = data.strides, data.itemsize
        leading = len(shape) - 3
        even = all(strides[i] == strides[i + 1] * shape[i + 1] for i in range(leading - 1))
        if even and (strides[-1] == item or shape[-1] == 1) and not any(step % item for step in strides):
            batch = strides[leading - 1] // item if leading else shape[0] * (strides[0] // item)
            return _Laid(x, batch, strides[-3] // item, strides[-2] // item)
        x = in_order(x)
    tokens, heads, dim = shape[-3:]
    return _Laid(x, tokens * heads * dim, heads * dim, dim)


def _bulk(x: _Laid) -> bool:
    """Whether descriptors can stand for parts of the tensor."""
    data = x.tensor._data
    _, batch, token, head = x
    if not data.size or (batch | token | head) * data.itemsize % _ALIGNED or batch <= 0 or token <= 0 or head <= 0:
        return False
    return INTERPRETED or data.data.ptr % _ALIGNED == 0


def _whole(x: _Laid) -> _Laid:
    """*x*; a copy where steps or the address are in the way of descriptors, and heads are not."""
    data = x.tensor._data
    if not data.size or data.shape[-1] * data.itemsize % _ALIGNED or _bulk(x):
        return x
    return _laid(wrap(data.copy("C"), x.tensor._spec))


# Any GPU.


def _starts(meta: SequenceMeta, device: Device) -> tuple[Tensor, Tensor]:
    """Where the queries and the keys of each sequence begin and the last ones end, on the device; copied once."""
    key = ("attention starts", device)
    found: tuple[Tensor, Tensor] | None = meta.notes.get(key)
    if found is None:
        ends = [0]
        for length in meta.key_lengths:
            ends.append(ends[-1] + length)
        found = (
            fa.asarray(meta.cu_seqlens, dtype=fa.int32, device=device),
            fa.asarray(ends, dtype=fa.int32, device=device),
        )
        meta.notes[key] = found
    return found


@cache
def _config(rows: int, dim: int, value_dim: int, dtype: Dtype, exact: bool) -> Config:
    """For blocks of heads of these lengths, powers of two; *rows* is how many there are, or many."""
    wide = max(dim, value_dim)
    if dtype is fa.float32:
        return Config(16 if rows <= 16 else 32, 32 if wide <= 128 else 16, 4, 2)
    if rows <= _PACKED:
        return Config(max(16, power_of_two(rows)), 64 if wide <= 128 else 32, 4, 2)
    if exact or wide > 128:
        return Config(64, 64, 4, 2)
    return Config(128, 128 if wide > 64 else 64, 8 if wide > 64 else 4, 3)


def _general(call: _Call) -> None:
    dtype = call.out.dtype
    halves = dtype is not fa.float32  # whose products are long programs without tensor cores
    exact = not halves or call.keys <= _FEW
    pack = call.group if call.queries * call.group <= _PACKED else 1
    rows = call.queries * pack
    dims = max(16, power_of_two(call.dim)), max(16, power_of_two(call.value_dim))
    config = _config(min(rows, 2 * _PACKED), *dims, dtype, exact)
    blocks = -(-rows // config.rows)
    bias = call.bias
    if halves:
        call = call._replace(k=_whole(call.k), v=_whole(call.v))
    bulk = halves and _bulk(call.k) and _bulk(call.v)
    _ATTENTION(
        (call.batches * blocks * (call.heads // pack),),
        *(call.q.tensor, call.k.tensor, call.v.tensor, call.out, call.sums, call.sinks, bias),
        *((None, None) if call.meta is None else _starts(call.meta, call.out.device)),
        *(call.heads, blocks, call.queries, call.keys, *call.q[1:], *call.k[1:], *call.v[1:]),
        *((None,) * 4 if bias is None else _bias_steps(bias, len(call.out._data.shape) - 3)),
        *call.numbers,
        warps=config.warps,
        stages=config.stages,
        GROUP=call.group,
        PACK=pack,
        DIM=call.dim,
        VALUE_DIM=call.value_dim,
        BD=dims[0],
        BV=dims[1] if bulk or not halves or config.rows < _PACKED else max(_COLUMNS, dims[1]),
        BM=config.rows,
        BN=config.keys,
        CAUSAL=call.causal,
        BULK=bulk,
        EXACT=exact,
        WHOLE=halves,
    )


# Hopper.


@cache
def _hopper_kernel() -> Kernel:
    from ferrum_ops.kernels.cuda.source import prefill_hopper

    return Kernel(prefill_hopper.attention)


def _hopper_config(call: _Call) -> HopperConfig:
    """The fastest that were found on an H200."""
    wide, causal = max(call.dim, call.value_dim), call.causal
    if wide > 128:
        return HopperConfig(64, 2, 1, turns=True, shared=call.dim > 128 and call.value_dim > 128, parts=2)
    if wide > 64:
        return HopperConfig(128, 2, 2, turns=True, shared=False, parts=2)
    # Three consumers have registers for the plain kind; of the queries that they share, the last block may lack many.
    if call.queries >= 1280 and call.meta is None and call.numbers[1:] == (None, None):
        if call.keys >= (4096 if causal else 2048):
            return HopperConfig(128, 2, 2, turns=True, shared=False, parts=3)
        if causal:
            return HopperConfig(64, 4, 2, turns=False, shared=False, parts=3)
    if causal and call.keys < 2048:
        return HopperConfig(64, 4, 2, turns=False, shared=False, parts=2)
    return HopperConfig(128, 2, 2, turns=causal, shared=False, parts=2)


def _fits_hopper(call: _Call) -> bool:
    """Whether a call is long, without a bias, and lies as copies in bulk ask for; and the assembler is sound."""
    return (
        call.bias is None
        and call.keys > _FEW
        and call.queries * call.group > _PACKED
        and call.out.dtype is not fa.float32
        and not call.value_dim * call.out._data.itemsize % _ALIGNED
        and capability(call.out.device) == 90
        and assembling.sound()
        and all(map(_bulk, (call.q, call.k, call.v)))
    )


def _blocks(meta: SequenceMeta, rows: int, causal: bool, device: Device) -> Tensor:
    """[blocks, 5]: a block of a sequence, its queries and keys, as the kernel says; those that see most come first."""
    key = ("attention blocks", rows, causal, device)
    found: Tensor | None = meta.notes.get(key)
    if found is None:
        lines = []
        begin = 0
        for first, queries, keys in zip(meta.cu_seqlens, meta.lengths, meta.key_lengths, strict=False):
            for block in range(-(-queries // rows)):
                seen = min(keys, (block + 1) * rows + keys - queries) if causal else keys
                lines.append((-seen, block, first, queries, begin, keys))
            begin += keys
        found = fa.asarray([line[1:] for line in sorted(lines)], dtype=fa.int32, device=device)
        meta.notes[key] = found
    return found


def _on_hopper(call: _Call, config: HopperConfig) -> None:
    batches, queries, keys, heads = call.batches, call.queries, call.keys, call.heads
    rows = _ROWS * config.parts
    blocks, units, table = -(-queries // rows), batches * heads, None
    dims = max(64, power_of_two(call.dim)), max(64, power_of_two(call.value_dim))
    shares = -(-(keys * sum(dims) * 2 * units // call.group) // _CACHED)
    if call.meta is not None:
        table = _blocks(call.meta, rows, call.causal, call.out.device)
        batches, queries, keys = 1, call.q.tensor._data.shape[0], call.k.tensor._data.shape[0]
        blocks, units = 1, table._data.shape[0] * heads
    line = heads * call.value_dim
    _hopper_kernel()(
        (min(processors(call.out.device), blocks * units),),
        _map(call.q, (batches, queries, heads, call.dim), _ROWS, dims[0]),
        _map(call.k, (batches, keys, heads // call.group, call.dim), config.keys, dims[0]),
        _map(call.v, (batches, keys, heads // call.group, call.value_dim), config.keys, dims[1]),
        _map(
            _Laid(call.out, queries * line, line, call.value_dim),
            (batches, queries, heads, call.value_dim),
            _ROWS,
            dims[1],
        ),
        *(call.out, call.sums, call.sinks, table, queries, keys, heads, blocks, units),
        -(-units // shares // call.group) * call.group,
        *call.numbers,
        GROUP=call.group,
        HEAD=call.dim,
        VALUE=call.value_dim,
        BN=config.keys,
        STAGES=config.stages,
        SLOTS=config.slots,
        CAUSAL=call.causal,
        TURNS=config.turns,
        SHARED=config.shared,
        PARTS=config.parts,
    )


def _map(x: _Laid, shape: tuple[int, ...], rows: int, columns: int) -> Map:
    """The tensor [batches, T, H, D] in tiles of so many rows of one head."""
    return Map(x.tensor, shape, (x.batch, x.token, x.head, 1), (1, rows, 1, columns))
