"""GGUF: a model in one file, with its config, its vocabulary and its chat template beside the weights."""

from __future__ import annotations

from ferrum_models.gguf.reader import GgufFile, GgufTensor

__all__ = ["GgufFile", "GgufTensor"]
