"""CUDA graphs: what a function launches, recorded once on a stream of its own and launched again as a whole.

The memory that the function uses comes from a pool that belongs to the graph, so that nobody else writes there between
launches. The graph is launched on whatever stream is current then, which orders it among the caller's work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final, final

import cupy as cp
from cupy_backends.cuda.api import driver, runtime

from ferrum_array.backends.base import Raw, Unrecordable

__all__ = ["Graph"]

_WARM_UPS: Final = 2  # kernels are compiled and libraries choose; what the first finds out, the second uses

#: numbers that the driver and the runtime share, from cudaErrorStreamCaptureUnsupported on
_CAPTURE_ERRORS: Final = range(900, 909)

#: what stands in the words of CuPy's errors -> why, and what to do
_REASONS: Final = (
    (
        "H2D",
        "it copies from the host's memory, and a replay would copy what lies there then; make the tensor before, and "
        "pass it as an argument",
    ),
    (
        "D2H",
        "it reads a value back to the host, and a replay runs no Python code that could look at it; keep the value in "
        "a tensor, or return it and read it after the call",
    ),
    ("synchronous", "it waits for the device, which a replay does not; do it before, or after the call"),
    (
        "API during stream capture",
        "CuPy's products and solvers refuse to be captured; products of models, `ferrum_ops.linear` among them, have "
        "kernels that can be",
    ),
)


@final
class Graph:
    """A function of arrays, captured on the current device, with buffers for what it takes."""

    def __init__(self, run: Callable[[Sequence[Raw]], Sequence[Raw]], inputs: Sequence[Raw]) -> None:
        current = cp.cuda.get_current_stream()
        if current.is_capturing():
            raise Unrecordable("the current stream is being captured already; call the function itself there")
        self._pool = cp.cuda.MemoryPool()
        stream = cp.cuda.Stream(non_blocking=True)
        ready = cp.cuda.Event(disable_timing=True)
        ready.record(current)
        stream.wait_event(ready)
        with stream, cp.cuda.using_allocator(self._pool.malloc):
            self._buffers = [raw.copy("C") for raw in inputs]
            for _ in range(_WARM_UPS):
                run(self._buffers)
            stream.synchronize()
            stream.begin_capture()
            try:
                self._outputs = list(run(self._buffers))
            except BaseException as error:
                _abandon(stream)
                reason = _reason(error)
                if reason is None:
                    raise
                raise Unrecordable(reason) from error
            try:
                self._graph = stream.end_capture()
            except runtime.CUDARuntimeError as error:
                raise Unrecordable(f"the driver says: {error}") from error
        self._done = cp.cuda.Event(disable_timing=True)
        self._done.record(stream)

    def nested(self) -> bool:
        """Whether the current stream is being captured: a graph is not launched into another one."""
        return bool(cp.cuda.get_current_stream().is_capturing())

    def places(self, raws: Sequence[Raw]) -> list[int]:
        """The addresses of arrays."""
        return [raw.data.ptr for raw in raws]

    def replay(self, inputs: Sequence[Raw], copy: bool) -> list[Raw]:
        """Launch it on the current stream, after the launch before it on whatever stream that was."""
        stream = cp.cuda.get_current_stream()
        stream.wait_event(self._done)
        for buffer, raw in zip(self._buffers, inputs, strict=True):
            if buffer.size and raw.data.ptr != buffer.data.ptr:
                packed = raw if raw.flags.c_contiguous else raw.copy("C")
                buffer.data.copy_from_device_async(packed.data, buffer.nbytes)
        self._graph.launch(stream)
        outputs = [raw.copy("C") for raw in self._outputs] if copy else self._outputs
        self._done.record(stream)
        return outputs


def _abandon(stream: Any) -> None:
    """End a capture that was broken off, so that nothing of it is left on the stream."""
    with suppress(runtime.CUDARuntimeError):  # it says again that the capture was broken
        half = runtime.streamEndCapture(stream.ptr)
        if half:
            runtime.graphDestroy(half)


def _reason(error: BaseException) -> str | None:
    """Why it was the capture that made this error, or None if it was not."""
    if not isinstance(error, RuntimeError):  # those of the driver, the runtime and CuPy are
        return None
    words = str(error)
    if "captur" in words:
        for part, reason in _REASONS:
            if part in words:
                return reason
    if isinstance(error, (runtime.CUDARuntimeError, driver.CUDADriverError)) and error.status in _CAPTURE_ERRORS:
        return f"the driver cannot capture what it does: {words}"
    return None
