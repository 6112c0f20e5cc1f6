"""Reading GGUF files (versions 2 and 3): what they say, checked before any of it is believed.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. A header (magic, version, numbers of tensors and of
entries), the entries (key, type, value), what is said of each tensor (name, lengths of its axes, the fastest first,
type, offset), padding, and the data. Everything is little-endian here.
"""

from __future__ import annotations

import mmap
import os
import struct
import sys
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any, overload

import ferrum_array as fa
from ferrum_array import Tensor
from ferrum_array.io import CorruptFileError
from ferrum_models.gguf.types import ELEMENTS, Element, named
from ferrum_ops import QuantTensor

__all__ = ["GgufFile", "GgufTensor", "Strings"]

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_ALIGNMENT = 32
_AXES = 4
#: the longest key and the longest name; the format allows 65535 bytes and 64
_KEY, _NAME = 65535, 255
#: the fewest bytes of an entry, and of what is said of a tensor
_LEAST_ENTRY, _LEAST_TENSOR = 13, 32

#: numbers of value types -> their codes in ``struct``
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_BOOL, _STRING, _ARRAY = 7, 8, 9
#: unsigned types, whose values are lengths and counts
_WORD, _LONG = struct.Struct("<I"), struct.Struct("<Q")


class Strings(Sequence[str]):
    """The texts of an array, decoded when they are asked for.

    Attributes:
        where: the file and the entry, for errors.
    """

    __slots__ = ("_data", "_starts", "where")

    def __init__(self, data: memoryview, starts: array[int], where: str) -> None:
        self._data = data
        self._starts = starts
        self.where = where

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...

    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return Strings(self._data, self._starts[index], self.where)
        start = self._starts[index]
        (length,) = _LONG.unpack_from(self._data, start)
        return _decoded(self._data[start + 8 : start + 8 + length], self.where)

    def __repr__(self) -> str:
        return f"<{len(self)} texts of {self.where}>"


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """What a file says of one tensor.

    Attributes:
        name: in the file.
        element: the type of its elements.
        shape: the length of each axis, the fastest last.
        start: where its bytes begin, counted from the file's first.
    """

    name: str
    element: Element
    shape: tuple[int, ...]
    start: int

    @property
    def nbytes(self) -> int:
        """The bytes that its elements take."""
        return prod(self.shape) // self.element.block * self.element.size

    def __repr__(self) -> str:
        return f"GgufTensor({self.name!r}, {self.element.name}[{','.join(map(str, self.shape))}])"


class GgufFile:
    """An open GGUF file: its entries, and its tensors, which stay in the file until they are used.

    Opening reads and checks all that is said before the data, and nothing is allocated that the file's own length does
    not bound. Tensors share the memory map; what is written to them goes to copies.

    Args:
        path: the file.

    Attributes:
        path: the file.
        entries: the metadata by key: numbers, booleans, texts, and arrays of these.
        tensors: what is said of each tensor, by name.

    Raises:
        OSError: if the file cannot be opened. ferrum_array.io.CorruptFileError: a ``ValueError``, naming the file and
        what is wrong in it: another magic or version, counts and lengths beyond the file, keys or names that stand
        twice, nested arrays, unknown types of values or tensors, offsets that are not aligned or lie outside.

    Examples:
        >>> import os, tempfile
        >>> from ferrum_models.gguf import GgufFile
        >>> path = os.path.join(tempfile.mkdtemp(), "model.gguf")
        >>> with open(path, "wb") as file:
        ...     _ = file.write(b"GGUF" + (3).to_bytes(4, "little") + bytes(16))
        >>> GgufFile(path)
        <GgufFile ..., 0 tensors, 0 entries>
        >>> with open(path, "wb") as file:
        ...     _ = file.write(b"ZIPF")
        >>> GgufFile(path)
        Traceback (most recent call last):
        ...
        ferrum_array.io.CorruptFileError: ...model.gguf: it begins with b'ZIPF', not with b'GGUF': no GGUF file
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        if sys.byteorder != "little":
            raise NotImplementedError("GGUF files are read where bytes stand in little-endian order")
        self.path = Path(path)
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(len(_MAGIC))
            if start != _MAGIC:
                raise CorruptFileError(f"{path}: it begins with {start!r}, not with {_MAGIC!r}: no GGUF file")
            # private pages: what is written through an exported array never reaches the file
            self._map = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY)
        data = memoryview(self._map)
        cursor = _Cursor(str(path), data)
        tensors, entries = _header(cursor)
        self.entries: Mapping[str, Any] = MappingProxyType(_entries(cursor, entries))
        self.tensors: Mapping[str, GgufTensor] = MappingProxyType(_tensors(cursor, tensors, self.entries))
        self._data = data

    def raw(self, name: str) -> Tensor:
        """The tensor *name* on the CPU as it lies in the file: its numbers, or the bytes of its blocks [..., bytes].

        Raises:
            KeyError: if there is no such tensor.
        """
        info = self.tensors.get(name)
        if info is None:
            raise KeyError(f"{self.path} has no tensor {name!r}; it has {len(self.tensors)}")
        element, shape = info.element, info.shape
        found = fa.asarray(self._data[info.start : info.start + info.nbytes], copy=False, device="cpu")
        if element.dtype is not None:
            return fa.bitcast(found, element.dtype).reshape(shape)
        return found.reshape((*shape[:-1], shape[-1] // element.block * element.size))

    def __getitem__(self, name: str) -> Tensor | QuantTensor:
        """The tensor *name* on the CPU: dense, or for types of blocks quantised, of two or three axes.

        Raises:
            KeyError: if there is no such tensor. ValueError: for blocks in a tensor of another number of axes.
        """
        found = self.raw(name)
        element, shape = self.tensors[name].element, self.tensors[name].shape
        if element.scheme is None:
            return found
        if len(shape) not in (2, 3):
            raise CorruptFileError(
                f"{self.path}: tensor {name!r} holds {element.name} of shape {shape}; blocks need two or three axes"
            )
        return QuantTensor(element.scheme, shape, {"blocks": found})

    def release(self) -> None:
        """Let go of the memory that holds what has been read, where the system can: it is read again when needed.

        What was written through arrays that share the map is lost, so this is for those that have not given any away.
        """
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)

    def __repr__(self) -> str:
        return f"<GgufFile {str(self.path)!r}, {len(self.tensors)} tensors, {len(self.entries)} entries>"


class _Cursor:
    """A place in the file that moves on; nothing beyond the end is read."""

    __slots__ = ("at", "data", "path")

    def __init__(self, path: str, data: memoryview) -> None:
        self.path = path
        self.data = data
        self.at = len(_MAGIC)

    @property
    def left(self) -> int:
        return len(self.data) - self.at

    def error(self, offence: str) -> CorruptFileError:
        return CorruptFileError(f"{self.path}: {offence}")

    def skip(self, length: int, what: str) -> int:
        """Where *length* bytes begin, which are passed."""
        if length > self.left:
            raise self.error(f"{what} takes {length} bytes at byte {self.at}, but {self.left} are left: cut off?")
        start = self.at
        self.at += length
        return start

    def word(self, what: str) -> int:
        found: int = _WORD.unpack_from(self.data, self.skip(4, what))[0]
        return found

    def long(self, what: str) -> int:
        found: int = _LONG.unpack_from(self.data, self.skip(8, what))[0]
        return found

    def text(self, what: str, longest: int | None = None) -> str:
        length = self.long(f"the length of {what}")
        if longest is not None and length > longest:
            raise self.error(f"{what} claims {length} bytes; at most {longest} are read")
        start = self.skip(length, what)
        return _decoded(self.data[start : self.at], f"{self.path}: {what}")

    def value(self, kind: int, what: str) -> Any:
        if kind == _STRING:
            return self.text(what)
        if kind == _ARRAY:
            return self.values(what)
        found = self.numbers(kind, 1, what)
        return found[0]

    def values(self, what: str) -> Sequence[Any]:
        kind = self.word(f"the type of {what}")
        count = self.long(f"the length of {what}")
        if kind == _ARRAY:
            raise self.error(f"{what} is an array of arrays, which is not read")
        if kind != _STRING:
            return self.numbers(kind, count, what)
        if count * 8 > self.left:
            raise self.error(f"{what} claims {count} texts, but {self.left} bytes are left: cut off?")
        starts = array("Q", bytes(8 * count))
        for number in range(count):
            starts[number] = self.at
            self.skip(self.long(what), what)
        return Strings(self.data, starts, f"{self.path}: {what}")

    def numbers(self, kind: int, count: int, what: str) -> Sequence[Any]:
        if kind not in _SCALARS:
            raise self.error(f"{what} has the unknown type {kind}; known are 0 to 12")
        code: Any = _SCALARS[kind]
        start = self.skip(count * struct.calcsize(f"<{code}"), what)
        found = self.data[start : self.at]
        if kind == _BOOL and bytes(found).strip(b"\0\1"):
            raise self.error(f"{what} holds a boolean that is neither 0 nor 1")
        numbers: Sequence[Any] = found.cast(code)
        return numbers


def _decoded(data: memoryview, where: str) -> str:
    try:
        return str(data, "utf-8")
    except UnicodeDecodeError as error:
        raise CorruptFileError(f"{where} is not UTF-8: {error}") from None


def _header(cursor: _Cursor) -> tuple[int, int]:
    """The numbers of tensors and of entries."""
    version = cursor.word("the version")
    if version not in _VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in (1, *_VERSIONS)
        reason = " (its bytes are in big-endian order)" if swapped else ""
        raise cursor.error(f"it is of GGUF version {version}{reason}; versions 2 and 3 in little-endian order are read")
    tensors, entries = cursor.long("the number of tensors"), cursor.long("the number of entries")
    for count, least, what in ((entries, _LEAST_ENTRY, "entries"), (tensors, _LEAST_TENSOR, "tensors")):
        if count * least > cursor.left:
            raise cursor.error(f"it claims {count} {what}, more than fit in its {len(cursor.data)} bytes: cut off?")
    return tensors, entries


def _entries(cursor: _Cursor, count: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for number in range(count):
        key = cursor.text(f"the key of entry {number}", _KEY)
        if key in found:
            raise cursor.error(f"the key {key!r:.80} stands twice")
        kind = cursor.word(f"the type of {key!r:.80}")
        found[key] = cursor.value(kind, f"{key!r:.80}")
    return found


def _tensors(cursor: _Cursor, count: int, entries: Mapping[str, Any]) -> dict[str, GgufTensor]:
    alignment = entries.get("general.alignment", _ALIGNMENT)
    if not isinstance(alignment, int) or not 8 <= alignment <= 1 << 30 or alignment & (alignment - 1):
        raise cursor.error(f"general.alignment must be a power of two of at least 8, got {alignment!r:.80}")
    said = [_tensor(cursor, number) for number in range(count)]
    base = -(-cursor.at // alignment) * alignment
    found: dict[str, GgufTensor] = {}
    for info in said:
        if info.name in found:
            raise cursor.error(f"tensor {info.name!r:.80} stands twice")
        if info.start % alignment:
            raise cursor.error(f"tensor {info.name!r:.80} begins at {info.start}, no multiple of {alignment}")
        stop = base + info.start + info.nbytes
        if stop > len(cursor.data):
            raise cursor.error(
                f"tensor {info!r:.120} ends at byte {stop}, but the file has {len(cursor.data)}: cut off or damaged?"
            )
        found[info.name] = GgufTensor(info.name, info.element, info.shape, base + info.start)
    return found


def _tensor(cursor: _Cursor, number: int) -> GgufTensor:
    """What is said of a tensor; its start is counted from the data's first byte."""
    name = cursor.text(f"the name of tensor {number}", _NAME)
    what = f"tensor {name!r:.80}"
    axes = cursor.word(f"the number of axes of {what}")
    if not 1 <= axes <= _AXES:
        raise cursor.error(f"{what} has {axes} axes; there are 1 to {_AXES}")
    shape = tuple(cursor.long(f"the shape of {what}") for _ in range(axes))[::-1]
    kind = cursor.word(f"the type of {what}")
    start = cursor.long(f"the offset of {what}")
    if kind not in ELEMENTS:
        known = ", ".join(element.name for element in ELEMENTS.values())
        raise cursor.error(f"{what} has the type {named(kind)}, which is not read; known are {known}")
    element = ELEMENTS[kind]
    if not all(shape):
        raise cursor.error(f"{what} has the shape {shape}; no axis may be empty")
    if shape[-1] % element.block:
        raise cursor.error(f"{what} has rows of {shape[-1]}, but {element.name} stores {element.block} together")
    return GgufTensor(name, element, shape, start)
