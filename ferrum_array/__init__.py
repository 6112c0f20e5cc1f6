"""Tensors on NumPy, CuPy and MLX in the array API standard 2025.12: ``import ferrum_array as fa``.

A :class:`Tensor` has a :class:`Dtype` and a :class:`Device`; functions take and return tensors. ``linalg``, ``fft``,
``random``, ``io`` and ``testing`` are modules beside the standard's main namespace.
"""

from __future__ import annotations

from importlib import import_module
from math import e, inf, nan, pi
from typing import TYPE_CHECKING, Any

from ferrum_array import (
    conversion,
    creation,
    data_types,
    doors,
    elementwise,
    extra,
    fft,
    indexing,
    linalg,
    manipulation,
    names,
    products,
    searching,
    sets,
    sorting,
    statistical,
    utility,
)
from ferrum_array.capture import Captured, CaptureError, Reading, capture
from ferrum_array.conversion import *
from ferrum_array.creation import *
from ferrum_array.data_types import *
from ferrum_array.device import Device, default_device, devices, get_default_device, set_default_device
from ferrum_array.dtype import Dtype, isdtype
from ferrum_array.einsum import einsum
from ferrum_array.elementwise import *
from ferrum_array.extra import *
from ferrum_array.formatting import get_printoptions, printoptions, set_printoptions
from ferrum_array.indexing import *
from ferrum_array.info import __array_namespace_info__
from ferrum_array.manipulation import *
from ferrum_array.products import *
from ferrum_array.searching import *
from ferrum_array.sets import *
from ferrum_array.sorting import *
from ferrum_array.statistical import *
from ferrum_array.tensor import Tensor
from ferrum_array.utility import *

if TYPE_CHECKING:
    from ferrum_array import io as io
    from ferrum_array import random as random
    from ferrum_array import testing as testing

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

__all__ = [
    "API_VERSIONS", "CaptureError", "Captured", "Device", "Dtype", "Reading", "Tensor", "__array_api_version__",
    "__array_namespace_info__", "__version__", "bfloat16", "bool", "capture", "complex128", "complex64",
    "default_device", "devices", "e", "einsum", "fft", "float16", "float32", "float64", "get_default_device",
    "get_printoptions", "inf", "int16", "int32", "int64", "int8", "io", "isdtype", "linalg", "nan", "newaxis", "pi",
    "printoptions", "random", "set_default_device", "set_printoptions", "testing", "uint16", "uint32", "uint64",
    "uint8",
]  # fmt: skip
__all__ += conversion.__all__
__all__ += creation.__all__
__all__ += data_types.__all__
__all__ += elementwise.__all__
__all__ += extra.__all__
__all__ += indexing.__all__
__all__ += manipulation.__all__
__all__ += products.__all__
__all__ += searching.__all__
__all__ += sets.__all__
__all__ += sorting.__all__
__all__ += statistical.__all__
__all__ += utility.__all__

doors.open_doors()
names.advise(Tensor, [name for name in __all__ if callable(globals().get(name)) and name[0].islower()])

_LAZY = ("io", "random", "testing")


if not TYPE_CHECKING:  # tools that check types shall find misspelt names

    def __getattr__(name: str) -> Any:
        if name in _LAZY:  # loaded at first use: not everybody needs them
            return import_module(f"ferrum_array.{name}")
        raise AttributeError(f"module 'ferrum_array' has no attribute {name!r}{names.advice('ferrum_array', name)}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
