"""A pytest plugin for the array API suite: tests that the suite itself marks as skipped run too.

The suite leaves out a few of its tests for every library ("flaky"). With this plugin nothing is
left out, so that the count of skipped tests must be zero. Marks that are added during collection,
for a missing extension or from a list of skips, stay: those tests show up as skipped.
"""

from __future__ import annotations

import pytest


@pytest.hookimpl(tryfirst=True)  # before the suite's own hook adds the marks that must stay
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Remove the skip marks that tests were written with."""
    for item in items:
        for node in item.listchain():
            node.own_markers[:] = [mark for mark in node.own_markers if mark.name != "skip"]
