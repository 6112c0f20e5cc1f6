"""The picture of ``ferrum bench --plot``: what a pass does and reads, and the file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import ferrum_array as fa
from ferrum_models import random_model
from ferrum_models.cli import main
from ferrum_models.commands import roofline

SMALL = {"vocab_size": 16, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
DENSE = {"model_type": "llama", "intermediate_size": 12, **SMALL}
SPARSE = {
    "model_type": "qwen3_moe",
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 4,
    "head_dim": 4,
    "num_key_value_heads": 1,
    "intermediate_size": 8,
    **SMALL,
}


def test_a_dense_model_reads_each_weight_once_and_multiplies_it_for_each_token() -> None:
    model = random_model(DENSE)
    used = model.nbytes - 16 * 8 * 4  # rows of the embedding are looked up, not multiplied
    assert roofline.work(model, 5) == (2.0 * 5 * used / 4, used)


def test_a_tied_embedding_is_the_head() -> None:
    model = random_model({**DENSE, "tie_word_embeddings": True})
    assert roofline.work(model, 1) == (2.0 * model.nbytes / 4, model.nbytes)


@pytest.mark.parametrize(("tokens", "reached"), [(1, 2), (2, 4), (100, 8)])
def test_of_experts_those_count_that_tokens_reach(tokens: int, reached: int) -> None:
    model = random_model(SPARSE)
    expert = 2 * 3 * 4 * 8 * 4  # layers, matrices, their sides, bytes
    others = model.nbytes - 16 * 8 * 4 - 8 * expert
    operations, read = roofline.work(model, tokens)
    assert read == others + reached * expert
    assert operations == 2.0 * tokens * (others + 2 * expert) / 4


def test_a_roof_has_a_slope_and_a_ceiling() -> None:
    roof = roofline.Roof(bytes=10.0, operations=100.0)
    assert (roof.at(1.0), roof.at(10.0), roof.at(1000.0)) == (10.0, 100.0, 100.0)
    measured = roofline.measure(fa.Device("cpu"), fa.float32)
    assert measured.bytes > 1e8
    assert measured.operations > 1e8


def test_the_command_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["bench", "--model", "models/stdlib-moe", "-p", "4", "-g", "3", "-n", "1", "--plot", str(tmp_path / "x.png")])
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    assert f"drawn: {tmp_path / 'x.png'}" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "message"), [("x.gif", r"\.png, \.svg, \.pdf"), ("no/x.png", "no folder")])
def test_a_file_that_cannot_be_drawn_is_refused_first(
    name: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "--model", "models/stdlib-moe", "--plot", str(tmp_path / name)]) != 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.search(message, captured.err)
