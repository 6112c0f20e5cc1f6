"""NumPy's ``.npz`` archives: a zip file with one ``.npy`` member per array."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ferrum_array.backends import hostio
from ferrum_array.conversion import from_host
from ferrum_array.device import CPU, Device, get_default_device
from ferrum_array.dispatch import tensor
from ferrum_array.dtype import Dtype
from ferrum_array.io.files import CorruptFileError, PathLike, corrupt, opened, replacing
from ferrum_array.io.npy import build_npy_header, read_npy_header
from ferrum_array.tensor import Tensor

__all__ = ["load_npz", "savez"]

_SUFFIX = ".npy"
#: stands in the zip comment of a member whose uint16 elements are bfloat16; other readers pass over it
_BFLOAT16 = b"dtype=bfloat16"
_EARLIEST = (1980, 1, 1, 0, 0, 0)  # equal tensors give equal files
_DEFLATE_RATIO = 1032  # the most that deflate can expand (zlib's technical notes)
_SMALL, _FACTOR = 1 << 28, 100
_STEP = 1 << 20


def savez(path: PathLike, /, *tensors: Any, **named: Any) -> None:
    """Write tensors to an uncompressed ``.npz`` archive that ``numpy.load`` reads.

    Tensors given by position are named ``arr_0``, ``arr_1``, ...; other names such as ``"layer.0"`` are given as
    ``**{"layer.0": t}``. bfloat16 has no name in the format: NumPy reads its bits as uint16, :func:`load_npz` reads
    bfloat16 again. The file is written beside *path* and then takes its name, so a failure leaves the old one.

    Raises:
        TypeError: for a value that is neither a tensor nor a NumPy array. ValueError: for a name given twice, or one
        that a zip archive cannot hold. OSError: if writing fails.

    Examples:
        >>> import ferrum_array as fa, tempfile, os
        >>> path = os.path.join(tempfile.mkdtemp(), "two.npz")
        >>> fa.io.savez(path, x=fa.arange(3), y=fa.asarray([0.5], dtype="bf16"))
        >>> fa.io.load_npz(path)
        {'x': Tensor([0, 1, 2]), 'y': Tensor([0.5], dtype=bfloat16)}
    """
    items = {f"arr_{i}": value for i, value in enumerate(tensors)}
    for name, value in named.items():
        if name in items:
            raise ValueError(f"savez: the name {name!r} is given twice, by position and by keyword")
        items[name] = value
    checked = {_member(name): tensor("savez", value, f"{name!r:.60}") for name, value in items.items()}
    with replacing(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for member, one in checked.items():
            info = zipfile.ZipInfo(member, _EARLIEST)
            info.external_attr = 0o600 << 16
            info.comment = _BFLOAT16 if one.dtype is Dtype.BF16 else b""
            with archive.open(info, "w", force_zip64=one.nbytes >= 1 << 31) as entry:
                entry.write(build_npy_header(one.dtype, one.shape))
                array = one.numpy()
                data = hostio.bytes_of(array if hostio.NATIVE == "<" else hostio.byteswapped(array))
                for start in range(0, len(data), _STEP):
                    entry.write(data[start : start + _STEP])


def _member(name: str) -> str:
    try:
        encoded = name.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"savez: the name {name!r:.60} is not valid Unicode") from None
    if not name or "\0" in name or (os.sep != "/" and os.sep in name) or len(encoded) > 60_000:
        raise ValueError(f"savez: a zip archive cannot hold the name {name!r:.60}")
    return name + _SUFFIX


def load_npz(path: PathLike, *, device: Device | str | None = None, max_bytes: int | None = None) -> dict[str, Tensor]:
    """The arrays of an ``.npz`` archive, compressed or not, by name.

    Pickled Python objects are never loaded. Checksums are verified, and the sizes that the archive claims are checked
    before memory is taken for them.

    Args:
        device: where the tensors shall lie, the default device by default.
        max_bytes: how much the arrays may take together: by default 100 times the size of the archive, or 256 MiB
            if that is more, which stops archives that are made to expand without end.

    Raises:
        OSError: if the file cannot be read. ValueError: naming the file, the member and what is wrong: damage, a claim
        that is not true, elements that are not plain numbers, a member that is no array. TypeError: if the device
        lacks a dtype.

    Examples:
        >>> import ferrum_array as fa, tempfile, os
        >>> path = os.path.join(tempfile.mkdtemp(), "one.npz")
        >>> fa.io.savez(path, fa.ones((2, 2)))
        >>> fa.io.load_npz(path, max_bytes=1000)["arr_0"].shape
        (2, 2)
    """
    target = get_default_device() if device is None else Device(device)
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        with _damage(path), zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            _check(path, members, size, max(_SMALL, _FACTOR * size) if max_bytes is None else max_bytes)
            read = {info.filename.removesuffix(_SUFFIX): _read(path, archive, info) for info in members}
    return {name: one.to_device(target) for name, one in read.items()}


@contextmanager
def _damage(path: PathLike) -> Iterator[None]:
    """What the zip reader raises for damaged archives, as one kind of error."""
    kinds = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, struct.error, OverflowError, ValueError)
    try:
        yield
    except CorruptFileError:
        raise  # it says what is wrong
    except kinds as error:
        raise corrupt(path, f"the archive is damaged or no .npz archive: {error!s:.200}") from None


def _check(path: PathLike, members: list[zipfile.ZipInfo], size: int, most: int) -> None:
    names: set[str] = set()
    for info in members:
        where = f"member {info.filename!r:.80}"
        if not info.filename.endswith(_SUFFIX):
            raise corrupt(path, f"{where} is no array: the names of arrays end in {_SUFFIX}")
        if info.filename in names:
            raise corrupt(path, f"{where} is there twice")
        names.add(info.filename)
        if info.comment not in (b"", _BFLOAT16):
            raise corrupt(path, f"{where} has a comment that says nothing known: {info.comment!r:.80}")
        if info.flag_bits & 1:
            raise corrupt(path, f"{where} is encrypted")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise corrupt(path, f"{where} has compression method {info.compress_type}; known are 0 and 8")
        if not 0 <= info.header_offset < size or info.compress_size > size:
            raise corrupt(path, f"{where} lies outside the file: cut off?")
        stored = info.compress_type == zipfile.ZIP_STORED
        if info.file_size > info.compress_size * (1 if stored else _DEFLATE_RATIO):
            raise corrupt(path, f"{where} claims {info.file_size} bytes, more than its {info.compress_size} can hold")
    total = sum(info.file_size for info in members)
    if total > most:
        raise corrupt(
            path,
            f"the arrays take {total} bytes, more than the limit of {most} for {size} bytes on disk; set max_bytes=",
        )


def _read(path: PathLike, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Tensor:
    where = f"member {info.filename!r:.80}"
    with archive.open(info) as file:
        header = read_npy_header(path, info.filename, file)  # type: ignore[arg-type]  # its read() is all that is used
        if header.size + header.nbytes != info.file_size:
            raise corrupt(
                path,
                f"{where}: {header.dtype} of shape {header.shape} takes {header.nbytes} bytes, "
                f"but the member holds {info.file_size - header.size}",
            )
        dtype = header.dtype
        if info.comment == _BFLOAT16:
            if dtype is not Dtype.U16:
                raise corrupt(path, f"{where} is marked as bfloat16, but its elements are {dtype}, not uint16")
            dtype = Dtype.BF16
        array = hostio.empty(dtype, header.shape[::-1] if header.fortran_order else header.shape)
        data, filled = hostio.bytes_of(array), 0
        while chunk := file.read(_STEP):  # at most what is claimed, and to the end, where the checksum is verified
            data[filled : filled + len(chunk)] = chunk
            filled += len(chunk)
        if filled != len(data):
            raise corrupt(path, f"{where} ends after {filled} of {len(data)} bytes")
    if dtype is Dtype.BOOL:
        try:
            hostio.check_bools(array)
        except ValueError as error:
            raise corrupt(path, f"{where}: {error}") from None
    if header.big_endian != (hostio.NATIVE == ">"):
        array = hostio.byteswapped(array)
    result = from_host(array, CPU)
    return result.T if header.fortran_order else result
