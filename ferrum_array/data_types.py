"""Data type functions of the array API standard: conversion, promotion, and the limits of number types."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ferrum_array.conversion import converted
from ferrum_array.device import Device
from ferrum_array.dispatch import tensor
from ferrum_array.dtype import Dtype, integer_limits, promote_dtypes, weak_promote
from ferrum_array.tensor import Tensor

__all__ = ["astype", "can_cast", "finfo", "iinfo", "result_type"]


def astype(x: Tensor, dtype: Any, /, *, copy: bool = True, device: Device | str | None = None) -> Tensor:
    """*x* converted to *dtype*, on *device* if one is given.

    Floats are cut towards zero for integers; what an integer type cannot hold gives an unspecified value.

    Args:
        copy: False returns *x* itself where nothing changes.

    Raises:
        TypeError: for complex to real, which would drop the imaginary parts.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.astype(fa.asarray([1.7, -1.7]), fa.int8)
        Tensor([ 1, -1], dtype=int8)
    """
    x = tensor("astype", x)
    wanted, target = Dtype(dtype), x.device if device is None else Device(device)
    if wanted is x.dtype and target is x.device:
        return x.copy() if copy else x
    if wanted is not x.dtype and not target.supports(wanted):
        x = x.to_device(target)  # names the dtype that is missing there
    result = x if wanted is x.dtype else converted("astype", x, wanted)
    return result.to_device(target)


def _dtype(value: Any) -> Dtype:
    return value.dtype if isinstance(value, Tensor) else Dtype(value)


def can_cast(from_: Any, to: Any, /) -> bool:
    """Whether type promotion leads from *from_* (a dtype or tensor) to *to*.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.can_cast(fa.int8, fa.int16), fa.can_cast(fa.float32, fa.int64)
        (True, False)
    """
    start, end = _dtype(from_), Dtype(to)
    if {start.kind, end.kind} == {"signed integer", "unsigned integer"} and Dtype.U64 in (start, end):
        return False
    return promote_dtypes(start, end) is end


def result_type(*arrays_and_dtypes: Any) -> Dtype:
    """The dtype of a computation with all the tensors, dtypes and Python numbers given; the latter are weak.

    Raises:
        ValueError: if there is no tensor and no dtype. TypeError: where promotion is not defined.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.result_type(fa.float16, fa.ones(1), 1.0)
        ferrum_array.float32
    """
    numbers = [
        one for one in arrays_and_dtypes if isinstance(one, (bool, int, float, complex)) and not hasattr(one, "dtype")
    ]
    strong = [
        _dtype(one.dtype if hasattr(one, "dtype") else one)
        for one in arrays_and_dtypes
        if not any(one is n for n in numbers)
    ]
    if not strong:
        raise ValueError("result_type: needs at least one tensor or dtype")
    result = promote_dtypes(*strong)
    for number in numbers:
        result = weak_promote(result, type(number))
    return result


@dataclass(frozen=True, slots=True)
class FloatInfo:
    """The limits of a floating-point dtype, of its real part for a complex one: Python floats."""

    bits: int
    eps: float
    max: float
    min: float
    smallest_normal: float
    dtype: Dtype


@dataclass(frozen=True, slots=True)
class IntegerInfo:
    """The limits of an integer dtype: Python integers."""

    bits: int
    max: int
    min: int
    dtype: Dtype


#: IEEE 754-2019 binary16, binary32, binary64; bfloat16 has binary32's exponent: (fraction bits, largest exponent)
_FORMATS = {Dtype.F16: (10, 15), Dtype.BF16: (7, 127), Dtype.F32: (23, 127), Dtype.F64: (52, 1023)}


def finfo(type: Any, /) -> FloatInfo:
    """The limits of the floating-point dtype *type* (a dtype or tensor); of its parts for a complex one.

    Raises:
        TypeError: for a dtype that is not floating-point.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.finfo(fa.bfloat16).eps
        0.0078125
    """
    dtype = _dtype(type)
    if dtype.real not in _FORMATS:
        raise TypeError(f"finfo: {dtype} is not a floating-point dtype; see iinfo()")
    fraction, exponent = _FORMATS[dtype.real]
    largest = (2.0 - 2.0**-fraction) * 2.0**exponent
    return FloatInfo(dtype.real.bits, 2.0**-fraction, largest, -largest, 2.0 ** (1 - exponent), dtype.real)


def iinfo(type: Any, /) -> IntegerInfo:
    """The limits of the integer dtype *type* (a dtype or tensor).

    Raises:
        TypeError: for a dtype that is not an integer.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.iinfo(fa.int8).max
        127
    """
    dtype = _dtype(type)
    if not dtype.is_integer:
        raise TypeError(f"iinfo: {dtype} is not an integer dtype; see finfo()")
    low, high = integer_limits(dtype)
    return IntegerInfo(dtype.bits, high, low, dtype)
