"""What a quantised matrix consists of, in words that every scheme and every kernel shares."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ferrum_array import Dtype, Tensor

__all__ = ["Layout", "Part", "Parts", "Scheme", "divided", "find_layout", "layout_names", "register_layout", "whole"]

#: The tensors of a quantised matrix, by name.
Parts = Mapping[str, Tensor]


@dataclass(frozen=True)
class Part:
    """One tensor of a quantised [N, K] matrix; in a stack [E, N, K] it has E in front.

    Attributes:
        shape: its shape, for one matrix.
        dtypes: the dtypes that it may have.
        axis: the axis, counted from the last (-1), along which the N rows lie; None if all rows share the tensor.
        per: how many rows stand together, so that they can be cut only at multiples of it.
        places: the places of that axis that so many rows take.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_ops.quant.types import Part
        >>> Part((8, 16), (fa.uint8,)).axis
        -2
    """

    shape: tuple[int, ...]
    dtypes: tuple[Dtype, ...]
    axis: int | None = -2
    per: int = 1
    places: int = 1


class Scheme(ABC):
    """How numbers are stored: which tensors there are, and what they mean.

    A scheme is a frozen dataclass; two with equal fields are one scheme. What it stores are float32 numbers, which
    ``decode`` computes.
    """

    @property
    @abstractmethod
    def kind(self) -> str:
        """The family, as features of ops name it: ``quant:<kind>``."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The scheme in one word, from which ``ferrum_ops.quant.names.scheme`` makes it again."""

    @property
    def features(self) -> tuple[str, ...]:
        """What an implementation must honour, for the registry: ``quant:<kind>`` and what goes beyond the plain."""
        return (f"quant:{self.kind}",)

    @abstractmethod
    def parts(self, n: int, k: int) -> dict[str, Part]:
        """The tensors of an [n, k] matrix in the plain layout.

        Raises:
            ValueError: if n or k cannot be divided as the scheme needs it.
        """

    @abstractmethod
    def decode(self, parts: Parts, shape: tuple[int, ...]) -> Tensor:
        """The numbers [..., N, K] in float32, of tensors in the plain layout; *shape* is theirs."""

    def encode(self, x: Tensor) -> dict[str, Tensor]:
        """The tensors for *x* [..., N, K], float32.

        Raises:
            ValueError: if numbers cannot be brought into this scheme here.
        """
        raise ValueError(f"quantize: {self.name} can be read here, but not made")

    def inputs(self, x: Tensor) -> Tensor:
        """What a product with such weights is to make of its inputs *x* [..., K], of which it is then the product.

        That is *x* itself, but for schemes which say that inputs are rounded too.
        """
        return x

    def as_integers(self, parts: Parts, shape: tuple[int, ...]) -> tuple[Scheme, dict[str, Tensor]] | None:
        """The same numbers as integers with scales in order of rows: an ``IntScheme`` and its tensors.

        None where that is not possible without changing a number.
        """
        return None


def divided(scheme: Scheme, what: str, length: int, unit: int, why: str) -> int:
    """How many times *unit* goes into *length*, the axis *what*.

    Raises:
        ValueError: naming all of them, if it does not go.
    """
    if length % unit:
        raise ValueError(f"{scheme.name}: {what} = {length} is not divisible by {unit}, {why}")
    return length // unit


class Layout(ABC):
    """Another arrangement of a scheme's tensors, for a kernel that reads them in its own order.

    ``pack`` and ``unpack`` are inverses, bit for bit: a layout never changes a number.

    Attributes:
        name: what ``repack`` calls it.

    Examples:
        A layout is a subclass, made known by :func:`register_layout`:

        >>> from ferrum_ops.quant.types import Layout
        >>> Layout.__abstractmethods__ == {"refusal", "parts", "pack", "unpack"}
        True
    """

    name: str

    @abstractmethod
    def refusal(self, scheme: Scheme, n: int, k: int) -> str | None:
        """Why the layout does not hold [n, k] matrices of *scheme*, or None if it does."""

    @abstractmethod
    def parts(self, scheme: Scheme, n: int, k: int) -> dict[str, Part]:
        """The tensors of an [n, k] matrix in this layout."""

    @abstractmethod
    def pack(self, scheme: Scheme, parts: Parts, shape: tuple[int, ...]) -> dict[str, Tensor]:
        """The tensors in this layout from those in the plain one, for numbers of *shape*, [N, K] or [E, N, K]."""

    @abstractmethod
    def unpack(self, scheme: Scheme, parts: Parts, shape: tuple[int, ...]) -> dict[str, Tensor]:
        """The inverse of ``pack``."""


_layouts: dict[str, str] = {}
_loaded: dict[str, Layout] = {}


def register_layout(name: str, load: str) -> None:
    """Make a layout known: *load* says where the :class:`Layout` is, ``module:object``; it is imported when needed.

    Raises:
        ValueError: for a name that is taken.

    Examples:
        >>> from ferrum_ops.quant.types import register_layout
        >>> register_layout("plain", "my_kernels:TILES")
        Traceback (most recent call last):
        ...
        ValueError: register_layout: there already is a layout 'plain'
    """
    if name in ("plain", "int") or name in _layouts:
        raise ValueError(f"register_layout: there already is a layout {name!r}")
    _layouts[name] = load


def layout_names() -> tuple[str, ...]:
    """The layouts that there are, ``plain`` first.

    Examples:
        >>> from ferrum_ops.quant.types import layout_names
        >>> layout_names()[0]
        'plain'
    """
    return ("plain", *sorted(_layouts))


def find_layout(name: str) -> Layout:
    """The layout of this name, which is not ``plain``.

    Raises:
        ValueError: naming the layouts that there are.
    """
    found = _loaded.get(name)
    if found is None:
        if name not in _layouts:
            raise ValueError(f"there is no layout {name!r}; the layouts are {', '.join(layout_names())}")
        module, _, attribute = _layouts[name].partition(":")
        loaded: Any = getattr(importlib.import_module(module), attribute)
        found = _loaded[name] = loaded
    return found


def whole(number: object) -> bool:
    """Whether *number* is an integer of at least 1."""
    return isinstance(number, int) and not isinstance(number, bool) and number >= 1
