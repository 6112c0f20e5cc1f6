"""BERT encoders, in the names of their checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ferrum_array as fa
from ferrum_array import Tensor
from ferrum_models.causal import ACTIVATIONS
from ferrum_models.config import Settings
from ferrum_models.layers import Embedding, LayerNorm, Linear
from ferrum_models.weights import Weights
from ferrum_ops import ActivationKind, SequenceMeta, activation, attention

__all__ = ["BertConfig", "BertModel"]


@dataclass(frozen=True)
class BertConfig:
    """What ``config.json`` says about a BERT encoder.

    Examples:
        >>> from ferrum_models import BertConfig
        >>> BertConfig.from_dict({"model_type": "bert", "hidden_size": 8})
        Traceback (most recent call last):
        ...
        ValueError: the config: there is no vocab_size; it must be an integer of at least 1
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int
    layer_norm_eps: float
    hidden_act: ActivationKind

    @classmethod
    def load(cls, path: Path) -> BertConfig:
        """The config in the file *path*.

        Raises:
            FileNotFoundError: if there is no such file. ValueError: as :meth:`from_settings`, and if it holds no JSON.
        """
        return cls.from_settings(Settings.load(path))

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> BertConfig:
        """The config in a dictionary; for errors see :meth:`from_settings`."""
        return cls.from_settings(Settings(config))

    @classmethod
    def from_settings(cls, settings: Settings) -> BertConfig:
        """The config in *settings*; entries that inference does not need are not looked at.

        Raises:
            ValueError: for a missing or bad entry, or another architecture, activation function or kind of position
                than those implemented.
        """
        settings.choice("model_type", known={"bert": None})
        settings.refuse("position_embedding_type", "absolute")
        for name in ("is_decoder", "add_cross_attention"):
            settings.refuse(name)
        made = cls(
            vocab_size=settings.integer("vocab_size"),
            hidden_size=settings.integer("hidden_size"),
            num_hidden_layers=settings.integer("num_hidden_layers"),
            num_attention_heads=settings.integer("num_attention_heads"),
            intermediate_size=settings.integer("intermediate_size"),
            max_position_embeddings=settings.integer("max_position_embeddings"),
            type_vocab_size=settings.integer("type_vocab_size", default=2),
            layer_norm_eps=settings.number("layer_norm_eps", default=1e-12),
            hidden_act=settings.choice("hidden_act", known=ACTIVATIONS, default="gelu"),
        )
        if made.hidden_size % made.num_attention_heads:
            raise ValueError(
                f"{settings.source}: hidden_size {made.hidden_size} is not a multiple of num_attention_heads "
                f"{made.num_attention_heads}"
            )
        return made

    @property
    def head_dim(self) -> int:
        """The length of one head's queries, keys and values."""
        return self.hidden_size // self.num_attention_heads


@dataclass(frozen=True)
class BertEmbeddings:
    """The sum of what a token is, where it stands and to which segment it belongs."""

    word_embeddings: Embedding
    position_embeddings: Embedding
    token_type_embeddings: Embedding
    norm: LayerNorm

    @classmethod
    def load(cls, weights: Weights, config: BertConfig) -> BertEmbeddings:
        """Take the tensors of the embeddings."""
        size = config.hidden_size
        position, types = config.max_position_embeddings, config.type_vocab_size
        return cls(
            Embedding.load(weights.at("word_embeddings"), config.vocab_size, size),
            Embedding.load(weights.at("position_embeddings"), position, size),
            Embedding.load(weights.at("token_type_embeddings"), types, size),
            LayerNorm.load(weights.at("LayerNorm"), size, config.layer_norm_eps),
        )

    def __call__(self, ids: Tensor, meta: SequenceMeta, token_types: Tensor | None) -> Tensor:
        """Ids [T] to vectors [T, hidden]."""
        positions = fa.asarray(meta.token_positions, dtype=fa.int64, device=ids.device)
        table = self.token_type_embeddings
        types = table.weight[0] if token_types is None else table(token_types)
        return self.norm(self.word_embeddings(ids) + types, self.position_embeddings(positions))


@dataclass(frozen=True)
class BertLayer:
    """Attention and a two-layer perceptron; after each, the input is added and the sum normalised."""

    config: BertConfig
    query_key_value: Linear
    attention_output: Linear
    attention_norm: LayerNorm
    intermediate: Linear
    output: Linear
    output_norm: LayerNorm

    @classmethod
    def load(cls, weights: Weights, config: BertConfig) -> BertLayer:
        """Take the tensors of one layer; queries, keys and values become one product."""
        size, inner, eps = config.hidden_size, config.intermediate_size, config.layer_norm_eps
        attended = weights.at("attention")
        return cls(
            config,
            Linear.load_joined(attended.at("self"), ("query", "key", "value"), size, size),
            Linear.load(attended.at("output", "dense"), size, size, bias=True),
            LayerNorm.load(attended.at("output", "LayerNorm"), size, eps),
            Linear.load(weights.at("intermediate", "dense"), size, inner, bias=True),
            Linear.load(weights.at("output", "dense"), inner, size, bias=True),
            LayerNorm.load(weights.at("output", "LayerNorm"), size, eps),
        )

    def __call__(self, x: Tensor, meta: SequenceMeta) -> Tensor:
        """Packed tokens x [T, hidden] to [T, hidden]."""
        heads, dim = self.config.num_attention_heads, self.config.head_dim
        joined = self.query_key_value(x).reshape(x.shape[0], 3, heads, dim)
        seen = attention(joined[:, 0], joined[:, 1], joined[:, 2], causal=False, meta=meta)
        x = self.attention_norm(self.attention_output(seen.reshape(*x.shape)), x)
        inner = activation(self.intermediate(x), self.config.hidden_act)
        return self.output_norm(self.output(inner), x)


@dataclass(frozen=True)
class BertModel:
    """A BERT encoder without a head (Devlin et al., "BERT", 2018).

    Sequences are packed without padding; a :class:`~ferrum_ops.SequenceMeta` says where each lies.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_models import load_encoder
        >>> from ferrum_models.demo import demo_model
        >>> from ferrum_ops import SequenceMeta
        >>> model = load_encoder(demo_model()).model
        >>> model(fa.asarray([101, 7592, 102, 101, 102]), SequenceMeta.packed([3, 2])).shape
        (5, 384)
    """

    config: BertConfig
    embeddings: BertEmbeddings
    layers: tuple[BertLayer, ...]

    @classmethod
    def load(cls, weights: Weights, config: BertConfig) -> BertModel:
        """Take the tensors of a whole encoder.

        Raises:
            ValueError: listing all tensors that are missing or have another shape.
        """
        # checkpoints with a head keep the encoder in a part of its own
        part = weights.at("bert") if "bert.embeddings.LayerNorm.weight" in weights else weights
        numbers = range(config.num_hidden_layers)
        model = cls(
            config,
            BertEmbeddings.load(part.at("embeddings"), config),
            tuple(BertLayer.load(part.at("encoder", "layer", n), config) for n in numbers),
        )
        weights.check()
        return model

    def __call__(self, ids: Tensor, meta: SequenceMeta, token_types: Tensor | None = None) -> Tensor:
        """The last layer's vectors [T, hidden] of packed token *ids* [T].

        *token_types* [T] says to which segment each token belongs; without it, all to segment 0.

        Raises:
            ValueError: if *ids* and *meta* differ in length, or a sequence is longer than the
                model's positions. IndexError: for ids outside the vocabulary.
        """
        if ids.shape != (meta.tokens,):
            raise ValueError(f"BertModel: ids must be [{meta.tokens}] as meta says, got {ids.shape}")
        longest, limit = max(meta.lengths, default=0), self.config.max_position_embeddings
        if longest > limit:
            raise ValueError(f"BertModel: a sequence has {longest} tokens, but positions end at {limit}")
        x = self.embeddings(ids, meta, token_types)
        for layer in self.layers:
            x = layer(x, meta)
        return x

    @property
    def parameters(self) -> int:
        """How many numbers the encoder has learnt."""
        config = self.config
        size, inner = config.hidden_size, config.intermediate_size
        tables = config.vocab_size + config.max_position_embeddings + config.type_vocab_size
        layer = 4 * size * (size + 1) + 2 * size * inner + inner + size + 4 * size
        return tables * size + 2 * size + config.num_hidden_layers * layer
