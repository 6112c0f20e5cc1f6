"""What all tests share: how hard Hypothesis tries, and which tests this machine can run.

FERRUM_HYPOTHESIS names the profile: ``fast`` (the default: the same examples at every run, so that
a change is the only thing that can change the outcome), ``brief`` (a few of them, for a device that
is lent for minutes) or ``thorough`` (many examples, new ones each time).
"""

from __future__ import annotations

import os
from collections import Counter
from functools import cache

import pytest
from hypothesis import HealthCheck, settings

# MLX's GPU has fewer dtypes. Where there is none, a device with these dtypes does its work on the CPU.
os.environ.setdefault("FERRUM_REHEARSE_MLX_GPU", "1")
# SciPy reads it when it is imported, by whichever test comes first.
os.environ["SCIPY_ARRAY_API"] = "1"

import ferrum_array as fa

settings.register_profile("fast", max_examples=50, deadline=None, derandomize=True, database=None, print_blob=True)
settings.register_profile("brief", settings.get_profile("fast"), max_examples=8)
settings.register_profile(
    "thorough",
    max_examples=1000,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile(os.environ.get("FERRUM_HYPOTHESIS", "fast"))

#: marker -> what its tests need; the marker has the name of a kind of device
HARDWARE = {"cuda": "a CUDA device", "mlx": "MLX"}


@cache
def present() -> frozenset[str]:
    """The kinds of device that this machine has."""
    return frozenset(device.kind for device in fa.devices())


def pytest_report_header() -> list[str]:
    lines = [f"hypothesis profile of these tests: {os.environ.get('FERRUM_HYPOTHESIS', 'fast')}"]
    absent = [f"{marker} (needs {HARDWARE[marker]})" for marker in HARDWARE if marker not in present()]
    return [*lines, f"tests not run here: {', '.join(absent)}"] if absent else lines


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test whose hardware is missing is reported as not run. It never counts as passed."""
    for item in items:
        for marker, need in HARDWARE.items():
            if item.get_closest_marker(marker) and marker not in present():
                item.add_marker(pytest.mark.skip(reason=f"not run: needs {need}"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many tests were not run, a line for each reason."""
    reports = terminalreporter.stats.get("skipped", [])
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in reports)
    for reason, count in sorted(reasons.items()):
        terminalreporter.write_line(f"{count} tests {reason}")


# One value a session, so that property tests may use it: Hypothesis refuses fixtures made per test.
@pytest.fixture(
    scope="session",
    params=[
        "cpu",
        pytest.param("mlx:cpu", marks=pytest.mark.mlx),
        pytest.param("cuda:0", marks=pytest.mark.cuda),
    ],
)
def device(request: pytest.FixtureRequest) -> fa.Device:
    """Each storage in turn; a test with this argument runs on all that are there."""
    return fa.Device(request.param)
