"""Reading safetensors files: one, or many with an index. Opening one reads its header alone."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self, final

from ferrum_array.backends import hostio
from ferrum_array.conversion import from_host
from ferrum_array.device import CPU, Device, get_default_device
from ferrum_array.dtype import Dtype
from ferrum_array.io.files import PathLike, corrupt, opened, parse_json
from ferrum_array.io.header import CODES, PREFIX, TensorInfo, header_length, parse_header
from ferrum_array.tensor import Tensor

__all__ = ["SafetensorsFile", "load_safetensors", "open_safetensors"]

_LONGEST_INDEX = 100_000_000


class _Part:
    """One file: its header, and its data as a memory map."""

    __slots__ = ("data", "infos", "metadata", "offset", "path")

    def __init__(self, path: PathLike) -> None:
        self.path = path
        with opened(path) as file:
            size = os.fstat(file.fileno()).st_size
            length = header_length(path, file.read(PREFIX), size)
            header = file.read(length)
            if len(header) != length:
                raise corrupt(path, f"the file ends within its header of {length} bytes")
            self.offset = PREFIX + length
            self.infos, self.metadata = parse_header(path, header, size - self.offset)
            # private pages: what is written through an exported array never reaches the file
            self.data = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY)

    def read(self, name: str, info: TensorInfo, dtype: Dtype) -> Tensor:
        array = hostio.from_buffer(self.data, dtype, info.shape, self.offset + info.start)
        if dtype is Dtype.BOOL:
            try:
                hostio.check_bools(array)
            except ValueError as error:
                raise corrupt(self.path, f"tensor {name!r:.80}: {error}") from None
        return from_host(array, CPU)


@final
class SafetensorsFile(Mapping[str, Tensor]):
    """An open safetensors file or set of files: a mapping from names to tensors, each read when asked for.

    On the CPU a tensor is a view of the memory map: nothing is read until its elements are, and slicing it first
    reads that slice alone. Tensors stay valid after :meth:`close`, and after the file is replaced or deleted;
    it must not be cut short while they are in use. Made by :func:`open_safetensors`.

    Attributes:
        metadata: the texts that the file holds beside its tensors.

    Examples:
        >>> import ferrum_array as fa, tempfile, os
        >>> path = os.path.join(tempfile.mkdtemp(), "a.safetensors")
        >>> _ = fa.io.save_safetensors({"w": fa.arange(6)}, path, metadata={"made": "today"})
        >>> with fa.io.open_safetensors(path) as file:
        ...     file.metadata["made"], len(file), file.info("w").shape, file["w"][2:4]
        ('today', 1, (6,), Tensor([2, 3]))
    """

    __slots__ = ("_name", "_where", "metadata")

    def __init__(self, name: str, where: dict[str, _Part], metadata: Mapping[str, str]) -> None:
        self._name = name
        self._where: dict[str, _Part] | None = where
        self.metadata: Mapping[str, str] = MappingProxyType(dict(metadata))

    def _open(self) -> dict[str, _Part]:
        if self._where is None:
            raise ValueError(f"{self._name}: the file is closed; read from it before the end of its with block")
        return self._where

    def info(self, name: str) -> TensorInfo:
        """The element type, shape and size of a tensor, from the header.

        Raises:
            KeyError: if the file has no tensor of that name. ValueError: if the file is closed.
        """
        part = self._open().get(name)
        if part is None:
            raise KeyError(f"{self._name} has no tensor {name!r}; it has {len(self)}, in the list of its names")
        return part.infos[name]

    def load(
        self, name: str, *, key: Any = None, device: Device | str | None = None, dtype: Any = None, codes: bool = False
    ) -> Tensor:
        """The tensor *name*, or ``tensor[key]`` of it, on *device*.

        Args:
            key: an index of the tensor; only what it selects is read and moved.
            device: the default device by default.
            dtype: a real floating dtype for a floating tensor; tensors of other kinds keep theirs.
            codes: give the bytes of 8-bit float types such as ``F8_E4M3``, which no dtype of ours describes, as uint8.

        Raises:
            KeyError: if there is no such tensor. ValueError: if its type is not one of ours (and not *codes*), it
            holds what is no boolean, or the file is closed. TypeError: if the device lacks its dtype, or *dtype* is
            not a real floating one.
        """
        info, wanted = self.info(name), _floating(dtype)
        own = info.dtype
        if own is None and info.format in CODES:
            if not codes:
                raise corrupt(
                    self._name,
                    f"tensor {name!r:.80} holds {info.format}, which no dtype describes; "
                    "codes=True gives its bytes as uint8",
                )
            own = Dtype.U8
        if own is None:
            raise corrupt(self._name, f"tensor {name!r:.80} holds {info.format}, which cannot be loaded")
        result = self._open()[name].read(name, info, own)
        if key is not None:
            result = result[key]
        if wanted is not None and result.dtype.is_floating:
            result = result.astype(wanted, copy=False)
        return result.to_device(get_default_device() if device is None else Device(device))

    def close(self) -> None:
        """Forget the file. Its memory map goes with the last tensor that lies in it."""
        self._where = None

    def __getitem__(self, name: str) -> Tensor:
        return self.load(name)

    def __contains__(self, name: object) -> bool:
        return name in self._open()

    def __iter__(self) -> Iterator[str]:
        return iter(self._open())

    def __len__(self) -> int:
        return len(self._open())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._where is None else f"{len(self._where)} tensors"
        return f"<SafetensorsFile {self._name!r}, {state}>"


def _floating(dtype: Any) -> Dtype | None:
    wanted = None if dtype is None else Dtype(dtype)
    if wanted is not None and not wanted.is_floating:
        raise TypeError(f"load_safetensors: dtype converts floating tensors to a real floating dtype, got {wanted}")
    return wanted


def _sharded(path: PathLike) -> dict[str, _Part]:
    folder = Path(path).parent
    with opened(path) as file:
        data = file.read(_LONGEST_INDEX + 1)
    if len(data) > _LONGEST_INDEX:
        raise corrupt(path, f"an index of more than {_LONGEST_INDEX} bytes is not read")
    index = parse_json(path, "index", data)
    names = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(names, dict):
        raise corrupt(path, "an index has an object weight_map, from the names of tensors to files")
    parts: dict[str, _Part] = {}
    where: dict[str, _Part] = {}
    for name, file_name in names.items():
        if not isinstance(file_name, str) or not _plain(file_name):
            raise corrupt(
                path,
                f"weight_map places {name!r:.80} in {file_name!r:.80}; files of an index lie beside it and their names "
                "end in .safetensors",
            )
        part = parts.get(file_name)
        if part is None:
            part = parts[file_name] = _Part(folder / file_name)
        if name not in part.infos:
            raise corrupt(path, f"weight_map places {name!r:.80} in {file_name!r:.80}, which has no such tensor")
        where[name] = part
    return where


def _plain(name: str) -> bool:
    return name.endswith(".safetensors") and name.isprintable() and not set(name) & set("/\\:\0") and name[0] != "."


def open_safetensors(path: PathLike) -> SafetensorsFile:
    """Open a safetensors file, or the ``.json`` index of several, reading headers alone.

    Use it in a ``with`` block; see :class:`SafetensorsFile`. Every header is checked as a whole before anything else
    is done: a damaged or hostile file is refused, and nothing larger than its header is allocated.

    Raises:
        OSError: if a file cannot be opened. ValueError: naming the file and what is wrong in it.

    Examples:
        >>> import ferrum_array as fa, tempfile, os
        >>> path = os.path.join(tempfile.mkdtemp(), "model.safetensors")
        >>> _ = fa.io.save_safetensors({"w": fa.ones((4, 2)), "b": fa.zeros(4, dtype="bf16")}, path)
        >>> with fa.io.open_safetensors(path) as file:
        ...     list(file), file.info("b").dtype, file.load("w", key=slice(0, 1))
        (['w', 'b'], ferrum_array.bfloat16, Tensor([[1., 1.]]))
    """
    name = os.fspath(path)
    if name.endswith(".json"):
        where = _sharded(path)
        metadata = {key: text for part in where.values() for key, text in part.metadata.items()}
        return SafetensorsFile(name, where, metadata)
    part = _Part(path)
    return SafetensorsFile(name, dict.fromkeys(part.infos, part), part.metadata)


def load_safetensors(
    path: PathLike, *, device: Device | str | None = None, dtype: Any = None, codes: bool = False
) -> dict[str, Tensor]:
    """All tensors of a safetensors file, or of the ``.json`` index of several, by name.

    On the CPU they share the file's memory map, so that loading takes no time or memory of its own; what is written to
    them goes to copies. For the arguments and errors see :meth:`SafetensorsFile.load` and :func:`open_safetensors`.

    Examples:
        >>> import ferrum_array as fa, tempfile, os
        >>> path = os.path.join(tempfile.mkdtemp(), "model.safetensors")
        >>> _ = fa.io.save_safetensors({"w": fa.asarray([1.5, -2.0], dtype="bf16")}, path)
        >>> fa.io.load_safetensors(path, dtype="f32")
        {'w': Tensor([ 1.5, -2. ])}
    """
    with open_safetensors(path) as file:
        return {name: file.load(name, device=device, dtype=dtype, codes=codes) for name in file}
