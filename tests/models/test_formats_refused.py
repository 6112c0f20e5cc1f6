"""Checkpoints in fewer bits that are damaged, of an unknown kind, or not what their config says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ferrum_models import load
from ferrum_models.formats import METHODS
from ferrum_ops import QuantTensor
from tests.models import checkpoints
from tests.models.checkpoints import CONFIG, write
from tests.models.test_formats import LAYOUTS, edit, gptq_config, rewrite


@pytest.fixture(params=LAYOUTS)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    packer, entries = LAYOUTS[request.param]
    return write(tmp_path, CONFIG, packer, **entries)


@pytest.mark.parametrize("wrong", [-1, 2, 2**31 - 1])
@pytest.mark.parametrize("ordered", [False, True])
def test_groups_that_there_are_not(wrong: int, ordered: bool, tmp_path: Path) -> None:
    entry = gptq_config(4, 32, 1, ordered)
    stored, _ = write(tmp_path, CONFIG, checkpoints.gptq(4, 32, ordered=ordered), quantization_config=entry)

    def change(tensors: dict[str, Any]) -> None:
        tensors["model.layers.1.self_attn.k_proj.g_idx"][5] = wrong

    rewrite(stored, change)
    with pytest.raises(ValueError, match=r"1\.self_attn\.k_proj\.g_idx names groups that are not from 0 to 1"):
        load(stored)


@pytest.mark.parametrize("length", [0, 7, 500, -1])
def test_files_that_are_cut_short(pair: tuple[Path, Path], length: int) -> None:
    path = pair[0] / "model.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        load(pair[0])


def test_numbers_of_another_kind_than_the_config_says(pair: tuple[Path, Path]) -> None:
    """A dense checkpoint's tensors are not taken for words, nor words for numbers."""
    config = json.loads((pair[0] / "config.json").read_text())
    without = {key: value for key, value in config.items() if not key.startswith("quantization")}
    (pair[0] / "config.json").write_text(json.dumps(without))
    with pytest.raises(ValueError, match=r"q_proj\.(weight (is missing|has shape)|scales is not known)"):
        load(pair[0])
    (pair[1] / "config.json").write_text(json.dumps(config))
    model, _ = load(pair[1])  # every layer has a dense weight: the entry says nothing of it
    assert not any(isinstance(value, QuantTensor) for _, value in model.named_parameters())


def test_unknown_methods_list_the_known(tmp_path: Path) -> None:
    stored, _ = write(tmp_path, CONFIG, LAYOUTS["gptq"][0], quantization_config={"quant_method": "abacus"})
    with pytest.raises(ValueError, match=r"quant_method must be one of .* got 'abacus'") as error:
        load(stored)
    assert all(name in str(error.value) for name in [*METHODS, "MLX"])


@pytest.mark.parametrize(
    ("layout", "change", "message"),
    [
        ("gptq", {"bits": 5}, "bits must be 2, 3, 4 or 8, got 5"),
        ("gptq", {"bits": None}, "there is no bits"),
        ("gptq", {"group_size": 0}, "group_size must be an integer of at least 1, got 0"),
        ("gptq", {"checkpoint_format": "marlin"}, "checkpoint_format must be one of gptq, gptq_v2, got 'marlin'"),
        ("gptq", {"dynamic": {"+:.*": {"bits": 9}}}, "bits must be 2, 3, 4 or 8, got 9"),
        ("gptq", {"dynamic": {"-:(": {}}}, r"dynamic: '\(' is no valid expression"),
        ("gptq", {"dynamic": [1]}, "dynamic must be an object"),
        ("gptq", {"modules_to_not_convert": "lm_head"}, "modules_to_not_convert must be a list of names"),
        ("awq", {"bits": 8}, "bits must be 4, got 8"),
        ("awq", {"version": "gemv"}, "version must be 'gemm'"),
        ("awq", {"zero_point": False}, "zero_point must be true"),
        ("fp8", {"weight_block_size": None}, "weight_block_size must be rows and columns, got None"),
        ("fp8", {"fmt": "e5m2"}, "fmt is 'e5m2', which is not implemented"),
        ("fp8", {"activation_scheme": "static"}, "activation_scheme is 'static', which is not implemented"),
        ("ferrum", {"scheme": "int9"}, "IntScheme: bits must be one of"),
        ("ferrum", {"scheme": "abacus"}, "there is no scheme 'abacus'"),
        ("ferrum", {}, "scheme must be the name of a scheme"),
        ("mlx", {"bits": 7}, "bits must be one of 2, 3, 4, 5, 6, 8, got 7"),
        ("mlx", {"mode": "nvfp4"}, "mode must be one of affine, mxfp4, got 'nvfp4'"),
        ("mlx", {"mode": "mxfp4", "bits": 8}, "mode mxfp4 has 4 bits in groups of 32, got 8 in groups of 32"),
        ("mlx", {"model.layers.0.mlp.up_proj": {"bits": 1}}, "up_proj: bits must be one of"),
    ],
)
def test_variants_that_are_refused(layout: str, change: dict[str, Any], message: str, tmp_path: Path) -> None:
    packer, entries = LAYOUTS.get(layout, (checkpoints.gptq(4, 32), {}))
    stored, _ = write(tmp_path, CONFIG, packer)
    own = next(iter(entries.values()), {"quant_method": layout})
    edit(stored, **{next(iter(entries), "quantization_config"): {**own, **change}})
    with pytest.raises(ValueError, match=message):
        load(stored)


def test_tensors_that_do_not_fit_are_all_listed(pair: tuple[Path, Path]) -> None:
    def change(tensors: dict[str, Any]) -> None:
        first, second = (
            [name for name in tensors if name.endswith(f"{layer}_proj.{end}")]
            for layer, end in (("q", "scales"), ("k", "scales"))
        )
        del tensors[first[0]]
        tensors[second[0]] = tensors[second[0]][:, :1].copy()
        tensors[second[1]] = tensors[second[1]].astype(np.int32)

    rewrite(pair[0], change)
    with pytest.raises(ValueError, match="does not fit its config") as error:
        load(pair[0])
    text = str(error.value)
    assert "layers.0.self_attn.q_proj.scales is missing, expected shape" in text
    assert "layers.0.self_attn.k_proj.scales has shape" in text
    assert "layers.1.self_attn.k_proj.scales is int32, expected" in text


def test_shapes_that_the_scheme_cannot_divide(tmp_path: Path) -> None:
    stored, _ = write(tmp_path, CONFIG, *[LAYOUTS["mlx"][0]], **LAYOUTS["mlx"][1])
    edit(stored, intermediate_size=100)
    with pytest.raises(ValueError, match=r"down_proj\.weight cannot be mlx4-g32: K = 100 is not divisible by 32"):
        load(stored)
