"""Libraries that must be told of tensors: they are, when both packages are imported, in either order.

einops finds backends among the subclasses of a class of its own; dask joins chunks by a function that is registered for
their type. What is imported already is told at once, what comes later right after its import. Neither is imported from
here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from ferrum_array.conversion import asarray
from ferrum_array.creation import arange
from ferrum_array.einsum import einsum
from ferrum_array.manipulation import concat, expand_dims, permute_dims, stack, tile
from ferrum_array.tensor import Tensor

__all__ = ["open_doors"]

_made: list[type] = []  # einops looks for subclasses, which nobody else would keep alive


def open_doors() -> None:
    """Tell other libraries of tensors, now or when they are imported."""
    for name, tell in (("einops._backends", _tell_einops), ("dask.array.backends", _tell_dask)):
        if name in sys.modules:
            tell(sys.modules[name])
        else:
            sys.meta_path.insert(0, _Watch(name, tell))


class _Watch:
    """A finder of modules that waits for one and finds nothing itself."""

    def __init__(self, name: str, tell: Callable[[ModuleType], None]) -> None:
        self.name, self.tell = name, tell

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        if fullname != self.name:
            return None
        import importlib.util

        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def then_tell(module: ModuleType) -> None:
                load(module)
                self.tell(module)

            vars(spec.loader)["exec_module"] = then_tell  # of this one loader
        return spec


def _tell_dask(module: ModuleType) -> None:
    def joined(arrays: Sequence[Tensor], axis: int = 0) -> Tensor:
        return concat(list(arrays), axis=axis)

    module.concatenate_lookup.register(Tensor, joined)


def _tell_einops(module: ModuleType) -> None:
    base: Any = module.AbstractBackend

    class FerrumBackend(base):  # type: ignore[misc]  # the base is einops' own class, known when it is imported
        """What einops asks of a library of tensors, in functions of the standard."""

        framework_name = "ferrum_array"

        def is_appropriate_type(self, tensor: object) -> bool:
            return isinstance(tensor, Tensor)

        def from_numpy(self, x: Any) -> Tensor:
            return asarray(x)

        def to_numpy(self, x: Tensor) -> Any:
            return x.numpy()

        def arange(self, start: int, stop: int) -> Tensor:
            return arange(start, stop)

        def transpose(self, x: Tensor, axes: Sequence[int]) -> Tensor:
            return permute_dims(x, tuple(axes))

        def reduce(self, x: Tensor, operation: str, axes: Sequence[int]) -> Tensor:
            function = getattr(sys.modules["ferrum_array"], operation)
            result: Tensor = function(x, axis=tuple(axes))
            return result

        def stack_on_zeroth_dimension(self, tensors: list[Tensor]) -> Tensor:
            return stack(tensors)

        def add_axis(self, x: Tensor, new_position: int) -> Tensor:
            return expand_dims(x, axis=new_position)

        def tile(self, x: Tensor, repeats: Sequence[int]) -> Tensor:
            return tile(x, tuple(repeats))

        def concat(self, tensors: Sequence[Tensor], axis: int) -> Tensor:
            return concat(tensors, axis=axis)

        def is_float_type(self, x: Tensor) -> bool:
            return x.dtype.is_floating or x.dtype.is_complex

        def einsum(self, pattern: str, *x: Tensor) -> Tensor:
            return einsum(pattern, *x)

    _made.append(FerrumBackend)
