"""Tiny random models made by transformers, and ours from the same files."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np

import ferrum_array as fa
from ferrum_models.causal import CausalLM
from ferrum_models.config import Settings
from ferrum_models.families import family
from ferrum_models.weights import Weights

Array = np.ndarray[Any, Any]

#: what tiny models have in common; entries of a family are added
TINY: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": 1,
}


def make(config_class: str, folder: Path, seed: int = 0, **entries: Any) -> Any:
    """A random model of transformers with norms and biases that do something, saved in *folder*."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other people's libraries
        import transformers

        config = getattr(transformers, config_class)(**{**TINY, **entries})
        config._attn_implementation = "eager"
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        with torch.no_grad():
            for value in model.parameters():
                # the usual initial values are so small that a wrong layer would hardly be seen
                torch.nn.init.normal_(value, std=0.3 if value.ndim > 1 else 0.5)
            for name, value in model.named_parameters():
                around_zero = config_class.startswith("Gemma") or (
                    config_class == "Qwen3NextConfig" and "linear_attn.norm" not in name
                )
                if "norm" in name and not around_zero:
                    value += 1.0
            for name, value in model.named_buffers():
                if name.endswith("e_score_correction_bias"):
                    torch.nn.init.normal_(value, std=0.2)
        model.save_pretrained(folder)
    return model


def ours(folder: Path, device: fa.Device, **changes: Any) -> CausalLM:
    """Our model from the files in *folder*, some entries of its config changed."""
    settings = Settings.load(folder / "config.json")
    settings = Settings({**settings.values, **changes}, settings.source)
    found = family(settings)
    weights = Weights.load(folder / "model.safetensors", device=device, dtype="f32")
    return found.load(weights, found.config(settings))


def logits_of(peer: Any, ids: Array, mask: Array | None = None) -> Array:
    """The logits [B, T, V] that transformers computes, where the *mask* is 1."""
    import torch

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        seen = None if mask is None else torch.tensor(mask)
        found: Array = peer(torch.tensor(ids), attention_mask=seen).logits.float().numpy()
    return found


def distance(actual: fa.Tensor, expected: Array) -> float:
    """The largest difference relative to the largest logit."""
    return float(np.max(np.abs(actual.numpy() - expected)) / np.max(np.abs(expected)))


def greedy_of(peer: Any, prompt: list[int], tokens: int) -> list[int]:
    """The likeliest tokens after a prompt, one after the other, as transformers generates them."""
    import torch

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other people's libraries
        ids = torch.tensor([prompt])
        peer.generation_config.eos_token_id = None
        out = peer.generate(ids, attention_mask=ids * 0 + 1, max_new_tokens=tokens, do_sample=False, pad_token_id=0)
    found: list[int] = out[0, len(prompt) :].tolist()
    return found
