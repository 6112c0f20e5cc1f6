"""Captured functions: the same on every storage; on CUDA one graph, private memory, and errors that say why."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ferrum_array as fa

CUDA = "cuda:0"


def steps(x: fa.Tensor, y: fa.Tensor) -> fa.Tensor:
    """Enough work of several kinds that forgotten inputs or stale memory would show."""
    z = fa.exp(-(x * x)) + y
    z = z - fa.max(z, axis=-1, keepdims=True)
    return fa.sum(z * y, axis=-1) + fa.cumulative_sum(x, axis=-1)[..., -1]


# On every storage.


@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(0, 5), size=st.integers(1, 70), borrow=st.booleans())
def test_a_captured_function_gives_what_the_function_gives(
    device: fa.Device, seed: int, rows: int, size: int, borrow: bool
) -> None:
    random = np.random.default_rng(seed)

    def fresh() -> list[fa.Tensor]:
        drawn = random.standard_normal((2, rows, 2 * size)).astype("f4")
        return [fa.asarray(one, device=device)[:, ::2] for one in drawn]  # with gaps in memory

    captured = fa.capture(steps, *fresh(), borrow=borrow)
    assert captured.recorded is (device.kind in ("cpu", "cuda"))
    assert captured.borrowed is borrow
    for _ in range(3):
        x, y = fresh()
        assert captured(x, y).tolist() == steps(x, y).tolist()


class Pair(NamedTuple):
    first: fa.Tensor
    second: fa.Tensor


def test_results_have_the_form_of_the_function(device: fa.Device) -> None:
    def many(x: fa.Tensor) -> dict[str, object]:
        return {"pair": Pair(x + 1, x > 1), "rest": [x.astype("i8"), None, (x[0],)], "empty": x[:0]}

    captured = fa.capture(many, fa.zeros(3, device=device))
    got = captured(fa.asarray([1.0, 2.0, 3.0], device=device))
    assert isinstance(got["pair"], Pair)
    assert got["pair"].first.tolist() == [2, 3, 4]
    assert got["pair"].second.tolist() == [False, True, True]
    assert isinstance(got["rest"], list)
    number, nothing, inner = got["rest"]
    assert number.dtype is fa.int8
    assert number.tolist() == [1, 2, 3]
    assert nothing is None
    assert isinstance(inner, tuple)
    assert inner[0].item() == 1.0
    assert isinstance(got["empty"], fa.Tensor)
    assert got["empty"].shape == (0,)


def test_results_are_values(device: fa.Device) -> None:
    captured = fa.capture(lambda x: (x, 2 * x), fa.zeros(2, device=device))
    one = fa.asarray([1.0, 2.0], device=device)
    same, double = captured(one)
    captured(fa.asarray([5.0, 6.0], device=device))
    assert (same.tolist(), double.tolist()) == ([1, 2], [2, 4])
    same[0] = 9.0
    double[0] = 9.0
    assert one.tolist() == [1, 2]
    again, twice = captured(one)
    assert (again.tolist(), twice.tolist()) == ([1, 2], [2, 4])


def test_what_a_function_writes_into_its_arguments_is_its_own(device: fa.Device) -> None:
    def write(x: fa.Tensor) -> fa.Tensor:
        x[0] = x[1]
        return x

    captured = fa.capture(write, fa.zeros(2, device=device))
    given_ = fa.asarray([1.0, 2.0], device=device)
    assert captured(given_).tolist() == [2, 2]
    assert given_.tolist() == [1, 2]
    assert captured(given_).tolist() == [2, 2]


def test_borrowed_results_can_be_written(device: fa.Device) -> None:
    captured = fa.capture(lambda x: 2 * x, fa.zeros(2, device=device), borrow=True)
    y = captured(fa.ones(2, device=device))
    y[0] = 7.0
    assert y.tolist() == [7, 2]
    assert captured(fa.ones(2, device=device)).tolist() == [2, 2]
    assert y.tolist() == [7, 2]


def test_a_function_without_arguments(device: fa.Device) -> None:
    captured = fa.capture(lambda: fa.arange(3, device=device), device=device)
    assert captured.device is device
    assert captured().tolist() == [0, 1, 2]
    with fa.default_device(device):
        assert fa.capture(lambda: fa.zeros(1)).device is device


def test_captured_functions_nest(device: fa.Device) -> None:
    inner = fa.capture(lambda x: x + 1, fa.zeros(2, device=device))
    outer = fa.capture(lambda x: inner(x) * inner(2 * x), fa.zeros(2, device=device))
    assert outer(fa.asarray([1.0, 2.0], device=device)).tolist() == [6, 15]


def test_what_a_call_must_be_like(device: fa.Device) -> None:
    captured = fa.capture(steps, fa.zeros((2, 3), device=device), fa.zeros((2, 3), device=device))
    x = fa.zeros((2, 3), device=device)
    with pytest.raises(TypeError, match="steps was captured with 2 tensors, got 1"):
        captured(x)
    with pytest.raises(TypeError, match="argument 1 must be a Tensor, got float"):
        captured(x, 1.0)  # type: ignore[arg-type]  # what is tested
    with pytest.raises(TypeError, match=r"captured with float32 \(2, 3\) on .* as argument 1, got float16 \(2, 3\)"):
        captured(x, x.astype("f16"))
    with pytest.raises(ValueError, match=r"as argument 0, got float32 \(3, 2\)"):
        captured(x.mT, x)
    assert captured(x, x).shape == (2,)  # and goes on
    assert repr(captured) == f"Captured(steps, float32[2,3], float32[2,3] on {device})"


def test_tensors_on_another_device(device: fa.Device) -> None:
    others = [one for one in fa.devices() if one is not device]
    if others:
        other = others[0]
        x, far = fa.zeros(2, device=device), fa.zeros(2, device=other)
        with pytest.raises(ValueError, match=f"on {device} as argument 0, got float32 .* on {other}"):
            fa.capture(lambda x: x, x)(far)
        with pytest.raises(ValueError, match=f"on {device} and {other}; a function is captured on one device"):
            fa.capture(lambda x, y: x, x, far)
        with pytest.raises(ValueError, match=f"on {device} and {other}"):
            fa.capture(lambda x: x, x, device=other)
        with pytest.raises(ValueError, match=f"returned a tensor on {other}, but it is captured on {device}"):
            fa.capture(lambda x: far, x)(x)


@pytest.mark.parametrize("wrong", [1.5, "text", (None, 3)])
def test_results_that_are_no_tensors(device: fa.Device, wrong: object) -> None:
    def wrongly(x: fa.Tensor) -> object:
        return wrong

    x = fa.zeros(1, device=device)
    with pytest.raises(TypeError, match=r"capture: wrongly returned (float|str|int) .*; a captured function returns"):
        fa.capture(wrongly, x)(x)


def test_examples_must_be_tensors() -> None:
    with pytest.raises(TypeError, match="capture: example 1 must be a Tensor, got int"):
        fa.capture(steps, fa.zeros(1), 2)  # type: ignore[arg-type]  # what is tested


def test_errors_of_the_function_are_its_own(device: fa.Device) -> None:
    def broken(x: fa.Tensor) -> fa.Tensor:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fa.capture(broken, fa.zeros(1, device=device))(fa.zeros(1, device=device))


def test_a_reading_is_of_its_time(device: fa.Device) -> None:
    x = fa.asarray([[1.5, 2.0], [3.0, -0.0]], device=device)
    reading = fa.Reading(x[:, ::-1])
    x[...] = 9.0
    assert reading.tolist() == [[2, 1.5], [-0.0, 3]]
    assert fa.Reading(x[0, 0]).tolist() == 9
    assert fa.Reading(x[:0]).tolist() == []
    assert fa.Reading(x.astype("bf16")).tolist() == [[9, 9], [9, 9]]
    with pytest.raises(TypeError, match="Reading: a Tensor can be read, got list"):
        fa.Reading([1])  # type: ignore[arg-type]  # what is tested


def test_a_state_must_be_tensors_of_the_device(device: fa.Device) -> None:
    x = fa.zeros(2, device=device)
    captured = fa.capture(lambda y: x + y, x, state=[x])
    assert captured.state == (x,)
    assert not captured.moved
    assert captured(x + 1).tolist() == [1, 1]
    with pytest.raises(TypeError, match="capture: state must hold Tensors, got float at place 0"):
        fa.capture(lambda y: y, x, state=[1.0])  # type: ignore[list-item]  # what is tested
    others = [one for one in fa.devices() if one is not device]
    if others:
        with pytest.raises(ValueError, match="a function is captured on one device"):
            fa.capture(lambda y: y, x, state=[fa.zeros(1, device=others[0])])


# On CUDA.


def ones(*shape: int) -> fa.Tensor:
    return fa.ones(shape, device=CUDA)


def reads(x: fa.Tensor) -> fa.Tensor:
    return x * float(fa.sum(x))


def uploads(x: fa.Tensor) -> fa.Tensor:
    return x + fa.asarray([1.0, 2.0], dtype="f32", device=CUDA)


def multiplies(x: fa.Tensor) -> fa.Tensor:
    return x[:, None] * x @ x


def selects(x: fa.Tensor) -> fa.Tensor:
    return x[x > 0]


@pytest.mark.cuda
@pytest.mark.parametrize(
    ("function", "words"),
    [
        (reads, "reads cannot be captured on cuda:0, by the call of ferrum_array: (float|item) in "
                ".*test_capture.py:[0-9]+: it reads a value back to the host"),
        (uploads, "by the call of ferrum_array: asarray in .*test_capture.py.*: it copies from the host's memory"),
        (multiplies, "by the call of ferrum_array: matmul in .*: CuPy's products and solvers refuse"),
        (selects, "by the call of ferrum_array: getitem in .*: it reads a value back"),
    ],
)  # fmt: skip
def test_what_cannot_be_captured_is_an_error_that_says_why(
    function: Callable[[fa.Tensor], fa.Tensor], words: str
) -> None:
    for _ in range(2):
        with pytest.raises(fa.CaptureError, match=words):
            fa.capture(function, ones(2))
    assert function(ones(2)).shape  # nothing is left of it: streams and memory work
    assert fa.capture(steps, ones(2), ones(2))(ones(2), ones(2)).item() == steps(ones(2), ones(2)).item()


@pytest.mark.cuda
def test_an_error_in_a_capture_leaves_nothing_behind() -> None:
    calls = []

    def third(x: fa.Tensor) -> fa.Tensor:
        calls.append(1)
        y = x + 1
        if len(calls) == 3:
            raise RuntimeError("mine")
        return y

    with pytest.raises(RuntimeError, match="mine"):
        fa.capture(third, ones(2))
    assert fa.capture(lambda x: x + 1, ones(2))(ones(2)).tolist() == [2, 2]


@pytest.mark.cuda
def test_a_graph_shares_no_memory_with_what_comes_later() -> None:
    def function(x: fa.Tensor) -> fa.Tensor:
        y = x
        for number in range(8):
            y = fa.sin(y) + number
        return y

    captured = fa.capture(function, ones(1000))
    want = function(ones(1000)).tolist()
    kept = [fa.full((1000,), 3.0, device=CUDA) for _ in range(200)]
    for _ in range(3):
        assert captured(ones(1000)).tolist() == want
    assert all(bool(fa.all(x == 3.0)) for x in kept)


@pytest.mark.cuda
def test_calls_keep_the_order_of_their_streams() -> None:
    cp = pytest.importorskip("cupy")

    def long(x: fa.Tensor) -> fa.Tensor:
        for _ in range(50):
            x = x + 1
        return x

    captured = fa.capture(long, ones(1 << 20))
    streams = [cp.cuda.Stream(non_blocking=True) for _ in range(3)]
    results = []
    for number in range(12):
        with streams[number % 3]:
            x = fa.full((1 << 20,), float(number), device=CUDA)
            results.append(captured(x))
    fa.synchronize(CUDA)
    for number, y in enumerate(results):
        assert bool(fa.all(y == number + 50.0))


@pytest.mark.cuda
def test_threads_share_a_captured_function() -> None:
    captured = fa.capture(steps, ones(4, 1000), ones(4, 1000))
    wrong = []

    def work(number: int) -> None:
        for _ in range(20):
            x = fa.full((4, 1000), number / 8, device=CUDA)
            if captured(x, x).tolist() != steps(x, x).tolist():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert not wrong


@pytest.mark.cuda
def test_state_of_the_function_is_written_by_each_call() -> None:
    total = fa.zeros(2, device=CUDA)
    total += 0.0

    def add(x: fa.Tensor) -> None:
        nonlocal total
        total += x

    captured = fa.capture(add, fa.zeros(2, device=CUDA))
    for _ in range(3):
        captured(ones(2))
    assert total.tolist() == [3, 3]


@pytest.mark.cuda
def test_half_floats_pass_through(device: fa.Device) -> None:
    for dtype in (fa.float16, fa.bfloat16):
        x = fa.arange(12, dtype="f32", device=CUDA).astype(dtype).reshape(3, 4)
        captured = fa.capture(lambda x: x + x, fa.zeros((4, 3), dtype=dtype, device=CUDA))
        assert captured(x.mT).tolist() == (x.mT + x.mT).tolist()


@pytest.mark.cuda
def test_a_state_that_moves_is_told() -> None:
    total = fa.zeros(2, device=CUDA)

    def add(x: fa.Tensor) -> None:
        nonlocal total
        total += x

    captured = fa.capture(add, fa.zeros(2, device=CUDA), state=[total])
    captured(ones(2))
    seen = total[:1]  # from now on somebody else sees the memory, so a write copies first
    total += 1.0
    assert captured.moved
    with pytest.raises(ValueError, match="add: a tensor of its state has got other memory"):
        captured(ones(2))
    assert (seen.tolist(), total.tolist()) == ([1], [2, 2])


@pytest.mark.cuda
def test_a_reading_does_not_wait() -> None:
    cp = pytest.importorskip("cupy")
    x = ones(2)
    reading = fa.Reading(x)
    long = ones(1 << 26)
    for _ in range(200):
        long = long + 1
    later = cp.cuda.Event()
    later.record()
    assert reading.tolist() == [1, 1]
    assert not later.done
