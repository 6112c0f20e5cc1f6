"""What the tests of the tensor share: each runs on every storage that this machine has."""

from __future__ import annotations

import pytest

import ferrum_array as fa


# One value a session, so that property tests may use it: Hypothesis refuses fixtures made per test.
@pytest.fixture(
    scope="session",
    params=[
        "cpu",
        pytest.param("mlx:cpu", marks=pytest.mark.mlx),
        pytest.param("mlx:gpu", marks=pytest.mark.mlx),  # rehearsed on the CPU where there is no GPU
        pytest.param("cuda:0", marks=pytest.mark.cuda),
    ],
)
def device(request: pytest.FixtureRequest) -> fa.Device:
    """Each storage in turn."""
    return fa.Device(request.param)
