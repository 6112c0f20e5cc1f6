"""Tiny models of every kind of memory, and what they go on with."""

from __future__ import annotations

from typing import Any

from ferrum_models import CausalLM, generate_ids, random_model

TINY: dict[str, Any] = {
    "model_type": "qwen3",
    "vocab_size": 41,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 600,
}
WINDOWED = {**TINY, "model_type": "mistral", "sliding_window": 5}
MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 12, "norm_topk_prob": True}
#: heads turn by other angles in texts of more than 8 tokens
DYNAMIC = {**TINY, "max_position_embeddings": 8, "rope_scaling": {"rope_type": "dynamic", "factor": 9.0}}
LONG = {
    **TINY,
    "rope_scaling": {
        "rope_type": "longrope",
        "short_factor": [1.0] * 4,
        "long_factor": [1.0, 3.0, 9.0, 27.0],
        "original_max_position_embeddings": 8,
    },
}
RECURRENT = {
    **TINY,
    **MOE,
    "model_type": "qwen3_next",
    "num_hidden_layers": 3,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "num_experts": 4,
    "shared_expert_intermediate_size": 12,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 6,
    "linear_value_head_dim": 5,
    "linear_conv_kernel_dim": 4,
}
LATENT = {
    **TINY,
    **MOE,
    "model_type": "deepseek_v3",
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4,
    "v_head_dim": 7,
    "n_routed_experts": 4,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "n_shared_experts": 1,
    "routed_scaling_factor": 1.5,
}

ON_CPU = random_model(TINY, device="cpu")
MODELS = {
    "plain": ON_CPU,
    "windowed": random_model(WINDOWED, seed=3, device="cpu"),
    "recurrent": random_model(RECURRENT, seed=3, device="cpu"),
    "latent": random_model(LATENT, seed=3, device="cpu"),
    "dynamic": random_model(DYNAMIC, seed=3, device="cpu"),
    "long": random_model(LONG, seed=3, device="cpu"),
}


def alone(model: CausalLM, ids: list[int], tokens: int = 6, **options: Any) -> list[int]:
    return list(generate_ids(model, ids, max_new_tokens=tokens, **options))
