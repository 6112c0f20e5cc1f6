"""The kernels of ``linear``, ``linears`` and ``gated_linear`` for dense weights and few rows."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ferrum_array as fa
from ferrum_array import Tensor
from ferrum_ops import ActivationKind, QuantTensor, gated_activation, quantize, use_fast_paths
from ferrum_ops.kernels.cuda import dense
from ferrum_ops.kernels.cuda.gemm import Shape
from tests.ops.interpreted.drawn import LIES, Lie, lying, poison
from tests.ops.oracle import check, noise

SHAPES = (None, Shape(8, 1, 1), Shape(16, 4, 4), Shape(32, 2, 1))
GIVEN = st.sampled_from([0, 1, 2, 8, 9, 16])
SIZE = st.sampled_from([0, 1, 7, 32, 100, 256, 300, 1024, 1100])
BIASES = st.sampled_from([None, fa.float16, fa.float32])


@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=GIVEN,
    columns=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    size=SIZE,
    biases=st.tuples(BIASES, BIASES, BIASES),
    out=st.sampled_from([fa.float16, fa.float32]),
    lie=st.sampled_from(LIES),
    apart=st.booleans(),
    shape=st.sampled_from(SHAPES),
)
def test_several_products(
    seed: int,
    rows: int,
    columns: list[int],
    size: int,
    biases: tuple[fa.Dtype | None, ...],
    out: fa.Dtype,
    lie: Lie,
    apart: bool,
    shape: Shape | None,
) -> None:
    x, x64 = lying(seed, (rows, size), fa.float16, lie)
    made = [lying(seed + 1 + i, (n, size + 8 * i * apart), fa.float16, "whole") for i, n in enumerate(columns)]
    ws = tuple(w[:, :size] for w, _ in made)
    offsets = [
        None if kind is None else lying(seed + 9 + i, (n,), kind, lie)
        for i, (n, kind) in enumerate(zip(columns, biases, strict=False))
    ]
    given_biases = tuple(None if one is None else one[0] for one in offsets)
    with poison(dense):
        found = dense.linears(x, ws, given_biases, out, shape)
    for y, (_, w64), offset in zip(found, made, offsets, strict=True):
        exact = x64 @ w64[:, :size].T + (0.0 if offset is None else offset[1])
        check(y, exact, out, 1e-3 if out is fa.float16 else 3e-6)


@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=GIVEN,
    columns=st.integers(0, 40),
    size=SIZE,
    biases=st.tuples(BIASES, BIASES),
    kind=st.sampled_from(get_args(ActivationKind)),
    limit=st.sampled_from([None, 0.5]),
    up_offset=st.sampled_from([0.0, 1.0]),
    apart=st.booleans(),
    shape=st.sampled_from((None, Shape(16, 4, 2), Shape(32, 1, 1))),
)
def test_a_gated_product(
    seed: int,
    rows: int,
    columns: int,
    size: int,
    biases: tuple[fa.Dtype | None, fa.Dtype | None],
    kind: ActivationKind,
    limit: float | None,
    up_offset: float,
    apart: bool,
    shape: Shape | None,
) -> None:
    x, x64 = lying(seed, (rows, size), fa.float16, "whole")
    # sums of about 1, whatever the size: products of two must not leave float16
    spread = max(1, size) ** -0.5
    made = [lying(seed + 1 + i, (columns, size + 8 * i * apart), fa.float16, "whole", spread) for i in range(2)]
    gate, up = (w[:, :size] for w, _ in made)
    offsets = [None if one is None else lying(seed + 9 + i, (columns,), one, "whole") for i, one in enumerate(biases)]
    b, c = (None if one is None else one[0] for one in offsets)
    alpha = 1.702 if kind == "silu" and seed % 2 else 1.0
    with poison(dense), np.errstate(over="ignore"):  # powers of two beyond float32 are infinite on purpose
        found = dense.gated_linear(x, gate, up, kind, b, c, limit, alpha, up_offset, shape)
    opened, passed = (
        fa.asarray(x64 @ w64[:, :size].T + (0.0 if offset is None else offset[1]))
        for (_, w64), offset in zip(made, offsets, strict=True)
    )
    with use_fast_paths(False):
        exact = gated_activation(opened, passed, kind, limit=limit, alpha=alpha, up_offset=up_offset)
    check(found, exact.numpy(), fa.float16, 2e-3)


@pytest.mark.parametrize("programs", range(6))
def test_a_program_writes_nothing_but_its_own_columns(programs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 20, 8 and 30 columns in tiles of 16: two tiles, one, and two."""
    tiles = [(0, range(16)), (0, range(16, 20)), (1, range(8)), (2, range(16)), (2, range(16, 30))]
    whole = dense._LINEARS

    def some(grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
        assert grid == (5,)
        whole((programs,), *arguments, **constants)

    monkeypatch.setattr(dense, "_LINEARS", some)
    x = fa.asarray(noise(1, 3, 64), dtype="f16")
    ws = tuple(fa.asarray(noise(2, n, 64), dtype="f16") for n in (20, 8, 30))
    with poison(dense):
        found = dense.linears(x, ws, (None,) * 3, fa.float32, Shape(16, 2, 1))
    written = [np.zeros(n, bool) for n in (20, 8, 30)]
    for which, columns in tiles[:programs]:
        written[which][list(columns)] = True
    for y, there in zip(found, written, strict=True):
        assert np.array_equal(~np.isnan(y.numpy()), np.broadcast_to(there, y.shape))


def test_what_is_refused() -> None:
    half = fa.float16
    x, w = fa.zeros((1, 64), dtype=half), fa.zeros((32, 64), dtype=half)
    many, turned = fa.zeros((dense.FEW + 1, 64), dtype=half), fa.zeros((64, 32), dtype=half).T
    refused: list[tuple[Tensor, tuple[Tensor | QuantTensor, ...], str | None]] = [
        (x, (w,) * 4, "takes up to 3 weights"),
        (x, (w, w[:0]), "takes weights that have rows"),
        (x, (w, quantize(w, "int8")), "takes dense weights"),
        (x, (w, turned), "the rows of w have gaps"),
        (x[:, :60], (fa.zeros((32, 68), dtype=half)[:, :60],), "the rows of w are not at multiples of 16 bytes"),
        (x[:, :56], (fa.zeros((32, 64), dtype=half)[:, 1:57],), "the rows of w are not at multiples of 16 bytes"),
        (x[:, :60], (w[:, :60],), None),
        (many, (w,), f"takes up to {dense.FEW} rows"),
        (x, (w,) * 3, None),
    ]
    for inputs, ws, reason in refused:
        assert dense.linears_refuses(inputs, ws, (None,) * len(ws), half) == reason
    assert dense.linears_refuses(x, (w,), (None,), fa.float64) == "does not give float64"
    wide = fa.zeros((2048, 64), dtype=half)
    for inputs, one, reason in (
        (many[: dense.FEWEST + 1], wide, f"takes up to {dense.FEWEST} rows"),
        (x, wide[1:], "takes weights of at least 2048 rows"),
        (many[: dense.FEWEST], wide, None),
    ):
        assert dense.linear_refuses(inputs, one, None, half) == reason
    for gate, up, reason in ((w, turned, "the rows of w have gaps"), (w, w, None)):
        assert dense.gated_linear_refuses(x, gate, up, "silu", None, None, None, 1.0, 0.0) == reason
