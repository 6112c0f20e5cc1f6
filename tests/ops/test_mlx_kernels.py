"""MLX's fused functions do what the references do, wherever their rows say that they run."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ferrum_array as fa
from ferrum_ops import explain, grouped_linear, layer_norm, rms_norm, rope_table, use_fast_paths
from tests.array.oracle import wide
from tests.ops.oracle import TOLERANCE, Array, distance, make, noise

pytestmark = pytest.mark.mlx

DTYPES = (fa.float32, fa.float16, fa.bfloat16)


@pytest.fixture(scope="module", params=["mlx:cpu", "mlx:gpu"])
def mlx(request: pytest.FixtureRequest) -> fa.Device:
    """MLX's CPU, and its GPU or the rehearsal of one."""
    return fa.Device(request.param)


def both(runs: str, op: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What the row *runs* gives, which must be as near to the reference as the dtype allows."""
    told = explain(op, *args, **kwargs)
    assert told.runs == runs, told
    got = op(*args, **kwargs)
    with use_fast_paths(False):
        want = op(*args, **kwargs)
    for one, other in zip(*(found if isinstance(found, tuple) else (found,) for found in (got, want)), strict=True):
        same(one, other)
    return got


def same(got: fa.Tensor, want: fa.Tensor) -> None:
    """Two tensors of one dtype, shape and device, near each other."""
    assert (got.dtype, got.shape, got.device) == (want.dtype, want.shape, want.device)
    found = distance(wide(got), wide(want), fa.finfo(got.dtype).smallest_normal)
    # both may be off by the tolerance, in opposite directions
    assert found <= 2 * TOLERANCE[got.dtype], f"relative distance {found:.3g}"


def test_a_difference_is_found() -> None:
    x = fa.ones((2, 3), device="mlx:cpu")
    with pytest.raises(AssertionError, match="relative distance"):
        same(x * 1.0001, x)
    with pytest.raises(AssertionError, match="reference"):
        both("mlx.rms_norm", rms_norm, x, eps=1e-5, gate=x)


# Norms.


@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.lists(st.integers(1, 4), max_size=3),
    size=st.integers(1, 80),
    weighted=st.booleans(),
    offset=st.sampled_from([0.0, 1.0]),
    added=st.booleans(),
    eps=st.sampled_from([1e-12, 1e-5, 0.1]),
    spread=st.sampled_from([1e-2, 1.0, 100.0]),
    strided=st.booleans(),
    dtype=st.sampled_from(DTYPES),
)
def test_rms_norm(
    mlx: fa.Device,
    seed: int,
    rows: list[int],
    size: int,
    weighted: bool,
    offset: float,
    added: bool,
    eps: float,
    spread: float,
    strided: bool,
    dtype: fa.Dtype,
) -> None:
    x, _ = make(noise(seed, *rows, size) * spread, dtype, mlx, strided=strided)
    w = make(noise(seed + 1, size), dtype, mlx)[0] if weighted else None
    more: dict[str, Any] = {"residual": make(noise(seed + 2, *rows, size), dtype, mlx)[0]} if added else {}
    both("mlx.rms_norm", rms_norm, x, w, eps=eps, offset=offset if weighted else 0.0, **more)


@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.lists(st.integers(1, 4), max_size=3),
    size=st.integers(2, 80),
    weighted=st.booleans(),
    biased=st.booleans(),
    added=st.booleans(),
    eps=st.sampled_from([1e-5, 0.1]),
    strided=st.booleans(),
    dtype=st.sampled_from(DTYPES),
)
def test_layer_norm(
    mlx: fa.Device,
    seed: int,
    rows: list[int],
    size: int,
    weighted: bool,
    biased: bool,
    added: bool,
    eps: float,
    strided: bool,
    dtype: fa.Dtype,
) -> None:
    # far from each other, so that the mean takes no digits away
    x, _ = make(noise(seed, *rows, size) + np.arange(size) % 2 * 4, dtype, mlx, strided=strided)
    w, b = (make(noise(seed + i, size), dtype, mlx)[0] if use else None for i, use in ((1, weighted), (2, biased)))
    more: dict[str, Any] = {"residual": make(noise(seed + 3, *rows, size), dtype, mlx)[0]} if added else {}
    both("mlx.layer_norm", layer_norm, x, w, b, eps=eps, **more)


def test_what_norms_leave_to_the_reference(mlx: fa.Device) -> None:
    x = fa.ones((2, 3), device=mlx)
    w = fa.ones(3, dtype="bf16", device=mlx)

    def reason(op: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
        told = explain(op, *args, eps=1e-5, **kwargs)
        assert told.runs == "reference", told
        return told.others[0][1]

    assert reason(rms_norm, x, gate=x) == "does not cover gate"
    assert reason(rms_norm, x, w) == "does not cover mixed"
    assert reason(layer_norm, x, None, w) == "does not cover mixed"
    for op in (rms_norm, layer_norm):
        assert reason(op, x[:0]) == "takes at least one element"
        if mlx.supports(fa.float64):
            assert reason(op, x.astype("f64")) == "does not take float64"


# Experts.


@given(
    seed=st.integers(0, 2**32 - 1),
    counts=st.lists(st.integers(0, 5), min_size=1, max_size=6).filter(any),
    beyond=st.integers(0, 2),
    inner=st.integers(1, 9),
    outer=st.integers(1, 9),
    biased=st.booleans(),
    strided=st.booleans(),
)
def test_grouped_linear(
    mlx: fa.Device, seed: int, counts: list[int], beyond: int, inner: int, outer: int, biased: bool, strided: bool
) -> None:
    experts = len(counts)
    x, x64 = make(noise(seed, sum(counts) + beyond, inner), fa.float32, mlx, strided=strided)
    w, w64 = make(noise(seed + 1, experts, outer, inner), fa.float32, mlx, strided=strided)
    bias, b64 = make(noise(seed + 2, experts, outer), fa.float32, mlx)
    bounds = np.concatenate([[0], np.cumsum(counts)])
    got = grouped_linear(x, w, fa.asarray(bounds, device=mlx), bias if biased else None)
    assert explain(grouped_linear, x, w, fa.asarray(bounds, device=mlx), bias).runs == "mlx.gather_mm"
    want: Array = np.zeros((sum(counts) + beyond, outer))
    for e, (start, stop) in enumerate(pairwise(bounds)):
        want[start:stop] = x64[start:stop] @ w64[e].T + (b64[e] if biased else 0.0)
    # sums of products may cancel
    room = 4e-7 * (inner + 1) * (np.abs(x64).max() * np.abs(w64).max() + 4)
    np.testing.assert_allclose(wide(got), want, atol=room)
    assert (wide(got)[sum(counts) :] == 0).all()


def test_what_grouped_linear_leaves_to_the_reference(mlx: fa.Device) -> None:
    offsets = fa.asarray([0, 1, 2], device=mlx)
    x, w = fa.ones((2, 3), device=mlx), fa.ones((2, 4, 3), device=mlx)
    told = explain(grouped_linear, x.astype("bf16"), w.astype("bf16"), offsets)
    assert told.runs == ("reference" if mlx.index == "cpu" or not has_gpu() else "mlx.gather_mm")
    assert explain(grouped_linear, x[:0], w, fa.asarray([0, 0, 0], device=mlx)).runs == "reference"


def has_gpu() -> bool:
    import mlx.core as mx

    return bool(mx.is_available(mx.gpu))


# Rotation.


def test_why_rope_has_no_row() -> None:
    """MLX's function makes its own angles, and not as exactly as a table is: the reason why it has no row."""
    import mlx.core as mx

    x = mx.ones((1, 1, 1, 64))
    got = np.array(mx.fast.rope(x, 64, traditional=False, base=1e4, scale=1.0, offset=999_983))[0, 0, 0, :32]
    cos, sin = (wide(table)[0] for table in rope_table([999_983], 64, 1e4))
    assert np.abs(got - (cos - sin)).max() > 1e-3
