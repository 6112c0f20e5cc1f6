"""Tensors on NumPy, CuPy and MLX in the array API standard 2025.12: ``import ferrum_array as fa``.

A :class:`Tensor` has a :class:`Dtype` and a :class:`Device`; functions take and return tensors. ``linalg``, ``fft``,
``random``, ``io`` and ``testing`` are modules beside the standard's main namespace.
"""

from __future__ import annotations

from math import e, inf, nan, pi
from typing import TYPE_CHECKING, Any

from ferrum_array import creation, fft, indexing, linalg
from ferrum_array.creation import (
    arange, asarray, empty, empty_like, eye, from_dlpack, full, full_like, linspace, meshgrid, ones, ones_like, tril,
    triu, zeros, zeros_like,
)  # fmt: skip
from ferrum_array.data_types import astype, can_cast, finfo, iinfo, result_type
from ferrum_array.device import Device, default_device, devices, get_default_device, set_default_device
from ferrum_array.dtype import Dtype, isdtype
from ferrum_array.einsum import einsum
from ferrum_array.elementwise import (
    abs, acos, acosh, add, asin, asinh, atan, atan2, atanh, bitwise_and, bitwise_invert, bitwise_left_shift, bitwise_or,
    bitwise_right_shift, bitwise_xor, ceil, clip, conj, copysign, cos, cosh, divide, equal, exp, expm1, floor,
    floor_divide, greater, greater_equal, hypot, imag, isfinite, isinf, isnan, less, less_equal, log, log1p, log2,
    log10, logaddexp, logical_and, logical_not, logical_or, logical_xor, maximum, minimum, multiply, negative,
    nextafter, not_equal, positive, pow, real, reciprocal, remainder, round, sign, signbit, sin, sinh, sqrt, square,
    subtract, tan, tanh, trunc,
)  # fmt: skip
from ferrum_array.extra import (
    allclose, atleast_nd, create_diagonal, isclose, kron, nan_to_num, nunique, one_hot, pad,
)  # fmt: skip
from ferrum_array.formatting import get_printoptions, printoptions, set_printoptions
from ferrum_array.indexing import take, take_along_axis
from ferrum_array.info import __array_namespace_info__
from ferrum_array.linalg import matmul, matrix_transpose, tensordot, vecdot
from ferrum_array.manipulation import (
    broadcast_arrays, broadcast_shapes, broadcast_to, concat, expand_dims, flip, moveaxis, permute_dims, repeat,
    reshape, roll, squeeze, stack, tile, unstack,
)  # fmt: skip
from ferrum_array.searching import argmax, argmin, count_nonzero, nonzero, searchsorted, where
from ferrum_array.sets import isin, unique_all, unique_counts, unique_inverse, unique_values
from ferrum_array.sorting import argsort, sort
from ferrum_array.statistical import cumulative_prod, cumulative_sum, max, mean, min, prod, std, sum, var
from ferrum_array.tensor import Tensor
from ferrum_array.utility import all, any, diff, synchronize

if TYPE_CHECKING:
    from ferrum_array import io as io
    from ferrum_array import random as random
    from ferrum_array import testing as testing

__all__ = [
    "Device", "Dtype", "Tensor", "__array_namespace_info__", "abs", "acos", "acosh", "add", "all",
    "allclose", "any", "arange", "argmax", "argmin", "argsort", "asarray", "asin", "asinh",
    "astype", "atan", "atan2", "atanh", "atleast_nd", "bfloat16", "bitwise_and", "bitwise_invert",
    "bitwise_left_shift", "bitwise_or", "bitwise_right_shift", "bitwise_xor", "bool",
    "broadcast_arrays", "broadcast_shapes", "broadcast_to", "can_cast", "ceil", "clip",
    "complex128", "complex64", "concat", "conj", "copysign", "cos", "cosh", "count_nonzero",
    "create_diagonal", "cumulative_prod", "cumulative_sum", "default_device", "devices", "diff",
    "divide", "e", "einsum", "empty", "empty_like", "equal", "exp", "expand_dims", "expm1", "eye",
    "fft", "finfo", "flip", "float16", "float32", "float64", "floor", "floor_divide", "from_dlpack",
    "full", "full_like", "get_default_device", "get_printoptions", "greater", "greater_equal",
    "hypot", "iinfo", "imag", "inf", "int16", "int32", "int64", "int8", "isclose", "isdtype",
    "isfinite", "isin", "isinf", "isnan", "kron", "less", "less_equal", "linalg", "linspace", "log",
    "log10", "log1p", "log2", "logaddexp", "logical_and", "logical_not", "logical_or",
    "logical_xor", "matmul", "matrix_transpose", "max", "maximum", "mean", "meshgrid", "min",
    "minimum", "moveaxis", "multiply", "nan", "nan_to_num", "negative", "newaxis", "nextafter",
    "nonzero", "not_equal", "nunique", "one_hot", "ones", "ones_like", "pad", "permute_dims", "pi",
    "positive", "pow", "printoptions", "prod", "real", "reciprocal", "remainder", "repeat",
    "reshape", "result_type", "roll", "round", "searchsorted", "set_default_device",
    "set_printoptions", "sign", "signbit", "sin", "sinh", "sort", "sqrt", "square", "squeeze",
    "stack", "std", "subtract", "sum", "synchronize", "take", "take_along_axis", "tan", "tanh",
    "tensordot", "tile", "tril", "triu", "trunc", "uint16", "uint32", "uint64", "uint8",
    "unique_all", "unique_counts", "unique_inverse", "unique_values", "unstack", "var", "vecdot",
    "where", "zeros", "zeros_like",
]  # fmt: skip

__version__ = "0.1.0"
__array_api_version__ = "2025.12"

#: The versions of the standard that the namespace implements.
API_VERSIONS = ("2021.12", "2022.12", "2023.12", "2024.12", "2025.12")

newaxis = None

bool = Dtype.BOOL
int8 = Dtype.I8
int16 = Dtype.I16
int32 = Dtype.I32
int64 = Dtype.I64
uint8 = Dtype.U8
uint16 = Dtype.U16
uint32 = Dtype.U32
uint64 = Dtype.U64
float16 = Dtype.F16
bfloat16 = Dtype.BF16
float32 = Dtype.F32
float64 = Dtype.F64
complex64 = Dtype.C64
complex128 = Dtype.C128

_LAZY = ("io", "random", "testing")


def __getattr__(name: str) -> Any:
    if name in _LAZY:  # loaded at first use: not everybody needs them
        from importlib import import_module

        return import_module(f"ferrum_array.{name}")
    raise AttributeError(f"module 'ferrum_array' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
