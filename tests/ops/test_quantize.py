"""Integers with scales: what is stored, what comes back, and how a quantised tensor behaves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ferrum_array as fa
from ferrum_ops import QuantTensor, dequantize, quantize
from ferrum_ops.quant.integer import IntScheme
from ferrum_ops.quant.names import scheme
from tests.array.oracle import NP, to_numpy, wide
from tests.ops.oracle import Array, floats, make, noise, same_numbers

WIDTHS = (2, 3, 4, 5, 6, 8)


def integers(stream: Array, bits: int) -> Array:
    """Numbers of so many bits, the first in the lowest bits: by way of single bits."""
    single = np.unpackbits(stream, axis=-1, bitorder="little")
    grouped = single.reshape(*stream.shape[:-1], single.shape[-1] // bits, bits).astype(np.int64)
    return np.sum(grouped << np.arange(bits), axis=-1)


def oracle(q: QuantTensor) -> Array:
    """What the scheme's description says, in float32."""
    found = q.scheme
    assert isinstance(found, IntScheme)
    values = q.parts["values"].numpy()
    scales = q.parts["scales"].numpy().astype(np.float32)
    if values.dtype == np.uint8:
        values = integers(values, found.bits)
    repeat = q.shape[-1] // max(scales.shape[-1], 1)
    if found.symmetric:
        zeros = 0 if found.bits == 8 else 2 ** (found.bits - 1)
    else:
        zeros = np.repeat(q.parts["zeros"].numpy().astype(np.int64), repeat, axis=-1)
    with np.errstate(all="ignore"):
        return (values - zeros).astype(np.float32) * np.repeat(scales, repeat, axis=-1)


@st.composite
def schemes(draw: Any) -> tuple[IntScheme, int]:
    """A scheme, and a K that it divides."""
    bits = draw(st.sampled_from(WIDTHS))
    group = draw(st.sampled_from([None, 1, 3, 8, 32, 64, 128]))
    scale = draw(st.sampled_from([fa.float32, fa.float16, fa.bfloat16]))
    found = IntScheme(bits, group, draw(st.booleans()), scale, draw(st.sampled_from([None, 8])))
    unit = np.lcm(8, group or 1)
    return found, int(unit) * draw(st.integers(0, 3))


@given(
    drawn=schemes(),
    lead=st.sampled_from([(0,), (1,), (5,), (2, 3), (0, 2), (3, 0)]),
    exponent=st.integers(-40, 20),
    strided=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
    data=st.data(),
)
def test_round_trip_is_within_half_a_step(
    device: fa.Device, drawn: tuple[IntScheme, int], lead: tuple[int, ...], exponent: int, strided: bool, seed: int,
    data: st.DataObject,
) -> None:  # fmt: skip
    found, k = drawn
    dtype = data.draw(st.sampled_from(floats(device)))
    values = noise(seed, *lead, k)
    if dtype is not fa.float16 and found.scale is not fa.float16:
        values = np.ldexp(values, exponent)
    values *= np.random.default_rng(seed).random((*lead, k)) < 0.9
    x, x64 = make(values, dtype, device, strided=strided)
    q = quantize(x, found)
    assert (q.shape, q.dtype, q.device, q.scheme) == (x.shape, dtype, device, found)
    y = dequantize(q, "f32")
    assert y.dtype is fa.float32
    np.testing.assert_array_equal(y.numpy(), oracle(q))
    scales = wide(q.parts["scales"])
    assert (scales > 0).all()
    step = np.repeat(scales, k // max(scales.shape[-1], 1), axis=-1)
    # x becomes float32, quotients are rounded there, and there is a largest number that a step can be a 2**-b of
    limit = 0.5 * step * (1 + 2.0 ** (found.bits - 22)) + 2.0**-149
    assert (np.abs(wide(y) - x64) <= limit).all()
    # a scale is not larger than it must be: some number of the group stands at its end, or near it
    ints = np.abs(wide(y) / step).reshape(*lead, scales.shape[-1], -1) if y.size else np.zeros((1, 1))
    if found.symmetric and y.size and found.bits > 3:
        tiny = np.abs(x64).reshape(ints.shape).max(axis=-1) < 2.0**-13
        end = (2 ** (found.bits - 1) - 1) / (1 + float(fa.finfo(found.scale).eps))  # scales are rounded up
        assert ((ints.max(axis=-1) >= end - 0.5) | tiny).all()


@given(drawn=schemes(), seed=st.integers(0, 2**32 - 1))
def test_any_bytes_are_what_the_description_says(device: fa.Device, drawn: tuple[IntScheme, int], seed: int) -> None:
    found, k = drawn
    rng = np.random.default_rng(seed)
    parts = {}
    for name, part in found.parts(3, k).items():
        dtype = found.scale if name == "scales" else part.dtypes[0]
        raw = rng.integers(0, 256, (2, *part.shape[:-1], part.shape[-1] * dtype.bytes_per_elem), dtype=np.uint8)
        raw = raw.view(NP[dtype]) if raw.size else np.zeros((2, *part.shape), NP[dtype])
        parts[name] = fa.asarray(raw, device=device)
    q = QuantTensor(found, (2, 3, k), parts)
    with np.errstate(invalid="ignore"):  # of signalling NaN
        scales = q.parts["scales"].numpy().astype(np.float32)
    same_numbers(dequantize(q), oracle(q), np.repeat(scales, k // max(scales.shape[-1], 1), axis=-1))


def test_bytes_that_are_known() -> None:
    q = quantize(fa.asarray([[7.0, -7.0, 0.0, 1.0]]), "int4")
    assert q.parts["values"].tolist() == [[0x1F, 0x98]]
    q = quantize(fa.asarray([[0.0, 15.0, 3.0, 1.0]]), "int4-asym")
    assert q.parts["values"].tolist() == [[0xF0, 0x13]]
    assert (q.parts["scales"].tolist(), q.parts["zeros"].tolist()) == ([[1.0]], [[0]])
    q = quantize(fa.asarray([[-51.0, 204.0]]), "int8-asym")
    assert dequantize(q).tolist() == [[-51.0, 204.0]]
    assert q.parts["zeros"].tolist() == [[51]]


@given(drawn=schemes())
def test_names_come_back(drawn: tuple[IntScheme, int]) -> None:
    assert scheme(drawn[0].name) == drawn[0]


@pytest.mark.parametrize("scale", [fa.float32, fa.float16, fa.bfloat16])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", WIDTHS)
def test_scales_are_rounded_up(device: fa.Device, bits: int, symmetric: bool, scale: fa.Dtype) -> None:
    """Many groups of two numbers: some of their scales lie between two numbers of the dtype, nearer to the lower."""
    x, x64 = make(noise(7, 64, 16), fa.float32, device)
    q = quantize(x, IntScheme(bits, 2, symmetric, scale))
    error = np.abs(wide(dequantize(q)) - x64)
    step = np.repeat(wide(q.parts["scales"]), 2, axis=-1)
    assert (error <= 0.5 * step * (1 + 2.0 ** (bits - 22))).all()
    if symmetric and bits < 8:
        codes = integers(to_numpy(q.parts["values"]), bits)
        assert (codes > 0).all(), "the integer below the least one stands for nothing"
    if symmetric:
        levels = np.abs(wide(dequantize(q)) / step)
        # a bfloat16 is up to a 128th too large, and so is a step
        assert (levels.reshape(64, 8, 2).max(axis=-1) > 2 ** (bits - 1) - (2.1 if bits == 8 else 1.1)).all()


def test_the_end_of_a_range_between_two_levels(device: fa.Device) -> None:
    """7.5 steps on each side: one end rounds to a level that does not exist, and takes its neighbour."""
    q = quantize(fa.asarray([[-7.5, 7.5, 0.0, 3.0]], device=device), "int4-asym")
    assert (q.parts["scales"].tolist(), q.parts["zeros"].tolist()) == ([[1.0]], [[8]])
    assert dequantize(q).tolist() == [[-8.0, 7.0, 0.0, 3.0]]


def test_ties_go_to_even(device: fa.Device) -> None:
    q = quantize(fa.asarray([[127.0, 0.5, 1.5, -0.5, -2.5]], device=device), "int8")
    assert q.parts["values"].tolist() == [[127, 0, 2, 0, -2]]
