"""What tests of ops share."""

from __future__ import annotations

import pytest

import ferrum_array as fa


@pytest.fixture(scope="session", params=["mlx:cpu", "mlx:gpu"])
def mlx(request: pytest.FixtureRequest) -> fa.Device:
    """MLX's CPU, and its GPU or the rehearsal of one; for tests that carry the marker ``mlx``."""
    return fa.Device(request.param)
