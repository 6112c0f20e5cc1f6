"""Models into folders and back."""

from __future__ import annotations

import dataclasses
import json
import re
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ferrum_array as fa
from ferrum_models import Tokenizer, convert, load, random_model, save_model, saving
from ferrum_models.causal import CausalLM
from ferrum_models.families import FAMILIES
from ferrum_ops import QuantTensor, dequantize, quantize
from ferrum_ops.quant.names import scheme as scheme_of
from tests.models import gguf_models, parity
from tests.models.checkpoints import IDS
from tests.models.test_gguf_vocabulary import bytes_vocabulary
from tests.models.test_tokenizing import write as write_tokenizer

SMALL: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 64,
    "num_local_experts": 3,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "sliding_window": 4,
}
#: entries of single families
OWN: dict[str, dict[str, Any]] = {
    "deepseek_v3": {
        "n_routed_experts": 4,
        "n_group": 2,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "q_lora_rank": 32,
        "kv_lora_rank": 32,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 16,
        "v_head_dim": 16,
        "num_key_value_heads": 4,
    },
    "qwen3_next": {
        "num_experts": 3,
        "shared_expert_intermediate_size": 32,
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
    },
}
KINDS = sorted(FAMILIES)
#: tensors of more than one axis that are no weights of products
DENSE = ("gate.weight", "bias", "conv1d.weight", "kv_b_proj.weight")


def small(kind: str, seed: int = 0, **options: Any) -> CausalLM:
    return random_model({"model_type": kind, **SMALL, **OWN.get(kind, {})}, seed=seed, **options)


def logits(model: CausalLM) -> Any:
    return model(fa.asarray(IDS, device=model.device)).numpy()


def same(one: CausalLM, other: CausalLM) -> bool:
    """Whether two models have the same tensors, bit for bit."""
    first, second = dict(one.named_parameters()), dict(other.named_parameters())
    return first.keys() == second.keys() and all(_equal(value, second[name]) for name, value in first.items())


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, QuantTensor) != isinstance(other, QuantTensor):
        return False
    if isinstance(one, QuantTensor):
        parts = one.parts.keys() == other.parts.keys() and all(_equal(one.parts[n], other.parts[n]) for n in one.parts)
        return parts and one.scheme == other.scheme and one.shape == other.shape
    return one.dtype is other.dtype and one.shape == other.shape and bool(fa.all(one == other))


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


def quantised(model: CausalLM, scheme: str) -> CausalLM:
    """All matrices of products in this scheme."""

    def one(path: str, value: Any) -> Any:
        return quantize(value, scheme) if value.ndim > 1 and not path.endswith(DENSE) else value

    return model.map(one)


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


# Conversion.


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
    assert _equal(found, quantize(x, scheme))
    assert found.dtype is fa.bfloat16


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
