"""What the configs and checkpoints of decoder families have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ferrum_models.causal import ACTIVATIONS, CausalLM, Decoder, DecoderConfig
from ferrum_models.config import Settings
from ferrum_models.layers import (
    MLP,
    Attention,
    DecoderLayer,
    Embedding,
    FeedForward,
    Linear,
    Mixer,
    RMSNorm,
    Rotary,
)
from ferrum_models.weights import Weights
from ferrum_ops import DynamicScaling

__all__ = ["attention", "build", "common", "layer_types", "mlp", "qwen_sparse", "qwen_window"]

_KINDS = ("full_attention", "sliding_attention")


def layer_types(
    settings: Settings, layers: int, default: Callable[[int], str], known: tuple[str, ...] = _KINDS
) -> tuple[str, ...]:
    """The kind of each layer: what the config lists, or else what *default* says of its number.

    Raises:
        ValueError: for a kind that is not among the *known*, or a list of another length.
    """
    listed = settings.words("layer_types", layers, known)
    return tuple(map(default, range(layers))) if listed is None else listed


def common(
    settings: Settings,
    *,
    kind: Callable[[int], str] = lambda number: "full_attention",
    kinds: tuple[str, ...] = _KINDS,
    head_dim: int | None = None,
    rotary: dict[str, Rotary] | None = None,
    act: str = "silu",
    tie: bool = False,
    window: int | None = None,
) -> dict[str, Any]:
    """The entries that all families share, as arguments of ``DecoderConfig``.

    Args:
        settings: the config.
        kind: the kind of a layer by its number, where the config does not list them.
        kinds: those that the family has.
        head_dim: the length of a head where the config does not say; hidden_size / num_attention_heads if absent.
        rotary: how heads turn, by kind of layer; by default alike in all layers, as the config says.
        act: the activation function where the config does not say.
        tie: whether embeddings are tied where the config does not say.
        window: the window of sliding layers.

    Raises:
        ValueError: for an entry that is missing, wrong or not implemented.
    """
    hidden, heads = settings.integer("hidden_size"), settings.integer("num_attention_heads")
    kv_heads = settings.integer("num_key_value_heads", default=heads)
    if heads % kv_heads:
        raise ValueError(
            f"{settings.source}: num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}"
        )
    size = settings.integer("head_dim", default=head_dim or hidden // heads or 1)
    layers = settings.integer("num_hidden_layers")
    listed = layer_types(settings, layers, kind, kinds)
    if rotary is None:
        rotary = {"full_attention": Rotary.from_settings(settings, size)}
    positions: float = settings.integer("max_position_embeddings", default=2048)
    scaling = rotary["full_attention"].scaling
    if isinstance(scaling, DynamicScaling):  # it is there for sequences longer than those of the training
        positions = scaling.max_position_embeddings * scaling.factor
    if "sliding_attention" in listed and window is None:
        raise ValueError(f"{settings.source}: layer_types has sliding_attention, but sliding_window is not set")
    return {
        "vocab_size": settings.integer("vocab_size"),
        "hidden_size": hidden,
        "intermediate_size": settings.integer("intermediate_size"),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": size,
        "rms_norm_eps": settings.number("rms_norm_eps", default=1e-6),
        "hidden_act": settings.choice("hidden_activation", "hidden_act", known=ACTIVATIONS, default=act),
        "max_position_embeddings": int(positions),
        "tie_word_embeddings": settings.flag("tie_word_embeddings", default=tie),
        "rotary": rotary,
        "layer_types": listed,
        "sliding_window": window,
        "dtype": settings.dtype(),
        "eos_token_ids": settings.integers("eos_token_id"),
        "settings": settings,
    }


def qwen_window(settings: Settings) -> dict[str, Any]:
    """The windows of a Qwen: in the layers from ``max_window_layers`` on, if ``use_sliding_window`` says so."""
    if not settings.flag("use_sliding_window"):
        return {}
    first = settings.integer("max_window_layers", default=28, least=0)
    window = settings.optional_integer("sliding_window")
    if window is None:
        return {}
    return {"window": window, "kind": lambda number: "sliding_attention" if number >= first else "full_attention"}


def qwen_sparse(settings: Settings) -> tuple[bool, ...]:
    """For each layer of a Qwen whether it is a mixture of experts: every ``decoder_sparse_step``-th, but for some."""
    step = settings.integer("decoder_sparse_step", default=1)
    dense = settings.integers("mlp_only_layers")
    return tuple(n not in dense and (n + 1) % step == 0 for n in range(settings.integer("num_hidden_layers")))


def attention(config: DecoderConfig, **options: Any) -> Callable[[Weights, int], Mixer]:
    """What reads the attention of each layer; *options* are those of ``Attention.load``."""

    def read(weights: Weights, number: int) -> Mixer:
        kind = config.layer_types[number]
        return Attention.load(
            weights.at("self_attn"),
            config.hidden_size,
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            number,
            window=config.window(number),
            rope=kind if kind in config.rotary else "full_attention",
            **options,
        )

    return read


def mlp(config: DecoderConfig, *, bias: bool = False) -> Callable[[Weights, int], FeedForward]:
    """What reads the gated perceptron of each layer."""

    def read(weights: Weights, number: int) -> FeedForward:
        return MLP.load(weights.at("mlp"), config.hidden_size, config.intermediate_size, config.hidden_act, bias=bias)

    return read


def build(
    weights: Weights,
    config: DecoderConfig,
    mixer: Callable[[Weights, int], Mixer],
    feed_forward: Callable[[Weights, int], FeedForward],
    *,
    norm_offset: float = 0.0,
    sandwich: bool = False,
    embed_scale: float | None = None,
    logits_softcap: float | None = None,
    beside: Callable[[str], bool] = lambda name: False,
) -> CausalLM:
    """The model whose parts *mixer* and *feed_forward* read, each given the weights of layer *number* and the number.

    Of tensors for which *beside* is true a checkpoint may have any, and nothing is made of them.

    Raises:
        ValueError: listing all tensors that are missing, have another shape or are not known.
    """
    hidden, eps = config.hidden_size, config.rms_norm_eps
    part = weights.at("model")

    def norm(at: Weights) -> RMSNorm:
        return RMSNorm.load(at, hidden, eps, norm_offset)

    def one(number: int) -> DecoderLayer:
        at = part.at("layers", number)
        mixing = mixer(at, number)
        recurrent = config.layer_types[number] == "linear_attention"
        return DecoderLayer(
            norm(at.at("input_layernorm")),
            None if recurrent else mixing,
            norm(at.at("post_attention_layernorm")),
            feed_forward(at, number),
            norm(at.at("pre_feedforward_layernorm")) if sandwich else None,
            norm(at.at("post_feedforward_layernorm")) if sandwich else None,
            mixing if recurrent else None,
        )

    decoder = Decoder(
        Embedding.load(part.at("embed_tokens"), config.vocab_size, hidden),
        tuple(map(one, range(config.num_hidden_layers))),
        norm(part.at("norm")),
        embed_scale,
    )
    tied = config.tie_word_embeddings
    head = None if tied else Linear.load(weights.at("lm_head"), hidden, config.vocab_size)

    def ignore(name: str) -> bool:
        # tables that older checkpoints carry along, and the copy of a tied embedding
        return name.endswith("rotary_emb.inv_freq") or (tied and name == "lm_head.weight") or beside(name)

    weights.check(ignore=ignore)
    return CausalLM(config, decoder, head, logits_softcap)
