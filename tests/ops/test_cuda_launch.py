"""Launches on a CUDA device: streams, alignment, several devices, and the time of the host."""

from __future__ import annotations

from threading import Thread

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ferrum_array as fa

pytestmark = pytest.mark.cuda

if any(device.kind == "cuda" for device in fa.devices()):
    import cupy

    from ferrum_ops.kernels.cuda.launch import Kernel, empty
    from tests.ops.interpreted import scaling

    SCALED = Kernel(scaling.scaled, aligned=("size",))


def _scaled(x: fa.Tensor, w: fa.Tensor | None, factor: float) -> fa.Tensor:
    out = empty(x.shape, x)
    out[...] = fa.nan
    SCALED((-(-x.size // 256),), x, w, out, x.size, factor, BLOCK=256)
    return out


@given(
    st.integers(0, 3000),
    st.sampled_from([fa.float32, fa.float16, fa.bfloat16]),
    st.booleans(),
    st.integers(0, 9),
)
def test_a_launch_writes_what_the_function_computes(size: int, dtype: fa.Dtype, weighted: bool, first: int) -> None:
    """Views begin anywhere: addresses that are no multiples of 16 have code of their own."""
    x = fa.arange(size + first, dtype=fa.float32, device="cuda:0").astype(dtype)[first:]
    w = fa.linspace(1.0, 2.0, size + first, device="cuda:0").astype(dtype)[first:] if weighted else None
    expected = x.astype(fa.float32) * 0.5 * (1.0 if w is None else w.astype(fa.float32))
    assert fa.all(_scaled(x, w, 0.5) == expected.astype(dtype))


def test_launches_go_to_the_current_stream() -> None:
    x = fa.ones((1 << 20,), device="cuda:0")
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        out = empty(x.shape, x)
        SCALED((1 << 12,), x, None, out, x.size, 3.0, BLOCK=256)
        graph = stream.end_capture()
    out[...] = 0.0
    cupy.cuda.Device().synchronize()
    graph.launch(stream)
    stream.synchronize()
    assert fa.all(out == 3.0)


def test_threads_do_not_share_arguments() -> None:
    """A buffer of arguments that two threads wrote into would give one of them the other's factor."""
    x = fa.ones((256,), device="cuda:0")
    for _ in range(9):  # memory for all of them, so that the first call of a thread to CUDA is a launch
        kept = [_scaled(x, None, 1.0) for _ in range(32)]
    del kept
    wrong: list[float] = []

    def work(factor: float) -> None:
        for _ in range(300):
            if not fa.all(_scaled(x, None, factor) == factor):
                wrong.append(factor)

    threads = [Thread(target=work, args=(float(n),)) for n in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_arguments_that_a_kernel_cannot_take_are_named() -> None:
    x = fa.ones((4,), device="cuda:0")
    with pytest.raises(TypeError, match="scaled: argument 'factor' is 'half'"):
        SCALED((1,), x, None, x, 4, "half", BLOCK=256)
