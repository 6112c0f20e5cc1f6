"""The network of the house model for training, in PyTorch: Qwen3-MoE, written to be fast for so small a model.

Every expert is computed for every token and weighted, most of them with zero: for experts of this size that costs less
than gathering the tokens of each. The result, and what is saved, are those of transformers' Qwen3MoeForCausalLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """The sizes of the network."""

    vocab: int = 4096
    hidden: int = 256
    layers: int = 5
    heads: int = 4
    kv_heads: int = 2
    head: int = 32
    experts: int = 8
    chosen: int = 2
    expert: int = 128
    context: int = 1024
    theta: float = 10000.0
    eps: float = 1e-6
    deviation: float = 0.03
    balance: float = 0.01

    def config(self) -> dict[str, Any]:
        """The contents of config.json."""
        return {
            "architectures": ["Qwen3MoeForCausalLM"],
            "model_type": "qwen3_moe",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": None,
            "decoder_sparse_step": 1,
            "dtype": "bfloat16",
            "eos_token_id": 0,
            "head_dim": self.head,
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "initializer_range": self.deviation,
            "intermediate_size": self.expert * self.chosen,
            "max_position_embeddings": self.context,
            "mlp_only_layers": [],
            "moe_intermediate_size": self.expert,
            "norm_topk_prob": True,
            "num_attention_heads": self.heads,
            "num_experts": self.experts,
            "num_experts_per_tok": self.chosen,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.kv_heads,
            "pad_token_id": 0,
            "rms_norm_eps": self.eps,
            "rope_theta": self.theta,
            "rope_scaling": None,
            "router_aux_loss_coef": self.balance,
            "sliding_window": None,
            "tie_word_embeddings": True,
            "use_sliding_window": False,
            "vocab_size": self.vocab,
        }


def _linear(inputs: int, outputs: int) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=False)


class _Norm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps) * self.weight).to(x.dtype)


class _Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.head = shape.head
        self.q_proj = _linear(shape.hidden, shape.heads * shape.head)
        self.k_proj = _linear(shape.hidden, shape.kv_heads * shape.head)
        self.v_proj = _linear(shape.hidden, shape.kv_heads * shape.head)
        self.o_proj = _linear(shape.heads * shape.head, shape.hidden)
        self.q_norm = _Norm(shape.head, shape.eps)
        self.k_norm = _Norm(shape.head, shape.eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, _ = x.shape

        def split(y: Tensor) -> Tensor:
            return y.view(batch, length, -1, self.head)

        def turned(y: Tensor) -> Tensor:
            first, second = y.float().chunk(2, -1)
            both = torch.cat((first * cos - second * sin, second * cos + first * sin), -1)
            return both.to(y.dtype).transpose(1, 2)

        q, k = turned(self.q_norm(split(self.q_proj(x)))), turned(self.k_norm(split(self.k_proj(x))))
        v = split(self.v_proj(x)).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        out: Tensor = self.o_proj(y.transpose(1, 2).reshape(batch, length, -1))
        return out


class _Experts(nn.Module):
    """The mixture: its experts' matrices lie side by side, as one wide feed-forward layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.experts, self.chosen = shape.experts, shape.chosen
        self.gate = _linear(shape.hidden, shape.experts)
        self.gate_proj = _linear(shape.hidden, shape.experts * shape.expert)
        self.up_proj = _linear(shape.hidden, shape.experts * shape.expert)
        self.down_proj = _linear(shape.experts * shape.expert, shape.hidden)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.gate(x).float().softmax(-1)
        best, which = scores.topk(self.chosen, -1)
        weights = torch.zeros_like(scores).scatter(-1, which, best / best.sum(-1, keepdim=True))
        inner = F.silu(self.gate_proj(x)) * self.up_proj(x)
        inner = inner.unflatten(-1, (self.experts, -1)) * weights.to(inner.dtype).unsqueeze(-1)
        # The Switch Transformer's loss (2101.03961, equations 4 to 6): least when all experts get as many tokens.
        share = (weights > 0).float().flatten(0, -2).mean(0)
        balance = self.experts * (share * scores.flatten(0, -2).mean(0)).sum()
        return self.down_proj(inner.flatten(-2)), balance


class _Layer(nn.Module):
    def __init__(self, shape: Shape, dropout: float) -> None:
        super().__init__()
        self.input_layernorm = _Norm(shape.hidden, shape.eps)
        self.self_attn = _Attention(shape)
        self.post_attention_layernorm = _Norm(shape.hidden, shape.eps)
        self.mlp = _Experts(shape)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        x = x + self.drop(self.self_attn(self.input_layernorm(x), cos, sin))
        y, balance = self.mlp(self.post_attention_layernorm(x))
        return x + self.drop(y), balance


class Network(nn.Module):
    """The language model: `network(ids[B, T], labels[B, T])` is (mean loss in nats, mean loss of balance).

    Dropout acts on what each layer adds, while training.
    """

    def __init__(self, shape: Shape, dropout: float = 0.0) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocab, shape.hidden)
        self.layers = nn.ModuleList(_Layer(shape, dropout) for _ in range(shape.layers))
        self.norm = _Norm(shape.hidden, shape.eps)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                into_stream = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, std=shape.deviation * ((2 * shape.layers) ** -0.5 if into_stream else 1.0))
        frequencies = shape.theta ** -(torch.arange(0, shape.head, 2) / shape.head)
        angles = torch.outer(torch.arange(shape.context).float(), frequencies).unsqueeze(1)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def logits(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Scores[B, T, vocab] of the next tokens, and the mean loss of balance over the layers."""
        cos, sin = self.get_buffer("cos")[: ids.shape[1]], self.get_buffer("sin")[: ids.shape[1]]
        x = self.embed_tokens(ids)
        total = x.new_zeros((), dtype=torch.float32)
        for layer in self.layers:
            x, balance = layer(x, cos, sin)
            total = total + balance
        return F.linear(self.norm(x), self.embed_tokens.weight), total / len(self.layers)

    def forward(self, ids: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        scores, balance = self.logits(ids)
        return F.cross_entropy(scores.flatten(0, 1).float(), labels.flatten()), balance

    def saved(self, dtype: torch.dtype = torch.bfloat16) -> Mapping[str, Tensor]:
        """The weights under the names that transformers gives them, each expert's apart."""
        found: dict[str, Tensor] = {}
        for name, tensor in self.state_dict().items():
            value = tensor.detach().to("cpu", dtype)
            stem, _, last = name.rpartition(".mlp.")
            if not stem or last == "gate.weight":
                found[f"model.{name}"] = value
                continue
            for index, part in enumerate(value.chunk(self.shape.experts, 1 if last.startswith("down") else 0)):
                found[f"model.{stem}.mlp.experts.{index}.{last}"] = part.contiguous()
        return found
