"""GGUF files that hold models."""

from __future__ import annotations

from pathlib import Path

from ferrum_array import Device, Dtype
from ferrum_models.config import Settings
from ferrum_models.gguf.config import natural_dtype, settings
from ferrum_models.gguf.names import GgufTensors, blocks
from ferrum_models.gguf.parts import first_part, open_parts
from ferrum_models.gguf.reader import GgufFile
from ferrum_models.weights import Weights

__all__ = ["find_gguf", "open_gguf"]


def find_gguf(path: Path) -> Path | None:
    """The GGUF file that *path* is, or that the folder holds; None where there is none, or a ``config.json`` beside.

    Of the parts of one model it is the first.

    Raises:
        ValueError: for a folder of several.
    """
    if path.is_file():
        return path if path.suffix == ".gguf" else None
    if not path.is_dir() or (path / "config.json").is_file():
        return None
    found = sorted(one for one in path.iterdir() if one.suffix == ".gguf")
    if len(found) > 1 and (first := first_part(found)) is not None:
        return first
    if len(found) > 1:
        raise ValueError(f"{path} holds several models; name one: {', '.join(one.name for one in found)}")
    return found[0] if found else None


def open_gguf(path: Path, device: Device, dtype: Dtype | None) -> tuple[GgufFile, Settings, Weights, Dtype]:
    """A GGUF file, its config, its tensors, and the dtype that those become which are not in blocks.

    Matrices in blocks keep their numbers, see :func:`ferrum_models.gguf.names.blocks`; all else becomes *dtype*, or if
    that is None, the type of the embedding, which is float32 where it is quantised.

    Raises:
        OSError: if the file cannot be opened. ValueError: for a file that is damaged or not implemented.
    """
    file = open_parts(path)
    said = settings(file)
    wanted = natural_dtype(file) if dtype is None else dtype
    return (
        file,
        said,
        Weights(GgufTensors(file, said), str(path), device=device, dtype=wanted, formats=(blocks,)),
        wanted,
    )
