from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ferrum_array as fa
from ferrum_ops import (
    Group,
    ThreadGroup,
    all_gather,
    all_reduce,
    fast_paths,
    gated_activation,
    linear,
    run_ranks,
    use_fast_paths,
)
from tests.array.oracle import wide
from tests.ops.oracle import check, floats, make, noise


@given(
    seed=st.integers(0, 2**32 - 1),
    ranks=st.integers(1, 4),
    shape=st.lists(st.integers(0, 5), max_size=3),
    op=st.sampled_from(["sum", "max", "min"]),
    strided=st.booleans(),
    data=st.data(),
)
def test_all_reduce(
    device: fa.Device, seed: int, ranks: int, shape: list[int], op: Any, strided: bool, data: st.DataObject
) -> None:
    dtype = data.draw(st.sampled_from(floats(device)))
    parts = [make(noise(seed + i, *shape), dtype, device, strided=strided) for i in range(ranks)]
    got = run_ranks(ranks, lambda group: all_reduce(parts[group.rank][0], group, op))
    stacked = np.stack([exact for _, exact in parts])
    want = getattr(stacked, op)(0)
    scale = np.linalg.norm(stacked) / max(np.linalg.norm(want), 1e-30)  # what sums lose where they cancel
    for result in got:
        check(result, want, dtype, {fa.float32: 1e-6, fa.float64: 1e-14}.get(dtype, 0.0) * max(scale, 1.0))
        assert (wide(result) == wide(got[0])).all()
        assert result.device is device
    if op != "sum":
        assert (wide(got[0]) == want).all()


@given(
    seed=st.integers(0, 2**32 - 1),
    sizes=st.lists(st.integers(0, 4), min_size=1, max_size=4),
    others=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    axis=st.integers(-3, 2),
    name=st.sampled_from(["f32", "f16", "bf16", "i64", "bool", "u8"]),
)
def test_all_gather(
    device: fa.Device, seed: int, sizes: list[int], others: tuple[int, int], axis: int, name: str
) -> None:
    values = []
    for i, size in enumerate(sizes):
        shape = list(others)
        shape.insert(axis % 3, size)
        values.append(fa.asarray(np.round(noise(seed + i, *shape) * 5) ** 2, dtype="f32", device=device).astype(name))
    got = run_ranks(len(sizes), lambda group: all_gather(values[group.rank], group, axis))
    want = np.concatenate([wide(x) for x in values], axis=axis)
    for result in got:
        assert result.dtype is fa.Dtype(name)
        assert (wide(result) == want).all()


def test_a_network_split_over_ranks_is_the_whole_one(device: fa.Device) -> None:
    """The first matrix by rows, the second by columns: one sum at the end, as in Megatron-LM."""
    x, x64 = make(noise(1, 5, 16), fa.float32, device)
    gate, g64 = make(noise(2, 12, 16) / 4, fa.float32, device)
    up, u64 = make(noise(3, 12, 16) / 4, fa.float32, device)
    down, d64 = make(noise(4, 16, 12) / 4, fa.float32, device)
    hidden = x64 @ g64.T

    def layer(group: Group) -> fa.Tensor:
        own = slice(group.rank * 12 // group.size, (group.rank + 1) * 12 // group.size)
        h = gated_activation(linear(x, gate[own]), linear(x, up[own]), "silu")
        return all_reduce(linear(h, down[:, own]), group)

    def by_rows(group: Group) -> fa.Tensor:
        own = slice(group.rank * 12 // group.size, (group.rank + 1) * 12 // group.size)
        return all_gather(linear(x, gate[own]), group, -1)

    for ranks in (1, 2, 3):
        for y in run_ranks(ranks, layer):
            check(y, (hidden / (1 + np.exp(-hidden)) * (x64 @ u64.T)) @ d64.T, fa.float32)
        for y in run_ranks(ranks, by_rows):
            check(y, hidden, fa.float32)


def test_many_calls_keep_their_order() -> None:
    def work(group: Group) -> list[float]:
        found = []
        for i in range(200):
            x = fa.asarray([float(i + group.rank)])
            found.append((all_reduce(x, group) if i % 2 else all_gather(x, group, 0)[-1:]).item())
            x[0] = -1.0  # after the call the tensor is the rank's own again
        return found

    for found in run_ranks(3, work):
        assert found == [3.0 * i + 3 if i % 2 else i + 2 for i in range(200)]


def test_sums_of_16_bit_are_taken_in_32(device: fa.Device) -> None:
    big, small = fa.asarray([256.0], dtype="bf16", device=device), fa.asarray([0.75], dtype="bf16", device=device)
    got = run_ranks(3, lambda group: all_reduce(big if group.rank == 0 else small, group))
    assert [x.tolist() for x in got] == [[258.0]] * 3  # each 0.75 alone would vanish beside 256


def test_integers_and_complex_numbers() -> None:
    got = run_ranks(2, lambda group: all_reduce(fa.asarray([200, 7], dtype="u8"), group))
    assert (got[0].dtype, got[0].tolist()) == (fa.uint8, [144, 14])
    assert run_ranks(2, lambda group: all_reduce(fa.asarray([1j]), group))[1].tolist() == [2j]


def test_a_group_of_one_shares_no_memory() -> None:
    (alone,) = ThreadGroup.members(1)
    x = fa.ones(3)
    for y in (all_reduce(x, alone), all_gather(x, alone, 0), all_reduce(x, alone, "max")):
        y[0] = 5.0
        assert x.tolist() == [1.0, 1.0, 1.0]


def test_what_the_caller_set_holds_on_every_rank() -> None:
    with use_fast_paths(False):
        assert run_ranks(2, lambda group: fast_paths()) == [False, False]
    with use_fast_paths(True):
        assert run_ranks(2, lambda group: fast_paths()) == [True, True]


def test_any_object_with_the_methods_is_a_group() -> None:
    class Doubled:
        rank, size = 0, 2

        def all_reduce(self, x: fa.Tensor, op: str) -> fa.Tensor:
            return x + x if op == "sum" else x

        def all_gather(self, x: fa.Tensor, axis: int) -> fa.Tensor:
            assert axis >= 0
            return fa.concat([x, x], axis=axis)

    assert all_reduce(fa.ones(2), Doubled()).tolist() == [2.0, 2.0]
    assert all_gather(fa.ones((1, 2)), Doubled(), -1).shape == (1, 4)


def within(seconds: float, work: Callable[[], Any]) -> Any:
    """What *work* returns or raises, unless it takes longer."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append((work(), None))
        except (RuntimeError, ValueError) as error:
            found.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), "ranks wait for one another"
    result, error = found[0]
    if error is not None:
        raise error
    return result


def test_ranks_that_do_not_fit_raise_everywhere() -> None:
    seen = []

    def work(group: Group, x: fa.Tensor, op: Any) -> None:
        try:
            all_reduce(x, group, op)
        except ValueError as error:
            seen.append(str(error))
            raise

    cases: list[Callable[[int], tuple[fa.Tensor, str]]] = [
        lambda rank: (fa.ones(2 + rank), "sum"),
        lambda rank: (fa.ones(2, dtype=["f32", "f16"][rank]), "sum"),
        lambda rank: (fa.ones(2), ["sum", "max"][rank]),
    ]
    for case in cases:
        with pytest.raises(ValueError, match=r"the same calls .* rank 0: all_reduce .*; rank 1: all_reduce"):
            within(20, lambda case=case: run_ranks(2, lambda group: work(group, *case(group.rank))))
    assert len(seen) == 6
    with pytest.raises(ValueError, match="rank 1: all_gather along axis 0"):
        within(
            20,
            lambda: run_ranks(2, lambda g: all_gather(fa.ones((2, 2)), g, 0) if g.rank else all_reduce(fa.ones(2), g)),
        )
    with pytest.raises(ValueError, match=r"all_gather along axis 0 of float32\['any', 2\]; rank 1: .*\['any', 3\]"):
        within(20, lambda: run_ranks(2, lambda g: all_gather(fa.ones((2, 2 + g.rank)), g, 0)))


def test_nobody_waits_for_a_rank_that_is_gone() -> None:
    def fails(group: Group) -> fa.Tensor:
        if group.rank == 1:
            raise ValueError("out of luck")
        return all_reduce(fa.ones(2), group)

    with pytest.raises(ValueError, match="out of luck"):
        within(20, lambda: run_ranks(3, fails))

    def ends(group: Group) -> fa.Tensor | None:
        return None if group.rank == 2 else all_reduce(fa.ones(2), group)

    with pytest.raises(RuntimeError, match=r"all_reduce sum of float32\[2\]: rank 2 ended or failed without this call"):
        within(20, lambda: run_ranks(3, ends))

    first, second = ThreadGroup.members(2)
    second.leave()
    with pytest.raises(RuntimeError, match="rank 1 ended or failed without this call; rank 0 made it"):
        all_gather(fa.ones(2), first, 0)


def test_bad_input_is_refused() -> None:
    (alone,) = ThreadGroup.members(1)
    x = fa.ones(2)
    with pytest.raises(RuntimeError, match=r"all_reduce: there is no group of ranks; pass a ferrum_ops.Group"):
        all_reduce(x, None)
    with pytest.raises(RuntimeError, match="all_gather: there is no group of ranks"):
        all_gather(x, None, 0)
    with pytest.raises(TypeError, match=r"group must be a ferrum_ops.Group, .* got 2"):
        all_reduce(x, 2)  # type: ignore[arg-type]  # what is tested
    with pytest.raises(TypeError, match="x must be a Tensor, got list"):
        all_gather([1.0], alone, 0)  # type: ignore[arg-type]  # what is tested
    with pytest.raises(ValueError, match="op must be one of sum, max, min, got 'mean'"):
        all_reduce(x, alone, "mean")  # type: ignore[arg-type]  # what is tested
    with pytest.raises(TypeError, match=r"'sum' is not defined for bool\[2\]"):
        all_reduce(fa.ones(2, dtype="bool"), alone)
    with pytest.raises(TypeError, match=r"'max' is not defined for complex64\[2\]"):
        all_reduce(fa.ones(2, dtype="c64"), alone, "max")
    for axis in (1, -2):
        with pytest.raises(ValueError, match=rf"axis must be one of the 1 axes of x float32\[2\], got {axis}"):
            all_gather(x, alone, axis)
    with pytest.raises(ValueError, match="axis must be one of the 0 axes"):
        all_gather(fa.asarray(1.0), alone, 0)
    for n in (0, -1, 1.5):
        with pytest.raises(ValueError, match="must be an integer at least 1"):
            run_ranks(n, lambda group: None)  # type: ignore[arg-type]  # what is tested


@pytest.mark.mlx
def test_parts_on_different_devices() -> None:
    def work(group: Group) -> fa.Tensor:
        x = fa.asarray([1.0 + group.rank], device=["cpu", "mlx:cpu"][group.rank])
        return all_gather(all_reduce(x, group) + group.rank, group, 0)

    here, there = run_ranks(2, work)
    assert (str(here.device), here.tolist()) == ("cpu", [3.0, 4.0])
    assert (str(there.device), there.tolist()) == ("mlx:cpu", [3.0, 4.0])
