"""Value semantics: writing through one tensor changes nothing else, and copies no more than it must.

A state machine runs random programs of views, writes, copies, exports and imports beside a model in
which every tensor is a NumPy array of its own.
"""

from __future__ import annotations

import copy
import pickle
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

import ferrum_array as fa
from ferrum_array.testing import indices, shapes
from tests.array.oracle import to_numpy
from tests.array.test_indexing import for_numpy


class Pair:
    """A tensor and the array that it must equal."""

    def __init__(self, tensor: fa.Tensor, model: np.ndarray[Any, Any]) -> None:
        self.tensor = tensor
        self.model = np.array(model)  # NumPy gives scalars where we give 0-d tensors

    def __repr__(self) -> str:
        return f"Pair({self.model.tolist()})"


def as_array(what: Any) -> np.ndarray[Any, Any]:
    """A NumPy view of memory that another library, or the buffer protocol, describes."""
    return what.numpy() if isinstance(what, torch.Tensor) else np.asarray(what)


class Held:
    """Memory outside of Ferrum that none of its writes may reach, and what it must contain."""

    def __init__(self, what: Any) -> None:
        self.what = what
        self.content = as_array(what).copy()

    def __repr__(self) -> str:
        return f"Held({type(self.what).__name__})"


VIEWS: dict[str, Callable[[Any, Any], tuple[Any, Any]]] = {
    "whole": lambda t, a: (t[...], a),
    "same tensor": lambda t, a: (fa.asarray(t, copy=True), a),
    "transposed": lambda t, a: (t.T, a.T),
    "flat": lambda t, a: (t.reshape(-1), a.reshape(-1)),
    "newaxis": lambda t, a: (fa.expand_dims(t, 0), a[None]),
    "squeezed": lambda t, a: (t.squeeze(), a.squeeze()),
    "flipped": lambda t, a: (fa.flip(t), np.flip(a)),
    "rolled": lambda t, a: (fa.roll(t, 0), a),
    "broadcast": lambda t, a: (fa.broadcast_to(t, (2, *t.shape)), np.stack([a, a])),
    "real": lambda t, a: (fa.real(t), a),
    "conjugate": lambda t, a: (fa.conj(t), a),
    "positive": lambda t, a: (+t, a),
    "clipped": lambda t, a: (fa.clip(t), a),
    "joined": lambda t, a: (fa.concat([t.reshape(-1)]), a.reshape(-1)),
    "sum of none": lambda t, a: (fa.sum(t, axis=()), a),
    "max of none": lambda t, a: (fa.max(t, axis=()), a),
    "no difference": lambda t, a: (fa.diff(t[None], n=0, axis=0), a[None]),
    "moved": lambda t, a: (fa.moveaxis(t[None], 0, -1), np.moveaxis(a[None], 0, -1)),
    "floor": lambda t, a: (fa.floor(t), np.floor(a)),
    "where": lambda t, a: (fa.where(t == t, t, t), a),
    "pickled": lambda t, a: (pickle.loads(pickle.dumps(t)), a),
    "deep copy": lambda t, a: (copy.deepcopy(t), a),
    "shallow copy": lambda t, a: (copy.copy(t), a),
    "tiled": lambda t, a: (fa.tile(t, (1,)), np.tile(a, (1,))),
    "repeated": lambda t, a: (fa.repeat(t.reshape(-1), 1), a.reshape(-1)),
    "iterated": lambda t, a: (next(iter(t[None])), a),
    "unstacked": lambda t, a: (fa.unstack(t[None])[0], a),
    "meshgrid": lambda t, a: (fa.meshgrid(t.reshape(-1))[0], a.reshape(-1)),
    "broadcast arrays": lambda t, a: (fa.broadcast_arrays(t, t)[1], a),
    "diagonal": lambda t, a: (
        fa.linalg.diagonal(t.reshape(1, -1)),
        np.diagonal(a.reshape(1, -1)),
    ),
    "from itself": lambda t, a: (fa.from_dlpack(t, copy=True), a),
}

EXPORTS: dict[str, Callable[[fa.Tensor], Any]] = {
    "asarray": np.asarray,
    "numpy": lambda t: t.numpy(),
    "numpy view": lambda t: np.asarray(t)[...],
    "numpy dlpack": np.from_dlpack,
    "torch": torch.from_dlpack,
    "torch view": lambda t: torch.from_dlpack(t).reshape(-1),
}
if sys.version_info >= (3, 12):
    EXPORTS["memoryview"] = memoryview

IMPORTS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], fa.Tensor]]] = {
    "asarray": (lambda a: a, fa.asarray),
    "strided": (lambda a: np.stack([a, a], -1)[..., 0], fa.asarray),
    "read-only": (lambda a: np.lib.stride_tricks.as_strided(a, writeable=False), fa.asarray),
    "dlpack": (lambda a: a, fa.from_dlpack),
    "torch": (torch.from_numpy, fa.asarray),
    "torch dlpack": (torch.from_numpy, fa.from_dlpack),
    "no copy": (lambda a: a, lambda a: fa.asarray(a, copy=False)),
}

NUMBERS = st.integers(-9, 9).map(float)
BINARY = ("__iadd__", "__isub__", "__imul__")


class Values(RuleBasedStateMachine):
    """Random programs."""

    pairs: Bundle[Pair] = Bundle("pairs")
    held: Bundle[Held] = Bundle("held")

    def __init__(self) -> None:
        super().__init__()
        self.alive: list[Pair] = []
        self.outside: list[Held] = []

    def born(self, tensor: fa.Tensor, model: np.ndarray[Any, Any]) -> Pair:
        pair = Pair(tensor, model)
        self.alive.append(pair)
        return pair

    @rule(target=pairs, shape=shapes(max_dims=3, max_side=3), start=NUMBERS)
    def make(self, shape: tuple[int, ...], start: float) -> Pair:
        model = start + np.arange(int(np.prod(shape)), dtype=np.float32).reshape(shape)
        return self.born(fa.asarray(model.tolist(), dtype="f32").reshape(shape), model)

    @rule(target=pairs, pair=pairs, data=st.data())
    def read(self, pair: Pair, data: st.DataObject) -> Pair:
        key = data.draw(indices(pair.model.shape))
        return self.born(pair.tensor[key], pair.model[for_numpy(key)])

    @rule(target=pairs, pair=pairs, name=st.sampled_from(sorted(VIEWS)))
    def view(self, pair: Pair, name: str) -> Any:
        if pair.model.ndim > 4 or pair.model.size > 200:
            return multiple()
        return self.born(*VIEWS[name](pair.tensor, pair.model))

    @rule(pair=pairs, data=st.data(), number=NUMBERS)
    def write_number(self, pair: Pair, data: st.DataObject, number: float) -> None:
        key = data.draw(indices(pair.model.shape))
        pair.tensor[key] = number
        pair.model[for_numpy(key)] = number

    @rule(pair=pairs, source=pairs, data=st.data())
    def write_tensor(self, pair: Pair, source: Pair, data: st.DataObject) -> None:
        key = data.draw(indices(pair.model.shape, arrays=False))
        part = pair.model[for_numpy(key)].shape
        try:
            np.broadcast_to(source.model, part)
        except ValueError:
            return
        pair.tensor[key] = source.tensor
        pair.model[for_numpy(key)] = source.model.copy()

    @rule(pair=pairs, name=st.sampled_from(BINARY), number=NUMBERS)
    def in_place_number(self, pair: Pair, name: str, number: float) -> None:
        same = pair.tensor
        getattr(same, name)(number)
        with np.errstate(all="ignore"):
            getattr(pair.model, name)(np.float32(number))

    @rule(pair=pairs, other=pairs, name=st.sampled_from(BINARY))
    def in_place_tensor(self, pair: Pair, other: Pair, name: str) -> None:
        try:
            if np.broadcast_shapes(pair.model.shape, other.model.shape) != pair.model.shape:
                return
        except ValueError:
            return
        getattr(pair.tensor, name)(other.tensor)
        with np.errstate(all="ignore"):
            getattr(pair.model, name)(other.model.copy())

    @rule(target=held, pair=pairs, name=st.sampled_from(sorted(EXPORTS)))
    def give_out(self, pair: Pair, name: str) -> Held:
        held = Held(EXPORTS[name](pair.tensor))
        self.outside.append(held)
        return held

    @rule(target=pairs, pair=pairs, name=st.sampled_from(sorted(IMPORTS)))
    def take_in(self, pair: Pair, name: str) -> Any:
        if pair.model.size == 0:  # DLPack has its own rules for strides of nothing
            return multiple()
        prepare, take = IMPORTS[name]
        held = Held(prepare(pair.model.copy()))
        self.outside.append(held)
        return self.born(take(held.what), pair.model)

    @rule(pair=consumes(pairs))
    def drop(self, pair: Pair) -> None:
        self.alive.remove(pair)

    @rule(held=consumes(held))
    def drop_held(self, held: Held) -> None:
        self.outside.remove(held)

    @invariant()
    def every_tensor_has_its_own_value(self) -> None:
        for pair in self.alive:
            found = to_numpy(pair.tensor)
            assert found.shape == pair.model.shape
            assert np.array_equal(found, pair.model, equal_nan=True), (found, pair.model)

    @invariant()
    def memory_outside_is_left_alone(self) -> None:
        for held in self.outside:
            assert np.array_equal(as_array(held.what), held.content, equal_nan=True), held


class TestValues(Values.TestCase):  # type: ignore[name-defined,misc]  # made by Hypothesis
    settings = settings(stateful_step_count=40)


def test_the_machine_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """A storage that takes every memory for its own is found out."""
    backend = fa.Device("cpu").backend
    monkeypatch.setattr(type(backend), "exclusive", lambda self, holder: True)
    found = settings(max_examples=60, phases=[Phase.generate], report_multiple_bugs=False)
    with pytest.raises((AssertionError, ValueError)):  # some writes meet read-only memory
        run_state_machine_as_test(Values, settings=found)


# Aliasing on every storage, one case after another.


@pytest.mark.parametrize("name", VIEWS)
def test_a_write_reaches_neither_side(name: str, device: fa.Device) -> None:
    x = fa.asarray([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], device=device)
    y, model = VIEWS[name](x, to_numpy(x))
    before = to_numpy(x)
    y[...] = 9
    assert np.array_equal(to_numpy(x), before)
    y, model = VIEWS[name](x, to_numpy(x))
    x[...] = 7
    assert np.array_equal(to_numpy(y), model)
    y += 1
    assert (to_numpy(x) == 7).all()
    x += 1
    assert np.array_equal(to_numpy(y), model + 1)


def test_one_tensor_under_two_names_is_one_tensor(device: fa.Device) -> None:
    a = fa.ones(3, device=device)
    b = a
    b[0] = 5
    b += 1
    assert a is b
    assert a.tolist() == [6.0, 2.0, 2.0]


def test_complex_parts_are_values(device: fa.Device) -> None:
    z = fa.asarray([1 + 2j, 3 + 4j], device=device)
    real, imag = fa.real(z), z.imag
    real[0] = imag[1] = 9
    assert z.tolist() == [1 + 2j, 3 + 4j]
    z[:] = 0
    assert (real.tolist(), imag.tolist()) == ([9.0, 3.0], [2.0, 9.0])


def test_a_failed_write_changes_nothing(device: fa.Device) -> None:
    x = fa.ones((2, 2), device=device)
    view = x[0]
    for key, value in (((5,), 1.0), ((0,), [1.0, 2.0, 3.0]), ((0,), 1j), (("a",), 1.0)):
        with pytest.raises((IndexError, ValueError, TypeError)):
            x[key] = value
    assert x.tolist() == [[1.0, 1.0], [1.0, 1.0]]
    assert view.tolist() == [1.0, 1.0]


def test_functions_do_not_change_what_they_return_earlier() -> None:
    base = fa.zeros(3)
    rows = [base]
    for i in range(3):
        base = base[...]
        base[i] = 1
        rows.append(base)
    assert [row.tolist() for row in rows] == [
        [0.0, 0.0, 0.0],
        [1.0, 0.0, 0.0],
        [1.0, 1.0, 0.0],
        [1.0, 1.0, 1.0],
    ]
