"""What the CPU's kernels keep of weights between calls, and how they find memory."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ferrum_array as fa
from ferrum_ops import QuantTensor, linear, linears, quantize, use_fast_paths
from ferrum_ops.kernels.cpu.features import KNOWN, lacks
from ferrum_ops.quant.integer import IntScheme
from tests.ops.cpu_products import DTYPES, group_of
from tests.ops.oracle import make, noise

pytest.importorskip("numba")

from ferrum_ops.kernels.cpu import arrays, gemm
from ferrum_ops.kernels.cpu.inputs import as_records

CPU = fa.Device("cpu")
#: with scales that kernels read where they are, and, ``int8-f16``, with scales of which they take a copy
KINDS = (None, "int8", "int8-f16", "int4-g32-asym", "int4-g64-a8")
wide_registers = pytest.mark.skipif(lacks(*KNOWN) is not None, reason=f"here: {lacks(*KNOWN)}")


@pytest.fixture(autouse=True)
def fast() -> Iterator[None]:
    with use_fast_paths(True):
        yield


def weights(seed: int, kind: str | None, dtype: fa.Dtype) -> fa.Tensor | QuantTensor:
    w = make(noise(seed, 5, 128), fa.float32, CPU)[0]
    return w.astype(dtype) if kind is None else quantize(w, kind)


def tensors(w: fa.Tensor | QuantTensor) -> dict[str, fa.Tensor]:
    """Where numbers of weights can be written."""
    return {"": w} if isinstance(w, fa.Tensor) else dict(w.parts)


def anew(w: fa.Tensor | QuantTensor) -> fa.Tensor | QuantTensor:
    """The same weights, of which nobody knows anything."""
    if isinstance(w, fa.Tensor):
        return fa.asarray(w, copy=True)
    return QuantTensor(w.scheme, w.shape, {name: fa.asarray(part, copy=True) for name, part in w.parts.items()})


def bits(x: fa.Tensor) -> bytes:
    return bytes(x.astype("f32").numpy().tobytes())


@wide_registers
@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 2**32 - 1), data=st.data())
def test_every_write_is_seen(kind: str | None, seed: int, data: st.DataObject) -> None:
    """However weights are written, and whoever shares their memory, products are those of fresh weights."""
    dtype = data.draw(st.sampled_from(DTYPES))
    w, others = weights(seed, kind, dtype), []
    values = noise(seed + 1, 3, 128)
    for _ in range(data.draw(st.integers(1, 6))):
        for one in (dtype,) if kind is None else data.draw(st.lists(st.sampled_from(DTYPES), min_size=1, max_size=2)):
            x = make(values, one, CPU)[0]
            expected = bits(linear(x, anew(w)))
            assert bits(linear(x, w)) == expected
            assert bits(linears(x, [w, w])[1]) == expected
        name = data.draw(st.sampled_from(sorted(tensors(w))))
        part = tensors(w)[name]
        if data.draw(st.booleans()):  # the next write moves it
            others.append((part[...], bits(part)))
        row = data.draw(st.integers(0, 4))
        part[row] = fa.asarray(data.draw(st.integers(0, 7)), dtype=part.dtype)
    for other, before in others:
        assert bits(other) == before


@wide_registers
@pytest.mark.parametrize("kind", KINDS)
def test_writes_to_each_part_are_seen(kind: str | None) -> None:
    """In place, where not even an address changes, and elsewhere."""
    w = weights(5, kind, fa.float32)
    x = make(noise(6, 2, 128), fa.float32, CPU)[0]
    linear(x, w)
    for name, part in tensors(w).items():
        before = bits(linear(x, w))
        part[1] = fa.asarray(3, dtype=part.dtype)
        found = bits(linear(x, w))
        assert found != before, name
        assert found == bits(linear(x, anew(w))), name
        shared = part[...]
        part[2] = fa.asarray(2, dtype=part.dtype)
        assert bits(linear(x, w)) == bits(linear(x, anew(w))) != found, name
        del shared


@wide_registers
@pytest.mark.parametrize("kind", KINDS)
def test_no_memory_is_held(kind: str | None) -> None:
    """Weights are written in place after they were used, and memory that they have left is free."""
    w = weights(1, kind, fa.float32)
    x = fa.ones((1, 128))
    linear(x, w)
    for part in tensors(w).values():
        before = part._data.ctypes.data
        part[0] = fa.zeros((), dtype=part.dtype)
        assert part._data.ctypes.data == before
        shared = part[...]
        part[0] = fa.ones((), dtype=part.dtype)
        assert part._data.ctypes.data != before
        left = weakref.ref(shared._data)
        del shared
        assert left() is None
    linear(x, w)


@wide_registers
@pytest.mark.parametrize("kind", KINDS)
def test_entries_leave_with_their_weights(kind: str | None) -> None:
    gc.collect()
    before = len(gemm._known)
    kept = [weights(seed, kind, fa.float32) for seed in range(5)]
    for dtype in (fa.float32,) if kind is None else DTYPES:
        for w in kept:
            linear(fa.ones((1, 128), dtype=dtype), w)
    assert len(gemm._known) == before + 5
    del w
    kept.clear()
    assert len(gemm._known) == before


@wide_registers
def test_weights_are_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    w = weights(2, "int4-g32", fa.float32)
    found: list[str] = []

    def watched(name: str) -> None:
        inner = getattr(gemm, name)

        def outer(*given: Any) -> Any:
            found.append(name)
            return inner(*given)

        monkeypatch.setattr(gemm, name, outer)

    watched("_refuses")
    watched("_weights_of")
    for _ in range(3):
        linear(fa.ones((1, 128)), w)
    assert found == ["_refuses", "_weights_of"]
    part = tensors(w)["scales"]
    shared = part[...]
    part[0] = 2.0
    linear(fa.ones((1, 128)), w)
    assert found == 2 * ["_refuses", "_weights_of"]
    del shared


@pytest.mark.parametrize("dtype", [*DTYPES, fa.int8, fa.uint8, fa.int64])
@pytest.mark.parametrize("size", [0, 1, 77])
def test_addresses(dtype: fa.Dtype, size: int) -> None:
    line = arrays.flat(fa.zeros(size, dtype=dtype))
    assert arrays.address(line) == line.ctypes.data
    assert arrays.address(line[size // 2 :]) == line[size // 2 :].ctypes.data
    fixed = line.copy()
    fixed.flags.writeable = False
    assert arrays.address(fixed) == fixed.ctypes.data


@wide_registers
@given(
    name=st.sampled_from(["int8-g32", "int4", "int4-g32-asym", "int4-g64-a8", "int8-a8", "int4-g128-asym-a8"]),
    dtype=st.sampled_from(DTYPES),
    rows=st.integers(1, 15),
    groups=st.integers(1, 5),
)
def test_records_begin_on_a_cache_line_and_fit_their_memory(name: str, dtype: fa.Dtype, rows: int, groups: int) -> None:
    count = groups * (group_of(name) or 32)
    w = gemm.weights_of(dtype, quantize(fa.ones((2, count)), name))
    assert w.recipe.form is not None
    line = arrays.flat(make(noise(3, rows, count), dtype, CPU)[0])
    found = as_records(line, count, gemm.EVERY, rows, count, w.group, w.recipe.form)
    at, size = found.numbers[:2]
    assert at % 64 == size % 64 == 0
    begin = found.memory.ctypes.data
    assert begin <= at
    assert at + rows * size <= begin + found.memory.nbytes
    block = w.recipe.form.block
    row = -(-count // block) * block + -(-count // w.group)  # of numbers, whole blocks, and its scales
    assert at + rows * size + 4 * row <= begin + found.memory.nbytes


def test_what_a_quantised_tensor_says_of_itself_is_its_own() -> None:
    q = quantize(fa.ones((4, 64)), "int4-g32")
    assert q.features == ("quant:int4",)
    assert isinstance(q.scheme, IntScheme)
    rounded = replace(q, scheme=replace(q.scheme, activations=8))
    assert rounded.features == ("quant:int4", "a8")
    assert q[:2].features == ("quant:int4",)
    assert q.device is q.parts["values"].device


def test_the_comparison_can_fail() -> None:
    x, w = fa.ones((1, 128)), weights(4, None, fa.float32)
    changed = fa.asarray(w, copy=True)
    changed[2] += 1.0
    assert bits(linear(x, w)) != bits(linear(x, changed))
    assert np.frombuffer(bits(linear(x, w)), np.float32).size == 5
