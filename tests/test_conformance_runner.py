"""The runner of the array API suite excuses nothing and takes a broken run for what it is."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from conformance import everything, run

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("name", ["skips.txt", "xfails.txt"])
def test_nothing_is_skipped_or_excused(name: str) -> None:
    assert (ROOT / "conformance" / name).read_text() == ""


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("1384 passed in 12.30s", []),
        ("=== 1384 passed, 92 warnings in 754.03s (0:12:34) ===", []),
        ("1 failed, 1383 passed in 1.00s", ["1 failed"]),
        ("1379 passed, 5 skipped in 1.00s", ["5 skipped"]),
        ("1383 passed, 1 xfailed in 1.00s", ["1 xfailed"]),
        ("1383 passed, 1 xpassed in 1.00s", ["1 xpassed"]),
        ("1383 passed, 1 error in 1.00s", ["1 error"]),
        ("2 failed, 1380 passed, 1 skipped, 3 errors in 1s", ["2 failed", "1 skipped", "3 errors"]),
        ("10 passed, 1374 deselected in 1.00s", ["1374 deselected"]),
        ("3 warnings in 0.10s", ["no test passed"]),
    ],
)
def test_only_a_line_of_passed_tests_is_accepted(line: str, expected: list[str]) -> None:
    found = run.summary_line(f"....\n1 passed in 0.01s\n{line}\n")
    assert run.problems(run.count_outcomes(found), 0) == expected


def test_a_line_that_looks_good_does_not_hide_a_bad_status() -> None:
    assert run.problems({"passed": 1384}, 3) == ["pytest ended with status 3"]


def test_a_run_without_a_summary_is_an_error() -> None:
    with pytest.raises(ValueError, match="no summary line"):
        run.summary_line("ERROR: file or directory not found: array_api_tests\n")


def test_the_environment_drops_the_switches_of_the_suite() -> None:
    inherited = {
        "HOME": "/home/me",
        "ARRAY_API_TESTS_SKIP_DTYPES": "uint64",
        "ARRAY_API_TESTS_XFAIL_MARK": "skip",
        "FERRUM_DEVICE": "cpu",
        "PYTHONPATH": "elsewhere",
    }
    made = run.environment("mlx:cpu", "scratch", inherited)
    assert made["HOME"] == "/home/me"
    assert made["ARRAY_API_TESTS_MODULE"] == "ferrum_array"
    assert made["ARRAY_API_TESTS_VERSION"] == run.API_VERSION
    assert made["FERRUM_DEVICE"] == "mlx:cpu"
    assert made["PYTHONPATH"].endswith("elsewhere")
    assert not {"ARRAY_API_TESTS_SKIP_DTYPES", "ARRAY_API_TESTS_XFAIL_MARK"} & made.keys()


def test_the_suite_is_told_which_dtypes_a_device_lacks_and_nothing_else() -> None:
    inherited = {"ARRAY_API_TESTS_SKIP_DTYPES": "uint64"}
    made = run.environment("mlx:cpu", "scratch", inherited, ["complex128"])
    assert made["ARRAY_API_TESTS_SKIP_DTYPES"] == "complex128"
    assert run.absent_dtypes("cpu") == []


@pytest.mark.mlx
def test_mlx_lacks_complex128_alone() -> None:
    assert run.absent_dtypes("mlx:cpu") == ["complex128"]


def test_a_missing_dtype_must_be_refused() -> None:
    def refusing(x: Any) -> None:
        raise TypeError("device d has no complex128")

    def computing(x: Any) -> None:
        pass

    real, double = (SimpleNamespace(dtype=name) for name in ("float32", "float64"))
    everything.refused_without_complex128(refusing)(x=double)
    everything.refused_without_complex128(computing)(x=real)
    with pytest.raises(TypeError):
        everything.refused_without_complex128(refusing)(x=real)
    with pytest.raises(pytest.fail.Exception):
        everything.refused_without_complex128(computing)(x=double)


def test_a_wrong_path_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run.parse_arguments(["--suite", str(tmp_path)])
    assert caught.value.code == 2
    assert "no checkout of array-api-tests" in capsys.readouterr().err


SUITE = {
    "array-api/README.md": "",
    "array_api_tests/__init__.py": "",
    "conftest.py": """
        import pytest
        def pytest_addoption(parser):
            for flag in ("--skips-file", "--xfails-file", "--max-examples"):
                parser.addoption(flag)
            parser.addoption("--disable-deadline", action="store_true")
        def pytest_collection_modifyitems(items):
            for item in items:
                if "extension" in item.name:
                    item.add_marker(pytest.mark.skip(reason="extension not found"))
        """,
}


@pytest.mark.parametrize(
    ("tests", "status", "verdict"),
    [
        ("def test_good(): pass", 0, "everything passed"),
        ("def test_good(): pass\ndef test_bad(): assert 0", 1, "1 failed"),
        ("def test_good(): pass\ndef test_extension(): pass", 1, "1 skipped"),
        ("import pytest\n@pytest.mark.skip(reason='flaky')\ndef test_good(): pass", 0, "1 passed"),
        (
            "import pytest\n@pytest.mark.skip(reason='flaky')\ndef test_bad(): assert 0",
            1,
            "1 failed",
        ),
    ],
)
def test_a_small_suite(tmp_path: Path, tests: str, status: int, verdict: str) -> None:
    for name, text in SUITE.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(text))
    (tmp_path / "array_api_tests" / "test_small.py").write_text(tests)
    done = subprocess.run(
        [
            *(sys.executable, str(ROOT / "conformance" / "run.py"), "--suite", str(tmp_path)),
            *("--seeds", "7", "--examples", "1", "--jobs", "1"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    assert verdict in done.stdout.splitlines()[-1]
