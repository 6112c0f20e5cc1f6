"""Maps of tensors, by which a kernel has tiles copied in bulk: made by the host, and passed like numbers.

A kernel that makes its maps itself writes each into memory, and waits until its copying unit sees it, at every start.

Source: the CUDA driver's ``cuTensorMapEncodeTiled``.
"""

from __future__ import annotations

import ctypes
from functools import cache, lru_cache
from typing import Any, Final, NamedTuple

from ferrum_array import Dtype, Tensor

__all__ = ["Layout", "Map", "kind", "numbers"]

#: the driver's numbers of dtypes
_NUMBERS: Final = {Dtype.U8: 0, Dtype.I32: 3, Dtype.F16: 6, Dtype.F32: 7, Dtype.BF16: 9}
_TYPES: Final = {Dtype.U8: "u8", Dtype.I32: "i32", Dtype.F16: "fp16", Dtype.F32: "fp32", Dtype.BF16: "bf16"}
_BYTES: Final = 128  # of a map, at an address that is a multiple of half that
_PROMOTED: Final = 2  # what is read comes in parts of 128 bytes


class Map(NamedTuple):
    """An argument of a kernel: *tensor* seen with this shape and these steps, in elements, and copied tile by tile."""

    tensor: Tensor
    shape: tuple[int, ...]
    steps: tuple[int, ...]
    tile: tuple[int, ...]


class Layout(NamedTuple):
    """How the compiler lays out a tile in shared memory: what is copied at once, and the kind of swizzle."""

    box: tuple[int, ...]
    swizzle: int


@cache
def kind(dtype: Dtype, tile: tuple[int, ...]) -> str:
    """The compiler's name for maps of such tiles."""
    from triton.experimental.gluon import language as gl

    element = {"fp16": gl.float16, "bf16": gl.bfloat16, "fp32": gl.float32, "u8": gl.uint8, "i32": gl.int32}
    name = _TYPES[dtype]
    return f"tensordesc<{name}{list(tile)},{gl.NVMMASharedLayout.get_default_for(list(tile), element[name])!r}>"


@cache
def _driver() -> Any:
    return ctypes.CDLL("libcuda.so.1").cuTensorMapEncodeTiled


@lru_cache(maxsize=4096)
def numbers(
    address: int, dtype: Dtype, shape: tuple[int, ...], steps: tuple[int, ...], layout: Layout
) -> tuple[bytes | int, ...]:
    """What a launch passes for a map: itself, the shape, and the steps, which are in elements, the last of them 1."""
    rank = len(shape)
    memory = ctypes.create_string_buffer(2 * _BYTES)
    start = -ctypes.addressof(memory) % _BYTES
    sizes = (ctypes.c_uint64 * rank)(*reversed(shape))
    strides = (ctypes.c_uint64 * (rank - 1))(*(step * dtype.itemsize for step in reversed(steps[:-1])))
    box = (ctypes.c_uint32 * rank)(*reversed(layout.box))
    every = (ctypes.c_uint32 * rank)(*(1,) * rank)
    failed = _driver()(
        *(ctypes.c_void_p(ctypes.addressof(memory) + start), ctypes.c_int(_NUMBERS[dtype]), ctypes.c_uint32(rank)),
        *(ctypes.c_void_p(address), sizes, strides, box, every),
        *(ctypes.c_int(0), ctypes.c_int(layout.swizzle), ctypes.c_int(_PROMOTED), ctypes.c_int(0)),
    )
    if failed:
        raise RuntimeError(
            f"the CUDA driver makes no map of a tensor of {dtype} with shape {shape} and steps {steps} at address "
            f"{address}, in tiles of {layout.box}: error {failed}"
        )
    return memory.raw[start : start + _BYTES], *shape, *steps
