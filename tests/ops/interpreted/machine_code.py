"""A look at machine code for Hopper: whether it reads uniform registers that nothing has set.

ptxas 12.8 leaves out the copy into a register of some descriptors of shared memory, those of tiles whose rows are
swizzled over 32 or 64 bytes. Such code compiles without a word, and multiplies whatever lies at a stray address.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["disassembled", "unset"]

_LINE: Final = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(.+?)\s*;")
_WRITES: Final = re.compile(r"(?:U(?!TMA|BLK|CGABAR|SETMAXREG)\w+|S2UR|R2UR|REDUX|VOTEU)\b")
_READ: Final = re.compile(r"(gdesc|desc)?\[?\bUR(\d+)")
_WIDTHS: Final = {".128": 4, ".64": 2, ".WIDE": 2}


@dataclass(frozen=True)
class _Step:
    """An instruction: where it is, what it says, and what of the uniform registers it reads and writes."""

    address: int
    text: str
    name: str
    sometimes: bool
    reads: frozenset[int]
    writes: frozenset[int]


def disassembled(cubin: bytes) -> str:
    import triton

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "code.cubin")
        path.write_bytes(cubin)
        command = [triton.knobs.nvidia.cuobjdump.path, "-sass", str(path)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def unset(sass: str) -> list[str]:
    """The instructions that read a uniform register which on some way there nothing has written."""
    steps = [_step(int(found[1], 16), found[2]) for found in map(_LINE.search, sass.splitlines()) if found]
    ways = _ways(steps)
    known: list[frozenset[int] | None] = [None] * len(steps)
    waiting = [0] if steps else []
    known[:1] = [frozenset()] * len(waiting)
    while waiting:
        place = waiting.pop()
        before = known[place]
        assert before is not None
        after = before | steps[place].writes
        for way in ways[place]:
            there = known[way]
            both = after if there is None else there & after
            if both != there:
                known[way] = both
                waiting.append(way)
    return [step.text for step, have in zip(steps, known, strict=True) if have is not None and step.reads - have]


def _step(address: int, text: str) -> _Step:
    found = re.fullmatch(r"(@!?\w+\s+)?(\S+)\s*(.*)", text)
    assert found is not None, text
    name, operands = found[2], re.split(r",\s*(?![^\[]*\])", found[3])
    writes: Iterable[int] = ()
    if _WRITES.match(name):
        first = next((i for i, operand in enumerate(operands) if not re.fullmatch(r"U?P[\dT]", operand)), len(operands))
        whole = re.fullmatch(r"UR(\d+)", operands[first]) if first < len(operands) else None
        if whole and not name.startswith("UISETP"):
            width = max((n for ending, n in _WIDTHS.items() if ending in name), default=1)
            writes = range(int(whole[1]), int(whole[1]) + width)
            operands = operands[first + 1 :]
    # The product of a tile in registers has one descriptor, the second of the four registers' two.
    alone = name.startswith("HGMMA") and len(operands) > 1 and operands[1].startswith("R")
    reads: set[int] = set()
    for kind, digits in _READ.findall(", ".join(operands)):
        start = int(digits)
        reads.update(
            range(start + 2 * alone, start + 4) if kind == "gdesc" else range(start, start + (2 if kind else 1))
        )
    return _Step(address, text, name, found[1] is not None, frozenset(reads), frozenset(writes))


def _ways(steps: list[_Step]) -> list[list[int]]:
    """Which instructions may come next. Those that nothing else leads to are where jumps through tables go."""
    places = {step.address: place for place, step in enumerate(steps)}
    ways: list[list[int]] = []
    tables = []
    for place, step in enumerate(steps):
        kind = step.name.split(".")[0]
        ahead = [place + 1] if place + 1 < len(steps) else []
        if kind in ("BRA", "CALL"):
            target = re.search(r"0x([0-9a-f]+)$", step.text)
            assert target is not None, step.text
            back = step.sometimes or kind == "CALL" or re.search(r"\bU?P\d", step.text.split(step.name)[1])
            ways.append([places[int(target[1], 16)], *(ahead if back else [])])
        elif kind in ("EXIT", "RET"):
            ways.append(ahead if step.sometimes else [])
        elif kind == "BRX":
            tables.append(place)
            ways.append([])
        else:
            ways.append(ahead)
    reached = {way for found in ways for way in found}
    for place in tables:
        ways[place] = [other for other in range(1, len(steps)) if other not in reached]
    return ways
