"""Formats of checkpoints and of MLX: beside packings written from their descriptions, and MLX."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ferrum_array as fa
from ferrum_ops import QuantTensor, dequantize, quantize, repack
from ferrum_ops.quant.awq import AwqScheme
from ferrum_ops.quant.gptq import GptqScheme
from ferrum_ops.quant.integer import IntScheme
from ferrum_ops.quant.mlx import MlxScheme
from ferrum_ops.quant.names import scheme
from tests.array.oracle import to_numpy, wide
from tests.ops.oracle import Array, floats, make, noise


def words(values: Array, bits: int) -> Array:
    """Rows of unsigned values as int32 words, each row one long number with the first value in its lowest bits."""
    count = values.shape[-1] * bits // 32
    if not values.size:
        return np.zeros((*values.shape[:-1], count), np.int32)
    flat = values.reshape(-1, values.shape[-1]).astype(object)
    rows = [sum(int(v) << (bits * i) for i, v in enumerate(row)) for row in flat]
    raw = b"".join(row.to_bytes(4 * count, "little") for row in rows)
    return np.frombuffer(raw, "<i4").reshape(*values.shape[:-1], count)


def test_words_that_are_known() -> None:
    assert words(np.arange(8)[None], 4).tolist() == [[0x76543210]]
    assert words(np.full((1, 4), 255), 8).tolist() == [[-1]]


def random_scales(rng: np.random.Generator, *shape: int) -> Array:
    return (rng.standard_normal(shape) / 16).astype(np.float16)


# GPTQ and AWQ.


@given(
    bits=st.sampled_from([2, 3, 4, 8]),
    group=st.sampled_from([None, 32, 64, 128, 40]),
    version=st.sampled_from([1, 2]),
    order=st.sampled_from([None, "sorted", "shuffled", "uneven"]),
    columns=st.integers(0, 4),
    lead=st.sampled_from([(), (1,), (3,)]),
    seed=st.integers(0, 2**32 - 1),
)
def test_gptq(
    device: fa.Device, bits: int, group: int | None, version: int, order: str | None, columns: int,
    lead: tuple[int, ...], seed: int,
) -> None:  # fmt: skip
    rng = np.random.default_rng(seed)
    n, k = 64, 32 * columns
    found = GptqScheme(bits, group, version, order is not None)
    groups = -(-k // (group or max(k, 1)))
    values = rng.integers(0, 2**bits, (*lead, n, k))
    stored = rng.integers(0, 2**bits, (*lead, groups, n))
    scales = random_scales(rng, *lead, groups, n)
    g_idx = np.broadcast_to(np.arange(k) // (group or max(k, 1)), (*lead, k)).copy()
    if order == "shuffled":
        g_idx = rng.permuted(g_idx, axis=-1)
    elif order == "uneven" and k:
        g_idx = rng.integers(0, groups, (*lead, k))
    parts = {
        "qweight": np.swapaxes(words(values, bits), -1, -2),
        "qzeros": words(stored, bits),
        "scales": scales,
        **({"g_idx": g_idx.astype(np.int32)} if order else {}),
    }
    zeros = np.swapaxes(stored + (1 if version == 1 else 0), -1, -2)
    turned = np.swapaxes(scales, -1, -2).astype(np.float32)
    each = np.broadcast_to(g_idx[..., None, :], values.shape)
    expected = (values - np.take_along_axis(zeros, each, -1)).astype(np.float32) * np.take_along_axis(turned, each, -1)
    tensors = {name: fa.asarray(part, device=device) for name, part in parts.items()}
    q = QuantTensor(found, (*lead, n, k), tensors, "f16")
    assert q.dtype is fa.float16
    np.testing.assert_array_equal(to_numpy(dequantize(q, "f32")), expected)
    rows = q[-1, 32:] if lead else q[32:]
    np.testing.assert_array_equal(to_numpy(dequantize(rows, "f32")), expected[(-1,) * len(lead) + (slice(32, None),)])
    assert scheme(found.name) == found


def test_gptq_zeros_of_version_1_do_not_wrap() -> None:
    """A stored 15 is the zero 16: no bits are lost, nor carried into the neighbour."""
    parts = {
        "qweight": fa.zeros((1, 8), dtype="i32"),
        "qzeros": fa.full((1, 1), -1, dtype="i32"),
        "scales": fa.ones((1, 8), dtype="f16"),
    }
    assert dequantize(QuantTensor(GptqScheme(), (8, 8), parts)).tolist() == [[-16.0] * 8] * 8
    wider = QuantTensor(GptqScheme(8), (8, 4), parts | {"qzeros": fa.full((1, 2), -1, dtype="i32")})
    assert dequantize(wider).tolist() == [[-256.0] * 4] * 8
    with pytest.raises(ValueError, match="does not become integers"):
        repack(wider, "int")


def test_gptq_groups_out_of_range(device: fa.Device) -> None:
    for entry in (-1, 2):
        parts = {
            "qweight": fa.zeros((2, 8), dtype="i32", device=device),
            "qzeros": fa.zeros((2, 1), dtype="i32", device=device),
            "scales": fa.ones((2, 8), dtype="f16", device=device),
            "g_idx": fa.asarray([0] * 15 + [entry], dtype="i32", device=device),
        }
        q = QuantTensor(GptqScheme(4, 8, 1, ordered=True), (8, 16), parts)
        with pytest.raises(IndexError, match=rf"g_idx runs from {min(entry, 0)} to {max(entry, 0)}, .* 2 groups"):
            dequantize(q)


@given(
    group=st.sampled_from([None, 1, 32, 128]),
    columns=st.integers(0, 3),
    blocks=st.integers(0, 4),
    lead=st.sampled_from([(), (1,), (3,)]),
    seed=st.integers(0, 2**32 - 1),
)
def test_awq(device: fa.Device, group: int | None, columns: int, blocks: int, lead: tuple[int, ...], seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, k = 8 * blocks, (group or 32) * columns
    groups = k // (group or max(k, 1))
    values, zeros = rng.integers(0, 16, (*lead, k, n)), rng.integers(0, 16, (*lead, groups, n))
    scales = random_scales(rng, *lead, groups, n)

    def packed(numbers: Array) -> Array:
        found = np.zeros((*numbers.shape[:-1], numbers.shape[-1] // 8), np.int64)
        for place, column in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):
            found |= numbers[..., column::8].astype(np.int64) << (4 * place)
        return found.astype(np.uint32).view(np.int32)

    repeat = group or k
    expected = (values - np.repeat(zeros, repeat, axis=-2)).astype(np.float32)
    expected = np.swapaxes(expected * np.repeat(scales.astype(np.float32), repeat, axis=-2), -1, -2)
    parts = {"qweight": packed(values), "qzeros": packed(zeros), "scales": scales}
    q = QuantTensor(
        AwqScheme(group), (*lead, n, k), {name: fa.asarray(part, device=device) for name, part in parts.items()}
    )
    np.testing.assert_array_equal(to_numpy(dequantize(q)), expected)
    if blocks > 1:
        rows = q[8:16] if not lead else q[0, 8:16]
        np.testing.assert_array_equal(to_numpy(dequantize(rows)), expected[(0,) * len(lead) + (slice(8, 16),)])
    assert scheme(q.scheme.name) == q.scheme


@pytest.mark.parametrize("name", ["gptq4-g32", "gptq8-g64-v2", "gptq2", "gptq3-g32-v2", "awq4-g32", "awq4"])
def test_checkpoints_as_integers(device: fa.Device, name: str) -> None:
    found, rng = scheme(name), np.random.default_rng(1)
    parts: dict[str, Any] = {}
    for part, wanted in found.parts(64, 128).items():
        if part == "scales":
            parts[part] = random_scales(rng, 2, *wanted.shape)
        else:
            parts[part] = rng.integers(-(2**31), 2**31, (2, *wanted.shape)).astype(np.int32)
    q = QuantTensor(found, (2, 64, 128), {part: fa.asarray(x, device=device) for part, x in parts.items()})
    integers = repack(q, "int")
    assert isinstance(integers.scheme, IntScheme)
    assert integers.scheme.scale is fa.float16
    np.testing.assert_array_equal(to_numpy(dequantize(integers)), to_numpy(dequantize(q)))


def test_act_order_does_not_become_integers() -> None:
    q = QuantTensor(
        GptqScheme(4, 8, 1, ordered=True), (8, 16),
        {
            "qweight": fa.zeros((2, 8), dtype="i32"), "qzeros": fa.zeros((2, 1), dtype="i32"),
            "scales": fa.ones((2, 8), dtype="f16"), "g_idx": fa.asarray([0, 1] * 8, dtype="i32"),
        },
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"repack: QuantTensor\(gptq4-g8-order, .* without changing its numbers"):
        repack(q, "int")


@pytest.mark.parametrize("name", ["gptq4-g128", "awq4-g128"])
def test_checkpoints_are_not_made_here(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} can be read here, but not made"):
        quantize(fa.ones((8, 128)), name)


# MLX.


@pytest.mark.mlx
@given(
    bits=st.sampled_from([2, 3, 4, 5, 6, 8]),
    group=st.sampled_from([32, 64, 128]),
    columns=st.integers(1, 3),
    lead=st.sampled_from([(1,), (5,), (2, 3)]),
    kind=st.sampled_from(["float32", "float16", "bfloat16"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_mlx_own_weights(bits: int, group: int, columns: int, lead: tuple[int, ...], kind: str, seed: int) -> None:
    import mlx.core as mx

    x = mx.array(noise(seed, *lead, group * columns).astype(np.float32)).astype(getattr(mx, kind))
    stored = mx.quantize(x, group_size=group, bits=bits)
    names = ("values", "scales", "biases")
    for device in ("cpu", "mlx:cpu"):
        parts = {name: fa.asarray(one, device=device) for name, one in zip(names, map(fa.asarray, stored), strict=True)}
        q = QuantTensor(MlxScheme(bits, group), (*lead, group * columns), parts)
        in_float32 = (stored[0], *(one.astype(mx.float32) for one in stored[1:]))
        expected = np.asarray(mx.dequantize(*in_float32, group_size=group, bits=bits))
        np.testing.assert_allclose(to_numpy(dequantize(q)), expected, rtol=1e-6, atol=1e-6)
        assert scheme(q.scheme.name) == q.scheme


@given(
    bits=st.sampled_from([2, 3, 4, 5, 6, 8]),
    group=st.sampled_from([32, 64, 128]),
    columns=st.integers(0, 3),
    lead=st.sampled_from([(0,), (1,), (5,), (2, 3)]),
    shift=st.sampled_from([0.0, 0.0, 3.0, -100.0]),
    scale=st.sampled_from([fa.float32, fa.float16, fa.bfloat16]),
    seed=st.integers(0, 2**32 - 1),
    data=st.data(),
)
def test_mlx_round_trip_is_within_half_a_step(
    device: fa.Device, bits: int, group: int, columns: int, lead: tuple[int, ...], shift: float, scale: fa.Dtype,
    seed: int, data: st.DataObject,
) -> None:  # fmt: skip
    dtype = data.draw(st.sampled_from(floats(device)))
    x, x64 = make(noise(seed, *lead, group * columns) + shift, dtype, device)
    q = quantize(x, MlxScheme(bits, group, scale))
    y = dequantize(q, "f32")
    step = np.repeat(wide(q.parts["scales"]), group, axis=-1)
    bias = np.abs(np.repeat(wide(q.parts["biases"]), group, axis=-1))
    assert (np.abs(wide(y) - x64) <= 0.5 * step * (1 + 2.0 ** (bits - 22)) + bias * 2.0**-22).all()
    values = to_numpy(q.parts["values"])
    expected = wide(q.parts["biases"])[..., None] + wide(q.parts["scales"])[..., None] * (
        np.unpackbits(values.view(np.uint8), axis=-1, bitorder="little").reshape(*lead, columns, group, bits)
        @ (2.0 ** np.arange(bits))
    )
    np.testing.assert_allclose(wide(y).reshape(expected.shape), expected, rtol=1e-6, atol=2e-5 if shift else 1e-6)


@pytest.mark.parametrize("scale", [fa.float32, fa.float16, fa.bfloat16])
@pytest.mark.parametrize("shift", [-100.0, 0.0, 100.0])
def test_mlx_offsets_are_rounded_down(device: fa.Device, shift: float, scale: fa.Dtype) -> None:
    """Far from 0 an offset has less precision than a step is wide."""
    x, x64 = make(noise(3, 16, 64) + shift, fa.float32, device)
    q = quantize(x, MlxScheme(8, 32, scale))
    step = np.repeat(wide(q.parts["scales"]), 32, axis=-1)
    assert (np.abs(wide(dequantize(q)) - x64) <= 0.5 * step + 1e-5).all()
    assert (np.repeat(wide(q.parts["biases"]), 32, axis=-1) <= x64).all()
