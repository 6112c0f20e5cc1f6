"""Feed-forward layers: one gated perceptron, or many of which each token takes a few."""

from __future__ import annotations

from typing import Literal

from ferrum_array import Tensor
from ferrum_models.layers.basic import Linear
from ferrum_models.layers.module import Module, Parameter, layer
from ferrum_models.weights import Weights
from ferrum_ops import ActivationKind, gated_activation, gated_linear, linear, moe_ffn, moe_route, sigmoid_gate

__all__ = ["MLP", "Experts", "MoE", "Router"]


@layer
class MLP(Module):
    """``down(act(gate(x)) * up(x))``, the gated perceptron of Llama and most families after it.

    Source: Shazeer, "GLU Variants Improve Transformer", 2020.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_models.layers import MLP, Linear
        >>> one = Linear(fa.ones((1, 1)))
        >>> MLP(one, one, one, "relu")(fa.asarray([3.0]))
        Tensor([9.])
    """

    gate_proj: Linear
    up_proj: Linear
    down_proj: Linear
    act: ActivationKind = "silu"

    @classmethod
    def load(cls, weights: Weights, size: int, inner: int, act: ActivationKind = "silu", *, bias: bool = False) -> MLP:
        """The layer whose parts are ``gate_proj``, ``up_proj`` and ``down_proj``."""
        return cls(
            Linear.load(weights.at("gate_proj"), size, inner, bias=bias),
            Linear.load(weights.at("up_proj"), size, inner, bias=bias),
            Linear.load(weights.at("down_proj"), inner, size, bias=bias),
            act,
        )

    def __call__(self, x: Tensor) -> Tensor:
        """Apply to x [..., hidden]; the result has the same shape."""
        gate, up = self.gate_proj, self.up_proj
        if gate.joins() and up.joins():
            inner = gated_linear(x, gate.weight, up.weight, self.act, gate_bias=gate.bias, up_bias=up.bias)
        else:
            inner = gated_activation(gate(x), up(x), self.act)
        return self.down_proj(inner)


@layer
class Router(Module):
    """Which experts a token takes: weight [experts, hidden]; the options are those of ``moe_route``.

    Logits are computed in float32, as the families do whose routing is sensitive to it.
    """

    weight: Tensor
    k: int
    bias: Tensor | None = None
    score: Literal["softmax", "sigmoid"] = "softmax"
    norm: bool = True
    e_score_correction_bias: Tensor | None = None
    n_group: int = 1
    topk_group: int = 1
    scale: float = 1.0

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The ids and weights, [T, k] each, of the experts of tokens x [T, hidden]."""
        logits = linear(x, self.weight, self.bias, dtype="f32")
        return moe_route(
            logits,
            self.k,
            score=self.score,
            norm=self.norm,
            bias=self.e_score_correction_bias,
            n_group=self.n_group,
            topk_group=self.topk_group,
            scale=self.scale,
        )


@layer
class Experts(Module):
    """Gated perceptrons: gate_up_proj [E, 2 * inner, hidden], the gate's half first, and down_proj [E, hidden, inner].

    The names and the order of the halves are those of current checkpoints; older ones are stacked when they are loaded.
    """

    gate_up_proj: Parameter
    down_proj: Parameter
    act: ActivationKind = "silu"
    gate_up_proj_bias: Tensor | None = None
    down_proj_bias: Tensor | None = None
    limit: float | None = None
    alpha: float = 1.0
    up_offset: float = 0.0

    @classmethod
    def load(
        cls,
        weights: Weights,
        experts: int,
        size: int,
        inner: int,
        act: ActivationKind = "silu",
        names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
    ) -> Experts:
        """The experts ``0``, ``1``, ... of *weights*, whose linear layers have these *names*, as stacks."""
        gate, up, down = names
        return cls(
            weights.stacked([[f"{e}.{gate}", f"{e}.{up}"] for e in range(experts)], (inner, size)),
            weights.stacked([[f"{e}.{down}"] for e in range(experts)], (size, inner)),
            act,
        )

    def __call__(self, x: Tensor, ids: Tensor, w: Tensor) -> Tensor:
        """Tokens x [T, hidden] through their experts *ids* [T, k], weighted by *w* [T, k]."""
        return moe_ffn(
            x,
            self.gate_up_proj,
            self.down_proj,
            ids,
            w,
            kind=self.act,
            b13=self.gate_up_proj_bias,
            b2=self.down_proj_bias,
            limit=self.limit,
            alpha=self.alpha,
            up_offset=self.up_offset,
        )


@layer
class MoE(Module):
    """A mixture of experts: each token takes those that the router names, and the shared ones if there are any.

    Attributes:
        gate: the router.
        experts: those that it names.
        shared_experts: what every token takes, as one perceptron, unweighed.
        shared_expert: what every token takes, weighed by the sigmoid of shared_expert_gate.
        shared_expert_gate: makes one number of each token.

    Source: Shazeer et al., "Outrageously Large Neural Networks", 2017; Dai et al., "DeepSeekMoE", 2024.
    """

    gate: Router
    experts: Experts
    shared_experts: MLP | None = None
    shared_expert: MLP | None = None
    shared_expert_gate: Linear | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Apply to packed tokens x [T, hidden]."""
        ids, w = self.gate(x)
        y = self.experts(x, ids, w)
        if self.shared_experts is not None:
            y = y + self.shared_experts(x)
        if self.shared_expert is None:
            return y
        extra = self.shared_expert(x)
        if self.shared_expert_gate is None:
            return y + extra
        return sigmoid_gate(extra, self.shared_expert_gate(x), residual=y)
