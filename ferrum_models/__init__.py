"""Transformers built from :mod:`ferrum_ops`: layers, models, tokenizing and the command ``ferrum``."""

from __future__ import annotations

from ferrum_models.adapters import load_adapters, merge_adapters, remove_adapters
from ferrum_models.bert import BertConfig, BertModel
from ferrum_models.cache import ModelCache
from ferrum_models.causal import CausalLM
from ferrum_models.encoder import SentenceEncoder, load_encoder
from ferrum_models.generation import (
    Batch,
    Draft,
    PromptCache,
    Sampling,
    generate,
    generate_batch,
    generate_ids,
    load_prompt_cache,
    save_prompt_cache,
    step_obstacle,
    stream_generate,
    use_captured_steps,
)
from ferrum_models.loading import load, random_model
from ferrum_models.saving import convert, save_model
from ferrum_models.tokenizing import Tokenizer

__all__ = [
    "Batch",
    "BertConfig",
    "BertModel",
    "CausalLM",
    "Draft",
    "ModelCache",
    "PromptCache",
    "Sampling",
    "SentenceEncoder",
    "Tokenizer",
    "convert",
    "generate",
    "generate_batch",
    "generate_ids",
    "load",
    "load_adapters",
    "load_encoder",
    "load_prompt_cache",
    "merge_adapters",
    "random_model",
    "remove_adapters",
    "save_model",
    "save_prompt_cache",
    "step_obstacle",
    "stream_generate",
    "use_captured_steps",
]
