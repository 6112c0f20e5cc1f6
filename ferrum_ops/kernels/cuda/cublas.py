"""Products by cuBLASLt, called through nvmath-python's bindings, on CuPy's current stream.

What the library needs to know of a product is a plan: made once for its shapes, strides, dtypes and alignments, and
kept. A call of a plan asks nothing of the host but the launch, so that it can be captured in a CUDA graph; CuPy's own
products refuse that. The library's scratch memory is taken for each call, from CuPy's pool.
"""

from __future__ import annotations

import ctypes
import math
import weakref
from functools import cache, lru_cache
from threading import Lock
from typing import Any, Final

import cupy
from nvmath.bindings import cublasLt

import ferrum_array as fa
from ferrum_array import Dtype, Tensor
from ferrum_ops.kernels.cuda.launch import empty
from ferrum_ops.kernels.cuda.layouts import in_order, rows
from ferrum_ops.quant.tensor import QuantTensor

__all__ = ["linear", "product", "refuses"]

#: cudaDataType_t
_TYPES: Final = {fa.float32: 0, fa.float16: 2, fa.bfloat16: 14}
_COMPUTE_32F: Final = 68
_TRANSPOSED: Final = 1  # cublasOperation_t
_WORKSPACE: Final = 32 << 20  # bytes that the library may ask for, as it advises for Hopper
_ALIGNMENT: Final = 256  # more is no use to it
_PLANS: Final = 4096  # so many are kept: lengths of prompts differ

_ONE: Final = ctypes.c_float(1.0)
_ZERO: Final = ctypes.c_float(0.0)
_ATTRIBUTES: Final = cublasLt.MatmulDescAttribute
_PREFERENCES: Final = cublasLt.MatmulPreferenceAttribute


def _set(function: Any, what: int, attribute: Any, value: Any) -> None:
    function(what, int(attribute), ctypes.addressof(value), ctypes.sizeof(value))


@cache
def _handle(device: int) -> int:
    with cupy.cuda.Device(device):
        return int(cublasLt.create())


class _Plan:
    """A product of given shapes: its descriptors, and the algorithm that the library advises.

    The library thinks in columns: our y [m, n] is its [n, m], made from w and x in this order.
    """

    def __init__(
        self, device: int, shape: tuple[int, int, int], steps: tuple[int, int, int], kinds: tuple[Dtype, Dtype],
        turned: bool, bias: bool, alignments: tuple[int, int, int],
    ) -> None:  # fmt: skip
        m, n, k = shape
        x_step, w_step, y_step = steps
        given, made = (_TYPES[kind] for kind in kinds)
        self._lock = Lock()
        self._handle = _handle(device)
        self._product = cublasLt.matmul_desc_create(_COMPUTE_32F, _TYPES[fa.float32])
        if not turned:
            _set(cublasLt.matmul_desc_set_attribute, self._product, _ATTRIBUTES.TRANSA, ctypes.c_int32(_TRANSPOSED))
        if bias:
            epilogue = ctypes.c_int32(int(cublasLt.Epilogue.BIAS))
            _set(cublasLt.matmul_desc_set_attribute, self._product, _ATTRIBUTES.EPILOGUE, epilogue)
            kind = ctypes.c_int32(made)
            _set(cublasLt.matmul_desc_set_attribute, self._product, _ATTRIBUTES.BIAS_DATA_TYPE, kind)
            somewhere = ctypes.c_uint64(_ALIGNMENT)  # the library looks whether there is a bias
            _set(cublasLt.matmul_desc_set_attribute, self._product, _ATTRIBUTES.BIAS_POINTER, somewhere)
        self._w = cublasLt.matrix_layout_create(given, *((n, k) if turned else (k, n)), w_step)
        self._x = cublasLt.matrix_layout_create(given, k, m, x_step)
        self._y = cublasLt.matrix_layout_create(made, n, m, y_step)
        preference = cublasLt.matmul_preference_create()
        wanted = _PREFERENCES.MAX_WORKSPACE_BYTES, ctypes.c_uint64(_WORKSPACE)
        _set(cublasLt.matmul_preference_set_attribute, preference, *wanted)
        names = ("A", "B", "C", "D")
        for name, alignment in zip(names, (*alignments, alignments[-1]), strict=True):
            attribute = getattr(_PREFERENCES, f"MIN_ALIGNMENT_{name}_BYTES")
            _set(cublasLt.matmul_preference_set_attribute, preference, attribute, ctypes.c_uint32(alignment))
        self._found = cublasLt.MatmulHeuristicResult(1)
        count = ctypes.c_int32(0)
        with cupy.cuda.Device(device):
            cublasLt.matmul_algo_get_heuristic(
                self._handle, self._product, self._w, self._x, self._y, self._y, preference, 1, self._found.ptr,
                ctypes.addressof(count),
            )  # fmt: skip
        cublasLt.matmul_preference_destroy(preference)
        if not count.value:
            raise RuntimeError(f"linear: cuBLASLt has no algorithm for shapes {shape}, steps {steps} and {kinds}")
        weakref.finalize(self, _forget, self._product, (self._w, self._x, self._y)).atexit = False
        self._algorithm = int(self._found.ptr)  # the first field of what was found
        self.workspace = int(self._found.workspace_size)

    def __call__(self, x: int, w: int, bias: int, y: int, workspace: int) -> None:
        """Run on the current stream; what is passed are addresses."""
        stream = cupy.cuda.get_current_stream().ptr
        with self._lock:  # the address of the bias is part of the description
            if bias:
                pointer = ctypes.c_uint64(bias)
                _set(cublasLt.matmul_desc_set_attribute, self._product, _ATTRIBUTES.BIAS_POINTER, pointer)
            cublasLt.matmul(
                self._handle, self._product, ctypes.addressof(_ONE), w, self._w, x, self._x, ctypes.addressof(_ZERO),
                y, self._y, y, self._y, self._algorithm, workspace, self.workspace, stream,
            )  # fmt: skip


def _forget(product: int, layouts: tuple[int, ...]) -> None:
    cublasLt.matmul_desc_destroy(product)
    for layout in layouts:
        cublasLt.matrix_layout_destroy(layout)


_plan = lru_cache(_PLANS)(_Plan)


def _aligned(address: int) -> int:
    return min(_ALIGNMENT, address & -address)


def _turned(w: Tensor) -> bool | None:
    """Whether the columns of *w* lie side by side instead of its rows; None if neither do."""
    data = w._data
    n, k = data.shape
    down, along = data.strides
    if along == data.itemsize and down % data.itemsize == 0 and down >= k * data.itemsize:
        return False
    if down == data.itemsize and along % data.itemsize == 0 and along >= n * data.itemsize:
        return True
    return None


def refuses(x: Tensor, w: Tensor | QuantTensor, bias: Tensor | None, out: Dtype) -> str | None:
    """Why cuBLASLt is not asked, or None."""
    if not isinstance(w, Tensor):
        return "takes dense weights"
    if out is fa.float64:
        return "does not give float64"
    if not x.size or not w.size:
        return "takes at least one row, and weights"
    if _turned(w) is None:
        return "neither the rows nor the columns of w lie without gaps"
    return None


def linear(x: Tensor, w: Tensor, bias: Tensor | None, out: Dtype) -> Tensor:
    """The op, with dense weights."""
    y = empty((*x._data.shape[:-1], w._data.shape[0]), x, out)
    product(x, w, bias, y, 0)
    return y


def product(x: Tensor, w: Tensor, bias: Tensor | None, y: Tensor, start: int) -> None:
    """Write ``x @ w.T + bias`` into the columns of *y* [..., N] from *start* on; *y* has no gaps."""
    if bias is not None and bias.dtype is not y.dtype:
        bias = bias.astype(y.dtype) if y.dtype is fa.float32 else bias
    if y.dtype not in (x.dtype, fa.float32) or (bias is not None and bias.dtype is not y.dtype):
        # the library has no such combination: the sum is rounded once, but in a second step
        wide = empty((*y._data.shape[:-1], w._data.shape[0]), x, fa.float32)
        product(x, w, bias, wide, 0)
        y[..., start : start + w._data.shape[0]] = wide.astype(y.dtype)
        return
    m = math.prod(x._data.shape[:-1])
    n, k = w._data.shape
    x, x_step = rows(x)
    if m == 1 or x_step < k:
        x, x_step = in_order(x), k
    turned = bool(_turned(w))
    device = x._spec.device.index
    x_at, w_at = x._data.data.ptr, w._data.data.ptr
    y_at = y._data.data.ptr + start * y._data.itemsize
    bias_at = 0
    if bias is not None:
        bias = in_order(bias)
        bias_at = bias._data.data.ptr
        if bias_at % 16:
            bias = bias.copy()
            bias_at = bias._data.data.ptr
    plan = _plan(
        device, (m, n, k), (x_step, w._data.strides[0 if not turned else 1] // w._data.itemsize, y._data.shape[-1]),
        (x.dtype, y.dtype), turned, bias is not None, (_aligned(w_at), _aligned(x_at), _aligned(y_at)),
    )  # fmt: skip
    workspace = empty((plan.workspace,), x, fa.uint8) if plan.workspace else None
    workspace_at = 0 if workspace is None else workspace._data.data.ptr
    if cupy.cuda.runtime.getDevice() != device:
        with cupy.cuda.Device(device):
            plan(x_at, w_at, bias_at, y_at, workspace_at)
    else:
        plan(x_at, w_at, bias_at, y_at, workspace_at)
