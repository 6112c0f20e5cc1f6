"""Models from folders, whole and broken."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ferrum_array as fa
from ferrum_models import load
from ferrum_models.families import FAMILIES
from tests.models import parity
from tests.models.test_tokenizing import write as write_tokenizer


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("llama")
    return folder, parity.make("LlamaConfig", folder, vocab_size=330)


@pytest.fixture
def folder(made: tuple[Path, Any], tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(made[0], tmp_path / "model"))


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


IDS = np.arange(12).reshape(2, 6)


def test_a_folder_gives_a_model_and_no_tokenizer_where_there_is_none(made: tuple[Path, Any]) -> None:
    model, tokenizer = load(made[0])
    assert tokenizer is None
    assert parity.distance(model(fa.asarray(IDS)), parity.logits_of(made[1], IDS)) < 1e-4
    assert model.size == sum(one.numel() for one in made[1].parameters())


def test_a_tokenizer_is_loaded_too(folder: Path) -> None:
    write_tokenizer(folder)
    model, tokenizer = load(folder)
    assert tokenizer is not None
    assert model(fa.asarray([tokenizer.encode("the fox")])).shape[-1] == 330


def test_shards_are_one_model(made: tuple[Path, Any], folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    made[1].save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    model, _ = load(folder)
    assert parity.distance(model(fa.asarray(IDS)), parity.logits_of(made[1], IDS)) < 1e-4
    for path in sorted(folder.glob("*.safetensors"))[1:3]:
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"model-00002-of-\d+\.safetensors, model-00003-of-.* names"):
        load(folder)


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
def test_weights_have_the_dtype_that_is_asked_for(made: tuple[Path, Any], device: fa.Device, dtype: str) -> None:
    model, _ = load(made[0], device=device, dtype=dtype)
    assert model.dtype is fa.Dtype(dtype)
    assert model.device is device
    assert {value.dtype for _, value in model.named_parameters()} == {fa.Dtype(dtype)}
    expected = parity.logits_of(made[1], IDS)
    assert (
        parity.distance(model(fa.asarray(IDS, device=device)), expected)
        < {"f32": 1e-4, "f16": 1e-2, "bf16": 0.1}[dtype]
    )


def test_what_is_saved_is_what_transformers_reads(made: tuple[Path, Any], tmp_path: Path) -> None:
    model, _ = load(made[0])
    model.save(tmp_path / "model.safetensors")
    shutil.copy(made[0] / "config.json", tmp_path)
    from transformers import AutoModelForCausalLM

    peer = AutoModelForCausalLM.from_pretrained(tmp_path)
    np.testing.assert_allclose(parity.logits_of(peer, IDS), parity.logits_of(made[1], IDS), atol=1e-4)


def test_both_spellings_of_a_config_give_the_same(made: tuple[Path, Any], folder: Path) -> None:
    new = {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0}
    edit(folder, rope_parameters=new, dtype="float32", torch_dtype=None)
    expected = load(folder)[0](fa.asarray(IDS))
    old = {"type": "linear", "factor": 2.0}
    edit(folder, rope_parameters=None, rope_scaling=old, rope_theta=5000.0, dtype=None, torch_dtype="float32")
    assert fa.all(load(folder)[0](fa.asarray(IDS)) == expected)
    edit(folder, rope_scaling=None)
    assert not fa.all(load(folder)[0](fa.asarray(IDS)) == expected)


def test_a_model_is_printed_as_a_tree(made: tuple[Path, Any]) -> None:
    text = repr(load(made[0])[0])
    assert "layers.0-2: DecoderLayer" in text
    assert "q_proj: Linear(weight=f32[32,32])" in text
    assert len(text.splitlines()) < 30


# What is refused.


def test_unknown_families_list_the_known(folder: Path) -> None:
    edit(folder, model_type="eliza")
    with pytest.raises(ValueError, match="model_type must be one of") as error:
        load(folder)
    assert all(name in str(error.value) for name in FAMILIES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "tan"}, "hidden_act must be one of gelu, .* got 'tan'"),
        ({"rope_parameters": {"rope_type": "spiral"}}, "no kind is called 'spiral'; known are"),
        ({"hidden_size": None}, "there is no hidden_size"),
        ({"num_key_value_heads": 3}, "num_attention_heads 4 is not a multiple of num_key_value_heads 3"),
        ({"layer_types": ["full_attention", "wild", "wild"]}, "layer_types must be 3 words out of"),
        ({"layer_types": ["sliding_attention"] * 3}, "sliding_window is not set"),
        ({"pretraining_tp": 2}, "pretraining_tp is 2, which is not implemented"),
        ({"vocab_size": 329}, r"model\.embed_tokens\.weight has shape \(330, 32\), expected \(329, 32\)"),
        ({"num_hidden_layers": 2}, r"model\.layers\.2\.mlp\.down_proj\.weight is not known"),
        ({"num_hidden_layers": 4}, r"model\.layers\.3\.mlp\.down_proj\.weight is missing"),
    ],
)
def test_configs_that_do_not_fit(folder: Path, change: dict[str, Any], message: str) -> None:
    edit(folder, **change)
    with pytest.raises(ValueError, match=message):
        load(folder)


def test_every_misfit_is_listed_at_once(folder: Path) -> None:
    edit(folder, intermediate_size=45)
    with pytest.raises(ValueError, match="does not fit its config") as error:
        load(folder)
    assert str(error.value).count("expected") == 9


def test_files_that_are_missing(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"weights\.safetensors is a file, and no GGUF file; name the folder"):
        load(tmp_path / "weights.safetensors")
    with pytest.raises(FileNotFoundError, match="there is no model folder"):
        load(tmp_path / "nothing")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin, which run code when they are read, and are refused"):
        load(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks model\.safetensors or model\.safetensors\.index\.json"):
        load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks config\.json"):
        load(folder)


def test_files_that_are_cut_short(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    for length in (0, 5, 100, len(data) - 1):
        (folder / "model.safetensors").write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"model\.safetensors"):
            load(folder)


def test_vocabularies_that_do_not_fit(folder: Path, tmp_path: Path) -> None:
    write_tokenizer(folder)
    parity.make("LlamaConfig", folder, vocab_size=100)
    with pytest.raises(ValueError, match=r"the tokenizer has ids up to \d+, but config\.json says vocab_size 100"):
        load(folder)


def test_dtypes_that_are_refused(folder: Path) -> None:
    with pytest.raises(TypeError, match=r"can be computed in .* not in int8"):
        load(folder, dtype="i8")


def test_inputs_that_are_refused(made: tuple[Path, Any]) -> None:
    model, _ = load(made[0])
    with pytest.raises(ValueError, match=r"ids must be \[batch, tokens\], got shape \(3,\)"):
        model(fa.asarray([1, 2, 3]))
    with pytest.raises(IndexError, match="330 rows"):
        model(fa.asarray([[330]]))
    with pytest.raises(ValueError, match="a sequence has 129 tokens, but positions end at 128"):
        model(fa.zeros((1, 129), dtype="i64"))
    with pytest.raises(ValueError, match="lengths must be 2 numbers from 0 to 6"):
        model(fa.asarray(IDS), lengths=[7, 1])


def test_rows_of_unequal_lengths(made: tuple[Path, Any], device: fa.Device) -> None:
    model, _ = load(made[0], device=device)
    found = model(fa.asarray(IDS, device=device), lengths=[6, 3])
    for row, n in ((0, 6), (1, 3)):
        assert parity.distance(found[row : row + 1, :n], parity.logits_of(made[1], IDS[row : row + 1, :n])) < 1e-4
    assert fa.all(found[1, 3:] == 0)
