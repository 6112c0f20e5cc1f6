"""Tiny checkpoints in the layouts that others write, packed here from their definitions with NumPy alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from ferrum_models import random_model

Array = np.ndarray[Any, Any]
#: what stores a matrix: given random numbers and the shape, the tensors by the end of their names, and the numbers
#: that they stand for, float64
Packer = Callable[[np.random.Generator, tuple[int, int]], tuple[dict[str, Array], Array]]

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 61,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
}
IDS = np.random.default_rng(0).integers(0, 61, (2, 9))


def stream(values: Array, bits: int) -> Array:
    """Unsigned *values* [..., M] of *bits* bits each as bytes, the first in the lowest bits: [..., M * bits / 8]."""
    each = (values[..., None].astype(np.uint32) >> np.arange(bits, dtype=np.uint32)) & 1
    return np.packbits(each.reshape(*values.shape[:-1], -1).astype(np.uint8), axis=-1, bitorder="little")


def words(values: Array, bits: int, dtype: str = "<i4") -> Array:
    """The same as words of 32 bits."""
    return np.ascontiguousarray(stream(values, bits)).view(dtype)


def gptq(bits: int, group: int | None, version: int = 1, ordered: bool = False, symmetric: bool = False) -> Packer:
    """GPTQ's layout: [K, N] in words along K, zeros in words along N, less one in version 1."""

    def pack(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[dict[str, Array], Array]:
        n, k = shape
        size = group or k
        count = -(-k // size)
        g_idx = np.arange(k) // size
        if ordered:
            g_idx = rng.permutation(g_idx)
        q = rng.integers(0, 1 << bits, (k, n))
        least = 1 if version == 1 else 0
        z = rng.integers(least, (1 << bits) + least, (count, n))
        if symmetric:
            z = np.full((count, n), 1 << (bits - 1))
        s = rng.uniform(0.5, 1.5, (count, n)).astype(np.float16) * np.float16(2.0 ** (1 - bits) / k**0.5)
        tensors = {
            "qweight": np.ascontiguousarray(words(q.T, bits).T),
            "qzeros": words(z - least, bits),
            "scales": s,
            "g_idx": g_idx.astype(np.int32),
        }
        return tensors, ((q - z[g_idx]) * s.astype(np.float64)[g_idx]).T

    return pack


def awq(group: int | None) -> Packer:
    """AWQ's layout: [K, N] in words of eight numbers along N, the even ones in the lower half."""

    def pack(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[dict[str, Array], Array]:
        n, k = shape
        size = group or k
        q, z = rng.integers(0, 16, (k, n)), rng.integers(0, 16, (k // size, n))
        s = (rng.uniform(0.5, 1.5, (k // size, n)) / 8 / k**0.5).astype(np.float16)

        def packed(x: Array) -> Array:
            return words(x.reshape(len(x), n // 8, 8)[..., [0, 2, 4, 6, 1, 3, 5, 7]].reshape(len(x), n), 4)

        each = np.arange(k) // size
        numbers = (q - z[each]) * s.astype(np.float64)[each]
        return {"qweight": packed(q), "qzeros": packed(z), "scales": s}, numbers.T

    return pack


def mlx(bits: int, group: int) -> Packer:
    """MLX's layout: words along K, a scale and a bias for each group."""

    def pack(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[dict[str, Array], Array]:
        n, k = shape
        q = rng.integers(0, 1 << bits, shape)
        s = (rng.uniform(0.5, 1.5, (n, k // group)) * 2.0 ** (1 - bits) / k**0.5).astype(np.float16)
        b = (-s * (1 << (bits - 1)) * rng.uniform(0.5, 1.5, s.shape)).astype(np.float16)
        numbers = q * np.repeat(s.astype(np.float64), group, -1) + np.repeat(b.astype(np.float64), group, -1)
        return {"weight": words(q, bits, "<u4"), "scales": s, "biases": b}, numbers

    return pack


FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])


def mxfp4(rng: np.random.Generator, shape: tuple[int, int, int]) -> tuple[Array, Array, Array]:
    """Blocks [E, N, K / 32, 16], scales [E, N, K / 32] and the numbers [E, N, K] that they stand for."""
    experts, n, k = shape
    codes = rng.integers(0, 16, (experts, n, k // 32, 32))
    scales = rng.integers(121, 124, (experts, n, k // 32)).astype(np.uint8)
    blocks = (codes[..., 0::2] | codes[..., 1::2] << 4).astype(np.uint8)
    numbers = FP4[codes] * 2.0 ** (scales[..., None].astype(int) - 127)
    return blocks, scales, numbers.reshape(shape)


def names(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tensors of a dense model of this config, where their names are those of the tree."""
    return {name: value.shape for name, value in random_model(config).named_parameters()}


def is_linear(name: str) -> bool:
    return name.endswith("_proj.weight")


def write(
    folder: Path,
    config: dict[str, Any],
    packer: Packer,
    quantised: Callable[[str], bool] = is_linear,
    *,
    seed: int = 0,
    **entries: Any,
) -> tuple[Path, Path]:
    """A checkpoint whose matrices *packer* stores, and a dense one of the numbers that they stand for."""
    rng = np.random.default_rng(seed)
    stored: dict[str, Array] = {}
    dense: dict[str, Array] = {}
    for name, shape in names(config).items():
        if quantised(name):
            assert len(shape) == 2
            tensors, numbers = packer(rng, (shape[0], shape[1]))
            stored |= {name.removesuffix("weight") + end: value for end, value in tensors.items()}
            dense[name] = numbers.astype(np.float32)
        else:
            scale = 0.1 if len(shape) == 1 else shape[-1] ** -0.5
            dense[name] = (rng.standard_normal(shape) * scale + (len(shape) == 1)).astype(np.float32)
            stored[name] = dense[name]
    return save(folder / "stored", {**config, **entries}, stored), save(folder / "dense", config, dense)


def save(folder: Path, config: dict[str, Any], tensors: dict[str, Array]) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "float32"}))
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, folder / "model.safetensors")
    return folder
