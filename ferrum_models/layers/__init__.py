"""Layers: ops together with their weights, in the field's names."""

from __future__ import annotations

from ferrum_models.layers.attention import Attention
from ferrum_models.layers.basic import Embedding, LayerNorm, Linear, RMSNorm
from ferrum_models.layers.decoder import DecoderLayer, FeedForward, Mixer
from ferrum_models.layers.delta_net import DepthwiseConv, GatedDeltaNet, RecurrentState
from ferrum_models.layers.lora import LoRA, LowRank
from ferrum_models.layers.mla import MLA
from ferrum_models.layers.mlp import MLP, Experts, MoE, Router
from ferrum_models.layers.module import Module, Parameter, layer
from ferrum_models.layers.rotary import Rotary
from ferrum_models.layers.step import CacheKind, Room, Step

__all__ = [
    "Attention",
    "CacheKind",
    "DecoderLayer",
    "DepthwiseConv",
    "Embedding",
    "Experts",
    "FeedForward",
    "GatedDeltaNet",
    "LayerNorm",
    "Linear",
    "LoRA",
    "LowRank",
    "MLA",
    "MLP",
    "Mixer",
    "MoE",
    "Module",
    "Parameter",
    "RMSNorm",
    "RecurrentState",
    "Room",
    "Rotary",
    "Router",
    "Step",
    "layer",
]
