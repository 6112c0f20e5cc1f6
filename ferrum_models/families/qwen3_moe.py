"""Qwen3's mixtures of experts (Yang et al., "Qwen3 technical report", 2025)."""

from __future__ import annotations

from dataclasses import dataclass

from ferrum_models.causal import CausalLM, DecoderConfig
from ferrum_models.config import Settings
from ferrum_models.families.common import attention, build, common, mlp, qwen_sparse, qwen_window
from ferrum_models.layers import Experts, FeedForward, MoE, Router
from ferrum_models.weights import Weights

__all__ = ["Qwen3MoeConfig", "load"]


@dataclass(frozen=True)
class Qwen3MoeConfig(DecoderConfig):
    """What ``config.json`` of a Qwen3-MoE says.

    Attributes:
        sparse: for each layer, whether it is a mixture of experts.
    """

    attention_bias: bool
    num_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    norm_topk_prob: bool
    sparse: tuple[bool, ...]

    @classmethod
    def from_settings(cls, settings: Settings) -> Qwen3MoeConfig:
        """The config in *settings*.

        Raises:
            ValueError: for an entry that is missing, wrong or not implemented.
        """
        experts = settings.integer("num_local_experts", "num_experts")
        return cls(
            **common(settings, **qwen_window(settings)),
            attention_bias=settings.flag("attention_bias"),
            num_experts=experts,
            num_experts_per_tok=settings.integer("num_experts_per_tok", most=experts),
            moe_intermediate_size=settings.integer("moe_intermediate_size"),
            norm_topk_prob=settings.flag("norm_topk_prob"),
            sparse=qwen_sparse(settings),
        )


def load(weights: Weights, config: Qwen3MoeConfig) -> CausalLM:
    """The model with these weights.

    Raises:
        ValueError: listing all tensors that do not fit.
    """
    c = config
    dense = mlp(config)

    def feed_forward(at: Weights, number: int) -> FeedForward:
        if not c.sparse[number]:
            return dense(at, number)
        part = at.at("mlp")
        router = Router(
            part.at("gate").take("weight", (c.num_experts, c.hidden_size)), c.num_experts_per_tok, norm=c.norm_topk_prob
        )
        experts = Experts.load(part.at("experts"), c.num_experts, c.hidden_size, c.moe_intermediate_size, c.hidden_act)
        return MoE(router, experts)

    bias = c.attention_bias
    mixer = attention(config, bias=bias, out_bias=bias, norm=(c.rms_norm_eps, 0.0))
    return build(weights, config, mixer, feed_forward)
