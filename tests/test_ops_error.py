"""The benchmark of the ops' errors finds errors, and says what it does not measure."""

from __future__ import annotations

import inspect
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import ferrum_array as fa
import ferrum_ops
from benchmarks import ops_error
from benchmarks.ops_error import Draw, Results, error_of, measure
from ferrum_ops import softcap

ROOT = Path(__file__).resolve().parents[1]
CPU = fa.Device("cpu")


def test_the_script_prints_a_table() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "benchmarks.ops_error",
            *("--cases", "2", "--device", "cpu", "--op", "softcap", "l2_norm"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    _, title, references, *_ = done.stdout.strip().split("\n\n")
    assert title == "cpu, references, 2 cases for each op and dtype"
    head, _, *rows = ([cell.strip() for cell in line.strip("| ").split("|")] for line in references.splitlines())
    assert head == ["op", "f32", "f16", "bf16", "f64", "cases"]
    assert [row[0] for row in rows] == ["`l2_norm`", "`softcap`"]
    for row in rows:
        assert row[-1] == "8"
        for cell, tolerance in zip(row[1:5], (1e-6, 2e-3, 1.5e-2, 1e-14), strict=True):
            assert cell == "exact" or 0 < float(cell) < tolerance


@pytest.mark.parametrize("op", ops_error.cases())
def test_every_case_measures_its_op(op: str) -> None:
    """Few cases here; the errors themselves are judged by the tests of the ops."""
    in_few_bits = {"quantize": 0.2, "kv_append": 1e-2, "kv_append, E4M3": 3e-2}
    stored = in_few_bits.get(op) or in_few_bits.get(op.partition(", ")[0], 1e-4)
    for dtype, most in ((fa.float32, stored), (fa.bfloat16, max(stored, 0.05))):
        found = measure(op, ops_error.cases()[op], CPU, dtype, False, range(3))
        assert found.count == 3
        assert found.error < most


def test_the_documents_list_and_count_the_ops() -> None:
    exported = {name for name in ferrum_ops.__all__ if inspect.isfunction(getattr(ferrum_ops, name))}
    ops = exported - ops_error.NOT_MEASURED
    page, readme, changes = (
        (ROOT / name).read_text(encoding="utf-8") for name in ("docs/ops.md", "README.md", "CHANGELOG.md")
    )
    first = [line.split("|")[1] for line in page.split("## The list")[1].split("\n## ")[0].splitlines() if "|" in line]
    assert set(re.findall(r"`(\w+)`", " ".join(first))) == ops
    assert f"{len(ops)} functions of tensors" in page
    assert f"{len(ops)} functions:" in readme
    assert f"`ferrum_ops`: {len(ops)} ops" in changes


def test_every_exported_op_has_a_case() -> None:
    assert ops_error.missing() == []


def wrong(draw: Draw) -> Results:
    x, exact = draw.noise(50)
    yield draw.call(softcap, x, 30.0), 30.0 * np.tanh(exact / 30.0) * (1.001 if draw.rng.random() < 0.2 else 1.0)


def test_a_wrong_case_is_found_and_named() -> None:
    found = measure("softcap", wrong, CPU, fa.float32, False, range(40))
    assert found.count == 40
    assert found.error == pytest.approx(1e-3, rel=0.01)
    assert measure("softcap", wrong, CPU, fa.float32, False, [found.worst]).error == found.error


def test_of_fast_paths_only_covered_cases_count() -> None:
    def every_other(draw: Draw) -> Results:
        draw.ran.append("cpu.softcap" if draw.flag() else "reference")
        draw.choice = True
        x, exact = draw.noise(50)
        yield x, exact

    found = measure("softcap", every_other, CPU, fa.float32, True, range(40))
    assert 5 < found.count < 35
    assert found.ran == {"cpu.softcap": found.count}
    assert measure("softcap", every_other, CPU, fa.float32, False, range(40)).count == 40


def test_shapes_integers_and_nan_count_as_errors() -> None:
    assert error_of(fa.ones(3), np.ones((3, 1))) == math.inf
    assert error_of(fa.asarray([1, 2]), np.asarray([1, 3])) == math.inf
    assert error_of(fa.asarray([1, 2]), np.asarray([1, 2])) == 0
    assert math.isnan(error_of(fa.asarray([1.0, fa.nan]), np.ones(2)))
    found = ops_error.Measured()
    found.add(math.nan, 7, [])
    assert (found.worst, ops_error.shown(found)) == (7, "nan")


def test_what_has_no_case_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(ferrum_ops, "__all__", ["softcap", "explain", "ActivationKind"])
    assert ops_error.missing() == []
    found = ops_error.cases()
    monkeypatch.setattr(ops_error, "cases", lambda: {op: f for op, f in found.items() if op == "linear"})
    assert ops_error.missing() == ["softcap"]
    assert ops_error.main(["--cases", "1", "--device", "cpu"]) == 1
    assert "without a case: softcap" in capsys.readouterr().out


def test_bad_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["--op", "softcup"], "no op is called softcup; there are activation"),
        (["--cases", "0"], "--cases must be at least 1"),
    ):
        with pytest.raises(SystemExit):
            ops_error.main(arguments)
        assert message in capsys.readouterr().err
