"""Folders and GGUF files into folders of another dtype or scheme."""

from __future__ import annotations

import json
import re
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ferrum_array as fa
from ferrum_models import convert, load, random_model, save_model, saving
from ferrum_ops import QuantTensor, dequantize, quantize
from ferrum_ops.quant.names import scheme as scheme_of
from tests.models import gguf_models, parity
from tests.models.checkpoints import IDS
from tests.models.small_models import KINDS, SMALL, equal, logits, quantised, same, small
from tests.models.test_gguf_vocabulary import bytes_vocabulary


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scheme", ["int8", "int4", "mxfp4"])
def test_convert_is_loading_quantising_and_saving(kind: str, scheme: str, tmp_path: Path) -> None:
    model = small(kind)
    save_model(model, tmp_path / "dense")
    convert(tmp_path / "dense", tmp_path / "small", quantize=scheme)
    back, _ = load(tmp_path / "small")
    assert same(back, quantised(model, "int4-g32-f16" if scheme == "int4" else scheme))


def test_int8_stays_near(tmp_path: Path) -> None:
    model = small("qwen3_moe")
    save_model(model, tmp_path / "dense")
    for scheme, bound in (("int8", 0.05), ("int4", 0.6)):
        convert(tmp_path / "dense", tmp_path / scheme, quantize=scheme)
        assert 1e-4 < parity.distance(load(tmp_path / scheme)[0](fa.asarray(IDS)), logits(model)) < bound


def test_layers_to_keep(tmp_path: Path) -> None:
    save_model(small("qwen3_moe"), tmp_path / "dense")
    convert(tmp_path / "dense", tmp_path / "small", quantize="int8", keep=["lm_head", "layers.1", "embed_tokens"])
    model, _ = load(tmp_path / "small")
    found = {name for name, value in model.named_parameters() if isinstance(value, QuantTensor)}
    assert found == {
        *(f"model.layers.0.self_attn.{name}_proj.weight" for name in "qkvo"),
        "model.layers.0.mlp.experts.gate_up_proj",
        "model.layers.0.mlp.experts.down_proj",
    }


def test_layers_to_keep_that_are_not_there(tmp_path: Path) -> None:
    save_model(small("llama"), tmp_path / "dense")
    with pytest.raises(ValueError, match=r"keep names lm_hed, layers\.9, but the model has no such layer"):
        convert(tmp_path / "dense", tmp_path / "small", quantize="int8", keep=["lm_hed", "layers.1", "layers.9"])
    with pytest.raises(TypeError, match=r"got one str; write \['lm_head'\]"):
        convert(tmp_path / "dense", tmp_path / "small", quantize="int8", keep="lm_head")
    assert not (tmp_path / "small").exists()


def test_another_dtype(tmp_path: Path) -> None:
    model = small("mixtral")
    save_model(model, tmp_path / "dense")
    convert(tmp_path / "dense", tmp_path / "half", dtype="bf16")
    back, _ = load(tmp_path / "half")
    assert same(back, model.to(dtype="bf16"))
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"
    convert(tmp_path / "half", tmp_path / "both", dtype="f16", quantize="int4")
    back, _ = load(tmp_path / "both")
    assert {value.dtype for _, value in back.named_parameters()} == {fa.float16}


def test_from_one_scheme_to_another_or_none(tmp_path: Path) -> None:
    model = quantised(small("llama"), "int8")
    save_model(model, tmp_path / "a")
    convert(tmp_path / "a", tmp_path / "b", quantize="mlx4-g32")
    back, _ = load(tmp_path / "b")
    numbers = model.map(lambda path, x: dequantize(x) if isinstance(x, QuantTensor) else x)
    assert same(back, quantised(numbers, "mlx4-g32"))
    convert(tmp_path / "a", tmp_path / "c")
    assert same(load(tmp_path / "c")[0], model)


def test_little_memory_is_needed(tmp_path: Path) -> None:
    """Three layers or fifteen: what is held at a time is a tensor and a file's worth."""
    peaks = []
    for layers in (3, 15):
        config = {**SMALL, "num_hidden_layers": layers, "hidden_size": 256, "intermediate_size": 512}
        save_model(random_model({"model_type": "llama", **config}), tmp_path / f"dense{layers}")
        tracemalloc.start()
        convert(tmp_path / f"dense{layers}", tmp_path / f"small{layers}", quantize="int8", max_shard_bytes=300_000)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0]


@given(
    scheme=st.sampled_from(
        ["int8", "int4-g16-asym", "mlx4-g32", "q8_0", "mxfp4", "fp8_e5m2", "fp8_e4m3-b3x16", "int8-g32-bf16"]
    ),
    lead=st.sampled_from([(), (3,)]),
    rows=st.integers(0, 20),
    block=st.integers(1, 900),
)
def test_large_matrices_are_quantised_in_parts(scheme: str, lead: tuple[int, ...], rows: int, block: int) -> None:
    x = fa.random.default_rng(rows).normal((*lead, rows, 32), dtype="bf16")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saving, "_BLOCK", block)
        found = saving._quantised(x, scheme_of(scheme))
    assert equal(found, quantize(x, scheme))
    assert found.dtype is fa.bfloat16


# What is refused, and that nothing is left behind.


@pytest.mark.parametrize("scheme", ["gptq4-g32", "q4_k", "awq4-g32"])
def test_schemes_that_cannot_be_made(scheme: str, tmp_path: Path) -> None:
    save_model(small("llama"), tmp_path / "dense")
    with pytest.raises(ValueError, match=r"can be read here, but not made|is not divisible"):
        convert(tmp_path / "dense", tmp_path / "small", quantize=scheme)
    assert [path.name for path in tmp_path.iterdir()] == ["dense"]


def test_matrices_that_cannot_be_divided_are_all_named(tmp_path: Path) -> None:
    save_model(random_model({"model_type": "llama", **SMALL, "intermediate_size": 72}), tmp_path / "dense")
    with pytest.raises(ValueError, match="convert: name them in keep, or choose another scheme") as error:
        convert(tmp_path / "dense", tmp_path / "small", quantize="int4")
    assert re.findall(r"model\.layers\.(\d)\.mlp\.down_proj: int4-g32-f16: K = 72", str(error.value)) == ["0", "1"]
    convert(tmp_path / "dense", tmp_path / "small", quantize="int4", keep=["down_proj"])
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["dense", "small"]


def test_sources_that_do_not_fit_leave_nothing_behind(tmp_path: Path) -> None:
    save_model(small("llama"), tmp_path / "dense")
    path = tmp_path / "dense" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "intermediate_size": 65}))
    with pytest.raises(ValueError, match="does not fit its config") as error:
        convert(tmp_path / "dense", tmp_path / "small", quantize="int8")
    assert str(error.value).count("expected") == 6
    path.write_text(json.dumps({**json.loads(path.read_text()), "intermediate_size": 64, "num_hidden_layers": 1}))
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.up_proj\.weight is not known"):
        convert(tmp_path / "dense", tmp_path / "small", quantize="int8")
    assert [path.name for path in tmp_path.iterdir()] == ["dense"]


# GGUF files.


@pytest.mark.parametrize(
    ("case", "kind"),
    [("llama", "Q8_0"), ("llama", "F16"), ("qwen3moe", "Q8_0"), ("mixtral", "Q4_0"), ("gpt-oss", "Q5_1")],
)
def test_gguf_files_are_converted(case: str, kind: str, tmp_path: Path) -> None:
    """As they are: blocks stay blocks, also those of experts, which the file has in stacks."""
    peer = gguf_models.make(case, tmp_path / "made")
    gguf_models.write(peer, case, tmp_path / "model.gguf", kind)
    convert(tmp_path / "model.gguf", tmp_path / "same")
    expected, back = load(tmp_path / "model.gguf")[0], load(tmp_path / "same")[0]
    assert parity.distance(back(fa.asarray(IDS)), expected(fa.asarray(IDS)).numpy()) < 1e-5
    found = [{getattr(x, "scheme", None) for _, x in model.named_parameters()} for model in (expected, back)]
    assert found[0] == found[1]
    convert(tmp_path / "model.gguf", tmp_path / "int8", quantize="int8", dtype="f32")
    model = load(tmp_path / "int8")[0]
    assert {x.scheme.name for _, x in model.named_parameters() if isinstance(x, QuantTensor)} == {"int8"}
    assert parity.distance(model(fa.asarray(IDS)), expected(fa.asarray(IDS)).numpy()) < 0.2


def test_vocabularies_become_tokenizers(tmp_path: Path) -> None:
    peer = gguf_models.make("llama", tmp_path, vocab_size=400)
    template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
    entries = {**bytes_vocabulary(), "tokenizer.chat_template": template}
    gguf_models.write(peer, "llama", tmp_path / "model.gguf", **entries)
    convert(tmp_path / "model.gguf", tmp_path / "folder")
    (before, after) = (load(tmp_path / name)[1] for name in ("model.gguf", "folder"))
    assert before is not None
    assert after is not None
    for text in ("the quick brown fox", "12345 <x>", "Zo\u00eb"):
        assert after.encode(text) == before.encode(text)
        assert after.decode(after.encode(text)) == before.decode(before.encode(text))
    chat = [{"role": "user", "content": "hello"}]
    assert after.apply_chat_template(chat) == before.apply_chat_template(chat)
    assert after.eos_ids == before.eos_ids
