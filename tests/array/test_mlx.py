"""What is particular to MLX storage: laziness with a limit, threads, visits to the host, shared memory."""

from __future__ import annotations

import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ferrum_array as fa
from tests.array.oracle import check

pytestmark = pytest.mark.mlx

if "mlx" in {device.kind for device in fa.devices()}:
    import mlx.core as mx

    from ferrum_array.backends.mlx import window
    from ferrum_array.backends.mlx.visits import VISITS, visits_host

ROOT = Path(__file__).resolve().parents[2]
MLX = fa.Device("mlx:cpu")


class Computed(Exception):
    """Raised where a test forbids to compute."""


@pytest.fixture
def lazy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Computing is an error inside the test."""

    def refuse(*_: Any) -> None:
        raise Computed

    monkeypatch.setattr(mx, "eval", refuse)
    yield
    monkeypatch.undo()


def operands(dtype: fa.Dtype) -> tuple[fa.Tensor, fa.Tensor]:
    """Two matrices that MLX has not computed yet."""
    one = fa.ones((3, 3), dtype=dtype, device=MLX)
    return fa.concat([one, one])[:3], fa.concat([one, one])[3:]


# Visits to the host.


def test_the_documentation_shows_the_table_of_visits() -> None:
    page = (ROOT / "docs" / "mlx.md").read_text()
    for row in VISITS:
        names = ", ".join(f"`{name}`" for name in row.names)
        assert f"| {names} | {row.kinds} | {row.reason} |\n" in page
    table = page[page.index("| functions | dtypes | why |") :]
    assert table[: table.index("\n\n")].count("\n") == len(VISITS) + 1


ONE = ("abs", "exp", "sin", "cos", "log", "sqrt", "tanh", "sign", "floor", "round", "negative", "isnan", "square")
TWO = ("add", "subtract", "multiply", "divide", "maximum", "less", "equal", "floor_divide", "remainder", "copysign")
REDUCED = ("sum", "prod", "max", "mean", "var", "any", "argmax", "cumulative_sum", "sort", "argsort", "count_nonzero")


@pytest.mark.parametrize("dtype", [fa.float32, fa.bfloat16, fa.float64, fa.int32, fa.complex64], ids=str)
@pytest.mark.parametrize("name", [*ONE, *TWO, *REDUCED, "matmul", "hypot", "pow"])
def test_what_is_not_in_the_table_does_not_compute(name: str, dtype: fa.Dtype, lazy: None) -> None:
    x, y = operands(dtype)
    function = getattr(fa, name)
    arguments = (x, y) if name in (*TWO, "matmul", "hypot", "pow") else (x,)
    options = {"axis": 0} if name.startswith("cumulative") else {}
    if name == "pow" and dtype.is_integer:
        return  # looks for negative exponents
    try:
        function(*arguments, **options)
        computed = False
    except TypeError:
        return  # not for this dtype
    except Computed:
        computed = True
    used = fa.float32 if dtype.is_integer and name in ("exp", "sin", "cos", "divide", "hypot") else dtype
    assert computed == visits_host(name, used)


def test_shapes_selections_and_writes_do_not_compute(lazy: None) -> None:
    x, y = operands(fa.float32)
    x[1:, ::-1] = y[:2]
    x[0] += 1.0
    fa.where(x > y, x, y)[..., None]
    fa.permute_dims(fa.reshape(x, (1, 9)), (1, 0))
    fa.flip(fa.roll(x, 1))


# Errors come with the call.


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (lambda x: x + fa.ones(4, device=MLX), ValueError),
        (lambda x: x[5], IndexError),
        (lambda x: x[fa.asarray([0, 7], device=MLX)], IndexError),
        (lambda x: fa.take(x, fa.asarray([3], device=MLX), axis=0), IndexError),
        (lambda x: fa.reshape(x, (4,)), ValueError),
        (lambda x: x @ fa.ones((2, 2), device=MLX), ValueError),
        (lambda x: fa.linalg.inv(0 * x), ValueError),
        (lambda x: x.astype("complex128"), TypeError),
        (lambda x: fa.asarray([2], device=MLX) ** -1, ValueError),
        (lambda x: fa.asarray([1], dtype="i8", device=MLX) + 300, OverflowError),
        (lambda x: fa.zeros((1 << 31, 0), device=MLX), ValueError),
        (lambda x: fa.asarray(np.ones(3), device=MLX, copy=False), ValueError),
    ],
)
def test_errors_are_raised_by_the_call(wrong: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        wrong(fa.ones((3, 3), device=MLX))


def test_more_memory_than_there_is_does_not_end_the_process() -> None:
    huge = (1 << 21, 1 << 21)
    for make in (fa.ones, fa.empty, fa.zeros):
        with pytest.raises(MemoryError, match=r"\(2097152, 2097152\) needs"):
            make(huge, device=MLX)
    with pytest.raises(MemoryError):
        fa.eye(*huge, device=MLX)
    row = fa.ones(1 << 21, device=MLX)
    table = row[:, None] + row
    with pytest.raises(MemoryError, match="needs 17592186044416 bytes"):
        table.block_until_ready()
    assert fa.broadcast_to(row, huge)[5, 7].item() == 1


def test_the_gpu_names_the_dtypes_that_it_lacks() -> None:
    gpu = fa.Device("mlx:gpu")
    info = fa.__array_namespace_info__()
    assert set(info.dtypes(device="cpu")) - set(info.dtypes(device=gpu)) == {"float64", "complex128"}
    for make in (
        lambda: fa.ones(2, dtype="float64", device=gpu),
        lambda: fa.asarray(np.ones(2), device=gpu),
        lambda: fa.ones(2, dtype="float64").to_device(gpu),
        lambda: fa.ones(2, device=gpu).astype("float64"),
        lambda: fa.fft.rfft(fa.ones(2, dtype="float64", device=MLX)),
    ):
        with pytest.raises(TypeError, match=r"has no (float64|complex128); it has bool, int8"):
            make()
    check(fa.asarray(np.ones(2), dtype="float32", device=gpu), [1, 1], fa.float32, device=gpu)


def test_without_a_gpu_and_without_rehearsal_there_is_no_such_device() -> None:
    if mx.is_available(mx.gpu):
        return
    code = (
        "import os; os.environ.pop('FERRUM_REHEARSE_MLX_GPU', None)\n"
        "import ferrum_array as fa\n"
        "assert [d.name for d in fa.devices() if d.kind == 'mlx'] == ['mlx:cpu']\n"
        "try: fa.ones(1, device='mlx:gpu')\n"
        "except ValueError as error: assert \"use 'mlx:cpu'\" in str(error)\n"
        "else: raise SystemExit('no error')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


# Laziness.


def peak_megabytes() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def test_waiting() -> None:
    t = fa.ones(3, device=MLX) + 1
    assert t.block_until_ready() is t
    fa.synchronize(MLX)
    assert t.tolist() == [2, 2, 2]


@pytest.mark.parametrize("kind", ["new", "in place", "write", "two"])
def test_small_updates_without_end_keep_memory_flat(kind: str) -> None:
    t, other = fa.zeros(64, device=MLX), fa.zeros(64, device=MLX)
    before = 0.0
    for i in range(30_000):
        if i == 2000:
            before = peak_megabytes()
        if kind == "new":
            t = t + 1.0
        elif kind == "in place":
            t += 1.0
        elif kind == "write":
            t[i % 64] = 1.0
        else:  # two chains, of which the window must not always meet the same
            t = t + 1.0
            other = other * 0.5
    assert peak_megabytes() - before < 8, "about 1 kB for each update that waits"
    assert fa.all(t == (1.0 if kind == "write" else 30_000.0))


def test_the_window_computes_what_is_in_use_and_forgets_it() -> None:
    one = window.Window()
    stream = mx.new_thread_unsafe_stream(mx.cpu)
    double = one.unary(lambda x, stream: mx.add(x, x, stream=stream), stream)
    kept = [double(mx.array([1.0])) for _ in range(window.SIZE - 1)]
    assert len(one._results) == window.SIZE - 1
    kept.append(double(kept[-1]))
    assert not one._results
    assert [x.item() for x in kept[-2:]] == [2.0, 4.0]


# Threads, and MLX's own state.


def test_tensors_go_from_thread_to_thread() -> None:
    found: list[fa.Tensor] = []

    def make() -> None:
        x = fa.arange(4, dtype="f32", device=MLX)
        x[1:3] = x[:2] * 2
        found.append(x + 1)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    assert (found[0] * 2).tolist() == [2, 2, 6, 8]


def test_threads_at_the_same_time() -> None:
    wrong: list[Any] = []
    shared = fa.ones(16, device=MLX) * 3

    def work(number: int) -> None:
        x = fa.zeros(16, device=MLX)
        for i in range(300):
            x = x + shared
            if i % 50 == number:
                x[i % 16] = x[0]
        if x.tolist() != [900.0] * 16:
            wrong.append(x.tolist())

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_state_of_mlx_is_left_alone() -> None:
    before = mx.default_device(), mx.default_stream(mx.cpu)
    x = fa.ones((3, 3), device=MLX)
    x[1:] = x[:2] @ x
    x[x > 1] = 0
    assert x[0].sum().item() == 3
    assert (mx.default_device(), mx.default_stream(mx.cpu)) == before


# Memory.


@pytest.mark.parametrize("dtype", [d for d in fa.Dtype.all() if MLX.supports(d)], ids=str)
def test_memory_is_shared_with_numpy_on_request_and_safe(dtype: fa.Dtype) -> None:
    x = fa.ones((2, 3), dtype=dtype, device=MLX)
    view, again = x.numpy(copy=False), x.numpy(copy=False)
    assert np.shares_memory(view, again)
    with pytest.raises(ValueError, match="read-only"):
        view[0, 0] = 0
    x[0, 0] = False
    assert x.tolist()[0][0] == 0
    assert view[0, 0] == 1
    copied = x.numpy()
    copied[0, 1] = 0
    assert x.tolist()[0][1] == 1


def test_memory_given_to_other_libraries_does_not_see_our_writes() -> None:
    x = fa.arange(3, device=MLX)
    given = np.from_dlpack(x)
    x[0] = 100
    assert given.tolist() == [0, 1, 2]
    assert x.tolist() == [100, 1, 2]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_arrays_of_mlx_are_taken_in_as_they_are(dtype: str) -> None:
    theirs = mx.array([1, 2, 3]).astype(getattr(mx, dtype))
    ours = fa.asarray(theirs)
    assert ours.device is MLX
    assert ours.dtype is fa.Dtype(dtype)
    ours[0] = 7
    theirs[1] = 9
    assert theirs.tolist() == [1, 9, 3]
    assert ours.tolist() == [7, 2, 3]
    assert fa.from_dlpack(theirs, device="cpu").tolist() == [1, 9, 3]


# Numbers.


@pytest.mark.parametrize("dtype", ["i8", "i16", "i32", "i64"])
def test_integer_division_neither_traps_nor_overflows(dtype: str) -> None:
    low = fa.iinfo(dtype).min
    numbers = [low, low, low, 7, -7, 0, 5]
    divisors = [-1, 0, 1, 0, 2, -1, -2]
    x, y = fa.asarray(numbers, dtype=dtype, device=MLX), fa.asarray(divisors, dtype=dtype, device=MLX)
    check(x // y, [low, 0, low, 0, -4, 0, -3], fa.Dtype(dtype))
    check(x % y, [0, 0, 0, 0, 1, 0, -1], fa.Dtype(dtype))


def empties() -> list[fa.Tensor]:
    """Views without elements, with the strides that views can have."""
    x = fa.reshape(fa.arange(24, device=MLX), (2, 3, 4))
    return [
        *(fa.linalg.diagonal(x, offset=offset) for offset in (-9, -3, 4, 642)),
        *(x[:, 1:1, ::2], x[::-1, :, 2:2], x[:0].T, fa.broadcast_to(x[:, :0, :1], (2, 0, 7))),
    ]


@pytest.mark.parametrize("number", range(8))
def test_reductions_of_nothing_end(number: int) -> None:
    x = empties()[number]
    host = np.asarray(x)
    for axis in range(x.ndim):
        check(fa.sum(x, axis=axis), host.sum(axis=axis), fa.int64)
        check(fa.prod(x, axis=axis), host.prod(axis=axis), fa.int64)
        check(fa.all(x, axis=axis), host.all(axis=axis), fa.bool)
        check(fa.any(x, axis=axis), host.any(axis=axis), fa.bool)
        check(fa.count_nonzero(x, axis=axis), np.count_nonzero(host, axis=axis), fa.int64)
        check(fa.cumulative_sum(x, axis=axis), host.cumsum(axis=axis), fa.int64)
        check(fa.sort(x, axis=axis), host, fa.int64)
        if x.shape[axis]:
            check(fa.max(x, axis=axis), host.max(axis=axis), fa.int64)
    assert fa.sum(x.astype("f32")).item() == 0


@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32"])
def test_long_sums_do_not_drift(dtype: str) -> None:
    x = fa.ones((3, 300_007), device=MLX) * 0.1
    x = x.astype(dtype)
    one = float(x[0, 0])
    rtol = 64 * fa.finfo(dtype).eps
    np.testing.assert_allclose(np.asarray(fa.mean(x, axis=1).astype("f32")), one, rtol=rtol)
    np.testing.assert_allclose(np.asarray(fa.mean(x.T, axis=0).astype("f32")), one, rtol=rtol)
    np.testing.assert_allclose(np.asarray(fa.sum(x.astype("f32"), axis=1)), 300_007 * one, rtol=64 * 2**-23)


def test_numbers_on_either_side_keep_their_precision() -> None:
    x = fa.asarray([3.0], dtype="f64", device=MLX)
    assert (x * 0.1).item() == 3.0 * 0.1
    assert (0.1 / x).item() == 0.1 / 3.0
    big = fa.asarray([1], device=MLX)
    assert (big + (1 << 62)).item() == (1 << 62) + 1
    assert (fa.asarray([1], dtype="u64", device=MLX) + ((1 << 64) - 2)).item() == (1 << 64) - 1
    assert (fa.ones(1, device=MLX) + (1 << 70)).item() == float(1 << 70)


def test_products_of_nothing_leave_other_memory_alone() -> None:
    """MLX's own product of a matrix without rows does not: it ends such a process."""
    script = (
        "import mlx.core as mx, numpy as np, ferrum_array as fa\n"
        "mx.set_cache_limit(0)\n"
        "for n in range(2000):\n"
        "    heads, keys, dim = 1 + n % 3, 1 + n % 11, (1, 4, 8)[n % 3]\n"
        "    q = fa.asarray(np.zeros((1, heads, 0, dim)), device='mlx:cpu')\n"
        "    k = fa.asarray(np.ones((keys, heads, dim)), device='mlx:cpu')\n"
        "    x = q @ fa.moveaxis(k[None], -2, -3).mT\n"
        "    assert x.numpy().shape == (1, heads, 0, keys)\n"
        "    assert (fa.asarray(np.arange(7), device='mlx:cpu') + 1).tolist() == [1, 2, 3, 4, 5, 6, 7]\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
