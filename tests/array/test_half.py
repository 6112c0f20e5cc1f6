"""16-bit floats stay 16-bit floats through every function, and lose one rounding, no more.

Every public function of the namespace stands in one of the tables here; a new one must be put there.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ferrum_array as fa
from ferrum_array.testing import tensors
from tests.array.oracle import HALVES, NP, check, on, to_numpy, wide

Call = Callable[[fa.Tensor], Any]

UNARY = """abs acos acosh asin asinh atan atanh ceil conj cos cosh exp expm1 floor log log10 log1p log2 negative
positive real reciprocal round sign sin sinh sqrt square tan tanh trunc"""
BINARY = """add atan2 copysign divide floor_divide hypot logaddexp maximum minimum multiply nextafter pow remainder
subtract"""
REDUCTIONS = "max mean min prod std sum var"


def of_eighths(function: Callable[..., Any]) -> Call:
    return lambda x: function(x / 8)


def of_two(function: Callable[..., Any]) -> Call:
    return lambda x: function(x, x[0])


def over_rows(function: Callable[..., Any]) -> Call:
    return lambda x: function(x, axis=0)


#: functions whose results have the dtype of their operand; the operand is a symmetric 3x3 matrix
SAME: dict[str, Call] = {
    **{name: of_eighths(getattr(fa, name)) for name in UNARY.split()},
    "acosh": lambda x: fa.acosh(x + 1),
    **{name: of_two(getattr(fa, name)) for name in BINARY.split()},
    **{name: over_rows(getattr(fa, name)) for name in REDUCTIONS.split()},
    "imag": lambda x: x.imag,
    "clip": lambda x: fa.clip(x, 0.3, x[0]),
    "where": lambda x: fa.where(x > 1, x, 0.5),
    "astype": lambda x: fa.astype(x, x.dtype),
    "asarray": lambda x: fa.asarray([x[0], x[1]]),
    "from_dlpack": lambda x: fa.from_dlpack(x),
    "empty_like": lambda x: fa.zeros_like(fa.empty_like(x)),
    "full_like": lambda x: fa.full_like(x, 0.1),
    "ones_like": fa.ones_like,
    "zeros_like": fa.zeros_like,
    "empty": lambda x: fa.zeros_like(fa.empty(2, dtype=x.dtype, device=x.device)),
    "full": lambda x: fa.full(2, 0.1, dtype=x.dtype, device=x.device),
    "ones": lambda x: fa.ones(2, dtype=x.dtype, device=x.device),
    "zeros": lambda x: fa.zeros(2, dtype=x.dtype, device=x.device),
    "eye": lambda x: fa.eye(2, dtype=x.dtype, device=x.device),
    "arange": lambda x: fa.arange(0, 1, 0.3, dtype=x.dtype, device=x.device),
    "linspace": lambda x: fa.linspace(0, 1, 7, dtype=x.dtype, device=x.device),
    "tril": fa.tril,
    "triu": fa.triu,
    "meshgrid": lambda x: fa.meshgrid(x[0], x[1])[0],
    "broadcast_arrays": lambda x: fa.broadcast_arrays(x, x[0])[1],
    "broadcast_to": lambda x: fa.broadcast_to(x, (2, 3, 3)),
    "concat": lambda x: fa.concat([x, x]),
    "expand_dims": lambda x: fa.expand_dims(x, 0),
    "flip": fa.flip,
    "moveaxis": lambda x: fa.moveaxis(x, 0, 1),
    "permute_dims": lambda x: fa.permute_dims(x, (1, 0)),
    "repeat": lambda x: fa.repeat(x, 2),
    "reshape": lambda x: fa.reshape(x, (9,)),
    "roll": lambda x: fa.roll(x, 1),
    "squeeze": lambda x: fa.squeeze(x[None], 0),
    "stack": lambda x: fa.stack([x, x]),
    "tile": lambda x: fa.tile(x, (2, 1)),
    "unstack": lambda x: fa.unstack(x)[1],
    "take": lambda x: fa.take(x, fa.asarray([2, 0], device=x.device), axis=0),
    "take_along_axis": lambda x: fa.take_along_axis(x, fa.argsort(x)),
    "sort": lambda x: fa.sort(x, descending=True),
    "unique_all": lambda x: fa.unique_all(x).values,
    "unique_counts": lambda x: fa.unique_counts(x).values,
    "unique_inverse": lambda x: fa.unique_inverse(x).values,
    "unique_values": fa.unique_values,
    "cumulative_sum": lambda x: fa.cumulative_sum(x, axis=0),
    "cumulative_prod": lambda x: fa.cumulative_prod(x / 4, axis=0),
    "diff": fa.diff,
    "matmul": lambda x: fa.matmul(x, x),
    "matrix_transpose": fa.matrix_transpose,
    "tensordot": lambda x: fa.tensordot(x, x, axes=1),
    "vecdot": lambda x: fa.vecdot(x, x),
    "einsum": lambda x: fa.einsum("ij,jk,kl->il", x, x, x),
    "atleast_nd": lambda x: fa.atleast_nd(x, ndim=4),
    "create_diagonal": lambda x: fa.create_diagonal(x[0]),
    "kron": lambda x: fa.kron(x, x),
    "nan_to_num": fa.nan_to_num,
    "pad": lambda x: fa.pad(x, 1),
    "linalg.cholesky": fa.linalg.cholesky,
    "linalg.cross": lambda x: fa.linalg.cross(x, x[0]),
    "linalg.det": fa.linalg.det,
    "linalg.diagonal": fa.linalg.diagonal,
    "linalg.eigh": lambda x: fa.linalg.eigh(x).eigenvalues,
    "linalg.eigvalsh": fa.linalg.eigvalsh,
    "linalg.inv": fa.linalg.inv,
    "linalg.matrix_norm": fa.linalg.matrix_norm,
    "linalg.matrix_power": lambda x: fa.linalg.matrix_power(x, 2),
    "linalg.outer": lambda x: fa.linalg.outer(x[0], x[1]),
    "linalg.pinv": fa.linalg.pinv,
    "linalg.qr": lambda x: fa.linalg.qr(x).R,
    "linalg.slogdet": lambda x: fa.linalg.slogdet(x).logabsdet,
    "linalg.solve": lambda x: fa.linalg.solve(x, x[0]),
    "linalg.svd": lambda x: fa.linalg.svd(x).S,
    "linalg.svdvals": fa.linalg.svdvals,
    "linalg.trace": fa.linalg.trace,
    "linalg.vector_norm": fa.linalg.vector_norm,
    "fft.fftshift": fa.fft.fftshift,
    "fft.ifftshift": fa.fft.ifftshift,
    "operator @": lambda x: x @ x[0],
    "operator *=": lambda x: x.copy().__imul__(2.5),
    "operator **": lambda x: x**2,
    "scalar -": lambda x: 1 - x,
    "scalar /": lambda x: 1.5 / x,
    "abs()": abs,
    "index": lambda x: x[x > 1],
    "method mean": lambda x: x.mean(),
    "T": lambda x: x.T,
}

#: functions whose results have another dtype, and which
OTHER: dict[str, tuple[Call, fa.Dtype]] = {
    **{
        name: (of_two(getattr(fa, name)), fa.bool)
        for name in ("equal", "greater", "greater_equal", "less", "less_equal", "not_equal", "isclose", "isin")
    },
    **{name: (getattr(fa, name), fa.bool) for name in ("isfinite", "isinf", "isnan", "signbit", "all", "any")},
    **{name: (getattr(fa, name), fa.int64) for name in ("argmax", "argmin", "argsort", "count_nonzero", "nunique")},
    "nonzero": (lambda x: fa.nonzero(x)[0], fa.int64),
    "searchsorted": (lambda x: fa.searchsorted(fa.sort(x[0]), x[1]), fa.int64),
    "linalg.matrix_rank": (fa.linalg.matrix_rank, fa.int64),
    # there are no complex numbers of 16-bit floats, and no 16-bit transforms
    "linalg.eig": (lambda x: fa.linalg.eig(x).eigenvalues, fa.complex64),
    "linalg.eigvals": (fa.linalg.eigvals, fa.complex64),
    **{
        f"fft.{name}": (getattr(fa.fft, name), fa.complex64)
        for name in ("fft", "fftn", "ifft", "ifftn", "rfft", "rfftn", "ihfft")
    },
    **{f"fft.{name}": (getattr(fa.fft, name), fa.float32) for name in ("hfft", "irfft", "irfftn")},
}

#: functions that take no floats, give no tensor, or are tested as such elsewhere
NO_FLOATS = """allclose broadcast_shapes can_cast capture default_device devices finfo get_default_device
get_printoptions iinfo isdtype printoptions result_type set_default_device set_printoptions synchronize one_hot
__array_namespace_info__ bitcast
bitwise_and bitwise_invert bitwise_left_shift bitwise_or bitwise_right_shift bitwise_xor
logical_and logical_not logical_or logical_xor fft.fftfreq fft.rfftfreq
linalg.matmul linalg.matrix_transpose linalg.tensordot linalg.vecdot"""

#: results that one rounding of the exact one does not describe, and by how many units they may be off
LOOSE = {"nextafter": None, "linalg.inv": 4, "linalg.solve": 4, "linalg.pinv": 4, "linalg.qr": 4, "std": 2}


def matrix(dtype: fa.Dtype, device: fa.Device) -> fa.Tensor:
    rows = [[2.0, 0.5, 0.25], [0.5, 3.0, 0.75], [0.25, 0.75, 5.0]]
    return fa.asarray(rows, dtype=dtype, device=device)


def test_every_function_stands_in_a_table() -> None:
    values = ("CaptureError", "Captured", "Device", "Dtype", "Reading", "Tensor")
    public = [name for name in fa.__all__ if callable(getattr(fa, name)) and name not in values]
    public = [name for name in public if not isinstance(getattr(fa, name), fa.Dtype)]
    public += [f"{m}.{name}" for m in ("linalg", "fft") for name in getattr(fa, m).__all__
               if inspect.isfunction(getattr(getattr(fa, m), name))]  # fmt: skip
    tables = {*SAME, *OTHER, *NO_FLOATS.split()}
    assert sorted(set(public) - tables) == []
    beside = {name for name in SAME if " " in name} | {"abs()", "index", "T"}
    assert sorted(tables - set(public) - beside) == []


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", SAME)
def test_halves_stay_halves_and_are_rounded_once(name: str, dtype: fa.Dtype, device: fa.Device) -> None:
    if not device.supports(dtype):
        return
    x = matrix(dtype, device)
    found = SAME[name](x)
    assert found.dtype is dtype
    assert found.device is device
    if name == "nextafter":  # depends on the dtype by its meaning
        return
    exact = SAME[name](matrix(fa.float64, fa.Device("cpu")))
    check(found, wide(exact), dtype, ulps=LOOSE.get(name) or 1, device=device)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", OTHER)
def test_exceptions_are_as_stated(name: str, dtype: fa.Dtype, device: fa.Device) -> None:
    call, result = OTHER[name]
    if not device.supports(dtype) or not device.supports(result):
        return
    found = call(matrix(dtype, device))
    assert found.dtype is result
    exact = wide(call(matrix(fa.float64, fa.Device("cpu"))))
    if result is fa.complex64:
        exact, order = np.sort_complex(exact.reshape(-1)), np.sort_complex(wide(found).reshape(-1))
        assert np.allclose(order, exact, rtol=1e-4, atol=1e-5)
    else:
        assert np.allclose(wide(found), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", [n for n in SAME if n in UNARY.split() and n != "sign"])
def test_one_operand_is_the_rounded_exact_result(name: str, dtype: fa.Dtype, device: fa.Device) -> None:
    """For every element drawn, NaN and infinities too: float64's result rounded, or its neighbour."""
    if not device.supports(dtype):
        return

    @given(tensors(dtype, (5,), device=device))
    def property_(x: fa.Tensor) -> None:
        if device.kind == "cuda" and dtype is fa.bfloat16:  # CuPy's arithmetic takes those below the normal for zero
            x = fa.where(fa.abs(x) < fa.finfo(dtype).smallest_normal, fa.zeros_like(x), x)
        numpy_name = {"acos": "arccos", "asin": "arcsin", "atan": "arctan", "acosh": "arccosh", "asinh": "arcsinh",
                      "atanh": "arctanh", "pow": "power"}.get(name, name)  # fmt: skip
        with np.errstate(all="ignore"):
            wanted = getattr(np, numpy_name)(wide(x))
            rounded = wanted.astype(NP[dtype]).astype(np.float64)
        found = wide(getattr(fa, name)(x))
        limits = fa.finfo(dtype)
        least = limits.smallest_normal * (1 if device.kind == "cuda" else limits.eps)
        step = np.maximum(np.abs(rounded) * limits.eps, least)
        step = np.where(np.abs(rounded) >= limits.max, np.inf, step)  # the neighbour of inf is max
        good = (found == rounded) | (np.isnan(found) & np.isnan(rounded))
        good |= np.abs(np.nan_to_num(found) - np.nan_to_num(rounded)) <= step
        assert good.all(), (x, found, rounded)
        assert (np.isnan(found) == np.isnan(rounded)).all()

    property_()


@pytest.mark.parametrize("dtype", HALVES)
def test_products_accumulate_in_float32(dtype: fa.Dtype, device: fa.Device) -> None:
    """4097 and 257 ones cannot be counted in the 16-bit types; their products can be summed in float32."""
    if not device.supports(dtype):
        return
    count = 20_000
    x = fa.full((1, count), 0.5, dtype=dtype, device=device)
    wanted = count / 4
    check(x @ x.mT, [[wanted]], dtype)
    check(x[0] @ x[0], wanted, dtype)
    check(fa.vecdot(x[0], x[0]), wanted, dtype)
    check(fa.tensordot(x, x, axes=2), wanted, dtype)
    check(fa.einsum("ij,kj->ik", x, x), [[wanted]], dtype)
    check(fa.einsum("ij->i", x), [count / 2], dtype)
    check(fa.sum(x), count / 2, dtype)
    check(fa.mean(x), 0.5, dtype)
    check(fa.linalg.vector_norm(x), wanted**0.5, dtype, ulps=1)


@given(st.data())
def test_products_of_random_matrices(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(HALVES))
    seed = data.draw(st.integers(0, 2**32 - 1))
    draw = np.random.default_rng(seed)
    m, k, n = (int(v) for v in draw.integers(1, 40, 3))
    x = fa.asarray(draw.normal(size=(m, k)), dtype=dtype)
    y = fa.asarray(draw.normal(size=(k, n)), dtype=dtype)
    exact = wide(x) @ wide(y)
    size = np.abs(wide(x)) @ np.abs(wide(y))
    found = wide(x @ y)
    # float32 sums, then one rounding to 16 bits
    bound = k * 2.0**-23 * size + 0.5001 * fa.finfo(dtype).eps * np.abs(exact) + 1e-7
    assert (np.abs(found - exact) <= bound).all()


@pytest.mark.parametrize("dtype", HALVES)
def test_scalars_and_lists_round_once(dtype: fa.Dtype) -> None:
    @given(st.floats(width=64))
    def property_(value: float) -> None:
        if dtype is fa.float16:
            with np.errstate(all="ignore"):
                wanted = float(np.float64(value).astype(np.float16))
            found = fa.asarray(value, dtype=dtype).item()
            assert repr(found) == repr(wanted)
        found = fa.asarray([value], dtype=dtype)
        check(found, fa.full(1, value, dtype=dtype).numpy(), dtype)

    property_()


def test_mixed_halves_meet_in_float32(device: fa.Device) -> None:
    if not all(device.supports(d) for d in HALVES):
        return
    x, y = (fa.ones(2, dtype=d, device=device) for d in HALVES)
    for found in (x + y, x @ y, fa.where(x > 0, x, y), fa.concat([x, y]), fa.atan2(x, y)):
        assert found.dtype is fa.float32
    with pytest.raises(TypeError, match="keeps dtype"):
        x += y
    x[:] = y  # a write rounds
    assert x.dtype is fa.float16


def test_conversion_between_all_floats(device: fa.Device) -> None:
    floats = on(device, (*HALVES, fa.float32, fa.float64))

    @given(st.sampled_from(floats), st.sampled_from(floats), st.data())
    def property_(start: fa.Dtype, end: fa.Dtype, data: st.DataObject) -> None:
        x = data.draw(tensors(start, (3,), device=device))
        check(x.astype(end), to_numpy(x), end, device=device)

    property_()


@pytest.mark.parametrize("dtype", HALVES)
def test_matmul_of_halves_is_no_loop(dtype: fa.Dtype) -> None:
    """A 16-bit product is a float32 one and two conversions; NumPy's own float16 takes hundreds of times as long."""
    pairs = [fa.full((512, 512), 0.5, dtype=d) for d in (dtype, fa.float32)]
    times: list[list[float]] = [[], []]
    for _ in range(10):  # by turns, so that a busy machine slows both
        for x, found in zip(pairs, times, strict=True):
            start = time.perf_counter()
            x @ x
            found.append(time.perf_counter() - start)
    assert min(times[0]) < 20 * min(times[1])
