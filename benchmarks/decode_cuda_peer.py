"""The peer of ``decode_cuda``: transformers with a static cache and a step that PyTorch compiles into graphs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

__all__ = ["Transformers"]


class Transformers:
    """A model of transformers on the given tensors, which it shares.

    Args:
        config: the entries of ``config.json``.
        tensors: all weights by name.
        device: where they lie.
    """

    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], device: str) -> None:
        import transformers

        rest = {name: value for name, value in config.items() if name not in ("model_type", "torch_dtype")}
        settings = transformers.AutoConfig.for_model(config["model_type"], **rest)
        dtype = next(iter(tensors.values())).dtype
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(settings, dtype=dtype, attn_implementation="sdpa")
        model.load_state_dict(dict(tensors), strict=True, assign=True)
        with torch.device(device):  # its numbers are in no file
            model.model.rotary_emb = type(model.model.rotary_emb)(settings)
        self._settings, self._device, self._dtype = settings, device, dtype
        self._static = transformers.StaticCache
        self._model = model.eval()
        self._step = torch.compile(self._next, mode="reduce-overhead", fullgraph=True, dynamic=False)
        self._cache: Any = None
        self._ids = torch.zeros(1, 1, dtype=torch.int64, device=device)

    def forget(self) -> None:
        """Free the memory of keys and values."""
        self._cache = None

    def fill(self, batch: int, context: int, room: int) -> None:
        """Each of *batch* sequences has *context* random keys and values, and *room* in all."""
        cache = self._static(config=self._settings, max_cache_len=room)
        s = self._settings
        cache.early_initialization(batch, s.num_key_value_heads, s.head_dim, self._dtype, torch.device(self._device))
        for layer in cache.layers:
            layer.keys.normal_()
            layer.values.normal_()
            layer.cumulative_length.fill_(context)
        self._cache = cache
        self._ids = torch.ones(batch, 1, dtype=torch.int64, device=self._device)

    def decode(self) -> list[int]:
        """Read a token of each sequence; the result are the likeliest next ones, which are read next time."""
        torch.compiler.cudagraph_mark_step_begin()
        with torch.no_grad():  # tensors of inference mode are another kind, for which all would be compiled again
            self._ids = self._step(self._ids, self._cache).clone()
        found: list[int] = self._ids[:, 0].tolist()
        return found

    def prefill(self, ids: list[int]) -> torch.Tensor:
        """The logits [V] after a prompt; not compiled, as the lengths of prompts differ."""
        with torch.inference_mode():
            given = torch.tensor([ids], device=self._device)
            logits: torch.Tensor = self._model(input_ids=given, use_cache=True, logits_to_keep=1).logits[0, -1]
        return logits

    def _next(self, ids: torch.Tensor, cache: Any) -> torch.Tensor:
        logits = self._model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        best: torch.Tensor = logits[:, -1].argmax(-1, keepdim=True)
        return best
