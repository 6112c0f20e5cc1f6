"""Kernels for CUDA in Triton's interpreter, on NumPy storage: what they compute, without a GPU.

Where there is a GPU they are not run: there the tests of every op run the kernels themselves.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import ferrum_array as fa

_HERE = Path(__file__).parent
_GPU = any(device.kind == "cuda" for device in fa.devices())

if not _GPU:
    os.environ["TRITON_INTERPRET"] = "1"  # read by Triton when kernels are imported, which these tests do first


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _GPU and _HERE in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="not run: kernels run on the GPU itself here"))


@pytest.fixture(scope="session")
def cpu() -> fa.Device:
    """Where the interpreter's tensors lie."""
    return fa.Device("cpu")
