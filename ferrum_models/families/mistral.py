"""Mistral: Llama's layers with a window (Jiang et al., "Mistral 7B", 2023)."""

from __future__ import annotations

from dataclasses import dataclass

from ferrum_models.causal import CausalLM, DecoderConfig
from ferrum_models.config import Settings
from ferrum_models.families.common import attention, build, common, mlp
from ferrum_models.weights import Weights

__all__ = ["MistralConfig", "load"]


@dataclass(frozen=True)
class MistralConfig(DecoderConfig):
    """What ``config.json`` of a Mistral says."""

    @classmethod
    def from_settings(cls, settings: Settings) -> MistralConfig:
        """The config in *settings*.

        Raises:
            ValueError: for an entry that is missing, wrong or not implemented.
        """
        window = settings.optional_integer("sliding_window")
        kind = "full_attention" if window is None else "sliding_attention"
        return cls(**common(settings, kind=lambda number: kind, window=window))


def load(weights: Weights, config: MistralConfig) -> CausalLM:
    """The model with these weights.

    Raises:
        ValueError: listing all tensors that do not fit.
    """
    return build(weights, config, attention(config), mlp(config))
