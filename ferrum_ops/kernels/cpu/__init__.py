"""Kernels for NumPy storage, compiled by numba at their first use: the extra ``cpu``.

This file is a table: what runs for which calls. numba is imported with the first kernel that runs, and nothing is
compiled before.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache

import ferrum_array as fa
from ferrum_array import Dtype
from ferrum_ops.kernels.cpu.features import lacks
from ferrum_ops.registry import Row, register

__all__ = ["needs"]


@cache
def _numba_is_missing() -> str | None:
    if importlib.util.find_spec("numba") is None:
        return 'numba is not installed; pip install "ferrum[cpu]"'
    return None


def needs(*features: str) -> Callable[[], str | None]:
    """What a row asks for the reason why the machine cannot run it: numba is missing, or features of the processor."""
    return lambda: _numba_is_missing() or lacks(*features)


Dtypes = tuple[Dtype, ...]
_F32, _F16, _BF16 = fa.float32, fa.float16, fa.bfloat16
#: the dtypes of one operand that kernels take; float64 runs on the references
_FLOATS = frozenset((dtype,) for dtype in (_F32, _F16, _BF16))
_PAIRS = frozenset((x, y) for x in (_F32, _F16, _BF16) for y in (_F32, _F16, _BF16))
#: the dtypes of queries (or of new keys) and of a cache
_CACHES = frozenset((x, y) for x in (_F32, _F16, _BF16) for y in (_F32, _F16, _BF16, fa.int8))
_HERE = __name__


def _row(
    op: str,
    place: str,
    *features: str,
    dtypes: frozenset[Dtypes] = _FLOATS,
    name: str = "",
    processor: tuple[str, ...] = (),
    **more: str,
) -> Row:
    load = f"{_HERE}.{place}"
    return Row(op, f"cpu.{name or op}", "cpu", dtypes, frozenset(features), load, missing=needs(*processor), **more)


_KINDS = ("silu", "gelu", "gelu_tanh", "relu", "relu2", "sigmoid")
#: what products ask of the processor, with inputs of some dtypes, or rounded to 8 bits as weights may ask for
_WIDE = ("avx512f", "avx512bw", "avx512vl", "avx512dq")
_PRODUCTS = (
    ("", frozenset({(_F32,), (_F16,)}), (), _WIDE),
    ("_bf16", frozenset({(_BF16,)}), (), (*_WIDE, "avx512bf16")),
    ("_a8", _FLOATS, ("a8",), (*_WIDE, "avx512vnni")),
)

register(
    _row("rms_norm", "norms:rms_norm", "offset"),
    _row("rms_norm", "norms:rms_norm_with", "offset", "residual", "gate", name="rms_norm_with"),
    _row(
        "rms_norm",
        "norms:rms_norm_with",
        *("offset", "residual", "gate", "mixed"),
        name="rms_norm_mixed",
        when=f"{_HERE}.norms:no_float64",
    ),
    _row("l2_norm", "norms:l2_norm"),
    _row("layer_norm", "norms:layer_norm", "residual"),
    _row(
        "layer_norm",
        "norms:layer_norm",
        *("residual", "mixed"),
        name="layer_norm_mixed",
        when=f"{_HERE}.norms:no_float64",
    ),
    _row("activation", "activations:activation", *_KINDS),
    _row("gated_activation", "activations:gated_activation", *_KINDS, "limit", "alpha", "up_offset"),
    _row("sigmoid_gate", "activations:sigmoid_gate", "by_row", "residual"),
    _row("softcap", "activations:softcap"),
    _row("rope", "ropes:rope", "rotary_dim", "interleaved", dtypes=_PAIRS),
    _row("qk_norm_rope", "ropes:qk_norm_rope", "offset", "rotary_dim", "interleaved", dtypes=_PAIRS),
    _row(
        "qk_norm_rope",
        "ropes:qk_norm_rope",
        *("offset", "rotary_dim", "interleaved", "mixed"),
        dtypes=_PAIRS,
        name="qk_norm_rope_mixed",
        when=f"{_HERE}.norms:no_float64",
    ),
    _row(
        "attention",
        "attending:attention",
        *("full", "window", "softcap", "sinks", "bias", "meta", "lse"),
    ),
    _row(
        "paged_attention",
        "attending:paged_attention",
        *("full", "window", "softcap", "sinks", "ring", "lse"),
        dtypes=_CACHES,
    ),
    _row("sample", "sampling:sample", "u", "logprobs", "model", when=f"{_HERE}.sampling:sample_refuses"),
    _row("embedding", "sampling:embedding", "scale"),
    _row("kv_append", "caching:kv_append", dtypes=_CACHES),
    _row("kv_gather", "caching:kv_gather", dtypes=frozenset((y, x) for x, y in _CACHES)),
    _row("kv_copy_blocks", "caching:kv_copy_blocks", dtypes=_FLOATS | {(fa.int8,)}),
)

#: parameters of gates
_GATE = ("limit", "alpha", "up_offset")
_QUANTISED = ("quant:int4", "quant:int8", "zeros")


def _products(suffix: str, dtypes: frozenset[Dtypes], more: tuple[str, ...], processor: tuple[str, ...]) -> list[Row]:
    quantised = (*_QUANTISED, *more)
    both = tuple(f"{w}:{feature}" for w in ("w13", "w2") for feature in quantised)
    found = (
        ("linear", "gemm:linear", (*quantised, "bias", "mixed", "dtype")),
        ("linears", "joined:linears", (*quantised, "unlike", "bias", "mixed", "dtype")),
        ("gated_linear", "joined:gated_linear", (*quantised, "unlike", "bias", "mixed", *_KINDS, *_GATE)),
        ("grouped_linear", "moe:grouped_linear", (*quantised, "bias", "mixed")),
        ("moe_ffn", "moe:moe_ffn", (*both, *_KINDS, *_GATE, "b13", "b2", "mixed")),
    )
    return [
        _row(
            op,
            place,
            *features,
            dtypes=dtypes,
            name=op + suffix,
            processor=processor,
            when=f"{_HERE}.{place}{'_a8' if more else ''}_refuses",
        )
        for op, place, features in found
    ]


for _which in _PRODUCTS:
    register(*_products(*_which))

register(_row("moe_combine", "moe:moe_combine", "residual"))

#: GGUF's types of blocks, by their names as schemes
_BLOCKS = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "gguf_mxfp4")

register(
    *(
        _row(
            "linear",
            f"blocks:{place}",
            *(f"quant:{name}" for name in _BLOCKS),
            *("bias", "mixed", "dtype"),
            name=name,
            when=f"{_HERE}.blocks:{place}_refuses",
        )
        for name, place in (("linear_blocks_few", "linear_few"), ("linear_blocks", "linear"))
    )
)
