"""Layers: ops together with their weights, in the field's names."""

from __future__ import annotations

from ferrum_models.layers.basic import Embedding, LayerNorm, Linear

__all__ = ["Embedding", "LayerNorm", "Linear"]
