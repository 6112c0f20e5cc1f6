"""Attention."""

from __future__ import annotations

from typing import Any

import numpy as np

import ferrum_array as fa
from benchmarks.ops_error import Draw, Results, case
from ferrum_ops import attention
from tests.ops.oracle import Array
from tests.ops.test_attention import exact_attention


def options_of(draw: Draw, heads: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Causal or not, window, cap and sinks, as tensors and as what they hold."""
    causal = draw.flag()
    options: dict[str, Any] = {
        "causal": causal,
        "window": draw.one_of(None, None, 1, 7, 40) if causal else None,
        "softcap": draw.one_of(None, None, 5.0, 30.0),
        "scale": draw.one_of(None, None, 0.3),
    }
    exact = dict(options)
    if draw.flag():
        options["sinks"], exact["sinks"] = draw.noise(heads, dtype=fa.float32)
    return options, exact


@case("attention")
def _attention(draw: Draw) -> Results:
    key_heads, dim = draw.one_of(1, 2), draw.one_of(8, 16, 64, 128)
    heads = key_heads * draw.one_of(1, 2, 4)
    keys = draw.between(1, 90)
    queries = draw.one_of(1, keys, min(keys, 17))
    q, q64 = draw.noise(queries, heads, dim)
    k, k64 = draw.noise(keys, key_heads, dim)
    v, v64 = draw.noise(keys, key_heads, draw.one_of(dim, 24))
    options, exact = options_of(draw, heads)
    if draw.one_of(False, False, True):
        shape = draw.one_of((heads, queries, keys), (1, keys))
        hidden = draw.rng.random(shape) < 0.3
        options["bias"], exact["bias"] = draw.tensor(np.where(hidden, -np.inf, draw.values(*shape)), fa.float32)
    out, lse = draw.call(attention, q, k, v, return_lse=True, **options)
    want: tuple[Array, Array] = exact_attention(q64, k64, v64, **exact)
    yield out, want[0]
    yield lse, want[1]
