"""MLX's products of dense, picked and quantised matrices do what the references do."""

from __future__ import annotations

from itertools import pairwise
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ferrum_array as fa
from ferrum_ops import (
    QuantTensor,
    attention,
    dequantize,
    explain,
    grouped_linear,
    linear,
    quantize,
    repack,
)
from tests.array.oracle import wide
from tests.ops.oracle import TOLERANCE, Array, check, make, noise
from tests.ops.test_attention import exact_attention

pytestmark = pytest.mark.mlx

DTYPES = (fa.float32, fa.float16, fa.bfloat16)


def has_gpu() -> bool:
    import mlx.core as mx

    return bool(mx.is_available(mx.gpu))


@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.lists(st.integers(1, 4), max_size=2),
    inner=st.integers(1, 70),
    outer=st.integers(1, 9),
    strided=st.booleans(),
    dtype=st.sampled_from(DTYPES),
)
def test_linear_with_a_bias(
    mlx: fa.Device, seed: int, rows: list[int], inner: int, outer: int, strided: bool, dtype: fa.Dtype
) -> None:
    x, x64 = make(noise(seed, *rows, inner), dtype, mlx, strided=strided)
    w, w64 = make(noise(seed + 1, outer, inner), dtype, mlx, strided=strided)
    bias, b64 = make(noise(seed + 2, outer), dtype, mlx)
    assert explain(linear, x, w, bias).runs == "mlx.addmm"
    near(linear(x, w, bias), x64 @ w64.T + b64, np.abs(x64) @ np.abs(w64).T + np.abs(b64), dtype)
    assert explain(linear, x, w).runs == "reference"
    if dtype is not fa.float32:
        assert explain(linear, x, w, bias.astype("f32")).runs == "reference"
        assert explain(linear, x, w, bias, dtype="f32").runs == "reference"


def near(got: fa.Tensor, want: Array, size: Array, dtype: fa.Dtype) -> None:
    """*got* must be *want*, of sums whose terms are *size* together, rounded to *dtype*."""
    assert got.dtype is dtype
    assert got.shape == want.shape
    assert (np.abs(wide(got) - want) <= np.abs(want) * fa.finfo(dtype).eps + size * 3e-7 + 1e-30).all()


def test_near_can_fail() -> None:
    with pytest.raises(AssertionError):
        near(fa.asarray([1.00001]), np.ones(1), np.ones(1), fa.float32)


SCHEMES = [
    f"int{bits}-g{group}{zeros}" for bits in (2, 3, 4, 5, 6, 8) for group in (32, 64, 96) for zeros in ("", "-asym")
]
SCHEMES += ["mxfp4", "mlx4-g64", "mlx3-g32-f16", "mlx8-g128-bf16", "mlx4-g32-bf16", "mlx6-g64-f16"]
SCHEMES += ["int8", "int8-g64", "int4", "int4-g128-asym-f16", "int8-g64-f16", "int8-g256-asym-bf16", "int4-g32-bf16"]


def quantised(values: Array, scheme: str, device: fa.Device, layout: str) -> tuple[QuantTensor, Array]:
    """The numbers in *scheme* and *layout*, and what they are then."""
    q = quantize(fa.asarray(values, dtype="f32"), scheme)
    if scheme == "mxfp4":  # it and signed integers run in MLX's order alone
        layout = "mlx-mxfp4"
    elif q.parts["values"].dtype is fa.int8:
        layout = "mlx-affine"
    return repack(q.to_device(device), "plain" if scheme.startswith("mlx") else layout), wide(dequantize(q))


@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.lists(st.integers(1, 4), max_size=2),
    scheme=st.sampled_from(SCHEMES),
    groups=st.integers(1, 2),
    outer=st.integers(1, 9),
    biased=st.sampled_from(["", "alike", "wide"]),
    dtype=st.sampled_from(DTYPES),
    out=st.sampled_from(DTYPES),
    layout=st.sampled_from(["plain", "mlx-affine"]),
)
def test_linear_of_quantised_weights(
    mlx: fa.Device, seed: int, rows: list[int], scheme: str, groups: int, outer: int, biased: str, dtype: fa.Dtype,
    out: fa.Dtype, layout: str,
) -> None:  # fmt: skip
    inner = groups * 768  # a multiple of all groups
    x, x64 = make(noise(seed, *rows, inner), dtype, mlx)
    w, w64 = quantised(noise(seed + 1, outer, inner), scheme, mlx, layout)
    bias, b64 = make(
        noise(seed + 2, outer) if biased else np.zeros(outer), fa.float32 if biased == "wide" else dtype, mlx
    )
    arguments = (x, w, bias if biased else None)
    assert explain(linear, *arguments, dtype=out).runs == "mlx.quantized_matmul"
    got = linear(*arguments, dtype=out)
    want = x64 @ w64.T + b64
    if has_gpu() and mlx.index == "gpu":
        check(got, want, out)
    else:  # all in float32; a value and its bias cancel
        near(got, want, 4 * np.abs(x64) @ np.abs(w64).T + np.abs(b64), out)


@pytest.mark.parametrize("layout", ["plain", "mlx-affine"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme(mlx: fa.Device, scheme: str, layout: str) -> None:
    w, w64 = quantised(noise(1, 2, 5, 768), scheme, mlx, layout)
    for dtype in DTYPES:
        x, x64 = make(noise(2, 3, 768), dtype, mlx)
        got = linear(x, w[1])
        if has_gpu() and mlx.index == "gpu":
            check(got, x64 @ w64[1].T, dtype)
        else:
            near(got, x64 @ w64[1].T, 4 * np.abs(x64) @ np.abs(w64[1]).T, dtype)
        experts("mlx.gather_qmm", 3, [1, 2], (x, x64), (w, w64), biased=False)


@pytest.mark.parametrize("dtype", [fa.float16, fa.bfloat16])
def test_what_a_gpu_does_in_16_bits(dtype: fa.Dtype) -> None:
    """The same calls of MLX as on a GPU, on the CPU, which adds in 16 bits."""
    from ferrum_ops.kernels.mlx import attention as sdpa
    from ferrum_ops.kernels.mlx import weights

    device = fa.Device("mlx:cpu")
    scales = "f16" if dtype is fa.float16 else "bf16"
    x, x64 = make(noise(2, 3, 128), dtype, device)
    qkv = [make(noise(i, 2, 20, 4, 64), dtype, device) for i in range(3)]
    sinks, s64 = make(noise(4, 4), dtype, device)
    bias, b64 = make(noise(5, 20, 20), dtype, device)
    with mock.patch.object(weights, "on_gpu", return_value=True), mock.patch.object(sdpa, "on_gpu", return_value=True):
        for scheme in (f"int4-g64-{scales}", f"int4-g32-asym-{scales}", f"mlx4-g64-{scales}", "mxfp4"):
            w, w64 = quantised(noise(1, 2, 5, 128), scheme, device, "mlx-affine")
            assert not weights.widened(x, w)
            check(linear(x, w[0], dtype="f32"), x64 @ w64[0].T, fa.float32, 2e-6)
            check(linear(x, w[0]), x64 @ w64[0].T, dtype, 4 * TOLERANCE[dtype])
            got = grouped_linear(x, w, fa.asarray([0, 1, 3], device=device))
            want = np.stack([w64[e] @ row for e, row in zip((0, 1, 1), x64, strict=True)])
            check(got, want, dtype, 4 * TOLERANCE[dtype])
        assert weights.widened(x, quantised(noise(1, 5, 128), "int4-g64", device, "mlx-affine")[0])
        assert sdpa._dtype_of_work(*(x for x, _ in qkv), bias, sinks) is dtype
        assert sdpa._dtype_of_work(*(x for x, _ in qkv), bias.astype("f32"), sinks) is fa.float32
        got = attention(*(x for x, _ in qkv), bias=bias, sinks=sinks, window=7)
        want, _ = exact_attention(*(x for _, x in qkv), bias=b64, sinks=s64, window=7)
        check(got, want, dtype, 4 * TOLERANCE[dtype])


@given(
    scheme=st.sampled_from([name for name in SCHEMES if not name.startswith("mlx")]),
    seed=st.integers(0, 2**32 - 1),
    stacked=st.booleans(),
)
def test_the_layout_keeps_every_bit(mlx: fa.Device, scheme: str, seed: int, stacked: bool) -> None:
    plain = quantize(fa.asarray(noise(seed, *((2,) if stacked else ()), 3, 768), dtype="f32"), scheme).to_device(mlx)
    packed = repack(plain, "mlx-mxfp4" if scheme == "mxfp4" else "mlx-affine")
    back = repack(packed, "plain")
    assert packed.features == (*plain.features, f"layout:{packed.layout}")
    assert back.parts.keys() == plain.parts.keys()
    for name, part in plain.parts.items():
        assert back.parts[name].dtype is part.dtype
        assert fa.all(back.parts[name] == part)
    assert fa.all(dequantize(packed) == dequantize(plain))


def test_scales_near_the_end_of_their_range(mlx: fa.Device) -> None:
    """128 times the scale is more than float16 holds."""
    values = np.full((1, 64), 65000.0)
    values[0, ::2] = -60000.0
    w, w64 = quantised(values, "int8-g64-f16", mlx, "mlx-affine")
    assert w.parts["biases"].dtype is fa.float32
    x, x64 = make(noise(1, 2, 64) / 1000, fa.float16, mlx)
    near(linear(x, w), x64 @ w64.T, 4 * np.abs(x64) @ np.abs(w64).T, fa.float16)


@given(
    seed=st.integers(0, 2**32 - 1),
    counts=st.lists(st.integers(0, 5), min_size=1, max_size=6).filter(any),
    beyond=st.integers(0, 2),
    inner=st.integers(1, 9),
    outer=st.integers(1, 9),
    biased=st.booleans(),
    strided=st.booleans(),
)
def test_experts(
    mlx: fa.Device, seed: int, counts: list[int], beyond: int, inner: int, outer: int, biased: bool, strided: bool
) -> None:
    x, x64 = make(noise(seed, sum(counts) + beyond, inner), fa.float32, mlx, strided=strided)
    w, w64 = make(noise(seed + 1, len(counts), outer, inner), fa.float32, mlx, strided=strided)
    experts("mlx.gather_mm", seed, counts, (x, x64), (w, w64), biased)


@given(
    seed=st.integers(0, 2**32 - 1),
    counts=st.lists(st.integers(0, 3), min_size=1, max_size=4).filter(any),
    beyond=st.integers(0, 2),
    scheme=st.sampled_from(SCHEMES),
    biased=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    layout=st.sampled_from(["plain", "mlx-affine"]),
)
def test_quantised_experts(
    mlx: fa.Device, seed: int, counts: list[int], beyond: int, scheme: str, biased: bool, dtype: fa.Dtype, layout: str
) -> None:
    x = make(noise(seed, sum(counts) + beyond, 768), dtype, mlx)
    w = quantised(noise(seed + 1, len(counts), 5, 768), scheme, mlx, layout)
    experts("mlx.gather_qmm", seed, counts, x, w, biased)


def experts(
    runs: str, seed: int, counts: list[int], x: tuple[fa.Tensor, Array], w: tuple[Any, Array], biased: bool
) -> None:
    """The rows of each expert, and those of nobody."""
    (x_, x64), (w_, w64), dtype, device = x, w, x[0].dtype, x[0].device
    bias, b64 = make(noise(seed + 2, *w64.shape[:2]), dtype, device)
    bounds = np.concatenate([[0], np.cumsum(counts)])
    arguments = (x_, w_, fa.asarray(bounds, device=device), bias if biased else None)
    assert explain(grouped_linear, *arguments).runs == runs
    got = grouped_linear(*arguments)
    want, size = (np.zeros((len(x64), w64.shape[1])) for _ in range(2))
    for e, (start, stop) in enumerate(pairwise(bounds)):
        want[start:stop] = x64[start:stop] @ w64[e].T + (b64[e] if biased else 0.0)
        size[start:stop] = 4 * np.abs(x64[start:stop]) @ np.abs(w64[e]).T + np.abs(b64[e])
    if has_gpu() and device.index == "gpu":
        check(got, want, dtype)
    else:
        near(got, want, size, dtype)
    assert (wide(got)[sum(counts) :] == 0).all()


def test_what_products_leave_to_the_reference(mlx: fa.Device) -> None:
    offsets = fa.asarray([0, 1, 2], device=mlx)
    x, w = fa.ones((2, 64), device=mlx), fa.ones((2, 4, 64), device=mlx)
    told = explain(grouped_linear, x.astype("bf16"), w.astype("bf16"), offsets)
    assert told.runs == ("reference" if mlx.index == "cpu" or not has_gpu() else "mlx.gather_mm")
    assert explain(grouped_linear, x[:0], w, fa.asarray([0, 0, 0], device=mlx)).runs == "reference"
    assert explain(linear, x[:0], w[0], w[0, :, 0]).runs == "reference"

    def reason(scheme: str) -> str:
        told = explain(linear, x, quantize(w[0], scheme))
        assert told.runs == "reference", told
        return dict(told.others)["mlx.quantized_matmul"]

    assert reason("int4-g16") == "MLX's groups are of 128, 64, 32, which do not divide those of int4-g16"
    assert reason("int8") == "signed integers must be in MLX's order: repack(w, 'mlx-affine')"
    assert reason("mlx4-g16") == "MLX's groups are of 128, 64, 32"
    assert reason("mxfp4") == "mxfp4 must be in MLX's order: repack(w, 'mlx-mxfp4')"
    assert reason("q8_0") == "does not cover quant:q8_0"
    broken = quantize(w[0] * fa.nan, "mxfp4")
    with pytest.raises(ValueError, match="mlx-mxfp4: MLX has no scale that is NaN"):
        repack(broken, "mlx-mxfp4")
    with pytest.raises(ValueError, match="it holds mxfp4, not int4"):
        repack(quantize(w[0], "int4"), "mlx-mxfp4")
    with pytest.raises(ValueError, match=r"the layout mlx-affine does not hold .*int4-g16.*MLX's groups"):
        repack(quantize(w[0], "int4-g16"), "mlx-affine")
