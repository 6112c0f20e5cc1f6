"""Kernels in Triton's interpreter, on NumPy storage: their logic without a GPU.

The interpreter reads addresses and dtypes from objects that look like PyTorch's tensors. What stands here looks so,
as far as the interpreter asks.
"""

from __future__ import annotations

from typing import Any

from triton.runtime import interpreter as tritons

from ferrum_array import Tensor
from ferrum_ops.kernels.cuda.maps import Map

__all__ = ["interpret"]


class _Memory:
    """The memory of a NumPy array, which is neither moved nor copied."""

    def __init__(self, array: Any) -> None:
        self._array = array
        self.dtype = array.dtype

    def data_ptr(self) -> int:
        return int(self._array.ctypes.data)

    def untyped_storage(self) -> _Memory:
        return self

    def cpu(self) -> _Memory:
        return self

    def new_empty(self, *_: Any, **__: Any) -> _Memory:
        return _Memory(self._array)

    def set_(self, *_: Any) -> None: ...

    def copy_(self, *_: Any) -> None: ...

    def storage_offset(self) -> int:
        return 0

    def size(self) -> tuple[int, ...]:
        return tuple(self._array.shape)

    def stride(self) -> tuple[int, ...]:
        return tuple(self._array.strides)


_language = tritons._patch_lang_tensor


def _with_index(tensor: Any, scope: Any) -> None:
    """Triton's language, interpreted, with bounds of loops that NumPy 2.4 takes: a scalar is an array of one axis."""
    _language(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))


tritons._patch_lang_tensor = _with_index


def interpret(
    function: Any,
    grid: tuple[int, ...],
    arguments: tuple[Tensor | Map | float | None, ...],
    constants: dict[str, Any],
) -> None:
    """Run a program for each point of the grid, one after another."""
    ready = [_Memory(argument._data) if isinstance(argument, Tensor) else argument for argument in arguments]
    function[(*grid, 1, 1)[:3]](*ready, **constants)
