"""Other libraries on our tensors: on which storage, and what a run found.

Every file here is a door or several, named by the marker ``door``. With ``FERRUM_DOORS=FILE`` a run in one process
writes down what it found, and ``python -m tests.doors.table FILE ...`` makes the page's table of such files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Generator
from pathlib import Path

# read by these libraries when they are imported
os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import pytest

_found: dict[str, dict[str, list[int]]] = {}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    marker = item.get_closest_marker("door")
    if marker is not None and report.when == "call" and not report.skipped:
        callspec = getattr(item, "callspec", None)
        device = "cpu" if callspec is None else callspec.params.get("device", "cpu")
        counts = _found.setdefault(marker.args[0], {}).setdefault(device, [0, 0])
        counts[0] += report.passed
        counts[1] += 1
    return report


def pytest_sessionfinish() -> None:
    if "FERRUM_DOORS" in os.environ and _found:
        Path(os.environ["FERRUM_DOORS"]).write_text(json.dumps(_found, indent=1), encoding="utf-8")
