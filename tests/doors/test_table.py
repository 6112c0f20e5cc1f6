"""The page lists the doors that there are, and says that each is open."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.doors.table import table

HERE = Path(__file__).parent
PAGE = (HERE.parents[1] / "docs" / "doors.md").read_text(encoding="utf-8")


def doors() -> set[str]:
    """The names given to the marker ``door`` in these files."""
    calls = [
        node
        for path in HERE.glob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.door"
    ]
    return {ast.literal_eval(call.args[0]) for call in calls}


def test_the_page_lists_every_door() -> None:
    assert {row[0] for row in _rows(PAGE)} == doors()


def test_every_door_of_the_page_is_open() -> None:
    """Nothing that the page shows has failed, and everything was run on the CPU."""
    for name, *cells in _rows(PAGE):
        counts = [cell.split(" of ") for cell in cells if cell != "-"]
        assert cells[0] != "-", name
        assert all(passed == ran for passed, ran in counts), name


def _rows(page: str) -> list[list[str]]:
    return [line.strip("| \n").split(" | ") for line in re.findall(r"^\| .*$", page, re.MULTILINE)][1:]


@pytest.mark.parametrize("ran", [0, 2])
def test_a_closed_door_is_seen(ran: int) -> None:
    made = table([{"Mine": {"cpu": [1, 2]}}, {"Mine": {"mlx:cpu": [0, ran]} if ran else {}}])
    assert made.splitlines()[-1] == f"| Mine | 1 of 2 | {'0 of 2' if ran else '-'} | - |"
