"""Gemma 3, its text part: four norms a layer, windows in most layers with a RoPE of their own (Gemma Team, 2025)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ferrum_models.causal import CausalLM, DecoderConfig
from ferrum_models.config import Settings
from ferrum_models.families.common import attention, build, common, mlp
from ferrum_models.layers import Rotary
from ferrum_models.weights import Weights

__all__ = ["Gemma3Config", "load"]

#: what published configs of models that also see leave out
_USUAL = {
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "max_position_embeddings": 131072,
    "num_attention_heads": 8,
    "num_hidden_layers": 26,
    "num_key_value_heads": 4,
    "vocab_size": 262208,
}
#: where models that also see keep what they see with
_SEEING = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")


@dataclass(frozen=True)
class Gemma3Config(DecoderConfig):
    """What ``config.json`` of a Gemma 3 says of its text part."""

    attention_bias: bool
    query_pre_attn_scalar: float
    attn_logit_softcapping: float | None
    final_logit_softcapping: float | None

    @classmethod
    def from_settings(cls, settings: Settings) -> Gemma3Config:
        """The config in *settings*.

        Raises:
            ValueError: for an entry that is missing, wrong or not implemented.
        """
        settings.refuse("use_bidirectional_attention")
        given = {key: value for key, value in settings.values.items() if value is not None}
        settings = Settings({**_USUAL, **given}, settings.source)
        size = settings.integer("head_dim", default=256)
        pattern = settings.integer("sliding_window_pattern", "_sliding_window_pattern", default=6)
        local = settings.number("rope_local_base_freq", default=10000.0)
        if settings.mapping("rope_parameters") is None:  # the older spelling: one base for windows, one for the rest
            full = Rotary.from_settings(settings, size, theta=1e6)
            rotary = {"full_attention": full, "sliding_attention": Rotary(size, local)}
        else:
            rotary = {
                "full_attention": Rotary.from_settings(settings, size, "full_attention", theta=1e6),
                "sliding_attention": Rotary.from_settings(settings, size, "sliding_attention", theta=local),
            }
        return cls(
            **common(
                settings,
                kind=lambda number: "sliding_attention" if (number + 1) % pattern else "full_attention",
                head_dim=256,
                rotary=rotary,
                act="gelu_pytorch_tanh",
                tie=True,
                window=settings.integer("sliding_window", default=4096),
            ),
            attention_bias=settings.flag("attention_bias"),
            query_pre_attn_scalar=settings.number("query_pre_attn_scalar", default=256.0),
            attn_logit_softcapping=settings.optional_number("attn_logit_softcapping"),
            final_logit_softcapping=settings.optional_number("final_logit_softcapping"),
        )


def load(weights: Weights, config: Gemma3Config) -> CausalLM:
    """The model with these weights; of a model that also sees the part that reads text, and no more.

    Raises:
        ValueError: listing all tensors that do not fit.
    """
    c = config
    mixer = attention(
        config,
        bias=c.attention_bias,
        out_bias=c.attention_bias,
        norm=(c.rms_norm_eps, 1.0),
        scale=c.query_pre_attn_scalar**-0.5,
        softcap=c.attn_logit_softcapping,
    )
    return build(
        weights,
        config,
        mixer,
        mlp(config),
        norm_offset=1.0,
        sandwich=True,
        embed_scale=math.sqrt(c.hidden_size),
        logits_softcap=c.final_logit_softcapping,
        beside=lambda name: name.startswith(_SEEING),
    )
