"""Who runs the model of ``benchmarks/decode_cpu.py``: each way of doing so in a process of its own.

    python -m benchmarks.decode_runners LIBRARY PATH DTYPE THREADS

reads commands from standard input, one a line, and answers each with a line of JSON: ``round`` reads the prompt and
generates, ``logits FILE`` writes those of the token after the prompt, ``peak`` says how much memory there was.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any, Protocol

import numpy as np

__all__ = ["GENERATED", "PROMPT", "Runner", "open_runner"]

#: how many tokens are read, and how many are then generated
PROMPT, GENERATED = 512, 64
#: so many tokens, one after the other, are timed together: the shorter, the more likely is one without disturbances
_WINDOW = 8
_ROOM = 640


class Runner(Protocol):
    """A model that reads a prompt and generates greedily."""

    def prefill(self, ids: list[int]) -> Any:
        """Forget everything and read *ids*; the result are the logits [V] of the next token."""

    def decode(self, token: int) -> int:
        """Read one *token*; the result is the likeliest next one."""


class Ours:
    """Ferrum."""

    def __init__(self, path: str, dtype: str, threads: int) -> None:
        import ferrum_array as fa
        from ferrum_models import load
        from ferrum_models.generation.captured import Steps
        from ferrum_models.generation.sampling import Chooser, Sampling
        from ferrum_models.generation.tokens import prefill
        from ferrum_ops import sample, set_threads

        set_threads(threads)
        self._fa, self._sample, self._prefill = fa, sample, prefill
        self._model, _ = load(path, dtype=dtype, progress=False)
        self._cache = self._model.make_cache(1, _ROOM)
        chooser = Chooser(Sampling(), [[0]], self._model.config.vocab_size, self._model.device)
        self._steps = Steps(self._model, self._cache, chooser, GENERATED)  # as text is generated

    def prefill(self, ids: list[int]) -> Any:
        self._cache.truncate([0])
        return np.asarray(self._prefill(self._model, ids, self._cache)[0].tolist(), np.float32)

    def decode(self, token: int) -> int:
        made = self._steps.advance([0], [token])
        if made is not None:
            return made.read()[0][0] if made.inside else int(self._sample(made.logits())[0])
        ids = self._fa.asarray([token], dtype=self._fa.int64)
        return int(self._sample(self._model.logits(self._model.forward(ids, [1], self._cache)))[0])


class Transformers:
    """transformers on PyTorch."""

    def __init__(self, path: str, dtype: str, threads: int) -> None:
        import torch
        import transformers

        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        transformers.utils.logging.disable_progress_bar()
        self._torch, self._new = torch, transformers.DynamicCache
        wanted = {"f32": torch.float32, "bf16": torch.bfloat16}[dtype]
        self._model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=wanted).eval()
        self._cache = self._new()

    def prefill(self, ids: list[int]) -> Any:
        self._cache = self._new()
        return self._last(ids).float().numpy()

    def decode(self, token: int) -> int:
        return int(self._last([token]).argmax())

    def _last(self, ids: list[int]) -> Any:
        made = self._model(self._torch.tensor([ids]), past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        return made.logits[0, -1]


class LlamaCpp:
    """llama.cpp, through llama-cpp-python."""

    def __init__(self, path: str, dtype: str, threads: int) -> None:
        import llama_cpp

        self._library = llama_cpp
        self._model = llama_cpp.Llama(
            path,
            n_ctx=_ROOM,
            n_batch=PROMPT,
            n_ubatch=PROMPT,
            n_threads=threads,
            n_threads_batch=threads,
            n_gpu_layers=0,
            verbose=False,
        )

    def prefill(self, ids: list[int]) -> Any:
        self._model.reset()
        self._model.eval(ids)
        return self._logits().copy()

    def decode(self, token: int) -> int:
        self._model.eval([token])
        return int(self._logits().argmax())

    def _logits(self) -> Any:
        found = self._library.llama_get_logits_ith(self._model.ctx, -1)
        return np.ctypeslib.as_array(found, shape=(self._model.n_vocab(),))


_LIBRARIES = {"ferrum": Ours, "transformers": Transformers, "llama.cpp": LlamaCpp}


def open_runner(library: str, path: str, dtype: str, threads: int) -> Runner:
    """The model at *path* in *library*."""
    return _LIBRARIES[library](path, dtype, threads)


def prompt(vocabulary: int = 151936) -> list[int]:
    """The ids that all read."""
    return [int(one) for one in np.random.default_rng(5).integers(0, vocabulary, PROMPT)]


def timed(runner: Runner, ids: list[int]) -> dict[str, float]:
    """Seconds that the prompt took, and the least that one generated token took in any window."""
    start = time.perf_counter()
    token = int(runner.prefill(ids).argmax())
    read = time.perf_counter() - start
    least = float("inf")
    for _ in range(GENERATED // _WINDOW):
        start = time.perf_counter()
        for _ in range(_WINDOW):
            token = runner.decode(token)
        least = min(least, (time.perf_counter() - start) / _WINDOW)
    return {"prefill": read, "decode": least}


def peak() -> float:
    """MiB that this process had in memory at most, files that it maps included; NaN where the system does not say.

    ``getrusage`` will not do: a process begins with the peak of the one that started it.
    """
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), float("nan"))


def main(library: str, path: str, dtype: str, threads: str) -> None:
    """Answer commands until there are no more."""
    runner, ids = open_runner(library, path, dtype, int(threads)), prompt()
    for line in sys.stdin:
        command, _, rest = line.strip().partition(" ")
        answer: dict[str, float] = {}
        if command == "logits":
            np.save(rest, runner.prefill(ids))
        elif command == "round":
            answer = timed(runner, ids)
        elif command == "peak":
            answer = {"peak": peak()}
        else:
            raise ValueError(f"unknown command {command!r}")
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
