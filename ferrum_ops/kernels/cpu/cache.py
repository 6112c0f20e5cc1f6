"""Compiled code on disk, so that a process compiles only what no process before it has compiled.

The folder is ``NUMBA_CACHE_DIR`` if that is set, else ``__pycache__`` beside this file, else, where that cannot be
written, the user's folder for caches; where none can be written, every process compiles for itself.

numba has a cache of its own, which does not do here: it looks at the one file that a kernel stands in, while a
kernel's code also comes from the files of its intrinsics, and two processes that compile for different types at the
same time can overwrite each other's code under one name. Here every piece of code is a file of its own, named after
all that it depends on, and holds a digest of what it was made from: the sources in this folder, and ``CONSTANTS``.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numba
from numba.core import compiler, serialize

from ferrum_ops.activation import _TAIL_F32
from ferrum_ops.kernels.cpu.features import features
from ferrum_ops.kv_cache import GREATEST_SCALE
from ferrum_ops.quant.gguf import TYPES

__all__ = ["CONSTANTS", "CodeCache", "folder"]

#: numbers of other folders that become constants of compiled code, by their names there
CONSTANTS: dict[str, object] = {
    "_TAIL_F32": _TAIL_F32,
    "GREATEST_SCALE": GREATEST_SCALE,
    "TYPES": [(name, found.block, found.size) for name, found in TYPES.items()],
}

_HERE = Path(__file__).resolve().parent
_DIGEST = 32  # bytes


@cache
def folder() -> Path | None:
    """Where compiled code is kept, or None where no folder can be written."""
    label = f"ferrum-{hashlib.sha256(str(_HERE).encode()).hexdigest()[:12]}"
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    wanted = os.environ.get("NUMBA_CACHE_DIR")
    for place in (Path(wanted, label),) if wanted else (_HERE / "__pycache__", Path(home, label)):
        try:
            place.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=place):
                return place
        except OSError:  # not writable: the next one may be
            continue
    return None


@cache
def _sources(file: str) -> bytes | None:
    """A digest of all that a kernel in *file* is compiled from; None where the file is none, as at a prompt."""
    path = Path(file)
    if not path.is_file():
        return None
    digest = hashlib.sha256(repr(CONSTANTS).encode())
    for one in sorted({*_HERE.glob("*.py"), path.resolve()}):
        digest.update(one.name.encode() + b"\0" + one.read_bytes())
    return digest.digest()


_rebuild: Any = compiler.CompileResult._rebuild  # numba's types are of some versions and incomplete
_dumps: Any = serialize.dumps


class CodeCache:
    """What numba asks for compiled code of one function, and gives it to; *variant* tells functions of one name apart.

    A file holds a digest of the sources, a digest of the rest, and the rest: code as numba packs it. The methods are
    those that numba's own caches have.
    """

    def __init__(self, function: Any, variant: tuple[object, ...]) -> None:
        self._name = f"{function.__module__.rpartition('.')[2]}.{function.__name__}"
        self._variant = variant
        self._source = function.__code__.co_filename

    @property
    def cache_path(self) -> str | None:
        """Where the files lie."""
        place = folder()
        return None if place is None else str(place)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The code for these types, or None if there is none yet."""
        place, made_from = folder(), _sources(self._source)
        if place is None or made_from is None:
            return None
        target_context.refresh()
        try:
            data = (place / self._file(sig, target_context)).read_bytes()
        except OSError:  # not compiled yet
            return None
        sources, digest, code = data[:_DIGEST], data[_DIGEST : 2 * _DIGEST], data[2 * _DIGEST :]
        if sources != made_from or digest != hashlib.sha256(code).digest():
            return None
        return _rebuild(target_context, *pickle.loads(code))

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep the code for these types."""
        place, made_from = folder(), _sources(self._source)
        if place is None or made_from is None:
            return
        if data.library.has_dynamic_globals:
            raise TypeError(f"{self._name} holds addresses of this process and cannot be kept on disk")
        code = _dumps(data._reduce())
        target = place / self._file(sig, data.target_context)
        begun: str | None = None
        try:
            with tempfile.NamedTemporaryFile(dir=place, delete=False) as file:
                begun = file.name
                file.write(made_from + hashlib.sha256(code).digest() + code)
            os.replace(begun, target)
        except OSError:  # a full disk or a lost folder must not stop a computation whose code is there already
            if begun is not None:
                Path(begun).unlink(missing_ok=True)

    def _file(self, sig: Any, target_context: Any) -> str:
        depends = (
            (self._name, self._variant, str(sig), target_context.codegen().magic_tuple()),
            (sys.version_info[:2], numba.__version__, sorted(features())),
        )
        return f"{self._name}-{hashlib.sha256(repr(depends).encode()).hexdigest()[:20]}.code"
