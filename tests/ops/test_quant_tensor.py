"""A quantised tensor as an array: its shape, its parts, what can be selected, and its layouts."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ferrum_array as fa
from ferrum_ops import QuantTensor, dequantize, explain, linear, quantize, repack
from ferrum_ops.quant.integer import IntScheme
from ferrum_ops.quant.names import scheme
from ferrum_ops.quant.types import layout_names, register_layout
from tests.array.oracle import NP, to_numpy, wide
from tests.ops.oracle import check, make, noise

#: schemes by name, with an N and a K that they divide
SCHEMES = {
    "int8": (5, 32), "int4-g32-asym": (5, 64), "int3-g32-f16": (5, 64), "q4_k": (3, 512), "q8_0": (3, 64),
    "gptq4-g32": (32, 64), "gptq3-g32-order": (64, 64), "awq4-g32": (32, 64), "mlx4-g32": (3, 64), "mxfp4": (3, 64),
    "fp8_e4m3": (3, 20), "fp8_e5m2-b4x16": (11, 40),
}  # fmt: skip


def random(name: str, lead: tuple[int, ...], device: fa.Device | str = "cpu", seed: int = 0) -> QuantTensor:
    """A quantised tensor of random bytes; scales are positive."""
    found, (n, k), rng = scheme(name), SCHEMES[name], np.random.default_rng(seed)
    parts = {}
    for part, wanted in found.parts(n, k).items():
        dtype, shape = wanted.dtypes[0], (*lead, *wanted.shape)
        if dtype.is_floating:
            raw = np.abs(rng.standard_normal(shape)).astype(NP[dtype]) + 1
        elif part == "g_idx":
            raw = rng.integers(0, 2, shape).astype(NP[dtype])
        else:
            raw = rng.integers(0, 256, (*shape, dtype.bytes_per_elem), dtype=np.uint8).view(NP[dtype])[..., 0]
        parts[part] = fa.asarray(raw, device=device)
    return QuantTensor(found, (*lead, n, k), parts)


@pytest.mark.parametrize("name", SCHEMES)
def test_selecting_is_as_of_the_numbers(device: fa.Device, name: str) -> None:
    q = random(name, (4,), device)
    n = q.shape[1]
    unit = q.row_step
    dense = to_numpy(dequantize(q))

    @given(data=st.data())
    def property_(data: st.DataObject) -> None:
        e = data.draw(st.integers(-4, 3))
        start = unit * data.draw(st.integers(0, n // unit))
        stop = data.draw(st.sampled_from([n, *range(0, n + 1, unit)]))
        few = slice(*data.draw(st.tuples(st.integers(-5, 5), st.integers(-5, 5), st.sampled_from([None, 1, 2, -1]))))
        if few.step is not None and few.step < 0:
            few = slice(None, None, 1)
        for key in (e, few, (e, slice(start, stop)), (few, slice(start, stop)), (e, slice(None))):
            found, expected = q[key], dense[key]
            assert (found.shape, found.ndim, len(found)) == (expected.shape, expected.ndim, len(expected))
            assert found.device is device
            np.testing.assert_array_equal(to_numpy(dequantize(found)), expected)
        picked = data.draw(st.lists(st.integers(0, 3), max_size=3))
        ids = fa.asarray(np.array(picked, dtype=np.int64), device=device)
        np.testing.assert_array_equal(to_numpy(dequantize(q[ids])), dense[picked])
        if unit == 1:
            rows = data.draw(st.lists(st.integers(0, n - 1), max_size=4)) if "gptq" not in name else list(range(32))
            ids = fa.asarray(np.array(rows, dtype=np.int64), device=device)
            np.testing.assert_array_equal(to_numpy(dequantize(q[1][ids])), dense[1][rows])

    property_()


@pytest.mark.parametrize("name", SCHEMES)
def test_blocks_of_rows_are_the_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    q = random(name, ())
    whole = to_numpy(dequantize(q))
    monkeypatch.setattr("ferrum_ops.quant.tensor._BLOCK", 1)
    blocks = list(q.row_blocks())
    assert len(blocks) == -(-q.shape[0] // q.row_step)
    np.testing.assert_array_equal(to_numpy(dequantize(q)), whole)
    np.testing.assert_array_equal(np.concatenate([to_numpy(dequantize(q[block])) for block in blocks]), whole)


def test_what_it_says_of_itself(device: fa.Device) -> None:
    q = quantize(fa.ones((2, 6, 64), dtype="bf16" if device.kind != "cuda" else "f16", device=device), "int4-g32")
    assert (q.shape, q.ndim, len(q), q.device) == ((2, 6, 64), 3, 2, device)
    assert q.dtype is (fa.bfloat16 if device.kind != "cuda" else fa.float16)
    assert q.nbytes == 2 * 6 * (32 + 2 * 4)
    assert repr(q).startswith(f"QuantTensor(int4-g32, {q.dtype}[2,6,64]")
    assert q.features == ("quant:int4",)
    assert quantize(fa.ones((2, 4)), "int4-asym").features == ("quant:int4", "zeros")
    assert random("gptq3-g32-order", ()).features == ("quant:gptq3", "order")
    assert random("fp8_e5m2-b4x16", ()).features == ("quant:fp8_e5m2", "blocks")
    home = q.to_device("cpu")
    assert home.device is fa.Device("cpu")
    np.testing.assert_array_equal(to_numpy(dequantize(home)), to_numpy(dequantize(q)))


def test_a_stack_is_iterable_and_a_matrix_is_not() -> None:
    stack = random("int8", (3,))
    for e, matrix in enumerate(stack):
        np.testing.assert_array_equal(to_numpy(dequantize(matrix)), to_numpy(dequantize(stack[e])))
    assert e == 2
    with pytest.raises(TypeError, match=r"QuantTensor\(int8, float32\[5,32\]\) has no rows to iterate over"):
        list(stack[0])  # which Python would take for empty


@pytest.mark.parametrize("name", SCHEMES)
def test_copies_and_pickles(device: fa.Device, name: str) -> None:
    q = random(name, (2,), device)
    for other in (pickle.loads(pickle.dumps(q)), copy.deepcopy(q), copy.copy(q)):
        assert (other.scheme, other.shape, other.dtype, other.layout) == (q.scheme, q.shape, q.dtype, q.layout)
        assert other.device is device
        assert all(to_numpy(part).tobytes() == to_numpy(q.parts[name]).tobytes() for name, part in other.parts.items())


def test_parts_are_shared_and_safe() -> None:
    values, scales = fa.ones((2, 4), dtype="i8"), fa.ones((2, 1))
    given_ = {"values": values, "scales": scales}
    q = QuantTensor(IntScheme(8), (2, 4), given_)
    given_["values"] = values + 1
    values[0, 0] = 9
    scales *= 2
    assert dequantize(q).tolist() == [[1.0] * 4] * 2
    with pytest.raises(TypeError):
        q.parts["values"] = values
    with pytest.raises(AttributeError):
        q.shape = (1, 8)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ((0, 0), "selected by a slice or a tensor of integers, got 0"),
        ((0, slice(0, 4, 2)), r"multiples of 1, step 1, got 0:4:2; select with a tensor"),
        ((0, slice(None), 0), "takes one or two indices, got 3: its last axis stays whole"),
        ((), "takes one or two indices, got 0"),
        (4, "index 4 is out of bounds for the 4 matrices"),
        (-5, "index -5 is out of bounds"),
        ([0, 1], r"matrices of .* are selected by an integer, a slice or a tensor of integers, got \[0, 1\]"),
        (fa.ones(4, dtype="bool"), r"picked from by a 1-D tensor of integers, got bool\[4\]"),
        (fa.ones((1, 2), dtype="i64"), r"picked from by a 1-D tensor of integers, got int64\[1,2\]"),
        ((0, fa.ones((1, 2), dtype="i64")), r"picked from by a 1-D tensor of integers, got int64\[1,2\]"),
        ((0, fa.asarray(1)), r"picked from by a 1-D tensor of integers, got int64\[\]"),
    ],
)
def test_keys_that_do_not_fit(key: Any, message: str) -> None:
    with pytest.raises(IndexError, match=message):
        random("int8", (4,))[key]


def test_rows_that_stand_together() -> None:
    q = random("awq4-g32", ())
    with pytest.raises(IndexError, match=r"can be cut at multiples of 8, step 1, got 4:16:1"):
        q[4:16]
    with pytest.raises(IndexError, match=r"can be cut at multiples of 8, step 1, got 8:12:1"):
        q[8:12]
    with pytest.raises(IndexError, match=r"rows of .* stand 8 together: they can be cut, not picked"):
        q[fa.asarray([1, 2])]
    with pytest.raises(IndexError, match="takes one index, got 2"):
        q[0:8, 0:8]
    assert q[16:8].shape == (0, 64)


def _parts(**changes: Any) -> dict[str, Any]:
    parts = {"values": fa.zeros((2, 16), dtype="u8"), "scales": fa.ones((2, 1)), "zeros": fa.zeros((2, 1), dtype="u8")}
    return {name: part for name, part in (parts | changes).items() if part is not None}


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (((2, 32), _parts(scales=fa.ones(2))), ValueError, r"scales of int4-g32-asym\[2,32\] must have shape \(2, 1\)"),
        (((2, 32), _parts(scales=fa.ones((2, 2)))), ValueError, r"must have shape \(2, 1\), got float32\[2,2\]"),
        (((2, 32), _parts(scales=fa.ones((2, 1), dtype="i32"))), TypeError, "must be .*float32 or .*, got int32"),
        (((2, 32), _parts(zeros=None)), ValueError, "needs parts scales, values, zeros, got scales, values"),
        (((2, 32), _parts(biases=fa.ones((2, 1)))), ValueError, "got biases, scales, values, zeros"),
        (((2, 32), _parts(zeros=[[0], [0]])), TypeError, "zeros must be a Tensor, got list"),
        (((2, 33), _parts()), ValueError, "int4-g32-asym: K = 33 is not divisible by 32, the group"),
        (((3, 32), _parts()), ValueError, r"values of .*\[3,32\] must have shape \(3, 16\), got uint8\[2,16\]"),
        (((64,), _parts()), ValueError, r"shape must be \(N, K\) or \(E, N, K\), got \(64,\)"),
        (((2, -32), _parts()), ValueError, "got \\(2, -32\\)"),
        (((2, 32), _parts(), "i32"), TypeError, "dtype must be real floating-point, got int32"),
        (((2, 32), _parts(), "f32", "no layout"), ValueError, "there is no layout 'no layout'; the layouts are plain"),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit(arguments: tuple[Any, ...], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        QuantTensor(IntScheme(4, 32, symmetric=False), *arguments)


@pytest.mark.mlx
def test_parts_on_different_devices() -> None:
    with pytest.raises(ValueError, match=r"different devices, cpu and mlx:cpu \(scales\)"):
        QuantTensor(IntScheme(4, 32, symmetric=False), (2, 32), _parts(scales=fa.ones((2, 1), device="mlx:cpu")))


def test_arguments_of_another_kind() -> None:
    x = fa.ones((2, 32))
    with pytest.raises(TypeError, match=r"dequantize: q must be a QuantTensor, got float32\[2,32\]; quantize"):
        dequantize(x)
    with pytest.raises(TypeError, match="repack: q must be a QuantTensor, got list"):
        repack([1], "plain")
    with pytest.raises(TypeError, match="scheme must be a Scheme or its name, got int 8"):
        quantize(x, 8)
    with pytest.raises(TypeError, match="QuantTensor: scheme must be a Scheme, got str 'int8'"):
        QuantTensor("int8", (2, 2), {})
    with pytest.raises(TypeError, match=r"quantize: x must be real floating-point, got int64\[2,32\]"):
        quantize(x.astype("i64"), "int8")
    with pytest.raises(TypeError, match="dequantize: dtype must be real floating-point, got int8"):
        dequantize(quantize(x, "int8"), "i8")


# Layouts.


@pytest.fixture(scope="module")
def columns() -> str:
    if "test columns" not in layout_names():
        register_layout("test columns", "tests.ops.layouts:COLUMNS")
    return "test columns"


@pytest.mark.parametrize("name", ["int4-g32", "int4-g32-asym"])
def test_a_layout_changes_no_number(device: fa.Device, columns: str, name: str) -> None:
    x, _ = make(noise(1, 3, 6, 64), fa.float32, device)
    q = quantize(x, name)
    packed = repack(q, columns)
    assert packed.layout == columns
    assert packed.parts["turned"].shape == (3, 32, 6)
    assert repr(packed).startswith(f"QuantTensor({name}, test columns, float32[3,6,64]")
    assert packed.features == (*q.features, "layout:test columns")
    assert repack(packed, columns) is packed
    dense = to_numpy(dequantize(q))
    np.testing.assert_array_equal(to_numpy(dequantize(packed)), dense)
    np.testing.assert_array_equal(to_numpy(dequantize(packed[1, 2:4])), dense[1, 2:4])
    back = repack(packed, "plain")
    for part, tensor in q.parts.items():
        np.testing.assert_array_equal(to_numpy(back.parts[part]), to_numpy(tensor))
    assert repack(packed, "int").layout == "plain"
    y, _ = make(noise(2, 5, 64), fa.float32, device)
    check(linear(y, packed[0]), wide(linear(y, q[0])), fa.float32)
    assert "layout:test columns" in explain(linear, y, packed[0]).features


def test_layouts_that_do_not_fit(columns: str) -> None:
    q = quantize(fa.ones((3, 32)), "int4")
    with pytest.raises(ValueError, match=r"repack: the layout test columns does not hold .*: rows come in pairs"):
        repack(q, columns)
    with pytest.raises(ValueError, match="it is for 4-bit integers"):
        repack(quantize(fa.ones((2, 32)), "int8"), columns)
    with pytest.raises(ValueError, match=r"QuantTensor: the layout test columns does not hold .*: rows come in pairs"):
        QuantTensor(q.scheme, q.shape, q.parts, layout=columns)
    with pytest.raises(ValueError, match="repack: there is no layout 'rows'; there are int, plain"):
        repack(q, "rows")
    for name in ("plain", "int", columns):
        with pytest.raises(ValueError, match=f"there already is a layout '{name}'"):
            register_layout(name, "tests.ops.layouts:COLUMNS")


@pytest.mark.parametrize("name", SCHEMES)
def test_rows_that_are_known(device: fa.Device, name: str) -> None:
    q = random(name, (), device)
    ids = fa.asarray([1, 0, 2, 1], dtype="i64", device=device)
    if q.row_step > 1:
        with pytest.raises(IndexError, match="cut, not picked"):
            q.rows_known(ids)
    else:
        found = q.rows_known(ids)
        assert found.shape == (4, q.shape[1])
        np.testing.assert_array_equal(to_numpy(dequantize(found)), to_numpy(dequantize(q[ids])))
