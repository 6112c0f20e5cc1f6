"""The benchmark of the cost per call measures what it says, and says which peers are missing."""

from __future__ import annotations

import importlib
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from benchmarks import overhead

ROOT = Path(__file__).resolve().parents[1]


def cells(table: str) -> list[list[str]]:
    return [[c.strip() for c in line.strip("| ").split("|")] for line in table.splitlines()]


def test_the_script_prints_both_tables() -> None:
    done = subprocess.run(
        [
            *(sys.executable, str(ROOT / "benchmarks" / "overhead.py")),
            *("--rounds", "1", "--import-rounds", "1"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    versions, calls, imports = done.stdout.strip().split("\n\n")
    assert "numpy" in versions
    header, rule, *rows = cells(calls)
    assert [row[0].strip("`") for row in rows] == [
        *("a + b", "a * 2.0", "exp(a)", "sum(a)", "a[1:3]", "m @ m", "sum(a * b + c)")
    ]
    assert {len(row) for row in rows} == {len(header)} == {len(rule)}
    for row in rows:
        measured = dict(zip(header[1:], map(float, row[1:]), strict=True))
        ratio = measured["Ferrum"] / measured["NumPy"]
        assert measured["Ferrum / NumPy"] == pytest.approx(ratio, rel=0.1)  # of rounded figures
    assert len(cells(imports)) == 3


def test_a_missing_peer_is_shown_as_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def without_torch(name: str) -> ModuleType:
        if name == "torch":
            raise ImportError(name)
        return real(name)

    monkeypatch.setattr(importlib, "import_module", without_torch)
    found, absent = overhead.libraries("cpu")
    assert absent == ["PyTorch"]
    header, _, *rows = cells(overhead.overhead_table(found, absent, rounds=1))
    place = header.index("PyTorch")
    assert {row[place] for row in rows} == {"absent"}
    assert "Ferrum / PyTorch" not in header


def test_times_are_those_of_one_call() -> None:
    slow, slower = overhead.best_times([lambda: time.sleep(2e-4), lambda: time.sleep(1e-3)], 2)
    assert 2e-4 <= slow < 1e-3 <= slower < 5e-3


def test_every_library_computes_the_same() -> None:
    """The rows mean the same for all, so that their times can be compared."""
    found, _ = overhead.libraries("cpu")
    expected = {row: np.asarray(call()) for row, call in overhead.calls(found[0]).items()}
    for library in found[1:]:
        for row, call in overhead.calls(library).items():
            result = np.from_dlpack(call())
            np.testing.assert_allclose(result, expected[row], rtol=1e-6, err_msg=library.name)
