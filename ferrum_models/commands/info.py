"""``ferrum info --model``: what a folder has in it."""

from __future__ import annotations

import argparse
from dataclasses import fields

from ferrum_models.commands.options import check_dtype
from ferrum_models.generation import Sampling
from ferrum_models.loading import load

__all__ = ["show_model"]


def show_model(options: argparse.Namespace) -> None:
    """Print what the model that *options* name is made of."""
    check_dtype(options)
    model, tokenizer = load(options.model, options.device, options.dtype)
    config = model.config
    print(f"{options.model}: {model.size:,} parameters, {model.nbytes / 1e6:.2f} MB, computed in {model.dtype}")
    print(f"positions: {config.max_position_embeddings}")
    print(f"vocabulary: {config.vocab_size}")
    print(f"a token in the cache: {model.make_cache(1, 1).nbytes} bytes")
    print(f"tokenizer: {'none' if tokenizer is None else tokenizer}")
    ends = config.eos_token_ids if tokenizer is None else (*config.eos_token_ids, *tokenizer.eos_ids)
    print(f"ends of texts: {', '.join(map(str, sorted(set(ends)))) or 'none'}")
    rules, usual = Sampling.load(options.model), Sampling()
    said = {one.name: getattr(rules, one.name) for one in fields(rules)}
    chosen = [f"{name}={value}" for name, value in said.items() if value != getattr(usual, name)]
    print(f"tokens are chosen by: {', '.join(chosen) or 'their likelihood'}")
    print(f"\n{model}")
