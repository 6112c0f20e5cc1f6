"""A GGUF model in several files, ``name-00001-of-00003.gguf`` and so on: the first has all the metadata."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from types import MappingProxyType

from ferrum_array import Tensor
from ferrum_array.io import CorruptFileError
from ferrum_models.config import Settings
from ferrum_models.gguf.reader import GgufFile, GgufTensor

__all__ = ["GgufParts", "first_part", "open_parts"]

_PART = re.compile(r"(.*)-([0-9]{5})-of-([0-9]{5})\.gguf")


class GgufParts(GgufFile):
    """The files of one model, opened together; *path* is the first.

    Raises:
        FileNotFoundError: naming every file that is missing. ValueError: for files that are damaged or do not belong
        together.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        found = _PART.fullmatch(path.name)
        count = Settings(self.entries, str(path)).integer("split.count")
        if found is None or int(found[2]) != 1 or int(found[3]) != count:
            raise ValueError(
                f"{path} is one of {count} files of a model; give the first, whose name ends in "
                f"-00001-of-{count:05}.gguf"
            )
        others = [path.with_name(f"{found[1]}-{number:05}-of-{count:05}.gguf") for number in range(2, count + 1)]
        if missing := [other.name for other in others if not other.is_file()]:
            raise FileNotFoundError(f"{path} lacks the other parts of its model: {', '.join(missing)}")
        self._others = [GgufFile(other) for other in others]
        tensors: dict[str, GgufTensor] = dict(self.tensors)
        self._owners: dict[str, GgufFile] = {}
        for number, other in enumerate(self._others, 1):
            said = Settings(other.entries, str(other.path))
            if (said.integer("split.no", least=0), said.integer("split.count")) != (number, count):
                raise CorruptFileError(f"{other.path} says that it is another part than {number + 1} of {count}")
            for name, info in other.tensors.items():
                if name in tensors:
                    raise CorruptFileError(f"{other.path}: tensor {name!r:.80} is in another part too")
                tensors[name] = info
                self._owners[name] = other
        self.tensors = MappingProxyType(tensors)

    def raw(self, name: str) -> Tensor:
        """The tensor *name*, from the file that has it."""
        owner = self._owners.get(name)
        return super().raw(name) if owner is None else owner.raw(name)

    def release(self) -> None:
        """Let go of the memory that holds what has been read, of all files."""
        super().release()
        for other in self._others:
            other.release()


def open_parts(path: Path) -> GgufFile:
    """The GGUF file *path*, with the other parts of its model where it is the first of several."""
    file = GgufFile(path)
    split = Settings(file.entries, str(path)).integer("split.count", default=1, least=0)
    return file if split < 2 else GgufParts(path)


def first_part(paths: Iterable[Path]) -> Path | None:
    """The first of *paths* if they are the parts of one model and nothing else, or None.

    Examples:
        >>> from pathlib import Path
        >>> from ferrum_models.gguf.parts import first_part
        >>> first_part([Path("a-00002-of-00002.gguf"), Path("a-00001-of-00002.gguf")]).name
        'a-00001-of-00002.gguf'
        >>> first_part([Path("a.gguf"), Path("b.gguf")]) is None
        True
    """
    listed = sorted(paths)
    found = [_PART.fullmatch(path.name) for path in listed]
    sets = {None if one is None else (one[1], one[3]) for one in found}
    return listed[0] if len(sets) == 1 and None not in sets else None
