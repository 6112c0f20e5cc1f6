"""Qwen3: norms of queries and keys (Yang et al., "Qwen3 technical report", 2025)."""

from __future__ import annotations

from dataclasses import dataclass

from ferrum_models.causal import CausalLM, DecoderConfig
from ferrum_models.config import Settings
from ferrum_models.families.common import attention, build, common, mlp, qwen_window
from ferrum_models.weights import Weights

__all__ = ["Qwen3Config", "load"]


@dataclass(frozen=True)
class Qwen3Config(DecoderConfig):
    """What ``config.json`` of a Qwen3 says."""

    attention_bias: bool

    @classmethod
    def from_settings(cls, settings: Settings) -> Qwen3Config:
        """The config in *settings*.

        Raises:
            ValueError: for an entry that is missing, wrong or not implemented.
        """
        return cls(
            **common(settings, head_dim=128, **qwen_window(settings)),
            attention_bias=settings.flag("attention_bias"),
        )


def load(weights: Weights, config: Qwen3Config) -> CausalLM:
    """The model with these weights.

    Raises:
        ValueError: listing all tensors that do not fit.
    """
    bias = config.attention_bias
    mixer = attention(config, bias=bias, out_bias=bias, norm=(config.rms_norm_eps, 0.0))
    return build(weights, config, mixer, mlp(config))
