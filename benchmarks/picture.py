"""The figures of ``ops_cuda`` as a picture: how near each row comes to what the device can do, ours and PyTorch's.

python -m benchmarks.ops_cuda --json ops.json
python -m benchmarks.picture ops.json ops.svg
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["draw", "shares"]


def shares(row: Mapping[str, Any]) -> tuple[float, float | None]:
    """The bound over our time, and over PyTorch's where there is a peer."""
    peers = row["peers"].values()
    return row["bound"] / row["ours"], row["bound"] / min(peers) if peers else None


def draw(figures: Mapping[str, Any], path: Path) -> None:
    """Write the picture to *path*, in the format that its ending names."""
    from matplotlib.figure import Figure

    rows = figures["rows"][::-1]  # the first on top
    figure = Figure(figsize=(8, 0.8 + 0.24 * len(rows)), layout="constrained")
    axes = figure.subplots()
    pairs = [shares(row) for row in rows]
    places = range(len(rows))
    axes.barh([n + 0.2 for n in places], [ours for ours, _ in pairs], 0.4, label="Ferrum", color="#b7410e")
    theirs = [(n - 0.2, peer) for n, (_, peer) in enumerate(pairs) if peer is not None]
    axes.barh(
        [n for n, _ in theirs], [peer for _, peer in theirs], 0.4, label="PyTorch, its fastest way", color="#aaaaaa"
    )
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_yticks(list(places), [row["row"] for row in rows], fontsize=6)
    ceilings = figures["ceilings"]
    axes.set(
        xlabel=f"share of the bound: {ceilings['bandwidth']:.2f} TB/s and {ceilings['rate']:.0f} TFLOP/s, as measured",
        title=figures["machine"],
    )
    axes.title.set_fontsize(7)
    axes.legend(fontsize=7, loc="lower right")
    figure.savefig(path, dpi=150)


def main() -> None:
    """Draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("figures", type=Path, help="what --json has written")
    parser.add_argument("picture", type=Path, help="a file that ends in .svg, .png or .pdf")
    options = parser.parse_args()
    draw(json.loads(options.figures.read_text(encoding="utf-8")), options.picture)


if __name__ == "__main__":
    main()
