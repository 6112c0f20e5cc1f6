"""DeepSeek-V3 and R1: latent attention, experts chosen in groups, dense first layers (DeepSeek-AI, 2024)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ferrum_models.causal import CausalLM, DecoderConfig
from ferrum_models.config import Settings
from ferrum_models.families.common import build, common, mlp
from ferrum_models.layers import MLA, MLP, Experts, FeedForward, Mixer, MoE, Rotary, Router
from ferrum_models.weights import Weights
from ferrum_ops import YarnScaling

__all__ = ["DeepseekV3Config", "load"]


@dataclass(frozen=True)
class DeepseekV3Config(DecoderConfig):
    """What ``config.json`` of a DeepSeek-V3 says.

    Attributes:
        attention_scale: factor of the scores, which YaRN changes.
        prediction_layers: how many layers for tokens further ahead follow in the checkpoint; they are not read.
    """

    attention_bias: bool
    attention_scale: float
    first_k_dense_replace: int
    kv_lora_rank: int
    moe_intermediate_size: int
    n_group: int
    n_routed_experts: int
    n_shared_experts: int
    norm_topk_prob: bool
    num_experts_per_tok: int
    prediction_layers: int
    q_lora_rank: int | None
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    rope_interleave: bool
    routed_scaling_factor: float
    topk_group: int
    v_head_dim: int

    @classmethod
    def from_settings(cls, settings: Settings) -> DeepseekV3Config:
        """The config in *settings*.

        Raises:
            ValueError: for an entry that is missing, wrong or not implemented.
        """
        settings.refuse("moe_layer_freq", 1)
        settings.refuse("scoring_func", "sigmoid")
        settings.refuse("topk_method", "noaux_tc")
        settings.refuse("pretraining_tp", 1)
        turning = settings.integer("qk_rope_head_dim", default=64)
        plain = settings.integer("qk_nope_head_dim", default=128, least=0)
        rotary = Rotary.from_settings(settings, turning)
        experts = settings.integer("n_routed_experts", "num_local_experts", default=256)
        groups = settings.integer("n_group", default=8)
        per_token = settings.integer("num_experts_per_tok", default=8)
        chosen = settings.integer("topk_group", default=4)
        if experts % groups or chosen > groups or per_token > chosen * (experts // groups):
            raise ValueError(
                f"{settings.source}: {per_token} experts of {experts} cannot come from {chosen} of {groups} groups: "
                "see num_experts_per_tok, n_routed_experts, topk_group and n_group"
            )
        return cls(
            **common(settings, kinds=("full_attention",), head_dim=turning, rotary={"full_attention": rotary}),
            attention_bias=settings.flag("attention_bias"),
            attention_scale=(plain + turning) ** -0.5 * _stretch(rotary) ** 2,
            first_k_dense_replace=settings.integer("first_k_dense_replace", default=3, least=0),
            kv_lora_rank=settings.integer("kv_lora_rank", default=512),
            moe_intermediate_size=settings.integer("moe_intermediate_size", default=2048),
            n_group=groups,
            n_routed_experts=experts,
            n_shared_experts=settings.integer("n_shared_experts", default=1),
            norm_topk_prob=settings.flag("norm_topk_prob", default=True),
            num_experts_per_tok=per_token,
            prediction_layers=settings.integer("num_nextn_predict_layers", "num_mtp_layers", default=1, least=0),
            q_lora_rank=_query_rank(settings),
            qk_nope_head_dim=plain,
            qk_rope_head_dim=turning,
            rope_interleave=settings.flag("rope_interleave", default=True),
            routed_scaling_factor=settings.number("routed_scaling_factor", default=2.5),
            topk_group=chosen,
            v_head_dim=settings.integer("v_head_dim", default=128),
        )


def _query_rank(settings: Settings) -> int | None:
    """The length of the short vector of queries; null says that there is none, and no entry that it is the usual."""
    return settings.optional_integer("q_lora_rank") if "q_lora_rank" in settings.values else 1536


def _stretch(rotary: Rotary) -> float:
    """By how much the scores grow on the side of the queries, and again on that of the keys, as YaRN stretches."""
    scaling = rotary.scaling
    if not isinstance(scaling, YarnScaling) or scaling.mscale_all_dim is None or scaling.factor <= 1.0:
        return 1.0
    return 0.1 * scaling.mscale_all_dim * math.log(scaling.factor) + 1.0


def load(weights: Weights, config: DeepseekV3Config) -> CausalLM:
    """The model with these weights; the layers that predict tokens further ahead are left out.

    Raises:
        ValueError: listing all tensors that do not fit.
    """
    c = config
    dense = mlp(config)

    def mixer(at: Weights, number: int) -> Mixer:
        return MLA.load(
            at.at("self_attn"),
            c.hidden_size,
            c.num_attention_heads,
            (c.qk_nope_head_dim, c.qk_rope_head_dim, c.v_head_dim),
            (c.q_lora_rank, c.kv_lora_rank),
            number,
            scale=c.attention_scale,
            bias=c.attention_bias,
            interleaved=c.rope_interleave,
        )

    def feed_forward(at: Weights, number: int) -> FeedForward:
        if number < c.first_k_dense_replace:
            return dense(at, number)
        part = at.at("mlp")
        inner, gate = c.moe_intermediate_size, part.at("gate")
        router = Router(
            gate.take("weight", (c.n_routed_experts, c.hidden_size)),
            c.num_experts_per_tok,
            score="sigmoid",
            norm=c.norm_topk_prob,
            e_score_correction_bias=gate.take("e_score_correction_bias", (c.n_routed_experts,)),
            n_group=c.n_group,
            topk_group=c.topk_group,
            scale=c.routed_scaling_factor,
        )
        return MoE(
            router,
            Experts.load(part.at("experts"), c.n_routed_experts, c.hidden_size, inner, c.hidden_act),
            MLP.load(part.at("shared_experts"), c.hidden_size, inner * c.n_shared_experts, c.hidden_act),
        )

    first = c.num_hidden_layers
    further = tuple(f"model.layers.{number}." for number in range(first, first + c.prediction_layers))
    return build(weights, config, mixer, feed_forward, beside=lambda name: name.startswith(further))
