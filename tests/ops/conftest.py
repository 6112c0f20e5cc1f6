"""What tests of ops share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import ferrum_array as fa
from ferrum_ops import fast_paths, use_fast_paths


@pytest.fixture(
    scope="session",
    params=[
        "cpu",
        "cpu references",
        pytest.param("mlx:cpu", marks=pytest.mark.mlx),
        pytest.param("cuda:0", marks=pytest.mark.cuda),
    ],
)
def device(request: pytest.FixtureRequest) -> Iterator[fa.Device]:
    """Each storage in turn, and NumPy's once more without its kernels: every test of an op runs on both."""
    name, _, only = request.param.partition(" ")
    with use_fast_paths(fast_paths() and not only):
        yield fa.Device(name)


@pytest.fixture(scope="session", params=["mlx:cpu", "mlx:gpu"])
def mlx(request: pytest.FixtureRequest) -> fa.Device:
    """MLX's CPU, and its GPU or the rehearsal of one; for tests that carry the marker ``mlx``."""
    return fa.Device(request.param)
