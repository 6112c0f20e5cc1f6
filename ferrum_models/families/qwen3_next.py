"""Qwen3-Next: three layers of gated delta net to one of gated attention, and many experts (Qwen Team, 2025)."""

from __future__ import annotations

from dataclasses import dataclass

from ferrum_models.causal import CausalLM, DecoderConfig
from ferrum_models.config import Settings
from ferrum_models.families.common import attention, build, common, mlp, qwen_sparse
from ferrum_models.layers import MLP, Experts, FeedForward, GatedDeltaNet, Linear, Mixer, MoE, Rotary, Router
from ferrum_models.weights import Weights

__all__ = ["Qwen3NextConfig", "load"]


@dataclass(frozen=True)
class Qwen3NextConfig(DecoderConfig):
    """What ``config.json`` of a Qwen3-Next says.

    Attributes:
        sparse: for each layer, whether it is a mixture of experts.
    """

    attention_bias: bool
    linear_conv_kernel_dim: int
    linear_key_head_dim: int
    linear_num_key_heads: int
    linear_num_value_heads: int
    linear_value_head_dim: int
    moe_intermediate_size: int
    norm_topk_prob: bool
    num_experts: int
    num_experts_per_tok: int
    shared_expert_intermediate_size: int
    sparse: tuple[bool, ...]

    @classmethod
    def from_settings(cls, settings: Settings) -> Qwen3NextConfig:
        """The config in *settings*.

        Raises:
            ValueError: for an entry that is missing, wrong or not implemented.
        """
        size = settings.integer("head_dim", default=256)
        interval = settings.integer("full_attention_interval", default=4)
        shared = common(
            settings,
            kind=lambda number: "linear_attention" if (number + 1) % interval else "full_attention",
            kinds=("full_attention", "linear_attention"),
            head_dim=256,
            rotary={"full_attention": Rotary.from_settings(settings, size, share=0.25)},
        )
        heads = settings.integer("linear_num_key_heads", default=16)
        values = settings.integer("linear_num_value_heads", default=32)
        if values % heads:
            raise ValueError(
                f"{settings.source}: linear_num_value_heads {values} is not a multiple of linear_num_key_heads {heads}"
            )
        experts = settings.integer("num_local_experts", "num_experts", default=512)
        return cls(
            **shared,
            attention_bias=settings.flag("attention_bias"),
            linear_conv_kernel_dim=settings.integer("linear_conv_kernel_dim", default=4),
            linear_key_head_dim=settings.integer("linear_key_head_dim", default=128),
            linear_num_key_heads=heads,
            linear_num_value_heads=values,
            linear_value_head_dim=settings.integer("linear_value_head_dim", default=128),
            moe_intermediate_size=settings.integer("moe_intermediate_size", default=512),
            norm_topk_prob=settings.flag("norm_topk_prob", default=True),
            num_experts=experts,
            num_experts_per_tok=settings.integer("num_experts_per_tok", default=10, most=experts),
            shared_expert_intermediate_size=settings.integer("shared_expert_intermediate_size", default=512),
            sparse=qwen_sparse(settings),
        )


def load(weights: Weights, config: Qwen3NextConfig) -> CausalLM:
    """The model with these weights; ``mtp``, which predicts tokens further ahead, is left out.

    Raises:
        ValueError: listing all tensors that do not fit.
    """
    c = config
    dense = mlp(config)
    bias = c.attention_bias
    # the norms of the decoder are stored around 0, that inside the delta net around 1
    attending = attention(config, bias=bias, out_bias=bias, norm=(c.rms_norm_eps, 1.0), gated=True)

    def mixer(at: Weights, number: int) -> Mixer:
        if c.layer_types[number] == "full_attention":
            return attending(at, number)
        return GatedDeltaNet.load(
            at.at("linear_attn"),
            c.hidden_size,
            (c.linear_num_key_heads, c.linear_num_value_heads),
            (c.linear_key_head_dim, c.linear_value_head_dim),
            c.linear_conv_kernel_dim,
            c.rms_norm_eps,
            number,
            c.hidden_act,
        )

    def feed_forward(at: Weights, number: int) -> FeedForward:
        if not c.sparse[number]:
            return dense(at, number)
        part = at.at("mlp")
        return MoE(
            Router(
                part.at("gate").take("weight", (c.num_experts, c.hidden_size)),
                c.num_experts_per_tok,
                norm=c.norm_topk_prob,
            ),
            Experts.load(part.at("experts"), c.num_experts, c.hidden_size, c.moe_intermediate_size, c.hidden_act),
            shared_expert=MLP.load(
                part.at("shared_expert"), c.hidden_size, c.shared_expert_intermediate_size, c.hidden_act
            ),
            shared_expert_gate=Linear.load(part.at("shared_expert_gate"), c.hidden_size, 1),
        )

    return build(weights, config, mixer, feed_forward, norm_offset=1.0, beside=lambda name: name.startswith("mtp."))
