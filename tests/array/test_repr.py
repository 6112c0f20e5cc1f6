"""What tensors look like, character by character."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given

import ferrum_array as fa
from ferrum_array.testing import tensors
from tests.array.oracle import NP

nan, inf = float("nan"), float("inf")

GOLDEN: list[tuple[fa.Tensor, str, str]] = [
    (fa.asarray(5), "Tensor(5)", "5"),
    (fa.asarray(1.5), "Tensor(1.5)", "1.5"),
    (fa.asarray(True), "Tensor(True)", "True"),
    (fa.asarray(1 - 2j), "Tensor(1.-2.j)", "1.-2.j"),
    (fa.asarray(7, dtype="u8"), "Tensor(7, dtype=uint8)", "7"),
    (fa.asarray([]), "Tensor([], dtype=float32)", "[]"),
    (fa.zeros((2, 0)), "Tensor([], shape=(2, 0), dtype=float32)", "[]"),
    (fa.zeros((0, 3), dtype="bool"), "Tensor([], shape=(0, 3), dtype=bool)", "[]"),
    (fa.asarray([1, -2, 30]), "Tensor([ 1, -2, 30])", "[ 1 -2 30]"),
    (fa.asarray([True, False]), "Tensor([ True, False])", "[ True False]"),
    (fa.asarray([1.0, 2.5]), "Tensor([1. , 2.5])", "[1.  2.5]"),
    (fa.asarray([-0.0, 0.0]), "Tensor([-0.,  0.])", "[-0.  0.]"),
    (fa.asarray([nan, inf, -inf]), "Tensor([ nan,  inf, -inf])", "[ nan  inf -inf]"),
    (fa.asarray([1e-9, 1.0]), "Tensor([1.e-09, 1.e+00])", "[1.e-09 1.e+00]"),
    (fa.asarray([1e10]), "Tensor([1.e+10])", "[1.e+10]"),
    (fa.asarray([1 / 3]), "Tensor([0.33333334])", "[0.33333334]"),
    (fa.asarray([1 / 3], dtype="f64"), "Tensor([0.33333333], dtype=float64)", "[0.33333333]"),
    (fa.asarray([1 / 3], dtype="f16"), "Tensor([0.3333], dtype=float16)", "[0.3333]"),
    (fa.asarray([1 / 3], dtype="bf16"), "Tensor([0.334], dtype=bfloat16)", "[0.334]"),
    (fa.asarray([1.0, 256.0], dtype="bf16"), "Tensor([  1., 256.], dtype=bfloat16)", "[  1. 256.]"),
    (fa.asarray([1, 2], dtype="i8"), "Tensor([1, 2], dtype=int8)", "[1 2]"),
    (fa.asarray([1 + 2j, 3.5]), "Tensor([1. +2.j, 3.5+0.j])", "[1. +2.j 3.5+0.j]"),
    (fa.asarray([complex(nan, -0.0)]), "Tensor([nan-0.j])", "[nan-0.j]"),
    (fa.asarray([1j], dtype="c128"), "Tensor([0.+1.j], dtype=complex128)", "[0.+1.j]"),
    (
        fa.asarray([[1, 2], [3, 4]]),
        "Tensor([[1, 2],\n        [3, 4]])",
        "[[1 2]\n [3 4]]",
    ),
    (
        fa.arange(2000),
        "Tensor([   0,    1,    2, ..., 1997, 1998, 1999])",
        "[   0    1    2 ... 1997 1998 1999]",
    ),
    (
        fa.ones((1001, 1)),
        "Tensor([[1.],\n        [1.],\n        [1.],\n        ...,\n        [1.],\n        [1.],\n        [1.]])",
        "[[1.]\n [1.]\n [1.]\n ...\n [1.]\n [1.]\n [1.]]",
    ),
    (
        fa.full((4, 300), 2.0, dtype="bf16"),
        "Tensor([[2., 2., 2., ..., 2., 2., 2.],\n"
        "        [2., 2., 2., ..., 2., 2., 2.],\n"
        "        [2., 2., 2., ..., 2., 2., 2.],\n"
        "        [2., 2., 2., ..., 2., 2., 2.]], dtype=bfloat16)",
        "[[2. 2. 2. ... 2. 2. 2.]\n [2. 2. 2. ... 2. 2. 2.]\n [2. 2. 2. ... 2. 2. 2.]\n [2. 2. 2. ... 2. 2. 2.]]",
    ),
]


@pytest.mark.parametrize(("tensor", "shown", "printed"), GOLDEN)
def test_golden(tensor: fa.Tensor, shown: str, printed: str) -> None:
    assert repr(tensor) == shown
    assert str(tensor) == printed
    assert f"{tensor}" == printed


def test_other_devices_are_named(device: fa.Device) -> None:
    x = fa.asarray([1, 2], device=device)
    suffix = "" if device is fa.get_default_device() else f", device='{device}'"
    assert repr(x) == f"Tensor([1, 2]{suffix})"
    assert str(x) == "[1 2]"
    with fa.default_device(device):
        assert repr(x) == "Tensor([1, 2])"


def test_a_device_that_is_not_the_default_is_named() -> None:
    other = fa.Device("cuda:7")
    object.__setattr__(other, "_backend", fa.Device("cpu").backend)
    try:
        x = fa.asarray([1, 2], device=other)
        assert repr(x) == "Tensor([1, 2], device='cuda:7')"
        y = fa.zeros((0, 2), dtype="f16", device=other)
        assert repr(y) == "Tensor([], shape=(0, 2), dtype=float16, device='cuda:7')"
        with fa.default_device(other):
            assert repr(x) == "Tensor([1, 2])"
            assert repr(fa.ones(1, device="cpu")) == "Tensor([1.], device='cpu')"
    finally:
        object.__setattr__(other, "_backend", None)


@given(tensors())
def test_the_text_of_numpy(x: fa.Tensor) -> None:
    """Beside NumPy: the same digits for every dtype that NumPy has, in a fresh state of its options."""
    if x.dtype is not fa.bfloat16 and x.size:
        array = x.numpy().astype(NP[x.dtype])
        with np.printoptions(legacy=False):
            assert str(x) == np.array2string(array, max_line_width=75)
    assert repr(x).startswith("Tensor(")


@given(tensors(("bool", "int64", "float32")[2], (5,)))
def test_the_text_can_be_read_again(x: fa.Tensor) -> None:
    read = eval(repr(x), {"Tensor": fa.asarray, "nan": nan, "inf": inf})
    assert np.allclose(read.numpy(), x.numpy(), rtol=1e-6, atol=0, equal_nan=True)


def test_options_change_the_text() -> None:
    x = fa.asarray([1.23456789, 1000.0])
    with fa.printoptions(precision=2):
        assert str(x) == "[   1.23 1000.  ]"
    with fa.printoptions(threshold=3, edgeitems=1):
        assert str(fa.arange(5)) == "[0 ... 4]"
    with fa.printoptions(suppress=True):
        assert str(fa.asarray([1e-9, 1.0])) == "[0. 1.]"
    with fa.printoptions(linewidth=12):
        assert str(fa.arange(8)) == "[0 1 2 3 4\n 5 6 7]"
    assert str(x) == "[   1.2345679 1000.       ]"


def test_numpys_options_do_not_matter() -> None:
    with np.printoptions(precision=1, threshold=2, linewidth=20, suppress=True, sign="+"):
        assert str(fa.asarray([1.25, 2.0])) == "[1.25 2.  ]"
        assert repr(fa.arange(10)) == "Tensor([0, 1, 2, 3, 4, 5, 6, 7, 8, 9])"


def test_options_end_with_their_block() -> None:
    before = fa.get_printoptions()
    with fa.printoptions(precision=2):
        with fa.printoptions(edgeitems=1):
            assert fa.get_printoptions() == {**before, "precision": 2, "edgeitems": 1}
        assert fa.get_printoptions() == {**before, "precision": 2}
    assert fa.get_printoptions() == before
    with pytest.raises(KeyError), fa.printoptions(precision=3):
        raise KeyError
    assert fa.get_printoptions() == before


def test_set_printoptions_and_threads() -> None:
    before = fa.get_printoptions()
    fa.set_printoptions(precision=3)
    try:
        assert str(fa.asarray(1 / 3)) == "0.333"
        seen: list[dict[str, Any]] = []

        def there() -> None:
            seen.append(fa.get_printoptions())
            fa.set_printoptions(precision=1)
            seen.append(fa.get_printoptions())

        thread = threading.Thread(target=there)
        thread.start()
        thread.join()
        assert seen == [before, {**before, "precision": 1}]
        assert fa.get_printoptions()["precision"] == 3
    finally:
        fa.set_printoptions(**before)


@pytest.mark.parametrize("bad", [{"precision": -1}, {"edgeitems": 1.5}, {"threshold": None}])
def test_bad_values_of_options(bad: dict[str, Any]) -> None:
    (name,) = bad
    with pytest.raises(ValueError, match=f"print option {name}"):
        fa.set_printoptions(**bad)
    assert fa.get_printoptions()["precision"] == 8


def test_unknown_options() -> None:
    for call in (fa.set_printoptions, fa.printoptions):
        with pytest.raises(TypeError, match=r"precision.*colour"):
            call(colour=1).__enter__()  # type: ignore[union-attr]  # never reached


def test_summaries_look_at_the_edges_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large tensor of another device is not sent to the host to be shown."""
    backend = fa.Device("cpu").backend
    sizes: list[int] = []
    real = type(backend).to_host

    def watched(self: Any, raw: Any, *, copy: bool | None) -> Any:
        sizes.append(raw.size)
        return real(self, raw, copy=copy)

    monkeypatch.setattr(type(backend), "to_host", watched)
    assert "..." in repr(fa.zeros((1000, 1000)))
    assert max(sizes) <= 100
