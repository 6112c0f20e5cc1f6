from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ferrum_array as fa
from ferrum_ops import explain, linear, lora_delta
from tests.array.oracle import wide
from tests.ops.oracle import Array, check, floats, make, noise

# Two products after another in float32: the numbers in between add their roundings.
TOLERANCE = {fa.float32: 2e-6}


def exact(x: Array, A: Array, B: Array, scale: Any) -> Array:
    result: Array = scale * np.einsum("...k,rk,nr->...n", x, A, B)
    return result


@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.lists(st.integers(0, 4), max_size=3),
    sizes=st.tuples(st.integers(0, 20), st.integers(0, 5), st.integers(0, 20)),
    scale=st.sampled_from([1.0, 0.25, -3.0, 0.0]),
    strided=st.booleans(),
    data=st.data(),
)
def test_one_adapter(
    device: fa.Device,
    seed: int,
    rows: list[int],
    sizes: tuple[int, int, int],
    scale: float,
    strided: bool,
    data: st.DataObject,
) -> None:
    dtype = data.draw(st.sampled_from(floats(device)))
    n, r, k = sizes
    x, x64 = make(noise(seed, *rows, k), dtype, device, strided=strided)
    A, a64 = make(noise(seed + 1, r, k), dtype, device, strided=strided)
    B, b64 = make(noise(seed + 2, n, r), dtype, device, strided=strided)
    check(lora_delta(x, A, B, scale), exact(x64, a64, b64, scale), dtype, TOLERANCE.get(dtype, 0.0))


@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.lists(st.integers(0, 4), min_size=1, max_size=3),
    sizes=st.tuples(st.integers(1, 20), st.integers(0, 5), st.integers(1, 20)),
    adapters=st.integers(0, 5),
    scales=st.booleans(),
    index=st.sampled_from(["i32", "i64", "i8"]),
    strided=st.booleans(),
    data=st.data(),
)
def test_many_adapters_are_one_for_each_row(
    device: fa.Device,
    seed: int,
    rows: list[int],
    sizes: tuple[int, int, int],
    adapters: int,
    scales: bool,
    index: str,
    strided: bool,
    data: st.DataObject,
) -> None:
    dtype = data.draw(st.sampled_from(floats(device)))
    leading = data.draw(st.integers(0, len(rows)))
    n, r, k = sizes
    x, x64 = make(noise(seed, *rows, k), dtype, device, strided=strided)
    A, a64 = make(noise(seed + 1, adapters, r, k), dtype, device, strided=strided)
    B, b64 = make(noise(seed + 2, adapters, n, r), dtype, device, strided=strided)
    scale, s64 = make(noise(seed + 3, adapters), fa.float32, device)
    ids = np.random.default_rng(seed).integers(-1, adapters, rows[:leading])
    got = lora_delta(x, A, B, scale if scales else 0.5, fa.asarray(ids, dtype=index, device=device))
    want = np.zeros((*rows, n))
    for place in np.ndindex(*rows):
        e = int(ids[place[:leading]])
        if e >= 0:
            want[place] = exact(x64[place], a64[e], b64[e], s64[e] if scales else 0.5)
    check(got, want, dtype, TOLERANCE.get(dtype, 0.0))


def test_the_change_of_a_layer_is_that_of_its_weights(device: fa.Device) -> None:
    x, x64 = make(noise(1, 7, 12), fa.float32, device)
    w, w64 = make(noise(2, 9, 12), fa.float32, device)
    A, a64 = make(noise(3, 4, 12), fa.float32, device)
    B, b64 = make(noise(4, 9, 4), fa.float32, device)
    check(linear(x, w) + lora_delta(x, A, B, 0.5), x64 @ (w64 + 0.5 * b64 @ a64).T, fa.float32)


def test_what_is_between_the_products_is_not_rounded(device: fa.Device) -> None:
    # 1 + 2**-10 has no place in bfloat16, and is needed twice
    x = fa.asarray([[1.0, 2.0**-10]], dtype="bf16", device=device)
    A = fa.ones((1, 2), dtype="bf16", device=device)
    both = fa.asarray([[1.0, 1.0], [1.0, 0.0]], dtype="bf16", device=device)
    B = fa.asarray([[1.0, -1.0]], dtype="bf16", device=device)
    assert lora_delta(x, both, B, 1.0).tolist() == [[2.0**-10]]
    assert lora_delta(x, A, fa.ones((1, 1), dtype="bf16", device=device), 1.0).tolist() == [[1.0]]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_adapter_touches_its_own_rows_only(device: fa.Device, bad: float) -> None:
    x = fa.ones((3, 4), device=device)
    A, B = fa.ones((2, 2, 4), device=device), fa.ones((2, 5, 2), device=device)
    A[1], B[1] = bad, bad
    got = wide(lora_delta(x, A, B, 1.0, fa.asarray([0, 1, -1], device=device)))
    assert (got[0] == 8).all()
    assert not np.isfinite(got[1]).any()
    assert (got[2] == 0).all()


@pytest.mark.parametrize("ids", [[-2, 0, 0], [0, 2, 0]])
def test_ids_of_no_adapter(device: fa.Device, ids: list[int]) -> None:
    x, A, B = (fa.ones(shape, device=device) for shape in ((3, 4), (2, 1, 4), (2, 5, 1)))
    with pytest.raises(IndexError, match=r"adapter_ids run from .* holds 2 adapters"):
        lora_delta(x, A, B, 1.0, fa.asarray(ids, device=device))


def test_what_is_in_use_is_told() -> None:
    x, A, B = fa.ones((3, 4)), fa.ones((2, 1, 4)), fa.ones((2, 5, 1))
    assert explain(lora_delta, x, A[0], B[0], 1.0).features == ()
    assert explain(lora_delta, x, A[0], B[0], fa.asarray(1.0)).features == ("scales",)
    assert explain(lora_delta, x, A, B, 1.0, fa.asarray([0, 1, 0])).features == ("adapter_ids",)


def test_bad_input_is_refused() -> None:
    x, A, B, ids = fa.ones((3, 4)), fa.ones((1, 4)), fa.ones((5, 1)), fa.asarray([0, 0, 0])
    with pytest.raises(TypeError, match="A must be real floating-point, got int64"):
        lora_delta(x, A.astype("i64"), B, 1.0)
    with pytest.raises(TypeError, match="B is float16"):
        lora_delta(x, A, B.astype("f16"), 1.0)
    with pytest.raises(ValueError, match=r"without adapter_ids the operands are .*float32\[1,1,4\]"):
        lora_delta(x, A.reshape(1, 1, 4), B, 1.0)
    with pytest.raises(ValueError, match=r"with adapter_ids the operands are .*A \[E, R, K\]"):
        lora_delta(x, A, B, 1.0, ids)
    with pytest.raises(ValueError, match="x and A must share K"):
        lora_delta(fa.ones((3, 3)), A, B, 1.0)
    with pytest.raises(ValueError, match="A and B must share R"):
        lora_delta(x, A, fa.ones((5, 2)), 1.0)
    with pytest.raises(ValueError, match="the number of adapters"):
        lora_delta(x, fa.ones((2, 1, 4)), fa.ones((3, 5, 1)), 1.0, ids)
    with pytest.raises(ValueError, match="scale must be finite, got nan"):
        lora_delta(x, A, B, math.nan)
    with pytest.raises(ValueError, match=r"scale must have shape \(1,\) .*, got float32\[2\]"):
        lora_delta(x, A.reshape(1, 1, 4), B.reshape(1, 5, 1), fa.ones(2), ids)
    with pytest.raises(TypeError, match="adapter_ids must be a Tensor of integers, got list"):
        lora_delta(x, A.reshape(1, 1, 4), B.reshape(1, 5, 1), 1.0, [0, 0, 0])  # type: ignore[arg-type]  # what is tested
    for shape in ((2,), (3, 4), (1, 3)):
        with pytest.raises(ValueError, match="adapter_ids must have the leading axes of x"):
            lora_delta(x, A.reshape(1, 1, 4), B.reshape(1, 5, 1), 1.0, fa.zeros(shape, dtype="i64"))


@pytest.mark.mlx
def test_other_devices_are_refused() -> None:
    x, A, B = fa.ones((3, 4)), fa.ones((1, 4)), fa.ones((5, 1))
    with pytest.raises(ValueError, match="lora_delta: B is on device mlx:cpu but the input on cpu"):
        lora_delta(x, A, B.to_device("mlx:cpu"), 1.0)
