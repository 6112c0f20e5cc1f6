"""Generating text: rules of choice, tokens, text, several texts at once, and what is kept between calls."""

from __future__ import annotations

from ferrum_models.generation.batch import Batch, generate_batch
from ferrum_models.generation.captured import step_obstacle, use_captured_steps
from ferrum_models.generation.prompt_cache import PromptCache, load_prompt_cache, save_prompt_cache
from ferrum_models.generation.sampling import Sampling
from ferrum_models.generation.text import Generated, generate, stream_generate
from ferrum_models.generation.tokens import Draft, Token, generate_ids, generate_tokens

__all__ = [
    "Batch",
    "Draft",
    "Generated",
    "PromptCache",
    "Sampling",
    "Token",
    "generate",
    "generate_batch",
    "generate_ids",
    "generate_tokens",
    "load_prompt_cache",
    "save_prompt_cache",
    "step_obstacle",
    "stream_generate",
    "use_captured_steps",
]
