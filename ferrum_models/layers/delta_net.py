"""Gated delta net: a memory of fixed size in place of keys and values."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import ferrum_array as fa
from ferrum_array import Tensor
from ferrum_models.layers.basic import Linear, RMSNorm
from ferrum_models.layers.module import Module, layer
from ferrum_models.layers.step import Room, Step
from ferrum_models.weights import Weights
from ferrum_ops import ActivationKind, causal_conv1d, gated_activation, gated_delta_rule, gdn_gates

__all__ = ["DepthwiseConv", "GatedDeltaNet", "RecurrentState"]


@dataclass(frozen=True)
class RecurrentState:
    """What a gated delta net keeps of its sequences, a row for each; a pass makes a new one and leaves this as it is.

    Attributes:
        conv: [S, K - 1, C], the last inputs of the convolution.
        delta: [S, H, D, Dv], the memory of each head.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_models.layers import RecurrentState
        >>> RecurrentState(fa.ones((2, 3, 4)), fa.ones((2, 1, 2, 2))).cleared([1]).conv[:, 0, 0]
        Tensor([1., 0.])
    """

    conv: Tensor
    delta: Tensor

    @property
    def nbytes(self) -> int:
        """The bytes of both."""
        return self.conv.nbytes + self.delta.nbytes

    def cleared(self, rows: list[int]) -> RecurrentState:
        """The same, but the sequences *rows* have read nothing."""
        made = []
        for one in fields(self):
            new = getattr(self, one.name).copy()
            for row in rows:
                new[row] = 0.0
            made.append(new)
        return RecurrentState(*made)


@layer
class DepthwiseConv(Module):
    """A short causal convolution of each channel by itself: weight [C, 1, K]."""

    weight: Tensor

    def __call__(
        self, x: Tensor, state: Tensor | None, step: Step, activation: ActivationKind
    ) -> tuple[Tensor, Tensor]:
        """Packed tokens x [T, C] to [T, C], and the state [S, K - 1, C] after them."""
        return causal_conv1d(x, self.weight[:, 0], state, step.meta, activation=activation)


@layer
class GatedDeltaNet(Module):
    """Linear attention whose memory forgets by a gate and is corrected by the delta rule.

    Attributes:
        in_proj_qkvz: makes, for each key head, its query, its key, and the values and output gates of its value heads.
        in_proj_ba: makes, for each key head, how far each of its value heads writes, and how far it forgets.
        conv1d: of queries, keys and values, before they are used.
        dt_bias: [H], added to what decides on forgetting.
        A_log: [H], the logarithm of how fast a head forgets.
        norm: of each head's result.
        out_proj: what all heads have read to one vector.
        key_heads: heads of queries and keys, each for ``value_heads / key_heads`` heads of values.
        value_heads: H.
        key_dim: the length of a query or key.
        value_dim: the length of a value.
        number: the layer's place in the model, which finds its state in a cache.
        act: of the convolution.

    Source: Yang, Kautz and Hatamizadeh, "Gated Delta Networks: improving Mamba2 with delta rule", 2024.
    """

    in_proj_qkvz: Linear
    in_proj_ba: Linear
    conv1d: DepthwiseConv
    dt_bias: Tensor
    A_log: Tensor
    norm: RMSNorm
    out_proj: Linear
    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    number: int = field(repr=False)
    act: ActivationKind = "silu"

    @classmethod
    def load(
        cls,
        weights: Weights,
        hidden: int,
        heads: tuple[int, int],
        dims: tuple[int, int],
        kernel: int,
        eps: float,
        number: int,
        act: ActivationKind = "silu",
    ) -> GatedDeltaNet:
        """The layer whose parts have the names of its fields; *heads* and *dims* are those of keys and of values."""
        keys, values = heads[0] * dims[0], heads[1] * dims[1]
        return cls(
            Linear.load(weights.at("in_proj_qkvz"), hidden, 2 * keys + 2 * values),
            Linear.load(weights.at("in_proj_ba"), hidden, 2 * heads[1]),
            DepthwiseConv(weights.at("conv1d").take("weight", (2 * keys + values, 1, kernel))),
            weights.take("dt_bias", (heads[1],)),
            weights.take("A_log", (heads[1],)),
            RMSNorm.load(weights.at("norm"), dims[1], eps),
            Linear.load(weights.at("out_proj"), values, hidden),
            *heads,
            *dims,
            number,
            act,
        )

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        """Packed tokens x [T, hidden] to [T, hidden]."""
        tokens, heads = x.shape[0], self.value_heads
        keys, values = self.key_heads * self.key_dim, heads * self.value_dim
        q, k, v, z = self._split(self.in_proj_qkvz(x), self.key_dim, self.key_dim, values // self.key_heads)
        b, a = self._split(self.in_proj_ba(x), heads // self.key_heads)
        old = step.kept[self.number] if step.kept else None
        mixed = fa.concat([q.reshape(tokens, keys), k.reshape(tokens, keys), v.reshape(tokens, values)], axis=-1)
        mixed, conv = self.conv1d(mixed, None if old is None else old.conv, step, self.act)
        g, beta = gdn_gates(a.reshape(tokens, heads), b.reshape(tokens, heads), self.A_log, self.dt_bias)
        read, delta = gated_delta_rule(
            mixed[:, :keys].reshape(tokens, self.key_heads, self.key_dim),
            mixed[:, keys : 2 * keys].reshape(tokens, self.key_heads, self.key_dim),
            mixed[:, 2 * keys :].reshape(tokens, heads, self.value_dim),
            g,
            beta,
            None if old is None else old.delta,
            step.meta,
            use_qk_l2norm=True,
        )
        if step.kept:
            step.states[self.number] = RecurrentState(conv, delta)
        gated = gated_activation(z.reshape(tokens, heads, self.value_dim), self.norm(read), "silu")
        return self.out_proj(gated.reshape(tokens, values))

    def new_cache(self, room: Room) -> RecurrentState:
        """The state of sequences that have read nothing, in float32 (float64 where the layer is)."""
        channels, _, kernel = self.conv1d.weight.shape
        wide = fa.float64 if self.conv1d.weight.dtype is fa.float64 else fa.float32
        return RecurrentState(
            fa.zeros((room.sequences, kernel - 1, channels), dtype=wide, device=room.device),
            fa.zeros((room.sequences, self.value_heads, self.key_dim, self.value_dim), dtype=wide, device=room.device),
        )

    def _split(self, x: Tensor, *sizes: int) -> list[Tensor]:
        """Each key head's numbers in parts of these *sizes*, and what is left: [T, key_heads, size] each."""
        both = x.reshape(x.shape[0], self.key_heads, x.shape[1] // self.key_heads)
        parts, start = [], 0
        for size in (*sizes, both.shape[-1] - sum(sizes)):
            parts.append(both[..., start : start + size])
            start += size
        return parts
