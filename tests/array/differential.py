"""One differential test for all functions: ours on drawn tensors beside NumPy's on their float64 values.

A row names a function, what is called, what NumPy says, and the domain: the dtypes, the range of
the numbers, the shapes, and how far results may be off. Chapters of the namespace state their rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import ferrum_array as fa
from ferrum_array.testing import shapes
from tests.array.oracle import FLOATS, check, moderate, on, to_numpy, wide


def same(dtype: fa.Dtype) -> fa.Dtype:
    """The result has the dtype of the operand."""
    return dtype


def floating(dtype: fa.Dtype) -> fa.Dtype:
    """Integers and booleans give the default float."""
    return dtype if dtype.is_floating or dtype.is_complex else fa.float32


def real(dtype: fa.Dtype) -> fa.Dtype:
    """The real dtype of the same precision."""
    return floating(dtype).real


def summed(dtype: fa.Dtype) -> fa.Dtype:
    """What sums have: 64 bits for integers."""
    if dtype.kind == "unsigned integer":
        return fa.uint64
    return fa.int64 if dtype.kind in ("bool", "signed integer") else dtype


def always(dtype: fa.Dtype) -> Callable[[fa.Dtype], fa.Dtype]:
    """One dtype, whatever the operand."""
    return lambda _: dtype


@dataclass(frozen=True)
class Row:
    """A function, its reference, and where they must agree."""

    name: str
    call: Callable[[fa.Tensor], Any]
    reference: Callable[[Any], Any]
    result: Callable[[fa.Dtype], fa.Dtype] = same
    dtypes: tuple[fa.Dtype, ...] = FLOATS
    low: int = -50
    high: int = 50
    shape: Any = field(default_factory=lambda: shapes(max_dims=3, max_side=4))
    ulps: float = 8
    atol: float = 0  # in units of the dtype's eps

    def __repr__(self) -> str:
        return self.name


def agree(row: Row, device: fa.Device) -> None:
    """Draw tensors of the row's domain and compare; several results are compared one by one."""

    @settings(max_examples=max(1, settings.default.max_examples // 2))
    @given(st.data())
    def property_(data: st.DataObject) -> None:
        dtype = data.draw(st.sampled_from(on(device, row.dtypes)))
        result = row.result(dtype)
        if not device.supports(result):
            return
        x = data.draw(moderate(dtype, row.shape, device=device, low=row.low, high=row.high))
        before = to_numpy(x)
        values = wide(before)
        if result.is_floating and values.dtype.kind in "biu":
            values = values.astype(np.float64)
        with np.errstate(all="ignore"):
            wanted = row.reference(values)
        found = row.call(x)
        if not isinstance(found, tuple):
            found, wanted = (found,), (wanted,)
        for ours, theirs in zip(found, wanted, strict=True):
            if result.is_floating or result.is_complex:
                eps = fa.finfo(result).eps
                # float16 and bfloat16 are computed in float32: one rounding is left
                ulps = 1 if dtype in (fa.float16, fa.bfloat16) else row.ulps
                check(ours, theirs, result, ulps=ulps, atol=row.atol * eps, device=device)
            else:
                check(ours, theirs, result, device=device)
        assert np.array_equal(to_numpy(x), before, equal_nan=dtype.is_floating)

    property_()
