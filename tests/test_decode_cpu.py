"""The benchmark of decoding: its check can fail, and its table says what was measured."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import decode_cpu
from benchmarks.decode_cpu import Way, distance, shown
from ferrum_models import load, random_model, save_model

ROOT = Path(__file__).resolve().parents[1]


def test_distances() -> None:
    expected = np.asarray([3.0, 4.0])
    assert distance(np.asarray([3.0, 4.5], np.float32), expected) == pytest.approx(0.1)
    assert distance(np.asarray([3.0, np.nan], np.float32), expected) == float("inf")


def test_rows_are_compared_with_the_best_peer() -> None:
    ways = [
        Way("ours", "ferrum", "", "", 0.1),
        Way("a", "transformers", "", "", 0.1),
        Way("b", "llama.cpp", "", "", 0.1),
    ]
    row = {"peak": 7.0, "far": 0.01}
    found = {"ours": {**row, "prefill": 30.0, "decode": 4.0}, "a": {**row, "prefill": 20.0, "decode": 8.0}}
    first, second, third = shown(ways, found).splitlines()
    assert first == "| ours | 30 | 1.50 | 4.0 | 0.50 | 7 | 1.0e-02 |"
    assert second.startswith("| a | 20 |  | 8.0 |")
    assert third == "| b | absent | | | | | |"


def test_the_file_for_llama_cpp_is_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 128, "head_dim": 16}
    config = {**decode_cpu.CONFIG, **sizes, "num_attention_heads": 4, "num_key_value_heads": 2}
    monkeypatch.setattr(decode_cpu, "CONFIG", config)
    model = random_model(config, dtype="bf16")
    save_model(model, tmp_path / "dense", progress=False)
    decode_cpu.write_gguf(tmp_path / "dense", tmp_path / "m.gguf", decode_cpu.gguf.GGMLQuantizationType.BF16)
    read = load(tmp_path / "m.gguf")[0]
    expected = dict(model.named_parameters())
    for name, value in read.named_parameters():
        assert (value.astype("f32").numpy() == expected[name].astype("f32").numpy()).all(), name


def test_the_peak_is_that_of_the_process_alone() -> None:
    """Whatever the process that starts it had: this one holds more than 256 MiB while it waits."""
    held = np.ones(1 << 25)
    script = "from benchmarks.decode_runners import peak; a = peak(); b = bytearray(1 << 27); print(a, peak())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    before, after = map(float, done.stdout.split())
    assert held.size
    if not np.isnan(before):
        assert before < 200
        assert 120 < after - before < 140
