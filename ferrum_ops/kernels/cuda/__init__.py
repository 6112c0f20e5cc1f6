"""Kernels for CuPy storage, in Triton, compiled at their first use without PyTorch: the extra ``cuda``.

This file is a table: what runs for which calls. Triton is imported with the first kernel that runs, and nothing is
compiled before. Kernels accumulate in float32; float64 runs on the references.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache

from ferrum_array import Dtype
from ferrum_ops.registry import Row, register

__all__ = ["nvmath_is_missing", "triton_is_missing"]


@cache
def triton_is_missing() -> str | None:
    """What the machine lacks for these kernels, or None."""
    if importlib.util.find_spec("triton") is None:
        return 'triton is not installed; pip install "ferrum[cuda]"'
    return None


@cache
def nvmath_is_missing() -> str | None:
    """What the machine lacks for products by cuBLASLt, or None."""
    if importlib.util.find_spec("nvmath") is None:
        return 'nvmath-python is not installed; pip install "ferrum[cuda]"'
    return triton_is_missing()


_F32, _F16, _BF16 = Dtype.F32, Dtype.F16, Dtype.BF16
_FLOATS = frozenset((dtype,) for dtype in (_F32, _F16, _BF16))
#: of two operands, each by itself
_PAIRS = frozenset((x, y) for x in (_F32, _F16, _BF16) for y in (_F32, _F16, _BF16))
#: of queries (or of new keys) and of a cache, whose uint8 are codes of E4M3
_CACHES = _PAIRS | frozenset((x, held) for x in (_F32, _F16, _BF16) for held in (Dtype.I8, Dtype.U8))
_HERE = __name__


def _row(
    op: str,
    place: str,
    *features: str,
    dtypes: frozenset[tuple[Dtype, ...]] = _FLOATS,
    name: str = "",
    when: str | None = None,
    missing: Callable[[], str | None] = triton_is_missing,
) -> Row:
    """The row of an op whose kernel is *place*, ``module:function`` in this package; *when* is written alike."""
    return Row(
        op,
        f"cuda.{name or op}",
        "cuda",
        dtypes,
        frozenset(features),
        f"{_HERE}.{place}",
        when=None if when is None else f"{_HERE}.{when}",
        missing=missing,
    )


_ADDED = ("residual", "mixed")
_KINDS = ("silu", "gelu", "gelu_tanh", "relu", "relu2", "sigmoid", "softplus")
_NO_F64 = "norms:no_float64"
_TURNED = ("offset", "rotary_dim", "interleaved")
_APPENDED = frozenset((*pair, held) for pair in _PAIRS for held in (_F32, _F16, _BF16, Dtype.I8, Dtype.U8))

register(
    _row("rms_norm", "norms:rms_norm", "offset", "residual", "gate"),
    _row("rms_norm", "norms:rms_norm", "offset", "gate", *_ADDED, name="rms_norm_mixed", when=_NO_F64),
    _row("layer_norm", "norms:layer_norm", "residual"),
    _row("layer_norm", "norms:layer_norm", *_ADDED, name="layer_norm_mixed", when=_NO_F64),
    _row("l2_norm", "norms:l2_norm"),
    _row("activation", "activations:activation", *_KINDS),
    _row("gated_activation", "activations:gated_activation", *_KINDS, "limit", "alpha", "up_offset"),
    _row("sigmoid_gate", "activations:sigmoid_gate", "by_row", "residual"),
    _row("softcap", "activations:softcap"),
    _row("rope", "ropes:rope", "rotary_dim", "interleaved", dtypes=_PAIRS),
    _row("qk_norm_rope", "ropes:qk_norm_rope", *_TURNED, dtypes=_PAIRS),
    _row(
        "qk_norm_rope",
        "ropes:qk_norm_rope",
        *(*_TURNED, "mixed"),
        dtypes=_PAIRS,
        name="qk_norm_rope_mixed",
        when=_NO_F64,
    ),
    _row("rope_append", "ropes:rope_append", "norm", *_TURNED, dtypes=_APPENDED),
    _row(
        "rope_append",
        "ropes:rope_append",
        *("norm", *_TURNED, "mixed"),
        dtypes=_APPENDED,
        name="rope_append_mixed",
        when=_NO_F64,
    ),
)

_ATTENDED = ("full", "window", "softcap", "sinks", "ring")
_CAN_ATTEND = "paged:refuses"

register(
    _row("paged_attention", "paged:paged_attention", *_ATTENDED, dtypes=_CACHES, when=_CAN_ATTEND),
    _row(
        "paged_attention",
        "paged:paged_attention_with_sums",
        *(*_ATTENDED, "lse"),
        dtypes=_CACHES,
        name="paged_attention_with_sums",
        when=_CAN_ATTEND,
    ),
    _row("kv_append", "caching:kv_append", dtypes=_CACHES),
    _row("kv_gather", "caching:kv_gather", dtypes=frozenset((y, x) for x, y in _CACHES)),
    _row("kv_copy_blocks", "caching:kv_copy_blocks", dtypes=_FLOATS | {(Dtype.I8,), (Dtype.U8,)}),
)

_PLAIN = ("bias", "mixed", "dtype")
_READ = ("quant:int4", "quant:int8", "quant:mxfp4", "zeros", *_PLAIN)
_HALVES = frozenset(((_F16,), (_BF16,)))

register(
    _row("linears", "dense:linears", *_PLAIN, dtypes=_HALVES, name="linears_few", when="dense:linears_refuses"),
    _row(
        "gated_linear",
        "dense:gated_linear",
        *("bias", "mixed", *_KINDS, "limit", "alpha", "up_offset"),
        dtypes=_HALVES,
        name="gated_linear_few",
        when="dense:gated_linear_refuses",
    ),
    _row("linear", "dense:linear", *_PLAIN, dtypes=_HALVES, name="linear_fewest", when="dense:linear_refuses"),
    _row("linear", "cublas:linear", *_PLAIN, name="linear_cublaslt", when="cublas:refuses", missing=nvmath_is_missing),
    _row("linear", "gemm:few_dense", *_PLAIN, dtypes=_HALVES, name="linear_few", when="gemm:few_dense_refuses"),
    _row(
        "linear",
        "gemm:few_quantised",
        *_READ,
        dtypes=_HALVES,
        name="linear_few_quantised",
        when="gemm:few_quantised_refuses",
    ),
    _row(
        "linear",
        "gemm:widened_in_blocks",
        *_READ,
        name="linear_widened",
        when="gemm:widened_refuses",
        missing=nvmath_is_missing,
    ),
    _row("linear", "gemm:rounded", "quant:int8", "a8", *_PLAIN, name="linear_rounded", when="gemm:rounded_refuses"),
)

register(
    _row(
        "linears",
        "few:linears",
        *("quant:int4", *_PLAIN),
        dtypes=_HALVES,
        name="linears_few_int4",
        when="few:linears_refuses",
    ),
    _row(
        "gated_linear",
        "few:gated_linear",
        *("quant:int4", "bias", "mixed", *_KINDS, "limit", "alpha", "up_offset"),
        dtypes=_HALVES,
        name="gated_linear_few_int4",
        when="few:gated_linear_refuses",
    ),
)

_STACKED = ("quant:int4", "quant:int8", "quant:mxfp4", "zeros")
_NETS = tuple(f"{w}:{feature}" for w in ("w13", "w2") for feature in _STACKED)
_ROUTED = ("softmax", "sigmoid", "norm", "bias", "groups", "scale")

register(
    _row("moe_route", "routing:moe_route", *_ROUTED, when="routing:route_refuses"),
    _row("moe_plan", "routing:moe_plan", "block", dtypes=frozenset({(Dtype.I64,)}), when="routing:plan_refuses"),
    _row("moe_permute", "routing:moe_permute", "block"),
    _row("moe_combine", "routing:moe_combine", "residual", "mixed", when="routing:combine_refuses"),
    _row(
        "grouped_linear",
        "moe:grouped_linear",
        *_STACKED,
        "bias",
        "mixed",
        dtypes=_HALVES,
        when="moe:grouped_linear_refuses",
    ),
    _row(
        "moe_ffn",
        "moe:moe_ffn",
        *(*_NETS, *_KINDS, "limit", "alpha", "up_offset", "b13", "b2", "mixed"),
        dtypes=_HALVES,
        when="moe:moe_ffn_refuses",
    ),
)

register(
    _row("embedding", "sampling:embedding", "scale"),
    _row("sample", "sampling:sample", "u", when="sampling:sample_refuses"),
    _row(
        "sample",
        "sampling:sample_told",
        *("u", "logprobs", "model"),
        name="sample_told",
        when="sampling:sample_refuses",
    ),
    _row(
        "process_logits",
        "sampling:process_logits",
        *("bias", "temperature", "top_k", "top_p", "min_p"),
        when="sampling:process_logits_refuses",
    ),
)

_ATTENDS = ("full", "window", "softcap", "sinks", "bias", "meta")

register(
    _row("attention", "attending:attention", *_ATTENDS, when="attending:refuses"),
    _row(
        "attention",
        "attending:attention_with_sums",
        *(*_ATTENDS, "lse"),
        name="attention_with_sums",
        when="attending:refuses",
    ),
)
