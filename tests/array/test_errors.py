"""Mistakes: each gives an error of the right class that names the function and what was given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import ferrum_array as fa

A = fa.asarray([1.0, 2.0, 3.0])
M = fa.asarray([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
I = fa.asarray([1, 2, 3])  # noqa: E741  # integers
B = fa.asarray([True, False, True])
C = fa.asarray([1 + 1j])
SQUARE = fa.asarray([[1.0, 2.0], [2.0, 4.0]])

Row = tuple[str, Callable[[], Any], type[Exception], list[str]]

SHAPES: list[Row] = [
    ("add", lambda: fa.add(A, fa.ones(2)), ValueError, ["add", "(3,)", "(2,)", "broadcast"]),
    ("a + b", lambda: A + fa.ones(2), ValueError, ["add", "(3,)", "(2,)"]),
    ("a < b", lambda: fa.less(A, fa.ones((2, 2))), ValueError, ["less", "(3,)", "(2, 2)"]),
    ("where", lambda: fa.where(B, fa.ones(2), 1.0), ValueError, ["where", "(3,)", "(2,)"]),
    ("clip", lambda: fa.clip(A, fa.ones(2)), ValueError, ["clip", "(3,)", "(2,)"]),
    ("broadcast_to", lambda: fa.broadcast_to(A, (4,)), ValueError, ["broadcast_to", "(4,)"]),
    ("broadcast_to less", lambda: fa.broadcast_to(M, (3,)), ValueError, ["broadcast_to", "(3,)"]),
    ("broadcast_arrays", lambda: fa.broadcast_arrays(A, fa.ones(2)), ValueError, ["(3,)", "(2,)"]),
    ("broadcast_shapes", lambda: fa.broadcast_shapes((2,), (3,)), ValueError, ["(2,)", "(3,)"]),
    ("matmul", lambda: A @ fa.ones(2), ValueError, ["matmul", "[3]", "[2]"]),
    ("matmul 2-d", lambda: M @ M, ValueError, ["matmul", "float32[2,3]", "3", "2"]),
    ("matmul stacks", lambda: fa.ones((2, 1, 1)) @ fa.ones((3, 1, 1)), ValueError, ["matmul", "(2,)"]),
    ("matmul 0-d", lambda: fa.asarray(1.0) @ A, ValueError, ["matmul", "axis"]),
    ("vecdot", lambda: fa.vecdot(A, fa.ones(2)), ValueError, ["vecdot", "3", "2"]),
    ("tensordot", lambda: fa.tensordot(A, fa.ones(2), axes=1), ValueError, ["tensordot"]),
    ("tensordot axes", lambda: fa.tensordot(A, A, axes=2), ValueError, ["tensordot", "axes=2"]),
    ("cross stacks", lambda: fa.linalg.cross(fa.ones((2, 3)), fa.ones((4, 3))), ValueError, ["cross", "(4, 3)"]),
    ("rtol", lambda: fa.linalg.matrix_rank(fa.ones((3, 2, 2)), rtol=fa.ones(2)), ValueError, ["matrix_rank", "rtol"]),
    ("least of none", lambda: fa.linalg.vector_norm(A[:0], ord=-fa.inf), ValueError, ["vector_norm", "-inf", "[0]"]),
    ("fftn longer s", lambda: fa.fft.fftn(A, s=(2, 2)), ValueError, ["fftn", "s=(2, 2)", "float32[3]"]),
    ("ifftn 0", lambda: fa.fft.ifftn(A, s=(0,)), ValueError, ["ifftn", "at least one point", "got 0"]),
    ("fft huge", lambda: fa.fft.fft(A, n=1 << 62), ValueError, ["fft", "memory"]),
    ("einsum", lambda: fa.einsum("ij,jk->ik", M, M), ValueError, ["einsum"]),
    ("einsum count", lambda: fa.einsum("ij,jk", M), ValueError, ["einsum"]),
    ("einsum axes", lambda: fa.einsum("ijk", M), ValueError, ["einsum"]),
    ("einsum text", lambda: fa.einsum("i?", M), ValueError, ["einsum"]),
    ("einsum output", lambda: fa.einsum("ij->k", M), ValueError, ["einsum"]),
    ("reshape", lambda: fa.reshape(A, (2, 2)), ValueError, ["reshape", "3", "(2, 2)"]),
    ("reshape -1", lambda: fa.reshape(M, (-1, -1)), ValueError, ["reshape", "(-1, -1)", "only one"]),
    ("reshape 4, -1", lambda: fa.reshape(M, (4, -1)), ValueError, ["reshape", "(4, -1)", "6 is no multiple of 4"]),
    ("reshape 0, -1", lambda: fa.reshape(M, (0, -1)), ValueError, ["reshape", "(0, -1)", "not known"]),
    ("concat 0-d", lambda: fa.concat(A), ValueError, ["concat", "array 0", "float32[]", "stack"]),
    ("full of a tensor", lambda: fa.full(2, A), ValueError, ["full", "one number", "float32", "(3,)"]),
    ("arange of a tensor", lambda: fa.arange(A), ValueError, ["arange", "one number", "(3,)"]),
    ("linspace of an array", lambda: fa.linspace(np.ones(2), 1, 3), ValueError, ["linspace", "one number", "(2,)"]),
    ("pad a tuple of one", lambda: fa.pad(A, (1,)), TypeError, ["pad", "pad_width", "(1,)"]),
    ("pad a fraction", lambda: fa.pad(A, [(1, 1.5)]), TypeError, ["pad", "pad_width", "1.5"]),
    ("choice of a list", lambda: fa.random.default_rng(0).choice([1]), TypeError, ["choice", "list [1]", "asarray"]),
    ("load a number", lambda: fa.io.load(3), TypeError, ["path", "int 3"]),  # type: ignore[arg-type]  # wrong
    ("save in turn", lambda: fa.io.save_safetensors("x", {"a": A}), TypeError, ["save_safetensors", "path", "second"]),  # type: ignore[arg-type]  # wrong
    ("save nowhere", lambda: fa.io.savez("/no/such/folder/x.npz", A), OSError, ["no such folder", "/no/such/folder"]),
    ("linspace num", lambda: fa.linspace(0, 1, -1), ValueError, ["linspace", "num", "-1"]),
    ("linspace fraction", lambda: fa.linspace(0, 1, 2.5), TypeError, ["linspace", "num", "2.5"]),
    ("reshape copy", lambda: fa.reshape(M.T, (6,), copy=False), ValueError, ["reshape", "copy"]),
    ("concat", lambda: fa.concat([A, M]), ValueError, ["concat", "(3,)", "(2, 3)"]),
    ("concat none", lambda: fa.concat([]), ValueError, ["concat"]),
    ("stack", lambda: fa.stack([A, fa.ones(2)]), ValueError, ["stack", "(3,)", "(2,)"]),
    ("stack none", lambda: fa.stack([]), ValueError, ["stack"]),
    ("squeeze", lambda: fa.squeeze(M, 0), ValueError, ["squeeze", "0", "float32[2,3]"]),
    ("permute_dims", lambda: fa.permute_dims(M, (0,)), ValueError, ["permute_dims", "(0,)"]),
    ("permute_dims twice", lambda: fa.permute_dims(M, (0, 0)), ValueError, ["permute_dims"]),
    ("moveaxis", lambda: fa.moveaxis(M, (0, 1), 0), ValueError, ["moveaxis"]),
    ("roll", lambda: fa.roll(M, (1, 2), axis=0), ValueError, ["roll"]),
    ("repeat", lambda: fa.repeat(A, fa.asarray([1, 2])), ValueError, ["repeat", "int64[2]"]),
    ("repeat negative", lambda: fa.repeat(A, -1), ValueError, ["repeat", "negative"]),
    ("tile negative", lambda: fa.tile(A, (-1,)), ValueError, ["tile", "-1"]),
    ("meshgrid", lambda: fa.meshgrid(M), ValueError, ["meshgrid", "float32[2,3]"]),
    ("tril", lambda: fa.tril(A), ValueError, ["tril", "float32[3]"]),
    ("take", lambda: fa.take(M, I), ValueError, ["take", "axis="]),
    ("take_along_axis", lambda: fa.take_along_axis(M, fa.asarray([0])), ValueError, ["take_along_axis"]),
    ("cumulative_sum", lambda: fa.cumulative_sum(M), ValueError, ["cumulative_sum", "axis="]),
    ("nonzero 0-d", lambda: fa.nonzero(fa.asarray(1)), ValueError, ["nonzero"]),
    ("searchsorted", lambda: fa.searchsorted(M, A), ValueError, ["searchsorted", "1-D"]),
    ("max of none", lambda: fa.max(fa.ones(0)), ValueError, ["max", "float32[0]"]),
    ("argmin of none", lambda: fa.argmin(fa.ones((2, 0)), axis=1), ValueError, ["argmin"]),
    ("inv", lambda: fa.linalg.inv(M), ValueError, ["inv", "square", "float32[2,3]"]),
    ("det 1-d", lambda: fa.linalg.det(A), ValueError, ["det", "float32[3]"]),
    ("solve", lambda: fa.linalg.solve(fa.eye(2), A), ValueError, ["solve", "float32[3]"]),
    ("cross", lambda: fa.linalg.cross(M, fa.ones(2)), ValueError, ["cross", "3"]),
    ("outer", lambda: fa.linalg.outer(M, A), ValueError, ["outer", "1-D"]),
    ("matrix_norm", lambda: fa.linalg.matrix_norm(A), ValueError, ["matrix_norm"]),
    ("fft 0", lambda: fa.fft.fft(A, n=0), ValueError, ["fft", "0"]),
    ("fftn s", lambda: fa.fft.fftn(M, s=(2,), axes=(0, 1)), ValueError, ["fftn"]),
    ("ragged", lambda: fa.asarray([[1], [2, 3]]), ValueError, ["asarray", "ragged", "[1]", "(2,)", "(1,)"]),
    ("ragged inside", lambda: fa.asarray([[[1], [2]], [[1], [2, 3]]]), ValueError, ["[1][1]", "(2,)", "[1][0]"]),
    ("ragged numbers", lambda: fa.asarray([[1], 2]), ValueError, ["asarray", "ragged", "()"]),
    ("None inside", lambda: fa.asarray([[1], [None]], dtype="f32"), TypeError, ["numbers", "[1][0]", "None"]),
    ("text inside", lambda: fa.asarray(["2"], dtype="f32"), TypeError, ["numbers", "[0]", "str '2'"]),
    ("None beside a tensor", lambda: fa.asarray([A[0], None]), TypeError, ["numbers", "[1]", "None"]),
    ("an object inside", lambda: fa.asarray([1, object()]), TypeError, ["numbers", "[1]", "object"]),
    ("out of range", lambda: fa.asarray([300], dtype="u8"), OverflowError, ["300", "uint8", "0 to 255"]),
    ("logical_and", lambda: fa.logical_and(I, I), TypeError, ["logical_and", "int64", "x != 0"]),
]

DTYPES: list[Row] = [
    ("u64 + i64", lambda: fa.ones(1, dtype="u64") + I, TypeError, ["add", "uint64", "int64", "astype"]),
    ("bool + bool", lambda: B + B, TypeError, ["add", "bool", "astype"]),
    ("-bool", lambda: -B, TypeError, ["negative", "bool"]),
    ("float & int", lambda: A & 1, TypeError, ["bitwise_and", "float32"]),
    ("~float", lambda: ~A, TypeError, ["bitwise_invert", "float32"]),
    ("bool << 1", lambda: B << B, TypeError, ["bitwise_left_shift", "bool"]),
    ("complex < complex", lambda: C < C, TypeError, ["less", "complex64"]),
    ("complex // 2", lambda: C // 2, TypeError, ["floor_divide", "complex64"]),
    ("complex % 2", lambda: C % 2, TypeError, ["remainder", "complex64"]),
    ("logical_and", lambda: fa.logical_and(A, A), TypeError, ["logical_and", "float32"]),
    ("atan2", lambda: fa.atan2(C, C), TypeError, ["atan2", "complex64"]),
    ("floor complex", lambda: fa.floor(C), TypeError, ["floor", "complex64"]),
    ("imag of real", lambda: fa.imag(A), TypeError, ["imag", "float32"]),
    ("where", lambda: fa.where(I, 1, 2), TypeError, ["where", "int64[3]"]),
    ("clip", lambda: fa.clip(I, 0.5), TypeError, ["clip", "float32", "int64"]),
    ("clip complex", lambda: fa.clip(C, 0), TypeError, ["clip", "complex64"]),
    ("matmul bool", lambda: B @ B, TypeError, ["matmul", "bool"]),
    ("max complex", lambda: fa.max(C), TypeError, ["max", "complex64"]),
    ("sort complex", lambda: fa.sort(C), TypeError, ["sort", "complex64"]),
    ("argmax complex", lambda: fa.argmax(C), TypeError, ["argmax", "complex64"]),
    ("searchsorted complex", lambda: fa.searchsorted(C, C), TypeError, ["searchsorted"]),
    ("sum dtype", lambda: fa.sum(C, dtype="f32"), TypeError, ["sum", "float32"]),
    ("astype", lambda: C.astype("f32"), TypeError, ["astype", "complex64", "real()"]),
    ("take floats", lambda: fa.take(A, A), TypeError, ["take", "float32[3]"]),
    ("repeat floats", lambda: fa.repeat(A, A), TypeError, ["repeat", "float32"]),
    ("rfft complex", lambda: fa.fft.rfft(C), TypeError, ["rfft", "complex64", "use fft "]),
    ("rfftn complex", lambda: fa.fft.rfftn(C), TypeError, ["rfftn", "complex64", "use fftn "]),
    ("ihfft complex", lambda: fa.fft.ihfft(C), TypeError, ["ihfft", "complex64", "use ifft "]),
    ("outer bool", lambda: fa.linalg.outer(B, B), TypeError, ["outer", "bool", "astype"]),
    ("cross bool", lambda: fa.linalg.cross(B, B), TypeError, ["cross", "bool", "astype"]),
    ("asarray complex", lambda: fa.asarray([1j], dtype="f32"), TypeError, ["asarray", "float32"]),
    ("full complex", lambda: fa.full(2, 1j, dtype="f32"), TypeError, ["full", "float32", "1j"]),
    ("linspace complex", lambda: fa.linspace(0, 1j, 3, dtype="f32"), TypeError, ["linspace"]),
    ("finfo", lambda: fa.finfo("i8"), TypeError, ["finfo", "int8"]),
    ("zeros dtype", lambda: fa.zeros(2, dtype="f33"), TypeError, ["'f33'", "bf16 (bfloat16)"]),
    ("asarray dtype", lambda: fa.asarray(1, dtype=object), TypeError, ["object", "bf16"]),
    ("astype unknown", lambda: A.astype("double"), TypeError, ["'double'", "f64 (float64)"]),
]

VALUES: list[Row] = [
    ("u8 + 300", lambda: fa.ones(1, dtype="u8") + 300, OverflowError, ["add", "300", "uint8", "255"]),
    ("u8 - -1", lambda: fa.ones(1, dtype="u8") - (-1), OverflowError, ["subtract", "-1", "uint8"]),
    ("i64 * 2**70", lambda: I * 2**70, OverflowError, ["multiply", "int64"]),
    ("float + 10**400", lambda: A + 10**400, OverflowError, ["add", "float32"]),
    ("asarray 300", lambda: fa.asarray([300], dtype="u8"), OverflowError, ["asarray", "300", "uint8"]),
    ("asarray 2**63", lambda: fa.asarray([2**63]), OverflowError, ["asarray", "uint64"]),
    ("asarray 2**64", lambda: fa.asarray([2**64]), OverflowError, ["asarray"]),
    ("asarray 2**100", lambda: fa.asarray(2**100), OverflowError, ["asarray"]),
    ("full 300", lambda: fa.full(2, 300, dtype="u8"), OverflowError, ["full", "300", "uint8"]),
    ("full nan", lambda: fa.full(2, fa.nan, dtype="i32"), OverflowError, ["full", "int32", "nan"]),
    ("full_like -1", lambda: fa.full_like(fa.ones(1, dtype="u8"), -1), OverflowError, ["full_like"]),
    ("int ** -1", lambda: I**-1, ValueError, ["pow", "negative"]),
    ("int ** -tensor", lambda: I ** fa.asarray(-1), ValueError, ["pow", "negative"]),
    ("inv singular", lambda: fa.linalg.inv(SQUARE), ValueError, ["inv", "ingular"]),
    ("solve singular", lambda: fa.linalg.solve(SQUARE, fa.ones(2)), ValueError, ["solve", "ingular", "[2,2]", "pinv"]),
    (
        "rank NaN",
        lambda: fa.linalg.matrix_rank(fa.nan * SQUARE),
        ValueError,
        ["NaN", "singular values", "float32[2,2]"],
    ),
    ("cholesky", lambda: fa.linalg.cholesky(-fa.eye(2)), ValueError, ["cholesky", "positive definite"]),
    ("qr mode", lambda: fa.linalg.qr(M, mode="full"), ValueError, ["qr", "'full'"]),
    ("matrix_norm ord", lambda: fa.linalg.matrix_norm(M, ord=3), ValueError, ["matrix_norm", "3"]),
    ("fft norm", lambda: fa.fft.fft(A, norm="half"), ValueError, ["fft", "'half'"]),
    ("searchsorted side", lambda: fa.searchsorted(A, A, side="up"), ValueError, ["searchsorted", "'up'"]),
    ("meshgrid indexing", lambda: fa.meshgrid(A, indexing="yx"), ValueError, ["meshgrid", "'yx'"]),
    ("diff n", lambda: fa.diff(A, n=-1), ValueError, ["diff", "-1"]),
    ("arange step", lambda: fa.arange(0, 1, 0), ValueError, ["arange", "step"]),
    ("arange nan", lambda: fa.arange(fa.nan), ValueError, ["arange", "finite"]),
    ("arange huge", lambda: fa.arange(1e300), ValueError, ["arange"]),
    ("arange wrapping", lambda: fa.arange(0, 300, dtype="u8"), OverflowError, ["arange", "299", "255"]),
    ("arange 10**400", lambda: fa.arange(10**400), ValueError, ["arange", "memory"]),
    ("zeros negative", lambda: fa.zeros((2, -1)), ValueError, ["zeros", "-1"]),
    ("eye negative", lambda: fa.eye(-1), ValueError, ["eye", "-1"]),
    ("linspace negative", lambda: fa.linspace(0, 1, -1), ValueError, ["linspace", "-1"]),
    ("zeros huge", lambda: fa.zeros((2,) * 63), ValueError, ["zeros", "memory"]),
    ("ones huge", lambda: fa.ones((1 << 22, 1 << 22)), MemoryError, ["ones", "(4194304, 4194304)"]),
    ("empty huge", lambda: fa.empty((1 << 22, 1 << 22)), MemoryError, ["empty"]),
    ("broadcast huge", lambda: fa.broadcast_to(A, (1 << 40, 3)) + 1, MemoryError, ["TiB", "(1099511627776, 3)"]),
    ("copy=False list", lambda: fa.asarray([1], copy=False), ValueError, ["asarray", "copy=False"]),
    ("copy=False dtype", lambda: fa.asarray(A, dtype="f64", copy=False), ValueError, ["copy=False"]),
]

AXES: list[Row] = [
    ("sum", lambda: fa.sum(A, axis=1), IndexError, ["sum", "axis 1"]),
    ("sum tuple", lambda: fa.sum(M, axis=(0, -3)), IndexError, ["sum", "axis -3"]),
    ("sum twice", lambda: fa.sum(M, axis=(0, -2)), ValueError, ["sum", "twice"]),
    ("sum float", lambda: fa.sum(M, axis=1.0), TypeError, ["sum", "float 1.0"]),
    ("sum text", lambda: fa.sum(M, axis="rows"), TypeError, ["sum", "'rows'"]),
    ("argmax", lambda: fa.argmax(A, axis=1), IndexError, ["argmax", "axis 1"]),
    ("sort", lambda: fa.sort(A, axis=2), IndexError, ["sort", "axis 2"]),
    ("sort 0-d", lambda: fa.sort(fa.asarray(1)), IndexError, ["sort", "0 axes"]),
    ("concat", lambda: fa.concat([A, A], axis=1), IndexError, ["concat", "axis 1"]),
    ("stack", lambda: fa.stack([A, A], axis=3), IndexError, ["axis 3"]),
    ("expand_dims", lambda: fa.expand_dims(A, 3), IndexError, ["expand_dims", "axis 3"]),
    ("flip", lambda: fa.flip(A, axis=1), IndexError, ["flip", "axis 1"]),
    ("roll", lambda: fa.roll(A, 1, axis=1), IndexError, ["roll", "axis 1"]),
    ("squeeze", lambda: fa.squeeze(A, 1), IndexError, ["squeeze", "axis 1"]),
    ("take", lambda: fa.take(A, I, axis=1), IndexError, ["take", "axis 1"]),
    ("take index", lambda: fa.take(A, I), IndexError, ["take", "3", "float32[3]"]),
    ("take_along_axis", lambda: fa.take_along_axis(A, I), IndexError, ["take_along_axis", "3"]),
    ("unstack", lambda: fa.unstack(A, axis=1), IndexError, ["unstack", "axis 1"]),
    ("fft", lambda: fa.fft.fft(A, axis=1), IndexError, ["fft", "axis 1"]),
    ("vector_norm", lambda: fa.linalg.vector_norm(A, axis=1), IndexError, ["vector_norm", "axis 1"]),
    ("cumulative_sum", lambda: fa.cumulative_sum(A, axis=1), IndexError, ["cumulative_sum"]),
    ("a[3]", lambda: A[3], IndexError, ["3"]),
    ("a[0, 0]", lambda: A[0, 0], IndexError, ["indices", "2", "1"]),
    ("a[1.0]", lambda: A[1.0], IndexError, ["float 1.0"]),
    ("a['x']", lambda: A["x"], IndexError, ["str 'x'"]),
]

KINDS: list[Row] = [
    ("exp text", lambda: fa.exp("x"), TypeError, ["exp", "Tensor", "str 'x'"]),
    ("exp number", lambda: fa.exp(1.0), TypeError, ["exp", "float 1.0", "asarray()"]),
    ("exp list", lambda: fa.exp([1.0]), TypeError, ["exp", "list", "asarray()"]),
    ("add numbers", lambda: fa.add(1, 2), TypeError, ["add", "at least one", "1, 2"]),
    ("add text", lambda: fa.add(A, "x"), TypeError, ["add", "str 'x'"]),
    ("sum list", lambda: fa.sum([1]), TypeError, ["sum", "list", "asarray()"]),
    ("concat number", lambda: fa.concat([A, 3]), TypeError, ["concat", "array 1", "int 3"]),
    ("stack number", lambda: fa.stack([A, 3]), TypeError, ["stack", "array 1", "int 3"]),
    ("where number", lambda: fa.where(True, A, A), TypeError, ["where", "condition", "bool True"]),
    ("take list", lambda: fa.take(A, [0]), TypeError, ["take", "indices", "list", "asarray()"]),
    ("zeros_like number", lambda: fa.zeros_like(3), TypeError, ["zeros_like", "int 3"]),
    ("full_like list", lambda: fa.full_like([1], 2), TypeError, ["full_like", "list"]),
    ("full text", lambda: fa.full(3, "x"), TypeError, ["full", "str 'x'"]),
    ("full list", lambda: fa.full(3, [1, 2, 3]), TypeError, ["full", "list"]),
    ("zeros text", lambda: fa.zeros("a"), TypeError, ["zeros", "'a'"]),
    ("zeros float", lambda: fa.zeros((2.5,)), TypeError, ["zeros", "2.5"]),
    ("reshape float", lambda: fa.reshape(A, (3.0,)), TypeError, ["reshape", "3.0"]),
    ("reshape text", lambda: fa.reshape(A, "a"), TypeError, ["reshape", "'a'"]),
    ("linspace float", lambda: fa.linspace(0, 1, 2.5), TypeError, ["linspace", "2.5"]),
    ("repeat float", lambda: fa.repeat(A, 1.5), TypeError, ["repeat", "1.5"]),
    ("roll float", lambda: fa.roll(A, 1.5), TypeError, ["roll", "1.5"]),
    ("tril float", lambda: fa.tril(M, k=1.5), TypeError, ["tril", "1.5"]),
    ("eye float", lambda: fa.eye(2.0), TypeError, ["eye", "2.0"]),
    ("diff float", lambda: fa.diff(A, n=1.5), TypeError, ["diff", "1.5"]),
    ("matrix_power float", lambda: fa.linalg.matrix_power(fa.eye(2), 1.5), TypeError, ["matrix_power"]),
    ("fft n", lambda: fa.fft.fft(A, n=1.5), TypeError, ["fft", "1.5"]),
    ("fftn s number", lambda: fa.fft.fftn(M, s=4), TypeError, ["fftn", "s must be a sequence", "int 4"]),
    ("fftn axes number", lambda: fa.fft.fftn(M, axes=1), TypeError, ["fftn", "axes must be a sequence", "int 1"]),
    ("fftn s float", lambda: fa.fft.fftn(M, s=(2.5, 2)), TypeError, ["fftn", "a length in s", "2.5"]),
    ("fftfreq d", lambda: fa.fft.fftfreq(4, d="x"), TypeError, ["fftfreq", "d must be", "str 'x'"]),
    ("tensordot float", lambda: fa.tensordot(M, M, axes=1.5), TypeError, ["tensordot", "axes", "1.5"]),
    ("tensordot pair", lambda: fa.tensordot(M, M, axes=(1, 0)), TypeError, ["tensordot", "two sequences", "(1, 0)"]),
    (
        "vector_norm ord",
        lambda: fa.linalg.vector_norm(A, ord="fro"),
        TypeError,
        ["vector_norm", "'fro'", "matrix_norm"],
    ),
    ("rank rtol", lambda: fa.linalg.matrix_rank(M, rtol="x"), TypeError, ["matrix_rank", "rtol", "str 'x'"]),
    ("arange text", lambda: fa.arange("3"), TypeError, ["arange", "'3'"]),
    ("arange complex", lambda: fa.arange(3j), TypeError, ["arange", "3j"]),
    ("asarray text", lambda: fa.asarray("12"), TypeError, ["asarray", "str '12'"]),
    ("asarray None", lambda: fa.asarray(None), TypeError, ["asarray", "NoneType"]),
    ("asarray object", lambda: fa.asarray(object()), TypeError, ["asarray", "object"]),
    ("asarray list of text", lambda: fa.asarray([1, "a"]), TypeError, ["asarray", "list", "str 'a' at [1]"]),
    ("asarray set", lambda: fa.asarray({1, 2}), TypeError, ["asarray", "set"]),
    ("isin list", lambda: fa.isin(A, [1]), TypeError, ["isin", "list", "asarray()"]),
    ("device number", lambda: fa.zeros(2, device=5), TypeError, ["device", "int 5"]),
    ("device text", lambda: fa.zeros(2, device="gpu"), ValueError, ["'gpu'", "'cuda:N'"]),
]

TABLE = [*SHAPES, *DTYPES, *VALUES, *AXES, *KINDS]


@pytest.mark.parametrize(("name", "call", "error", "words"), TABLE, ids=[row[0] for row in TABLE])
def test_mistakes(name: str, call: Callable[[], Any], error: type[Exception], words: list[str]) -> None:
    operands = (A, M, I, B, C, SQUARE)
    before = [x.tolist() for x in operands]
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert [word for word in words if word not in message] == [], message
    assert len(message) < 600, "too long to read"
    assert [x.tolist() for x in operands] == before


def test_names_of_the_table_are_unique() -> None:
    assert len({(row[0], id(row[1])) for row in TABLE}) == len(TABLE)


def test_a_message_never_shows_a_large_operand() -> None:
    large = np.zeros(20_000)
    for call in (
        lambda: fa.exp(large.tolist()),
        lambda: fa.add(fa.ones(2), large.tolist()),
        lambda: fa.full(3, large.tolist()),
        lambda: fa.ones(3)[large.tolist()],
        lambda: fa.asarray(["x"] * 20_000),
        lambda: fa.asarray([[0.0] * 10] * 1000 + [[0.0]]),
        lambda: fa.zeros(tuple(range(20_000))),
        lambda: fa.sum(fa.ones(2), axis=tuple(range(20_000))),
        lambda: fa.Dtype("x" * 20_000),
        lambda: fa.Device("x" * 20_000),
    ):
        with pytest.raises((TypeError, ValueError, IndexError)) as caught:
            call()
        assert len(str(caught.value)) < 2000, str(caught.value)[:200]


def test_silence_instead_of_warnings() -> None:
    """NumPy would warn here; warnings are errors in these tests."""
    zero, big = fa.asarray([0.0]), fa.asarray([3e38])
    assert (1 / zero).tolist() == [fa.inf]
    assert (big * big).tolist() == [fa.inf]
    assert bool(fa.isnan(zero / zero)[0])
    assert bool(fa.isnan(fa.sqrt(-big))[0])
    assert fa.log(zero).tolist() == [-fa.inf]
    assert (fa.asarray([1]) // 0).shape == (1,)
    assert fa.exp(big).tolist() == [fa.inf]
    assert big.astype("f16").tolist() == [fa.inf]
    assert fa.asarray([fa.nan, 1e30]).astype("i8").shape == (2,)
    assert bool(fa.isnan(fa.mean(fa.ones(0))))
    assert bool(fa.isnan(fa.std(fa.ones(1), correction=1)))
    assert (fa.asarray([2**63 - 1]) + 1).tolist() == [-(2**63)]
    assert fa.linalg.matmul(big, big).item() == fa.inf
    assert fa.asarray([1e300], dtype="f16").tolist() == [fa.inf]
    assert fa.sum(fa.asarray([3e38, 3e38])).item() == fa.inf
    assert bool(fa.isnan(fa.asarray([complex(fa.inf, 0)]) * 0)[0])
