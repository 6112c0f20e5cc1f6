"""gpt-oss: attention sinks, windows in every other layer, experts with biases and a clamped gate (OpenAI, 2025)."""

from __future__ import annotations

from dataclasses import dataclass

from ferrum_models.causal import CausalLM, DecoderConfig
from ferrum_models.config import Settings
from ferrum_models.families.common import attention, build, common
from ferrum_models.layers import Experts, FeedForward, MoE, Router
from ferrum_models.weights import Weights

__all__ = ["GptOssConfig", "load"]


@dataclass(frozen=True)
class GptOssConfig(DecoderConfig):
    """What ``config.json`` of a gpt-oss says."""

    attention_bias: bool
    num_local_experts: int
    num_experts_per_tok: int
    swiglu_limit: float
    swiglu_alpha: float

    @classmethod
    def from_settings(cls, settings: Settings) -> GptOssConfig:
        """The config in *settings*.

        Raises:
            ValueError: for an entry that is missing, wrong or not implemented.
        """
        experts = settings.integer("num_local_experts", "num_experts", default=128)
        return cls(
            **common(
                settings,
                kind=lambda number: "full_attention" if number % 2 else "sliding_attention",
                head_dim=64,
                window=settings.integer("sliding_window", default=128),
            ),
            attention_bias=settings.flag("attention_bias", default=True),
            num_local_experts=experts,
            num_experts_per_tok=settings.integer("num_experts_per_tok", "experts_per_token", default=4, most=experts),
            swiglu_limit=settings.number("swiglu_limit", default=7.0),
            swiglu_alpha=settings.number("swiglu_alpha", default=1.702),
        )


def load(weights: Weights, config: GptOssConfig) -> CausalLM:
    """The model with these weights.

    Raises:
        ValueError: listing all tensors that do not fit.
    """
    c = config
    hidden, inner, experts = c.hidden_size, c.intermediate_size, c.num_local_experts

    def feed_forward(at: Weights, number: int) -> FeedForward:
        part = at.at("mlp")
        router = part.at("router")
        stack = part.at("experts")
        # checkpoints hold gate and up in turns
        return MoE(
            Router(
                router.take("weight", (experts, hidden)), c.num_experts_per_tok, bias=router.take("bias", (experts,))
            ),
            Experts(
                stack.experts("gate_up_proj", (experts, 2 * inner, hidden), in_turns=True),
                stack.experts("down_proj", (experts, hidden, inner)),
                "silu",
                stack.take_halves("gate_up_proj_bias", (experts, 2 * inner)),
                stack.take("down_proj_bias", (experts, hidden)),
                limit=c.swiglu_limit,
                alpha=c.swiglu_alpha,
                up_offset=1.0,
            ),
        )

    mixer = attention(config, bias=c.attention_bias, out_bias=c.attention_bias, sinks=True)
    return build(weights, config, mixer, feed_forward)
