"""The kernels of norms."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import ferrum_array as fa
from ferrum_ops.kernels.cuda import norms
from tests.array.oracle import to_dtype, wide
from tests.ops.interpreted.drawn import HALVES, LIES, Lie, lying, poison
from tests.ops.interpreted.hopper import compiled
from tests.ops.oracle import check
from tests.ops.test_norm import exact_norm, exact_rms

SIZES = st.one_of(st.integers(0, 40), st.sampled_from([65, 96, 97, 127, 128, 129, 300, 2048, 2050]))
ROWS = st.lists(st.integers(0, 5), max_size=2).map(tuple)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=ROWS,
    size=SIZES,
    used=st.sets(st.sampled_from(["w", "offset", "residual", "gate"])),
    eps=st.sampled_from([1e-12, 1e-5, 0.1]),
    dtypes=st.tuples(*(st.sampled_from(HALVES) for _ in range(4))),
    lies=st.tuples(*(st.sampled_from(LIES) for _ in range(3))),
    longest=st.sampled_from([norms.LONGEST, 16, 256]),
    few=st.sampled_from([0, 256]),
)
@example(1, (3,), 5, {"w", "residual", "gate"}, 1e-5, (fa.float32,) * 4, ("whole", "columns", "turned"), 16, 0)
@example(1, (3,), 50, {"residual", "gate"}, 1e-5, (fa.float32,) * 4, ("turned", "gaps", "columns"), 16, 0)
@example(1, (3,), 50, {"w", "residual", "gate"}, 1e-5, (fa.float32,) * 4, ("columns", "turned", "whole"), 16, 0)
@example(1, (3,), 150, {"w", "residual", "gate"}, 1e-5, (fa.float32,) * 4, ("whole", "columns", "whole"), 256, 0)
@example(1, (3,), 300, {"w", "offset", "residual", "gate"}, 1e-5, (fa.float32,) * 4, ("gaps",) * 3, 512, 0)
def test_rms_as_the_oracle_says(
    seed: int,
    rows: tuple[int, ...],
    size: int,
    used: set[str],
    eps: float,
    dtypes: tuple[fa.Dtype, ...],
    lies: tuple[Lie, ...],
    longest: int,
    few: int,
) -> None:
    """Rows that programs hold, and rows that they pass over."""
    shape = (*rows, size)
    x, x64 = lying(seed, shape, dtypes[0], lies[0])
    w, w64 = lying(seed + 1, (size,), dtypes[1], lies[1])
    residual, r64 = lying(seed + 2, shape, dtypes[2], lies[1])
    gate, g64 = lying(seed + 3, shape, dtypes[3], lies[2], 3.0)
    offset = 1.0 if {"w", "offset"} <= used else 0.0
    with poison(norms), pytest.MonkeyPatch.context() as patch:
        patch.setattr(norms, "LONGEST", longest)
        patch.setattr(norms, "_BLOCK", 64)
        patch.setattr(norms, "_FEW", few)
        got: Any = norms.rms_norm(
            x,
            w if "w" in used else None,
            eps,
            offset,
            residual if "residual" in used else None,
            gate if "gate" in used else None,
        )
    total = x64
    if "residual" in used:
        got, summed = got
        check(summed, wide(to_dtype(x64 + r64, dtypes[2])), dtypes[2])
        total = wide(summed)
    check(got, exact_rms(total, w64 if "w" in used else None, eps, offset, g64 if "gate" in used else None), dtypes[0])


@given(
    seed=st.integers(0, 2**32 - 1),
    rows=ROWS,
    size=SIZES,
    eps=st.sampled_from([1e-12, 1e-6, 0.1]),
    dtype=st.sampled_from(HALVES),
    lie=st.sampled_from(LIES),
)
def test_l2_as_the_oracle_says(
    seed: int, rows: tuple[int, ...], size: int, eps: float, dtype: fa.Dtype, lie: Lie
) -> None:
    x, x64 = lying(seed, (*rows, size), dtype, lie)
    with poison(norms):
        got = norms.l2_norm(x, eps)
    check(got, x64 / np.sqrt((x64 * x64).sum(-1, keepdims=True) + eps), dtype)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=ROWS,
    size=SIZES.filter(lambda n: n != 1),
    used=st.sets(st.sampled_from(["w", "b", "residual"])),
    dtypes=st.tuples(*(st.sampled_from(HALVES) for _ in range(4))),
    lies=st.tuples(*(st.sampled_from(LIES) for _ in range(3))),
    longest=st.sampled_from([norms.LONGEST, 16, 256]),
    few=st.sampled_from([0, 256]),
)
@example(1, (3,), 50, {"w", "residual"}, (fa.float32,) * 4, ("whole", "columns", "turned"), 16, 0)
@example(1, (3,), 300, {"w", "b", "residual"}, (fa.float32,) * 4, ("columns", "whole", "turned"), 512, 0)
def test_layer_norm_as_the_oracle_says(
    seed: int,
    rows: tuple[int, ...],
    size: int,
    used: set[str],
    dtypes: tuple[fa.Dtype, ...],
    lies: tuple[Lie, ...],
    longest: int,
    few: int,
) -> None:
    """Far from 0, where a variance that is a difference of squares would have lost its digits."""
    shape = (*rows, size)
    x, _ = lying(seed, shape, dtypes[0], lies[0])
    x, x64 = x + 30.0, wide(x + 30.0)
    w, w64 = lying(seed + 1, (size,), dtypes[1], lies[1])
    b, b64 = lying(seed + 2, (size,), dtypes[2], lies[2])
    residual, r64 = lying(seed + 3, shape, dtypes[3], lies[1])
    with poison(norms), pytest.MonkeyPatch.context() as patch:
        patch.setattr(norms, "LONGEST", longest)
        patch.setattr(norms, "_BLOCK", 64)
        patch.setattr(norms, "_FEW", few)
        got: Any = norms.layer_norm(
            x,
            w if "w" in used else None,
            b if "b" in used else None,
            1e-5,
            residual if "residual" in used else None,
        )
    total = x64
    if "residual" in used:
        got, summed = got
        check(summed, wide(to_dtype(x64 + r64, dtypes[3])), dtypes[3])
        total = wide(summed)
    want = exact_norm(total, w64 if "w" in used else None, b64 if "b" in used else None, 1e-5) if size else total
    spread = total.std(-1).min(initial=1.0) if total.size else 1.0
    check(got, want, dtypes[0], 2e-5 / spread if dtypes[0] is fa.float32 else 2e-3)


@pytest.mark.parametrize(("rows", "size"), [(1, 4096), (3, 2880), (2, 40_000)])
def test_rows_as_models_have_them(rows: int, size: int) -> None:
    x, x64 = lying(1, (rows, size), fa.float32, "whole")
    w, w64 = lying(2, (size,), fa.float16, "whole")
    got = norms.rms_norm(x, w, 1e-6, 1.0, None, None)
    assert isinstance(got, fa.Tensor)
    check(got, exact_rms(x64, w64, 1e-6, 1.0, None), fa.float32)


def test_what_is_not_finite() -> None:
    x = fa.asarray([[fa.inf, 1.0], [fa.nan, 1.0], [0.0, 0.0], [1e30, 1e30]])
    with np.errstate(all="ignore"):  # kernels do not warn, NumPy in their place would
        got = norms.rms_norm(x, None, 0.0, 0.0, None, None)
    assert isinstance(got, fa.Tensor)
    assert fa.all(fa.isnan(got[:3]) == fa.asarray([[True, False], [True, True], [True, True]]))
    assert got[0, 1] == 0.0
    assert not fa.any(got[3])  # the squares are infinite


def test_float64_is_refused() -> None:
    x = fa.ones((2, 3))
    assert norms.no_float64(x, None, 1e-5, 0.0) is None
    assert "float64" in str(norms.no_float64(x, x[0].astype("f64"), 1e-5))


@given(size=st.integers(1, norms.LONGEST), few=st.booleans())
def test_a_program_has_powers_of_two(size: int, few: bool) -> None:
    """Its blocks hold a row, with few lanes to spare."""
    shape = norms._shape(size, few)
    assert all(n & (n - 1) == 0 for n in (shape.rows, shape.block, shape.warps))
    assert shape.block * (shape.blocks - 1) < size <= shape.block * shape.blocks
    assert shape.blocks <= 8
    assert shape.rows * shape.block >= 32 * shape.warps
    assert few or size < 512 or shape.block * shape.blocks < 1.25 * size
    assert norms._shape(2880, few)[1:3] == ((4096, 1) if few else (1024, 3))


def test_blocks_and_rows_do_not_change_a_row() -> None:
    """A row is the same alone and among others."""
    x, _ = lying(5, (20, 128), fa.float32, "whole")
    together = norms.l2_norm(x, 1e-5)
    for i, j in itertools.pairwise((0, 1, 7, 16, 20)):
        assert fa.all(together[i:j] == norms.l2_norm(x[i:j], 1e-5))


def test_code_for_hopper_moves_16_bytes_at_a_time() -> None:
    found = compiled("""
        from ferrum_ops.kernels.cuda import norms
        for dtype, sizes in ((fa.bfloat16, (128, 4096, norms.LONGEST, 40960)), (fa.float32, (2880,))):
            for size in sizes:
                x, w = fa.ones((300, size), dtype=dtype), fa.ones(size, dtype=dtype)
                norms.rms_norm(x, w, 1e-5, 1.0, x, x)
                norms.layer_norm(x, w, w, 1e-5, x)
    """)
    assert len(found) == 10
    for made in found:
        assert made.shared <= 4096
        assert not made.local
        assert made.moves - made.wide <= 2, made  # weights, which many short rows share
