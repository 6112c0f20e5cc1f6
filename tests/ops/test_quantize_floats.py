"""Small floats: each of their numbers, the nearest one, and what has none, beside other libraries."""

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
from ferrum_ops import QuantTensor, dequantize, quantize
from ferrum_ops.quant.fp8 import Fp8Scheme
from ferrum_ops.quant.mxfp4 import Mxfp4Scheme
from ferrum_ops.quant.names import scheme
from tests.array.oracle import to_numpy, wide
from tests.ops.oracle import floats, make, noise, same_numbers


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
