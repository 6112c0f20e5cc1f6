"""The block formats of GGUF beside the package ``gguf``, bit for bit."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ferrum_array as fa
from ferrum_ops import QuantTensor, dequantize, quantize, repack
from ferrum_ops.quant.gguf import TYPES, GgufScheme
from ferrum_ops.quant.integer import IntScheme
from ferrum_ops.quant.names import scheme
from tests.array.oracle import to_dtype, to_numpy
from tests.ops.oracle import Array, floats, make, noise, same_numbers

WRITTEN = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4")

#: where the float16 numbers of a block begin
HALVES = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "MXFP4": (),
    "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,),
}  # fmt: skip

#: 0, -0, the least and the greatest subnormal, the least normal, the greatest, infinities, NaN
EXTREME = (0x0000, 0x8000, 0x0001, 0x03FF, 0x0400, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00, 0x7E00)


def qtype(name: str) -> gguf.GGMLQuantizationType:
    return gguf.GGMLQuantizationType[name]


def random_blocks(name: str, rng: np.random.Generator, lead: tuple[int, ...], count: int) -> Array:
    """Random bytes, with moderate, extreme or random scales."""
    size = TYPES[name].size
    blocks = rng.integers(0, 256, (*lead, count, size), dtype=np.uint8)
    kind = rng.integers(0, 3)
    for place in HALVES[name] if kind < 2 else ():
        if kind:
            bits = rng.choice(np.array(EXTREME, np.uint16), (*lead, count))
        else:
            bits = (rng.standard_normal((*lead, count)) / 16).astype(np.float16).view(np.uint16)
        blocks[..., place : place + 2] = bits[..., None].view(np.uint8)
    return blocks.reshape(*lead, count * size)


@pytest.mark.parametrize("name", TYPES)
def test_reading_agrees_in_every_bit(device: fa.Device, name: str) -> None:
    @given(seed=st.integers(0, 2**32 - 1), lead=st.sampled_from([(1,), (3,), (2, 3)]), count=st.integers(1, 3))
    def property_(seed: int, lead: tuple[int, ...], count: int) -> None:
        raw = random_blocks(name, np.random.default_rng(seed), lead, count)
        with np.errstate(all="ignore"):
            expected = gguf.dequantize(raw, qtype(name))
        q = QuantTensor(GgufScheme(name), expected.shape, {"blocks": fa.asarray(raw, device=device)})
        powers = np.ones_like(expected)  # of two, that MXFP4 multiplies with
        if name == "MXFP4":
            exponents = np.repeat(raw.reshape(*lead, count, 17)[..., 0].astype(np.int32), 32, axis=-1)
            powers = np.ldexp(np.float32(1), exponents - 128)
        same_numbers(dequantize(q), expected, powers)
        same_numbers(dequantize(q[-1:]), expected[-1:], powers[-1:])
        assert (
            to_numpy(dequantize(q, "f16")).tobytes() == to_dtype(expected, fa.float16).tobytes()
            or np.isnan(expected).any()
        )

    property_()


def test_sizes_are_those_of_gguf() -> None:
    for name, found in TYPES.items():
        assert (found.block, found.size) == gguf.GGML_QUANT_SIZES[qtype(name)]
        made = GgufScheme(name)
        assert scheme(made.name) == made
    assert scheme("Q4_K") == scheme("q4_K") == GgufScheme("Q4_K")
    assert scheme("gguf_mxfp4") == GgufScheme("MXFP4")


@pytest.mark.parametrize("name", WRITTEN)
def test_writing_agrees_in_every_byte_and_is_close(device: fa.Device, name: str) -> None:
    #: the step is what one level more is; one half is rounding, and the float16 scale adds its own
    levels = {"Q4_0": 8, "Q4_1": 15, "Q5_0": 16, "Q5_1": 31, "Q8_0": 127}

    @given(
        seed=st.integers(0, 2**32 - 1),
        lead=st.sampled_from([(0,), (1,), (3,), (2, 3)]),
        count=st.integers(0, 3),
        exponent=st.integers(-9, 9),
        data=st.data(),
    )
    def property_(seed: int, lead: tuple[int, ...], count: int, exponent: int, data: st.DataObject) -> None:
        dtype = data.draw(st.sampled_from(floats(device)))
        values = np.ldexp(noise(seed, *lead, 32 * count), exponent)
        values *= np.random.default_rng(seed).random(values.shape) < 0.9
        if seed % 3 == 0:
            values = np.round(values * 4) / 4  # numbers that lie between two levels
        # which of 0 and -0 is the least number is nobody's to say
        x, x64 = make(values + 0.0, dtype, device)
        q = quantize(x, GgufScheme(name))
        assert q.dtype is dtype
        if not x.size:
            assert dequantize(q).shape == x.shape
            return
        x32 = x64.astype(np.float32)
        with np.errstate(all="ignore"):
            expected = gguf.quants.quantize(x32, qtype(name))
        if name == "MXFP4":
            largest = np.abs(x32.reshape(-1, 32)).max(axis=1)
            with np.errstate(divide="ignore"):
                exact = np.floor(np.log2(largest)) == np.frexp(largest)[1] - 1
            size = TYPES[name].size
            keep = (exact | (largest == 0))[:, None]
            found = np.where(keep, to_numpy(q.parts["blocks"]).reshape(-1, size), 0)
            np.testing.assert_array_equal(found, np.where(keep, expected.reshape(-1, size), 0))
        else:
            np.testing.assert_array_equal(to_numpy(q.parts["blocks"]), expected)
        groups = x32.astype(np.float64).reshape(-1, 32)
        error = np.abs(to_numpy(dequantize(q, "f32")).astype(np.float64).reshape(-1, 32) - groups)
        if name == "MXFP4":
            # a quarter of the greatest number is half the widest step, and what is beyond 6 becomes 6
            assert (error <= 0.25 * np.abs(groups).max(axis=1, keepdims=True) + 1e-30).all()
            return
        span = groups.max(axis=1) - groups.min(axis=1) if name.endswith("_1") else np.abs(groups).max(axis=1)
        step = (span / levels[name])[:, None]
        rounding = levels[name] * (step * 2.0**-11 + 2.0**-25) + np.abs(groups.min(axis=1, keepdims=True)) * 2.0**-11
        clipped = (np.abs(groups) > (levels[name] - 0.5) * step) & (name in ("Q4_0", "Q5_0"))
        assert (error <= np.where(clipped, 1.0, 0.5) * step * (1 + 1e-4) + rounding).all()

    property_()


@pytest.mark.parametrize("name", [name for name in TYPES if name not in WRITTEN])
def test_what_can_only_be_read(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name.lower()} can be read here, but not made"):
        quantize(fa.ones((1, 256)), name.lower())


@pytest.mark.parametrize(("name", "bits"), [("Q4_0", 4), ("Q5_0", 5), ("Q8_0", 8)])
def test_blocks_as_integers(device: fa.Device, name: str, bits: int) -> None:
    raw = np.concatenate([random_blocks(name, np.random.default_rng(seed), (2, 3), 2) for seed in range(5)], axis=-1)
    q = QuantTensor(GgufScheme(name), (2, 3, 320), {"blocks": fa.asarray(raw, device=device)}, "bf16")
    found = repack(q, "int")
    assert (found.scheme, found.dtype, found.layout) == (IntScheme(bits, 32, True, fa.float16), fa.bfloat16, "plain")
    with np.errstate(all="ignore"):
        same_numbers(dequantize(found, "f32"), gguf.dequantize(raw, qtype(name)))
    assert repack(found, "int") is found


def test_types_and_lengths_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="no type 'IQ9_Z' here; there are Q4_0"):
        GgufScheme("IQ9_Z")
    with pytest.raises(ValueError, match="q6_k: K = 128 is not divisible by 256, the numbers of a block"):
        QuantTensor(GgufScheme("Q6_K"), (1, 128), {"blocks": fa.zeros((1, 210), dtype="u8")})
    with pytest.raises(ValueError, match=r"blocks of q6_k\[1,256\] must have shape \(1, 210\), got uint8\[1,209\]"):
        QuantTensor(GgufScheme("Q6_K"), (1, 256), {"blocks": fa.zeros((1, 209), dtype="u8")})
    q = QuantTensor(GgufScheme("Q6_K"), (1, 256), {"blocks": fa.zeros((1, 210), dtype="u8")})
    with pytest.raises(ValueError, match="does not become integers with scales"):
        repack(q, "int")


def test_halves_are_rounded_as_ggml_rounds_them(device: fa.Device) -> None:
    values = np.zeros((1, 32), np.float32)
    values[0, :8] = [127.0, 0.5, 1.5, -0.5, -2.5, 0.49999997, -127.0, 2.5]
    blocks = to_numpy(quantize(fa.asarray(values, device=device), "q8_0").parts["blocks"])
    assert blocks[0, 2:10].view(np.int8).tolist() == [127, 1, 2, -1, -3, 0, -127, 3]
    np.testing.assert_array_equal(blocks, gguf.quants.quantize(values, qtype("Q8_0")))
