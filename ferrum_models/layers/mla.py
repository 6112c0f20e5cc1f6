"""Multi-head latent attention: what is kept of a token is one short vector for all heads."""

from __future__ import annotations

from dataclasses import field

import ferrum_array as fa
from ferrum_array import Tensor
from ferrum_models.layers.basic import Linear, RMSNorm
from ferrum_models.layers.module import Module, layer
from ferrum_models.layers.step import Room, Step
from ferrum_models.weights import Weights
from ferrum_ops import KVCache, rope

__all__ = ["MLA"]

#: of the norms of the two short vectors, whatever the config says of the other norms
_EPS = 1e-6


@layer
class MLA(Module):
    """Attention over latents: queries, keys and values are made from short vectors, keys share one rotated part.

    Attributes:
        kv_a_proj_with_mqa: makes the latent of each token, and the rotated part of its key.
        kv_a_layernorm: of the latent.
        kv_b_proj: makes of a latent the keys and values of all heads; its weight is dense.
        q_proj: makes queries, or else q_a_proj, q_a_layernorm and q_b_proj do, through a short vector too.
        heads: how many.
        nope_dim: the numbers of a head that do not turn.
        rope_dim: those that do.
        value_dim: the length of a value.
        scale: factor of the scores.
        number: the layer's place in the model, which finds its latents in a cache.
        interleaved: neighbours turn together, rather than the two halves.

    Source: DeepSeek-AI, "DeepSeek-V2", 2024.
    """

    kv_a_proj_with_mqa: Linear
    kv_a_layernorm: RMSNorm
    kv_b_proj: Linear
    o_proj: Linear
    heads: int
    nope_dim: int
    rope_dim: int
    value_dim: int
    scale: float
    number: int = field(repr=False)
    q_proj: Linear | None = None
    q_a_proj: Linear | None = None
    q_a_layernorm: RMSNorm | None = None
    q_b_proj: Linear | None = None
    interleaved: bool = True

    @classmethod
    def load(
        cls,
        weights: Weights,
        hidden: int,
        heads: int,
        dims: tuple[int, int, int],
        ranks: tuple[int | None, int],
        number: int,
        *,
        scale: float,
        bias: bool = False,
        interleaved: bool = True,
    ) -> MLA:
        """The layer whose parts have the names of its fields.

        *dims* are those of a head that do not turn, those that do, and of a value; *ranks* are the lengths of the short
        vectors of queries, None where there is none, and of keys and values.
        """
        nope, turning, value = dims
        query_rank, rank = ranks
        queries = heads * (nope + turning)
        common = {
            "kv_a_proj_with_mqa": Linear.load(weights.at("kv_a_proj_with_mqa"), hidden, rank + turning, bias=bias),
            "o_proj": Linear.load(weights.at("o_proj"), heads * value, hidden, bias=bias),
        }
        if query_rank is None:
            common["q_proj"] = Linear.load(weights.at("q_proj"), hidden, queries)
        else:
            common["q_a_proj"] = Linear.load(weights.at("q_a_proj"), hidden, query_rank, bias=bias)
            common["q_b_proj"] = Linear.load(weights.at("q_b_proj"), query_rank, queries)
        kv_b = weights.at("kv_b_proj").take("weight", (heads * (nope + value), rank))
        return cls(
            kv_b_proj=Linear(kv_b),
            kv_a_layernorm=RMSNorm.load(weights.at("kv_a_layernorm"), rank, _EPS),
            q_a_layernorm=None if query_rank is None else RMSNorm.load(weights.at("q_a_layernorm"), query_rank, _EPS),
            heads=heads,
            nope_dim=nope,
            rope_dim=turning,
            value_dim=value,
            scale=scale,
            number=number,
            interleaved=interleaved,
            **common,
        )

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        """Packed tokens x [T, hidden] to [T, hidden]."""
        tokens = x.shape[0]
        cos, sin = step.tables["full_attention"]
        q = self._queries(x).reshape(tokens, self.heads, self.nope_dim + self.rope_dim)
        turned = rope(q[..., self.nope_dim :], cos, sin, interleaved=self.interleaved)
        both = self.kv_a_proj_with_mqa(x)
        rank = both.shape[1] - self.rope_dim
        latent = self.kv_a_layernorm(both[:, :rank])
        k_rope = rope(both[:, None, rank:], cos, sin, interleaved=self.interleaved)[:, 0]
        w = self.kv_b_proj.matrix
        seen = step.attend_latent(
            fa.concat((q[..., : self.nope_dim], turned), axis=-1),
            w.reshape(self.heads, self.nope_dim + self.value_dim, rank),
            latent,
            k_rope,
            self.number,
            scale=self.scale,
        )
        return self.o_proj(seen.reshape(tokens, self.heads * self.value_dim))

    def new_cache(self, room: Room) -> KVCache:
        """Memory for the latents of this layer, as one head, and the rotated parts of its keys beside them."""
        return room.keys(1, self.kv_a_layernorm.weight.shape[0], self.rope_dim)

    def _queries(self, x: Tensor) -> Tensor:
        if self.q_proj is not None:
            return self.q_proj(x)
        if self.q_a_proj is None or self.q_a_layernorm is None or self.q_b_proj is None:
            raise ValueError("MLA: queries need q_proj, or q_a_proj, q_a_layernorm and q_b_proj together")
        return self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))
