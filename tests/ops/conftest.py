"""What tests of ops share."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

import ferrum_array as fa
from ferrum_ops import fast_paths, use_fast_paths

REFERENCES = "cpu references"


@pytest.fixture(
    scope="session",
    params=[
        "cpu",
        REFERENCES,
        pytest.param("mlx:cpu", marks=pytest.mark.mlx),
        pytest.param("cuda:0", marks=pytest.mark.cuda),
    ],
)
def device(request: pytest.FixtureRequest) -> fa.Device:
    """Each storage in turn, and NumPy's once more without its kernels: every test of an op runs on both."""
    name: str = request.param
    return fa.Device(name.partition(" ")[0])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Inside the call alone: a fixture of the session would leave the switch as it is for tests without a device."""
    callspec = getattr(item, "callspec", None)
    only = callspec is not None and callspec.params.get("device") == REFERENCES
    with use_fast_paths(fast_paths() and not only):
        return (yield)


@pytest.fixture(scope="session", params=["mlx:cpu", "mlx:gpu"])
def mlx(request: pytest.FixtureRequest) -> fa.Device:
    """MLX's CPU, and its GPU or the rehearsal of one; for tests that carry the marker ``mlx``."""
    return fa.Device(request.param)
