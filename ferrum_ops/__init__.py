"""What transformers are made of: functions of tensors, with one frozen meaning each.

Layouts are token-major, [..., T, H, D]; sums accumulate in float32 (float64 for float64) and are
rounded once.
"""

from __future__ import annotations

from ferrum_ops.activation import ActivationKind, activation, gated_activation, sigmoid_gate, softcap
from ferrum_ops.attention import attention
from ferrum_ops.embedding import embedding
from ferrum_ops.gemm import linear
from ferrum_ops.norm import l2_norm, layer_norm, rms_norm
from ferrum_ops.registry import Explanation, explain, fast_paths, use_fast_paths
from ferrum_ops.types import SequenceMeta

__all__ = [
    "ActivationKind",
    "Explanation",
    "SequenceMeta",
    "activation",
    "attention",
    "embedding",
    "explain",
    "fast_paths",
    "gated_activation",
    "l2_norm",
    "layer_norm",
    "linear",
    "rms_norm",
    "sigmoid_gate",
    "softcap",
    "use_fast_paths",
]
