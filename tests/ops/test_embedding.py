from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ferrum_array as fa
from ferrum_ops import embedding, explain
from tests.array.oracle import to_dtype, wide
from tests.ops.oracle import floats, make, noise


@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 9),
    size=st.integers(0, 5),
    shape=st.lists(st.integers(0, 4), max_size=3),
    scale=st.sampled_from([None, 2.0, 0.3]),
    index=st.sampled_from(["i32", "i64", "u8", "u32"]),
    strided=st.booleans(),
    data=st.data(),
)
def test_rows_are_exact(
    device: fa.Device,
    seed: int,
    rows: int,
    size: int,
    shape: list[int],
    scale: float | None,
    index: str,
    strided: bool,
    data: st.DataObject,
) -> None:
    dtype = data.draw(st.sampled_from(floats(device)))
    table, exact = make(noise(seed, rows, size), dtype, device, strided=strided)
    chosen = np.random.default_rng(seed).integers(0, rows, shape)
    got = embedding(table, fa.asarray(chosen, dtype=index, device=device), scale=scale)
    assert got.dtype is dtype
    assert got.shape == (*shape, size)
    want = exact[chosen]
    if scale is not None:  # rounded once, from the product in the wider type
        kind = np.float64 if dtype is fa.float64 else np.float32
        want = wide(to_dtype(want.astype(kind) * kind(scale), dtype))
    assert (wide(got) == want).all()


@pytest.mark.parametrize("ids", [[-1], [3], [0, 2**40]])
def test_ids_outside_the_table(device: fa.Device, ids: list[int]) -> None:
    with pytest.raises(IndexError, match=r"run from .* has 3 rows"):
        embedding(fa.ones((3, 2), device=device), fa.asarray(ids, dtype="i64", device=device))


def test_ids_that_nobody_looks_at(device: fa.Device) -> None:
    table = fa.asarray([[1.0], [2.0], [3.0]], device=device)
    ids = fa.asarray([0, -5, 2, 3, 2**40], dtype="i64", device=device)
    assert embedding(table, ids, check=False)[:, 0].tolist() == [1, 1, 3, 3, 3]
    assert embedding(table, ids[:0], check=False).shape == (0, 1)
    with pytest.raises(IndexError, match="has no rows to choose from"):
        embedding(table[:0], ids, check=False)


def test_what_is_in_use_is_told() -> None:
    table, ids = fa.ones((3, 2), dtype="f16"), fa.asarray([0])
    plain, scaled = explain(embedding, table, ids), explain(embedding, table, ids, scale=2.0)
    assert (plain.op, plain.dtypes, plain.features) == ("embedding", (fa.float16,), ())
    assert scaled.features == ("scale",)


def test_as_in_torch() -> None:
    import torch

    table, ids = noise(1, 7, 5).astype(np.float32), np.asarray([[6, 0], [3, 3]])
    want = torch.nn.functional.embedding(torch.from_numpy(ids), torch.from_numpy(table))
    assert (embedding(fa.asarray(table), fa.asarray(ids)).numpy() == want.numpy()).all()


def test_bad_input_is_refused() -> None:
    table = fa.ones((3, 2))
    with pytest.raises(TypeError, match=r"integers, got float32\[1\]"):
        embedding(table, fa.asarray([0.0]))
    with pytest.raises(TypeError, match="integers, got list"):
        embedding(table, [0])  # type: ignore[arg-type]  # what is tested
    with pytest.raises(TypeError, match="real floating-point, got int64"):
        embedding(fa.ones((3, 2), dtype="i64"), fa.asarray([0]))
    with pytest.raises(ValueError, match=r"\[V, D\], got float32\[3\]"):
        embedding(fa.ones(3), fa.asarray([0]))
    with pytest.raises(ValueError, match="scale must be finite, got nan"):
        embedding(table, fa.asarray([0]), scale=fa.nan)


@pytest.mark.mlx
def test_another_device_is_refused() -> None:
    with pytest.raises(ValueError, match="embedding: ids is on device mlx:cpu but the input on cpu"):
        embedding(fa.ones((3, 2)), fa.asarray([0], device="mlx:cpu"))
