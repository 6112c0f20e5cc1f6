"""The table of the doors, from what runs wrote down.

FERRUM_DOORS=cpu.json python -m pytest tests/doors
python -m tests.doors.table cpu.json [cuda.json ...]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

DEVICES = ("cpu", "mlx:cpu", "cuda:0")
Found = Mapping[str, Mapping[str, Sequence[int]]]


def table(runs: Sequence[Found]) -> str:
    """Markdown: for each door how many of its tests passed on each storage; "-" where none was run."""
    lines = [f"| door | {' | '.join(f'`{device}`' for device in DEVICES)} |", "|---" * (1 + len(DEVICES)) + "|"]
    for door in sorted({name for run in runs for name in run}, key=str.lower):
        cells = []
        for device in DEVICES:
            counts = [run[door][device] for run in runs if device in run.get(door, {})]
            passed, ran = (sum(column) for column in zip(*counts, strict=True)) if counts else (0, 0)
            cells.append(f"{passed} of {ran}" if ran else "-")
        lines.append(f"| {door} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table([json.loads(Path(name).read_text(encoding="utf-8")) for name in sys.argv[1:]]))
