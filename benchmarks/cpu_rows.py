"""The rows of ``ops_cpu``: a call of ours, PyTorch's ways to do the same, and the result in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

import ferrum_array as fa
from ferrum_ops import (
    KVCache,
    KVSpec,
    SequenceMeta,
    attention,
    explain,
    gated_activation,
    kv_append,
    linear,
    moe_ffn,
    paged_attention,
    quantize,
    rms_norm,
    rope,
    rope_table,
)

__all__ = ["GROUPS", "Call", "Row", "check"]

Array = np.ndarray[Any, Any]
Call = Callable[[], Any]

#: how far a result may be from float64's, as the L2 norm of the difference over that of the result
_CLOSE = {"f32": 1e-5, "bf16": 1e-2, "int8": 3e-2, "int4": 0.2}
#: weights that together are larger than any cache of the processor, in bytes
_BEYOND_CACHES = 1 << 29


@dataclass
class Row:
    """What is compared.

    Attributes:
        name: of the row.
        target: our time over PyTorch's least.
        runs: the implementation of ours that runs.
        ours: our call.
        peers: PyTorch's ways, by name.
        exact: the result in float64.
        within: how far results may be from it, by name; ``ours`` is ours.
    """

    name: str
    target: float
    runs: str
    ours: Call
    peers: dict[str, Call]
    exact: Array
    within: dict[str, str]


def normal(*shape: int, seed: int = 0) -> Array:
    """Normal numbers in float32, the same at every run."""
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def both(values: Array, dtype: str) -> tuple[fa.Tensor, torch.Tensor, Array]:
    """The numbers for us and for PyTorch, and what they are in *dtype*, in float64."""
    given = fa.asarray(values).astype(dtype)
    theirs = torch.from_numpy(values).to({"f32": torch.float32, "bf16": torch.bfloat16}[dtype])
    return given, theirs, theirs.double().numpy()


def plain(x: Any) -> Array:
    """A result in float64."""
    if isinstance(x, torch.Tensor):
        return x.double().numpy()
    wide: Array = np.asarray(x.astype("f64"))
    return wide


def norms() -> Iterator[Row]:
    """RMSNorm."""
    for dtype in ("f32", "bf16"):
        x, tx, ex = both(normal(512, 4096), dtype)
        w, tw, ew = both(1 + 0.1 * normal(4096, seed=1), dtype)
        exact = ex / np.sqrt((ex**2).mean(-1, keepdims=True) + 1e-6) * ew
        yield Row(
            f"RMSNorm 512x4096 {dtype}",
            0.2,
            explain(rms_norm, x, w, eps=1e-6).runs,
            partial(rms_norm, x, w, eps=1e-6),
            {"rms_norm": partial(F.rms_norm, tx, (4096,), tw, 1e-6)},
            exact,
            {"ours": dtype, "rms_norm": dtype},
        )


def gates() -> Iterator[Row]:
    """The gated activation of feed-forward layers."""

    def gated(g: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        return F.silu(g) * u

    for dtype in ("f32", "bf16"):
        g, tg, eg = both(normal(512, 4096), dtype)
        u, tu, eu = both(normal(512, 4096, seed=1), dtype)
        yield Row(
            f"gated activation, SiLU, 512x4096 {dtype}",
            0.2,
            explain(gated_activation, g, u, "silu").runs,
            partial(gated_activation, g, u, "silu"),
            {"silu(g) * u": partial(gated, tg, tu)},
            eg / (1 + np.exp(-eg)) * eu,
            {"ours": dtype, "silu(g) * u": dtype},
        )


def ropes() -> Iterator[Row]:
    """Rotary embedding of queries."""
    cos, sin = rope_table(list(range(512)), 128, 10000.0)
    tcos, tsin = (torch.from_numpy(np.asarray(t))[:, None] for t in (cos, sin))
    tcos2, tsin2 = (torch.cat((t, t), -1) for t in (tcos, tsin))

    def halves(x: torch.Tensor) -> torch.Tensor:
        c, s = tcos2.to(x.dtype), tsin2.to(x.dtype)
        return x * c + torch.cat((-x[..., 64:], x[..., :64]), -1) * s

    for dtype in ("f32", "bf16"):
        x, tx, ex = both(normal(512, 32, 128), dtype)
        c, s = tcos.double().numpy(), tsin.double().numpy()
        a, b = ex[..., :64], ex[..., 64:]
        yield Row(
            f"RoPE 512x32x128 {dtype}",
            0.3,
            explain(rope, x, cos, sin).runs,
            partial(rope, x, cos, sin),
            {"x * cos + rotate_half(x) * sin": partial(halves, tx)},
            np.concatenate((a * c - b * s, b * c + a * s), -1),
            {"ours": dtype, "x * cos + rotate_half(x) * sin": dtype},
        )


def softmax(scores: Array) -> Array:
    """Along the last axis."""
    e = np.exp(scores - scores.max(-1, keepdims=True))
    out: Array = e / e.sum(-1, keepdims=True)
    return out


def attended(q: Array, k: Array, v: Array, *, causal: bool) -> Array:
    """Attention by its definition: [T, H, D] each."""
    group = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, group, 1), np.repeat(v, group, 1)
    scores = np.einsum("qhd,khd->hqk", q, k, optimize=True) / np.sqrt(q.shape[-1])
    if causal:
        hidden = np.triu(np.ones(scores.shape[1:], bool), 1 + scores.shape[2] - scores.shape[1])
        scores[:, hidden] = -np.inf
    out: Array = np.einsum("hqk,khd->qhd", softmax(scores), v, optimize=True)
    return out


def prefills() -> Iterator[Row]:
    """Attention of a prompt."""
    for size in (64, 128):
        made = [both(normal(1, 1024, heads, size, seed=i), "f32") for i, heads in enumerate((16, 4, 4))]
        (q, tq, eq), (k, tk, ek), (v, tv, ev) = made
        # PyTorch's layout is heads first; it reads ours through strides, or gets its own for free
        strided = [t.transpose(1, 2) for t in (tq, tk, tv)]
        own = [t.contiguous() for t in strided]

        def theirs(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2)

        yield Row(
            f"causal attention 1x16/4x1024x{size} f32",
            0.9,
            explain(attention, q, k, v).runs,
            partial(attention, q, k, v),
            {"SDPA, its layout": partial(theirs, *own), "SDPA, token-major": partial(theirs, *strided)},
            attended(eq[0], ek[0], ev[0], causal=True)[None],
            {"ours": "f32", "SDPA, its layout": "f32", "SDPA, token-major": "f32"},
        )


def decodes() -> Iterator[Row]:
    """Attention of one new token over a cache."""
    keys, heads, kv_heads, size = 4096, 32, 8, 128
    q, tq, eq = both(normal(1, heads, size), "f32")
    k, tk, ek = both(normal(keys, kv_heads, size, seed=1), "f32")
    v, tv, ev = both(normal(keys, kv_heads, size, seed=2), "f32")
    own = [t.transpose(0, 1)[None].contiguous() for t in (tq, tk, tv)]

    def theirs(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)[0].transpose(0, 1)

    half = [t.bfloat16() for t in own]
    exact = attended(eq, ek, ev, causal=False)
    for dtype, target in (("f32", 0.5), ("int8", 0.3)):
        cache = KVCache.empty(
            KVSpec(kv_heads, size, keys // 16, 16, "paged", fa.int8 if dtype == "int8" else fa.float32)
        )
        table = tuple(int(i) for i in np.random.default_rng(3).permutation(keys // 16))
        kv_append(cache, k, v, SequenceMeta((0, keys), block_tables=(table,)))
        meta = SequenceMeta((0, 1), kv_lens=(keys,), block_tables=(table,))
        yield Row(
            f"decode {heads}/{kv_heads} heads {keys} keys, paged cache {dtype}",
            target,
            explain(paged_attention, q, cache, meta).runs,
            partial(paged_attention, q, cache, meta),
            {"SDPA f32": partial(theirs, *own), "SDPA bf16": partial(theirs, *half)}
            if dtype == "int8"
            else {"SDPA f32": partial(theirs, *own)},
            exact,
            {"ours": dtype, "SDPA f32": "f32", "SDPA bf16": "bf16"},
        )


def products() -> Iterator[Row]:
    """Products of many rows."""
    rows, count = 512, 2048
    x, tx, ex = both(normal(rows, count), "bf16")
    w, tw, ew = both(normal(count, count, seed=1) / np.float32(count**0.5), "bf16")
    whole = quantize(w.astype("f32"), "int8-a8")
    for name, target, weights, close in (("bf16", 1.0, w, "bf16"), ("W8A8", 0.55, whole, "int8")):
        yield Row(
            f"GEMM {rows}x{count}x{count} {name}",
            target,
            explain(linear, x, weights).runs,
            partial(linear, x, weights),
            {"linear bf16": partial(F.linear, tx, tw)},
            ex @ ew.T,
            {"ours": close, "linear bf16": "bf16"},
        )


def one_row() -> Iterator[Row]:
    """Products of one row, as in generation: every call finds the weights in memory, none in a cache."""
    count = 4096
    x, tx, ex = both(normal(1, count), "bf16")
    values = normal(count, count, seed=1) / np.float32(count**0.5)
    w, tw, ew = both(values, "bf16")
    copies = _BEYOND_CACHES // tw.nbytes

    def turning(call: Callable[[Any], Any], weights: list[Any]) -> Call:
        turn = cycle(weights)
        return lambda: call(next(turn))

    halves = [tw.clone() for _ in range(copies)]
    narrow = [tw.half() for _ in range(copies)]
    peers = {
        "linear bf16": turning(partial(F.linear, tx), halves),
        "linear f16": turning(partial(F.linear, tx.half()), narrow),
    }
    for name, target, scheme, close in (
        ("bf16", 0.8, None, "bf16"),
        ("W8", 0.4, "int8", "int8"),
        ("W8A8", 0.4, "int8-a8", "int8"),
        ("W4", 0.35, "int4-g128", "int4"),
    ):
        base = w if scheme is None else quantize(w.astype("f32"), scheme)
        held = base.nbytes if isinstance(base, fa.Tensor) else sum(part.nbytes for part in base.parts.values())
        weights = [base, *(fa.asarray(w, copy=True) if scheme is None else quantize(w.astype("f32"), scheme)
                           for _ in range(_BEYOND_CACHES // held - 1))]  # fmt: skip
        yield Row(
            f"GEMV {count}x{count} {name}, out of cache",
            target,
            explain(linear, x, base).runs,
            turning(partial(linear, x), weights),
            peers,
            ex @ ew.T,
            {"ours": close, "linear bf16": "bf16", "linear f16": "bf16"},
        )


def mixtures() -> Iterator[Row]:
    """Feed-forward layers of a mixture of experts."""
    experts, chosen, tokens, hidden, inner = 64, 8, 256, 1024, 512
    rng = np.random.default_rng(0)
    ids = np.argsort(rng.random((tokens, experts)), -1)[:, :chosen]
    shares = rng.random((tokens, chosen), dtype=np.float32)
    tids, tshares = torch.from_numpy(ids), torch.from_numpy(shares)
    for dtype in ("f32", "bf16"):
        x, tx, ex = both(normal(tokens, hidden), dtype)
        w13, t13, e13 = both(normal(experts, 2 * inner, hidden, seed=1) / np.float32(32), dtype)
        w2, t2, e2 = both(normal(experts, hidden, inner, seed=2) / np.float32(23), dtype)

        def loop(x: torch.Tensor, w13: torch.Tensor, w2: torch.Tensor) -> torch.Tensor:
            """As transformers does it: an expert after the other, each with its tokens."""
            out = torch.zeros_like(x)
            for e in range(experts):
                token, place = torch.where(tids == e)
                gate, up = F.linear(x[token], w13[e]).chunk(2, -1)
                y = F.linear(F.silu(gate) * up, w2[e]) * tshares[token, place, None].to(x.dtype)
                out.index_add_(0, token, y)
            return out

        def grouped(x: torch.Tensor, w13: torch.Tensor, w2: torch.Tensor) -> torch.Tensor:
            """Sorted by expert, with PyTorch's grouped products."""
            order = tids.flatten().argsort(stable=True)
            ends = torch.bincount(tids.flatten(), minlength=experts).cumsum(0).int()
            token = order // chosen
            gate, up = F.grouped_mm(x[token], w13.transpose(1, 2), offs=ends).chunk(2, -1)
            y = F.grouped_mm(F.silu(gate) * up, w2.transpose(1, 2), offs=ends)
            y = y * tshares.flatten()[order, None].to(x.dtype)
            return torch.zeros_like(x).index_add_(0, token, y)

        def padded(x: torch.Tensor, w13: torch.Tensor, w2: torch.Tensor) -> torch.Tensor:
            """Every expert's tokens padded to the longest, in one batched product."""
            flat = tids.flatten()
            order = flat.argsort(stable=True)
            counts = torch.bincount(flat, minlength=experts)
            place = torch.arange(len(flat)) - (counts.cumsum(0) - counts)[flat[order]]
            held = x.new_zeros(experts, int(counts.max()), hidden)
            held[flat[order], place] = x[order // chosen]
            gate, up = torch.bmm(held, w13.transpose(1, 2)).chunk(2, -1)
            y = torch.bmm(F.silu(gate) * up, w2.transpose(1, 2))[flat[order], place]
            y = y * tshares.flatten()[order, None].to(x.dtype)
            return torch.zeros_like(x).index_add_(0, order // chosen, y)

        exact = np.zeros_like(ex)
        for e in range(experts):
            token, place = np.nonzero(ids == e)
            gate, up = np.split(ex[token] @ e13[e].T, 2, -1)
            y = gate / (1 + np.exp(-gate)) * up @ e2[e].T
            np.add.at(exact, token, y * shares[token, place, None])
        given = (x, w13, w2, fa.asarray(ids), fa.asarray(shares))
        ways = {"loop": loop, "grouped_mm": grouped, "padded bmm": padded}
        yield Row(
            f"moe_ffn {experts} experts top {chosen}, {tokens}x{hidden}, inner {inner}, {dtype}",
            0.8,
            explain(moe_ffn, *given).runs,
            partial(moe_ffn, *given),
            {name: partial(way, tx, t13, t2) for name, way in ways.items()},
            exact,
            {"ours": dtype, **dict.fromkeys(ways, dtype)},
        )


GROUPS: dict[str, Callable[[], Iterator[Row]]] = {
    "norm": norms,
    "gate": gates,
    "rope": ropes,
    "prefill": prefills,
    "decode": decodes,
    "gemm": products,
    "gemv": one_row,
    "moe": mixtures,
}


def check(row: Row) -> None:
    """Every way must give the result of float64.

    Raises:
        ValueError: naming the one that does not.
    """
    for name, call in {"ours": row.ours, **row.peers}.items():
        found, limit = plain(call()), _CLOSE[row.within[name]]
        error = float(np.linalg.norm(found - row.exact) / np.linalg.norm(row.exact))
        if not error < limit:
            raise ValueError(f"{row.name}: {name} is {error:.2e} from float64, more than {limit}")
