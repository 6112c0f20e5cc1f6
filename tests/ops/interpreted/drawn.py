"""What tests of kernels on rows share: tensors that lie in many ways, and memory that shows what was not written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Literal
from unittest import mock

import ferrum_array as fa
from ferrum_ops.kernels.cuda import launch
from tests.array.oracle import wide
from tests.ops.oracle import Array, noise

Lie = Literal["whole", "columns", "gaps", "backwards", "turned"]
LIES: tuple[Lie, ...] = ("whole", "columns", "gaps", "backwards", "turned")
HALVES = (fa.float32, fa.float16)


def lying(seed: int, shape: tuple[int, ...], dtype: fa.Dtype, lie: Lie, spread: float = 1.0) -> tuple[fa.Tensor, Array]:
    """Normal numbers of this shape, and what they are in float64.

    They lie without gaps; as columns of something wider, which holds NaN beside them; with NaN in between; from the
    last row to the first; or with the axes in another order.
    """
    x = fa.asarray(noise(seed, *shape) * spread, dtype=dtype, device="cpu")
    if not shape or lie == "whole":
        return x, wide(x)
    blank = fa.full_like(x, fa.nan)
    if lie == "columns":
        y = fa.concat([blank, x, blank], axis=-1)[..., shape[-1] : 2 * shape[-1]]
    elif lie == "gaps":
        y = fa.stack([x, blank], axis=-1).reshape((*shape[:-1], 2 * shape[-1]))[..., ::2]
    elif lie == "backwards":
        y = fa.flip(x, axis=0)[::-1]
    else:
        axes = tuple(range(len(shape)))
        y = fa.permute_dims(fa.permute_dims(x, axes[::-1]) + 0.0, axes[::-1])
    assert wide(y).shape == wide(x).shape
    return y, wide(x)


@contextmanager
def poison(module: ModuleType) -> Iterator[None]:
    """Inside, the module's kernels write into memory full of NaN."""

    def empty(shape: tuple[int, ...], like: fa.Tensor, dtype: fa.Dtype | None = None) -> fa.Tensor:
        out = launch.empty(shape, like, dtype)
        out[...] = fa.nan
        return out

    with mock.patch.object(module, "empty", empty):
        yield
