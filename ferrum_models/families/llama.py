"""Llama 2 and 3 (Touvron et al., 2023; Grattafiori et al., "The Llama 3 herd of models", 2024)."""

from __future__ import annotations

from dataclasses import dataclass

from ferrum_models.causal import CausalLM, DecoderConfig
from ferrum_models.config import Settings
from ferrum_models.families.common import attention, build, common, mlp
from ferrum_models.weights import Weights

__all__ = ["LlamaConfig", "load"]


@dataclass(frozen=True)
class LlamaConfig(DecoderConfig):
    """What ``config.json`` of a Llama says."""

    attention_bias: bool
    mlp_bias: bool

    @classmethod
    def from_settings(cls, settings: Settings) -> LlamaConfig:
        """The config in *settings*.

        Raises:
            ValueError: for an entry that is missing, wrong or not implemented.
        """
        settings.refuse("pretraining_tp", 1)
        return cls(
            **common(settings),
            attention_bias=settings.flag("attention_bias"),
            mlp_bias=settings.flag("mlp_bias"),
        )


def load(weights: Weights, config: LlamaConfig) -> CausalLM:
    """The model with these weights.

    Raises:
        ValueError: listing all tensors that do not fit.
    """
    bias = config.attention_bias
    return build(weights, config, attention(config, bias=bias, out_bias=bias), mlp(config, bias=config.mlp_bias))
