"""Tensors in files: NumPy's ``.npz`` archives and safetensors, read and written.

A file is taken for hostile until it has been checked: what it claims is compared with its size before memory is taken,
nothing in it is ever executed, and what is wrong is a :class:`CorruptFileError`, a ``ValueError`` that names the file
and the offence.
"""

from __future__ import annotations

from ferrum_array.device import Device
from ferrum_array.io.files import CorruptFileError, PathLike, corrupt, opened
from ferrum_array.io.header import TensorInfo
from ferrum_array.io.npy import MAGIC
from ferrum_array.io.npz import load_npz, savez
from ferrum_array.io.safetensors import SafetensorsFile, load_safetensors, open_safetensors
from ferrum_array.io.saving import save_safetensors
from ferrum_array.tensor import Tensor

__all__ = [
    "CorruptFileError",
    "SafetensorsFile",
    "TensorInfo",
    "load",
    "load_npz",
    "load_safetensors",
    "open_safetensors",
    "save_safetensors",
    "savez",
]


def load(path: PathLike, *, device: Device | str | None = None) -> dict[str, Tensor]:
    """All tensors of an ``.npz`` archive, a safetensors file, or the index of several; its content says which.

    Raises:
        OSError: if the file cannot be read. ValueError: if it is damaged or of another kind; see :func:`load_npz` and
        :func:`load_safetensors`.

    Examples:
        >>> import ferrum_array as fa, tempfile, os
        >>> path = os.path.join(tempfile.mkdtemp(), "weights")
        >>> fa.io.savez(path, x=fa.arange(3))
        >>> fa.io.load(path)
        {'x': Tensor([0, 1, 2])}
    """
    with opened(path) as file:
        start = file.read(len(MAGIC))
    if start == MAGIC:
        raise corrupt(
            path, "this is one array (.npy), not an archive of named ones; asarray(numpy.load(path)) reads it"
        )
    if start[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return load_npz(path, device=device)
    return load_safetensors(path, device=device)
