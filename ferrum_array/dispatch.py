"""The long way of a call: checking operands, promoting dtypes, naming what is wrong, calling the storage, wrapping.

Chapters of the namespace are written with these few functions, so that every error of one kind reads the same.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeVar

from ferrum_array.backends import host
from ferrum_array.device import CPU, Device
from ferrum_array.dtype import Dtype, integer_limits, promote_dtypes, weak_promote
from ferrum_array.spec import COMPARISONS, ELEMENTWISE, Spec, accepts, spec_of
from ferrum_array.tensor import Scalar, Tensor, wrap

__all__ = [
    "Binary",
    "Operand",
    "Unary",
    "binary",
    "broadcast",
    "integer",
    "integers",
    "normalize_axes",
    "normalize_axis",
    "one_device",
    "shape_tuple",
    "suited",
    "tensor",
    "unary",
    "unify",
]

Operand = Tensor | Scalar

#: What integers and booleans become in functions that are defined for floating-point numbers only.
DEFAULT_FLOAT = Dtype.F32

_new = object.__new__

_F = TypeVar("_F", bound=Callable[..., Any])


class Unary(Protocol):
    """A function of one tensor."""

    __name__: str

    def __call__(self, x: Tensor, /) -> Tensor: ...


class Binary(Protocol):
    """A function of two tensors, or of a tensor and a Python number."""

    __name__: str

    def __call__(self, x1: Operand, x2: Operand, /) -> Tensor: ...


def tensor(name: str, value: object, what: str = "x") -> Tensor:
    """*value*, which must be a Tensor or a NumPy array, as a Tensor.

    Raises:
        TypeError: naming the function, the argument and what came.
    """
    if value.__class__ is Tensor:
        return value
    if host.is_numpy(value):
        array = host.array(value, None)
        spec = spec_of(host.dtype_of(array), CPU)
        return wrap(CPU.backend.from_host(array, copy=None), spec)
    hint = "; make one with asarray()" if isinstance(value, (bool, int, float, complex, list, tuple)) else ""
    raise TypeError(f"{name}: {what} must be a Tensor, got {type(value).__name__} {value!r:.60}{hint}")


def one_device(name: str, tensors: Iterable[Tensor]) -> Device:
    """The device of all *tensors*.

    Raises:
        ValueError: naming both devices where they differ.
    """
    found: Tensor | None = None
    for one in tensors:
        if found is None:
            found = one
        elif one.device is not found.device:
            raise ValueError(
                f"{name}: operands lie on different devices, {found.device} ({found._summary()}) and {one.device} "
                f"({one._summary()}); move one with to_device('{found.device}')"
            )
    assert found is not None  # callers pass at least one
    return found.device


_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "equal": operator.eq,
    "not_equal": operator.ne,
    "less": operator.lt,
    "less_equal": operator.le,
    "greater": operator.gt,
    "greater_equal": operator.ge,
}


def _scalar_fits(name: str, value: Scalar, dtype: Dtype) -> None:
    if isinstance(value, int) and not dtype.is_integer and abs(value) >= 1 << 1023:
        raise OverflowError(f"{name}: a Python integer of {value.bit_length()} bits is outside {dtype}; write a float")
    if dtype.is_integer and not isinstance(value, (float, complex)):
        low, high = integer_limits(dtype)
        if not low <= value <= high:
            raise OverflowError(
                f"{name}: the Python integer {_short(value)} is outside {dtype}, which holds {low} to {high}"
            )


def unify(name: str, *operands: Any) -> tuple[Spec, list[Any]]:
    """The common Spec of *operands* and their raw arrays, converted to it.

    Tensors and NumPy arrays decide; Python numbers are weak (see :func:`~ferrum_array.dtype.weak_promote`).

    Raises:
        TypeError: if no operand is a tensor, one is neither tensor nor number, or the dtypes have no common one.
        ValueError: if the devices differ.
    """
    strong: list[Tensor] = []
    typed_scalars: list[Dtype] = []
    values: list[Any] = []
    for position, operand in enumerate(operands, 1):
        value = operand
        if host.is_numpy_scalar(operand):  # typed like an array, but at home on every device
            typed_scalars.append(host.dtype_of(operand))
            value = operand.item()
        elif not isinstance(operand, (bool, int, float, complex)):
            value = tensor(name, operand, f"operand {position}")
            strong.append(value)
        values.append(value)
    if not strong:
        raise TypeError(f"{name}: at least one operand must be a Tensor, got {', '.join(map(repr, operands))}")
    device = one_device(name, strong)
    try:
        dtype = promote_dtypes(*(one.dtype for one in strong), *typed_scalars)
    except TypeError as error:
        raise TypeError(f"{name}: {error}") from None
    for value in values:
        if not isinstance(value, Tensor):
            dtype = weak_promote(
                dtype, value.__class__ if value.__class__ in (bool, int, float, complex) else type(value).__mro__[1]
            )
    spec = spec_of(dtype, device)
    return spec, [raw(name, value, spec) for value in values]


def _short(number: Any) -> str:
    return str(number) if number.bit_length() < 256 else f"of {number.bit_length()} bits"


def raw(name: str, value: Operand, spec: Spec) -> Any:
    """The raw array of *value* in the dtype of *spec*; a Python number becomes a 0-d array."""
    if isinstance(value, Tensor):
        return value._data if value._spec is spec else spec.call["astype"](value._data)
    _scalar_fits(name, value, spec.dtype)
    return spec.call["full"]((), value)


def suited(name: str, spec: Spec, kinds: tuple[str, ...] | None = None) -> Spec:
    """*spec*, or that of the default float for integers in floating functions, if *name* is defined for its dtype.

    Raises:
        TypeError: naming the function, the dtype and what it takes.
    """
    dtype = spec.dtype
    allowed = ELEMENTWISE[name] if kinds is None else kinds
    if dtype.kind in allowed or (dtype.is_integer and "integral" in allowed):
        return spec
    if "real floating" in allowed and not ({"integral", "bool"} & set(allowed)) and not dtype.is_complex:
        return spec_of(DEFAULT_FLOAT, spec.device)
    advice = "; convert it first, for example with astype('int64')" if dtype is Dtype.BOOL else ""
    if allowed == ("bool",):
        advice = "; compare it first, for example x != 0"
    elif dtype.is_complex:
        advice = "; take real(), imag() or abs() first"
    elif dtype.is_floating:
        advice = "; convert it first, for example with astype('int64') or x != 0"
    raise TypeError(f"{name}: not defined for {dtype}, only for {' and '.join(allowed)} dtypes{advice}")


def broadcast(name: str, *shapes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape to which *shapes* broadcast (array API standard, broadcasting).

    Raises:
        ValueError: naming the function, all shapes and the axis where they clash.
    """
    ndim = max(map(len, shapes), default=0)
    result = []
    for axis in range(-ndim, 0):
        length = 1
        for shape in shapes:
            here = shape[axis] if len(shape) >= -axis else 1
            if here != 1 and length not in (1, here):
                listed = " and ".join(map(str, shapes))
                raise ValueError(
                    f"{name}: shapes {listed} do not broadcast: axis {axis} has lengths {length} and {here}, "
                    "which must be equal or one of them 1"
                )
            length = here if length == 1 else length
        result.append(length)
    return tuple(result)


def unary(name: str, doc: str) -> Unary:
    """The elementwise function *name* of one tensor."""

    def function(x: Tensor, /) -> Tensor:
        if x.__class__ is not Tensor:
            x = tensor(name, x)
        spec = x._spec
        direct = spec.direct[name]
        if direct is not None:
            result: Tensor = _new(Tensor)
            result._data = direct(x._data)
            result._spec = spec
            return result
        spec = suited(name, spec)
        return wrap(spec.call[name](spec.call["astype"](x._data)), spec)

    return _named(function, name, doc)


def predicate(name: str, doc: str) -> Unary:
    """The elementwise function *name* of one tensor whose result is boolean."""

    def function(x: Tensor, /) -> Tensor:
        if x.__class__ is not Tensor:
            x = tensor(name, x)
        spec = suited(name, x._spec)
        return wrap(spec.call[name](raw(name, x, spec)), spec_of(Dtype.BOOL, spec.device))

    return _named(function, name, doc)


def real_valued(name: str, doc: str) -> Unary:
    """The elementwise function *name* of one tensor whose result is real also for complex numbers."""

    def function(x: Tensor, /) -> Tensor:
        if x.__class__ is not Tensor:
            x = tensor(name, x)
        spec = suited(name, x._spec)
        return wrap(spec.call[name](raw(name, x, spec)), spec_of(spec.dtype.real, spec.device))

    return _named(function, name, doc)


def binary(name: str, doc: str) -> Binary:
    """The elementwise function *name* of two operands, with its result in their common dtype (or bool)."""

    def function(x1: Operand, x2: Operand, /) -> Tensor:
        if x1.__class__ is Tensor and x2.__class__ is Tensor and x1._spec is x2._spec:
            entry = x1._spec.operators[name]
            if entry is not None:
                try:
                    return wrap(entry[0](x1._data, x2._data), entry[1])
                except ValueError:
                    broadcast(name, x1.shape, x2.shape)  # says what is wrong
                    raise
        if name in COMPARISONS and (x1.__class__ is int or x2.__class__ is int):
            certain = _certain(name, x1, x2)
            if certain is not None:
                return certain
        spec, (left, right) = unify(name, x1, x2)
        if not accepts(name, spec.dtype):
            spec = suited(name, spec)
            left, right = spec.call["astype"](left), spec.call["astype"](right)
        broadcast(name, tuple(left.shape), tuple(right.shape))
        if name == "pow" and spec.dtype.kind == "signed integer":
            _no_negative_powers(spec, right)
        return wrap(spec.call[name](left, right), spec_of(Dtype.BOOL, spec.device) if name in COMPARISONS else spec)

    return _named(function, name, doc)


def _no_negative_powers(spec: Spec, exponent: Any) -> None:
    if bool((wrap(exponent, spec) < 0).any()):
        raise ValueError(
            "pow: integers have no negative powers; convert the base first, for example with astype('float32')"
        )


def _certain(name: str, x1: Operand, x2: Operand) -> Tensor | None:
    """A comparison of an integer tensor with a Python integer outside its dtype: every element compares alike."""
    for x, number, reflected in ((x1, x2, False), (x2, x1, True)):
        if isinstance(x, Tensor) and x.dtype.is_integer and number.__class__ is int:
            low, high = integer_limits(x.dtype)
            if low <= number <= high:
                return None
            sides = (number, 0) if reflected else (0, number)
            spec = spec_of(Dtype.BOOL, x.device)
            return wrap(spec.call["full"](x.shape, _COMPARE[name](*sides)), spec)
    return None


def _named(function: _F, name: str, doc: str) -> _F:
    function.__name__ = function.__qualname__ = name
    function.__module__ = "ferrum_array"
    function.__doc__ = doc
    return function


def integer(name: str, what: str, value: Any) -> int:
    """*value* as a Python integer.

    Raises:
        TypeError: naming the function and the argument, if it is not an integer.
    """
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: {what} must be an integer, got {type(value).__name__} {value!r:.60}") from None


def integers(name: str, what: str, values: Any) -> tuple[int, ...]:
    """*values*, an integer or a sequence of them, as a tuple of Python integers.

    Raises:
        TypeError: naming the function and the argument, if one is not an integer.
    """
    if values.__class__ is tuple and all(one.__class__ is int for one in values):
        return values
    return tuple(integer(name, what, one) for one in (values if isinstance(values, (tuple, list)) else (values,)))


def normalize_axis(name: str, axis: int, ndim: int) -> int:
    """*axis* counted from the front.

    Raises:
        IndexError: if the tensor has no such axis. TypeError: if it is not an integer.
    """
    number = axis if axis.__class__ is int else integer(name, "an axis", axis)
    if not -ndim <= number < ndim:
        raise IndexError(f"{name}: axis {number} is out of bounds for a tensor of {ndim} axes")
    return number % ndim


def normalize_axes(name: str, axes: int | Sequence[int] | None, ndim: int) -> tuple[int, ...]:
    """*axes* counted from the front, all axes for None.

    Raises:
        IndexError: for an axis out of bounds. ValueError: for an axis given twice.
    """
    if axes is None:
        return tuple(range(ndim))
    if axes.__class__ is int and -ndim <= axes < ndim:
        return (axes % ndim,)
    chosen = tuple(normalize_axis(name, axis, ndim) for axis in (axes if isinstance(axes, (tuple, list)) else (axes,)))
    if len(set(chosen)) != len(chosen):
        raise ValueError(f"{name}: axes {axes} name an axis twice in a tensor of {ndim} axes")
    return chosen


def shape_tuple(name: str, shape: int | Sequence[int]) -> tuple[int, ...]:
    """*shape* as a tuple of non-negative integers.

    Raises:
        TypeError: for lengths that are no integers. ValueError: for negative or absurdly large ones.
    """
    lengths = integers(name, "a length in the shape", shape)
    size = 1
    for length in lengths:
        if length < 0:
            raise ValueError(f"{name}: negative length {length} in shape {lengths}")
        size *= length or 1
    if size >= 1 << 60:
        raise ValueError(f"{name}: the shape {lengths!s:.60} has more elements than any memory holds")
    return lengths
