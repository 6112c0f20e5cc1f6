"""What all tensors of one dtype on one device have in common, interned: the pair, and the functions for it.

A tensor carries one Spec instead of a dtype and a device, so that the way of ``a + b`` is one identity test, one look
up and one call. This is the clever place of the package; everything else is plain.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import RLock
from typing import Any, final

from ferrum_array.device import Device
from ferrum_array.dtype import Dtype

__all__ = ["COMPARISONS", "ELEMENTWISE", "Spec", "accepts", "spec_of"]

_REAL = ("integral", "real floating")
_NUMERIC = (*_REAL, "complex floating")
_FLOATING = ("real floating", "complex floating")
_BITS = ("bool", "integral")
_ALL = ("bool", *_NUMERIC)

#: Which kinds of dtype each elementwise function takes (array API standard 2025.12). Where integers are missing from
#: a floating function they are first converted to the default floating dtype; everything else is refused.
ELEMENTWISE: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("add", "subtract", "multiply", "pow", "negative", "positive", "abs", "square", "sign"), _NUMERIC),
    **dict.fromkeys(("divide", "exp", "expm1", "log", "log1p", "log2", "log10", "sqrt", "reciprocal"), _FLOATING),
    **dict.fromkeys(("sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh"), _FLOATING),
    **dict.fromkeys(("asinh", "acosh", "atanh"), _FLOATING),
    **dict.fromkeys(("atan2", "copysign", "hypot", "logaddexp", "nextafter", "signbit"), ("real floating",)),
    **dict.fromkeys(("floor_divide", "remainder", "maximum", "minimum", "floor", "ceil", "trunc"), _REAL),
    **dict.fromkeys(("less", "less_equal", "greater", "greater_equal", "clip"), _REAL),
    **dict.fromkeys(("round", "real", "isfinite", "isinf", "isnan"), _NUMERIC),
    "conj": _NUMERIC,
    "imag": ("complex floating",),
    **dict.fromkeys(("equal", "not_equal"), _ALL),
    **dict.fromkeys(("bitwise_and", "bitwise_or", "bitwise_xor", "bitwise_invert"), _BITS),
    **dict.fromkeys(("bitwise_left_shift", "bitwise_right_shift"), ("integral",)),
    **dict.fromkeys(("logical_and", "logical_or", "logical_xor", "logical_not"), ("bool",)),
}

#: Elementwise functions of two operands whose result is boolean.
COMPARISONS = frozenset(("equal", "not_equal", "less", "less_equal", "greater", "greater_equal"))


#: The functions that are operators of a tensor.
_INFIX = (
    *("add", "subtract", "multiply", "divide", "floor_divide", "remainder", "pow", "bitwise_and", "bitwise_or"),
    *("bitwise_xor", "bitwise_left_shift", "bitwise_right_shift", *sorted(COMPARISONS)),
)


def accepts(name: str, dtype: Dtype) -> bool:
    """Whether the elementwise function *name* is defined for *dtype* as it is."""
    kinds = ELEMENTWISE[name]
    return dtype.kind in kinds or (dtype.is_integer and "integral" in kinds)


class _Calls(dict[str, Callable[..., Any]]):
    """Raw functions by name, each asked of the backend once."""

    __slots__ = ("_spec",)

    def __init__(self, spec: Spec) -> None:
        self._spec = spec

    def __missing__(self, name: str) -> Callable[..., Any]:
        function = self[name] = self._spec.device.backend.implement(name, self._spec.dtype)
        return function


class _Operators(dict[str, tuple[Callable[..., Any], "Spec"] | None]):
    """Raw functions of two tensors with the Spec of their result, or None where the long way must be taken."""

    __slots__ = ("_spec",)

    def __init__(self, spec: Spec) -> None:
        self._spec = spec

    def __missing__(self, name: str) -> tuple[Callable[..., Any], Spec] | None:
        spec = self._spec
        entry = None
        # integer powers are looked at first: negative ones must be refused
        if accepts(name, spec.dtype) and not (name == "pow" and spec.dtype.is_integer):
            function = spec.device.backend.fast_operator(name, spec.dtype)
            truth = spec if spec.dtype is Dtype.BOOL else spec_of(Dtype.BOOL, spec.device)
            entry = function, truth if name in COMPARISONS else spec
        self[name] = entry
        return entry


class _Direct(dict[str, Callable[..., Any] | None]):
    """Raw functions of one tensor whose result has its dtype, or None where the function does not take that dtype."""

    __slots__ = ("_call", "_dtype")

    def __init__(self, spec: Spec) -> None:
        self._dtype, self._call = spec.dtype, spec.call

    def __missing__(self, name: str) -> Callable[..., Any] | None:
        dtype = self._dtype
        fits = (dtype.is_floating or dtype.is_complex) if name == "total" else accepts(name, dtype)
        function = self[name] = self._call[name] if fits else None
        return function


class _InPlace(dict[str, Callable[..., Any] | None]):
    """Functions that write ``target op other`` into their target, where the library has one and the result fits."""

    __slots__ = ("_spec",)

    def __init__(self, spec: Spec) -> None:
        self._spec = spec

    def __missing__(self, name: str) -> Callable[..., Any] | None:
        spec = self._spec
        plain = spec.operators[name] is not None
        function = self[name] = spec.device.backend.in_place_operator(name, spec.dtype) if plain else None
        return function


@final
class Spec:
    """The dtype and device of a tensor, with the storage library's functions for them.

    ``call[name]`` is the raw function. ``operators[name]`` is that of two operands with the Spec of its result, and
    ``direct[name]`` that of one whose result has the same Spec; ``in_place[name]`` writes into its first operand. None
    says that the long way must be taken. While a function is captured on the CPU other tables stand in the place of
    these, which write down what is called. ``infix`` repeats the operators that have symbols in a plain dict, which
    Python reads quicker. ``scalars`` are the Python types that operators take as they are.
    """

    __slots__ = (
        "__weakref__",
        "array_type",
        "call",
        "device",
        "direct",
        "dtype",
        "in_place",
        "infix",
        "operators",
        "scalars",
    )

    def __init__(self, dtype: Dtype, device: Device) -> None:
        self.dtype = dtype
        self.device = device
        self.call: dict[str, Callable[..., Any]] = _Calls(self)
        self.operators: dict[str, tuple[Callable[..., Any], Spec] | None] = _Operators(self)
        self.infix = {name: self.operators[name] for name in _INFIX}
        self.direct: dict[str, Callable[..., Any] | None] = _Direct(self)
        self.in_place: dict[str, Callable[..., Any] | None] = _InPlace(self)
        backend = device.backend
        self.array_type = backend.array_type
        self.scalars = backend.scalars(dtype)

    def __repr__(self) -> str:
        return f"Spec({self.dtype}, {self.device})"


_specs: dict[tuple[Dtype, Device], Spec] = {}
_making = RLock()  # making one Spec may make that of bool first


def spec_of(dtype: Dtype, device: Device) -> Spec:
    """The one Spec of *dtype* on *device*.

    Raises:
        TypeError: if the device has no such dtype; the message lists those that it has.
    """
    spec = _specs.get((dtype, device))
    if spec is None:
        if not device.supports(dtype):
            names = ", ".join(d.standard_name for d in Dtype.all() if device.supports(d))
            raise TypeError(
                f"device {device} ({device.backend.library}) has no {dtype}; it has {names}. "
                "Convert to one of these, or keep this tensor on device 'cpu'"
            )
        with _making:
            spec = _specs.get((dtype, device)) or Spec(dtype, device)
            _specs[dtype, device] = spec
    return spec
