"""How kernels call MLX's own functions on tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from ferrum_array import Tensor
from ferrum_array.backends.mlx import MlxBackend
from ferrum_array.spec import spec_of
from ferrum_array.tensor import wrap

__all__ = ["backend", "on_gpu", "run"]


def backend(x: Tensor) -> MlxBackend:
    """The services of the device of *x*, which must be MLX's."""
    found = x.device.backend
    assert isinstance(found, MlxBackend), f"{x.device} is not a device of MLX"
    return found


def on_gpu(x: Tensor) -> bool:
    """Whether the work on *x* is really done by a GPU: MLX has its fused kernels there, and only there."""
    return bool(backend(x).stream.device == mx.Device(mx.gpu))


def run(function: Callable[..., mx.array], x: Tensor, *args: Any, **options: Any) -> Tensor:
    """MLX's *function* of *x* and more, tensors among them, on the stream of the device of *x*."""
    services = backend(x)
    raw = services.run(
        function,
        x._data,
        *(one._data if isinstance(one, Tensor) else one for one in args),
        **{name: one._data if isinstance(one, Tensor) else one for name, one in options.items()},
    )
    return wrap(raw, spec_of(services.dtype_of(raw), x.device))
