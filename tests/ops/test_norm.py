from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ferrum_array as fa
from ferrum_ops import layer_norm
from tests.array.oracle import to_dtype, wide
from tests.ops.oracle import Array, check, floats, make, noise


def exact_norm(x: Array, w: Array | None, b: Array | None, eps: float) -> Array:
    y = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)
    y = y if w is None else y * w
    result: Array = y if b is None else y + b
    return result


@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.lists(st.integers(0, 4), max_size=2),
    size=st.integers(2, 40),
    weighted=st.booleans(),
    biased=st.booleans(),
    added=st.booleans(),
    eps=st.sampled_from([1e-12, 1e-5, 0.1]),
    strided=st.booleans(),
    data=st.data(),
)
def test_as_the_oracle_says(
    device: fa.Device,
    seed: int,
    rows: list[int],
    size: int,
    weighted: bool,
    biased: bool,
    added: bool,
    eps: float,
    strided: bool,
    data: st.DataObject,
) -> None:
    dtype = data.draw(st.sampled_from(floats(device)))
    x, x64 = make(noise(seed, *rows, size) + 1, dtype, device, strided=strided)
    w, w64 = make(noise(seed + 1, size), dtype, device)
    b, b64 = make(noise(seed + 2, size), dtype, device)
    residual, r64 = make(noise(seed + 3, *rows, size), dtype, device, strided=strided)
    arguments: dict[str, Any] = {"eps": eps}
    total = x64
    if added:
        total = wide(to_dtype(x64 + r64, dtype))
        arguments["residual"] = residual
    got = layer_norm(x, w if weighted else None, b if biased else None, **arguments)
    if added:
        got, summed = got
        check(summed, total, dtype)
    want = exact_norm(total, w64 if weighted else None, b64 if biased else None, eps)
    # a row whose elements nearly agree magnifies what the mean lacks
    spread = total.std(-1).min(initial=1.0) if total.size else 1.0
    check(got, want, dtype, {fa.float32: 2e-6, fa.float64: 1e-14}.get(dtype, 0.0) / min(spread, 1.0))


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16"])
def test_fused_and_composed_agree_to_the_bit(device: fa.Device, name: str) -> None:
    dtype = fa.Dtype(name)
    x, _ = make(noise(1, 5, 33), dtype, device)
    residual, _ = make(noise(2, 5, 33), dtype, device)
    w, _ = make(noise(3, 33), dtype, device)
    fused, total = layer_norm(x, w, eps=1e-5, residual=residual)
    assert fa.all(total == x + residual)
    assert fa.all(fused == layer_norm(x + residual, w, eps=1e-5))


def test_a_wider_residual_keeps_its_digits(device: fa.Device) -> None:
    x = fa.asarray([[1.0, 3.0]], dtype="bf16", device=device)
    residual = fa.asarray([[2.0**-12, 0.0]], device=device)
    _, total = layer_norm(x, eps=1e-5, residual=residual)
    assert total.dtype is fa.float32
    assert (wide(total) == [[1 + 2.0**-12, 3]]).all()


def test_a_constant_row_gives_the_bias(device: fa.Device) -> None:
    x = fa.full((2, 3), 5.0, device=device)
    got = layer_norm(x, fa.ones(3, device=device), fa.asarray([1.0, 2.0, 3.0], device=device), eps=1e-12)
    assert (wide(got) == [[1, 2, 3]] * 2).all()


def test_bad_input_is_refused() -> None:
    x = fa.ones((2, 3))
    with pytest.raises(ValueError, match=r"w must have shape \(3,\)"):
        layer_norm(x, fa.ones(2), eps=1e-5)
    with pytest.raises(ValueError, match=r"b must have shape \(3,\)"):
        layer_norm(x, None, fa.ones((1, 3)), eps=1e-5)
    with pytest.raises(ValueError, match=r"residual must have the shape of x float32\[2,3\]"):
        layer_norm(x, eps=1e-5, residual=fa.ones(3))
    for eps in (-1e-5, fa.nan, fa.inf):
        with pytest.raises(ValueError, match="eps must be finite and at least 0"):
            layer_norm(x, eps=eps)
    with pytest.raises(ValueError, match="at least one axis"):
        layer_norm(fa.asarray(1.0), eps=1e-5)
    with pytest.raises(TypeError, match="x must be real floating-point, got int64"):
        layer_norm(fa.ones(3, dtype="i64"), eps=1e-5)
