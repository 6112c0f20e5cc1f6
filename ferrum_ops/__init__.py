"""What transformers are made of: functions of tensors, with one frozen meaning each.

Layouts are token-major, [..., T, H, D]; sums accumulate in float32 (float64 for float64) and are
rounded once.
"""

from __future__ import annotations

from ferrum_ops.activation import ActivationKind, activation
from ferrum_ops.attention import attention
from ferrum_ops.embedding import embedding
from ferrum_ops.gemm import linear
from ferrum_ops.norm import layer_norm
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
    "layer_norm",
    "linear",
    "use_fast_paths",
]
