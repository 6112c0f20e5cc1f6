"""Multi-head attention with rotary positions, as decoders have it."""

from __future__ import annotations

from dataclasses import field

from ferrum_array import Tensor
from ferrum_models.layers.basic import Linear, RMSNorm, project
from ferrum_models.layers.module import Module, layer
from ferrum_models.layers.step import Room, Step, Turn
from ferrum_models.weights import Weights
from ferrum_ops import KVCache, sigmoid_gate

__all__ = ["Attention"]


@layer
class Attention(Module):
    """Attention over keys and values of grouped heads, with the options that families use.

    Attributes:
        heads: query heads. q_proj makes ``heads * head_dim`` numbers, twice as many with *gated*.
        kv_heads: key and value heads, each read by ``heads / kv_heads`` query heads.
        head_dim: the length of a head.
        number: the layer's place in the model, which finds its keys and values in a cache.
        q_norm: RMS norm of each query head before it turns, and k_norm of each key head; both or none.
        sinks: [heads], one more score for each head, without a value.
        scale: factor of the scores; 1 / sqrt(head_dim) if absent.
        window: each token sees the last *window* tokens, its own counted.
        softcap: scores become ``softcap * tanh(score / softcap)``.
        rope: which of the step's tables turns the heads; None for none.
        gated: q_proj also makes a gate for each head, whose sigmoid multiplies what the head has read.

    Source: Ainslie et al., "GQA", 2023; Su et al., "RoFormer", 2021.
    """

    q_proj: Linear
    k_proj: Linear
    v_proj: Linear
    o_proj: Linear
    heads: int
    kv_heads: int
    head_dim: int
    number: int = field(repr=False)
    q_norm: RMSNorm | None = None
    k_norm: RMSNorm | None = None
    sinks: Tensor | None = None
    scale: float | None = None
    window: int | None = None
    softcap: float | None = None
    rope: str | None = "full_attention"
    gated: bool = False

    @classmethod
    def load(
        cls,
        weights: Weights,
        hidden: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        number: int,
        *,
        bias: bool = False,
        out_bias: bool = False,
        norm: tuple[float, float] | None = None,
        sinks: bool = False,
        scale: float | None = None,
        window: int | None = None,
        softcap: float | None = None,
        rope: str | None = "full_attention",
        gated: bool = False,
    ) -> Attention:
        """The layer whose parts are ``q_proj``, ``k_proj``, ``v_proj``, ``o_proj`` and those that the options add.

        *norm* is the eps and the offset of the norms of queries and keys; without it there are none.
        """
        queries, keys = heads * head_dim, kv_heads * head_dim
        return cls(
            Linear.load(weights.at("q_proj"), hidden, queries * (2 if gated else 1), bias=bias),
            Linear.load(weights.at("k_proj"), hidden, keys, bias=bias),
            Linear.load(weights.at("v_proj"), hidden, keys, bias=bias),
            Linear.load(weights.at("o_proj"), queries, hidden, bias=out_bias),
            heads,
            kv_heads,
            head_dim,
            number,
            q_norm=None if norm is None else RMSNorm.load(weights.at("q_norm"), head_dim, *norm),
            k_norm=None if norm is None else RMSNorm.load(weights.at("k_norm"), head_dim, *norm),
            sinks=weights.take("sinks", (heads,)) if sinks else None,
            scale=scale,
            window=window,
            softcap=softcap,
            rope=rope,
            gated=gated,
        )

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        """Packed tokens x [T, hidden] to [T, hidden]."""
        tokens = x.shape[0]
        q, k, v = project(x, self.q_proj, self.k_proj, self.v_proj)
        gate = None
        if self.gated:
            both = q.reshape(tokens, self.heads, 2 * self.head_dim)
            q, gate = both[..., : self.head_dim], both[..., self.head_dim :]
        q = q.reshape(tokens, self.heads, self.head_dim)
        k = k.reshape(tokens, self.kv_heads, self.head_dim)
        v = v.reshape(tokens, self.kv_heads, self.head_dim)
        turn = self._turn(step)
        if turn is None and self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        seen = step.attend(
            q,
            k,
            v,
            self.number,
            turn=turn,
            scale=self.scale,
            window=self.window,
            softcap=self.softcap,
            sinks=self.sinks,
        )
        if gate is not None:
            seen = sigmoid_gate(seen, gate)
        return self.o_proj(seen.reshape(tokens, self.heads * self.head_dim))

    def new_cache(self, room: Room) -> KVCache:
        """Memory for the keys and values of this layer."""
        return room.keys(self.kv_heads, self.head_dim, self.head_dim, self.window)

    def _turn(self, step: Step) -> Turn | None:
        """How queries and keys turn by their positions, normalised first where there are norms."""
        if self.rope is None:
            return None
        cos, sin = step.tables[self.rope]
        if self.q_norm is None or self.k_norm is None:
            return Turn(cos, sin)
        return Turn(cos, sin, self.q_norm.eps, self.q_norm.weight, self.k_norm.weight, self.q_norm.offset)
