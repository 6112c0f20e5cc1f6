"""Decoder families, a file each, none of which knows on which device it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from ferrum_models.causal import CausalLM
from ferrum_models.config import Settings
from ferrum_models.families import (
    deepseek_v3,
    gemma3,
    gpt_oss,
    llama,
    mistral,
    mixtral,
    qwen2,
    qwen3,
    qwen3_moe,
    qwen3_next,
)

__all__ = ["FAMILIES", "Family", "family"]


class Family(NamedTuple):
    """How a family reads its config, and its weights with that."""

    config: Callable[[Settings], Any]
    load: Callable[..., CausalLM]


#: ``model_type`` of a config -> the family
FAMILIES = {
    "deepseek_v3": Family(deepseek_v3.DeepseekV3Config.from_settings, deepseek_v3.load),
    "gemma3": Family(gemma3.Gemma3Config.from_settings, gemma3.load),
    "gemma3_text": Family(gemma3.Gemma3Config.from_settings, gemma3.load),
    "gpt_oss": Family(gpt_oss.GptOssConfig.from_settings, gpt_oss.load),
    "llama": Family(llama.LlamaConfig.from_settings, llama.load),
    "mistral": Family(mistral.MistralConfig.from_settings, mistral.load),
    "mixtral": Family(mixtral.MixtralConfig.from_settings, mixtral.load),
    "qwen2": Family(qwen2.Qwen2Config.from_settings, qwen2.load),
    "qwen3": Family(qwen3.Qwen3Config.from_settings, qwen3.load),
    "qwen3_moe": Family(qwen3_moe.Qwen3MoeConfig.from_settings, qwen3_moe.load),
    "qwen3_next": Family(qwen3_next.Qwen3NextConfig.from_settings, qwen3_next.load),
}


def family(settings: Settings) -> Family:
    """The family that the config's ``model_type`` names.

    Raises:
        ValueError: for another one, listing those that are known.

    Examples:
        >>> from ferrum_models.config import Settings
        >>> from ferrum_models.families import family
        >>> family(Settings({"model_type": "eliza"}))
        Traceback (most recent call last):
        ...
        ValueError: the config: model_type must be one of deepseek_v3, gemma3, gemma3_text, ..., got 'eliza'
    """
    return settings.choice("model_type", known=FAMILIES)
