"""Qwen2 and Qwen2.5: biases of queries, keys and values (Yang et al., "Qwen2 technical report", 2024)."""

from __future__ import annotations

from dataclasses import dataclass

from ferrum_models.causal import CausalLM, DecoderConfig
from ferrum_models.config import Settings
from ferrum_models.families.common import attention, build, common, mlp, qwen_window
from ferrum_models.weights import Weights

__all__ = ["Qwen2Config", "load"]


@dataclass(frozen=True)
class Qwen2Config(DecoderConfig):
    """What ``config.json`` of a Qwen2 says."""

    @classmethod
    def from_settings(cls, settings: Settings) -> Qwen2Config:
        """The config in *settings*.

        Raises:
            ValueError: for an entry that is missing, wrong or not implemented.
        """
        return cls(**common(settings, **qwen_window(settings)))


def load(weights: Weights, config: Qwen2Config) -> CausalLM:
    """The model with these weights.

    Raises:
        ValueError: listing all tensors that do not fit.
    """
    return build(weights, config, attention(config, bias=True), mlp(config))
