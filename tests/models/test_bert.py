"""Embeddings are those of transformers, for the real model and for small random ones."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ferrum_array as fa
from ferrum_models import BertConfig, SentenceEncoder, load_encoder
from ferrum_models.weights import Weights
from ferrum_ops import SequenceMeta
from tests.array.oracle import wide
from tests.models.conftest import Array, Peer

TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "",
    "a",
    "Zażółć gęślą jaźń, 東京都, Ελληνικά, \u202eright to left\u202c and 🦀🚀 emoji",
    "A long text that has to be cut. " * 80,
    "tabs\tand\nnew lines \x00 and control characters",
    "[CLS] [SEP] [PAD] are special",
    "Supercalifragilisticexpialidocious" * 5,
    "It rained.",
    "The rain fell.",
]


def furthest(a: Array, b: Array) -> float:
    return float(np.abs(a - b).max())


def test_embeddings_are_those_of_transformers(encoder: SentenceEncoder, peer: Peer) -> None:
    got = wide(encoder.encode(TEXTS, batch_size=4))
    assert got.shape == (len(TEXTS), 384)
    assert furthest(got, peer(TEXTS)) < 1e-5
    # and the comparison can fail
    assert furthest(got[::-1], peer(TEXTS)) > 0.1


def test_without_normalising(encoder: SentenceEncoder, peer: Peer) -> None:
    got = wide(encoder.encode(TEXTS[:4], normalize=False))
    assert furthest(got, peer(TEXTS[:4], normalize=False)) < 1e-5
    assert furthest(np.linalg.norm(got, axis=1), np.ones(4)) > 0.1


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_a_batch_is_as_its_items(encoder: SentenceEncoder, size: int) -> None:
    texts = [TEXTS[i] for i in (0, 1, 3, 8, 9)]
    together = wide(encoder.encode(texts, batch_size=size))
    alone = np.concatenate([wide(encoder.encode([text])) for text in texts])
    assert furthest(together, alone) < 2e-6


@pytest.mark.parametrize(("dtype", "allowed"), [("f16", 2e-3), ("bf16", 2e-2), ("f64", 1e-6)])
def test_other_dtypes(folder: Path, peer: Peer, dtype: str, allowed: float) -> None:
    encoder = load_encoder(folder, dtype=dtype)
    got = encoder.encode(TEXTS)
    assert got.dtype is fa.Dtype(dtype) is encoder.dtype
    assert furthest(wide(got), peer(TEXTS)) < allowed


def test_segments(folder: Path) -> None:
    """Token types choose the row of the table; without them every token has type 0."""
    model = load_encoder(folder).model
    ids, meta = fa.asarray([101, 7592, 102]), SequenceMeta.packed([3])
    plain = model(ids, meta)
    assert fa.all(plain == model(ids, meta, fa.asarray([0, 0, 0])))
    assert not fa.all(plain == model(ids, meta, fa.asarray([0, 1, 1])))


def test_the_model_refuses_what_does_not_fit(folder: Path) -> None:
    model = load_encoder(folder).model
    with pytest.raises(ValueError, match=r"ids must be \[3\] as meta says, got \(2,\)"):
        model(fa.asarray([1, 2]), SequenceMeta.packed([3]))
    with pytest.raises(ValueError, match="has 513 tokens, but positions end at 512"):
        model(fa.ones(513, dtype="i64"), SequenceMeta.packed([513]))
    with pytest.raises(IndexError, match="has 30522 rows"):
        model(fa.asarray([30522]), SequenceMeta.packed([1]))


# Small random models


def small_model(folder: Path, source: Path, **changes: Any) -> Path:
    """A random BERT written by transformers, with the real tokenizer."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import BertConfig as PeerConfig
        from transformers import BertForMaskedLM, BertModel

        torch.manual_seed(0)
        headed = changes.pop("headed", False)
        config = PeerConfig(
            **{
                "vocab_size": 30522,
                "hidden_size": 24,
                "num_hidden_layers": 2,
                "num_attention_heads": 3,
                "intermediate_size": 20,
                "max_position_embeddings": 40,
                **changes,
            }
        )
        made = BertForMaskedLM(config) if headed else BertModel(config)
        for parameter in made.parameters():  # biases and norms too, which start as 0 and 1
            parameter.data += 0.05 * torch.randn_like(parameter)
        made.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copy(source / name, folder / name)
    return folder


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"hidden_act": "relu"},
        {"hidden_act": "gelu_new"},
        {"hidden_act": "silu"},
        {"num_attention_heads": 1, "layer_norm_eps": 0.1, "type_vocab_size": 1},
        {"headed": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_small_models(tmp_path: Path, folder: Path, changes: dict[str, Any], pooling: str) -> None:
    made = small_model(tmp_path, folder, **changes)
    (made / "1_Pooling").mkdir()
    modes = {"pooling_mode_mean_tokens": pooling == "mean", "pooling_mode_cls_token": pooling == "cls"}
    (made / "1_Pooling" / "config.json").write_text(json.dumps(modes))
    got = wide(load_encoder(made).encode(TEXTS, normalize=False))
    assert furthest(got, Peer(made, 40)(TEXTS, normalize=False, pooling=pooling)) < 1e-5


# What cannot be loaded


@pytest.fixture
def broken(tmp_path: Path, folder: Path) -> Path:
    return small_model(tmp_path, folder)


def edit(path: Path, **changes: Any) -> None:
    config = json.loads(path.read_text())
    config.update(changes)
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "model_type must be one of bert, got 'llama'"),
        ({"model_type": ...}, "there is no model_type"),
        ({"hidden_act": "mish"}, "hidden_act must be one of gelu, gelu_new, .*, got 'mish'"),
        ({"position_embedding_type": "relative_key"}, "'relative_key', which is not implemented"),
        ({"is_decoder": True}, "is_decoder is True, which is not implemented"),
        ({"hidden_size": ...}, "there is no hidden_size"),
        ({"hidden_size": "24"}, "hidden_size must be an integer of at least 1, got '24'"),
        ({"num_hidden_layers": -1}, "num_hidden_layers must be an integer of at least 1, got -1"),
        ({"layer_norm_eps": -1}, "layer_norm_eps must be a number of at least 0.0, got -1"),
        ({"num_attention_heads": 5}, "hidden_size 24 is not a multiple of num_attention_heads 5"),
        ({"vocab_size": 99}, "tokenizer has ids up to 30521, but config.json says vocab_size 99"),
    ],
)
def test_configs_that_are_refused(broken: Path, changes: dict[str, Any], message: str) -> None:
    edit(broken / "config.json", **changes)
    with pytest.raises(ValueError, match=message) as error:
        load_encoder(broken)
    assert str(broken) in str(error.value)


def test_missing_files_are_named_at_once(broken: Path) -> None:
    (broken / "config.json").unlink()
    (broken / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks config\.json, model\.safetensors"):
        load_encoder(broken)
    with pytest.raises(FileNotFoundError, match="there is no model folder"):
        load_encoder(broken / "nothing")


def test_weights_that_do_not_fit_are_named_at_once(broken: Path) -> None:
    edit(broken / "config.json", intermediate_size=21, num_hidden_layers=3)
    with pytest.raises(ValueError, match="does not fit its config") as error:
        load_encoder(broken)
    text = str(error.value)
    assert "encoder.layer.0.intermediate.dense.weight has shape (20, 24), expected (21, 24)" in text
    assert "encoder.layer.1.output.dense.weight has shape (24, 20), expected (24, 21)" in text
    assert "encoder.layer.2.attention.self.key.bias is missing, expected shape (24,)" in text


def test_absurd_configs_end_soon(broken: Path) -> None:
    edit(broken / "config.json", num_hidden_layers=10**9, hidden_size=3 * 10**9)
    with pytest.raises(ValueError, match="is missing, expected shape"):
        load_encoder(broken)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"{}"])
def test_damaged_files_are_named(broken: Path, name: str, content: bytes) -> None:
    (broken / name).write_bytes(content)
    with pytest.raises(ValueError, match=name) as error:
        load_encoder(broken)
    assert "\n" not in str(error.value)


def test_pooling_that_is_refused(broken: Path) -> None:
    (broken / "1_Pooling").mkdir()
    path = broken / "1_Pooling" / "config.json"
    path.write_text(json.dumps({"pooling_mode_max_tokens": True, "pooling_mode_cls_token": True}))
    with pytest.raises(ValueError, match="pooling by max_tokens and cls_token is not implemented"):
        load_encoder(broken)


def test_lengths_and_case_are_read_from_the_folder(broken: Path) -> None:
    path = broken / "sentence_bert_config.json"
    path.write_text(json.dumps({"max_seq_length": 5, "do_lower_case": True}))
    encoder = load_encoder(broken)
    assert encoder.tokenizer.max_length == 5
    assert list(map(len, encoder.tokenizer(["one two three four five six", "ONE"]))) == [5, 3]
    path.write_text(json.dumps({"max_seq_length": 4000}))
    assert load_encoder(broken).tokenizer.max_length == 40
    path.write_text(json.dumps({"max_seq_length": 0}))
    with pytest.raises(ValueError, match="max_seq_length must be an integer of at least 1, got 0"):
        load_encoder(broken)


def test_dtypes_that_are_refused(broken: Path) -> None:
    with pytest.raises(TypeError, match=r"float16, bfloat16, float32, float64 .* not in int8"):
        load_encoder(broken, dtype="i8")


def test_integers_are_no_weights() -> None:
    weights = Weights({"bias": fa.asarray([1, 2])}, "a test")
    weights.take("bias", (2,))
    with pytest.raises(ValueError, match="bias is int64, expected real floating-point numbers"):
        weights.check()


def test_entries_that_inference_does_not_need_are_not_looked_at() -> None:
    entries = {
        "model_type": "bert", "vocab_size": 5, "hidden_size": 4, "num_hidden_layers": 1,
        "num_attention_heads": 2, "intermediate_size": 3, "max_position_embeddings": 6,
        "hidden_dropout_prob": 0.3, "something": object(),
    }  # fmt: skip
    config = BertConfig.from_dict(entries)
    assert config.head_dim == 2
    assert config.hidden_act == "gelu"
