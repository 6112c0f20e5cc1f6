from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ferrum_array as fa
from ferrum_ops import linear
from tests.array.oracle import wide
from tests.ops.oracle import TOLERANCE, check, floats, make, noise


@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.lists(st.integers(0, 5), max_size=3),
    inner=st.integers(0, 40),
    outer=st.integers(0, 20),
    biased=st.booleans(),
    strided=st.booleans(),
    data=st.data(),
)
def test_as_the_oracle_says(
    device: fa.Device,
    seed: int,
    rows: list[int],
    inner: int,
    outer: int,
    biased: bool,
    strided: bool,
    data: st.DataObject,
) -> None:
    dtype = data.draw(st.sampled_from(floats(device)))
    out = data.draw(st.sampled_from([None, *floats(device)]))
    x, x64 = make(noise(seed, *rows, inner), dtype, device, strided=strided)
    w, w64 = make(noise(seed + 1, outer, inner), dtype, device, strided=strided)
    bias, b64 = make(noise(seed + 2, outer), dtype, device)
    want = x64 @ w64.T + (b64 if biased else 0.0)
    got = linear(x, w, bias if biased else None, dtype=out)
    result = dtype if out is None else out
    check(got, want, result, max(TOLERANCE[result], 4e-6 if dtype is not fa.float64 else 1e-14))


def test_one_rounding(device: fa.Device) -> None:
    """The bias is added before the sum is rounded: 2048 + 1 + 1 needs more than a float16 holds."""
    x = fa.asarray([[2048.0, 1.0]], dtype="f16", device=device)
    got = linear(x, fa.ones((1, 2), dtype="f16", device=device), fa.ones(1, dtype="f16", device=device))
    assert got.dtype is fa.float16
    assert got.item() == 2050.0
    exact = linear(x, fa.ones((1, 2), dtype="f16", device=device), dtype="f32")
    assert exact.item() == 2049.0


def test_a_float32_bias_goes_with_16_bit_weights(device: fa.Device) -> None:
    x = fa.ones((1, 2), dtype="bf16", device=device)
    w = fa.ones((3, 2), dtype="bf16", device=device)
    got = linear(x, w, fa.asarray([0.0, 1.0, 2.0], device=device))
    assert got.dtype is fa.bfloat16
    assert (wide(got) == [[2, 3, 4]]).all()


def test_batched_is_as_one_by_one(device: fa.Device) -> None:
    x, _ = make(noise(3, 7, 33), fa.float32, device)
    w, _ = make(noise(4, 9, 33), fa.float32, device)
    single = np.stack([wide(linear(x[i], w)) for i in range(7)])
    check(linear(x, w), single, fa.float32)


def test_same_input_twice_gives_the_same_bits(device: fa.Device) -> None:
    x, _ = make(noise(5, 30, 33), fa.float32, device)
    w, _ = make(noise(6, 9, 33), fa.float32, device)
    assert fa.all(linear(x, w) == linear(x, w))


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((2, 3), (4, 2), None), r"share K, got float32\[2,3\] and float32\[4,2\]"),
        (((2, 3), (3,), None), "share K"),
        (((), (3, 1), None), "share K"),
        (((2, 3), (4, 3), (3,)), r"bias must have shape \(4,\)"),
        (((2, 3), (4, 3), (1, 4)), r"bias must have shape \(4,\)"),
    ],
)
def test_shapes_that_do_not_fit(
    shapes: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...] | None], message: str
) -> None:
    x, w, bias = (None if shape is None else fa.ones(shape) for shape in shapes)
    assert x is not None
    assert w is not None
    with pytest.raises(ValueError, match=message):
        linear(x, w, bias)


def test_dtypes_that_do_not_fit() -> None:
    x, w = fa.ones((2, 3)), fa.ones((4, 3))
    with pytest.raises(TypeError, match=r"w is float16\[4,3\] but the input is float32\[2,3\]"):
        linear(x, w.astype("f16"))
    with pytest.raises(TypeError, match="real floating-point, got int64"):
        linear(x.astype("i64"), w.astype("i64"))
    with pytest.raises(TypeError, match="dtype must be real floating-point, got int32"):
        linear(x, w, dtype="i32")
    with pytest.raises(TypeError, match="bias"):
        linear(x.astype("bf16"), w.astype("bf16"), fa.ones(4, dtype="f16"))


@pytest.mark.mlx
def test_devices_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"w is on device mlx:cpu but the input on cpu"):
        linear(fa.ones((2, 3)), fa.ones((4, 3), device="mlx:cpu"))
