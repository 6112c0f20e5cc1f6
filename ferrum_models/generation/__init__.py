"""Generating text: rules of choice, tokens, text, several texts at once, and what is kept between calls."""

from __future__ import annotations

from ferrum_models.generation.sampling import Sampling
from ferrum_models.generation.text import Generated, generate, stream_generate
from ferrum_models.generation.tokens import Draft, Token, generate_ids, generate_tokens

__all__ = [
    "Draft",
    "Generated",
    "Sampling",
    "Token",
    "generate",
    "generate_ids",
    "generate_tokens",
    "stream_generate",
]
