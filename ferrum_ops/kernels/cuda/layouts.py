"""How the elements of a tensor lie, in steps of elements, as kernels take them."""

from __future__ import annotations

from ferrum_array import Tensor
from ferrum_array.tensor import wrap

__all__ = ["flat", "heads", "in_order", "rows"]


def in_order(x: Tensor) -> Tensor:
    """*x* in C order and without gaps: itself, or a copy."""
    return x if x._data.flags.c_contiguous else wrap(x._data.copy("C"), x._spec)


def rows(x: Tensor) -> tuple[Tensor, int]:
    """*x* [..., D], and how many elements lie from one row to the next.

    A slice such as ``h[..., :n]`` stays where it is; what has gaps within its rows, or no one step, is copied.
    """
    data = x._data
    shape = data.shape
    if data.flags.c_contiguous:
        return x, shape[-1] if shape else 1
    step = None if len(shape) == 1 else _step(shape, data.strides, data.itemsize, 1)
    return (in_order(x), shape[-1]) if step is None else (x, step)


def flat(*tensors: Tensor) -> bool:
    """Whether all of them lie in C order without gaps, so that rows do not matter."""
    return all(x._data.flags.c_contiguous for x in tensors)


def heads(x: Tensor) -> tuple[Tensor, int, int]:
    """*x* [..., T, H, D], and how many elements lie from token to token and from head to head; as with ``rows``."""
    data = x._data
    shape = data.shape
    if not data.flags.c_contiguous:
        between = data.strides[-2]
        step = _step(shape, data.strides, data.itemsize, 2)
        if step is not None and between % data.itemsize == 0:
            return x, step, between // data.itemsize
        x = in_order(x)
    return x, shape[-2] * shape[-1], shape[-1]


def _step(shape: tuple[int, ...], strides: tuple[int, ...], item: int, inner: int) -> int | None:
    """How many elements lie from one to the next of the blocks that the last axes make, if always the same number."""
    outer = len(shape) - inner
    if strides[-1] != item or strides[outer - 1] % item:
        return None
    for axis in range(outer - 1):
        if strides[axis] != strides[axis + 1] * shape[axis + 1]:
            return None
    return strides[outer - 1] // item
