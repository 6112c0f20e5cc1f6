"""CUDA storage computes what NumPy storage computes: every row of its fix table, and drawn tensors."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ferrum_array as fa
from ferrum_array.backends.cupy_fixes import FIXES
from ferrum_array.spec import accepts
from ferrum_array.testing import broadcastable_pairs, indices, tensors

BACKENDS = Path(fa.__file__).parent / "backends"
CUDA = "cuda:0"
INF, NAN = math.inf, math.nan
FLOATS = (fa.float16, fa.bfloat16, fa.float32, fa.float64)
COMPLEX = (fa.complex64, fa.complex128)

Case = Callable[[Any], fa.Tensor | Iterable[fa.Tensor]]


def same(case: Case, *, exact: bool = True, rtol: float = 1e-5) -> None:
    """*case* gives the same on both devices: dtype, shape and values, the signs of zeros included if *exact*."""
    expected, actual = case(fa.Device("cpu")), case(fa.Device(CUDA))
    pairs = [(expected, actual)] if isinstance(expected, fa.Tensor) else list(zip(expected, actual, strict=True))
    for one, other in pairs:
        assert other.device.name == CUDA
        assert other.dtype is one.dtype
        assert other.shape == one.shape
        a, b = one.numpy(), other.numpy()
        if exact and a.dtype.kind not in "biu":
            a, b = (np.ascontiguousarray(x).reshape(-1).view(f"u{min(x.itemsize, 8)}") for x in map(_one_nan, (a, b)))
        if exact:
            np.testing.assert_array_equal(b, a)
        else:
            wide = np.complex128 if a.dtype.kind == "c" else np.float64
            np.testing.assert_allclose(b.astype(wide), a.astype(wide), rtol=rtol, atol=rtol)


def _one_nan(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """*x* with the same bits in every NaN: their payloads may differ."""
    parts = np.array(x.reshape(-1), order="C")
    parts = parts.view(f"f{x.itemsize // 2}") if x.dtype.kind == "c" else parts
    parts[parts != parts] = np.asarray(NAN, dtype=parts.dtype)
    return parts


def of(values: Any, dtype: Any = "f32") -> Callable[[Any], fa.Tensor]:
    return lambda device: fa.asarray(values, dtype=dtype, device=device)


SPECIAL = of([0.0, -0.0, 1.0, -1.0, 0.5, 2.5, -2.5, 7.0, -7.5, 1e4, INF, -INF, NAN])
WHOLE = of([0, 1, 2, 3, 7, -1, -2, -7, 100, 127, -128], "i8")
Z = of([complex(a, b) for a in (0.0, -0.0, 1.0, -2.0, INF, -INF, NAN) for b in (0.0, -0.0, 0.5, -3.0, INF, NAN)], "c64")
PLAIN_Z = of([complex(a, b) for a in (0.5, 1.0, -2.0) for b in (0.25, -3.0, 1.0)], "c64")
GRID = of([[3.0, 1.0, 2.0], [1.0, 5.0, -4.0]])
MATRIX = of([[4.0, 1.0, 0.5], [1.0, 5.0, 2.0], [0.5, 2.0, 6.0]])
KEYED = of([[2, 0], [1, 1]], "i64")


def _pairwise(f: Callable[[fa.Tensor, fa.Tensor], fa.Tensor], x: Callable[[Any], fa.Tensor]) -> Case:
    return lambda d: f(x(d)[:, None], x(d)[None, :])


def _written(d: Any) -> fa.Tensor:
    x = GRID(d).copy()
    x[x > 2] = 0.0
    x[of([0, -1], "i64")(d), of([1, 1], "i64")(d)] = of([8.0, 9.0])(d)
    return x


def _stack(d: Any, dtype: str) -> fa.Tensor:
    return fa.reshape(fa.arange(48, device=d), (2, 6, 4)).astype(dtype)


def _rounded_complex(d: Any) -> fa.Tensor:
    return fa.round(of([0.5 + 1.5j, -0.5 - 2.5j], "c64")(d))


#: row of the fix table -> what shows that the row is right, exactly
EXACT: dict[str, Case] = {
    "full": lambda d: [fa.full(s, -0.0, dtype=t, device=d) for s in ((), (3,)) for t in (*FLOATS, *COMPLEX)],
    "eye": lambda d: [fa.eye(2, 3, k=1, dtype=t, device=d) for t in (fa.bfloat16, fa.float32, fa.bool)],
    "linspace": lambda d: (fa.linspace(0, 1 + 2j, 7, dtype="c128", device=d), fa.linspace(-1, 2, 7, device=d)),
    "floor_divide": _pairwise(fa.floor_divide, SPECIAL),
    "remainder": _pairwise(fa.remainder, SPECIAL),
    "bitwise_left_shift": lambda d: fa.bitwise_left_shift(WHOLE(d)[:, None], of([0, 1, 7, 8, 40], "i8")(d)),
    "bitwise_right_shift": lambda d: fa.bitwise_right_shift(WHOLE(d)[:, None], of([0, 1, 7, 8, 40], "i8")(d)),
    "nextafter": lambda d: [
        fa.nextafter(x[:, None], x) for t in FLOATS for x in (of([0.0, -0.0, 1.0, -1.0, 6e4, INF, -INF, NAN], t)(d),)
    ],
    "round": _rounded_complex,
    "conj": lambda d: (fa.conj(GRID(d)), fa.conj(PLAIN_Z(d))),
    "sum": lambda d: (fa.sum(GRID(d), axis=()), fa.sum(fa.ones((4096,), dtype="f16", device=d))),
    "total": lambda d: (fa.sum(of([1.0] * 4096, "bf16")(d)), fa.sum(GRID(d))),
    "prod": lambda d: (fa.prod(of([1e30, 1e30, 0.0])(d)), fa.prod(of([0.0, 1e30, 1e30])(d)), fa.prod(GRID(d), axis=0)),
    "max": lambda d: [fa.max(of(v)(d)) for v in ([-INF], [-INF, -INF], [1.0, NAN], [NAN, 1.0], [INF, 1.0])],
    "min": lambda d: [fa.min(of(v)(d)) for v in ([INF], [INF, INF], [1.0, NAN], [NAN, 1.0], [-INF, 1.0])],
    "argmax": lambda d: [fa.argmax(of(v)(d)) for v in ([-INF], [-INF, -INF], [1.0, NAN, 2.0], [1.0, 3.0, 3.0])],
    "argmin": lambda d: [fa.argmin(of(v)(d)) for v in ([INF], [INF, INF], [1.0, NAN, NAN], [3.0, 1.0, 1.0])],
    "all": lambda d: (fa.all(GRID(d), axis=()), fa.all(GRID(d), axis=0)),
    "any": lambda d: (fa.any(GRID(d), axis=()), fa.any(GRID(d), axis=1)),
    "count_nonzero": lambda d: (fa.count_nonzero(GRID(d), axis=()), fa.count_nonzero(GRID(d))),
    "var": lambda d: fa.var(of([1.0, 3.0, 5.0, 7.0])(d), correction=4),
    "sort": lambda d: fa.sort(fa.negative(SPECIAL(d))),
    "argsort": lambda d: [fa.argsort(fa.negative(SPECIAL(d)), descending=s) for s in (False, True)],
    "searchsorted": lambda d: fa.searchsorted(fa.sort(SPECIAL(d)), fa.negative(SPECIAL(d)), side="right"),
    "unique_all": lambda d: [x for t in ("f32", "f16") for x in fa.unique_all(SPECIAL(d).astype(t).reshape(-1))],
    "nonzero": lambda d: fa.nonzero(GRID(d) > 1),
    "where": lambda d: [fa.where(GRID(d) > 1, GRID(d).astype(t), GRID(d).astype(t) * 2) for t in FLOATS],
    "take": lambda d: (fa.take(GRID(d), KEYED(d), axis=1), fa.take(of([])(d), of([], "i64")(d))),
    "take_along_axis": lambda d: fa.take_along_axis(GRID(d), KEYED(d), axis=1),
    "repeat": lambda d: fa.repeat(GRID(d), of([2, 0, 1], "i64")(d), axis=1),
    "flip": lambda d: (fa.flip(GRID(d)), fa.flip(GRID(d), axis=1), fa.flip(fa.ones((), device=d))),
    "roll": lambda d: (fa.roll(GRID(d), (1, -5), axis=(0, 1)), fa.roll(GRID(d), 2)),
    "diagonal": lambda d: fa.linalg.diagonal(GRID(d), offset=1),
    "getitem": lambda d: (GRID(d)[KEYED(d)[:, 1]], GRID(d)[GRID(d) > 1], GRID(d)[True], GRID(d)[..., False]),
    "setitem": _written,
    "einsum": lambda d: fa.einsum("bij,kj->bik", *(fa.ones(n, dtype="bf16", device=d) for n in ((2, 3, 4), (5, 4)))),
    "matmul": lambda d: [x @ x.mT for t in ("f16", "bf16", "i8", "u8") for x in (_stack(d, t),)],
    "vecdot": lambda d: (fa.vecdot(WHOLE(d), WHOLE(d)), fa.vecdot(PLAIN_Z(d), PLAIN_Z(d)).real),
}

#: the same for functions whose last digits may differ
CLOSE: dict[str, Case] = {
    "pow": lambda d: (PLAIN_Z(d) ** 2, PLAIN_Z(d) ** -3, PLAIN_Z(d) ** 0.5, fa.zeros(2, dtype="c64", device=d) ** 2),
    **{
        name: (lambda d, name=name: getattr(fa, name)(PLAIN_Z(d)))
        for name in ("reciprocal", "sign", "exp", "expm1", "log", "log2", "log10", "log1p", "tan", "tanh", "acosh")
    },
    "divide": lambda d: PLAIN_Z(d)[:, None] / PLAIN_Z(d),
    "cholesky": lambda d: (fa.linalg.cholesky(MATRIX(d)), fa.linalg.cholesky(MATRIX(d), upper=True)),
    "inv": lambda d: (fa.linalg.inv(MATRIX(d)), fa.linalg.inv(fa.zeros((0, 3, 3), device=d))),
    "solve": lambda d: fa.linalg.solve(MATRIX(d), GRID(d).mT),
    "eigh": lambda d: fa.abs(fa.linalg.eigh(MATRIX(d)).eigenvectors),
    "eigvalsh": lambda d: fa.linalg.eigvalsh(MATRIX(d)),
    "eig": lambda d: fa.sort(fa.real(fa.linalg.eig(MATRIX(d)).eigenvalues)),
    "eigvals": lambda d: fa.sort(fa.real(fa.linalg.eigvals(MATRIX(d)))),
    "svd": lambda d: [fa.abs(x) for x in fa.linalg.svd(GRID(d), full_matrices=False)],
    "svdvals": lambda d: fa.linalg.svdvals(GRID(d)),
    "qr": lambda d: [fa.abs(x) for x in fa.linalg.qr(MATRIX(d))],
    "det": lambda d: (fa.linalg.det(MATRIX(d)), fa.linalg.det(fa.zeros((2, 0, 0), device=d))),
    "slogdet": lambda d: tuple(fa.linalg.slogdet(-MATRIX(d))),
    "fft": lambda d: (fa.fft.fft(GRID(d)), fa.fft.fft(fa.zeros((0, 4), device=d))),
    "ifft": lambda d: fa.fft.ifft(PLAIN_Z(d), n=7),
    "rfft": lambda d: fa.fft.rfft(GRID(d), n=4, norm="ortho"),
    "irfft": lambda d: (fa.fft.irfft(PLAIN_Z(d)), fa.fft.irfft(PLAIN_Z(d), n=5)),
    "hfft": lambda d: fa.fft.hfft(PLAIN_Z(d)),
    "ihfft": lambda d: fa.fft.ihfft(GRID(d)),
}


def made_by_us() -> set[str]:
    """The functions that the sources of CUDA storage define."""
    names: set[str] = set()
    for file in ("cupy_functions.py", "cupy_linalg.py"):
        for node in ast.walk(ast.parse((BACKENDS / file).read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith(("fn_", "make_")):
                names.add(node.name.partition("_")[2])
    for node in ast.walk(ast.parse((BACKENDS / "cupy_complex.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Dict):
            names.update(key.value for key in node.value.keys if isinstance(key, ast.Constant))
    return names


def test_every_function_of_ours_has_a_row_with_its_reason_and_a_case() -> None:
    assert set(FIXES) == made_by_us()
    assert set(FIXES) == set(EXACT) | set(CLOSE)
    assert all(len(reason) > 8 for reason in FIXES.values())


@pytest.mark.cuda
@pytest.mark.parametrize("name", EXACT)
def test_row_exactly(name: str) -> None:
    same(EXACT[name])


@pytest.mark.cuda
@pytest.mark.parametrize("name", CLOSE)
def test_row_closely(name: str) -> None:
    same(CLOSE[name], exact=False)


@pytest.mark.cuda
@pytest.mark.parametrize(
    ("function", "value", "expected"),
    [
        (fa.log, complex(INF, NAN), complex(INF, NAN)),
        (fa.log1p, complex(-3.0, -0.0), complex(math.log(2), -math.pi)),
        (fa.tanh, complex(INF, 2.0), 1 + 0j),
        (fa.sign, complex(-INF, 0.0), -1 + 0j),
        (fa.reciprocal, complex(INF, 0.0), 0j),
        (fa.acosh, complex(0.0, NAN), complex(NAN, math.pi / 2)),
    ],
)
def test_complex_special_cases(function: Any, value: complex, expected: complex) -> None:
    for dtype in COMPLEX:
        found = function(fa.asarray(value, dtype=dtype, device=CUDA)).numpy()
        np.testing.assert_allclose([found.real, found.imag], [expected.real, expected.imag], rtol=1e-6)


@pytest.mark.cuda
def test_the_comparison_can_fail() -> None:
    with pytest.raises(AssertionError):
        same(lambda d: fa.asarray(-0.0 if d.kind == "cpu" else 0.0, device=d))
    with pytest.raises(AssertionError):
        same(lambda d: fa.asarray(1.0 if d.kind == "cpu" else 1.001, device=d), exact=False)


@pytest.mark.cuda
def test_errors_are_those_of_numpy_storage() -> None:
    for case in (
        lambda d: fa.linalg.inv(fa.zeros((2, 2), device=d)),
        lambda d: fa.linalg.cholesky(fa.asarray([[-1.0]], device=d)),
        lambda d: of([2], "i32")(d) ** of([-1], "i32")(d),
        lambda d: GRID(d)[of([7], "i64")(d)],
        lambda d: GRID(d)[:, 3],
        lambda d: GRID(d) + fa.ones((4, 1, 2), device=d),
        lambda d: of([1], "i8")(d) + 300,
    ):
        raised = []
        for device in ("cpu", CUDA):
            with pytest.raises((ValueError, IndexError, OverflowError)) as caught:
                case(fa.Device(device))
            raised.append(caught.type)
        assert raised[0] is raised[1]


QUIET = settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
ACROSS = st.sampled_from([d for d in fa.Dtype.all() if not d.is_complex])


@pytest.mark.cuda
@QUIET
@given(data=st.data(), name=st.sampled_from(["abs", "negative", "sign", "floor", "ceil", "trunc", "isnan", "isfinite"]))
def test_exact_functions_of_drawn_tensors(data: st.DataObject, name: str) -> None:
    x = data.draw(tensors(ACROSS, device="cpu").filter(lambda x: accepts(name, x.dtype)))
    same(lambda d: getattr(fa, name)(_normal(x).to_device(d)))


@pytest.mark.cuda
@QUIET
@given(
    data=st.data(), name=st.sampled_from(["add", "subtract", "multiply", "less", "equal", "remainder", "floor_divide"])
)
def test_exact_functions_of_drawn_pairs(data: st.DataObject, name: str) -> None:
    x, y = data.draw(broadcastable_pairs(ACROSS, device="cpu"))
    if x.dtype is y.dtype and accepts(name, x.dtype):
        same(
            lambda d: getattr(fa, name)(_normal(x).to_device(d), _normal(y).to_device(d)),
            exact=x.dtype is not fa.float32,
        )


@pytest.mark.cuda
@QUIET
@given(x=tensors(ACROSS, device="cpu"), descending=st.booleans(), data=st.data())
def test_order_of_drawn_tensors(x: fa.Tensor, descending: bool, data: st.DataObject) -> None:
    if x.ndim:
        axis = data.draw(st.integers(-x.ndim, x.ndim - 1))
        same(lambda d: fa.argsort(x.to_device(d), axis=axis, descending=descending))
        if x.shape[axis]:
            same(lambda d: [f(_normal(x).to_device(d), axis=axis) for f in (fa.argmax, fa.argmin)])
            same(lambda d: (fa.max(x.to_device(d), axis=axis) + 0, fa.min(x.to_device(d), axis=axis) + 0), exact=False)
    same(lambda d: tuple(fa.unique_all(x.to_device(d)))[1:])


@pytest.mark.cuda
@QUIET
@given(x=tensors(device="cpu"), data=st.data())
def test_reading_and_writing_drawn_places(x: fa.Tensor, data: st.DataObject) -> None:
    key = data.draw(indices(x.shape, device="cpu"))
    same(lambda d: x.to_device(d)[_placed(key, d)])

    def write(d: Any) -> tuple[fa.Tensor, fa.Tensor]:
        y = x.to_device(d).copy()
        kept = y[...]
        y[_placed(key, d)] = fa.zeros((), dtype=x.dtype, device=d)
        return y, kept

    same(write)


@pytest.mark.cuda
@QUIET
@given(x=tensors(device="cpu"))
def test_a_round_trip_keeps_every_bit(x: fa.Tensor) -> None:
    back = x.to_device(CUDA).to_device("cpu")
    assert back.numpy().tobytes() == x.numpy().tobytes()


@pytest.mark.cuda
@given(seed=st.integers(0, 2**32 - 1))
def test_random_bits_are_the_same(seed: int) -> None:
    def drawn(d: Any) -> tuple[fa.Tensor, ...]:
        stream = fa.random.Generator(seed)
        return stream.integers(0, 1000, (50,), device=d), stream.uniform((50,), device=d)

    same(drawn)


def _placed(key: Any, device: fa.Device) -> Any:
    """*key* with its tensors on *device*."""
    if isinstance(key, tuple):
        return tuple(_placed(part, device) for part in key)
    return key.to_device(device) if isinstance(key, fa.Tensor) else key


def _normal(x: fa.Tensor) -> fa.Tensor:
    """*x* without numbers below the normal ones, which CUDA storage takes for zero in float32."""
    if x.dtype is not fa.float32:
        return x
    return fa.where(fa.abs(x) < fa.finfo(x.dtype).smallest_normal, fa.zeros_like(x), x)
