"""Calls that kernels for the CPU take, large enough for several threads; and a comparison with the references.

    python -m tests.ops.cpu_calls f32

compares all of them in this process, as its environment says, in the dtypes that are named.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import ferrum_array as fa
from ferrum_ops import (
    KVCache,
    KVSpec,
    SequenceMeta,
    activation,
    attention,
    explain,
    gated_activation,
    kv_append,
    l2_norm,
    layer_norm,
    paged_attention,
    qk_norm_rope,
    rms_norm,
    rope,
    rope_table,
    sigmoid_gate,
    softcap,
    use_fast_paths,
)
from tests.ops.oracle import distance

DTYPES = (fa.float32, fa.float16, fa.bfloat16)
#: how far a kernel may be from the reference: each rounds once
WITHIN = {fa.float32: 2e-6, fa.float16: 1e-3, fa.bfloat16: 8e-3}


class Call(NamedTuple):
    """An op and arguments that the kernel *runs* takes."""

    runs: str
    op: Callable[..., Any]
    arguments: tuple[Any, ...]
    options: dict[str, Any]

    def __call__(self) -> list[fa.Tensor]:
        """The results."""
        found = self.op(*self.arguments, **self.options)
        return list(found) if isinstance(found, tuple) else [found]


def calls(dtype: fa.Dtype) -> dict[str, Call]:
    """Every kernel but those of products, by a name."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> fa.Tensor:
        return fa.asarray(rng.standard_normal(shape), dtype=dtype)

    x, y, w = normal(67, 1031), normal(67, 1031), normal(1031)
    heads, keys, angles = normal(211, 6, 40), normal(211, 2, 40), rope_table(list(range(211)), 40, 1e4)
    q, k, v = normal(2, 150, 6, 40), normal(2, 150, 2, 40), normal(2, 150, 2, 24)
    found: dict[str, Call] = {}

    def add(name: str, runs: str, op: Callable[..., Any], *arguments: Any, **options: Any) -> None:
        found[name] = Call(f"cpu.{runs}", op, arguments, options)

    add("rms_norm", "rms_norm", rms_norm, x, w, eps=1e-6, offset=1.0)
    add("rms_norm of a sum", "rms_norm_with", rms_norm, x, w, eps=1e-6, residual=y)
    add("rms_norm with a gate", "rms_norm_with", rms_norm, x, w, eps=1e-6, gate=y)
    add("l2_norm", "l2_norm", l2_norm, x, eps=1e-6)
    add("layer_norm", "layer_norm", layer_norm, x, w, w, eps=1e-5)
    for kind in ("silu", "gelu", "gelu_tanh", "relu", "relu2", "sigmoid"):
        add(f"activation {kind}", "activation", activation, x, kind)
        add(f"gated_activation {kind}", "gated_activation", gated_activation, x, y, kind)
    add("the gate of gpt-oss", "gated_activation", gated_activation, x, y, "silu", limit=1.0, alpha=1.7, up_offset=1.0)
    add("sigmoid_gate", "sigmoid_gate", sigmoid_gate, x, y)
    add("softcap", "softcap", softcap, x, 2.0)
    add("rope", "rope", rope, heads, *angles)
    add("rope, interleaved", "rope", rope, heads, *angles, interleaved=True)
    add("qk_norm_rope", "qk_norm_rope", qk_norm_rope, heads, keys, normal(40), normal(40), *angles, eps=1e-6)
    add("attention", "attention", attention, q, k, v)
    add("attention to all", "attention", attention, q, k, v, causal=False)
    add("attention in a window", "attention", attention, q, k, v, window=37, softcap=3.0, sinks=normal(6))
    add("attention with a bias", "attention", attention, q, k, v, bias=normal(2, 6, 150, 150), return_lse=True)
    packed = SequenceMeta.packed([1, 0, 70, 79])
    add("attention of packed sequences", "attention", attention, q[0], k[0], v[0], meta=packed)
    add("attention of one query", "attention", attention, q[:, -1:], k, v)
    for kind, store in (("", dtype), (", int8", fa.int8)):
        cache = KVCache.empty(KVSpec(2, 40, 30, 7, "paged", store, 24))
        tables = (tuple(range(29, 14, -1)), tuple(range(15)))
        kv_append(cache, fa.concat([k[0, :100], k[1, :90]]), fa.concat([v[0, :100], v[1, :90]]),
                  SequenceMeta((0, 100, 190), block_tables=tables))  # fmt: skip
        one = SequenceMeta((0, 1, 2), kv_lens=(100, 90), block_tables=tables)
        add(f"decoding{kind}", "paged_attention", paged_attention, q[:, 0], cache, one, window=64)
        mixed = SequenceMeta((0, 60, 61), kv_lens=(100, 90), block_tables=tables)
        add(f"a prompt and a token{kind}", "paged_attention", paged_attention, q[0, :61], cache, mixed)
    return found


def differences(call: Call) -> list[float]:
    """How far the results of a kernel are from those of the reference."""
    told = explain(call.op, *call.arguments, **call.options)
    assert told.runs == call.runs, f"expected {call.runs}:\n{told}"
    with use_fast_paths(False):
        expected = call()
    pairs = zip(call(), expected, strict=True)
    return [distance(a.astype("f64").numpy(), b.astype("f64").numpy()) for a, b in pairs]


def main() -> None:
    """Compare everything; an error names what differs."""
    for dtype in map(fa.Dtype, sys.argv[1:]):
        for name, call in calls(dtype).items():
            found = max(differences(call))
            assert found <= WITHIN[dtype], f"{name} in {dtype}: {found}"
            print(f"{name} in {dtype}: {found:.1e}")


if __name__ == "__main__":
    main()
