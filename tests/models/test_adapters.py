"""Adapters give the model whose weights they were added to in float64."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import ferrum_array as fa
from ferrum_models import generate_ids, load, load_adapters, merge_adapters, remove_adapters, save_model
from ferrum_models.adapters import AdapterConfig
from ferrum_models.config import Settings
from ferrum_models.layers import Linear, LoRA
from tests.models import checkpoints, parity
from tests.models.checkpoints import CONFIG, IDS
from tests.models.small_models import KINDS, small

NEAR = 1e-5
SAID: dict[str, Any] = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "r": 4,
    "lora_alpha": 8,
    "target_modules": ["q_proj", "v_proj"],
    "bias": "none",
    "lora_dropout": 0.1,
    "use_rslora": False,
    "use_dora": False,
    "fan_in_fan_out": False,
    "modules_to_save": None,
    "inference_mode": True,
}
LINEAR = [name.removesuffix(".weight") for name in checkpoints.names(CONFIG) if checkpoints.is_linear(name)]
SHAPES = checkpoints.names(CONFIG)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model in fewer bits, and the dense one of the same numbers."""
    config = {"bits": 4, "group_size": 32}
    return checkpoints.write(tmp_path_factory.mktemp("model"), CONFIG, checkpoints.mlx(4, 32), quantization=config)


def write(folder: Path, ranks: dict[str, int], seed: int = 0, **said: Any) -> Path:
    """An adapter of these layers."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    tensors = {}
    for name, rank in ranks.items():
        outputs, inputs = SHAPES[f"{name}.weight"]
        tensors[f"base_model.model.{name}.lora_A.weight"] = rng.standard_normal((rank, inputs)) * inputs**-0.5
        tensors[f"base_model.model.{name}.lora_B.weight"] = rng.standard_normal((outputs, rank)) * 0.3
    save_file({key: value.astype(np.float32) for key, value in tensors.items()}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({**SAID, **said}))
    return folder


def merged(dense: Path, target: Path, *adapters: tuple[Path, dict[str, float]]) -> Path:
    """The dense checkpoint with factor * B @ A of each layer added in float64."""
    tensors = {name: value.astype(np.float64) for name, value in load_file(dense / "model.safetensors").items()}
    for folder, factors in adapters:
        low = {name: x.astype(np.float64) for name, x in load_file(folder / "adapter_model.safetensors").items()}
        for name, factor in factors.items():
            stem = f"base_model.model.{name}.lora_"
            tensors[f"{name}.weight"] += factor * low[f"{stem}B.weight"] @ low[f"{stem}A.weight"]
    return checkpoints.save(target, CONFIG, {name: value.astype(np.float32) for name, value in tensors.items()})


def distance(model: Any, expected: Path) -> float:
    wanted = load(expected, device="cpu")[0](fa.asarray(IDS, device="cpu")).numpy()
    return parity.distance(model(fa.asarray(IDS, device=model.device)), wanted)


def ending(*ends: str) -> list[str]:
    return [name for name in LINEAR if name.endswith(ends)]


@pytest.mark.parametrize("stored", [0, 1], ids=["quantised", "dense"])
def test_an_adapter_is_its_sum_with_the_weights(
    pair: tuple[Path, Path], stored: int, tmp_path: Path, device: fa.Device
) -> None:
    layers = ending("q_proj", "v_proj")
    folder = write(tmp_path / "adapter", dict.fromkeys(layers, 4))
    base, _ = load(pair[stored], device=device)
    model = load_adapters(base, folder)
    expected = merged(pair[1], tmp_path / "merged", (folder, dict.fromkeys(layers, 2.0)))
    assert distance(model, expected) < NEAR
    assert distance(model, pair[1]) > 1000 * NEAR
    assert distance(base, pair[1]) < NEAR  # it stayed as it was
    assert distance(remove_adapters(model), pair[1]) < NEAR
    assert sum(isinstance(part, LoRA) for _, part in model.modules()) == len(layers)


@given(
    r=st.integers(1, 9),
    alpha=st.sampled_from([0.5, 1, 16]),
    rslora=st.booleans(),
    names=st.sets(st.sampled_from(["q_proj", "k_proj", "o_proj", "up_proj", "down_proj", "mlp.gate_proj"]), min_size=1),
    ranks=st.dictionaries(
        st.sampled_from(["q_proj", r"0\.mlp\.up_proj", "^model.layers.1.*down_proj"]), st.integers(1, 5)
    ),
    alphas=st.dictionaries(st.sampled_from(["k_proj", r"layers\.1\..*", "o_proj"]), st.sampled_from([3, 5.5])),
    seed=st.integers(0, 9),
)
@settings(max_examples=12, deadline=None)
def test_what_the_config_says(
    pair: tuple[Path, Path],
    tmp_path_factory: pytest.TempPathFactory,
    r: int,
    alpha: float,
    rslora: bool,
    names: set[str],
    ranks: dict[str, int],
    alphas: dict[str, float],
    seed: int,
) -> None:
    def of(table: dict[str, Any], name: str, default: Any) -> Any:
        found = [value for key, value in table.items() if re.fullmatch(rf"(.*\.)?({key})", name)]
        return found[0] if found else default

    layers = {name: of(ranks, name, r) for name in ending(*names)}
    factors = {n: of(alphas, n, alpha) / (rank**0.5 if rslora else rank) for n, rank in layers.items()}
    tmp = tmp_path_factory.mktemp("adapter")
    folder = write(
        tmp / "adapter",
        layers,
        seed,
        r=r,
        lora_alpha=alpha,
        use_rslora=rslora,
        target_modules=sorted(names),
        rank_pattern=ranks,
        alpha_pattern=alphas,
    )
    model = load_adapters(load(pair[1])[0], folder)
    expected = merged(pair[1], tmp / "merged", (folder, factors))
    assert distance(model, expected) < NEAR
    assert distance(merge_adapters(model), expected) < NEAR


def test_several_at_once_with_weights(pair: tuple[Path, Path], tmp_path: Path) -> None:
    first, second = ending("q_proj", "v_proj"), ending("q_proj", "down_proj")
    a = write(tmp_path / "a", dict.fromkeys(first, 4), seed=1)
    b = write(tmp_path / "b", dict.fromkeys(second, 3), seed=2, r=3, target_modules=["q_proj", "down_proj"])
    base, _ = load(pair[0])
    model = load_adapters(base, [a, b], [0.5, -2.0])
    expected = merged(
        pair[1], tmp_path / "merged", (a, dict.fromkeys(first, 0.5 * 2)), (b, dict.fromkeys(second, -2.0 * 8 / 3))
    )
    assert distance(model, expected) < NEAR
    assert distance(load_adapters(load_adapters(base, a, [0.5]), b, [-2.0]), expected) < NEAR
    assert distance(load_adapters(base, [b, a], [-2.0, 0.5]), expected) < NEAR
    assert distance(load_adapters(base, [a, b]), expected) > 100 * NEAR


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"target_modules": "all-linear"}, LINEAR),
        ({"target_modules": r".*\.1\.mlp\..*"}, [name for name in LINEAR if "layers.1.mlp." in name]),
        ({"target_modules": ["model.layers.0.self_attn.q_proj"]}, ["model.layers.0.self_attn.q_proj"]),
        ({"layers_to_transform": 1}, ["model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj"]),
        (
            {"layers_to_transform": [0], "layers_pattern": "layers"},
            [n for n in ending("q_proj", "v_proj") if ".0." in n],
        ),
        ({"exclude_modules": ["v_proj"]}, ending("q_proj")),
        ({"exclude_modules": r".*layers\.0.*"}, [n for n in ending("q_proj", "v_proj") if ".1." in n]),
        ({"target_modules": ["lm_head"]}, ["lm_head"]),
        ({"init_lora_weights": "gaussian", "loftq_config": {}, "peft_version": "0.18.0"}, ending("q_proj", "v_proj")),
    ],
)
def test_which_layers_are_meant(
    pair: tuple[Path, Path], said: dict[str, Any], expected: list[str], tmp_path: Path
) -> None:
    folder = write(tmp_path / "adapter", dict.fromkeys(expected, 4), **said)
    model = load_adapters(load(pair[1])[0], folder)
    assert [name for name, part in model.modules() if isinstance(part, LoRA)] == expected
    assert distance(model, merged(pair[1], tmp_path / "m", (folder, dict.fromkeys(expected, 2.0)))) < NEAR


def test_tokens_and_dtypes(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """With a cache, in the dtype of the model, and after the model has moved."""
    layers = ending("_proj")
    folder = write(tmp_path / "adapter", dict.fromkeys(layers, 4), target_modules="all-linear")
    expected = load(merged(pair[1], tmp_path / "merged", (folder, dict.fromkeys(layers, 2.0))))[0]
    model = load_adapters(load(pair[0])[0], folder)
    prompt = [1, 2, 3]
    assert list(generate_ids(model, prompt, max_new_tokens=8)) == list(generate_ids(expected, prompt, max_new_tokens=8))
    half = load_adapters(load(pair[0], dtype="bf16")[0], folder)
    assert {value.dtype for _, value in half.named_parameters()} == {fa.bfloat16}
    assert parity.distance(half(fa.asarray(IDS)), expected(fa.asarray(IDS)).numpy()) < 0.1
    back = half.to(dtype="f32")
    assert parity.distance(back(fa.asarray(IDS)), expected(fa.asarray(IDS)).numpy()) < 0.02


def test_the_matrix_of_a_layer_has_its_changes(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """What layers use that do not multiply in the usual way."""
    folder = write(tmp_path / "adapter", dict.fromkeys(ending("q_proj", "v_proj"), 4))
    other = merged(pair[1], tmp_path / "merged", (folder, dict.fromkeys(ending("q_proj", "v_proj"), 2.0)))
    wanted = load_file(other / "model.safetensors")
    for stored in pair:
        parts = dict(load_adapters(load(stored)[0], folder).modules())
        for name in LINEAR:
            part: Any = parts[name]
            np.testing.assert_allclose(part.matrix.numpy(), wanted[f"{name}.weight"], atol=1e-6)


def test_merged_models_are_saved_and_others_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    folder = write(tmp_path / "adapter", dict.fromkeys(ending("q_proj", "v_proj"), 4))
    model = load_adapters(load(pair[1])[0], folder)
    with pytest.raises(ValueError, match=r"q_proj\.adapters\.0\.lora_A has no place in a checkpoint"):
        save_model(model, tmp_path / "saved")
    save_model(merge_adapters(model), tmp_path / "saved")
    assert distance(model, tmp_path / "saved") < NEAR
    with pytest.raises(ValueError, match=r"q_proj is QuantTensor\(mlx4-g32.*; load the model dense"):
        merge_adapters(load_adapters(load(pair[0])[0], folder))


# What is refused.


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"fan_in_fan_out": True}, "fan_in_fan_out is True, which is not implemented"),
        ({"use_dora": True}, "use_dora is True, which is not implemented"),
        ({"bias": "all"}, "bias is 'all', which is not implemented; it must be 'none'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is .* not implemented"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa', which is not implemented"),
        ({"new_trick": 1}, "new_trick is 1, which is not implemented"),
        ({"target_parameters": ["experts.down_proj"]}, "target_parameters is .* not implemented"),
        ({"peft_type": "IA3"}, "peft_type must be one of LORA, got 'IA3'"),
        ({"r": 0}, "r must be an integer of at least 1, got 0"),
        ({"lora_alpha": None}, "there is no lora_alpha"),
        ({"target_modules": None}, "target_modules must be names of layers or 'all-linear', got None"),
        ({"target_modules": "(q_proj"}, r"target_modules: '\(q_proj' is no valid expression"),
        ({"target_modules": [1]}, "target_modules must be names of layers, or an expression"),
        ({"rank_pattern": {"q_proj": 0}}, "q_proj must be an integer of at least 1, got 0"),
        ({"target_modules": ["w1"]}, "target_modules selects no linear layer"),
    ],
)
def test_configs_that_are_refused(pair: tuple[Path, Path], said: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "adapter", dict.fromkeys(ending("q_proj", "v_proj"), 4), **said)
    with pytest.raises(ValueError, match=message):
        load_adapters(load(pair[1])[0], folder)


def test_unset_entries_that_are_not_known_are_no_matter() -> None:
    said = {**SAID, "new_trick": None, "other": False, "third": {}, "megatron_config": None}
    assert AdapterConfig.from_settings(Settings(said)).r == 4


def test_tensors_that_do_not_fit_are_all_listed(pair: tuple[Path, Path], tmp_path: Path) -> None:
    folder = write(tmp_path / "adapter", dict.fromkeys(ending("q_proj", "v_proj", "k_proj"), 4))
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    stem = "base_model.model.model.layers."
    del tensors[f"{stem}0.self_attn.q_proj.lora_A.weight"]
    tensors[f"{stem}0.self_attn.v_proj.lora_B.weight"] = np.zeros((4, 32), np.float32)
    tensors[f"{stem}1.self_attn.v_proj.lora_B.weight"] = np.zeros((32, 4), np.int32)
    tensors[f"{stem}1.mlp.experts.3.lora_A.weight"] = np.zeros((4, 4), np.float32)
    tensors[f"{stem}1.mlp.gate.lora_A.weight"] = np.zeros((4, 4), np.float32)
    tensors["base_model.model.model.embed_tokens.lora_embedding_A"] = np.zeros((4, 4), np.float32)
    tensors[f"{stem}1.self_attn.q_proj.lora_magnitude_vector"] = np.zeros(4, np.float32)
    save_file(tensors, path)
    with pytest.raises(ValueError, match="does not fit the model") as error:
        load_adapters(load(pair[1])[0], folder)
    for text in (
        "0.self_attn.q_proj.lora_A.weight is missing, expected shape (4, 64)",
        "0.self_attn.v_proj.lora_B.weight has shape (4, 32), expected (32, 4)",
        "1.self_attn.v_proj.lora_B.weight is int32, expected real floating-point numbers",
        "0.self_attn.k_proj.lora_A.weight is there, but target_modules leaves it out",
        "1.mlp.experts.3.lora_A.weight is not known: adapters of experts are not implemented",
        "embed_tokens.lora_embedding_A is not known: adapters of embeddings are not implemented",
        "1.mlp.gate.lora_A.weight is not known: the model has no linear layer model.layers.1.mlp.gate",
        "1.self_attn.q_proj.lora_magnitude_vector is not known",
    ):
        assert text in str(error.value)


def test_files_that_are_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    model, _ = load(pair[1])
    with pytest.raises(FileNotFoundError, match="there is no adapter folder"):
        load_adapters(model, tmp_path / "nothing")
    folder = write(tmp_path / "adapter", dict.fromkeys(ending("q_proj", "v_proj"), 4))
    stored = folder / "adapter_model.safetensors"
    data = stored.read_bytes()
    stored.write_bytes(data[:-1])
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors"):
        load_adapters(model, folder)
    stored.rename(folder / "adapter_model.bin")
    with pytest.raises(ValueError, match=r"adapter_model\.bin, which runs code when it is read, and is refused"):
        load_adapters(model, folder)
    (folder / "adapter_model.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks adapter_model\.safetensors"):
        load_adapters(model, folder)
    (folder / "adapter_config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks adapter_config\.json"):
        load_adapters(model, folder)


@pytest.mark.parametrize("weights", [[1.0], [1.0, float("nan")], []])
def test_weights_that_are_refused(pair: tuple[Path, Path], weights: list[float]) -> None:
    with pytest.raises(ValueError, match="weights must be 2 finite numbers, one a folder"):
        load_adapters(load(pair[1])[0], ["a", "b"], weights)


def test_a_model_prints_its_adapters(pair: tuple[Path, Path], tmp_path: Path) -> None:
    folder = write(tmp_path / "adapter", dict.fromkeys(ending("q_proj", "v_proj"), 4))
    model = load_adapters(load(pair[1])[0], folder)
    assert "adapters.0: LowRank(lora_A=f32[4,64], lora_B=f32[64,4], scale=2.0)" in repr(model)
    assert dataclasses.is_dataclass(model)


@pytest.mark.parametrize("kind", KINDS)
def test_every_linear_layer_of_every_family_takes_them(kind: str, tmp_path: Path, device: fa.Device) -> None:
    """Also those that a family does not simply multiply by, such as the latents' in DeepSeek's attention."""
    model = small(kind, device=device)
    layers = {name: part.weight.shape for name, part in model.modules() if isinstance(part, Linear)}
    rng = np.random.default_rng(0)
    tensors = {}
    for name, (outputs, inputs) in layers.items():
        stem = f"base_model.model.{name}.lora_"
        tensors[f"{stem}A.weight"] = (rng.standard_normal((2, inputs)) * inputs**-0.5).astype(np.float32)
        tensors[f"{stem}B.weight"] = (rng.standard_normal((outputs, 2)) * 0.2).astype(np.float32)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    said = {**SAID, "r": 2, "target_modules": sorted(layers)}
    (tmp_path / "adapter_config.json").write_text(json.dumps(said))
    ids = fa.asarray(IDS, device=device)
    adapted = load_adapters(model, tmp_path)
    expected = merge_adapters(adapted)(ids).numpy()
    assert parity.distance(adapted(ids), expected) < 1e-4
    assert parity.distance(model(ids), expected) > 0.01
