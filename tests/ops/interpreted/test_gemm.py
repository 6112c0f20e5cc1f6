"""The kernels of ``linear``: few rows with dense and with quantised weights, and weights that are widened."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ferrum_array as fa
from ferrum_array import Tensor
from ferrum_ops import QuantTensor, dequantize, linear, quantize, use_fast_paths
from ferrum_ops.kernels.cuda import gemm, launch
from ferrum_ops.quant.integer import IntScheme
from ferrum_ops.quant.mxfp4 import Mxfp4Scheme
from tests.array.oracle import wide
from tests.ops.interpreted.drawn import LIES, Lie, lying
from tests.ops.oracle import check, distance, noise

#: how a product may be cut, other than the table says
SHAPES = (None, gemm.Shape(8, 1, 1), gemm.Shape(16, 4, 2), gemm.Shape(32, 2, 1))
BIASES = (None, fa.float16, fa.float32)
SCHEMES = (
    *("int4-g32", "int4-g64-f16", "int4-g128", "int4-g32-asym", "int4-g128-asym-f16", "int4", "int4-asym"),
    *("int8-g32", "int8-g64", "int8-g96-asym", "int8-g128-f16", "int8", "int8-asym", "mxfp4"),
)


@contextmanager
def _poison() -> Iterator[None]:
    """Inside, the kernels write into memory full of NaN, or of sevens."""

    def empty(shape: tuple[int, ...], like: Tensor, dtype: fa.Dtype | None = None) -> Tensor:
        out = launch.empty(shape, like, dtype)
        out[...] = fa.nan if out.dtype.is_floating else 7
        return out

    with mock.patch.object(gemm, "empty", empty):
        yield


@settings(max_examples=35)
@given(
    seed=st.integers(0, 2**32 - 1),
    given_rows=st.sampled_from([0, 1, 2, 8, 9, 17, 40]),
    columns=st.integers(0, 40),
    size=st.sampled_from([0, 1, 7, 32, 100, 256, 300]),
    bias=st.sampled_from(BIASES),
    out=st.sampled_from([fa.float16, fa.float32]),
    lies=st.tuples(st.sampled_from(LIES), st.sampled_from(LIES)),
    shape=st.sampled_from(SHAPES),
)
def test_few_rows_with_dense_weights(
    seed: int,
    given_rows: int,
    columns: int,
    size: int,
    bias: fa.Dtype | None,
    out: fa.Dtype,
    lies: tuple[Lie, Lie],
    shape: gemm.Shape | None,
) -> None:
    x, x64 = lying(seed, (given_rows, size), fa.float16, lies[0])
    w, w64 = lying(seed + 1, (columns, size), fa.float16, "whole")
    b = None if bias is None else lying(seed + 2, (columns,), bias, lies[1])
    with _poison():
        got = gemm.few_dense(x, w, None if b is None else b[0], out, shape)
    check(got, x64 @ w64.T + (0.0 if b is None else b[1]), out, 1e-3 if out is fa.float16 else 2e-6)


def test_rows_of_weights_may_lie_apart_and_rows_of_inputs_in_two_axes() -> None:
    x, w = fa.asarray(noise(1, 2, 3, 40), dtype="f16"), fa.asarray(noise(2, 12, 40), dtype="f16")
    parts = w[::3, :24]
    with _poison():
        got = gemm.few_dense(x[..., 16:], parts, None, fa.float32)
    check(got, wide(x.numpy())[..., 16:] @ wide(w.numpy())[::3, :24].T, fa.float32, 2e-6)


@pytest.mark.parametrize("columns", [8, 16])
def test_a_program_writes_nothing_but_its_own_columns(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    first = gemm._DENSE

    def only_the_first(grid: tuple[int, ...], *arguments: Tensor | float | None, **constants: Any) -> None:
        assert grid == (-(-40 // columns),)
        first((1,), *arguments, **constants)

    monkeypatch.setattr(gemm, "_DENSE", only_the_first)
    x, w = fa.asarray(noise(1, 3, 64), dtype="f16"), fa.asarray(noise(2, 40, 64), dtype="f16")
    with _poison():
        got = gemm.few_dense(x, w, None, fa.float32, gemm.Shape(columns, 2, 1))
    assert fa.all(fa.isnan(got) == (fa.arange(40) >= columns))


def _quantised(seed: int, columns: int, size: int, name: str) -> QuantTensor:
    return quantize(fa.asarray(noise(seed, columns, size), dtype="f32"), name)


@settings(max_examples=35)
@given(
    seed=st.integers(0, 2**32 - 1),
    given_rows=st.sampled_from([0, 1, 3, 9, 17]),
    columns=st.integers(0, 40),
    units=st.integers(1, 7),
    name=st.sampled_from(SCHEMES),
    bias=st.sampled_from(BIASES),
    out=st.sampled_from([fa.float16, fa.float32]),
    lie=st.sampled_from(LIES),
    shape=st.sampled_from(SHAPES),
)
def test_few_rows_with_quantised_weights(
    seed: int,
    given_rows: int,
    columns: int,
    units: int,
    name: str,
    bias: fa.Dtype | None,
    out: fa.Dtype,
    lie: Lie,
    shape: gemm.Shape | None,
) -> None:
    size = units * (96 if "g96" in name else 128 if "g128" in name else 64 if "g64" in name else 32)
    x, x64 = lying(seed, (given_rows, size), fa.float16, lie)
    w = _quantised(seed + 1, columns, size, name)
    b = None if bias is None else lying(seed + 2, (columns,), bias, "whole")
    assert gemm.few_quantised_refuses(x, w, None if b is None else b[0], out) is None
    with _poison():
        got = gemm.few_quantised(x, w, None if b is None else b[0], out, shape)
    exact = x64 @ wide(dequantize(w, "f32").numpy()).T + (0.0 if b is None else b[1])
    check(got, exact, out, 1e-3 if out is fa.float16 else 3e-6)


@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize("name", ["int4-g32", "int4-g64-asym", "int8-g32", "int8-g64-asym", "mxfp4"])
def test_every_number_is_taken_with_its_own_input_exactly(name: str, size: int) -> None:
    """Inputs of one 1 each give the numbers themselves, whatever bytes the weights hold."""
    columns = 20
    generator = np.random.default_rng(5)
    example = _quantised(1, columns, size, name)
    parts = {}
    for part, tensor in example.parts.items():
        if tensor.dtype.is_floating:
            parts[part] = fa.asarray(2.0 ** generator.integers(-9, 3, tensor.shape), dtype=tensor.dtype)
        else:
            low, high = (120, 134) if name == "mxfp4" and part == "scales" else (0, 16 if part == "zeros" else 256)
            if part == "zeros" and "int8" in name:
                high = 256
            bytes_ = generator.integers(low, high, tensor.shape).astype(np.uint8)
            parts[part] = fa.asarray(bytes_.view(np.int8) if tensor.dtype is fa.int8 else bytes_)
    w = QuantTensor(example.scheme, (columns, size), parts)
    inputs = fa.eye(size, dtype="f16")
    got = fa.concat([gemm.few_quantised(inputs[i : i + 64], w, None, fa.float32) for i in range(0, size, 64)])
    assert np.array_equal(got.numpy(), dequantize(w, "f32").numpy().T)


def test_scales_of_mxfp4_at_their_ends() -> None:
    """The least power is subnormal, and 255 is NaN."""
    codes = fa.full((3, 16), 0x2A, dtype="u8")  # -1 and 1
    w = QuantTensor(Mxfp4Scheme(), (3, 32), {"values": codes, "scales": fa.asarray([[0], [254], [255]], dtype="u8")})
    x = fa.zeros((1, 32), dtype="f16")
    x[0, 1] = 1.0
    got = gemm.few_quantised(x, w, None, fa.float32)
    assert got[0, 0].item() == 2.0**-127
    assert got[0, 1].item() == 2.0**127
    assert fa.isnan(got[0, 2])


@settings(max_examples=15)
@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 7), st.sampled_from(SCHEMES))
def test_widened_weights_are_the_dequantised_ones(seed: int, columns: int, units: int, name: str) -> None:
    size = units * (96 if "g96" in name else 128 if "g128" in name else 64 if "g64" in name else 32)
    w = _quantised(seed, columns, size, name)
    for dtype in (fa.float32, fa.float16):
        with _poison():
            got = gemm.widened(w, fa.zeros((), dtype=dtype), 8)
        assert got.dtype is dtype
        assert np.array_equal(got.numpy(), dequantize(w, "f32").astype(dtype).numpy())


def test_many_rows_are_multiplied_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    columns = 150

    def product(x: Tensor, w: Tensor, bias: Tensor | None, y: Tensor, start: int) -> None:
        calls.append(w.shape)
        y[..., start : start + w.shape[0]] = linear(x, w, bias)

    monkeypatch.setitem(sys.modules, "ferrum_ops.kernels.cuda.cublas", SimpleNamespace(product=product))
    monkeypatch.setattr(gemm, "_WIDE", 128 * 64)
    x, w, b = fa.asarray(noise(1, 2, 3, 64), dtype="f32"), _quantised(2, columns, 64, "int4-g32"), fa.ones(columns)
    with _poison():
        got = gemm.widened_in_blocks(x, w, b, fa.float32)
    assert calls == [(128, 64), (22, 64)]
    with use_fast_paths(False):
        assert distance(wide(got.numpy()), wide(linear(x, w, b).numpy())) < 1e-6


@settings(max_examples=20)
@given(
    seed=st.integers(0, 2**32 - 1),
    given_rows=st.sampled_from([0, 1, 3, 17, 65]),
    columns=st.integers(0, 34),
    groups=st.integers(1, 3),
    name=st.sampled_from(["int8-a8", "int8-g32-a8", "int8-g96-a8", "int8-g128-a8-f16"]),
    dtype=st.sampled_from([fa.float16, fa.float32]),
    bias=st.sampled_from(BIASES),
    out=st.sampled_from([fa.float16, fa.float32]),
    lie=st.sampled_from(LIES),
    tile=st.sampled_from([None, gemm.Tile(32, 32, 64, 2, 4, 2)]),
)
def test_inputs_are_rounded_as_the_scheme_says(
    seed: int,
    given_rows: int,
    columns: int,
    groups: int,
    name: str,
    dtype: fa.Dtype,
    bias: fa.Dtype | None,
    out: fa.Dtype,
    lie: Lie,
    tile: gemm.Tile | None,
) -> None:
    size = groups * (96 if "g96" in name else 128)
    x, _ = lying(seed, (given_rows, size), dtype, lie)
    w = _quantised(seed + 1, columns, size, name)
    b = None if bias is None else lying(seed + 2, (columns,), bias, "whole")
    assert gemm.rounded_refuses(x, w, None if b is None else b[0], out) is None
    with _poison():
        got = gemm.rounded(x, w, None if b is None else b[0], out, tile)
    inputs = wide(w.scheme.inputs(x.astype("f32")).numpy())
    exact = inputs @ wide(dequantize(w, "f32").numpy()).T + (0.0 if b is None else b[1])
    check(got, exact, out, 1e-3 if out is fa.float16 else 3e-6)


@pytest.mark.parametrize("bad", [fa.nan, fa.inf])
@pytest.mark.parametrize("name", ["int8-a8", "int8-g32-a8"])
def test_a_group_of_inputs_that_is_not_finite_makes_its_row_nan(bad: float, name: str) -> None:
    x = fa.ones((20, 96), dtype="f32")
    x[3, 40] = bad
    x[4] = 0.0
    got = gemm.rounded(x, _quantised(1, 5, 96, name), None, fa.float32, gemm.Tile(16, 32, 32, 2, 4, 2))
    assert fa.all(fa.isnan(got[3]))
    assert fa.all(got[4] == 0.0)
    assert fa.all(fa.isfinite(got[5:]))


def test_what_is_left_to_others_is_named() -> None:
    x, dense = fa.zeros((1, 64), dtype="f16"), fa.zeros((4, 64), dtype="f16")
    w = _quantised(1, 4, 64, "int4-g32")
    many = fa.zeros((gemm.FEW + 1, 64), dtype="f16")
    half = fa.float16
    assert gemm.few_dense_refuses(x, dense, None, half) is None
    assert gemm.few_dense_refuses(many, dense, None, half) == f"takes up to {gemm.FEW} rows"
    assert gemm.few_dense_refuses(x, w, None, half) == "takes dense weights"
    assert gemm.few_dense_refuses(x, dense, None, fa.float64) == "does not give float64"
    assert gemm.few_dense_refuses(x, fa.zeros((64, 4), dtype=half).T, None, half) == "the rows of w have gaps"
    refuses = gemm.few_quantised_refuses
    assert refuses(x, w, None, half) is None
    assert refuses(many, w, None, half) == f"takes up to {gemm.FEW} rows"
    assert refuses(x, dense, None, half) == "takes quantised weights"
    assert refuses(x, w, None, fa.float64) == "does not give float64"
    for name, reason in (
        ("int6-g32", "reads integers of 4 and 8 bits, not int6-g32"),
        ("int8-a8", "does not round inputs"),
        ("int4-g16", "groups are of multiples of 32 numbers, not 16"),
        ("mlx4-g64", "reads integers with scales and mxfp4, not mlx4-g64"),
    ):
        found = refuses(x, _quantised(1, 4, 64, name), None, half)
        assert str(found).startswith(reason)
    assert isinstance(w.scheme, IntScheme)
    apart = QuantTensor(w.scheme, (4, 64), {name: fa.repeat(x, 2, axis=1)[:, ::2] for name, x in w.parts.items()})
    assert refuses(x, apart, None, half) == "the rows of w have gaps"
    shifted = fa.zeros(4 * 33 + 2, dtype="u8")[2:].reshape(4, 33)[:, :32]
    moved = QuantTensor(w.scheme, (4, 64), {"values": shifted, "scales": w.parts["scales"]})
    assert refuses(x, moved, None, half) == "the rows of w are not at multiples of 4 bytes"
    assert gemm.widened_refuses(many, w, None, half) is None
    for other in (w, _quantised(1, 4, 64, "int4-a8")):
        assert gemm.rounded_refuses(x, other, None, half) == "takes weights of 8 bits that ask for inputs of 8 bits"
    assert gemm.rounded_refuses(x, _quantised(1, 4, 64, "int8-asym-a8"), None, half) == "does not take zeros"
    assert "rounds weights to float16" in str(gemm.widened_refuses(many, w, None, fa.float32))
    assert gemm.widened_refuses(many, w[:0], None, half) == "takes at least one row, and weights"


@pytest.mark.parametrize(
    ("form", "unit", "zeros"), [("int4", 128, None), ("int4", 32, "u8"), ("int8", 64, None), ("mxfp4", 32, None)]
)
def test_weights_go_from_memory_to_tensor_cores_without_detours(form: str, unit: int, zeros: str | None) -> None:
    """Compiled for a Hopper GPU: in the loop nothing waits for other warps or moves among threads."""
    program = f"""
        import re
        import ferrum_array as fa
        from ferrum_ops.kernels.cuda import gemm, launch
        half, much = fa.bfloat16, ("i32",)
        zeros = None if {zeros!r} is None else fa.Dtype({zeros!r})
        made = gemm._QUANTISED.compiled(
            90, 8, 1,
            [half, None, fa.uint8, fa.uint8 if {form!r} == "mxfp4" else half, zeros, None, half, "i32", much, "i32"]
            + [much] * 4 + ["i32"],
            dict(FORM={form!r}, PER=1, BN=16, TILES=1, HIGH=1, WARPS=8, CHUNKS=2,
                 WORDS={unit} // (16 if {form!r} == "int8" else 32), EVEN=True),
        )
        ptx = made.asm["ptx"]
        loop = ptx[ptx.index("$L__BB0_2:"):ptx.index("// %._crit_edge")]
        print(*(word in loop for word in ("mma.sync", "shfl", "bar.sync", "st.shared")), made.metadata.shared < 1 << 15)
    """
    environment = {"PATH": "", "TRITON_INTERPRET": "0"}
    command = [sys.executable, "-c", textwrap.dedent(program)]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["True", "False", "False", "False", "True"]


def test_sums_that_32_bits_do_not_hold_are_refused() -> None:
    x = fa.ones((1, 1 << 18), dtype="f16", device="cpu")
    for size, reason in ((1 << 17, None), ((1 << 17) + 32, "adds up to 131072 products in 32 bits, not 131104")):
        w = quantize(fa.ones((1, size), dtype="f32", device="cpu"), "int8-a8")
        assert gemm.rounded_refuses(x[:, :size], w, None, fa.float32) == reason
