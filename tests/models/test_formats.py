"""Checkpoints in fewer bits: each layout gives the model whose weights were brought to numbers in float64."""

from __future__ import annotations

import json
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import ferrum_array as fa
from ferrum_models import load, random_model, save_model
from ferrum_ops import QuantTensor
from tests.models import checkpoints, parity
from tests.models.checkpoints import CONFIG, IDS, Packer, write

#: float32 in another order of sums
NEAR = 1e-5


def schemes(folder: Path, **options: Any) -> dict[str, str]:
    """The scheme of each quantised matrix of the model in *folder*."""
    model, _ = load(folder, **options)
    return {name: value.scheme.name for name, value in model.named_parameters() if isinstance(value, QuantTensor)}


def agree(stored: Path, dense: Path, **options: Any) -> float:
    """How far the logits of a checkpoint in fewer bits are from those of the dense one."""
    expected = load(dense, device="cpu")[0](fa.asarray(IDS, device="cpu")).numpy()
    model, _ = load(stored, **options)
    return parity.distance(model(fa.asarray(IDS, device=model.device)), expected)


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def rewrite(folder: Path, change: Any) -> None:
    """Let *change* edit the tensors of a checkpoint."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def gptq_config(bits: int, group: int | None, version: int, ordered: bool) -> dict[str, Any]:
    return {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": group or -1,
        "desc_act": ordered,
        "sym": False,
        "checkpoint_format": "gptq" if version == 1 else "gptq_v2",
        "damp_percent": 0.01,
    }


@given(
    bits=st.sampled_from([2, 3, 4, 8]),
    group=st.sampled_from([None, 16, 32, 64]),
    version=st.sampled_from([1, 2]),
    ordered=st.booleans(),
    symmetric=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=12, deadline=None)
def test_gptq(bits: int, group: int | None, version: int, ordered: bool, symmetric: bool, seed: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        packer = checkpoints.gptq(bits, group, version, ordered, symmetric)
        config = gptq_config(bits, group, version, ordered)
        stored, dense = write(Path(name), CONFIG, packer, seed=seed, quantization_config=config)
        assert agree(stored, dense) < NEAR
        found = schemes(stored)
        assert len(found) == 14
        assert all(one.startswith(f"gptq{bits}") for one in found.values())


@given(group=st.sampled_from([None, 16, 32]), seed=st.integers(0, 99))
@settings(max_examples=4, deadline=None)
def test_awq(group: int | None, seed: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        config = {"quant_method": "awq", "bits": 4, "group_size": group or -1, "zero_point": True, "version": "GEMM"}
        stored, dense = write(Path(name), CONFIG, checkpoints.awq(group), seed=seed, quantization_config=config)
        assert agree(stored, dense) < NEAR
        assert len(schemes(stored)) == 14


@given(bits=st.sampled_from([2, 3, 4, 5, 6, 8]), group=st.sampled_from([16, 32]), seed=st.integers(0, 99))
@settings(max_examples=8, deadline=None)
def test_mlx(bits: int, group: int, seed: int) -> None:
    """MLX quantises embeddings and the head too, and writes its entry under both names."""
    with tempfile.TemporaryDirectory() as name:
        config = {"bits": bits, "group_size": group}
        stored, dense = write(
            Path(name),
            CONFIG,
            checkpoints.mlx(bits, group),
            lambda name: "norm" not in name,
            seed=seed,
            quantization=config,
            quantization_config=config,
        )
        assert agree(stored, dense) < NEAR
        assert len(schemes(stored)) == 16


LAYOUTS: dict[str, tuple[Packer, dict[str, Any]]] = {
    "gptq": (checkpoints.gptq(4, 32), {"quantization_config": gptq_config(4, 32, 1, False)}),
    "gptq-order": (checkpoints.gptq(4, 32, ordered=True), {"quantization_config": gptq_config(4, 32, 1, True)}),
    "awq": (checkpoints.awq(32), {"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 32}}),
    "mlx": (checkpoints.mlx(4, 32), {"quantization": {"bits": 4, "group_size": 32}}),
}


@pytest.fixture(params=LAYOUTS)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    packer, entries = LAYOUTS[request.param]
    return write(tmp_path, CONFIG, packer, **entries)


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
def test_devices_and_dtypes(pair: tuple[Path, Path], device: fa.Device, dtype: str) -> None:
    assert agree(*pair, device=device, dtype=dtype) < {"f32": NEAR, "f16": 1e-2, "bf16": 0.1}[dtype]
    model, _ = load(pair[0], device=device, dtype=dtype)
    assert {value.dtype for _, value in model.named_parameters()} == {fa.Dtype(dtype)}
    assert {value.device for _, value in model.named_parameters()} == {device}


def test_the_comparison_sees_one_wrong_word(pair: tuple[Path, Path]) -> None:
    def change(tensors: dict[str, Any]) -> None:
        name = next(name for name in tensors if name.endswith(("q_proj.qweight", "q_proj.weight")))
        tensors[name][0, 0] ^= 0x7777

    assert agree(*pair) < NEAR
    rewrite(pair[0], change)
    assert agree(*pair) > 10 * NEAR


def test_the_dtype_of_a_quantised_checkpoint_is_that_of_its_config(pair: tuple[Path, Path]) -> None:
    edit(pair[0], dtype="bfloat16")
    model, _ = load(pair[0])
    assert {value.dtype for _, value in model.named_parameters()} == {fa.bfloat16}


# Mixtures of experts.

MOE = {
    **CONFIG,
    "model_type": "qwen3_moe",
    "num_experts": 3,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "norm_topk_prob": True,
}


def moe(folder: Path, packer: Packer, entries: dict[str, Any], *, router: bool = False) -> tuple[Path, Path]:
    """A mixture of experts, each expert's layers apart as checkpoints have them."""
    rng = np.random.default_rng(1)
    shapes = checkpoints.names(MOE)
    for name in [name for name in shapes if ".experts." in name]:
        del shapes[name]
        stem = name.split("experts.")[0]
        for e in range(3):
            shapes |= {f"{stem}experts.{e}.{one}_proj.weight": (32, 64) for one in ("gate", "up")}
            shapes[f"{stem}experts.{e}.down_proj.weight"] = (64, 32)
    stored, dense = {}, {}
    for name, shape in shapes.items():
        if name.endswith("_proj.weight") or (router and name.endswith("mlp.gate.weight")):
            tensors, numbers = packer(rng, (shape[0], shape[1]))
            stored |= {name.removesuffix("weight") + end: value for end, value in tensors.items()}
            dense[name] = numbers.astype(np.float32)
        else:
            stored[name] = dense[name] = rng.standard_normal(shape).astype(np.float32) * 0.1 + (len(shape) == 1)
    return (
        checkpoints.save(folder / "stored", {**MOE, **entries}, stored),
        checkpoints.save(folder / "dense", MOE, dense),
    )


@pytest.mark.parametrize("layout", ["gptq", "awq", "mlx"])
def test_experts_are_stacked_as_they_are(layout: str, tmp_path: Path, device: fa.Device) -> None:
    packer, entries = LAYOUTS[layout]
    stored, dense = moe(tmp_path, packer, entries)
    assert agree(stored, dense, device=device, dtype="f32") < NEAR
    model, _ = load(stored)
    stacks = {name: value for name, value in model.named_parameters() if ".experts." in name}
    assert {value.shape for value in stacks.values()} == {(3, 64, 64), (3, 64, 32)}
    assert all(isinstance(value, QuantTensor) for value in stacks.values())


def test_a_router_in_fewer_bits_is_brought_to_numbers(tmp_path: Path) -> None:
    packer, entries = LAYOUTS["mlx"]

    def rounded(rng: np.random.Generator, shape: tuple[int, int]) -> Any:
        tensors, numbers = packer(rng, shape)
        return tensors, numbers

    stored, dense = moe(tmp_path, rounded, entries, router=True)
    assert agree(stored, dense) < NEAR


def test_experts_that_cannot_be_stacked_are_named(tmp_path: Path) -> None:
    stored, _ = moe(tmp_path, *LAYOUTS["gptq"])

    def shuffle(tensors: dict[str, Any]) -> None:
        name = "model.layers.0.mlp.experts.1.up_proj.g_idx"
        tensors[name] = tensors[name][::-1].copy()

    rewrite(stored, shuffle)
    with pytest.raises(ValueError, match=r"experts\.1\.up_proj\.weight is .*order.*, but what it is stacked with is"):
        load(stored)


def test_acts_of_different_orders_cannot_be_stacked(tmp_path: Path) -> None:
    stored, _ = moe(tmp_path, *LAYOUTS["gptq-order"])
    with pytest.raises(ValueError, match=r"experts\.0\.up_proj\.weight has another g_idx than what it is stacked with"):
        load(stored)


GPT_OSS = {
    **{key: value for key, value in CONFIG.items() if key != "head_dim"},
    "model_type": "gpt_oss",
    "head_dim": 16,
    "intermediate_size": 32,
    "sliding_window": 4,
    "num_local_experts": 3,
    "num_experts_per_tok": 2,
}


def test_mxfp4(tmp_path: Path, device: fa.Device) -> None:
    rng = np.random.default_rng(2)
    stored, dense = {}, {}
    for name, shape in checkpoints.names(GPT_OSS).items():
        name = name.replace("mlp.gate.", "mlp.router.")
        if name.endswith(("gate_up_proj", "down_proj")):
            blocks, scales, numbers = checkpoints.mxfp4(rng, (shape[0], shape[1], shape[2]))
            stored |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
            dense[name] = numbers.swapaxes(1, 2).astype(np.float32)
        else:
            stored[name] = dense[name] = rng.standard_normal(shape).astype(np.float32) * 0.2
    entry = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "model.embed_tokens"]}
    where = checkpoints.save(tmp_path / "stored", {**GPT_OSS, "quantization_config": entry}, stored)
    other = checkpoints.save(tmp_path / "dense", GPT_OSS, dense)
    assert agree(where, other, device=device) < NEAR
    assert set(schemes(where).values()) == {"mxfp4"}
    assert len(schemes(where)) == 4


def test_mxfp4_is_what_transformers_reads() -> None:
    import torch
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    blocks, scales, numbers = checkpoints.mxfp4(np.random.default_rng(0), (2, 4, 64))
    peer = convert_moe_packed_tensors(torch.tensor(blocks), torch.tensor(scales), dtype=torch.float32)
    np.testing.assert_array_equal(peer.transpose(1, 2).numpy(), numbers)


def test_fp8_with_scales_of_blocks(tmp_path: Path, device: fa.Device) -> None:
    import torch
    from safetensors.torch import save_file as save_torch

    torch.manual_seed(0)
    stored, dense = {}, {}
    for name, shape in checkpoints.names(CONFIG).items():
        if checkpoints.is_linear(name):
            values = (torch.randn(shape) * 30).to(torch.float8_e4m3fn)
            scales = torch.rand(-(-shape[0] // 24), -(-shape[1] // 40)) / 100
            spread = scales.double().repeat_interleave(24, 0).repeat_interleave(40, 1)[: shape[0], : shape[1]]
            stored |= {name: values, f"{name}_scale_inv": scales}
            dense[name] = (values.double() * spread).float()
        else:
            stored[name] = dense[name] = torch.randn(shape) * 0.1 + (len(shape) == 1)
    entry = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [24, 40], "activation_scheme": "dynamic"}
    for folder, tensors, more in (("stored", stored, {"quantization_config": entry}), ("dense", dense, {})):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text(json.dumps({**CONFIG, "dtype": "float32", **more}))
        save_torch(tensors, tmp_path / folder / "model.safetensors")
    assert agree(tmp_path / "stored", tmp_path / "dense", device=device) < NEAR
    assert set(schemes(tmp_path / "stored").values()) == {"fp8_e4m3-b24x40"}


# What layers are meant.


def test_layers_that_the_config_keeps_are_dense(tmp_path: Path) -> None:
    config = {**gptq_config(4, 32, 1, False), "modules_to_not_convert": ["layers.0", "mlp.gate"]}
    stored, dense = write(
        tmp_path,
        CONFIG,
        checkpoints.gptq(4, 32),
        lambda name: checkpoints.is_linear(name) and "layers.0." not in name,
        quantization_config=config,
    )
    assert agree(stored, dense) < NEAR
    assert len(schemes(stored)) == 7
    edit(stored, quantization_config={**config, "modules_to_not_convert": ["layers.1"]})
    with pytest.raises(
        ValueError, match=r"layers\.1\.self_attn\.q_proj\.weight is missing.*q_proj\.qweight is not known"
    ):
        load(stored)


def test_gptq_gives_layers_their_own_bits(tmp_path: Path) -> None:
    four, eight = checkpoints.gptq(4, 32), checkpoints.gptq(8, 16)
    calls: list[tuple[int, int]] = []

    def packer(rng: np.random.Generator, shape: tuple[int, int]) -> Any:
        calls.append(shape)
        return (eight if len(calls) > 6 else four)(rng, shape)

    rules = {"-:.*0.mlp.down": {}, "+:.*layers.1": {"bits": 8, "group_size": 16}, r".*\.0\.mlp": {"sym": False}}
    stored, dense = write(
        tmp_path,
        CONFIG,
        packer,
        lambda name: checkpoints.is_linear(name) and "0.mlp.down" not in name,
        quantization_config={**gptq_config(4, 32, 1, False), "dynamic": rules},
    )
    assert agree(stored, dense) < NEAR
    found = list(schemes(stored).values())
    assert (found.count("gptq4-g32"), found.count("gptq8-g16")) == (6, 7)


def test_loading_takes_little_more_than_the_model(tmp_path: Path) -> None:
    """Converted from another dtype, and stacked from many tensors: there is never more than a piece beside it."""
    big = {**MOE, "hidden_size": 256, "num_hidden_layers": 8, "num_experts": 16, "moe_intermediate_size": 64}
    save_model(random_model(big, dtype="f32"), tmp_path / "dense")
    load(tmp_path / "dense", dtype="bf16")  # what is made once
    tracemalloc.start()
    model, _ = load(tmp_path / "dense", dtype="bf16")
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert model.nbytes < held < peak < 1.15 * model.nbytes


def test_mlx_gives_layers_their_own_bits(tmp_path: Path) -> None:
    four, eight = checkpoints.mlx(4, 32), checkpoints.mlx(8, 64)
    special = "model.layers.1.mlp.gate_proj"

    def packer(rng: np.random.Generator, shape: tuple[int, int]) -> Any:
        calls.append(shape)
        return (eight if shape == (96, 64) and calls.count(shape) == 3 else four)(rng, shape)

    calls: list[tuple[int, int]] = []
    entry = {"bits": 4, "group_size": 32, special: {"bits": 8, "group_size": 64}, "lm_head": False}
    stored, dense = write(tmp_path, CONFIG, packer, quantization=entry)
    assert agree(stored, dense) < NEAR
    found = schemes(stored)
    assert found[f"{special}.weight"] == "mlx8-g64"
    assert found["model.layers.0.mlp.gate_proj.weight"] == "mlx4-g32"
    assert "lm_head.weight" not in found


def test_biases_of_zeros_that_some_writers_add(tmp_path: Path) -> None:
    stored, dense = write(tmp_path, CONFIG, *[LAYOUTS["gptq"][0]], **LAYOUTS["gptq"][1])
    name = "model.layers.0.self_attn.q_proj.bias"
    rewrite(stored, lambda tensors: tensors.update({name: np.zeros(64, np.float16)}))
    assert agree(stored, dense) < NEAR
    rewrite(stored, lambda tensors: tensors.update({name: np.ones(64, np.float16)}))
    with pytest.raises(ValueError, match=r"q_proj\.bias is not known"):
        load(stored)


def test_a_group_order_that_the_config_does_not_tell_is_found(tmp_path: Path) -> None:
    stored, dense = write(
        tmp_path,
        CONFIG,
        checkpoints.gptq(4, 32, ordered=True),
        quantization_config=gptq_config(4, 32, 1, False),
    )
    assert agree(stored, dense) < NEAR
    assert set(schemes(stored).values()) == {"gptq4-g32-order"}
