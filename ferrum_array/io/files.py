"""Writing files so that a failure leaves the old one, and reading JSON that nobody vouches for."""

from __future__ import annotations

import errno
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

__all__ = ["CorruptFileError", "PathLike", "corrupt", "opened", "parse_json", "replacing"]

PathLike = str | os.PathLike[str]


class CorruptFileError(ValueError):
    """A file is not what it claims to be; the message names the file and the offence.

    Examples:
        >>> import ferrum_array as fa
        >>> issubclass(fa.io.CorruptFileError, ValueError)
        True
    """

    __module__ = "ferrum_array.io"  # where users find it, and tracebacks say so


def corrupt(path: PathLike, offence: str) -> CorruptFileError:
    """The error that names *path* and the *offence*."""
    return CorruptFileError(f"{os.fspath(path)}: {offence}")


def opened(path: PathLike) -> BinaryIO:
    """The file *path* for reading.

    Raises:
        TypeError: for anything but a path: a number would be taken for an open file of somebody else's, and closed.
        OSError: if there is none.
    """
    if not isinstance(path, (str, bytes, os.PathLike)):
        raise TypeError(f"a path must be a str or an os.PathLike object, got {type(path).__name__} {path!r:.60}")
    return open(path, "rb")


@contextmanager
def replacing(path: PathLike) -> Iterator[BinaryIO]:
    """A new file that takes the place of *path* when the block ends, and vanishes if the block fails.

    The file is written beside its target, and reaches the disk before it takes its name. Through a
    symbolic link the file that it points to is replaced.
    """
    target = Path(os.path.realpath(path))
    if not target.parent.exists():
        raise FileNotFoundError(errno.ENOENT, "there is no such folder to write into", str(target.parent))
    temporary = target.with_name(f".{target.name[:200]}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r:.80} stands twice in one object")
    return result


def _constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def parse_json(path: PathLike, what: str, data: bytes) -> Any:
    """*data* as JSON (RFC 8259) in UTF-8, in which no object has a key twice.

    Raises:
        ValueError: naming the file, *what* was read, and the offence.
    """
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_constant)
    except RecursionError:
        raise corrupt(path, f"the {what} nests too deeply") from None
    except ValueError as error:
        raise corrupt(path, f"the {what} is not valid: {error!s:.200}") from None
