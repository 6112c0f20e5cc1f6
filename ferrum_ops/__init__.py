"""What transformers are made of: functions of tensors, with one frozen meaning each.

Layouts are token-major, [..., T, H, D]; sums accumulate in float32 (float64 for float64) and are
rounded once.
"""

from __future__ import annotations

from ferrum_ops.activation import ActivationKind, activation, gated_activation, sigmoid_gate, softcap
from ferrum_ops.attention import attention
from ferrum_ops.collectives import Group, ReduceOp, ThreadGroup, all_gather, all_reduce, run_ranks
from ferrum_ops.conv import Padding, conv
from ferrum_ops.cores import set_threads, threads
from ferrum_ops.embedding import embedding
from ferrum_ops.gemm import linear
from ferrum_ops.joined import gated_linear, linears
from ferrum_ops.kv_cache import KVCache, KVSpec
from ferrum_ops.kv_ops import kv_append, kv_copy_blocks, kv_gather
from ferrum_ops.logits import process_logits, token_counts
from ferrum_ops.lora import lora_delta
from ferrum_ops.merge import merge_attention
from ferrum_ops.mla import mla_attention
from ferrum_ops.moe import grouped_linear, moe_combine, moe_ffn
from ferrum_ops.moe_planning import RoutePlan, moe_permute, moe_plan
from ferrum_ops.moe_routing import moe_route
from ferrum_ops.norm import l2_norm, layer_norm, rms_norm
from ferrum_ops.paged import paged_attention
from ferrum_ops.quant.tensor import QuantTensor
from ferrum_ops.quantize import dequantize, quantize, repack
from ferrum_ops.recurrent import causal_conv1d, gated_delta_rule, gdn_gates
from ferrum_ops.registry import Explanation, explain, fast_paths, use_fast_paths
from ferrum_ops.rope import qk_norm_rope, rope, rope_table
from ferrum_ops.rope_append import rope_append
from ferrum_ops.rope_config import rope_frequencies, rope_scaling
from ferrum_ops.rope_scalings import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    ProportionalScaling,
    RopeScaling,
    YarnScaling,
)
from ferrum_ops.sampling import Sampled, sample
from ferrum_ops.speculative import Verified, spec_verify
from ferrum_ops.types import SequenceMeta

__all__ = [
    "ActivationKind",
    "DynamicScaling",
    "Explanation",
    "Group",
    "KVCache",
    "KVSpec",
    "LinearScaling",
    "Llama3Scaling",
    "LongRopeScaling",
    "Padding",
    "ProportionalScaling",
    "QuantTensor",
    "ReduceOp",
    "RopeScaling",
    "RoutePlan",
    "Sampled",
    "SequenceMeta",
    "ThreadGroup",
    "Verified",
    "YarnScaling",
    "activation",
    "all_gather",
    "all_reduce",
    "attention",
    "causal_conv1d",
    "conv",
    "dequantize",
    "embedding",
    "explain",
    "fast_paths",
    "gated_activation",
    "gated_delta_rule",
    "gated_linear",
    "gdn_gates",
    "grouped_linear",
    "kv_append",
    "kv_copy_blocks",
    "kv_gather",
    "l2_norm",
    "layer_norm",
    "linear",
    "linears",
    "lora_delta",
    "merge_attention",
    "mla_attention",
    "moe_combine",
    "moe_ffn",
    "moe_permute",
    "moe_plan",
    "moe_route",
    "paged_attention",
    "process_logits",
    "qk_norm_rope",
    "quantize",
    "repack",
    "rms_norm",
    "rope",
    "rope_append",
    "rope_frequencies",
    "rope_scaling",
    "rope_table",
    "run_ranks",
    "sample",
    "set_threads",
    "sigmoid_gate",
    "softcap",
    "spec_verify",
    "threads",
    "token_counts",
    "use_fast_paths",
]
