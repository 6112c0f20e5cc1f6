"""Functions captured on the CPU: any program of tensors gives what it gives without, or is refused."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ferrum_array as fa
from ferrum_array.backends import numpy_graphs, tape

Program = list[tuple[Any, ...]]

#: what makes a tensor [4, 6] of one, and of two
ONE: dict[str, Callable[[fa.Tensor], fa.Tensor]] = {
    "exp": lambda x: fa.exp(-abs(x)),
    "turn": lambda x: x.T.reshape(4, 6),
    "rows": lambda x: fa.flip(x, axis=0)[:, ::-1],
    "cut": lambda x: fa.concat([x[1:], x[:1] * 2]),
    "order": lambda x: fa.sort(x, axis=1),
    "total": lambda x: x - fa.sum(x, axis=0, keepdims=True),
    "top": lambda x: fa.max(x, axis=1, keepdims=True) + x * 0,
    "narrow": lambda x: x.astype("bf16").astype("f32"),
    "sums": lambda x: fa.cumulative_sum(x, axis=1),
    "halves": lambda x: x.astype("f16").astype("f32") / 3,
    "constant": lambda x: x * fa.arange(6, dtype=fa.float32) + fa.asarray([[1.5]] * 4),
    "first": lambda x: fa.where(fa.arange(6) == fa.argmax(x, axis=1, keepdims=True), x, 0.0),
    "spread": lambda x: fa.broadcast_to(x[:1], (4, 6)),
}
TWO: dict[str, Callable[[fa.Tensor, fa.Tensor], fa.Tensor]] = {
    "add": lambda x, y: x + y,
    "where": lambda x, y: fa.where(x > y, x, y * 0.5),
    "matmul": lambda x, y: x @ y.T @ y,
    "clip": lambda x, y: fa.clip(x, -1.0, 1.0) - y,
}


def run(program: Program, x: fa.Tensor, y: fa.Tensor) -> tuple[fa.Tensor, ...]:
    """A program on two tensors; what it writes into is one of the tensors that there are."""
    found = [x, y]
    for name, a, b in program:
        left, right = found[a % len(found)], found[b % len(found)]
        if name in ONE:
            found.append(ONE[name](left))
        elif name in TWO:
            found.append(TWO[name](left, right))
        elif name == "write row":
            left[1] = right[2]
        elif name == "write number":
            left[0, 3] = 7.0
        elif name == "in place":
            left += right
        elif name == "made":
            made = fa.zeros((4, 6))
            made[2:] = left[:2]
            made *= 0.5
            found.append(made)
        elif name == "mark":
            marks = fa.zeros((4, 6))
            marks[fa.arange(4), fa.argmax(left, axis=1)] = right[0, :4]
            found.append(marks)
    return tuple(found)


names = st.sampled_from([*ONE, *TWO, "write row", "write number", "in place", "made", "mark"])
programs = st.lists(st.tuples(names, st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=9)


def drawn(seed: int, count: int) -> list[fa.Tensor]:
    random = np.random.default_rng(seed)
    return [fa.asarray(one.astype("f4")) for one in random.standard_normal((count, 4, 6))]


@given(program=programs, seed=st.integers(0, 2**32 - 1), borrow=st.booleans())
def test_any_program_gives_its_own_bits(program: Program, seed: int, borrow: bool) -> None:
    captured = fa.capture(lambda x, y: run(program, x, y), *drawn(seed, 2), borrow=borrow)
    assert captured.recorded
    for more in range(3):
        x, y = drawn(seed + more, 2)
        got = [np.asarray(one).tobytes() for one in captured(x, y)]
        assert got == [np.asarray(one).tobytes() for one in run(program, x, y)]
        x, y = drawn(seed + more, 2)
        assert [one.tolist() for one in (x, y)] == [one.tolist() for one in drawn(seed + more, 2)]


@given(program=programs, seed=st.integers(0, 2**32 - 1))
def test_state_is_written_as_calls_write_it(program: Program, seed: int) -> None:
    def pair() -> list[fa.Tensor]:
        return drawn(seed, 2)

    state, same = pair(), pair()

    def step(x: fa.Tensor, held: list[fa.Tensor]) -> fa.Tensor:
        held[0][1:3] = x[:2]
        held[1] += held[0]
        return run(program, x, held[1] * 1.0)[-1]

    captured = fa.capture(lambda x: step(x, state), drawn(seed + 1, 1)[0], state=state)
    step(drawn(seed + 1, 1)[0], same)
    for more in range(2, 5):
        (x,) = drawn(seed + more, 1)
        assert np.asarray(captured(x)).tobytes() == np.asarray(step(x, same)).tobytes()
        assert [np.asarray(one).tobytes() for one in state] == [np.asarray(one).tobytes() for one in same]
    assert not captured.moved


READS: dict[str, Callable[[fa.Tensor], object]] = {
    "float": lambda x: float(x[0]),
    "bool": lambda x: bool(x[0] > 0),
    "tolist": lambda x: x.tolist(),
    "asarray": np.asarray,
    "str": str,
    "reading": lambda x: fa.Reading(x).tolist(),
    "mask": lambda x: x[x > 0],
    "nonzero": lambda x: fa.nonzero(x),
    "unique": lambda x: fa.unique_values(x),
    "repeat": lambda x: fa.repeat(x, fa.abs(x).astype("i64")),
    "take": lambda x: fa.take(x, x.astype("i64")),
    "dlpack": lambda x: np.from_dlpack(x),
    "elsewhere": lambda x: x.to_device("mlx:cpu") if fa.Device("mlx:cpu") in fa.devices() else float(x[0]),
}


@pytest.mark.parametrize("name", READS)
def test_what_looks_at_values_is_refused(name: str) -> None:
    def look(x: fa.Tensor) -> fa.Tensor:
        READS[name](2 * x)
        return x

    x = fa.asarray([1.0, 0.0, 2.0])
    with pytest.raises(fa.CaptureError, match=r"look cannot be captured on cpu.* in .*test_capture_cpu.py"):
        fa.capture(look, x)
    assert not tape.ACTIVE
    assert (x + 1).tolist() == [2, 1, 3]
    READS[name](x)  # and works without


def test_a_refusal_cannot_be_caught_on_the_way() -> None:
    def sly(x: fa.Tensor) -> fa.Tensor:
        try:
            return x * float(x[0])
        except RuntimeError:
            return x

    with pytest.raises(fa.CaptureError, match=r"sly cannot be captured on cpu.*it reads a value"):
        fa.capture(sly, fa.ones(1))


def test_what_is_made_of_nothing_may_be_looked_at() -> None:
    def count(x: fa.Tensor) -> fa.Tensor:
        return x * int(fa.max(fa.arange(4))) + fa.take(x, fa.asarray([1, 0]))

    captured = fa.capture(count, fa.zeros(2))
    assert captured(fa.asarray([1.0, 5.0])).tolist() == [8, 16]


def test_writing_into_what_is_not_its_own_is_refused() -> None:
    outside = fa.zeros(2)

    def write(x: fa.Tensor) -> fa.Tensor:
        outside[0] = x[0]
        return outside

    with pytest.raises(fa.CaptureError, match="neither its argument nor its own; name it in state="):
        fa.capture(write, fa.ones(2))
    captured = fa.capture(write, fa.ones(2), state=[outside])
    captured(3 * fa.ones(2))
    assert outside.tolist() == [3, 0]


def test_a_state_that_moved() -> None:
    state = fa.zeros(3)

    def add(x: fa.Tensor) -> fa.Tensor:
        state[...] = state + x
        return state * 1.0

    captured = fa.capture(add, fa.zeros(3), state=[state])
    assert captured(fa.ones(3)).tolist() == [1, 1, 1]
    state[0] = 5.0  # nobody else sees it: it stays where it is
    assert captured(fa.ones(3)).tolist() == [6, 2, 2]
    other = state[:2]
    state[0] = 0.0
    assert captured.moved
    with pytest.raises(ValueError, match="has got other memory since it was captured"):
        captured(fa.ones(3))
    assert other.tolist() == [6, 2]


def test_other_threads_go_on_meanwhile() -> None:
    inside, done = threading.Event(), threading.Event()
    seen: list[Any] = []

    def other() -> None:
        inside.wait()
        x = fa.asarray([1.0, 2.0])
        x += 1
        seen.append((x * 2).tolist())
        seen.append(fa.capture(lambda y: y + x, x)(x).tolist())  # a recording of its own
        done.set()

    def waits(x: fa.Tensor) -> fa.Tensor:
        inside.set()
        assert done.wait(20)
        return x + 1

    thread = threading.Thread(target=other)
    thread.start()
    captured = fa.capture(waits, fa.zeros(1))
    thread.join()
    assert seen == [[4, 6], [4, 6]]
    assert captured(fa.ones(1)).tolist() == [2]
    assert not numpy_graphs._plain


def test_a_capture_in_a_capture_is_refused() -> None:
    with pytest.raises(fa.CaptureError, match="another function is being captured in this thread"):
        fa.capture(lambda x: fa.capture(lambda y: y + 1, x)(x), fa.zeros(1))


def test_a_state_that_others_see_gets_its_own_memory_once() -> None:
    state = fa.zeros(2)
    other = state[...]

    def add(x: fa.Tensor) -> fa.Tensor:
        state[0] = state[0] + x[0]
        return state * 1.0

    captured = fa.capture(add, fa.ones(1), state=[state])
    assert [captured(fa.ones(1)).tolist() for _ in range(3)] == [[2, 0], [3, 0], [4, 0]]
    assert state.tolist() == [4, 0]
    assert other.tolist() == [0, 0]


def test_a_state_that_is_kept_and_written() -> None:
    state = fa.asarray([[1.0, 2.0], [3.0, 4.0]])

    def shift(x: fa.Tensor) -> fa.Tensor:
        old = state[1:]
        state[0] = x
        return old + state[0]

    with pytest.raises(fa.CaptureError, match="writes into its state while another tensor shows the same memory"):
        fa.capture(shift, fa.zeros(2), state=[state])
    assert state.tolist() == [[1, 2], [3, 4]]


def test_memory_stays_where_a_view_of_it_is_written() -> None:
    held = [fa.asarray(np.arange(1 << 16, dtype="f4"))]

    def step(x: fa.Tensor) -> fa.Tensor:
        y = held[0][...]
        y[0] = 9.0  # a copy: others see the memory
        return held[0] + x + 0.0 * y

    captured = fa.capture(step, fa.zeros(1 << 16))
    held.clear()
    gc.collect()
    clutter = [fa.full((1 << 16,), 9.0) for _ in range(20)]
    assert np.array_equal(np.asarray(captured(fa.zeros(1 << 16))), np.arange(1 << 16, dtype="f4"))
    assert len(clutter) == 20


def test_memory_stays_as_long_as_the_graph() -> None:
    held = [fa.asarray(np.arange(1 << 16, dtype="f4"))]
    captured = fa.capture(lambda x: (x + held[0])[::2] * 1.0, fa.zeros(1 << 16))
    want = np.arange(1 << 16, dtype="f4")[::2]
    held.clear()
    gc.collect()
    clutter = [fa.full((1 << 16,), 9.0) for _ in range(20)]
    assert np.array_equal(np.asarray(captured(fa.zeros(1 << 16))), want)
    assert len(clutter) == 20


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_graph_after_fork() -> None:
    captured = fa.capture(lambda x: fa.sum(x * x), fa.zeros(3))
    child = os.fork()
    if child == 0:
        os._exit(0 if captured(fa.ones(3)).item() == 3 else 1)
    assert os.waitpid(child, 0)[1] == 0
