"""The element types of GGUF files: those that can be read, and the names of the others."""

from __future__ import annotations

from dataclasses import dataclass

import ferrum_array as fa
from ferrum_array import Dtype
from ferrum_ops.quant.gguf import TYPES, GgufScheme
from ferrum_ops.quant.types import Scheme

__all__ = ["ELEMENTS", "Element", "named"]


@dataclass(frozen=True)
class Element:
    """One type of elements.

    Attributes:
        name: GGUF's.
        block: how many numbers are stored together.
        size: the bytes of a block.
        dtype: of numbers that are stored as they are.
        scheme: of those that are not.
    """

    name: str
    block: int
    size: int
    dtype: Dtype | None = None
    scheme: Scheme | None = None


#: the numbers of all types in files (ggml.h, ``enum ggml_type``)
_NUMBERS = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K",
    12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
    20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
    29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4", 41: "Q1_0",
}  # fmt: skip

_DENSE = {"F32": fa.float32, "F16": fa.float16, "BF16": fa.bfloat16}


def _known() -> dict[int, Element]:
    found = {}
    for number, name in _NUMBERS.items():
        if name in _DENSE:
            found[number] = Element(name, 1, _DENSE[name].bits // 8, dtype=_DENSE[name])
        elif name in TYPES:
            found[number] = Element(name, TYPES[name].block, TYPES[name].size, scheme=GgufScheme(name))
    return found


#: the types that can be read, by their numbers in files
ELEMENTS = _known()


def named(number: int) -> str:
    """What the type of this *number* is called, for errors.

    Examples:
        >>> from ferrum_models.gguf.types import named
        >>> named(23), named(99)
        ('IQ4_XS', 'number 99')
    """
    return _NUMBERS.get(number, f"number {number}")
