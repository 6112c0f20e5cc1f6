"""Schemes by name."""

from __future__ import annotations

import re
from collections.abc import Callable

from ferrum_ops.quant.awq import AwqScheme
from ferrum_ops.quant.fp8 import Fp8Scheme
from ferrum_ops.quant.gguf import TYPES, GgufScheme
from ferrum_ops.quant.gptq import GptqScheme
from ferrum_ops.quant.integer import SCALES, IntScheme
from ferrum_ops.quant.mlx import MlxScheme
from ferrum_ops.quant.mxfp4 import Mxfp4Scheme
from ferrum_ops.quant.types import Scheme

__all__ = ["scheme"]

Found = dict[str, str | None]

#: what a name says of its scales -> their dtype
_SCALES = {suffix: dtype for dtype, suffix in SCALES.items()}


def _number(text: str | None) -> int | None:
    return None if text is None else int(text)


def _int(m: Found) -> Scheme:
    activations = None if m["inputs"] is None else 8
    return IntScheme(
        int(m["bits"] or 0), _number(m["group"]), m["asym"] is None, _SCALES[m["scale"] or ""], activations
    )


def _gptq(m: Found) -> Scheme:
    return GptqScheme(int(m["bits"] or 0), _number(m["group"]), 2 if m["version"] else 1, m["order"] is not None)


def _mlx(m: Found) -> Scheme:
    return MlxScheme(int(m["bits"] or 0), int(m["group"] or 0), _SCALES[m["scale"] or ""])


def _gguf(m: Found) -> Scheme:
    return GgufScheme("MXFP4" if m["mxfp4"] else (m["type"] or "").upper())


def _fp8(m: Found) -> Scheme:
    block = None if m["rows"] is None else (int(m["rows"]), int(m["columns"] or 0))
    return Fp8Scheme(m["format"] or "", block)


_GROUP, _SCALE = r"(-g(?P<group>\d+))", r"(?P<scale>-b?f16)?"

#: Names of a family, the pattern of all, and what makes the scheme.
_FAMILIES: tuple[tuple[str, str, Callable[[Found], Scheme]], ...] = (
    (
        "int8, int8-a8, int4-g32, int4-g128-asym, int4-g64-f16",
        rf"int(?P<bits>\d){_GROUP}?(?P<asym>-asym)?(?P<inputs>-a8)?{_SCALE}",
        _int,
    ),
    ("gptq4-g128, gptq4-g32-v2-order", rf"gptq(?P<bits>\d){_GROUP}?(?P<version>-v2)?(?P<order>-order)?", _gptq),
    ("awq4-g128", rf"awq4{_GROUP}?", lambda m: AwqScheme(_number(m["group"]))),
    (
        ", ".join(kind.lower() for kind in TYPES if kind != "MXFP4") + ", gguf_mxfp4",
        rf"(?P<type>(?i:{'|'.join(kind for kind in TYPES if kind != 'MXFP4')}))|(?P<mxfp4>gguf_mxfp4)",
        _gguf,
    ),
    ("mxfp4", "mxfp4", lambda m: Mxfp4Scheme()),
    ("fp8_e4m3, fp8_e5m2-b128x128", r"fp8_(?P<format>e4m3|e5m2)(-b(?P<rows>\d+)x(?P<columns>\d+))?", _fp8),
    ("mlx4-g64, mlx8-g32-bf16", rf"mlx(?P<bits>\d){_GROUP}{_SCALE}", _mlx),
)


def scheme(name: str) -> Scheme:
    """The scheme of this *name*, as ``Scheme.name`` gives it.

    * ``int8``, ``int8-a8``, ``int4-g32``, ``int4-g128-asym``, ``int4-g64-f16``:
      :class:`~ferrum_ops.quant.integer.IntScheme`.
    * ``gptq4-g128``, ``gptq4-g32-v2-order``: :class:`~ferrum_ops.quant.gptq.GptqScheme`.
    * ``awq4-g128``: :class:`~ferrum_ops.quant.awq.AwqScheme`.
    * ``q4_0`` to ``q8_0``, ``q2_k`` to ``q6_k``, ``gguf_mxfp4``: :class:`~ferrum_ops.quant.gguf.GgufScheme`.
    * ``mxfp4``: :class:`~ferrum_ops.quant.mxfp4.Mxfp4Scheme`.
    * ``fp8_e4m3``, ``fp8_e5m2-b128x128``: :class:`~ferrum_ops.quant.fp8.Fp8Scheme`.
    * ``mlx4-g64``, ``mlx8-g32-bf16``: :class:`~ferrum_ops.quant.mlx.MlxScheme`.

    Raises:
        ValueError: for an unknown name, with those that there are, and what the scheme refuses.
        TypeError: for a name that is no text.

    Examples:
        >>> from ferrum_ops.quant.names import scheme
        >>> scheme("gptq4-g128-order")
        GptqScheme(bits=4, group=128, version=1, ordered=True)
    """
    if not isinstance(name, str):
        raise TypeError(f"scheme: name must be a str, got {type(name).__name__} {name!r:.60}")
    for _, pattern, make in _FAMILIES:
        if match := re.fullmatch(pattern, name):
            return make(match.groupdict())
    raise ValueError(f"there is no scheme {name!r}; names look like {', '.join(names for names, _, _ in _FAMILIES)}")
