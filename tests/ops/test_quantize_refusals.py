"""Names of schemes, and wrong uses of them: what is said, and what becomes NaN."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import ferrum_array as fa
from ferrum_ops import QuantTensor, dequantize, quantize, repack
from ferrum_ops.quant.awq import AwqScheme
from ferrum_ops.quant.fp8 import Fp8Scheme
from ferrum_ops.quant.gptq import GptqScheme
from ferrum_ops.quant.integer import WIDTHS, IntScheme
from ferrum_ops.quant.mlx import MlxScheme
from ferrum_ops.quant.names import scheme
from tests.array.oracle import to_numpy


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
