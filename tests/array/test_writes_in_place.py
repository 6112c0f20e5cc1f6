"""Where a write goes: into memory that others show, into memory of its own, and never into a copy too many."""

from __future__ import annotations

import gc
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import ferrum_array as fa
from tests.array.test_value_semantics import as_array


def test_writes_through_exports_are_seen() -> None:
    x = fa.ones(3)
    array = np.asarray(x)
    assert array.flags.writeable
    array[0] = 5
    torch.from_dlpack(x)[1] = 6
    assert x.tolist() == [5.0, 6.0, 1.0]
    x[2] = 7  # copies: the array keeps its own
    assert (x.tolist(), array.tolist()) == ([5.0, 6.0, 7.0], [5.0, 6.0, 1.0])
    array[0] = 0
    assert x.tolist() == [5.0, 6.0, 7.0]


def test_writes_to_imported_memory_are_seen_until_the_first_own() -> None:
    array = np.ones(2, "f4")
    x = fa.asarray(array)
    array[0] = 2
    assert x.tolist() == [2.0, 1.0]
    x[1] = 3
    array[0] = 9
    assert (x.tolist(), array.tolist()) == ([2.0, 3.0], [9.0, 1.0])
    copied = fa.asarray(array, copy=True)
    array[0] = 1
    assert copied.tolist() == [9.0, 1.0]


def address(x: fa.Tensor) -> int:
    return int(x.numpy().__array_interface__["data"][0])


def failing(x: fa.Tensor) -> None:
    with pytest.raises(IndexError):
        x[9]


TEMPORARY: dict[str, Callable[[fa.Tensor], Any]] = {
    "nothing": lambda x: None,
    "read": lambda x: x[1:].sum(),
    "view": lambda x: x[1:],
    "reshape": lambda x: x.reshape(2, 2).T[0],
    "several views": lambda x: [x[i] for i in range(4)],
    "iteration": list,
    "arithmetic": lambda x: (x + x) * x,
    "reduction": lambda x: x.mean(),
    "numpy": np.asarray,
    "numpy function": np.sum,
    "dlpack": np.from_dlpack,
    "torch": torch.from_dlpack,
    "printing": repr,
    "pickling": pickle.dumps,
    "copying": lambda x: x.copy(),
    "item": lambda x: x[0].item(),
    "tolist": lambda x: x.tolist(),
    "error": lambda x: failing(x),
    "comparison": lambda x: x == x,
    "mask": lambda x: x[x > 0],
    "write": lambda x: x.__setitem__(1, 2),
    "broadcast": lambda x: fa.broadcast_to(x, (3, 4)),
}


@pytest.mark.parametrize("name", TEMPORARY)
def test_an_unshared_write_is_in_place(name: str) -> None:
    x = fa.ones(4)
    x += 1
    where = address(x)
    temporary = TEMPORARY[name](x)
    del temporary
    gc.collect()  # an exception and its frames hold each other
    x[0] = 5
    assert address(x) == where
    x[1:] = fa.zeros(3)
    x[x > 4] = 3
    x += 1
    x *= fa.asarray([2.0, 1.0, 1.0, 1.0])
    assert address(x) == where
    assert x.tolist() == [8.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    "share",
    [lambda x: x[1:], np.asarray, np.from_dlpack, torch.from_dlpack, lambda x: x.T, lambda x: x[...]],
)
def test_a_shared_write_copies_once(share: Callable[[fa.Tensor], Any]) -> None:
    x = fa.ones(4)
    where = address(x)
    other = share(x)
    x[0] = 5
    moved = address(x)
    assert moved != where
    x[0] = 6
    assert address(x) == moved
    assert as_array(other).tolist() == [1.0] * len(other)


def test_a_view_writes_in_place_when_it_is_alone() -> None:
    x = fa.ones(4)
    y = x[1:]
    where = address(y)
    y[0] = 3
    assert address(y) != where
    z = fa.ones(4)[1:]  # nobody else has the memory
    where = address(z)
    z[0] = 3
    assert address(z) == where
