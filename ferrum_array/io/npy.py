"""The header of an array in NumPy's ``.npy`` format, versions 1 to 3.

Format: NEP 1 and the documentation of ``numpy.lib.format``: a magic string, a version, the length of
the header, and the header, a Python dictionary with the keys descr, fortran_order and shape.
"""

from __future__ import annotations

import math
import re
from typing import BinaryIO, NamedTuple

from ferrum_array.dtype import Dtype
from ferrum_array.io.files import PathLike, corrupt

__all__ = ["MAGIC", "NpyHeader", "build_npy_header", "read_npy_header"]

MAGIC = b"\x93NUMPY"
_LONGEST = 10_000  # as NumPy itself
_ALIGNMENT = 64

_KINDS = {"bool": "b", "signed integer": "i", "unsigned integer": "u", "real floating": "f", "complex floating": "c"}
#: kind and size -> dtype; bfloat16 has no name in the format and is written as uint16
_DTYPES = {f"{_KINDS[d.kind]}{d.bytes_per_elem}": d for d in Dtype.all() if d is not Dtype.BF16}

# The dictionary as NumPy writes it, in any order of keys; Python is never asked to evaluate it.
_FIELD = re.compile(
    r"""\s*(['"])(descr|fortran_order|shape)\1\s*:\s*"""
    r"""(?:(?P<quote>['"])(?P<descr>[^'"\\]*)(?P=quote)|(?P<order>True|False)|\((?P<shape>[\d\s,L]*)\))\s*(?:,|$)"""
)


class NpyHeader(NamedTuple):
    """What the header says. *size* counts the bytes before the data."""

    dtype: Dtype
    big_endian: bool
    fortran_order: bool
    shape: tuple[int, ...]
    size: int

    @property
    def nbytes(self) -> int:
        """The bytes of the data."""
        return math.prod(self.shape) * self.dtype.bytes_per_elem


def build_npy_header(dtype: Dtype, shape: tuple[int, ...]) -> bytes:
    """The bytes before the data of a C-contiguous little-endian array."""
    stored = Dtype.U16 if dtype is Dtype.BF16 else dtype
    order = "|" if stored.bytes_per_elem == 1 else "<"
    descr = f"{order}{_KINDS[stored.kind]}{stored.bytes_per_elem}"
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}"
    padding = -(len(MAGIC) + 4 + len(text) + 1) % _ALIGNMENT
    header = (text + " " * padding + "\n").encode("latin-1")
    return MAGIC + b"\x01\x00" + len(header).to_bytes(2, "little") + header


def read_npy_header(path: PathLike, name: str, file: BinaryIO) -> NpyHeader:
    """The header at the start of *file*, the member *name* of the archive *path*.

    Raises:
        ValueError: naming archive, member and offence, for Python objects and other types without a Dtype too.
    """
    where = f"member {name!r:.80}"
    start = file.read(len(MAGIC) + 2)
    if start[:-2] != MAGIC:
        raise corrupt(path, f"{where} begins with {start[:6]!r}: no array in NumPy's format")
    major = start[len(MAGIC)]
    if start[-2:] not in (b"\x01\x00", b"\x02\x00", b"\x03\x00"):
        raise corrupt(path, f"{where} has version {major}.{start[-1]} of NumPy's format; known are 1.0, 2.0 and 3.0")
    width = 2 if major == 1 else 4
    length = int.from_bytes(file.read(width), "little")
    if length > _LONGEST:
        raise corrupt(path, f"{where} claims a header of {length} bytes; up to {_LONGEST} are read")
    data = file.read(length)
    if len(data) != length:
        raise corrupt(path, f"{where} ends within its header")
    try:
        text = data.decode("utf-8" if major == 3 else "latin-1").strip()
    except UnicodeDecodeError:
        raise corrupt(path, f"{where}: the header is not UTF-8") from None
    found = _fields(text)
    if found is None:
        raise corrupt(path, f"{where}: {text!r:.160} is not a header of NumPy's format that describes plain numbers")
    descr, fortran_order, shape = found
    dtype = _DTYPES.get(descr[1:])
    if dtype is None or descr[0] not in "<>|=" or (descr[0] == "|" and dtype.bytes_per_elem > 1):
        raise corrupt(
            path, f"{where} holds {_meaning(descr)} (descr {descr!r:.60}), not numbers that a tensor can hold"
        )
    if len(shape) > 64 or math.prod(max(n, 1) for n in shape) >= 1 << 60:
        raise corrupt(path, f"{where}: the shape {shape!r:.80} is larger than any memory")
    size = len(start) + width + length
    return NpyHeader(dtype, descr[0] == ">", fortran_order, shape, size)


def _fields(text: str) -> tuple[str, bool, tuple[int, ...]] | None:
    if not (text.startswith("{") and text.endswith("}")):
        return None
    body = text[1:-1].strip()
    found: dict[str, re.Match[str]] = {}
    place = 0
    while place < len(body):
        match = _FIELD.match(body, place)
        if match is None or match[2] in found:
            return None
        found[match[2]] = match
        place = match.end()
    if len(found) != 3:
        return None
    descr, order, lengths = found["descr"]["descr"], found["fortran_order"]["order"], found["shape"]["shape"]
    if not descr or order is None or lengths is None:
        return None
    parts = [part.strip().removesuffix("L") for part in lengths.split(",")]
    if parts[-1] == "" and (len(parts) > 1 or not lengths.strip()):
        parts.pop()  # the comma after the last, or ()
    elif len(parts) == 1:
        return None  # a number in brackets is no tuple
    if not all(part.isascii() and part.isdecimal() and len(part) < 20 for part in parts):
        return None
    return descr, order == "True", tuple(map(int, parts))


def _meaning(descr: str) -> str:
    if "O" in descr:
        return "pickled Python objects, which are never loaded"
    kinds = {"U": "text", "S": "bytes", "a": "bytes", "M": "dates", "m": "durations", "V": "raw records"}
    return kinds.get(descr[1:2], "elements of an unknown type")
