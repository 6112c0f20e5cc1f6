"""The header of a safetensors file: what it says, and whether it is true.

Format: https://huggingface.co/docs/safetensors (8 bytes with the header's length, little-endian; the
header, a JSON object that begins with ``{`` and may end in spaces; the data, without gaps).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ferrum_array.dtype import Dtype
from ferrum_array.io.files import PathLike, corrupt, parse_json

__all__ = ["CODES", "NAMES", "PREFIX", "TensorInfo", "build_header", "header_length", "parse_header"]

#: bytes before the header
PREFIX = 8
#: the longest header that the format allows
_LONGEST = 100_000_000
_METADATA = "__metadata__"

#: our dtypes in the format's names; complex128 has none
NAMES = {
    Dtype.BOOL: "BOOL",
    Dtype.I8: "I8",
    Dtype.I16: "I16",
    Dtype.I32: "I32",
    Dtype.I64: "I64",
    Dtype.U8: "U8",
    Dtype.U16: "U16",
    Dtype.U32: "U32",
    Dtype.U64: "U64",
    Dtype.F16: "F16",
    Dtype.BF16: "BF16",
    Dtype.F32: "F32",
    Dtype.F64: "F64",
    Dtype.C64: "C64",
}
_DTYPES = {name: dtype for dtype, name in NAMES.items()}
#: types of the format whose elements are bytes that no dtype of ours gives a meaning
CODES = frozenset(("F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"))
_BITS = {
    **{name: dtype.bits for name, dtype in _DTYPES.items()},
    **dict.fromkeys(CODES, 8),
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What a safetensors file says about one tensor.

    Attributes:
        format: its element type in the format's name, for example ``"BF16"``.
        shape: the length of each axis. start, stop: where its bytes lie, counted from the data's first.

    Examples:
        >>> import ferrum_array as fa
        >>> info = fa.io.TensorInfo("BF16", (2, 3), 0, 12)
        >>> info.dtype, info.nbytes
        (ferrum_array.bfloat16, 12)
    """

    format: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def dtype(self) -> Dtype | None:
        """The Dtype of its elements; None for types such as ``F8_E4M3`` that tensors do not have."""
        return _DTYPES.get(self.format)

    @property
    def nbytes(self) -> int:
        """The bytes that its elements take."""
        return self.stop - self.start


def header_length(path: PathLike, prefix: bytes, size: int) -> int:
    """The length of the header from the first bytes of a file of *size* bytes."""
    if size < PREFIX or len(prefix) < PREFIX:
        raise corrupt(path, f"{size} bytes are too few for a safetensors file, which begins with {PREFIX} of length")
    length = int.from_bytes(prefix[:PREFIX], "little")
    if length > _LONGEST:
        raise corrupt(path, f"the header claims {length} bytes; safetensors allows {_LONGEST}: another format?")
    if length > size - PREFIX:
        raise corrupt(path, f"the header claims {length} bytes, but only {size - PREFIX} follow: cut off?")
    return length


def parse_header(path: PathLike, header: bytes, data_size: int) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """The tensors, in the order of the header, and the metadata; every claim is checked.

    Raises:
        ValueError: naming the file, the tensor and the offence.
    """
    if header[:1] != b"{":
        raise corrupt(path, f"the header begins with {header[:1]!r}, not with '{{': no safetensors file")
    table: dict[str, Any] = parse_json(path, "header", header)
    metadata = table.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise corrupt(path, f"{_METADATA} must map names to texts, got {metadata!r:.80}")
    infos = {name: _info(path, name, value) for name, value in table.items()}
    end = 0
    for name, info in sorted(infos.items(), key=lambda item: (item[1].start, item[1].stop)):
        if info.start != end:
            problem = "overlaps the tensor before it" if info.start < end else "leaves a gap before it"
            raise corrupt(path, f"tensor {name!r:.80} begins at byte {info.start}, not {end}: it {problem}")
        end = info.stop
    if end != data_size:
        raise corrupt(path, f"the tensors take {end} bytes, but {data_size} follow the header: cut off or damaged?")
    return infos, metadata


def _info(path: PathLike, name: str, value: Any) -> TensorInfo:
    where = f"tensor {name!r:.80}"
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise corrupt(path, f"{where}: the name is not valid Unicode") from None
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise corrupt(path, f"{where} must have dtype, shape and data_offsets, got {value!r:.80}")
    kind, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(kind, str) or kind not in _BITS:
        raise corrupt(path, f"{where} has the unknown dtype {kind!r:.80}; known are {', '.join(_BITS)}")
    if not _naturals(shape) or len(shape) > 64:
        raise corrupt(path, f"{where}: a shape is a list of up to 64 integers of at least 0, got {shape!r:.80}")
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise corrupt(path, f"{where}: data_offsets are two ordered integers of at least 0, got {offsets!r:.80}")
    if math.prod(max(length, 1) for length in shape) >= 1 << 60:
        raise corrupt(path, f"{where}: the shape {shape!r:.80} is larger than any memory")
    bits = math.prod(shape) * _BITS[kind]
    if (offsets[1] - offsets[0]) * 8 != bits:
        raise corrupt(
            path,
            f"{where}: {kind} of shape {shape!r:.80} takes {bits / 8:.16g} bytes, "
            f"but data_offsets give it {offsets[1] - offsets[0]}",
        )
    return TensorInfo(kind, tuple(shape), offsets[0], offsets[1])


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(one) is int and 0 <= one < 1 << 63 for one in value)


def build_header(
    tensors: Sequence[tuple[str, str, tuple[int, ...], int]], metadata: Mapping[str, str]
) -> tuple[bytes, list[int]]:
    """The file's bytes before the data, and the order in which the data of *tensors* is written.

    Args:
        tensors: name, type in the format's name, shape and bytes of each. Wide types are written
            first, so that each tensor lies at a multiple of its element size in the file.
    """
    order = sorted(range(len(tensors)), key=lambda i: -_BITS[tensors[i][1]])
    starts, end = [0] * len(tensors), 0
    for i in order:
        starts[i] = end
        end += tensors[i][3]
    table: dict[str, Any] = {_METADATA: dict(metadata)} if metadata else {}
    for start, (name, kind, shape, nbytes) in zip(starts, tensors, strict=True):
        table[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [start, start + nbytes]}
    header = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    header += b" " * (-len(header) % 8)
    if len(header) > _LONGEST:
        raise ValueError(f"save_safetensors: the header takes {len(header)} bytes; safetensors allows {_LONGEST}")
    return len(header).to_bytes(PREFIX, "little") + header, order
