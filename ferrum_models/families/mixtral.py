"""Mixtral: Mistral with eight experts in each layer (Jiang et al., "Mixtral of experts", 2024)."""

from __future__ import annotations

from dataclasses import dataclass

from ferrum_models.causal import CausalLM, DecoderConfig
from ferrum_models.config import Settings
from ferrum_models.families.common import attention, build, common
from ferrum_models.layers import Experts, FeedForward, MoE, Router
from ferrum_models.weights import Weights

__all__ = ["MixtralConfig", "load"]


@dataclass(frozen=True)
class MixtralConfig(DecoderConfig):
    """What ``config.json`` of a Mixtral says."""

    num_local_experts: int
    num_experts_per_tok: int

    @classmethod
    def from_settings(cls, settings: Settings) -> MixtralConfig:
        """The config in *settings*.

        Raises:
            ValueError: for an entry that is missing, wrong or not implemented.
        """
        window = settings.optional_integer("sliding_window")
        kind = "full_attention" if window is None else "sliding_attention"
        experts = settings.integer("num_local_experts", "num_experts", default=8)
        return cls(
            **common(settings, kind=lambda number: kind, window=window),
            num_local_experts=experts,
            num_experts_per_tok=settings.integer("num_experts_per_tok", default=2, most=experts),
        )


def load(weights: Weights, config: MixtralConfig) -> CausalLM:
    """The model with these weights.

    Raises:
        ValueError: listing all tensors that do not fit.
    """
    c = config

    def feed_forward(at: Weights, number: int) -> FeedForward:
        part = at.at("block_sparse_moe")
        router = Router(part.at("gate").take("weight", (c.num_local_experts, c.hidden_size)), c.num_experts_per_tok)
        experts = Experts.load(
            part.at("experts"),
            c.num_local_experts,
            c.hidden_size,
            c.intermediate_size,
            c.hidden_act,
            ("w1", "w3", "w2"),
        )
        return MoE(router, experts)

    return build(weights, config, attention(config), feed_forward)
