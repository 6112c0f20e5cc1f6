"""The picture of a benchmark's figures: what it shows, and that it is a file."""

from __future__ import annotations

from pathlib import Path

from benchmarks.picture import draw, shares

ROW = {"row": "RMSNorm", "ours": 20.0, "bound": 10.0, "peers": {"eager": 50.0, "compiled": 40.0}}
ALONE = {**ROW, "row": "int8 keys", "peers": {}}


def test_a_share_is_the_bound_over_the_time_of_the_fastest_way() -> None:
    assert shares(ROW) == (0.5, 0.25)
    assert shares(ALONE) == (0.5, None)


def test_it_is_drawn(tmp_path: Path) -> None:
    figures = {"machine": "a machine", "ceilings": {"bandwidth": 4.2, "rate": 780.0}, "rows": [ROW, ALONE]}
    draw(figures, tmp_path / "rows.svg")
    text = (tmp_path / "rows.svg").read_text(encoding="utf-8")
    assert text.startswith("<?xml")
    assert len(text) > 5000
