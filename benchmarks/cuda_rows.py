"""The rows of ``ops_cuda``: calls of ours, PyTorch's ways to do the same on the same memory, and float64's result."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

import ferrum_array as fa
from ferrum_ops import (
    KVCache,
    KVSpec,
    SequenceMeta,
    explain,
    gated_activation,
    layer_norm,
    qk_norm_rope,
    rms_norm,
    rope,
    rope_append,
    rope_table,
)

__all__ = [
    "CLOSE", "Call", "Peers", "Row", "copies", "first", "fused", "normal", "norms", "ropes", "shared", "taken", "turns",
]  # fmt: skip

Call = Callable[[], Any]
Peers = dict[str, list[Call]]

#: inputs that take turns are larger than this together, in bytes: several times the cache of any GPU
_BEYOND_CACHES = 1 << 28
#: but so many take turns at most: smaller ones lie in the cache, as in a model whose last op has just written them
_MOST_COPIES = 16
#: how far a result may be from float64's, as the L2 norm of the difference over that of the result
CLOSE = {"bf16": 1e-2, "int8": 3e-2, "fp8_e4m3": 5e-2, "exact": 0.0}


@dataclass
class Row:
    """What is compared. Each call of a list has inputs of its own, and they take turns.

    Attributes:
        name: of the row.
        runs: the implementation of ours that runs.
        ours: our calls.
        peers: PyTorch's ways, by name.
        exact: gives the numbers of the first call in float64, or a sample of them.
        found: what of a result is compared with them.
        nbytes: what one call must read and write.
        flops: what one call must compute.
        within: a name of ``CLOSE``: how far results may be from those in float64.
        unlike: ways whose numbers are others, drawn or of weights that were not rounded; they are not compared.
    """

    name: str
    runs: str
    ours: list[Call]
    peers: Peers
    exact: Callable[[], torch.Tensor]
    found: Callable[[Any], torch.Tensor]
    nbytes: float
    flops: float = 0.0
    within: str = "bf16"
    unlike: tuple[str, ...] = ()


# What all rows need.


def normal(device: str, *shape: int, scale: float = 1.0, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """Normal numbers."""
    return torch.randn(shape, device=device, dtype=dtype) * scale


def shared(x: torch.Tensor) -> fa.Tensor:
    """A tensor of ours on the same memory."""
    return fa.from_dlpack(x)


def taken(x: Any) -> torch.Tensor:
    """A result of either library as PyTorch's tensor."""
    return x if isinstance(x, torch.Tensor) else torch.from_dlpack(x)


def first(x: Any) -> torch.Tensor:
    """The first tensor of a result, as PyTorch's."""
    return taken(x[0] if isinstance(x, tuple) else x)


def copies(nbytes: float) -> int:
    """How many inputs of so many bytes take turns."""
    return int(min(_MOST_COPIES, max(2, -(-_BEYOND_CACHES // nbytes))))


def turns(call: Callable[..., Any], *inputs: Sequence[Any], **options: Any) -> list[Call]:
    """The call with the first of the *inputs*, with the second, and so on."""
    return [partial(call, *one, **options) for one in zip(*inputs, strict=True)]


def fused(device: str, function: Callable[..., Any], *inputs: Sequence[Any]) -> Peers:
    """The function as PyTorch's compiler makes it; on the CPU, where only the rows themselves are tested, nothing."""
    if device == "cpu":
        return {}
    return {"torch.compile": turns(torch.compile(function, dynamic=False), *inputs)}


# Norms, gates and turns.


def norms(device: str, rows: int, size: int = 4096) -> Iterator[Row]:
    """RMSNorm, alone and with the sum before it, layer norm and gated activation."""
    held = 2.0 * rows * size
    count = copies(held)
    xs, rs = ([normal(device, rows, size) for _ in range(count)] for _ in range(2))
    w, b = 1 + normal(device, size, scale=0.1), normal(device, size, scale=0.1)
    ours, others, fw, fb = list(map(shared, xs)), list(map(shared, rs)), shared(w), shared(b)
    x, r, wide, shift = xs[0].double(), rs[0].double(), w.double(), b.double()
    what = f"{rows}x{size}"

    def rms(x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6) * wide

    def plain(x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, (size,), w, 1e-6)

    def added(x: torch.Tensor, r: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        total = x + r
        return F.rms_norm(total, (size,), w, 1e-6), total

    def layer(x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, (size,), w, b, 1e-6)

    def gated(g: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        return F.silu(g) * u

    yield Row(
        f"RMSNorm {what}",
        explain(rms_norm, ours[0], fw, eps=1e-6).runs,
        [partial(rms_norm, one, fw, eps=1e-6) for one in ours],
        {"rms_norm": turns(plain, xs)},
        lambda: rms(x),
        first,
        2 * held,
    )
    yield Row(
        f"RMSNorm with residual {what}",
        explain(rms_norm, ours[0], fw, eps=1e-6, residual=others[0]).runs,
        [partial(rms_norm, one, fw, eps=1e-6, residual=other) for one, other in zip(ours, others, strict=True)],
        {"x + r, rms_norm": turns(added, xs, rs), **fused(device, added, xs, rs)},
        lambda: rms((x + r).bfloat16().double()),
        first,
        4 * held,
    )
    yield Row(
        f"layer norm {what}",
        explain(layer_norm, ours[0], fw, fb, eps=1e-6).runs,
        [partial(layer_norm, one, fw, fb, eps=1e-6) for one in ours],
        {"layer_norm": turns(layer, xs)},
        lambda: (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-6).sqrt() * wide + shift,
        first,
        2 * held,
    )
    yield Row(
        f"gated activation, SiLU, {what}",
        explain(gated_activation, ours[0], others[0], "silu").runs,
        turns(gated_activation, ours, others, ["silu"] * count),
        {"silu(g) * u": turns(gated, xs, rs), **fused(device, gated, xs, rs)},
        lambda: x * torch.sigmoid(x) * r,
        first,
        3 * held,
    )


def ropes(device: str, rows: int, heads: int = 32, kv_heads: int = 8, size: int = 128) -> Iterator[Row]:
    """Turns of heads: alone, with the norms before them, and with these and the write into a cache after them."""
    held = 2.0 * rows * heads * size
    count = copies(held)
    qs = [normal(device, rows, heads, size) for _ in range(count)]
    ks, vs = ([normal(device, rows, kv_heads, size) for _ in range(count)] for _ in range(2))
    w = 1 + normal(device, size, scale=0.1)
    fq, fk, fv, fw = list(map(shared, qs)), list(map(shared, ks)), list(map(shared, vs)), shared(w)
    cos, sin = rope_table(list(range(rows)), size, 10000.0, device=device)
    c, s = (taken(t)[:, None] for t in (cos, sin))
    cc, ss = (torch.cat((t, t), -1).bfloat16() for t in (c, s))

    def turned(x: torch.Tensor) -> torch.Tensor:
        half = x.shape[-1] // 2
        return x * cc + torch.cat((-x[..., half:], x[..., :half]), -1) * ss

    def both(q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return turned(F.rms_norm(q, (size,), w, 1e-6)), turned(F.rms_norm(k, (size,), w, 1e-6))

    def exact(x: torch.Tensor, *, norm: bool) -> torch.Tensor:
        x = x.double()
        if norm:
            x = x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6) * w.double()
        a, b = x.chunk(2, -1)
        return torch.cat((a * c.double() - b * s.double(), b * c.double() + a * s.double()), -1)

    what, name = f"{rows}x{heads}x{size}", "x * cos + rotate_half(x) * sin"
    yield Row(
        f"RoPE {what}",
        explain(rope, fq[0], cos, sin).runs,
        [partial(rope, one, cos, sin) for one in fq],
        {name: turns(turned, qs), **fused(device, turned, qs)},
        lambda: exact(qs[0], norm=False),
        first,
        2 * held + 4.0 * rows * size,
    )
    small = held * kv_heads / heads
    what = f"{rows}x{heads}/{kv_heads}x{size}"
    yield Row(
        f"norms of heads and RoPE {what}",
        explain(qk_norm_rope, fq[0], fk[0], fw, fw, cos, sin, eps=1e-6).runs,
        [partial(qk_norm_rope, q, k, fw, fw, cos, sin, eps=1e-6) for q, k in zip(fq, fk, strict=True)],
        {"rms_norm, RoPE": turns(both, qs, ks), **fused(device, both, qs, ks)},
        lambda: exact(qs[0], norm=True),
        first,
        2 * (held + small) + 4.0 * rows * size,
    )
    meta = SequenceMeta.packed([rows])
    spec = KVSpec(kv_heads, size, 1, rows, "contiguous", fa.bfloat16)
    caches = [KVCache.empty(spec, device) for _ in range(count)]
    held_k, held_v = ([torch.zeros_like(k) for k in ks] for _ in range(2))
    slots = torch.arange(rows, device=device)

    def written(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, to_k: torch.Tensor, to_v: torch.Tensor
    ) -> torch.Tensor:
        q, k = both(q, k)
        to_k.index_copy_(0, slots, k)
        to_v.index_copy_(0, slots, v)
        return q

    given = (qs, ks, vs, held_k, held_v)
    yield Row(
        f"norms of heads, RoPE and cache write {what}",
        explain(rope_append, caches[0], fq[0], fk[0], fv[0], cos, sin, meta, wq=fw, wk=fw, eps=1e-6).runs,
        [
            partial(rope_append, cache, q, k, v, cos, sin, meta, wq=fw, wk=fw, eps=1e-6)
            for cache, q, k, v in zip(caches, fq, fk, fv, strict=True)
        ],
        {"rms_norm, RoPE, index_copy": turns(written, *given), **fused(device, written, *given)},
        lambda: exact(qs[0], norm=True),
        first,
        2 * (held + 2 * small) + 4.0 * rows * size,
    )
