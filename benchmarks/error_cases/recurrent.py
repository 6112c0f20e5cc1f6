"""The parts of a gated delta net."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, get_args

import numpy as np
from scipy import special

from benchmarks.ops_error import Draw, Results, case
from ferrum_ops import ActivationKind, SequenceMeta, causal_conv1d, gated_delta_rule, gdn_gates
from tests.array.oracle import to_dtype, wide
from tests.ops.test_activation import EXACT
from tests.ops.test_delta_rule import exact as exact_rule
from tests.ops.test_recurrent import exact_conv


def packed(draw: Draw, longest: int) -> tuple[SequenceMeta, list[tuple[int, int]]]:
    """Some sequences, and where each begins and ends."""
    lengths = [draw.between(1, longest) for _ in range(draw.one_of(1, 1, 3))]
    meta = SequenceMeta.packed(lengths)
    return meta, list(pairwise(meta.cu_seqlens))


@case("causal_conv1d")
def _causal_conv1d(draw: Draw) -> Results:
    meta, places = packed(draw, 50)
    channels, width = draw.between(16, 256), draw.one_of(2, 3, 4)
    x, x64 = draw.noise(meta.tokens, channels)
    w, w64 = draw.noise(channels, width)
    bias, b64 = draw.noise(channels) if draw.flag() else (None, None)
    state, s64 = draw.noise(len(places), width - 1, channels)
    kind = draw.one_of(None, "silu", *get_args(ActivationKind))
    y, last = draw.call(causal_conv1d, x, w, state, meta, bias=bias, activation=kind)
    pieces = [exact_conv(x64[a:b], w64, s, b64) for (a, b), s in zip(places, s64, strict=True)]
    linear = np.concatenate([piece for piece, _ in pieces])
    yield y, linear if kind is None else EXACT[kind](linear)
    yield last, wide(to_dtype(np.stack([state for _, state in pieces]), draw.dtype))


@case("gdn_gates")
def _gdn_gates(draw: Draw) -> Results:
    shape = (draw.between(1, 100), draw.between(16, 64))
    (a, a64), (b, b64) = (draw.tensor(draw.values(*shape) * draw.one_of(1.0, 5.0)) for _ in range(2))
    (log, log64), (dt, dt64) = (draw.noise(shape[1], dtype=draw.one_of(draw.dtype, draw.wide)) for _ in range(2))
    g, beta = draw.call(gdn_gates, a, b, log, dt)
    yield g, -np.exp(log64) * np.logaddexp(a64 + dt64, 0)
    yield beta, special.expit(b64)


@case("gated_delta_rule")
def _gated_delta_rule(draw: Draw) -> Results:
    meta, places = packed(draw, 90)
    key_heads, size, value_size = draw.one_of(1, 2), draw.one_of(8, 16, 32), draw.one_of(8, 24)
    heads = key_heads * draw.one_of(1, 2)
    normalize = draw.flag()
    q, q64 = draw.noise(meta.tokens, key_heads, size)
    keys = draw.values(meta.tokens, key_heads, size)
    # where the op does not do it, a layer does: longer keys make the state explode
    k, k64 = draw.tensor(keys if normalize else keys / np.linalg.norm(keys, axis=-1, keepdims=True))
    v, v64 = draw.noise(meta.tokens, heads, value_size)
    gates: dict[str, Any] = {
        "g": draw.tensor(-draw.one_of(0.05, 1.0) * draw.rng.exponential(size=(meta.tokens, heads)), draw.wide),
        "beta": draw.tensor(draw.rng.random((meta.tokens, heads)), draw.wide),
    }
    state, s64 = draw.noise(len(places), heads, size, value_size, dtype=draw.wide)
    options = {"use_qk_l2norm": normalize, "chunk_size": draw.one_of(None, None, 1, 16)}
    given = [gates[name][0] for name in ("g", "beta")]
    o, last = draw.call(gated_delta_rule, q, k, v, *given, state, meta, **options)
    held = [q64, k64, v64, *(gates[name][1] for name in ("g", "beta"))]
    parts = [exact_rule(*(x[a:b] for x in held), s64[i], size**-0.5, normalize) for i, (a, b) in enumerate(places)]
    yield o, np.concatenate([part for part, _ in parts])
    yield last, np.stack([after for _, after in parts])
