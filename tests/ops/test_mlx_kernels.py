"""MLX's fused functions do what the references do, wherever their rows say that they run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ferrum_array as fa
from ferrum_ops import (
    SequenceMeta,
    attention,
    explain,
    layer_norm,
    rms_norm,
    rope_table,
    use_fast_paths,
)
from tests.array.oracle import wide
from tests.ops.oracle import TOLERANCE, check, distance, make, noise
from tests.ops.test_attention import Case, cases, exact_attention

pytestmark = pytest.mark.mlx

DTYPES = (fa.float32, fa.float16, fa.bfloat16)


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


# Attention.


@st.composite
def calls(draw: st.DrawFn) -> Case:
    """Calls of attention that the row covers."""
    case = draw(cases(fa.Device("mlx:gpu")))
    case.options["softcap"] = None
    return case


@given(case=calls())
def test_attention(mlx: fa.Device, case: Case) -> None:
    q, q64 = make(case.q, case.dtype, mlx, strided=case.strided)
    k, k64 = make(case.k, case.dtype, mlx, strided=case.strided)
    v, v64 = make(case.v, case.dtype, mlx, strided=case.strided)
    options, exact = dict(case.options), dict(case.options)
    for name in ("sinks", "bias"):
        if options.get(name) is not None:
            options[name], exact[name] = make(options[name], fa.float32, mlx)
    queries, keys = case.q.shape[-3], case.k.shape[-3]
    left = not (q.size and k.size and v.size) or (options["causal"] and queries > keys)
    assert explain(attention, q, k, v, **options).runs == ("reference" if left else "mlx.sdpa")
    if not left:
        want, _ = exact_attention(q64, k64, v64, **exact)
        # a result may be the small mean of large values
        small = max(np.abs(want).max(), 1e-30) / np.abs(v64).max()
        check(attention(q, k, v, **options), want, case.dtype, max(TOLERANCE[case.dtype], 2e-6 / small))


@pytest.mark.parametrize("dim", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("queries", [1, 3, 20])
@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16"])
def test_attention_of_the_sizes_that_gpus_fuse(mlx: fa.Device, dim: int, queries: int, name: str) -> None:
    dtype, keys, heads, key_heads = fa.Dtype(name), 37, 4, 2
    q, q64 = make(noise(1, 2, queries, heads, dim) * 3, dtype, mlx)
    k, k64 = make(noise(2, 2, keys, key_heads, dim) * 3, dtype, mlx)
    v, v64 = make(noise(3, 2, keys, key_heads, dim), dtype, mlx)
    sinks, s64 = make(noise(4, heads), dtype, mlx)
    hidden = np.where(np.random.default_rng(5).random((queries, keys)) < 0.5, -np.inf, 0.0)
    hidden[-1] = -np.inf
    bias, b64 = make(hidden, dtype, mlx)
    for more, exact in (
        ({}, {}),
        ({"causal": False}, {"causal": False}),
        ({"window": 5}, {"window": 5}),
        ({"sinks": sinks}, {"sinks": s64}),
        ({"bias": bias}, {"bias": b64}),
        ({"bias": bias, "sinks": sinks, "window": 30}, {"bias": b64, "sinks": s64, "window": 30}),
    ):
        assert explain(attention, q, k, v, **more).runs == "mlx.sdpa"
        got = attention(q, k, v, **more)
        want, _ = exact_attention(q64, k64, v64, **exact)
        check(got, want, dtype, 4e-6 if dtype is fa.float32 else 0.0)
        assert (wide(got)[:, -1] == 0).all() == ("bias" in more)


def test_what_attention_leaves_to_the_reference(mlx: fa.Device) -> None:
    q, k = fa.ones((3, 2, 4), device=mlx), fa.ones((2, 1, 4), device=mlx)

    def reason(q: fa.Tensor, k: fa.Tensor, **more: Any) -> str:
        told = explain(attention, q, k, k, **more)
        assert told.runs == "reference", told
        return told.others[0][1]

    assert reason(k, k, softcap=2.0) == "does not cover softcap"
    assert reason(k, k, return_lse=True) == "does not cover lse"
    assert reason(k, k, meta=SequenceMeta.packed([2])) == "does not cover meta"
    assert reason(q, k) == "takes at most as many queries as keys where they are causal, got 3 and 2"
    assert reason(q[:0], k) == "takes at least one query, key and value"
    long = fa.broadcast_to(k[:1], (20000, 1, 4))
    assert "scores or entries of a mask" in reason(long, long)
    if mlx.supports(fa.float64):
        assert reason(k.astype("f64"), k.astype("f64")) == "does not take float64"
    assert explain(attention, q, k, k, causal=False).runs == "mlx.sdpa"


# Rotation.


def test_why_rope_has_no_row() -> None:
    """MLX's function makes its own angles, and not as exactly as a table is: the reason why it has no row."""
    import mlx.core as mx

    x = mx.ones((1, 1, 1, 64))
    got = np.array(mx.fast.rope(x, 64, traditional=False, base=1e4, scale=1.0, offset=999_983))[0, 0, 0, :32]
    cos, sin = (wide(table)[0] for table in rope_table([999_983], 64, 1e4))
    assert np.abs(got - (cos - sin)).max() > 1e-3
