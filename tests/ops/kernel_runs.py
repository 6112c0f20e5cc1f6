"""Calls of ops of which a kernel for the CPU is known to run: by its name, by the reference, on one thread and two."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

import ferrum_array as fa
from ferrum_ops import explain, set_threads, threads, use_fast_paths
from tests.array.oracle import to_dtype, wide
from tests.ops.oracle import Array, check

DTYPES = (fa.float32, fa.float16, fa.bfloat16)
#: the relative distance from float64: that of one rounding at the end, and of sums in float32
WITHIN = {fa.float32: 2e-6, fa.float16: 6e-4, fa.bfloat16: 4.5e-3}
#: how rows of an operand lie in memory
LAYOUTS = ("plain", "part", "gaps", "turned")


@contextmanager
def on_threads(count: int) -> Iterator[None]:
    """Inside, kernels run on so many threads, however little there is to do."""
    from ferrum_ops.kernels.cpu import threads as crews

    before = threads()
    set_threads(count)
    try:
        with mock.patch.object(crews, "_LEAST", 0):
            yield
    finally:
        set_threads(before)


def laid(values: Array, dtype: fa.Dtype, layout: str = "plain") -> tuple[fa.Tensor, Array]:
    """A tensor of *values* rounded to *dtype* that lies as *layout* says, and its numbers in float64.

    ``part``: rows of a wider tensor. ``gaps``: every other element. ``turned``: the last axes of a tensor exchanged.
    """
    rounded = to_dtype(values, dtype)
    exact = wide(rounded)
    if layout == "part":
        wider = np.concatenate([rounded, np.full_like(rounded, np.nan)], axis=-1)
        return fa.asarray(wider)[..., : values.shape[-1]], exact
    if layout == "gaps":
        return fa.asarray(np.repeat(rounded, 2, axis=-1))[..., ::2], exact
    if layout == "turned" and values.ndim > 1:
        return fa.moveaxis(fa.asarray(np.ascontiguousarray(np.moveaxis(rounded, -1, -2))), -1, -2), exact
    return fa.asarray(rounded), exact


def results(op: Callable[..., Any], *arguments: Any, **options: Any) -> list[fa.Tensor]:
    """The results of a call as a list."""
    found = op(*arguments, **options)
    return list(found) if isinstance(found, tuple) else [found]


def run(runs: str, op: Callable[..., Any], *arguments: Any, **options: Any) -> list[fa.Tensor]:
    """The results of the kernel *runs*: in every bit the same on two threads, NaN where the reference has NaN, and near
    the reference otherwise.
    """
    told = explain(op, *arguments, **options)
    assert told.runs == runs, f"expected {runs}:\n{told}"
    found = []
    for count in (1, 2):
        with on_threads(count):
            found.append(results(op, *arguments, **options))
    with use_fast_paths(False):
        references = results(op, *arguments, **options)
    for one, two, reference in zip(*found, references, strict=True):
        assert one.numpy().tobytes() == two.numpy().tobytes(), "two threads give other bits than one"
        assert one.shape == reference.shape
        expected, got = wide(reference), wide(one)
        nothing = np.isnan(expected)
        np.testing.assert_array_equal(np.isnan(got), nothing)
        at_ends = np.isinf(expected)
        np.testing.assert_array_equal(got[at_ends], expected[at_ends])
        # each may be half a step of the dtype away, and sums of what cancels lose more: the oracle is for that
        near = 4 * WITHIN[one.dtype]
        rest = ~(nothing | at_ends)
        span = np.linalg.norm(expected[rest])
        assert np.linalg.norm((got - np.where(rest, expected, 0.0))[rest]) <= near * max(span, 1e-2), (
            "far from reference"
        )
    return found[0]


def near(actual: fa.Tensor, expected: Array, tolerance: float = 0.0) -> None:
    """As the oracle says, within one rounding."""
    check(actual, expected, actual.dtype, tolerance or WITHIN[actual.dtype])


def portable(file: str) -> subprocess.CompletedProcess[str]:
    """Runs the tests of a file once more in a process whose kernels are loops without special instructions."""
    env = {**os.environ, "FERRUM_CPU": "portable"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(Path(file))]
    root = Path(__file__).resolve().parents[2]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=root, env=env)


def is_portable() -> bool:
    """Whether this process was told so."""
    return os.environ.get("FERRUM_CPU") == "portable"
