"""More rows of ``ops_cuda``: products with weights, mixtures of experts, and tokens from logits."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F

import ferrum_array as fa
from benchmarks.cuda_rows import Row, copies, first, fused, normal, shared, taken, turns
from ferrum_ops import QuantTensor, dequantize, explain, grouped_linear, linear, moe_ffn, quantize, sample

__all__ = ["experts", "ffns", "linears", "samples"]

Weights = fa.Tensor | QuantTensor


def again(w: Weights) -> Weights:
    """The same numbers in other memory."""
    if isinstance(w, fa.Tensor):
        return fa.asarray(w, copy=True)
    return dataclasses.replace(w, parts={name: fa.asarray(part, copy=True) for name, part in w.parts.items()})


def weights(w: torch.Tensor, scheme: str) -> Weights:
    """The numbers of *w* in a scheme, or as they are for bf16."""
    return shared(w) if scheme == "bf16" else quantize(shared(w), scheme)


def wide(w: Weights) -> torch.Tensor:
    """What weights stand for, in float64."""
    return taken(w.astype("f32") if isinstance(w, fa.Tensor) else dequantize(w, fa.float32)).double()


def linears(
    device: str, schemes: Sequence[str], rows: Sequence[int] = (1, 4, 16, 64, 4096), out: int = 12288, size: int = 4096
) -> Iterator[Row]:
    """Products with one matrix; its copies take turns, so that every call reads the weights from memory."""
    dense = normal(device, out, size, scale=size**-0.5)
    theirs = [dense.clone() for _ in range(copies(2.0 * out * size))]
    inputs = {n: normal(device, n, size) for n in rows}
    peers = {n: {"linear bf16": [partial(F.linear, x, w) for w in theirs]} for n, x in inputs.items()}
    for scheme in schemes:
        base = weights(dense, scheme)
        turning = [base, *(again(base) for _ in range(copies(base.nbytes) - 1))]
        for n, x in inputs.items():
            given, few = shared(x), slice(0, 64)

            def exact(x: torch.Tensor = x[few], base: Weights = base) -> torch.Tensor:
                return x.double() @ wide(base).T

            yield Row(
                f"linear {n}x{size} to {out}, {scheme}",
                explain(linear, given, base).runs,
                [partial(linear, given, w) for w in turning],
                peers[n],
                exact,
                lambda result, few=few: first(result)[few],
                base.nbytes + 2.0 * n * (size + out),
                2.0 * n * size * out,
                unlike=() if scheme == "bf16" else ("linear bf16",),
            )


def experts(device: str, rows: int = 32768, count: int = 128, size: int = 2048, out: int = 768) -> Iterator[Row]:
    """Rows sorted by expert, each with the matrix of its expert: as many rows for each, or as many as come."""
    w = normal(device, count, out, size, scale=size**-0.5)
    xs = [normal(device, rows, size) for _ in range(copies(2.0 * rows * size))]
    given = list(map(shared, xs))
    even = torch.arange(count + 1, device=device) * (rows // count)
    drawn = torch.bincount(torch.randint(count, (rows,), device=device), minlength=count)
    uneven = torch.cat((even[:1], drawn.cumsum(0)))
    for what, scheme, offsets in (("even", "bf16", even), ("uneven", "bf16", uneven), ("uneven", "int4-g128", uneven)):
        base, places, ends = weights(w, scheme), shared(offsets), offsets[1:].int()

        def theirs(x: torch.Tensor, ends: torch.Tensor = ends) -> torch.Tensor:
            return F.grouped_mm(x, w.transpose(1, 2), offs=ends)

        def exact(base: Weights = base, offsets: torch.Tensor = offsets) -> torch.Tensor:
            bounds = enumerate(pairwise(offsets.tolist()))
            return torch.cat([xs[0][a:b].double() @ wide(base[e : e + 1])[0].T for e, (a, b) in bounds])

        yield Row(
            f"grouped_linear, {count} experts, {rows}x{size} to {out}, {what}, {scheme}",
            explain(grouped_linear, given[0], base, places).runs,
            [partial(grouped_linear, x, base, places) for x in given],
            {"grouped_mm bf16": turns(theirs, xs)},
            exact,
            first,
            base.nbytes + 2.0 * rows * (size + out),
            2.0 * rows * size * out,
            unlike=() if scheme == "bf16" else ("grouped_mm bf16",),
        )


def ffns(
    device: str,
    tokens: Sequence[int] = (1, 8, 64, 4096),
    schemes: Sequence[str] = ("bf16", "int4-g128"),
    count: int = 128,
    chosen: int = 8,
    size: int = 2048,
    inner: int = 768,
) -> Iterator[Row]:
    """Feed-forward layers of a mixture of experts; the tokens of each call have experts of their own."""
    dense = (
        normal(device, count, 2 * inner, size, scale=size**-0.5),
        normal(device, count, size, inner, scale=inner**-0.5),
    )
    calls = 8

    def grouped(x: torch.Tensor, ids: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
        sorted_ids, order = ids.flatten().sort(stable=True)
        ends = torch.searchsorted(sorted_ids, torch.arange(count, device=ids.device), right=True).int()
        token = order // chosen
        gate, up = F.grouped_mm(x[token], dense[0].transpose(1, 2), offs=ends).chunk(2, -1)
        y = F.grouped_mm(F.silu(gate) * up, dense[1].transpose(1, 2), offs=ends)
        y = y * shares.flatten()[order, None].to(x.dtype)
        return torch.zeros_like(x).index_add_(0, token, y)

    for n in tokens:
        xs = [normal(device, n, size) for _ in range(calls)]
        drawn = [torch.rand(n, count, device=device).topk(chosen).indices for _ in range(calls)]
        shares = [torch.rand(n, chosen, device=device).softmax(-1) for _ in range(calls)]
        theirs = {"grouped_mm bf16": turns(grouped, xs, drawn, shares)}
        given = [list(map(shared, one)) for one in (xs, drawn, shares)]
        met = sum(len(torch.unique(ids)) for ids in drawn) / calls
        for scheme in schemes:
            w13, w2 = (weights(w, scheme) for w in dense)

            def exact(
                x: torch.Tensor = xs[0],
                ids: torch.Tensor = drawn[0],
                shares: torch.Tensor = shares[0],
                w13: Weights = w13,
                w2: Weights = w2,
            ) -> torch.Tensor:
                total = torch.zeros(len(x[:16]), size, dtype=torch.float64, device=device)
                for e in torch.unique(ids[:16]).tolist():
                    token, place = torch.where(ids[:16] == e)
                    gate, up = (x[token].double() @ wide(w13[e : e + 1])[0].T).chunk(2, -1)
                    y = F.silu(gate) * up @ wide(w2[e : e + 1])[0].T
                    total.index_add_(0, token, y * shares[token, place, None].double())
                return total

            yield Row(
                f"moe_ffn, {count} experts top {chosen}, {n}x{size}, inner {inner}, {scheme}",
                explain(moe_ffn, given[0][0], w13, w2, given[1][0], given[2][0]).runs,
                [partial(moe_ffn, x, w13, w2, ids, w) for x, ids, w in zip(*given, strict=True)],
                theirs,
                exact,
                lambda result: first(result)[:16],
                (w13.nbytes + w2.nbytes) * met / count + 4.0 * n * size,
                6.0 * n * chosen * size * inner,
                unlike=() if scheme == "bf16" else ("grouped_mm bf16",),
            )


def samples(device: str, rows: Sequence[int] = (1, 32), vocabulary: int = 151936) -> Iterator[Row]:
    """The likeliest token, and one that is drawn."""
    for n in rows:
        count = copies(4.0 * n * vocabulary)
        logits = [normal(device, n, vocabulary, scale=4.0, dtype=torch.float32) for _ in range(count)]
        us = [torch.rand(n, device=device) for _ in range(count)]
        given, chances = list(map(shared, logits)), list(map(shared, us))

        def likeliest(x: torch.Tensor) -> torch.Tensor:
            return x.argmax(-1)

        def drawn(x: torch.Tensor) -> torch.Tensor:
            return x.softmax(-1).multinomial(1)

        def raced(x: torch.Tensor) -> torch.Tensor:
            return (x - torch.empty_like(x).exponential_().log()).argmax(-1)

        def inverse(logits: torch.Tensor = logits[0], u: torch.Tensor = us[0]) -> torch.Tensor:
            below = logits.double().softmax(-1).cumsum(-1)
            return torch.searchsorted(below, u.double()[:, None], right=True)[:, 0].double()

        def ids(result: Any) -> torch.Tensor:
            return taken(result).double()

        held = 4.0 * n * vocabulary
        yield Row(
            f"the likeliest of {n}x{vocabulary} logits",
            explain(sample, given[0]).runs,
            turns(sample, given),
            {"argmax": turns(likeliest, logits)},
            lambda x=logits[0]: x.argmax(-1).double(),
            ids,
            held,
            within="exact",
        )
        peers = {"softmax, multinomial": turns(drawn, logits), **fused(device, raced, logits)}
        yield Row(
            f"a token drawn from {n}x{vocabulary} logits",
            explain(sample, given[0], chances[0]).runs,
            turns(sample, given, chances),
            peers,
            inverse,
            ids,
            held,
            within="exact",
            unlike=tuple(peers),
        )
