"""Products with weights as kernels for processors with AVX-512 make them, number by number."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ferrum_array as fa
from ferrum_ops import QuantTensor, explain, linear, quantize, set_threads, threads, use_fast_paths
from ferrum_ops.kernels.cpu.features import KNOWN, lacks
from tests.array.oracle import wide
from tests.ops.cpu_products import DTYPES, ROUNDED, SCHEMES, close, group_of, rounded, same, tensor, weights
from tests.ops.oracle import Array, make, noise

pytest.importorskip("numba")

ROOT = Path(__file__).resolve().parents[2]
CPU = fa.Device("cpu")
#: with and without blocks of four and two rows of few inputs, and of six and two of many; more than one block of many
ROWS = (0, 1, 2, 3, 5, 7, 15, 16, 17, 18, 23, 40)
wide_registers = pytest.mark.skipif(lacks(*KNOWN) is not None, reason=f"here: {lacks(*KNOWN)}")


@pytest.fixture(autouse=True)
def fast() -> Iterator[None]:
    before = threads()
    with use_fast_paths(True):
        yield
    set_threads(before)


def named(dtype: fa.Dtype, scheme: str | None = None) -> str:
    """The row that takes inputs of a dtype and such weights."""
    if scheme in ROUNDED:
        return "cpu.linear_a8"
    return "cpu.linear_bf16" if dtype is fa.bfloat16 else "cpu.linear"


def biased(draw: Any, seed: int, dtype: fa.Dtype, columns: int) -> tuple[fa.Tensor | None, Array | None]:
    kind = draw(st.sampled_from([None, dtype, fa.float32]))
    return (None, None) if kind is None else make(noise(seed, columns), kind, CPU)


def wanted(draw: Any, dtype: fa.Dtype) -> fa.Dtype:
    found: fa.Dtype = draw(st.sampled_from([dtype, *DTYPES]))
    return found


@wide_registers
@given(
    dtype=st.sampled_from(DTYPES),
    rows=st.sampled_from(ROWS),
    inner=st.integers(0, 80) | st.sampled_from([127, 128, 300, 1025]),
    outer=st.integers(0, 70) | st.sampled_from([128, 131, 257]),
    seed=st.integers(0, 2**32 - 1),
    data=st.data(),
)
def test_dense(dtype: fa.Dtype, rows: int, inner: int, outer: int, seed: int, data: st.DataObject) -> None:
    x, x64 = tensor(data.draw, seed, dtype, rows, inner)
    w, w64 = make(noise(seed + 1, outer, inner + 2), dtype, CPU)
    skip = data.draw(st.integers(0, 2))
    w, w64 = w[:, skip : skip + inner], w64[:, skip : skip + inner]
    bias, b64 = biased(data.draw, seed + 2, dtype, outer)
    out = wanted(data.draw, dtype)
    assert explain(linear, x, w, bias, dtype=out).runs == named(dtype)
    close(linear(x, w, bias, dtype=out), x64, w64, b64, out, 1e-6)


@wide_registers
@given(
    dtype=st.sampled_from(DTYPES),
    scheme=st.sampled_from(SCHEMES + ROUNDED),
    rows=st.sampled_from(ROWS),
    inner=st.integers(0, 70) | st.sampled_from([100, 128, 1000]),
    groups=st.integers(0, 9),
    outer=st.integers(0, 70) | st.sampled_from([128, 131, 257]),
    seed=st.integers(0, 2**32 - 1),
    data=st.data(),
)
def test_integers(
    dtype: fa.Dtype, scheme: str, rows: int, inner: int, groups: int, outer: int, seed: int, data: st.DataObject
) -> None:
    group = group_of(scheme)
    count = groups * group if group else inner * 2 if "int4" in scheme else inner
    q, w64 = weights(seed, scheme, outer, count)
    x, x64 = tensor(data.draw, seed + 1, dtype, rows, count)
    bias, b64 = biased(data.draw, seed + 2, dtype, outer)
    out = wanted(data.draw, dtype)
    if scheme in ROUNDED:
        x64 = rounded(x64, group)
    assert explain(linear, x, q, bias, dtype=out).runs == named(dtype, scheme)
    # what a group's zero takes off is up to 15 times what is left
    close(linear(x, q, bias, dtype=out), x64, w64, b64, out, 8e-6 if "asym" in scheme else 1.5e-6)


@wide_registers
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scheme", [None, "int8", "int8-g128", "int8-a8", "int4-g64", "int4-g128-asym-a8"])
def test_rows_longer_than_a_panel_and_more_than_a_block(dtype: fa.Dtype, scheme: str | None) -> None:
    for rows, outer, inner in ((3, 130, 9216), (17, 33, 9216), (1000, 35, 256)):
        x, x64 = make(noise(1, rows, inner), dtype, CPU)
        if scheme is None:
            w, w64 = make(noise(2, outer, inner), dtype, CPU)
            close(linear(x, w, dtype="f32"), x64, w64, None, fa.float32, 1e-6)
        else:
            q, w64 = weights(2, scheme, outer, inner)
            x64 = rounded(x64, group_of(scheme)) if scheme in ROUNDED else x64
            close(linear(x, q, dtype="f32"), x64, w64, None, fa.float32, 8e-6 if "asym" in scheme else 1.5e-6)


@wide_registers
@pytest.mark.parametrize("name", [None, *SCHEMES, *ROUNDED])
def test_integers_of_all_values_are_exact(name: str | None) -> None:
    """One input at a time gives a weight back: every byte that there is, in every place of 64 bytes."""
    if name is None:
        w, w64 = make(noise(3, 256, 256), fa.bfloat16, CPU)
        got = linear(fa.eye(256, dtype="bf16")[:9], w, dtype="f32")
        assert (wide(got) == w64.T[:9]).all()
        return
    q, _ = weights(4, name, 256, 256)
    parts = dict(q.parts)
    size = parts["values"].shape[-1]
    bytes_ = ((np.arange(256)[:, None] + np.arange(size)) % 256).astype(np.uint8)
    signed = parts["values"].dtype is fa.int8
    parts["values"] = fa.asarray(bytes_.view(np.int8) if signed else bytes_)
    parts["scales"] = fa.ones(parts["scales"].shape, dtype=parts["scales"].dtype)
    q = QuantTensor(q.scheme, q.shape, parts)
    values = bytes_.view(np.int8) if signed else np.stack([bytes_ & 15, bytes_ >> 4], -1).reshape(256, 256)
    want = values.astype(np.float64)
    if "zeros" in parts:
        want -= np.repeat(parts["zeros"].numpy(), 256 // parts["zeros"].shape[1], axis=1)
    elif not signed:
        want -= 8
    for dtype in DTYPES:
        for some in (range(4), range(100, 120), range(250, 256)):
            got = linear(127 * fa.eye(256, dtype=dtype)[some[0] : some[-1] + 1], q, dtype="f32")
            assert (wide(got) == 127 * want.T[some]).all()


@wide_registers
def test_the_number_of_threads_changes_no_bit() -> None:
    for dtype in DTYPES:
        x, _ = make(noise(5, 21, 512), dtype, CPU)
        dense, _ = make(noise(6, 300, 512), dtype, CPU)
        for w in (dense, weights(6, "int4-g64", 300, 512)[0], weights(6, "int8-a8", 300, 512)[0]):
            for given_rows in (x, x[:5]):
                set_threads(1)
                want = linear(given_rows, w).numpy().tobytes()
                for count in (2, 3):
                    set_threads(count)
                    for _ in range(5):
                        assert linear(given_rows, w).numpy().tobytes() == want


@wide_registers
def test_what_is_not_finite_stays_in_its_row() -> None:
    for dtype in DTYPES:
        dense, _ = make(noise(7, 40, 128), dtype, CPU)
        quantised = [weights(7, s, 40, 128)[0] for s in ("int8", "int4-g32", "int8-a8", "int4-g64-asym-a8")]
        listed: list[fa.Tensor | QuantTensor] = [dense, *quantised]
        for w in listed:
            for rows in (4, 20):
                values = noise(8, rows, 128)
                values[1, 5], values[2, 100] = np.nan, np.inf
                found = np.isfinite(wide(linear(make(values, dtype, CPU)[0], w)))
                assert not found[1].any()
                assert not found[2].any()
                assert np.delete(found, (1, 2), axis=0).all()


@wide_registers
@pytest.mark.parametrize("scheme", SCHEMES)
def test_infinite_inputs_meet_weights_as_they_are(scheme: str) -> None:
    """Kernels that multiply parts of a weight one by one would add infinities of both signs."""
    group = group_of(scheme)
    for inner in (3 * (group or 30), 1024):
        q, w64 = weights(14, scheme, 131, inner)
        for dtype in DTYPES:
            for rows in (1, 3, 7, 16):
                values = noise(15, rows, inner)
                bad = np.asarray([np.inf, -np.inf, np.nan])[: rows // 2 + 1]
                places = [0, inner // 3, inner - 1][: len(bad)]
                values[range(len(bad)), places] = bad
                with np.errstate(invalid="ignore"):
                    want = bad[:, None] * w64[:, places].T  # NaN where the weight is 0
                got = wide(linear(make(values, dtype, CPU)[0], q, dtype="f32"))
                np.testing.assert_array_equal(got[: len(bad)], want)
                assert np.isfinite(got[len(bad) :]).all()


@wide_registers
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("int8-g48", "multiples of 128"),
        ("int8-asym", "does not take 8 bits with zeros"),
        ("int4-g96", "groups are of 32, 64, 128"),
        ("int2", "does not cover quant:int2"),
    ],
)
def test_what_the_kernels_leave_to_the_reference(name: str, reason: str) -> None:
    q = quantize(fa.ones((4, 192 if name != "int8-g48" else 96)), name)
    told = explain(linear, fa.ones((2, q.shape[1])), q)
    assert told.runs == "reference"
    assert reason in dict(told.others)["cpu.linear"]


@wide_registers
def test_weights_with_gaps_and_float64_are_left_to_the_reference() -> None:
    x, w = fa.ones((2, 6)), fa.ones((6, 4)).mT
    told = explain(linear, x, w)
    assert (told.runs, dict(told.others)["cpu.linear"]) == ("reference", "the rows of w have gaps")
    told = explain(linear, x, fa.ones((4, 6)), dtype="f64")
    assert (told.runs, dict(told.others)["cpu.linear"]) == ("reference", "does not give float64")
    told = explain(linear, x.astype("f64"), w.astype("f64"))
    assert dict(told.others)["cpu.linear"] == "does not take float64"


PORTABLE = """
import numpy as np, sys
import ferrum_array as fa
from ferrum_ops import explain, linear, quantize
x = fa.asarray(np.load(sys.argv[1])["x"]).astype("bf16")
w = fa.asarray(np.load(sys.argv[1])["w"])
results = {}
for name in ("dense", "int8", "int4-g32", "int8-a8"):
    weights = w.astype("bf16") if name == "dense" else quantize(w, name)
    told = explain(linear, x, weights)
    assert told.runs == "reference", told
    row = "cpu.linear_a8" if name == "int8-a8" else "cpu.linear_bf16"
    assert "FERRUM_CPU=portable switches off avx512f" in dict(told.others)[row], told
    results[name] = linear(x, weights, dtype="f32").numpy()
np.savez(sys.argv[2], **results)
"""


@wide_registers
def test_processors_without_special_instructions_compute_the_same(tmp_path: Path) -> None:
    x, w = noise(9, 5, 128).astype(np.float32), noise(10, 33, 128).astype(np.float32)
    np.savez(tmp_path / "given.npz", x=x, w=w)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PORTABLE, str(tmp_path / "given.npz"), str(tmp_path / "found.npz")],
        capture_output=True, text=True, check=False, cwd=ROOT, env={**os.environ, "FERRUM_CPU": "portable"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    given_x = fa.asarray(x).astype("bf16")
    for name, found in np.load(tmp_path / "found.npz").items():
        full = fa.asarray(w)
        weights_ = full.astype("bf16") if name == "dense" else quantize(full, name)
        here = linear(given_x, weights_, dtype="f32").numpy()
        assert np.max(np.abs(here - found)) <= 2e-5 * np.max(np.abs(found)), name


def test_the_comparison_can_fail() -> None:
    x, x64 = make(noise(11, 3, 40), fa.bfloat16, CPU)
    w, w64 = make(noise(12, 5, 40), fa.bfloat16, CPU)
    got = linear(x, w, dtype="f32")
    close(got, x64, w64, None, fa.float32, 1e-6)
    for wrong in (got * 1.00002, got + fa.asarray([0, 0, 1e-3, 0, 0], dtype="f32")):
        with pytest.raises(AssertionError, match="times what is allowed"):
            close(wrong, x64, w64, None, fa.float32, 1e-6)
    with pytest.raises(AssertionError):
        same(got[:2], wide(got), np.zeros(()), fa.float32)
    q, numbers = weights(13, "int4-g32-asym", 4, 64)
    assert np.max(np.abs(numbers - wide(q.scheme.decode(q.parts, q.shape)))) < 1e-6


def test_weights_that_were_written_are_read_anew() -> None:
    """What is kept of a weight's place is good for that memory only, and goes when the weight goes."""
    x, w = fa.ones((1, 64)), fa.ones((3, 64))
    assert linear(x, w).tolist() == [[64.0] * 3]
    w[1] = 2.0
    assert linear(x, w).tolist() == [[64.0, 128.0, 64.0]]
    seen = w[...]  # shares the memory: the next write moves w elsewhere
    w[2] = 0.0
    assert linear(x, w).tolist() == [[64.0, 128.0, 0.0]]
    assert linear(x, seen).tolist() == [[64.0, 128.0, 64.0]]
    for value in range(50):  # many weights in the same places, one after another
        assert linear(x, fa.full((3, 64), float(value))).tolist() == [[64.0 * value] * 3]
        q = quantize(fa.full((3, 64), float(value)), "int8")
        assert fa.max(fa.abs(linear(x, q) - 64.0 * value)) < 1e-3 * max(value, 1)
