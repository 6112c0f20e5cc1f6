"""What a layer is: a frozen dataclass, and the tree that layers make.

A field holds a tensor (dense or quantised), another layer, a tuple of layers, None, or a setting. The names of the
fields are those of the checkpoints, so that the path of a tensor in the tree is its name on disk.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from html import escape
from typing import Any, Self, TypeVar, dataclass_transform

import ferrum_array as fa
from ferrum_array import Device, Dtype, Tensor
from ferrum_ops import QuantTensor

__all__ = ["Module", "Parameter", "layer"]

Parameter = Tensor | QuantTensor
#: what a leaf of the tree is
_LEAF = (Tensor, QuantTensor)
_C = TypeVar("_C")


@dataclass_transform(frozen_default=True, eq_default=False)
def layer(cls: type[_C]) -> type[_C]:
    """Make *cls* a layer: a frozen dataclass that is compared by identity and printed as a tree.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_models.layers import Module, layer
        >>> @layer
        ... class Scale(Module):
        ...     weight: fa.Tensor
        ...     def __call__(self, x):
        ...         return x * self.weight
        >>> Scale(fa.ones(4))
        Scale(weight=f32[4])
    """
    return dataclasses.dataclass(frozen=True, eq=False, repr=False)(cls)


class Module:
    """The base of all layers; decorate subclasses with :func:`layer`.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_models.layers import Linear
        >>> model = Linear(fa.ones((2, 3)))
        >>> [name for name, _ in model.named_parameters()], model.size
        (['weight'], 6)
        >>> model.to(dtype="bf16")
        Linear(weight=bf16[2,3])
    """

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Parameter]]:
        """Each tensor of the tree with its path, in the order of the fields; shared ones appear once for each path."""
        for name, value in _fields(self):
            for path, one in _items(name, value):
                if isinstance(one, Module):
                    yield from one.named_parameters(f"{prefix}{path}.")
                elif isinstance(one, _LEAF):
                    yield prefix + path, one

    def modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """Each layer of the tree with its path, parents first; the path of the root is empty."""
        yield prefix.removesuffix("."), self
        for name, value in _fields(self):
            for path, one in _items(name, value):
                if isinstance(one, Module):
                    yield from one.modules(f"{prefix}{path}.")

    @property
    def size(self) -> int:
        """How many numbers the tree holds; a tensor that appears twice counts once."""
        return sum(math.prod(one.shape) for one in self._distinct())

    @property
    def nbytes(self) -> int:
        """The bytes of these numbers as they are stored."""
        return sum(one.nbytes for one in self._distinct())

    def _distinct(self) -> list[Parameter]:
        return list({id(one): one for _, one in self.named_parameters()}.values())

    def map(self, function: Callable[[str, Parameter], Parameter], prefix: str = "") -> Self:
        """The same tree with ``function(path, tensor)`` in place of each tensor; what is shared stays shared."""
        return self._mapped(function, prefix, {})

    def _mapped(self, function: Callable[[str, Parameter], Parameter], prefix: str, done: dict[int, Parameter]) -> Self:
        def one(path: str, value: Any) -> Any:
            if isinstance(value, Module):
                return value._mapped(function, f"{path}.", done)
            if isinstance(value, tuple) and any(isinstance(item, (Module, *_LEAF)) for item in value):
                return tuple(one(f"{path}.{number}", item) for number, item in enumerate(value))
            if isinstance(value, _LEAF):
                if id(value) not in done:
                    done[id(value)] = function(path, value)
                return done[id(value)]
            return value

        changes = {name: one(prefix + name, value) for name, value in _fields(self)}
        return dataclasses.replace(self, **changes)  # type: ignore[type-var] # subclasses are dataclasses: see layer

    def map_layers(self, function: Callable[[str, Module], Module], prefix: str = "") -> Self:
        """The same tree with ``function(path, layer)`` in place of each layer below this one, inner ones first."""

        def one(path: str, value: Any) -> Any:
            if isinstance(value, Module):
                return function(path, value.map_layers(function, f"{path}."))
            if isinstance(value, tuple) and any(isinstance(item, Module) for item in value):
                return tuple(one(f"{path}.{number}", item) for number, item in enumerate(value))
            return value

        changes = {name: one(prefix + name, value) for name, value in _fields(self)}
        return dataclasses.replace(self, **changes)  # type: ignore[type-var] # subclasses are dataclasses: see layer

    def to(self, device: Device | str | None = None, dtype: Dtype | str | None = None) -> Self:
        """The same tree on *device*, its floating tensors in *dtype*; quantised weights keep their codes.

        Raises:
            TypeError: for a dtype that is not real floating-point, or that the device does not have.
        """
        wanted = None if dtype is None else Dtype(dtype)
        if wanted is not None and not wanted.is_floating:
            raise TypeError(f"to: weights are real floating-point numbers, got dtype {wanted}")
        place = None if device is None else Device(device)

        def moved(path: str, value: Parameter) -> Parameter:
            if place is not None:
                value = value.to_device(place)
            if wanted is None or not value.dtype.is_floating:
                return value
            if isinstance(value, QuantTensor):
                return dataclasses.replace(value, dtype=wanted)
            return value.astype(wanted, copy=False)

        return self.map(moved)

    @property
    def device(self) -> Device:
        """Where the first tensor lies."""
        return self._first().device

    @property
    def dtype(self) -> Dtype:
        """The dtype of the first floating tensor: what the tree computes in."""
        return self._first().dtype

    def _first(self) -> Parameter:
        for _, value in self.named_parameters():
            if value.dtype.is_floating:
                return value
        raise ValueError(f"{type(self).__name__} has no floating tensor, so it has no device and no dtype")

    def save(self, path: Any, metadata: dict[str, str] | None = None) -> None:
        """Write the tensors of the tree to a safetensors file, under their paths.

        Raises:
            ValueError: if a weight is quantised.
        """
        tensors: dict[str, Tensor] = {}
        for name, value in self.named_parameters():
            if isinstance(value, QuantTensor):
                raise ValueError(f"save: {name} is {value!r}; only dense weights are written here")
            tensors[name] = value
        # other libraries refuse a file without this entry
        fa.io.save_safetensors(tensors, path, metadata={"format": "pt", **(metadata or {})})

    def __repr__(self) -> str:
        return "\n".join(_tree(self))

    def _repr_html_(self) -> str:
        """For notebooks: the tree, whose branches open and close."""
        return f'<div style="font-family: monospace; white-space: pre; overflow-x: auto">{_branches(_tree(self))}</div>'


def _fields(module: Module, *, shown: bool = False) -> Iterator[tuple[str, Any]]:
    for one in dataclasses.fields(module):  # type: ignore[arg-type] # subclasses are dataclasses: see layer
        if one.repr or not shown:
            yield one.name, getattr(module, one.name)


def _items(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, tuple):
        for number, item in enumerate(value):
            yield from _items(f"{name}.{number}", item)
    else:
        yield name, value


def _short(value: Parameter) -> str:
    kind = value.dtype.name if isinstance(value, Tensor) else value.scheme.name
    return f"{kind}[{','.join(map(str, value.shape))}]"


def _inline(module: Module) -> str:
    parts = []
    for name, value in _fields(module, shown=True):
        if isinstance(value, _LEAF):
            parts.append(f"{name}={_short(value)}")
        elif value is not None and value is not False:
            parts.append(f"{name}={value!r}")
    return f"{type(module).__name__}({', '.join(parts)})"


def _tree(module: Module) -> list[str]:
    """Lines: leaves on one line each, repeated layers of a tuple once, with their number."""
    children = [(n, v) for n, v in _fields(module, shown=True) if isinstance(v, Module) or _is_stack(v)]
    if not children:
        return [_inline(module)]
    own = [
        f"{name}={_short(value) if isinstance(value, _LEAF) else repr(value)}"
        for name, value in _fields(module, shown=True)
        if not (isinstance(value, Module) or _is_stack(value) or value is None or value is False)
        and not dataclasses.is_dataclass(value)
    ]
    lines = [f"{type(module).__name__}({', '.join(own)})"]
    for name, value in children:
        for label, child in _runs(name, value) if isinstance(value, tuple) else [(name, _tree(value))]:
            lines.append(f"  {label}: {child[0]}")
            lines += [f"  {line}" for line in child[1:]]
    return lines


def _branches(lines: list[str]) -> str:
    """The lines of a tree as HTML: a line with others under it is what is seen of them while they are closed."""
    first, rest = lines[0], lines[1:]
    if not rest:
        return f"<div>{escape(first)}</div>"
    parts: list[list[str]] = []
    for line in rest:
        if line.startswith("    "):  # below the part that began last
            parts[-1].append(line[2:])
        else:
            parts.append([line[2:]])
    inner = "".join(_branches(part) for part in parts)
    return f'<details open><summary>{escape(first)}</summary><div style="margin-left: 2ch">{inner}</div></details>'


def _is_stack(value: Any) -> bool:
    return isinstance(value, tuple) and bool(value) and all(isinstance(item, Module) for item in value)


def _runs(name: str, stack: tuple[Module, ...]) -> list[tuple[str, list[str]]]:
    found: list[tuple[int, int, list[str]]] = []
    for number, item in enumerate(stack):
        lines = _tree(item)
        if found and found[-1][2] == lines:
            found[-1] = (found[-1][0], number, lines)
        else:
            found.append((number, number, lines))
    return [(f"{name}.{a}" if a == b else f"{name}.{a}-{b}", lines) for a, b, lines in found]
