"""Formats of checkpoints and of MLX, and small floats: beside packings written from their descriptions, and peers."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

import ferrum_array as fa
from ferrum_ops import QuantTensor, dequantize, quantize, repack
from ferrum_ops.quant.awq import AwqScheme
from ferrum_ops.quant.fp8 import Fp8Scheme
from ferrum_ops.quant.gptq import GptqScheme
from ferrum_ops.quant.integer import WIDTHS, IntScheme
from ferrum_ops.quant.mlx import MlxScheme
from ferrum_ops.quant.mxfp4 import Mxfp4Scheme
from ferrum_ops.quant.names import scheme
from tests.array.oracle import to_numpy, wide
from tests.ops.oracle import Array, floats, make, noise, same_numbers


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


# Small floats.


@pytest.mark.parametrize(
    ("name", "peer", "theirs"),
    [
        ("fp8_e4m3", ml_dtypes.float8_e4m3fn, torch.float8_e4m3fn),
        ("fp8_e5m2", ml_dtypes.float8_e5m2, torch.float8_e5m2),
    ],
)
def test_every_8_bit_float(device: fa.Device, name: str, peer: Any, theirs: torch.dtype) -> None:
    codes = np.arange(256, dtype=np.uint8)[None]
    parts = {"values": fa.asarray(codes, device=device), "scales": fa.ones((1, 1), device=device)}
    got = to_numpy(dequantize(QuantTensor(scheme(name), (1, 256), parts)))
    np.testing.assert_array_equal(got, codes.view(peer).astype(np.float32))
    np.testing.assert_array_equal(got, torch.from_numpy(codes).view(theirs).float().numpy())


@pytest.mark.parametrize(("name", "peer"), [("fp8_e4m3", ml_dtypes.float8_e4m3fn), ("fp8_e5m2", ml_dtypes.float8_e5m2)])
def test_8_bit_floats_are_the_nearest(device: fa.Device, name: str, peer: Any) -> None:
    top = float(ml_dtypes.finfo(peer).max)
    scales = [(0,), (1,), (5,), (2, 3)]

    @given(seed=st.integers(0, 2**32 - 1), lead=st.sampled_from(scales), k=st.integers(0, 40), data=st.data())
    def property_(seed: int, lead: tuple[int, ...], k: int, data: st.DataObject) -> None:
        dtype = data.draw(st.sampled_from(floats(device)))
        block = data.draw(st.sampled_from([None, (1, 1), (2, 3), (128, 128)]))
        values = noise(seed, *lead, k) * np.ldexp(1.0, np.random.default_rng(seed).integers(-12, 4, (*lead, k)))
        x, x64 = make(values, dtype, device)
        q = quantize(x, Fp8Scheme(name[4:], block))
        assert q.dtype is dtype
        scales = wide(q.parts["scales"])
        rows, columns = block or (1, max(k, 1))
        spread = np.repeat(np.repeat(scales, rows, axis=-2), columns, axis=-1)[..., : lead[-1], :k]
        quotient = x64.astype(np.float32) / spread.astype(np.float32)
        expected = np.clip(quotient, -top, top).astype(peer)
        np.testing.assert_array_equal(to_numpy(q.parts["values"]), expected.view(np.uint8))
        got = to_numpy(dequantize(q, "f32"))
        np.testing.assert_array_equal(got, expected.astype(np.float32) * spread.astype(np.float32))
        # half the distance to the next float, or half the least one
        info = ml_dtypes.finfo(peer)
        half = 0.5 * np.maximum(np.abs(quotient) * float(info.eps), float(info.smallest_subnormal)) * spread
        assert (np.abs(got - x64) <= half * (1 + 1e-5) + 1e-37).all()

    property_()


def test_ties_of_small_floats_go_to_even() -> None:
    row = [[448.0, 1.0625, 1.1875, -1.0625, 2.0**-10, 3 * 2.0**-10, 1.5 * 2.0**-9]]
    found = dequantize(quantize(fa.asarray(row), "fp8_e4m3")).tolist()[0]
    assert found == [448.0, 1.0, 1.25, -1.0, 0.0, 2.0**-8, 2.0**-8]


@pytest.mark.parametrize("lead", [(1,), (2,), (3, 2), (2, 0)])
def test_every_mxfp4_number(device: fa.Device, lead: tuple[int, ...]) -> None:
    """Each scale with each byte: 16 groups of 16 bytes for each of the 256 scales."""
    values = np.broadcast_to(np.tile(np.arange(256, dtype=np.uint8), 256), (*lead, 65536)).copy()
    scales = np.broadcast_to(np.repeat(np.arange(256, dtype=np.uint8), 16), (*lead, 4096)).copy()
    parts = {"values": fa.asarray(values, device=device), "scales": fa.asarray(scales, device=device)}
    got = dequantize(QuantTensor(Mxfp4Scheme(), (*lead, 2 * 65536), parts))
    codes = np.stack([values & 15, values >> 4], axis=-1).reshape(got.shape)
    powers = np.repeat(scales.view(ml_dtypes.float8_e8m0fnu).astype(np.float32), 32, axis=-1)
    with np.errstate(over="ignore"):
        expected = codes.view(ml_dtypes.float4_e2m1fn).astype(np.float32) * powers
    same_numbers(got, expected, powers)


def test_mxfp4_as_in_transformers() -> None:
    """gpt-oss stores blocks of 16 bytes; transformers gives the transposed matrix."""
    rng = np.random.default_rng(3)
    blocks = rng.integers(0, 256, (2, 8, 3, 16), dtype=np.uint8)
    scales = rng.integers(120, 134, (2, 8, 3), dtype=np.uint8)
    theirs = convert_moe_packed_tensors(torch.from_numpy(blocks), torch.from_numpy(scales), dtype=torch.float32)
    parts = {"values": fa.asarray(blocks.reshape(2, 8, 48)), "scales": fa.asarray(scales)}
    got = to_numpy(dequantize(QuantTensor(Mxfp4Scheme(), (2, 8, 96), parts)))
    np.testing.assert_array_equal(np.swapaxes(got, -1, -2), theirs.numpy())


@pytest.mark.mlx
def test_mxfp4_as_in_mlx() -> None:
    import mlx.core as mx

    x = mx.array(noise(5, 6, 128).astype(np.float32))
    values, scales = mx.quantize(x, group_size=32, bits=4, mode="mxfp4")
    parts = {"values": fa.bitcast(fa.asarray(values), "u8"), "scales": fa.asarray(scales)}
    got = to_numpy(dequantize(QuantTensor(Mxfp4Scheme(), (6, 128), parts)))
    expected = mx.dequantize(values, scales, group_size=32, bits=4, mode="mxfp4", dtype=mx.float32)
    np.testing.assert_array_equal(got, np.asarray(expected))


@given(
    seed=st.integers(0, 2**32 - 1),
    lead=st.sampled_from([(0,), (1,), (3,), (2, 3)]),
    count=st.integers(0, 3),
    exponent=st.integers(-100, 100),
    data=st.data(),
)
def test_mxfp4_is_the_nearest(
    device: fa.Device, seed: int, lead: tuple[int, ...], count: int, exponent: int, data: st.DataObject
) -> None:
    dtype = data.draw(st.sampled_from(floats(device)))
    values = noise(seed, *lead, 32 * count)
    x, x64 = make(values if dtype is fa.float16 else np.ldexp(values, exponent), dtype, device)
    q = quantize(x, "mxfp4")
    got = wide(dequantize(q, "f32")).reshape(*lead, count, 32)
    power = np.ldexp(1.0, to_numpy(q.parts["scales"]).astype(int) - 127)[..., None]
    quotient = x64.astype(np.float32).astype(np.float64).reshape(got.shape) / power
    grid = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    nearest = np.abs(np.abs(quotient)[..., None] - grid).min(axis=-1)
    np.testing.assert_allclose(np.abs(got / power - quotient), nearest, rtol=1e-6, atol=1e-12)
    if got.size:
        largest = np.abs(quotient).max(axis=-1)
        assert (largest <= 7 * (1 + 1e-6)).all()
        assert (largest >= 3.5 * (1 - 1e-6)).all()


@pytest.mark.parametrize("value", [fa.inf, -fa.inf, fa.nan])
@pytest.mark.parametrize(
    "name",
    [
        *("mxfp4", "fp8_e4m3", "fp8_e5m2-b1x32", "mlx4-g32", "mlx3-g32-f16"),
        *(f"int{bits}{zeros}" for bits in WIDTHS for zeros in ("", "-asym")),
        *("int4-g32-f16", "int4-asym-bf16"),
    ],
)
def test_what_is_not_finite_makes_its_group_nan(device: fa.Device, name: str, value: float) -> None:
    x = fa.ones((2, 32), device=device)
    x[0, 3] = value
    got = to_numpy(dequantize(quantize(x, name)))
    assert np.isnan(got[0]).all()
    np.testing.assert_allclose(got[1], 1.0, rtol=1e-2)


@pytest.mark.parametrize("name", ["int4-g32-f16", "int8-asym-f16", "mlx4-g32-f16"])
def test_a_scale_beyond_its_dtype_makes_its_group_nan(device: fa.Device, name: str) -> None:
    x = fa.ones((2, 32), device=device)
    x[0, 3] = 3e8
    got = to_numpy(dequantize(quantize(x, name)))
    assert np.isnan(got[0]).all()
    np.testing.assert_allclose(got[1], 1.0, rtol=1e-2)


# Names and errors.


def odd_awq() -> QuantTensor:
    """One column: integers in bytes would end inside one."""
    parts = {
        "qweight": fa.zeros((1, 1), dtype="i32"),
        "qzeros": fa.zeros((1, 1), dtype="i32"),
        "scales": fa.ones((1, 8)),
    }
    return QuantTensor(AwqScheme(1), (8, 1), parts)


@pytest.mark.parametrize(
    "name",
    ["gptq4-g128", "gptq3-g32-v2-order", "gptq8-order", "awq4", "awq4-g64", "mxfp4", "fp8_e4m3", "fp8_e5m2-b128x128",
     "mlx4-g64", "mlx6-g32-bf16"],
)  # fmt: skip
def test_names_come_back(name: str) -> None:
    assert scheme(name).name == name


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: scheme("int4-g"), "no scheme 'int4-g'; names look like int8, int8-a8, int4-g32"),
        (lambda: scheme("q9_k"), "no scheme 'q9_k'"),
        (lambda: scheme("int7"), "bits must be one of .*, got 7"),
        (lambda: scheme("int4-g0"), "group must be an integer of at least 1, or None for the whole row, got 0"),
        (lambda: IntScheme(8, scale=fa.float64), "scales are .*, not float64"),
        (lambda: scheme("gptq5-g128"), "bits must be 2, 3, 4 or 8, got 5"),
        (lambda: GptqScheme(4, 0), "GptqScheme: group must be an integer of at least 1"),
        (lambda: GptqScheme(version=3), "version must be 1 or 2, got 3"),
        (lambda: AwqScheme(0), "AwqScheme: group must be an integer of at least 1"),
        (lambda: MlxScheme(7), "MlxScheme: bits must be one of"),
        (lambda: MlxScheme(4, 0), "MlxScheme: group must be an integer of at least 1, got 0"),
        (lambda: MlxScheme(4, 32, fa.float64), "MlxScheme: scales are .*, not float64"),
        (lambda: Fp8Scheme("e3m4"), "format must be 'e4m3' or 'e5m2', got 'e3m4'"),
        (lambda: IntScheme(4.0), "bits must be one of .*, got 4.0"),
        (lambda: MlxScheme(4.0), "bits must be one of .*, got 4.0"),
        (lambda: GptqScheme(8.0), "bits must be 2, 3, 4 or 8, got 8.0"),
        (lambda: Fp8Scheme("e4m3", (1.5, 2)), r"block must be rows and columns, .*, got \(1.5, 2\)"),
        (lambda: Fp8Scheme("e4m3", 128), r"block must be rows and columns, .*, got 128"),
        (lambda: repack(odd_awq(), "int"), r"QuantTensor\(awq4-g1, float32\[8,1\]\) does not become integers"),
        (lambda: Fp8Scheme("e4m3", (0, 128)), r"block must be rows and columns, both positive, or None, got"),
        (lambda: quantize(fa.ones((2, 33)), "mxfp4"), "mxfp4: K = 33 is not divisible by 32, the group"),
        (lambda: quantize(fa.ones((2, 33)), "int4-g32"), "int4-g32: K = 33 is not divisible by 32, the group"),
        (lambda: quantize(fa.ones((2, 33)), "int4"), "int4: K . bits = 132 is not divisible by 8, so a row would end"),
        (lambda: quantize(fa.ones((2, 33)), "mlx4-g64"), "mlx4-g64: K = 33 is not divisible by 64"),
        (lambda: quantize(fa.ones((2, 33)), "q4_0"), "q4_0: K = 33 is not divisible by 32, the numbers of a block"),
        (lambda: quantize(fa.ones((9, 128)), "awq4-g128"), "awq4-g128: N = 9 is not divisible by 8"),
        (lambda: quantize(fa.ones((9, 128)), "gptq4-g128"), "gptq4-g128: N . bits = 36 is not divisible by 32"),
        (lambda: quantize(fa.ones(32), "int8"), r"x must be \[N, K\] or \[E, N, K\], got float32\[32\]"),
    ],
)  # fmt: skip
def test_what_does_not_fit(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_block_may_be_a_list() -> None:
    assert {Fp8Scheme("e4m3", [128, 128]): 1}[Fp8Scheme("e4m3", (128, 128))] == 1


def test_a_name_is_text() -> None:
    with pytest.raises(TypeError, match="scheme: name must be a str, got int 8"):
        scheme(8)
