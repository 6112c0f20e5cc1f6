"""Products with quantised weights: those of the numbers that the weights stand for."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ferrum_array as fa
from ferrum_ops import dequantize, explain, grouped_linear, linear, moe_ffn, quantize, use_fast_paths
from ferrum_ops.quant import tensor as quant_tensor
from ferrum_ops.quant.integer import IntScheme
from tests.array.oracle import wide
from tests.ops.oracle import TOLERANCE, Array, check, distance, floats, make, noise

SCHEMES = ("int8", "int4-g32", "int4-g32-asym-f16", "int8-g32-asym", "int3-g32")


@given(
    name=st.sampled_from(SCHEMES),
    rows=st.lists(st.integers(0, 4), max_size=3),
    outer=st.integers(0, 20),
    groups=st.integers(0, 4),
    biased=st.sampled_from([None, "same", "wide"]),
    strided=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
    data=st.data(),
)
def test_linear(
    device: fa.Device, name: str, rows: list[int], outer: int, groups: int, biased: str | None, strided: bool,
    seed: int, data: st.DataObject,
) -> None:  # fmt: skip
    dtype = data.draw(st.sampled_from(floats(device)))
    out = data.draw(st.sampled_from([None, *floats(device)]))
    x, x64 = make(noise(seed, *rows, 32 * groups), dtype, device, strided=strided)
    q = quantize(make(noise(seed + 1, outer, 32 * groups), fa.float32, device)[0], name)
    sums = fa.float64 if dtype is fa.float64 else fa.float32
    bias, b64 = make(noise(seed + 2, outer), dtype if biased == "same" else sums, device)
    with use_fast_paths(False):
        got = linear(x, q, bias if biased else None, dtype=out)
    want = x64 @ wide(dequantize(q, "f32")).T + (b64 if biased else 0.0)
    result = dtype if out is None else out
    check(got, want, result, max(TOLERANCE[result], 4e-6 if dtype is not fa.float64 else 1e-14))


def rounded(x: Array, group: int | None) -> Array:
    """Inputs as integers from -127 to 127 times a scale for each group, in the words of the scheme."""
    size = group or max(x.shape[-1], 1)
    parts = x.astype(np.float32).reshape(*x.shape[:-1], x.shape[-1] // size, size)
    most = np.max(np.abs(parts), axis=-1, keepdims=True, initial=0.0)
    scale = np.maximum(most / np.float32(127), np.float32(2.0**-126))
    return (np.rint(parts * (np.float32(1) / scale)) * scale).reshape(x.shape).astype(np.float64)


@given(
    group=st.sampled_from([None, 1, 32, 64]),
    bits=st.sampled_from([4, 8]),
    rows=st.integers(0, 5),
    inner=st.integers(0, 4),
    exponent=st.integers(-12, 12),
    seed=st.integers(0, 2**32 - 1),
    data=st.data(),
)
def test_rounded_inputs(
    device: fa.Device,
    group: int | None,
    bits: int,
    rows: int,
    inner: int,
    exponent: int,
    seed: int,
    data: st.DataObject,
) -> None:
    dtype = data.draw(st.sampled_from(floats(device)))
    x, x64 = make(np.ldexp(noise(seed, rows, 64 * inner), exponent), dtype, device)
    q = quantize(make(noise(seed + 1, 7, 64 * inner), fa.float32, device)[0], IntScheme(bits, group, activations=8))
    with use_fast_paths(False):
        got = linear(x, q, dtype="f32")
    check(got, rounded(x64, group) @ wide(dequantize(q, "f32")).T, fa.float32, 4e-6)
    plain = x64 @ wide(dequantize(q, "f32")).T
    if rows and inner:
        assert distance(wide(got), plain) < 0.02
        assert group == 1 or distance(wide(got), plain) > 1e-4


def test_rounded_inputs_at_their_limits(device: fa.Device) -> None:
    q = quantize(fa.ones((1, 2), device=device), "int8-a8")
    x = fa.asarray(
        [[0, 0], [1e-44, 0], [math.inf, 1], [math.nan, 1], [3e38, -3e38], [127, 0.5], [127, 1.5]], device=device
    )
    with use_fast_paths(False):
        got = wide(linear(x.astype("f32"), q))[:, 0]
    np.testing.assert_allclose(got, [0, 0, math.nan, math.nan, 0, 127, 129], rtol=1e-6)


def test_the_reference_works_in_blocks_of_rows(device: fa.Device, monkeypatch: pytest.MonkeyPatch) -> None:
    w, _ = make(noise(1, 37, 64), fa.float32, device)
    x, _ = make(noise(2, 3, 64), fa.float32, device)
    bias = fa.arange(37, dtype="f32", device=device)
    q = quantize(w, "int4-g32")
    with use_fast_paths(False):
        whole, dense = linear(x, q, bias), dequantize(q)
        monkeypatch.setattr(quant_tensor, "_BLOCK", 5 * 64)
        assert len(list(q.row_blocks())) == 8
        check(linear(x, q, bias), wide(whole), fa.float32)
        assert fa.all(dequantize(q) == dense)


def test_what_a_call_needs_is_in_its_features() -> None:
    x, w = fa.ones((2, 32)), fa.ones((3, 32))
    features = explain(linear, x, quantize(w, "int4-g32-asym"), fa.ones(3), dtype="f16").features
    assert features == ("quant:int4", "zeros", "bias", "dtype")
    assert explain(linear, x.astype("f16"), quantize(w, "int8"), fa.ones(3)).features == ("quant:int8", "bias", "mixed")
    assert explain(linear, x, w).features == ()
    stack, dense = quantize(fa.ones((4, 2, 32)), "int8"), fa.ones((4, 32, 1))
    assert explain(grouped_linear, x, stack, fa.asarray([0, 1, 1, 2, 2])).features == ("quant:int8",)
    ids = fa.zeros((2, 1), dtype="i64")
    assert explain(moe_ffn, x, stack, dense, ids, fa.ones((2, 1))).features == ("w13:quant:int8", "silu")
    both = explain(moe_ffn, x, stack, quantize(dense, "int8"), ids, fa.ones((2, 1)))
    assert both.features == ("w13:quant:int8", "w2:quant:int8", "silu")


@given(
    name=st.sampled_from(SCHEMES),
    counts=st.lists(st.integers(0, 4), min_size=1, max_size=5),
    spare=st.integers(0, 2),
    biased=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
    data=st.data(),
)
def test_grouped_linear(
    device: fa.Device, name: str, counts: list[int], spare: int, biased: bool, seed: int, data: st.DataObject
) -> None:
    dtype = data.draw(st.sampled_from(floats(device)))
    starts = np.concatenate([[0], np.cumsum(counts)])
    x, x64 = make(noise(seed, int(starts[-1]) + spare, 64), dtype, device)
    q = quantize(make(noise(seed + 1, len(counts), 7, 64), fa.float32, device)[0], name)
    bias, b64 = make(noise(seed + 2, len(counts), 7), dtype, device)
    with use_fast_paths(False):
        got = grouped_linear(x, q, fa.asarray(starts, device=device), bias if biased else None)
    want = np.zeros((x.shape[0], 7))
    for e, (start, stop) in enumerate(pairwise(starts)):
        want[start:stop] = x64[start:stop] @ wide(dequantize(q[e], "f32")).T + (b64[e] if biased else 0.0)
    check(got, want, dtype, max(TOLERANCE[dtype], 4e-6 if dtype is not fa.float64 else 1e-14))


@pytest.mark.parametrize("dense", ["none", "w13", "w2"])
def test_moe_ffn(device: fa.Device, dense: str) -> None:
    x, _ = make(noise(1, 9, 64), fa.float32, device)
    w13, _ = make(noise(2, 5, 64, 64) / 8, fa.float32, device)
    w2, _ = make(noise(3, 5, 48, 32) / 6, fa.float32, device)
    ids = fa.asarray(np.random.default_rng(4).permuted(np.tile(np.arange(5), (9, 1)), axis=1)[:, :2], device=device)
    weights = fa.full((9, 2), 0.5, device=device)
    q13, q2 = quantize(w13, "int4-g32"), quantize(w2, "int8")
    want = moe_ffn(x, dequantize(q13), dequantize(q2), ids, weights)
    a = dequantize(q13) if dense == "w13" else q13
    b = dequantize(q2) if dense == "w2" else q2
    with use_fast_paths(False):
        check(moe_ffn(x, a, b, ids, weights), wide(want), fa.float32)


def test_weights_that_do_not_fit() -> None:
    q = quantize(fa.ones((3, 32)), "int8")
    with pytest.raises(ValueError, match=r"share K, got float32\[2,31\] and float32\[3,32\]"):
        linear(fa.ones((2, 31)), q)
    with pytest.raises(ValueError, match=r"bias must have shape \(3,\)"):
        linear(fa.ones((2, 32)), q, fa.ones(2))
    with pytest.raises(ValueError, match=r"w \[N, K\]"):
        linear(fa.ones((2, 32)), quantize(fa.ones((1, 3, 32)), "int8"))
    with pytest.raises(ValueError, match=r"w \[E, N, K\]"):
        grouped_linear(fa.ones((2, 32)), q, fa.asarray([0, 2]))
    with pytest.raises(ValueError, match="w2 must have three axes"):
        moe_ffn(fa.ones((2, 32)), fa.ones((1, 2, 32)), q, fa.zeros((2, 1), dtype="i64"), fa.ones((2, 1)))
    with pytest.raises(TypeError, match="w must be a Tensor, got list"):
        linear(fa.ones((2, 32)), [[1.0] * 32])


@pytest.mark.mlx
def test_weights_on_another_device() -> None:
    with pytest.raises(ValueError, match="w is on device mlx:cpu but the input on cpu"):
        linear(fa.ones((2, 32)), quantize(fa.ones((3, 32), device="mlx:cpu"), "int8"))
