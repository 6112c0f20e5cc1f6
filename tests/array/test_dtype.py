"""Dtype: one object per type, under all its names; the promotion lattice and its laws."""

from __future__ import annotations

import operator
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from itertools import product
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import ferrum_array as fa
from ferrum_array.dtype import promote_dtypes, weak_promote
from tests.array.oracle import ALL, COMPLEX, FLOATS, HALVES, INTEGERS, NP, SIGNED, UNSIGNED

# (member, tag, name in the standard, kind, bits, bytes of an element)
TABLE = [
    ("BOOL", "bool", "bool", "bool", 8, 1),
    ("I8", "i8", "int8", "signed integer", 8, 1),
    ("I16", "i16", "int16", "signed integer", 16, 2),
    ("I32", "i32", "int32", "signed integer", 32, 4),
    ("I64", "i64", "int64", "signed integer", 64, 8),
    ("U8", "u8", "uint8", "unsigned integer", 8, 1),
    ("U16", "u16", "uint16", "unsigned integer", 16, 2),
    ("U32", "u32", "uint32", "unsigned integer", 32, 4),
    ("U64", "u64", "uint64", "unsigned integer", 64, 8),
    ("F16", "f16", "float16", "real floating", 16, 2),
    ("BF16", "bf16", "bfloat16", "real floating", 16, 2),
    ("F32", "f32", "float32", "real floating", 32, 4),
    ("F64", "f64", "float64", "real floating", 64, 8),
    ("C64", "c64", "complex64", "complex floating", 64, 8),
    ("C128", "c128", "complex128", "complex floating", 128, 16),
]


def test_the_table_is_whole() -> None:
    assert [getattr(fa.Dtype, row[0]) for row in TABLE] == list(fa.Dtype.all())
    assert set(ALL) == set(fa.Dtype.all())


@pytest.mark.parametrize(("member", "tag", "standard", "kind", "bits", "size"), TABLE)
def test_one_object_under_all_its_names(member: str, tag: str, standard: str, kind: str, bits: int, size: int) -> None:
    dtype = getattr(fa.Dtype, member)
    numpy_dtype = NP[dtype]
    for spelling in (dtype, tag, standard, numpy_dtype, numpy_dtype.type):
        assert fa.Dtype(spelling) is dtype
    assert getattr(fa, standard) is dtype
    assert (dtype.name, dtype.standard_name, dtype.kind, dtype.bits) == (tag, standard, kind, bits)
    assert dtype.bytes_per_elem == size == numpy_dtype.itemsize
    assert repr(dtype) == f"ferrum_array.{standard}"
    assert str(dtype) == standard
    assert eval(repr(dtype), {"ferrum_array": fa}) is dtype


@pytest.mark.parametrize(
    ("tag", "size", "host"),
    [("f32", 4, float), ("f16", 2, None), ("u32", 4, None), ("i32", 4, None), ("i8", 1, None)],
)
def test_the_five_first_tags(tag: str, size: int, host: type | None) -> None:
    dtype = getattr(fa.Dtype, tag.upper())
    assert (dtype.name, dtype.bytes_per_elem) == (tag, size)
    assert fa.ones(3, dtype=tag).nbytes == 3 * size
    if host is not None:
        assert fa.Dtype(host) is dtype


def test_host_types_are_the_defaults() -> None:
    assert [fa.Dtype(t) for t in (bool, int, float, complex)] == [
        fa.bool,
        fa.int64,
        fa.float32,
        fa.complex64,
    ]
    for value in (True, 1, 1.0, 1j):
        assert fa.asarray(value).dtype is fa.Dtype(type(value))


@pytest.mark.parametrize("bad", ["q", "float", "F32", "", " f32", None, 5, object(), str, list])
def test_what_names_no_dtype(bad: Any) -> None:
    with pytest.raises(TypeError, match=r"no dtype is called .*; known are .*bf16 \(bfloat16\)"):
        fa.Dtype(bad)


def test_frozen() -> None:
    for attribute in ("name", "bits", "new"):
        with pytest.raises(AttributeError, match="frozen"):
            setattr(fa.float32, attribute, 1)
        with pytest.raises(AttributeError):
            delattr(fa.float32, attribute)
    assert fa.float32.name == "f32"


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickle_keeps_identity(dtype: fa.Dtype, protocol: int) -> None:
    assert pickle.loads(pickle.dumps(dtype, protocol)) is dtype


def test_identity_across_threads() -> None:
    found: list[tuple[fa.Dtype, ...]] = []
    start = threading.Barrier(8)
    texts = [pickle.dumps(d) for d in ALL]

    def load() -> None:
        start.wait()
        found.append(tuple(pickle.loads(text) for text in texts))

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert all(one is d for row in found for one, d in zip(row, ALL, strict=True))


def test_identity_in_another_process() -> None:
    script = (
        "import pickle, sys; import ferrum_array as fa\n"
        "loaded = pickle.loads(bytes.fromhex(sys.argv[1]))\n"
        "assert all(a is b for a, b in zip(loaded, fa.Dtype.all(), strict=True))\n"
        "sys.stdout.write(pickle.dumps(loaded).hex())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, pickle.dumps(fa.Dtype.all()).hex()],
        capture_output=True,
        text=True,
        check=True,
    )
    assert pickle.loads(bytes.fromhex(done.stdout)) == fa.Dtype.all()


def test_dtypes_are_keys_and_no_strings() -> None:
    assert len({*ALL, *map(fa.Dtype, ("f32", "float32"))}) == len(ALL)
    assert fa.float32 != "float32"
    assert fa.float32 != np.float32
    assert fa.float32 != None  # noqa: E711  # the comparison itself is under test


# The lattice.


def join(a: fa.Dtype, b: fa.Dtype) -> fa.Dtype | None:
    try:
        return promote_dtypes(a, b)
    except TypeError:
        return None


def test_undefined_for_uint64_with_signed_alone() -> None:
    undefined = {(a, b) for a, b in product(ALL, ALL) if join(a, b) is None}
    expected = {(fa.uint64, s) for s in SIGNED}
    assert undefined == expected | {(b, a) for a, b in expected}
    with pytest.raises(TypeError, match=r"uint64 and int8 .*astype"):
        fa.result_type(fa.uint64, fa.int8)


def test_idempotent_and_commutative() -> None:
    for a, b in product(ALL, ALL):
        assert join(a, a) is a
        assert join(a, b) is join(b, a)


def test_associative_where_defined() -> None:
    compared = 0
    for a, b, c in product(ALL, ALL, ALL):
        ab, bc = join(a, b), join(b, c)
        if ab is None or bc is None:
            continue
        left, right = join(ab, c), join(a, bc)
        if left is not None and right is not None:
            assert left is right, (a, b, c)
            compared += 1
    assert compared > 3000


def test_an_upper_bound_and_monotone() -> None:
    below = {(a, b) for a, b in product(ALL, ALL) if join(a, b) is b}
    for a, b in product(ALL, ALL):
        both = join(a, b)
        if both is not None:
            assert (a, both) in below
            assert (b, both) in below
    for (a, b), c in product(below, ALL):
        low, high = join(a, c), join(b, c)
        if low is not None and high is not None:
            assert (low, high) in below, (a, b, c)


def test_order_of_arguments_does_not_matter() -> None:
    assert fa.result_type(fa.bool, fa.float16, fa.int64, fa.bfloat16) is fa.float32
    assert fa.result_type(fa.bfloat16, fa.int64, fa.float16, fa.bool) is fa.float32


def test_one_kind_promotes_as_in_numpy() -> None:
    for a, b in product(ALL, ALL):
        integers = a in INTEGERS and b in INTEGERS
        floats = {a, b} <= {fa.float16, fa.float32, fa.float64, *COMPLEX}
        if not (integers or floats) or join(a, b) is None:
            continue
        assert NP[promote_dtypes(a, b)] == np.promote_types(NP[a], NP[b]), (a, b)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("i32", "f32", "f32"),
        ("i64", "f16", "f16"),
        ("u64", "bf16", "bf16"),
        ("f16", "bf16", "f32"),
        ("bf16", "f64", "f64"),
        ("bf16", "c64", "c64"),
        ("f64", "c64", "c128"),
        ("bool", "f16", "f16"),
        ("bool", "u8", "u8"),
        ("bool", "i8", "i8"),
        ("u8", "i8", "i16"),
        ("u32", "i32", "i64"),
        ("i64", "c64", "c64"),
    ],
)
def test_mixed_kinds(a: str, b: str, expected: str) -> None:
    assert fa.result_type(a, b) is fa.Dtype(expected)
    assert (fa.ones(1, dtype=a) * fa.ones(1, dtype=b) if a != "bool" else fa.ones(1, dtype=b)).dtype
    assert fa.concat([fa.ones(1, dtype=a), fa.ones(1, dtype=b)]).dtype is fa.Dtype(expected)


WEAK: dict[type, Callable[[fa.Dtype], fa.Dtype]] = {
    bool: lambda d: d,
    int: lambda d: fa.int64 if d is fa.bool else d,
    float: lambda d: d if d in FLOATS + COMPLEX else fa.float32,
    complex: lambda d: d if d in COMPLEX else fa.complex128 if d is fa.float64 else fa.complex64,
}


@pytest.mark.parametrize("scalar", [True, 1, 1.0, 1j])
@pytest.mark.parametrize("dtype", ALL)
def test_python_scalars_are_weak(dtype: fa.Dtype, scalar: complex) -> None:
    expected = WEAK[type(scalar)](dtype)
    assert weak_promote(dtype, type(scalar)) is expected
    assert fa.result_type(dtype, scalar) is expected
    assert fa.result_type(scalar, fa.ones(1, dtype=dtype)) is expected
    if expected is not fa.bool:
        for operate in (operator.add, operator.mul):
            assert operate(fa.ones(1, dtype=dtype), scalar).dtype is expected
            assert operate(scalar, fa.ones(1, dtype=dtype)).dtype is expected


def test_numpy_scalars_are_strong() -> None:
    assert (fa.ones(1, dtype="f16") + np.float64(1)).dtype is fa.float64
    assert fa.result_type(fa.float16, np.float64(1)) is fa.float64
    assert fa.result_type(fa.int8, np.int32(1)) is fa.int32


def test_result_type_needs_a_type() -> None:
    for nothing in ((), (1,), (1, 2.0)):
        with pytest.raises(ValueError, match="at least one tensor or dtype"):
            fa.result_type(*nothing)


# What is asked about dtypes.

KINDS = {
    "bool": {fa.bool},
    "signed integer": set(SIGNED),
    "unsigned integer": set(UNSIGNED),
    "integral": set(INTEGERS),
    "real floating": set(FLOATS),
    "complex floating": set(COMPLEX),
    "numeric": {*INTEGERS, *FLOATS, *COMPLEX},
}


@pytest.mark.parametrize("dtype", ALL)
def test_isdtype(dtype: fa.Dtype) -> None:
    assert {kind for kind in KINDS if fa.isdtype(dtype, kind)} == {
        kind for kind, members in KINDS.items() if dtype in members
    }
    assert fa.isdtype(dtype, dtype)
    assert fa.isdtype(dtype, ("bool", "numeric"))
    assert not fa.isdtype(dtype, ())


def test_isdtype_refuses() -> None:
    with pytest.raises(ValueError, match=r"unknown kind 'real'.*'?real floating"):
        fa.isdtype(fa.float32, "real")
    with pytest.raises(TypeError, match="expected a Dtype"):
        fa.isdtype("float32", "real floating")  # type: ignore[arg-type]  # wrong on purpose


@pytest.mark.parametrize("dtype", [*FLOATS, *COMPLEX])
def test_finfo(dtype: fa.Dtype) -> None:
    expected = ml_dtypes.finfo(NP[dtype]) if dtype in HALVES else np.finfo(NP[dtype])
    found = fa.finfo(dtype)
    for name in ("eps", "max", "min", "smallest_normal"):
        assert type(getattr(found, name)) is float
        assert getattr(found, name) == float(getattr(expected, name))
    assert found.bits == expected.bits
    assert found.dtype is dtype.real
    assert fa.finfo(fa.ones(1, dtype=dtype)) == found
    with pytest.raises(TypeError, match="iinfo"):
        fa.finfo(fa.int8)


@pytest.mark.parametrize("dtype", INTEGERS)
def test_iinfo(dtype: fa.Dtype) -> None:
    expected = np.iinfo(NP[dtype])
    found = fa.iinfo(dtype)
    assert (found.min, found.max, found.bits) == (expected.min, expected.max, expected.bits)
    assert fa.iinfo(fa.ones(1, dtype=dtype)) == found
    with pytest.raises(TypeError, match="finfo"):
        fa.iinfo(fa.float32)


def test_can_cast_is_the_order_of_the_lattice() -> None:
    for a, b in product(ALL, ALL):
        assert fa.can_cast(a, b) == (join(a, b) is b), (a, b)
    assert fa.can_cast(fa.ones(1, dtype="i8"), "i16")


def test_real_and_complex_parts() -> None:
    assert [d.real for d in COMPLEX] == [fa.float32, fa.float64]
    assert [d.complex for d in FLOATS] == [fa.complex64] * 3 + [fa.complex128]
    assert all(d.real is d for d in (*INTEGERS, *FLOATS))
