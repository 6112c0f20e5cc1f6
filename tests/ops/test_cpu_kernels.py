"""Kernels for the CPU: which calls they take, on how many threads, and on processors without AVX-512.

That they compute what the ops mean is in the tests of the ops, which run on kernels and references both.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import ferrum_array as fa
from ferrum_ops import fast_paths, rms_norm, set_threads, threads
from tests.ops import cpu_calls

pytest.importorskip("numba")

ROOT = Path(__file__).resolve().parents[2]
CALLS = {(dtype, name): call for dtype in cpu_calls.DTYPES for name, call in cpu_calls.calls(dtype).items()}


@pytest.fixture
def counted() -> Iterator[None]:
    """The number of threads is afterwards what it was."""
    before = threads()
    yield
    set_threads(before)


@pytest.mark.parametrize(("dtype", "name"), CALLS, ids=lambda one: str(one))
def test_the_kernel_runs_and_agrees_with_the_reference(dtype: fa.Dtype, name: str) -> None:
    assert max(cpu_calls.differences(CALLS[dtype, name])) <= cpu_calls.WITHIN[dtype]


def test_the_comparison_can_fail() -> None:
    call = CALLS[fa.float32, "rms_norm"]
    with pytest.raises(AssertionError, match=r"expected cpu\.softcap"):
        cpu_calls.differences(call._replace(runs="cpu.softcap"))

    def wrong(*arguments: Any, **options: Any) -> fa.Tensor:
        return rms_norm(*arguments, **options) * (1.001 if fast_paths() else 1.0)

    assert max(cpu_calls.differences(call._replace(op=wrong))) > 5e-4


@pytest.mark.usefixtures("counted")
@pytest.mark.parametrize(("dtype", "name"), CALLS, ids=lambda one: str(one))
def test_the_number_of_threads_changes_no_bit(dtype: fa.Dtype, name: str) -> None:
    call = CALLS[dtype, name]
    set_threads(1)
    expected = [x.numpy().tobytes() for x in call()]
    for count in (2, 3, 8):
        set_threads(count)
        assert [x.numpy().tobytes() for x in call()] == expected, f"{count} threads"


@pytest.mark.usefixtures("counted")
def test_threads_of_python_call_at_once() -> None:
    chosen = [call for (dtype, _), call in CALLS.items() if dtype is fa.float32]
    set_threads(2)
    expected = [[x.numpy().tobytes() for x in call()] for call in chosen]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            found = list(pool.map(lambda call: [x.numpy().tobytes() for x in call()], chosen))
            assert found == expected


def test_processors_without_special_instructions() -> None:
    """In a process that is told to use none, the same kernels run as portable loops."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.ops.cpu_calls", "f32"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "FERRUM_CPU": "portable"},
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(CALLS) / len(cpu_calls.DTYPES)
