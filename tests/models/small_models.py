"""Models of all families that are small, and beside one another."""

from __future__ import annotations

from typing import Any

import ferrum_array as fa
from ferrum_models import random_model
from ferrum_models.causal import CausalLM
from ferrum_models.families import FAMILIES
from ferrum_ops import QuantTensor, quantize
from tests.models.checkpoints import IDS

SMALL: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 64,
    "num_local_experts": 3,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "sliding_window": 4,
}
#: entries of single families
OWN: dict[str, dict[str, Any]] = {
    "deepseek_v3": {
        "n_routed_experts": 4,
        "n_group": 2,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "q_lora_rank": 32,
        "kv_lora_rank": 32,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 16,
        "v_head_dim": 16,
        "num_key_value_heads": 4,
    },
    "qwen3_next": {
        "num_experts": 3,
        "shared_expert_intermediate_size": 32,
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
    },
}
KINDS = sorted(FAMILIES)
#: tensors of more than one axis that are no weights of products
DENSE = ("gate.weight", "bias", "conv1d.weight", "kv_b_proj.weight")


def small(kind: str, seed: int = 0, **options: Any) -> CausalLM:
    return random_model({"model_type": kind, **SMALL, **OWN.get(kind, {})}, seed=seed, **options)


def logits(model: CausalLM) -> Any:
    return model(fa.asarray(IDS, device=model.device)).numpy()


def same(one: CausalLM, other: CausalLM) -> bool:
    """Whether two models have the same tensors, bit for bit."""
    first, second = dict(one.named_parameters()), dict(other.named_parameters())
    return first.keys() == second.keys() and all(equal(value, second[name]) for name, value in first.items())


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, QuantTensor) != isinstance(other, QuantTensor):
        return False
    if isinstance(one, QuantTensor):
        parts = one.parts.keys() == other.parts.keys() and all(equal(one.parts[n], other.parts[n]) for n in one.parts)
        return parts and one.scheme == other.scheme and one.shape == other.shape
    return one.dtype is other.dtype and one.shape == other.shape and bool(fa.all(one == other))


def quantised(model: CausalLM, scheme: str) -> CausalLM:
    """All matrices of products in this scheme."""

    def one(path: str, value: Any) -> Any:
        return quantize(value, scheme) if value.ndim > 1 and not path.endswith(DENSE) else value

    return model.map(one)
