"""How work is shared among threads of the CPU: every item is done once, whoever does it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ferrum_ops import set_threads, threads

pytest.importorskip("numba")

from ferrum_ops.kernels.cpu.atomic import add, task
from ferrum_ops.kernels.cpu.jit import jit
from ferrum_ops.kernels.cpu.threads import crew, share


@pytest.fixture(scope="module", autouse=True)
def counted() -> Iterator[None]:
    """The number of threads is afterwards what it was."""
    before = threads()
    yield
    set_threads(before)


@jit(inner=True)
def _count(address: int, work: int, begin: int, end: int) -> None:
    for item in range(begin, end):
        for _ in range(work * (item % 5)):  # some take longer than others
            add(address + 8 * item, 2)
        add(address + 8 * item, 1 - 2 * work * (item % 5))


@jit
def _counts(address: int, items: int, grain: int, work: int, helpers: int) -> None:
    share(helpers, task(_count, (address, work)), items, grain)


def done(items: int, grain: int, count: int, work: int) -> Any:
    """How often each item was done, by so many threads."""
    set_threads(count)
    found = np.zeros(items + 1, np.int64)  # one more, which nobody may touch
    _counts(found.ctypes.data, items, grain, work, crew(1 << 30))
    return found


@given(
    items=st.integers(0, 70) | st.integers(1000, 5000), grain=st.integers(1, 9) | st.sampled_from([100, 10**6]),
    count=st.sampled_from([1, 2, 3, 5, 8, 40]), work=st.sampled_from([0, 1, 30]),
)  # fmt: skip
@example(items=7, grain=1, count=8, work=30)  # fewer parts than threads
@example(items=64, grain=64, count=8, work=0)  # one part
@example(items=65, grain=64, count=8, work=0)  # whose second is short
def test_every_item_is_done_once(items: int, grain: int, count: int, work: int) -> None:
    assert done(items, grain, count, work).tolist() == [1] * items + [0]
