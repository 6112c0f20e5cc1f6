"""The picture of a benchmark's figures: what it shows, and that it is a file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import decode_cuda, ops_cuda
from benchmarks.picture import draw, shares

DOCS = Path(__file__).resolve().parents[1] / "docs"
ROW = {"row": "RMSNorm", "ours": 20.0, "bound": 10.0, "peers": {"eager": 50.0, "compiled": 40.0}}
MODEL = {
    "what": "decode",
    "model": "Qwen3-8B",
    "weights": "bf16",
    "batch": 8,
    "context": 1024,
    "ours": 900.0,
    "share": 0.6,
    "theirs": 600.0,
}
ALONE = {**ROW, "row": "int8 keys", "peers": {}}


def test_a_share_is_the_bound_over_the_time_of_the_fastest_way() -> None:
    assert shares(ROW) == ("RMSNorm", 0.5, 0.25, None)
    assert shares(ALONE) == ("int8 keys", 0.5, None, None)
    assert shares({**ROW, "row": "RMSNorm 8192x4096"}).goal == 0.9
    assert shares({**ROW, "row": "causal attention 8x16/16x1024x64"}).goal == pytest.approx(1.2 * 0.25)
    assert shares({**ROW, "row": "decode 1x8192 keys, 32/8x128, bf16, pages of 16"}).goal == 0.5


def test_shares_of_models() -> None:
    assert shares(MODEL) == ("decode Qwen3-8B bf16, 8x1024", 0.6, pytest.approx(0.4), pytest.approx(1.3 * 0.4))
    assert shares({**MODEL, "batch": 1}).goal == 0.75
    assert shares({**MODEL, "theirs": None})[1:] == (0.6, None, None)


def test_it_is_drawn(tmp_path: Path) -> None:
    figures = {"machine": "a machine", "ceilings": {"bandwidth": 4.2, "rate": 780.0}, "rows": [ROW, ALONE, MODEL]}
    draw(figures, tmp_path / "rows.svg")
    text = (tmp_path / "rows.svg").read_text(encoding="utf-8")
    assert text.startswith("<?xml")
    assert len(text) > 5000


LINES: dict[str, Callable[[Any], str]] = {
    "decode_cuda": lambda row: decode_cuda.Timing(**row).line(),
    "ops_cuda": lambda row: ops_cuda.line(ops_cuda.Measured(**row)),
}


@pytest.mark.parametrize("path", sorted((DOCS / "figures").iterdir()), ids=lambda path: path.stem)
def test_the_pages_of_the_docs_draw_what_their_tables_say(path: Path) -> None:
    figures = json.loads(path.read_text(encoding="utf-8"))
    page = (DOCS / "performance.md").read_text(encoding="utf-8").splitlines()
    assert figures["rows"]
    assert [line for line in map(LINES[path.stem], figures["rows"]) if line not in page] == []
