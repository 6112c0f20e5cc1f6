"""Models in GGUF files compute what transformers computes with the same weights."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

import ferrum_array as fa
from ferrum_models import load
from ferrum_models.gguf import GgufFile
from ferrum_models.gguf.config import ARCHITECTURES, settings
from ferrum_models.gguf.names import GgufTensors, blocks
from ferrum_models.layers import Rotary
from ferrum_models.weights import Weights
from ferrum_ops import LinearScaling, QuantTensor, dequantize
from ferrum_ops.quant.gguf import TYPES
from tests.models import gguf_models, parity

IDS = np.random.default_rng(0).integers(0, 61, (2, 23))

#: case, kind of the matrices, sizes
PAIRS: list[tuple[str, str, dict[str, Any]]] = [
    *((case, "F32", {}) for case in gguf_models.CASES),
    *((case, "Q8_0", {}) for case in ("llama", "mixtral", "qwen2", "qwen3", "qwen3moe", "gemma3", "gpt-oss")),
    *(("llama", kind, gguf_models.WIDE) for kind in TYPES if kind != "Q8_0"),
    ("llama", "F16", {}),
    ("llama-tied-biases", "Q4_1", {}),
    ("gpt-oss", "MXFP4", {}),
    ("gpt-oss", "BF16", {}),
    ("mixtral", "Q4_K", {**gguf_models.WIDE, "num_local_experts": 2}),
    ("gemma3", "Q4_0", {}),
]


def written(
    folder: Path, case: str = "llama", kind: str = "F32", sizes: dict[str, Any] | None = None, **changes: Any
) -> tuple[Path, Any]:
    """A file of a case, and its model; *changes* are entries of the metadata, ``__`` standing for a dot."""
    peer = gguf_models.make(case, folder, **(sizes or {}))
    arch = gguf_models.CASES[case][0]
    entries = {key.replace("__", ".").replace("own.", f"{arch}."): value for key, value in changes.items()}
    gguf_models.write(peer, case, folder / "model.gguf", kind, **entries)
    return folder / "model.gguf", peer


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    return written(tmp_path_factory.mktemp("small"), "llama", "Q8_0")


@pytest.fixture(scope="module", params=PAIRS, ids=lambda pair: f"{pair[0]}-{pair[1]}")
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    case, kind, sizes = request.param
    folder = tmp_path_factory.mktemp("gguf")
    peer = gguf_models.make(case, folder, **sizes)
    gguf_models.write(peer, case, folder / "model.gguf", kind)
    return folder / "model.gguf", peer


def test_logits(pair: tuple[Path, Any], device: fa.Device) -> None:
    path, peer = pair
    model, tokenizer = load(path, device=device, dtype="f32")
    assert tokenizer is None
    assert parity.distance(model(fa.asarray(IDS, device=device)), parity.logits_of(peer, IDS)) < 1e-4


def test_the_comparison_can_fail(small: tuple[Path, Any], tmp_path: Path) -> None:
    other = gguf_models.make("llama", tmp_path, seed=1)
    assert parity.distance(load(small[0])[0](fa.asarray(IDS)), parity.logits_of(other, IDS)) > 0.1


@pytest.mark.parametrize(("kind", "dtype"), [("F32", fa.float32), ("F16", fa.float16), ("Q4_0", fa.float32)])
def test_a_model_computes_in_the_type_of_its_embedding(tmp_path: Path, kind: str, dtype: fa.Dtype) -> None:
    path, _ = written(tmp_path, kind=kind)
    assert {one.dtype for _, one in load(path)[0].named_parameters()} == {dtype}
    for wanted in (fa.float32, fa.bfloat16):
        assert {one.dtype for _, one in load(path, dtype=wanted)[0].named_parameters()} == {wanted}


def test_blocks_stay_in_the_file(tmp_path: Path) -> None:
    """Where nothing has to be joined or reordered, stacks of experts too."""
    file = GgufFile(written(tmp_path, "mixtral", "Q4_K", gguf_models.WIDE)[0])
    weights = Weights(GgufTensors(file, settings(file)), "a test", formats=(blocks,)).at("model.layers.0")
    found = {
        "attn_v": weights.at("self_attn.v_proj").linear((128, 256)),
        "ffn_down_exps": weights.at("block_sparse_moe.experts").stacked(
            [[f"{one}.w2"] for one in range(3)], (256, 512)
        ),
    }
    for name, one in found.items():
        assert isinstance(one, QuantTensor)
        raw = np.asarray(file.raw(f"blk.0.{name}.weight"))
        assert np.shares_memory(np.asarray(one.parts["blocks"]), raw)


@pytest.mark.parametrize(
    ("kind", "scheme"), [("Q8_0", "int8-g32-f16"), ("Q5_0", "int5-g32-f16"), ("Q4_0", "int4-g32-f16"), ("Q4_1", "q4_1")]
)
def test_blocks_of_integers_become_integers(tmp_path: Path, kind: str, scheme: str) -> None:
    """The form that kernels read, with the same numbers."""
    path, peer = written(tmp_path, kind=kind)
    weight = load(path)[0].model.layers[0].self_attn.o_proj.weight  # type: ignore[union-attr] # of attention
    assert isinstance(weight, QuantTensor)
    assert weight.scheme.name == scheme
    np.testing.assert_array_equal(dequantize(weight).numpy(), peer.model.layers[0].self_attn.o_proj.weight.detach())


def test_files_are_forgotten_while_they_are_read(small: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ferrum_models.gguf.names._RELEASE", 1000)
    let_go = []
    release = GgufFile.release
    monkeypatch.setattr(GgufFile, "release", lambda file: (let_go.append(file), release(file)))
    model, _ = load(small[0])
    assert len(let_go) > 10
    assert parity.distance(model(fa.asarray(IDS)), parity.logits_of(small[1], IDS)) < 1e-4


def test_progress(small: tuple[Path, Any]) -> None:
    told: list[tuple[int, int]] = []
    load(small[0], progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (len(GgufFile(small[0]).tensors),) * 2


def test_folders(small: tuple[Path, Any], tmp_path: Path) -> None:
    shutil.copy(small[0], tmp_path / "one.gguf")
    expected = load(small[0])[0](fa.asarray(IDS))
    assert fa.all(load(tmp_path)[0](fa.asarray(IDS)) == expected)
    shutil.copy(small[0], tmp_path / "two.gguf")
    with pytest.raises(ValueError, match=r"holds several models; name one: one\.gguf, two\.gguf"):
        load(tmp_path)
    parity.make("LlamaConfig", tmp_path)
    assert load(tmp_path)[0].config.hidden_size == 32  # a config.json goes before
    with pytest.raises(FileNotFoundError, match="there is no model"):
        load(tmp_path / "three.gguf")


# Metadata.


def test_a_number_for_each_layer(tmp_path: Path) -> None:
    path, peer = written(tmp_path, own__attention__head_count_kv=[2, 2], own__feed_forward_length=[96, 96])
    assert parity.distance(load(path)[0](fa.asarray(IDS)), parity.logits_of(peer, IDS)) < 1e-4
    path, _ = written(tmp_path, own__attention__head_count_kv=[2, 4])
    with pytest.raises(ValueError, match=r"attention\.head_count_kv differs from layer to layer"):
        load(path)


def test_tokens_that_end_a_text(tmp_path: Path) -> None:
    keys = {f"tokenizer__ggml__{name}_token_id": one for name, one in (("eos", 7), ("eot", 9), ("eom", 7))}
    assert load(written(tmp_path, **keys)[0])[0].config.eos_token_ids == (7, 9)
    with pytest.raises(ValueError, match=r"eos_token_id is 61, but the table has 61 rows"):
        load(written(tmp_path, tokenizer__ggml__eos_token_id=61)[0])


@pytest.mark.parametrize("pattern", [[True, False, False, True, True, True, False], 3, None])
def test_which_layers_have_windows(tmp_path: Path, pattern: Any) -> None:
    path, _ = written(tmp_path, "gemma3", own__attention__sliding_window_pattern=pattern)
    listed = pattern if isinstance(pattern, list) else [(n + 1) % (pattern or 6) != 0 for n in range(7)]
    expected = tuple("sliding_attention" if one else "full_attention" for one in listed)
    assert load(path)[0].config.layer_types == expected
    path, _ = written(tmp_path, "gemma3", own__attention__sliding_window=None)
    assert set(load(path)[0].config.layer_types) == {"full_attention"}


def test_scales_of_gemma(tmp_path: Path) -> None:
    path, peer = written(tmp_path, "gemma3", own__attention__scale=0.5)
    for layer in peer.model.layers:
        layer.self_attn.scaling = 0.5
    assert parity.distance(load(path)[0](fa.asarray(IDS)), parity.logits_of(peer, IDS)) < 1e-4
    said = settings(GgufFile(written(tmp_path, "gemma3", own__block_count=62, own__embedding_length=1344)[0]))
    assert said.number("query_pre_attn_scalar") == pytest.approx(1344 / 4)


def test_positions(tmp_path: Path) -> None:
    def rotary(case: str = "qwen3", **entries: Any) -> Rotary:
        return load(written(tmp_path, case, **entries)[0])[0].config.rotary["full_attention"]

    half = rotary(own__rope__dimension_count=8, own__rope__scaling__type="none")
    assert (half.dim, half.scaling) == (8, None)
    assert rotary(own__rope__freq_base=None).theta == 10000.0
    plain = rotary().scaling
    assert plain is not None
    assert plain.magnitude == pytest.approx(0.1 * np.log(8) + 1)  # type: ignore[attr-defined] # of yarn
    more = rotary(own__rope__scaling__attn_factor=1.5).scaling
    assert more.magnitude == pytest.approx(1.5 * plain.magnitude)  # type: ignore[union-attr, attr-defined] # of yarn
    assert rotary("llama", own__rope__scale_linear=4.0).scaling == LinearScaling(4.0)
    assert rotary("llama-linear", own__rope__scaling__type=None).scaling == LinearScaling(3.0)


# Older files.


def converted(path: Path, change: Any, arch: str = "llama") -> Path:
    """The file with other names or tensors: *change* gives name and data, or also the type, of those of one tensor."""
    file = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(path.with_name("changed.gguf"), arch)
    for key, field in file.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            writer.add_key_value(key, field.contents(), field.types[0])
    for tensor in file.tensors:
        for name, data, *kind in change(tensor.name, tensor.data):
            writer.add_tensor(name, data, raw_dtype=kind[0] if kind else tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.with_name("changed.gguf")


@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
def test_experts_that_are_not_stacked(tmp_path: Path, kind: str) -> None:
    path, peer = written(tmp_path, "mixtral", kind)

    def split(name: str, data: Any) -> Any:
        if "_exps" not in name:
            return [(name, data)]
        return [(name.replace("_exps", f".{expert}"), one) for expert, one in enumerate(data)]

    model, _ = load(converted(path, split))
    assert parity.distance(model(fa.asarray(IDS)), parity.logits_of(peer, IDS)) < 1e-4


def test_tensors_that_nobody_needs(tmp_path: Path) -> None:
    path, peer = written(tmp_path)

    def more(name: str, data: Any) -> Any:
        table = [("blk.0.attn_rot_embd.weight", np.ones(8, np.float32))] if name == "output_norm.weight" else []
        return [(name, data), *table]

    model, _ = load(converted(path, more))
    assert parity.distance(model(fa.asarray(IDS)), parity.logits_of(peer, IDS)) < 1e-4


# Models in several files.


def split(path: Path, folder: Path, count: int = 3, numbers: list[int] | None = None) -> list[Path]:
    """The file as *count* files, which say that they have these *numbers*."""
    file = gguf.GGUFReader(path)
    parts = []
    for number in range(count):
        parts.append(folder / f"model-{number + 1:05}-of-{count:05}.gguf")
        writer = gguf.GGUFWriter(parts[-1], "llama")
        writer.add_uint16("split.no", (numbers or range(count))[number])
        writer.add_uint16("split.count", count)
        for key, field in file.fields.items() if number == 0 else ():
            if not key.startswith("GGUF.") and key != "general.architecture":
                writer.add_key_value(key, field.contents(), field.types[0])
        for tensor in file.tensors[number::count]:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return parts


def test_several_files_are_one_model(small: tuple[Path, Any], tmp_path: Path) -> None:
    parts = split(small[0], tmp_path)
    expected = parity.logits_of(small[1], IDS)
    for path in (parts[0], tmp_path):
        assert parity.distance(load(path)[0](fa.asarray(IDS)), expected) < 1e-4
    with pytest.raises(ValueError, match=r"one of 3 files of a model; give the first, .* in -00001-of-00003\.gguf"):
        load(parts[1])
    for part in parts[1:]:
        part.rename(part.with_suffix(".old"))
    with pytest.raises(FileNotFoundError, match=r"model-00002-of-00003\.gguf, model-00003-of-00003\.gguf"):
        load(tmp_path)


def test_files_that_do_not_belong_together(small: tuple[Path, Any], tmp_path: Path) -> None:
    parts = split(small[0], tmp_path, numbers=[0, 2, 1])
    with pytest.raises(ValueError, match=r"model-00002-of-00003\.gguf says that it is another part than 2 of 3"):
        load(parts[0])
    parts = split(small[0], tmp_path)
    names = [list(GgufFile(part).tensors) for part in parts[:2]]
    name, other = next((one.encode(), two.encode()) for one in names[0] for two in names[1] if len(one) == len(two))
    data = parts[1].read_bytes()
    parts[1].write_bytes(data.replace(other, name))
    with pytest.raises(ValueError, match=rf"tensor '{name.decode()}' is in another part too"):
        load(parts[0])


# What is refused.


def test_unknown_architectures_list_the_known(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "eliza")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ValueError, match=r"general\.architecture must be one of .* got 'eliza'") as error:
        load(tmp_path)
    assert all(name in str(error.value) for name in ARCHITECTURES)


@pytest.mark.parametrize(
    ("case", "change", "message"),
    [
        ("llama", {"own__embedding_length": None}, "there is no embedding_length; it must be an integer"),
        ("llama", {"own__embedding_length": 0}, "embedding_length must be an integer of at least 1, got 0"),
        ("llama", {"own__block_count": "two"}, "block_count must be an integer of at least 1, got 'two'"),
        ("llama", {"own__block_count": 10**6}, r"block_count is 1000000, but there are only \d+ tensors"),
        ("llama", {"own__block_count": 3}, r"model\.layers\.2\.mlp\.down_proj\.weight is missing"),
        ("llama", {"own__block_count": 1}, r"model\.layers\.1\.mlp\.down_proj\.weight is not known"),
        ("llama", {"own__attention__head_count": 0}, "head_count must be an integer of at least 1, got 0"),
        ("llama", {"own__attention__head_count": 3, "own__attention__head_count_kv": 1}, "rows, which are not 3 heads"),
        ("llama", {"own__attention__value_length": 8}, "keys and values of different lengths"),
        ("llama", {"own__rope__dimension_count": 8}, "of which a part turns are not implemented"),
        ("llama", {"own__rope__dimension_count": 32}, "dimension_count is 32, but heads have 16 dimensions"),
        ("llama", {"own__rope__scaling__type": "spiral"}, r"scaling\.type must be one of none, linear, yarn, got"),
        ("llama-3", {"own__rope__scaling__type": "linear"}, r"rope_freqs\.weight must be 8 numbers beside .* none"),
        ("llama", {"own__attention__layer_norm_rms_epsilon": None}, "there is no attention.layer_norm_rms_epsilon"),
        ("llama", {"own__logit_scale": 2.0}, "logit_scale is 2.0, which is not implemented"),
        ("llama", {"own__attention__causal": False, "own__expert_shared_count": 2}, "expert_shared_count is 2"),
        ("llama", {"own__vocab_size": 62, "general__type": "adapter"}, r"general\.type must be one of model"),
        ("llama", {"split__count": 3}, r"is one of 3 files of a model; give the first, .* in -00001-of-00003\.gguf"),
        ("mixtral", {"own__expert_count": 2**31}, "expert_count is 2147483648; at most 65536"),
        ("mixtral", {"own__expert_count": 4}, r"experts\.w1\.weight has shape \(3, 96, 64\), expected \(4, "),
        ("qwen3moe", {"own__expert_gating_func": 2}, "expert_gating_func is 2, which is not implemented"),
        ("qwen3", {"own__attention__sliding_window": 5}, "sliding_window 5 is not implemented"),
    ],
)
def test_metadata_that_does_not_fit(tmp_path: Path, case: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        load(written(tmp_path, case, **change)[0])
    assert "model.gguf" in str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("token_embd.weight", "token_embds.weight", "there is no token_embd.weight of two axes"),
        ("blk.0.ffn_up.weight", "blk.0.ffn_sideways.weight", "blk.0.ffn_sideways.weight is not known"),
        ("blk.0.ffn_up.weight", "blk.00.ffn_up.weight", "blk.00.ffn_up.weight is not known"),
        ("blk.1.attn_norm.weight", "blk.7.attn_norm.weight", "model.layers.1.input_layernorm.weight is missing"),
        ("blk.0.ffn_up.weight", "blk.0.ffn_down.1.weight", "blk.0.ffn_down.1.weight is not known"),
    ],
)
def test_tensors_that_do_not_fit(small: tuple[Path, Any], tmp_path: Path, old: str, new: str, message: str) -> None:
    path = Path(shutil.copy(small[0], tmp_path))
    changed = converted(path, lambda name, data: [(new if name == old else name, data)])
    with pytest.raises(ValueError, match=re.escape(message)):
        load(changed)


def test_one_tensor_under_two_names(tmp_path: Path) -> None:
    path, _ = written(tmp_path, "gpt-oss")

    def twice(name: str, data: Any) -> Any:
        again = name.replace("post_attention_norm", "ffn_norm")
        return [(name, data), *([(again, data)] if again != name else [])]

    with pytest.raises(ValueError, match=r"blk\.0\.ffn_norm\.weight is not known"):
        load(converted(path, twice, "gpt-oss"))


def test_experts_of_unlike_types(tmp_path: Path) -> None:
    path, _ = written(tmp_path, "mixtral", "Q8_0")

    def other(name: str, data: Any) -> Any:
        if name != "blk.1.ffn_up_exps.weight":
            return [(name, data)]
        kind = gguf.GGMLQuantizationType.Q4_0
        return [(name, gguf.quantize(gguf.dequantize(data, gguf.GGMLQuantizationType.Q8_0), kind), kind)]

    with pytest.raises(ValueError, match=r"w1\.weight is QuantTensor\(int8.* joined with is QuantTensor\(int4"):
        load(converted(path, other))


def test_blocks_of_another_shape(small: tuple[Path, Any], tmp_path: Path) -> None:
    path = Path(shutil.copy(small[0], tmp_path))
    changed = converted(path, lambda name, data: [(name, data[:, :34] if name == "blk.0.ffn_up.weight" else data)])
    with pytest.raises(ValueError, match=r"up_proj\.weight\.q8_0 has shape \(96, 34\), expected \(96, 68\)"):
        load(changed)
    with pytest.raises(ValueError, match=r"weight\.q8_0 holds 32 numbers together, expected shape \(48, 64\)|expected"):
        load(written(tmp_path, kind="Q8_0", own__feed_forward_length=48)[0])
