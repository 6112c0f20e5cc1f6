"""A layer of a decoder: attention and a feed-forward network, each added to what came in."""

from __future__ import annotations

from typing import Protocol

from ferrum_array import Tensor
from ferrum_models.layers.basic import RMSNorm
from ferrum_models.layers.delta_net import RecurrentState
from ferrum_models.layers.module import Module, layer
from ferrum_models.layers.step import Room, Step
from ferrum_ops import KVCache

__all__ = ["DecoderLayer", "FeedForward", "Mixer"]


class Mixer(Protocol):
    """What lets tokens see each other: attention, or a recurrence."""

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        """Packed tokens x [T, hidden] to [T, hidden]."""

    def new_cache(self, room: Room) -> KVCache | RecurrentState:
        """What the layer keeps from one pass to the next."""


class FeedForward(Protocol):
    """What works on each token by itself."""

    def __call__(self, x: Tensor) -> Tensor:
        """Tokens x [T, hidden] to [T, hidden]."""


@layer
class DecoderLayer(Module):
    """``x += mixer(norm(x)); x += mlp(norm(x))``; with the two later norms also what is added is normalised.

    Attributes:
        input_layernorm: before the mixer.
        self_attn: the mixer where it is attention.
        post_attention_layernorm: before the feed-forward network; where there are four norms, of the mixer's result.
        mlp: the feed-forward network.
        pre_feedforward_layernorm: where there are four norms, before the feed-forward network.
        post_feedforward_layernorm: where there are four norms, of its result.
        linear_attn: the mixer where it is a recurrence.

    Source: Xiong et al., "On layer normalization in the transformer architecture", 2020.
    """

    input_layernorm: RMSNorm
    self_attn: Mixer | None
    post_attention_layernorm: RMSNorm
    mlp: FeedForward
    pre_feedforward_layernorm: RMSNorm | None = None
    post_feedforward_layernorm: RMSNorm | None = None
    linear_attn: Mixer | None = None

    @property
    def mixer(self) -> Mixer:
        """What lets tokens see each other.

        Raises:
            ValueError: if the layer has none, or two.
        """
        both = (self.self_attn, self.linear_attn)
        found = [one for one in both if one is not None]
        if len(found) != 1:
            raise ValueError(f"DecoderLayer: either self_attn or linear_attn must be there, got {both}")
        return found[0]

    def __call__(self, x: Tensor, step: Step, change: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Packed tokens x [T, hidden], and what the layer before adds to them, to the same two of this layer.

        The sum ``x + change`` is left to the norm that comes next, which makes it on its way.
        """
        inner, x = self.input_layernorm.of_sum(x, change)
        seen = self.mixer(inner, step)
        if self.pre_feedforward_layernorm is None or self.post_feedforward_layernorm is None:
            inner, x = self.post_attention_layernorm(seen, x)
            return x, self.mlp(inner)
        inner, x = self.pre_feedforward_layernorm(self.post_attention_layernorm(seen), x)
        return x, self.post_feedforward_layernorm(self.mlp(inner))
