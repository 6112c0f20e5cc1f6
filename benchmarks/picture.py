"""The figures of ``ops_cuda`` or ``decode_cuda`` as a picture: how near each row comes to what the device can do.

python -m benchmarks.ops_cuda --json ops.json
python -m benchmarks.picture ops.json ops.svg
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.cuda_goals import MODELS, OPS, goals_of

__all__ = ["Shares", "draw", "figure", "shares"]

_OURS, _THEIRS = "#b7410e", "#aaaaaa"


class Shares(NamedTuple):
    """A row of the picture: the bound over our time, over the peer's fastest, and what reaches the row's goals."""

    name: str
    ours: float
    peer: float | None
    goal: float | None


def shares(row: Mapping[str, Any]) -> Shares:
    """The shares of a row of either benchmark."""
    if "model" in row:
        name = f"{row['what']} {row['model']} {row['weights']}, {row['batch']}x{row['context']}"
        ours, theirs = row["share"], row["theirs"]
        peer = None if theirs is None else ours * theirs / row["ours"]
        goals = goals_of(f"{row['what']} {row['model']} {row['weights']} {row['batch']}", MODELS)
        found = [goal.share(1.0, None if peer is None else 1.0 / peer) for goal in goals]
    else:
        name, best = row["row"], min(row["peers"].values(), default=None)
        ours, peer = row["bound"] / row["ours"], None if best is None else row["bound"] / best
        found = [goal.share(row["bound"], best) for goal in goals_of(name, OPS)]
    return Shares(name, ours, peer, max((one for one in found if one is not None), default=None))


def figure(figures: Mapping[str, Any]) -> Any:
    """The picture, a figure of Matplotlib's."""
    from matplotlib.figure import Figure

    rows = [shares(row) for row in figures["rows"][::-1]]  # the first on top
    made = Figure(figsize=(8, 1.0 + 0.24 * len(rows)), layout="constrained")
    axes = made.subplots()
    places = range(len(rows))
    axes.barh([n + 0.2 for n in places], [row.ours for row in rows], 0.4, label="Ferrum", color=_OURS)
    theirs = [(n - 0.2, row.peer) for n, row in enumerate(rows) if row.peer is not None]
    axes.barh([n for n, _ in theirs], [peer for _, peer in theirs], 0.4, label="the fastest peer", color=_THEIRS)
    goals = [(n + 0.2, row.goal) for n, row in enumerate(rows) if row.goal is not None]
    axes.plot([goal for _, goal in goals], [n for n, _ in goals], "|", color="black", markersize=7, label="goal")
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_yticks(list(places), [row.name for row in rows], fontsize=6)
    ceilings = figures["ceilings"]
    axes.set(
        xlabel=f"share of the bound: {ceilings['bandwidth']:.2f} TB/s and {ceilings['rate']:.0f} TFLOP/s, as measured",
        ylim=(-0.8, len(rows) - 0.2),
    )
    made.suptitle(figures["machine"], fontsize=6)
    axes.xaxis.label.set_fontsize(8)
    axes.tick_params(axis="x", labelsize=7)
    axes.legend(fontsize=7, loc="lower right")
    return made


def draw(figures: Mapping[str, Any], path: Path) -> None:
    """Write the picture to *path*, in the format that its ending names."""
    figure(figures).savefig(path, dpi=150)


def main() -> None:
    """Draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("figures", type=Path, help="what --json has written")
    parser.add_argument("picture", type=Path, help="a file that ends in .svg, .png or .pdf")
    options = parser.parse_args()
    draw(json.loads(options.figures.read_text(encoding="utf-8")), options.picture)


if __name__ == "__main__":
    main()
