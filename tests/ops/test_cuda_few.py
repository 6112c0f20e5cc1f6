"""Products with weights of 4 bits and few rows in one launch, on a CUDA device."""

from __future__ import annotations

import numpy as np
import pytest

import ferrum_array as fa
from ferrum_ops import QuantTensor, dequantize, explain, gated_linear, linears, quantize
from tests.array.oracle import wide
from tests.ops.oracle import Array, distance, make, noise

pytestmark = pytest.mark.cuda

#: of sums that are rounded once, and of those that are not
CLOSE = {fa.float16: 5e-4, fa.bfloat16: 4e-3, fa.float32: 1e-5}


@pytest.fixture(scope="module")
def device() -> fa.Device:
    device = fa.Device("cuda:0")
    from ferrum_ops.kernels.cuda.launch import capability

    if capability(device) < 90:
        pytest.skip("kernels for Hopper")
    return device


def weight(seed: int, columns: int, size: int, dtype: fa.Dtype, device: fa.Device) -> tuple[QuantTensor, Array]:
    """Weights of 4 bits, and the numbers that they stand for."""
    scheme = "int4-g128-f16" if dtype is fa.float16 else "int4-g128-bf16"
    w = quantize(fa.asarray(noise(seed, columns, size) / size**0.5, dtype="f32", device=device), scheme)
    return w, wide(dequantize(w, dtype="f32"))


@pytest.mark.parametrize("dtype", [fa.float16, fa.bfloat16])
@pytest.mark.parametrize("size", [512, 1024, 2048, 4096, 5120, 12288])
@pytest.mark.parametrize("rows", [1, 2, 8, 9, 16])
def test_several_products(device: fa.Device, dtype: fa.Dtype, size: int, rows: int) -> None:
    """More tiles than programs and fewer; x in a wider tensor; the same bits each time."""
    x, x64 = make(noise(rows, rows, size + 8), dtype, device)
    x, x64 = x[:, :size], x64[:, :size]
    made = [weight(size + n, n, size, dtype, device) for n in (9216 if size == 512 else 48, 16, 160)]
    ws = [w for w, _ in made]
    bias, b64 = make(noise(4, 160), fa.float32, device)
    for out in (dtype, fa.float32):
        biases = (None, None, bias)
        assert explain(linears, x, ws, biases, dtype=out).runs == "cuda.linears_few_int4"
        found = linears(x, ws, biases, dtype=out)
        for y, (_, w64), offset in zip(found, made, (0.0, 0.0, b64), strict=True):
            assert distance(wide(y), x64 @ w64.T + offset) < CLOSE[out]
        assert all(fa.all(a == b) for a, b in zip(found, linears(x, ws, biases, dtype=out), strict=True))


@pytest.mark.parametrize("dtype", [fa.float16, fa.bfloat16])
@pytest.mark.parametrize("columns", [8, 264, 6144])
@pytest.mark.parametrize("rows", [1, 5, 8])
def test_a_gated_product(device: fa.Device, dtype: fa.Dtype, columns: int, rows: int) -> None:
    x, x64 = make(noise(rows, rows, 4096), dtype, device)
    (gate, g64), (up, u64) = (weight(seed, columns, 4096, dtype, device) for seed in (1, 2))
    bias, b64 = make(noise(4, columns), dtype, device)
    assert explain(gated_linear, x, gate, up, gate_bias=bias).runs == "cuda.gated_linear_few_int4"
    y = gated_linear(x, gate, up, gate_bias=bias)
    opened = x64 @ g64.T + b64
    assert distance(wide(y), opened / (1.0 + np.exp(-opened)) * (x64 @ u64.T)) < 2 * CLOSE[dtype]
