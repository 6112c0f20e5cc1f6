"""Schemes by name."""

from __future__ import annotations

import re
from collections.abc import Callable

import ferrum_array as fa
from ferrum_ops.quant.integer import IntScheme
from ferrum_ops.quant.types import Scheme

__all__ = ["scheme"]

_SCALES = {None: fa.float32, "f16": fa.float16, "bf16": fa.bfloat16}

Groups = dict[str, str | None]


def _number(text: str | None) -> int | None:
    return None if text is None else int(text)


def _int(m: Groups) -> Scheme:
    return IntScheme(int(m["bits"] or 0), _number(m["group"]), m["asym"] is None, _SCALES[m["scale"]])


#: How a family's names look, as people write them, as a pattern, and what it makes of one.
_FAMILIES: tuple[tuple[str, str, Callable[[Groups], Scheme]], ...] = (
    (
        "int8, int4-g32, int4-g64-asym-f16",
        r"int(?P<bits>\d)(-g(?P<group>\d+))?(-(?P<asym>asym))?(-(?P<scale>b?f16))?",
        _int,
    ),
)


def scheme(name: str) -> Scheme:
    """The scheme of this *name*, as ``Scheme.name`` gives it.

    * ``int8``, ``int4-g32``, ``int4-g128-asym``, ``int8-f16``: see :class:`~ferrum_ops.quant.integer.IntScheme`.

    Raises:
        ValueError: for an unknown name, with those that there are.

    Examples:
        >>> from ferrum_ops.quant.names import scheme
        >>> scheme("int4-g64-asym")
        IntScheme(bits=4, group=64, symmetric=False, scale=ferrum_array.float32)
    """
    for _, pattern, make in _FAMILIES:
        if match := re.fullmatch(pattern, name):
            return make(match.groupdict())
    raise ValueError(f"there is no scheme {name!r}; names look like {', '.join(look for look, _, _ in _FAMILIES)}")
