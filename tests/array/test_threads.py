"""Threads: many at work on one tensor, and settings that stay in their own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import ferrum_array as fa
from ferrum_array.spec import spec_of

WORKERS = 8


def together(work: Callable[[int], Any]) -> list[Any]:
    """The results of *work* in several threads that start at one moment; its errors are raised here."""
    start = threading.Barrier(WORKERS)

    def run(number: int) -> Any:
        start.wait(30)
        return work(number)

    with ThreadPoolExecutor(WORKERS) as pool:
        return [future.result() for future in [pool.submit(run, i) for i in range(WORKERS)]]


def test_many_threads_read_one_tensor() -> None:
    x = fa.reshape(fa.arange(10_000), (100, 100)).astype("f32")
    wanted = float(np.arange(10_000, dtype=np.float64).sum())

    def work(number: int) -> bool:
        for _ in range(30):
            assert float(fa.sum(x, dtype="f64")) == wanted
            assert (x + x)[number, 3].item() == 2 * (100 * number + 3)
            assert x[number].tolist()[0] == 100 * number
            assert x.T[3].shape == (100,)
            assert repr(x).startswith("Tensor([[")
        return True

    assert together(work) == [True] * WORKERS


def test_views_of_one_tensor_are_written_independently() -> None:
    x = fa.zeros((WORKERS, 1000))

    def work(number: int) -> fa.Tensor:
        mine = x[number]
        for i in range(200):
            mine[i] = number + 1
            mine += 0
        return mine

    for number, row in enumerate(together(work)):
        assert fa.sum(row).item() == 200 * (number + 1)
    assert not bool(fa.any(x))


def test_copies_and_writes_of_one_tensor() -> None:
    """Each thread sees the tensor as it was, while others write to their own views of it."""
    x = fa.ones(1000)

    def work(number: int) -> bool:
        for i in range(100):
            mine = x[...]
            mine[i] = number + 2
            assert mine[i].item() == number + 2
            assert fa.sum(mine).item() == 999 + number + 2
            assert fa.sum(x).item() == 1000
        return True

    assert together(work) == [True] * WORKERS


def test_default_devices_do_not_leak() -> None:
    other = fa.Device("cuda:7")
    object.__setattr__(other, "_backend", fa.Device("cpu").backend)
    try:

        def work(number: int) -> bool:
            mine = other if number % 2 else fa.Device("cpu")
            for _ in range(200):
                with fa.default_device(mine):
                    assert fa.zeros(1).device is mine
                assert fa.zeros(1).device is fa.Device("cpu")
            return True

        assert together(work) == [True] * WORKERS
    finally:
        object.__setattr__(other, "_backend", None)
    assert fa.get_default_device() is fa.Device("cpu")


def test_print_options_do_not_leak() -> None:
    x = fa.asarray([1 / 3])

    def work(number: int) -> bool:
        with fa.printoptions(precision=number + 1):
            for _ in range(100):
                assert str(x) == f"[{round(1 / 3, number + 1)}]"[: number + 4] + "]"
        return True

    texts = [f"[0.{'3' * n}]" for n in range(1, 8)]

    def shown(number: int) -> str:
        with fa.printoptions(precision=number + 1):
            return {str(x) for _ in range(100)}.pop()

    assert together(shown)[:7] == texts
    assert str(x) == "[0.33333334]"


def test_numpys_error_state_is_left_alone() -> None:
    """Results are silent in every thread, and NumPy warns as before afterwards."""
    zero = fa.zeros(4)

    def work(number: int) -> bool:
        with np.errstate(all="raise"):
            for _ in range(200):
                assert fa.isnan(zero / zero).tolist() == [True] * 4
                assert np.geterr()["divide"] == "raise"
            with pytest.raises(FloatingPointError):
                np.ones(1) / np.zeros(1)
        return True

    before = np.geterr()
    assert together(work) == [True] * WORKERS
    assert np.geterr() == before


def test_one_object_per_dtype_and_device_is_made_once() -> None:
    pairs = [(dtype, fa.Device("cpu")) for dtype in fa.Dtype.all()]
    found = together(lambda _: [id(spec_of(*pair)) for pair in pairs])
    assert len({tuple(row) for row in found}) == 1
    names = together(lambda _: [id(fa.Device(f"cuda:{n}")) for n in range(50, 80)])
    assert len({tuple(row) for row in names}) == 1


def test_errors_in_threads_are_their_own() -> None:
    x = fa.ones(3)

    def work(number: int) -> str:
        with pytest.raises(ValueError, match="broadcast") as caught:
            x + fa.ones(number + 4)
        return str(caught.value)

    for number, message in enumerate(together(work)):
        assert f"({number + 4},)" in message
