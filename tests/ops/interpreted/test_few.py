"""The kernel of ``linears`` and ``gated_linear`` for weights of 4 bits and few rows, on NumPy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ferrum_array as fa
from ferrum_array import Tensor
from ferrum_ops import ActivationKind, QuantTensor, dequantize, gated_activation, quantize, use_fast_paths
from ferrum_ops.kernels.cuda import few
from ferrum_ops.kernels.cuda.few import Cut
from tests.array.oracle import wide
from tests.ops.interpreted.drawn import LIES, Lie, lying, poison
from tests.ops.interpreted.gluon_copies import stand_in
from tests.ops.interpreted.hopper import compiled
from tests.ops.oracle import check, noise

SOURCE = Path(few.__file__).parent / "source" / "few.py"
HALVES = st.sampled_from([fa.float16, fa.bfloat16])
BIASES = st.sampled_from([None, fa.float16, fa.float32])
CUTS = st.sampled_from([Cut(4, 1, 2, 2), Cut(2, 2, 3, 1), Cut(1, 4, 4, 1), Cut(1, 1, 5, 1), Cut(2, 1, 3, 2)])


@contextmanager
def on_numpy(programs: int) -> Iterator[None]:
    """Inside, kernels run on NumPy, on a device with so many multiprocessors."""
    with (
        mock.patch.object(few, "_FEW", stand_in(SOURCE, "few_int4")),
        mock.patch.object(few, "processors", return_value=programs),
        poison(few),
    ):
        yield


def weight(seed: int, columns: int, size: int, dtype: fa.Dtype) -> tuple[QuantTensor, Any]:
    """Weights of 4 bits, and the numbers that they stand for."""
    w = quantize(
        fa.asarray(noise(seed, columns, size), dtype="f32"),
        "int4-g128-f16" if dtype is fa.float16 else "int4-g128-bf16",
    )
    return w, wide(dequantize(w, dtype="f32"))


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**32 - 1),
    dtype=HALVES,
    rows=st.sampled_from([1, 3, 8, 9, 16]),
    tiles=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    fours=st.integers(1, 3),
    biased=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    wider=st.booleans(),
    exact=st.booleans(),
    lie=st.sampled_from(LIES),
    cut=CUTS,
    programs=st.integers(1, 4),
)
def test_several_products(
    seed: int, dtype: fa.Dtype, rows: int, tiles: list[int], fours: int, biased: tuple[bool, ...], wider: bool,
    exact: bool, lie: Lie, cut: Cut, programs: int,
) -> None:  # fmt: skip
    size = 512 * fours
    x, x64 = lying(seed, (rows, size), dtype, lie)
    made = [weight(seed + 1 + i, 16 * n, size, dtype) for i, n in enumerate(tiles)]
    kind = fa.float32 if wider else dtype
    offsets = [
        lying(seed + 9 + i, (16 * n,), kind, lie) if some else (None, 0.0)
        for i, (n, some) in enumerate(zip(tiles, biased, strict=False))
    ]
    out = fa.float32 if exact else dtype
    with on_numpy(programs):
        found = few.linears(x, tuple(w for w, _ in made), tuple(b for b, _ in offsets), out, cut)
    for y, (_, w64), (_, offset) in zip(found, made, offsets, strict=True):
        check(y, x64 @ w64.T + offset, out, 2e-6 if exact else 3e-3 if dtype is fa.bfloat16 else 5e-4)


@settings(max_examples=20)
@given(
    seed=st.integers(0, 2**32 - 1),
    dtype=HALVES,
    rows=st.sampled_from([1, 8, 13]),
    tiles=st.integers(1, 5),
    biases=st.tuples(st.booleans(), st.booleans()),
    kind=st.sampled_from(get_args(ActivationKind)),
    limit=st.sampled_from([None, 0.5]),
    up_offset=st.sampled_from([0.0, 1.0]),
    cut=CUTS,
    programs=st.integers(1, 4),
)
def test_a_gated_product(
    seed: int, dtype: fa.Dtype, rows: int, tiles: int, biases: tuple[bool, bool], kind: ActivationKind,
    limit: float | None, up_offset: float, cut: Cut, programs: int,
) -> None:  # fmt: skip
    x, x64 = lying(seed, (rows, 512), dtype, "whole", 0.1)
    made = [weight(seed + 1 + i, 8 * tiles, 512, dtype) for i in range(2)]
    offsets = [lying(seed + 9 + i, (8 * tiles,), dtype, "whole") if b else (None, 0.0) for i, b in enumerate(biases)]
    alpha = 1.702 if kind == "silu" and seed % 2 else 1.0
    (gate, g64), (up, u64), (b, b64), (c, c64) = *made, *offsets
    with on_numpy(programs):
        found = few.gated_linear(x, gate, up, kind, b, c, limit, alpha, up_offset, cut)
    with use_fast_paths(False):
        exact = gated_activation(
            fa.asarray(x64 @ g64.T + b64), fa.asarray(x64 @ u64.T + c64), kind,
            limit=limit, alpha=alpha, up_offset=up_offset,
        ).numpy()  # fmt: skip
    check(found, exact, dtype, 4e-3 if dtype is fa.bfloat16 else 1e-3)


@pytest.mark.parametrize("dtype", [fa.float16, fa.bfloat16])
def test_infinite_inputs_are_infinite(dtype: fa.Dtype) -> None:
    """A number of x that is infinite makes results infinite, or NaN where its weight is 0; not all of them NaN."""
    x = fa.zeros((2, 512), dtype=dtype)
    x[0, 5] = fa.inf
    w, w64 = weight(3, 16, 512, dtype)
    with on_numpy(1):
        y = wide(few.linears(x, (w,), (None,), dtype)[0])
    with np.errstate(invalid="ignore"):
        expected = np.inf * w64[:, 5]
    assert np.array_equal(y[0], expected, equal_nan=True)
    assert not y[1].any()


def test_what_is_refused() -> None:
    half = fa.float16
    x = fa.zeros((1, 512), dtype=half)
    w, _ = weight(1, 32, 512, half)
    dense = fa.zeros((32, 512), dtype=half)
    group, whole, zeros = (quantize(dense, name) for name in ("int4-g64-f16", "int8-f16", "int4-g128-asym-f16"))
    odd, _ = weight(1, 24, 512, half)
    other, _ = weight(1, 32, 512, fa.bfloat16)
    empty = quantize(dense[:, :0], "int4-g128-f16")
    short, _ = weight(1, 32, 128, half)
    reads = "reads symmetric integers of 4 bits in groups of 128, not"
    refused: list[tuple[Tensor, tuple[Tensor | QuantTensor, ...], str | None]] = [
        (x, (w,) * 4, "takes up to 3 weights"),
        (x, (w, dense), "takes quantised weights"),
        (x, (group,), f"{reads} int4-g64-f16"),
        (x, (whole,), f"{reads} int8-f16"),
        (x, (zeros,), f"{reads} int4-g128-asym-f16"),
        (x, (w, other), "takes weights of one scheme"),
        (x[:, :0], (empty,), "rows of 0 numbers do not fall into pieces for some warps"),
        (x, (w, odd), "takes weights of multiples of 16 rows, not 24"),
        (x[:, :128], (short,), "rows of 128 numbers do not fall into pieces for some warps"),
        (x[:0], (w,), "takes 1 to 16 rows"),
        (fa.zeros((17, 512), dtype=half), (w,), "takes 1 to 16 rows"),
        (x, (w,) * 3, None),
    ]
    assert few.linears_refuses(x, (w,), (None,), half) == "is made for Hopper"
    with mock.patch.object(few, "capability", return_value=90), mock.patch.object(few, "address", return_value=0):
        for inputs, ws, reason in refused:
            assert few.linears_refuses(inputs, ws, (None,) * len(ws), half) == reason
        assert few.linears_refuses(x, (w,), (None,), fa.float64) == "does not give float64"
        plain = ("silu", None, None, None, 1.0, 0.0)
        assert few.gated_linear_refuses(x, odd, odd, *plain) is None
        many = fa.zeros((few.FEWEST + 1, 512), dtype=half)
        assert few.gated_linear_refuses(many, odd, odd, *plain) == "takes 1 to 8 rows"
        with mock.patch.object(few, "address", return_value=8):
            assert "multiples of 16 bytes" in str(few.linears_refuses(x, (w,), (None,), half))


def test_compiled_code_copies_ahead_and_leaves_room_for_four_programs() -> None:
    made = compiled("""
        from ferrum_ops import quantize
        from ferrum_ops.kernels.cuda import few
        few.processors, few.empty = lambda device: 132, launch.empty
        w = quantize(fa.zeros((16, 4096), dtype="bf16"), "int4-g128-bf16")
        for rows in (1, 16):
            x = fa.zeros((rows, 4096), dtype="bf16")
            few.linears(x, (w,) * 3, (None,) * 3, fa.bfloat16)
        for kind in ("silu", "softplus"):
            few.gated_linear(x[:8], w, w, kind, None, None, None, 1.702, 1.0)
    """, looked_at=True)  # fmt: skip
    assert [code.name for code in made] == ["few_int4"] * 4
    assert [code.spilled for code in made] == [0] * 4
    assert [code.shared <= 56 * 1024 for code in made] == [True, False, True, True]
    assert all(code.shared <= 227 * 1024 for code in made)
