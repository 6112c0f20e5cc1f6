"""Products with weights in GGUF's blocks, beside the package ``gguf`` in double precision."""

from __future__ import annotations

from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ferrum_array as fa
from ferrum_ops import QuantTensor, explain, linear
from ferrum_ops.quant.gguf import TYPES, GgufScheme
from tests.ops.oracle import TOLERANCE, floats, make, noise
from tests.ops.test_quantize_gguf import HALVES


def weights(name: str, seed: int, n: int, blocks: int, device: fa.Device) -> tuple[QuantTensor, Any]:
    """Random blocks with moderate scales, and the numbers that they stand for."""
    rng, found = np.random.default_rng(seed), TYPES[name]
    raw = rng.integers(0, 256, (n, blocks, found.size), dtype=np.uint8)
    for place in HALVES[name]:
        bits = (rng.standard_normal((n, blocks)) / 256).astype(np.float16).view(np.uint16)
        raw[..., place : place + 2] = bits[..., None].view(np.uint8)
    if name == "MXFP4":
        raw[..., 0] = rng.integers(112, 128, (n, blocks))
    raw = raw.reshape(n, -1)
    exact = gguf.dequantize(raw, gguf.GGMLQuantizationType[name]).astype(np.float64)
    return QuantTensor(GgufScheme(name), exact.shape, {"blocks": fa.asarray(raw, device=device)}), exact


def error(got: fa.Tensor, x: Any, w: Any, bias: Any = 0.0) -> float:
    """The L2 norm of the difference relative to that of the sums of magnitudes: sums may be next to nothing."""
    expected, scale = x @ w.T + bias, abs(x) @ abs(w).T + abs(bias)
    return float(np.linalg.norm(got.astype("f64").numpy() - expected) / max(np.linalg.norm(scale), 1e-30))


def test_the_error_sees_a_wrong_number() -> None:
    x, w = np.ones((1, 2)), np.ones((2, 2))
    assert error(fa.asarray([[2.0, 2.0]]), x, w) == 0
    assert error(fa.asarray([[2.0, 2.001]]), x, w) > 1e-4


@pytest.mark.parametrize("name", TYPES)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(0, 12),
    n=st.integers(1, 9),
    blocks=st.integers(1, 5),
    bias=st.booleans(),
    strided=st.booleans(),
    data=st.data(),
)
def test_products(
    device: fa.Device,
    name: str,
    seed: int,
    rows: int,
    n: int,
    blocks: int,
    bias: bool,
    strided: bool,
    data: st.DataObject,
) -> None:
    dtype, out = (data.draw(st.sampled_from(floats(device))) for _ in range(2))
    w, exact = weights(name, seed, n, blocks, device)
    x, numbers = make(noise(seed, rows, exact.shape[1]), dtype, device, strided=strided)
    b, added = make(noise(seed + 1, n), dtype, device) if bias else (None, 0.0)
    got = linear(x, w, b, dtype=out)
    assert got.dtype is out
    assert got.shape == (rows, n)
    assert error(got, numbers, exact, added) <= max(TOLERANCE[one] for one in (dtype, out, fa.float32))


@pytest.mark.parametrize("name", TYPES)
def test_many_columns(name: str) -> None:
    """More than become numbers at once, and than a thread takes."""
    w, exact = weights(name, 0, 4500, 512 // TYPES[name].block, fa.Device("cpu"))
    for rows in (1, 2, 3, 9):
        x, numbers = make(noise(rows, rows, 512), fa.float32, fa.Device("cpu"))
        assert error(linear(x, w), numbers, exact) < 1e-6
        assert explain(linear, x, w).runs == ("cpu.linear_blocks_few" if rows <= 2 else "cpu.linear_blocks")


def test_blocks_in_memory_of_others() -> None:
    """Some columns of a stack, and memory that nobody may write to."""
    w, exact = weights("Q4_K", 1, 12, 2, fa.Device("cpu"))
    raw = np.asarray(w.parts["blocks"]).reshape(3, 4, -1).copy()
    raw.flags.writeable = False
    stack = QuantTensor(w.scheme, (3, 4, 512), {"blocks": fa.asarray(raw, copy=False)})
    x, numbers = make(noise(3, 2, 512), fa.float32, fa.Device("cpu"))
    assert error(linear(x, stack[1, 1:3]), numbers, exact[5:7]) < 1e-6


def test_what_is_not_finite() -> None:
    w, exact = weights("Q4_K", 2, 3, 1, fa.Device("cpu"))
    raw = np.asarray(w.parts["blocks"]).copy()
    raw[1, :2] = np.array([0x7E00], np.uint16).view(np.uint8)  # a scale that is NaN
    got = linear(fa.ones((1, 256)), QuantTensor(w.scheme, w.shape, {"blocks": fa.asarray(raw)})).numpy()
    assert np.isnan(got[0, 1])
    np.testing.assert_allclose(got[0, ::2], exact[::2].sum(1), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("name", "number"), [("Q4_0", 0xFF), ("Q5_0", 0xFF), ("Q8_0", 0x7F), ("Q6_K", 0xFF)])
def test_infinite_scales_meet_integers_less_their_zero(name: str, number: int) -> None:
    want = -np.inf if name == "Q6_K" else np.inf  # there scales of groups are -1
    raw = np.full((1, TYPES[name].size), number, np.uint8)
    for place in HALVES[name]:
        raw[..., place : place + 2] = np.array([0x7C00], np.uint16).view(np.uint8)
    q = QuantTensor(GgufScheme(name), (1, TYPES[name].block), {"blocks": fa.asarray(raw)})
    for rows in (1, 3):
        assert linear(fa.ones((rows, TYPES[name].block)), q).tolist() == [[want]] * rows


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("rows", [1, 2, 3])
def test_infinite_inputs(name: str, rows: int) -> None:
    """What they meet is the number of a block, not its integer and its offset one after the other."""
    w, exact = weights(name, 4, 40, 512 // TYPES[name].block, fa.Device("cpu"))
    for bad in (np.inf, -np.inf, np.nan):
        values = noise(5, rows, 512)
        values[-1, 300] = bad
        with np.errstate(invalid="ignore"):
            want = bad * exact[:, 300]
        got = linear(fa.asarray(values, dtype="f32"), w).numpy()
        np.testing.assert_array_equal(got[-1], want)
        assert np.isfinite(got[:-1]).all()


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("rows", [1, 2, 9])
def test_captured_products_are_the_same(name: str, rows: int) -> None:
    """Bit for bit, with inputs of each replay, in the dtypes of inputs and results that models have."""
    w, _ = weights(name, 3, 70, 512 // TYPES[name].block, fa.Device("cpu"))
    bias = fa.asarray(noise(4, 70), dtype="f32")
    for dtype in (fa.bfloat16, fa.float32):
        first, second = (make(noise(seed, rows, 512), dtype, fa.Device("cpu"))[0] for seed in (5, 6))

        def run(x: fa.Tensor) -> tuple[fa.Tensor, fa.Tensor]:
            return linear(x, w), linear(x, w, bias, dtype=fa.float32)

        captured = fa.capture(run, first)
        for x in (first, second, first):
            for got, want in zip(captured(x), run(x), strict=True):
                assert fa.all(got == want)
