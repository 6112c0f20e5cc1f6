"""Run the array API standard's test suite against ferrum_array, with nothing skipped or excused.

    python conformance/run.py --suite PATH [--device cpu] [--examples 500] [--seeds 0 1 2]

PATH is a checkout of data-apis/array-api-tests with its submodule. The exit status is zero only if
the suite's own summary line, for every seed, counts tests that passed and no others.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
API_VERSION = "2025.12"

_COUNT = re.compile(r"(\d+) ([a-z]+)")
_SUMMARY = re.compile(r"^=*\s*(\d+ [a-z]+(?:, \d+ [a-z]+)*) in [\d.]+s(?: \([\d:]+\))?\s*=*$")
#: What the summary line may count without a test having gone missing or wrong.
_HARMLESS = frozenset({"passed", "warning", "warnings"})


def summary_line(output: str) -> str:
    """The last line of pytest's output that counts the outcomes, without its frame.

    Raises:
        ValueError: if there is none, as when pytest stopped before the first test.
    """
    for line in reversed(output.splitlines()):
        if _SUMMARY.match(line.strip()):
            return line.strip().strip("=").strip()
    raise ValueError("pytest printed no summary line: the suite did not run to its end")


def count_outcomes(line: str) -> dict[str, int]:
    """The counts of a summary line, by outcome.

    >>> count_outcomes("2 failed, 1382 passed, 89 warnings in 10.68s")
    {'failed': 2, 'passed': 1382, 'warnings': 89}
    """
    return {outcome: int(number) for number, outcome in _COUNT.findall(line.rpartition(" in ")[0])}


def problems(counts: Mapping[str, int], status: int) -> list[str]:
    """Why a run does not count as passed; empty if it does.

    >>> problems({"passed": 1384, "warnings": 89}, 0)
    []
    >>> problems({"passed": 1383, "skipped": 1}, 0)
    ['1 skipped']
    """
    found = [f"{n} {outcome}" for outcome, n in counts.items() if n and outcome not in _HARMLESS]
    if not counts.get("passed"):
        found.append("no test passed")
    if status and not found:
        found.append(f"pytest ended with status {status}")
    return found


def absent_dtypes(device: str) -> list[str]:
    """The standard's dtypes that *device* does not have, by the inspection API.

    >>> absent_dtypes("cpu")
    []
    """
    from ferrum_array import __array_namespace_info__

    info = __array_namespace_info__()
    return sorted(info.dtypes(device="cpu").keys() - info.dtypes(device=device).keys())


def environment(device: str, scratch: str, inherited: Mapping[str, str], absent: Sequence[str] = ()) -> dict[str, str]:
    """The suite's environment: ours, and none of the switches that make the suite do less.

    The one thing that the suite must be told is which dtypes the device does not have.
    """
    kept = {name: value for name, value in inherited.items() if "ARRAY_API_TESTS" not in name}
    paths = [str(HERE), str(HERE.parent), *filter(None, [inherited.get("PYTHONPATH")])]
    return kept | {
        "ARRAY_API_TESTS_MODULE": "ferrum_array",
        "ARRAY_API_TESTS_VERSION": API_VERSION,
        "FERRUM_DEVICE": device,
        # The suite also sends tensors of every dtype to every other device, which need not have that dtype.
        "FERRUM_VISIBLE_DEVICES": "cpu" if device == "cpu" else f"cpu,{device}",
        "HYPOTHESIS_STORAGE_DIRECTORY": scratch,  # no examples remembered from earlier runs
        "PYTHONPATH": os.pathsep.join(paths),
        **({"ARRAY_API_TESTS_SKIP_DTYPES": ",".join(absent)} if absent else {}),
    }


def command(examples: int, seed: int, jobs: int) -> list[str]:
    """The call of pytest for one seed, made in the suite's directory."""
    return [
        *(sys.executable, "-m", "pytest", "array_api_tests", "-q", "--tb=short", "-rfEsxX"),
        *("-p", "no:cacheprovider", "-p", "everything", "-n", str(jobs)),
        *("--disable-warnings", "-W", "error::RuntimeWarning"),  # the suite's own are no news
        *("--skips-file", str(HERE / "skips.txt"), "--xfails-file", str(HERE / "xfails.txt")),
        *("--max-examples", str(examples), f"--hypothesis-seed={seed}", "--disable-deadline"),
    ]


def run_seed(suite: Path, device: str, examples: int, seed: int, jobs: int) -> tuple[str, int]:
    """Run the suite once, showing its output as it comes; the output and the exit status."""
    lines = []
    with tempfile.TemporaryDirectory() as scratch:
        process = subprocess.Popen(
            command(examples, seed, jobs),
            cwd=suite,
            env=environment(device, scratch, os.environ, absent_dtypes(device)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None  # a pipe, as asked for above
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
        status = process.wait()
    return "".join(lines), status


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--suite", type=Path, required=True, help="checkout of array-api-tests")
    parser.add_argument("--device", default="cpu", help="where tensors are made (default: cpu)")
    parser.add_argument("--examples", type=int, default=500, help="Hypothesis examples a test")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="one run for each")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    chosen = parser.parse_args(arguments)
    if not (chosen.suite / "array_api_tests").is_dir():
        parser.error(f"{chosen.suite} is no checkout of array-api-tests: it has no array_api_tests")
    if not any((chosen.suite / "array-api").glob("*")):
        parser.error(f"{chosen.suite}/array-api is empty; run there: git submodule update --init")
    return chosen


def main(arguments: Sequence[str] | None = None) -> int:
    """Run every seed, print one Markdown row for each, and say whether all passed."""
    chosen = parse_arguments(arguments)
    rows, failed = [], False
    for seed in chosen.seeds:
        output, status = run_seed(chosen.suite, chosen.device, chosen.examples, seed, chosen.jobs)
        line = summary_line(output)
        found = problems(count_outcomes(line), status)
        failed = failed or bool(found)
        rows.append(f"| {seed} | {line} | {'; '.join(found) if found else 'everything passed'} |")
    print(
        f"\narray-api-tests, standard {API_VERSION}, device {chosen.device}, "
        f"{chosen.examples} examples, "
        f"{datetime.date.today().isoformat()}, Python {platform.python_version()}, "
        f"NumPy {version('numpy')}, Hypothesis {version('hypothesis')}"
        + (f", MLX {version('mlx')}" if chosen.device.startswith("mlx") else "")
        + "".join(f"; the device has no {name}" for name in absent_dtypes(chosen.device))
        + "\n"
    )
    print("\n".join(["| seed | the suite's line | verdict |", "|---|---|---|", *rows]))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
