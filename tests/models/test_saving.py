"""Models into folders and back."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ferrum_array as fa
from ferrum_models import Tokenizer, convert, load, random_model, save_model
from tests.models import parity
from tests.models.small_models import KINDS, SMALL, quantised, same, small
from tests.models.test_tokenizing import write as write_tokenizer


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_dense_models_come_back(kind: str, dtype: str, tmp_path: Path, device: fa.Device) -> None:
    model = small(kind, dtype=dtype, device=device)
    save_model(model, tmp_path / "saved")
    back, _ = load(tmp_path / "saved", device=device)
    assert same(model, back)
    assert not same(model, small(kind, seed=1, dtype=dtype, device=device))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["saved"]


@pytest.mark.parametrize(
    ("config", "entries"),
    [
        ("Qwen3MoeConfig", {"num_experts_per_tok": 2, "num_local_experts": 5, "moe_intermediate_size": 20}),
        ("MixtralConfig", {"num_experts_per_tok": 2, "num_local_experts": 5}),
        ("GptOssConfig", {"num_experts_per_tok": 2, "num_local_experts": 5, "sliding_window": 5}),
        ("Gemma3TextConfig", {"sliding_window": 5}),
    ],
)
def test_transformers_reads_what_is_saved(config: str, entries: dict[str, Any], tmp_path: Path) -> None:
    """Names and orders are those of the checkpoint that a model came from."""
    from safetensors.numpy import load_file

    parity.make(config, tmp_path / "made", **entries)
    save_model(load(tmp_path / "made")[0], tmp_path / "saved")
    made, saved = (load_file(tmp_path / name / "model.safetensors") for name in ("made", "saved"))
    assert made.keys() == saved.keys()
    assert all(np.array_equal(value, saved[name]) for name, value in made.items())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scheme", ["int8", "int4-g32-asym", "mlx4-g32", "mxfp4", "q8_0", "fp8_e4m3"])
def test_quantised_models_come_back(kind: str, scheme: str, tmp_path: Path) -> None:
    model = quantised(small(kind), scheme)
    save_model(model, tmp_path / "saved")
    back, _ = load(tmp_path / "saved")
    assert same(model, back)
    assert back.nbytes < 0.6 * small(kind).nbytes


@given(limit=st.integers(1, 200_000))
@settings(max_examples=10, deadline=None)
def test_shards(limit: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    model = small("llama")
    folder = tmp_path_factory.mktemp("shards") / "saved"
    save_model(model, folder, max_shard_bytes=limit)
    files = sorted(folder.glob("*.safetensors"))
    assert same(model, load(folder)[0])
    largest = max(value.nbytes for _, value in model.named_parameters())
    assert all(path.stat().st_size < max(limit, largest) + 4096 for path in files)
    assert len(files) >= model.nbytes / max(limit, largest)
    index = folder / "model.safetensors.index.json"
    if len(files) > 1:
        assert json.loads(index.read_text())["metadata"]["total_size"] == model.nbytes
    else:
        assert [path.name for path in files] == ["model.safetensors"]
        assert not index.exists()


def test_the_tokenizer_and_the_config_come_along(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    write_tokenizer(source)
    (source / "generation_config.json").write_text('{"top_k": 3}')
    (source / "pytorch_model.bin").write_bytes(b"not this")
    model = random_model({"model_type": "llama", **SMALL, "vocab_size": 330, "eos_token_id": 5, "rope_theta": 500.0})
    save_model(model, tmp_path / "saved", source=source)
    back, tokenizer = load(tmp_path / "saved")
    assert tokenizer is not None
    assert back.config == dataclasses.replace(model.config, dtype=fa.float32)
    names = {path.name for path in (tmp_path / "saved").iterdir()}
    assert {"tokenizer.json", "generation_config.json", "config.json", "model.safetensors"} <= names
    assert "pytorch_model.bin" not in names


def test_progress_is_told(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []

    def tell(done: int, total: int) -> None:
        told.append((done, total))

    model = small("llama")
    tensors = len(list(model.named_parameters()))
    save_model(model, tmp_path / "a", progress=tell)
    convert(tmp_path / "a", tmp_path / "b", progress=tell)
    load(tmp_path / "a", progress=tell)
    assert told == [(n, tensors) for n in range(1, tensors + 1)] * 3


# What is refused, and that nothing is left behind.


def test_folders_that_are_there_stay_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    save_model(small("llama"), tmp_path / "there")  # it was empty
    before = (tmp_path / "there" / "model.safetensors").stat()
    for again in (
        lambda: save_model(small("llama", seed=1), tmp_path / "there"),
        lambda: convert(tmp_path / "there", tmp_path / "there", quantize="int8"),
    ):
        with pytest.raises(FileExistsError, match="there is there already; remove it"):
            again()
    assert (tmp_path / "there" / "model.safetensors").stat() == before


def test_a_failure_while_writing_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any, **options: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(fa.io, "save_safetensors", full)
    with pytest.raises(OSError, match="no space left"):
        save_model(small("llama"), tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_leaves_nothing_behind(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_model(small("llama"), tmp_path / "saved", progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_sources_that_are_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no model folder"):
        convert(tmp_path / "nothing", tmp_path / "small")
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nothing to copy a tokenizer from"):
        save_model(small("llama"), tmp_path / "saved", source=tmp_path / "nothing")
    save_model(small("llama"), tmp_path / "dense")
    with pytest.raises(ValueError, match="there is no scheme 'abacus'"):
        convert(tmp_path / "dense", tmp_path / "small", quantize="abacus")
    assert [path.name for path in tmp_path.iterdir()] == ["dense"]


def test_models_that_are_not_those_of_their_config(tmp_path: Path) -> None:
    model = small("llama")
    other = dataclasses.replace(model, lm_head=None)
    with pytest.raises(ValueError, match=r"does not fit its config: lm_head\.weight is missing"):
        save_model(other, tmp_path / "saved")


def test_tokenizers_come_back(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    write_tokenizer(tmp_path / "a")
    tokenizer = Tokenizer.load(tmp_path / "a")
    template = "{% for m in messages %}{{ m.content }}\u00e9{% endfor %}"
    special = {"eos_token": tokenizer.decode([3], skip_special_tokens=False)}
    made = Tokenizer(tokenizer._tokenizer, special, template, ends=(3, 5))
    made.save(tmp_path / "b")
    back = Tokenizer.load(tmp_path / "b")
    texts = ["the fox", "Zo\u00eb \U0001f98a!", ""]
    assert [back.encode(text) for text in texts] == [made.encode(text) for text in texts]
    assert (back.special, back.eos_ids, back.vocab_size) == (made.special, made.eos_ids, made.vocab_size)
    assert back.chat_template is not None
    assert back.chat_template.source == template
