"""A language model of 0.6 billion weights on the CPU, beside transformers and llama.cpp: tokens a second and memory.

    python -m benchmarks.decode_cpu [--threads 2] [--rounds 4] [--row f32 bf16 int8 int4] [--folder DIR]

The model has the shape of Qwen3-0.6B and random weights, which all read: a folder of safetensors, what ``convert``
makes of it, and GGUF files that the package ``gguf`` writes. Each way of running it has a process of its own. Those of
a group are alive together and take turns, and the least time counts, because noise only adds: of a prompt of 512
tokens, and of 8 tokens in a row among the 64 that are generated greedily after it.

Before anything is timed, the logits of the first token after the prompt are compared with those of transformers in
float32; a model whose logits are further away than its weights explain is an error. llama.cpp is measured where the
package llama-cpp-python is installed. The table is Markdown. With --folder the files are kept and used again.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors import safe_open

from benchmarks.decode_runners import PROMPT
from benchmarks.overhead import machine
from ferrum_models import convert, random_model, save_model

#: config.json of Qwen3-0.6B
CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "max_window_layers": 28,
    "model_type": "qwen3",
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}


@dataclass(frozen=True)
class Way:
    """One way to run the model.

    Attributes:
        name: in the table.
        library: a name of ``benchmarks.decode_runners``.
        file: of the model, in the folder.
        dtype: in which it is computed, where that can be chosen.
        far: the relative distance of its logits from those of transformers in float32 that its weights explain.
    """

    name: str
    library: str
    file: str
    dtype: str
    far: float


#: what random weights lose in so many bits, through all layers
_ROUNDED = {"f32": 1e-4, "bf16": 0.03, "8 bits": 0.1, "4 bits": 0.65}
GROUPS: dict[str, tuple[Way, ...]] = {
    "f32": (
        Way("Ferrum f32", "ferrum", "dense", "f32", _ROUNDED["f32"]),
        Way("transformers f32", "transformers", "dense", "f32", _ROUNDED["f32"]),
    ),
    "bf16": (
        Way("Ferrum bf16", "ferrum", "dense", "bf16", _ROUNDED["bf16"]),
        Way("transformers bf16", "transformers", "dense", "bf16", _ROUNDED["bf16"]),
        Way("llama.cpp BF16", "llama.cpp", "BF16.gguf", "", _ROUNDED["bf16"]),
    ),
    "int8": (
        Way("Ferrum int8", "ferrum", "int8", "bf16", _ROUNDED["8 bits"]),
        Way("Ferrum int8-a8", "ferrum", "int8-a8", "bf16", _ROUNDED["8 bits"]),
        Way("Ferrum Q8_0", "ferrum", "Q8_0.gguf", "bf16", _ROUNDED["8 bits"]),
        Way("llama.cpp Q8_0", "llama.cpp", "Q8_0.gguf", "", _ROUNDED["8 bits"]),
    ),
    "int4": (
        Way("Ferrum int4-g32-f16", "ferrum", "int4-g32-f16", "bf16", _ROUNDED["4 bits"]),
        Way("Ferrum Q4_0", "ferrum", "Q4_0.gguf", "bf16", _ROUNDED["4 bits"]),
        Way("llama.cpp Q4_0", "llama.cpp", "Q4_0.gguf", "", _ROUNDED["4 bits"]),
    ),
}


def write_models(folder: Path, ways: list[Way]) -> None:
    """Write what is not in *folder* yet."""
    dense = folder / "dense"
    if not dense.exists():
        save_model(random_model(CONFIG, dtype="bf16"), dense, progress=False)
    for name in sorted({way.file for way in ways} - {"dense"}):
        if (folder / name).exists():
            continue
        if name.endswith(".gguf"):
            write_gguf(dense, folder / name, gguf.GGMLQuantizationType[name.removesuffix(".gguf")])
        else:
            convert(dense, folder / name, quantize=name, progress=False)


def write_gguf(dense: Path, path: Path, kind: gguf.GGMLQuantizationType) -> None:
    """The model in the folder *dense* as a GGUF file, its matrices in *kind*, without a tokenizer."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, CONFIG["num_hidden_layers"])
    partial = path.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, "qwen3")
    writer.add_block_count(CONFIG["num_hidden_layers"])
    writer.add_context_length(CONFIG["max_position_embeddings"])
    writer.add_embedding_length(CONFIG["hidden_size"])
    writer.add_feed_forward_length(CONFIG["intermediate_size"])
    writer.add_head_count(CONFIG["num_attention_heads"])
    writer.add_head_count_kv(CONFIG["num_key_value_heads"])
    writer.add_key_length(CONFIG["head_dim"])
    writer.add_value_length(CONFIG["head_dim"])
    writer.add_rope_freq_base(CONFIG["rope_theta"])
    writer.add_layer_norm_rms_eps(CONFIG["rms_norm_eps"])
    writer.add_vocab_size(CONFIG["vocab_size"])
    writer.add_tokenizer_model("none")
    for file in sorted(dense.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 -- it is no mapping
                values = tensors.get_tensor(name).to(torch.float32).numpy()
                stored = kind if values.ndim == 2 else gguf.GGMLQuantizationType.F32
                found = names.get_name(name, try_suffixes=(".weight",))
                writer.add_tensor(found, gguf.quantize(values, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.rename(path)


class Process:
    """A runner in a process of its own."""

    def __init__(self, way: Way, folder: Path, threads: int) -> None:
        command = [sys.executable, "-m", "benchmarks.decode_runners", way.library, str(folder / way.file)]
        self.way = way
        self._process = subprocess.Popen(
            [*command, way.dtype, str(threads)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, command: str) -> dict[str, float]:
        """The answer to *command*."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.way.name} ended with {self._process.wait()}")
        answer: dict[str, float] = json.loads(line)
        return answer

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()


def logits(process: Process, folder: Path) -> Any:
    """Those of the first token after the prompt."""
    file = folder / "logits.npy"
    process.ask(f"logits {file}")
    return np.load(file)


def distance(found: Any, expected: Any) -> float:
    """The relative distance of two vectors; infinite if one has numbers that are none."""
    far = float(np.linalg.norm(found.astype(np.float64) - expected) / np.linalg.norm(expected))
    return far if np.isfinite(far) else float("inf")


def measure(ways: list[Way], expected: Any, folder: Path, threads: int, rounds: int) -> dict[str, dict[str, float]]:
    """Tokens a second, peak of memory and distance of each way, all alive together.

    Raises:
        RuntimeError: for logits that are too far from the *expected* ones.
    """
    with ExitStack() as stack:
        processes = [stack.enter_context(Process(way, folder, threads)) for way in ways]
        found = {}
        for one in processes:
            far = distance(logits(one, folder), expected)
            if not far <= one.way.far:
                raise RuntimeError(f"{one.way.name}: its logits are {far:.3g} from transformers', not {one.way.far}")
            found[one.way.name] = {"far": far, "prefill": np.inf, "decode": np.inf}
        for _ in range(rounds):
            for one in processes:
                for what, seconds in one.ask("round").items():
                    found[one.way.name][what] = min(found[one.way.name][what], seconds)
        for one in processes:
            found[one.way.name] |= one.ask("peak")
    for row in found.values():
        row |= {"prefill": PROMPT / row["prefill"], "decode": 1 / row["decode"]}
    return found


def shown(ways: list[Way], found: dict[str, dict[str, float]]) -> str:
    """The rows of a group: the ratios are those to the best peer of the group."""
    peers = [found[way.name] for way in ways if way.library != "ferrum" and way.name in found]
    lines = []
    for way in ways:
        row = found.get(way.name)
        if row is None:
            lines.append(f"| {way.name} | absent | | | | | |")
            continue
        ratios = ["", ""]
        if way.library == "ferrum" and peers:
            ratios = [f"{row[what] / max(peer[what] for peer in peers):.2f}" for what in ("prefill", "decode")]
        lines.append(
            f"| {way.name} | {row['prefill']:.0f} | {ratios[0]} | {row['decode']:.1f} | {ratios[1]} "
            f"| {row['peak']:.0f} | {row['far']:.1e} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=4, help="how often each way reads the prompt and generates")
    parser.add_argument("--row", nargs="+", choices=GROUPS, default=list(GROUPS), help="the groups of rows to run")
    parser.add_argument("--folder", type=Path, help="where models are written, kept and found again")
    options = parser.parse_args()
    known = importlib.util.find_spec("llama_cpp") is not None
    groups = {name: [way for way in GROUPS[name] if known or way.library != "llama.cpp"] for name in options.row}
    with ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        write_models(folder, [way for ways in groups.values() for way in ways])
        with Process(GROUPS["f32"][1], folder, options.threads) as reference:
            expected = logits(reference, folder)
        print(f"{machine()}, {options.threads} threads\n")
        print(
            "| model | prefill, tokens/s | ours / best peer | decode, tokens/s | ours / best peer | peak, MiB | error |"
        )
        print("|---|---:|---:|---:|---:|---:|---:|")
        for name, ways in groups.items():
            found = measure(ways, expected, folder, options.threads, options.rounds)
            print(shown(list(GROUPS[name]), found), flush=True)


if __name__ == "__main__":
    main()
