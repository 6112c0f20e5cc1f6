"""MLX's own layout beside MLX itself, and the places that its models have for experts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import ferrum_array as fa
from ferrum_models import convert, load
from ferrum_ops import QuantTensor
from tests.models import checkpoints, parity
from tests.models.checkpoints import CONFIG, IDS
from tests.models.test_formats import NEAR, agree

EXPERTS = {"num_local_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "sliding_window": 4}
#: of each family, where MLX has the experts, and what its layers are called here and there
PLACES = {
    "qwen3_moe": ("mlp", {"gate_proj": "gate_proj", "up_proj": "up_proj", "down_proj": "down_proj"}),
    "mixtral": ("block_sparse_moe", {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}),
}


def pack(rng: np.random.Generator, shape: tuple[int, ...], bits: int = 4, group: int = 32) -> Any:
    """A stack of matrices in MLX's layout."""
    each = [checkpoints.mlx(bits, group)(rng, (shape[1], shape[2])) for _ in range(shape[0])]
    parts = {name: np.stack([tensors[name] for tensors, _ in each]) for name in each[0][0]}
    return parts, np.stack([numbers for _, numbers in each])


def others(rng: np.random.Generator, config: dict[str, Any]) -> dict[str, Any]:
    """All tensors but those of the experts, dense, by the names that they have in both."""
    found = {}
    for name, shape in checkpoints.names(config).items():
        if ".experts." not in name:
            found[name] = rng.standard_normal(shape).astype(np.float32) * 0.2 + (len(shape) == 1)
    return found


@pytest.fixture(params=PLACES)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """Experts in stacks with MLX's names, and the dense checkpoint of the same numbers."""
    rng = np.random.default_rng(0)
    config = {**CONFIG, **EXPERTS, "model_type": request.param}
    if request.param == "mixtral":
        config["intermediate_size"] = 32
    place, names = PLACES[request.param]
    dense = {name.replace(".mlp.", f".{place}."): value for name, value in others(rng, config).items()}
    stored = dict(dense)
    for number in range(2):
        stem = f"model.layers.{number}.{place}"
        for name, own in names.items():
            parts, numbers = pack(rng, (3, 64, 32) if own == "down_proj" else (3, 32, 64))
            stored |= {f"{stem}.switch_mlp.{own}.{kind}": value for kind, value in parts.items()}
            dense |= {f"{stem}.experts.{e}.{name}.weight": numbers[e].astype(np.float32) for e in range(3)}
    entry = {"bits": 4, "group_size": 32, "mode": "affine"}
    return (
        checkpoints.save(tmp_path / "stored", {**config, "quantization": entry}, stored),
        checkpoints.save(tmp_path / "dense", config, dense),
    )


def test_experts_in_stacks(pair: tuple[Path, Path], device: fa.Device) -> None:
    assert agree(*pair, device=device) < NEAR
    model, _ = load(pair[0])
    found = {value.scheme.name for name, value in model.named_parameters() if isinstance(value, QuantTensor)}
    assert found == {"mlx4-g32"}


def test_stacks_are_converted(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Into the names of checkpoints, as they are, and in another scheme."""
    convert(pair[0], tmp_path / "same")
    assert agree(tmp_path / "same", pair[1]) < NEAR
    assert not [name for name in load_file(tmp_path / "same" / "model.safetensors") if "switch" in name]
    convert(pair[0], tmp_path / "int8", quantize="int8")
    assert agree(tmp_path / "int8", pair[1]) < 0.05


def test_bits_of_single_layers(pair: tuple[Path, Path]) -> None:
    """The config names them as MLX does."""
    tensors = load_file(pair[0] / "model.safetensors")
    end = "switch_mlp.down_proj.weight"
    stem = next(name for name in tensors if "layers.1" in name and name.endswith(end)).removesuffix(".weight")
    parts, numbers = pack(np.random.default_rng(1), (3, 64, 32), 8, 16)
    tensors |= {f"{stem}.{kind}": value for kind, value in parts.items()}
    save_file(tensors, pair[0] / "model.safetensors")
    dense = load_file(pair[1] / "model.safetensors")
    name = "w2" if "sparse" in stem else "down_proj"
    for e in range(3):
        dense[stem.replace("switch_mlp.down_proj", f"experts.{e}.{name}.weight")] = numbers[e].astype(np.float32)
    save_file(dense, pair[1] / "model.safetensors")
    from tests.models.test_formats import edit

    edit(pair[0], quantization={"bits": 4, "group_size": 32, stem: {"bits": 8, "group_size": 16}})
    assert agree(*pair) < NEAR


@pytest.mark.parametrize("mode", ["affine", "mxfp4", "dense"])
def test_gate_and_up_of_gpt_oss_are_apart(mode: str, tmp_path: Path, device: fa.Device) -> None:
    rng = np.random.default_rng(3)
    config = {**CONFIG, **EXPERTS, "model_type": "gpt_oss", "intermediate_size": 32}
    dense = {name.replace(".mlp.gate.", ".mlp.router."): value for name, value in others(rng, config).items()}
    stored = dict(dense)
    for number in range(2):
        stem = f"model.layers.{number}.mlp.experts."
        numbers, biases = {}, {}
        for name in ("gate", "up", "down"):
            shape = (3, 64, 32) if name == "down" else (3, 32, 64)
            if mode == "affine":
                parts, numbers[name] = pack(rng, shape)
            elif mode == "mxfp4":
                blocks, scales, numbers[name] = checkpoints.mxfp4(rng, shape)
                words = np.ascontiguousarray(blocks.reshape(*shape[:2], -1)).view("<u4")
                parts = {"weight": words, "scales": scales}
            else:
                numbers[name] = rng.standard_normal(shape) * 0.2
                parts = {"weight": numbers[name].astype(np.float32)}
            stored |= {f"{stem}{name}_proj.{kind}": value for kind, value in parts.items()}
            biases[name] = rng.standard_normal(shape[:2]).astype(np.float32)
            stored[f"{stem}{name}_proj.bias"] = biases[name]
        both = np.stack([numbers["gate"], numbers["up"]], axis=2).reshape(3, 64, 64)
        dense[f"{stem}gate_up_proj"] = both.swapaxes(1, 2).astype(np.float32)
        dense[f"{stem}gate_up_proj_bias"] = np.stack([biases["gate"], biases["up"]], axis=2).reshape(3, 64)
        dense[f"{stem}down_proj"] = numbers["down"].swapaxes(1, 2).astype(np.float32)
        dense[f"{stem}down_proj_bias"] = biases["down"]
    entry = {} if mode == "dense" else {"quantization": {"bits": 4, "group_size": 32, "mode": mode}}
    where = checkpoints.save(tmp_path / "stored", {**config, **entry}, stored)
    other = checkpoints.save(tmp_path / "dense", config, dense)
    assert agree(where, other, device=device) < NEAR
    tensors = load_file(where / "model.safetensors")
    del tensors["model.layers.0.mlp.experts.up_proj.weight"]
    save_file(tensors, where / "model.safetensors")
    with pytest.raises(ValueError, match=r"experts\.gate_proj\.weight is not known"):
        load(where)


@pytest.mark.mlx
@pytest.mark.parametrize(("bits", "group"), [(2, 64), (3, 32), (4, 32), (4, 64), (5, 32), (6, 32), (8, 64)])
def test_mlx_makes_it(bits: int, group: int, tmp_path: Path) -> None:
    """What MLX itself quantises and brings back to numbers."""
    mx = pytest.importorskip("mlx.core")

    def packer(rng: np.random.Generator, shape: tuple[int, int]) -> Any:
        x = mx.array(rng.standard_normal(shape).astype(np.float32) * shape[1] ** -0.5)
        parts = dict(zip(("weight", "scales", "biases"), mx.quantize(x, group_size=group, bits=bits), strict=True))
        numbers = mx.dequantize(*parts.values(), group_size=group, bits=bits)
        return {name: np.array(value) for name, value in parts.items()}, np.array(numbers).astype(np.float64)

    config = {**CONFIG, "intermediate_size": 128}
    entry = {"bits": bits, "group_size": group}
    stored, dense = checkpoints.write(tmp_path, config, packer, lambda n: "norm" not in n, quantization=entry)
    assert agree(stored, dense) < NEAR
    assert (
        parity.distance(load(stored, dtype="bf16")[0](fa.asarray(IDS)), load(dense)[0](fa.asarray(IDS)).numpy()) < 0.1
    )
