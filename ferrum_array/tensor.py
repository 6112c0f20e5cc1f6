"""The Tensor: a handle on an array of a storage library, with its dtype and device. Everything else is a function.

The way of ``a + b``: both have the same Spec, so its operator is called on the two arrays and the result is wrapped.
Whatever is not that plain (promotion, scalars of a higher kind, NumPy operands, errors) goes to the function of the
namespace that has the operator's meaning.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, final

from ferrum_array.device import Device
from ferrum_array.dtype import Dtype
from ferrum_array.interchange import Interchange
from ferrum_array.methods import Axis, Methods, Scalar
from ferrum_array.spec import Spec

__all__ = ["Axis", "Scalar", "Tensor", "wrap"]

_SCALARS = (bool, int, float, complex)
_ROWS = (list, tuple)
_new = object.__new__
_F = TypeVar("_F", bound=Callable[..., Any])
#: Parts of a key that a storage takes as they are.
_PLAIN = frozenset((int, slice, type(None), type(Ellipsis)))


def _namespace() -> Any:
    return sys.modules[__package__]


def _operand(other: object) -> bool:
    """Whether an operator takes *other*; if not, Python asks that. Lists are taken, to be refused in our words."""
    return isinstance(other, (Tensor, *_SCALARS)) or other.__class__ in _ROWS or hasattr(other, "__array_interface__")


def _titled(operate: _F, name: str, doc: str) -> _F:
    operate.__name__ = operate.__qualname__ = name  # what Python's own errors call it
    operate.__doc__ = doc
    return operate


def _operator(name: str, symbol: str) -> Callable[[Tensor, Any], Tensor]:
    """The operator that means the function *name* of the namespace."""

    def operate(self: Tensor, other: Any) -> Any:
        spec = self._spec
        operator = spec.infix[name]
        if operator is not None:
            try:
                if other.__class__ is Tensor:
                    if other._spec is spec:
                        function, kind = operator
                        result = _new(Tensor)
                        result._data = function(self._data, other._data)
                        result._spec = kind
                        return result
                elif other.__class__ in spec.scalars:
                    function, kind = operator
                    result = _new(Tensor)
                    result._data = function(self._data, other)
                    result._spec = kind
                    return result
            except (ValueError, OverflowError):
                return getattr(_namespace(), name)(self, other)  # the long way says what is wrong
        if not _operand(other):
            return NotImplemented
        return getattr(_namespace(), name)(self, other)

    return _titled(operate, name, f"``self {symbol} other``: see :func:`ferrum_array.{name}`.")


def _reflected(name: str, symbol: str) -> Callable[[Tensor, Any], Tensor]:
    def operate(self: Tensor, other: Any) -> Any:
        spec = self._spec
        if other.__class__ in spec.scalars:
            operator = spec.operators[name]
            if operator is not None:
                try:
                    return wrap(operator[0](other, self._data), operator[1])
                except (ValueError, OverflowError):
                    return getattr(_namespace(), name)(other, self)  # the long way says what is wrong
        if not _operand(other):
            return NotImplemented
        return getattr(_namespace(), name)(other, self)

    return _titled(operate, name, f"``other {symbol} self``: see :func:`ferrum_array.{name}`.")


def _in_place(name: str, symbol: str) -> Callable[[Tensor, Any], Tensor]:
    def operate(self: Tensor, other: Any) -> Any:
        if not _operand(other):
            return NotImplemented
        spec = self._spec
        if other.__class__ in spec.scalars or (
            other.__class__ is Tensor and other._spec is spec and other.shape == self.shape
        ):
            write = spec.in_place[name]
            if write is not None and spec.device.backend.exclusive(self):
                write(self._data, other._data if other.__class__ is Tensor else other)
                return self
        result = getattr(_namespace(), name)(self, other)
        if result._spec is not self._spec or result.shape != self.shape:
            raise (TypeError if result._spec is not self._spec else ValueError)(
                f"{symbol}= keeps dtype and shape, but {self._summary()} {symbol} {_describe(other)} is "
                f"{result._summary()}; write x = x {symbol} y instead"
            )
        # The name keeps its tensor, as in NumPy; memory that others can see is left to them.
        self._data = result._data
        return self

    return _titled(
        operate, name, f"``self {symbol}= other``: writes the result into this tensor; no other tensor changes."
    )


def _describe(value: object) -> str:
    return value._summary() if isinstance(value, Tensor) else f"{type(value).__name__} {value!r}"


def _unary(name: str) -> Callable[[Tensor], Tensor]:
    def operate(self: Tensor) -> Any:
        return getattr(_namespace(), name)(self)

    return _titled(operate, name, f"See :func:`ferrum_array.{name}`.")


@final
class Tensor(Interchange, Methods):
    """An n-dimensional array of one :class:`~ferrum_array.Dtype` on one :class:`~ferrum_array.Device`.

    Tensors are made by functions such as :func:`~ferrum_array.asarray`, never by calling the class. They are values:
    writing through one (``t[key] = value``, ``t += 1``) never changes another, also where both share memory. The write
    happens in place if nothing else can see the memory, and on a copy if something can.

    Examples:
        >>> import ferrum_array as fa
        >>> t = fa.asarray([[1, 2], [3, 4]])
        >>> row = t[0]
        >>> t[0, 0] = 9
        >>> t, row
        (Tensor([[9, 2],
                [3, 4]]), Tensor([1, 2]))
    """

    __slots__ = ("__weakref__", "_data", "_spec")

    _data: Any
    _spec: Spec

    def __new__(cls, *args: object, **kwargs: object) -> Tensor:
        raise TypeError("a Tensor is made by a function such as ferrum_array.asarray(obj), not by calling Tensor")

    # What it is.

    @property
    def dtype(self) -> Dtype:
        """The type of the elements."""
        return self._spec.dtype

    @property
    def device(self) -> Device:
        """Where the elements lie."""
        return self._spec.device

    @property
    def shape(self) -> tuple[int, ...]:
        """The length of each axis."""
        shape: tuple[int, ...] = self._data.shape
        return shape

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self._data.shape)

    @property
    def size(self) -> int:
        """The number of elements."""
        size: int = self._data.size
        return size

    @property
    def nbytes(self) -> int:
        """The bytes that the elements take: ``size`` times the dtype's ``bytes_per_elem``."""
        return self.size * self._spec.dtype.bytes_per_elem

    @property
    def itemsize(self) -> int:
        """The bytes of one element."""
        return self._spec.dtype.bytes_per_elem

    def _summary(self) -> str:
        shape = ",".join(map(str, self.shape))
        return f"{self._spec.dtype}[{shape}]" + ("" if self._spec.device.kind == "cpu" else f" on {self._spec.device}")

    def __array_namespace__(self, /, *, api_version: str | None = None) -> Any:
        """The module ``ferrum_array``, for code written against the array API standard.

        Raises:
            ValueError: if *api_version* is not a version of the standard that it implements.
        """
        namespace = _namespace()
        if api_version is not None and api_version not in namespace.API_VERSIONS:
            raise ValueError(
                f"array API version {api_version!r} is not implemented; ferrum_array implements "
                f"{', '.join(namespace.API_VERSIONS)}"
            )
        return namespace

    # Operators: one row each.

    __add__ = _operator("add", "+")
    __sub__ = _operator("subtract", "-")
    __mul__ = _operator("multiply", "*")
    __truediv__ = _operator("divide", "/")
    __floordiv__ = _operator("floor_divide", "//")
    __mod__ = _operator("remainder", "%")
    __pow__ = _operator("pow", "**")
    __and__ = _operator("bitwise_and", "&")
    __or__ = _operator("bitwise_or", "|")
    __xor__ = _operator("bitwise_xor", "^")
    __lshift__ = _operator("bitwise_left_shift", "<<")
    __rshift__ = _operator("bitwise_right_shift", ">>")
    __eq__ = _operator("equal", "==")  # type: ignore[assignment]  # elementwise, by the standard
    __ne__ = _operator("not_equal", "!=")  # type: ignore[assignment]  # elementwise, by the standard
    __lt__ = _operator("less", "<")
    __le__ = _operator("less_equal", "<=")
    __gt__ = _operator("greater", ">")
    __ge__ = _operator("greater_equal", ">=")

    __radd__ = _reflected("add", "+")
    __rsub__ = _reflected("subtract", "-")
    __rmul__ = _reflected("multiply", "*")
    __rtruediv__ = _reflected("divide", "/")
    __rfloordiv__ = _reflected("floor_divide", "//")
    __rmod__ = _reflected("remainder", "%")
    __rpow__ = _reflected("pow", "**")
    __rand__ = _reflected("bitwise_and", "&")
    __ror__ = _reflected("bitwise_or", "|")
    __rxor__ = _reflected("bitwise_xor", "^")
    __rlshift__ = _reflected("bitwise_left_shift", "<<")
    __rrshift__ = _reflected("bitwise_right_shift", ">>")
    __rmatmul__ = _reflected("matmul", "@")

    __iadd__ = _in_place("add", "+")
    __isub__ = _in_place("subtract", "-")
    __imul__ = _in_place("multiply", "*")
    __itruediv__ = _in_place("divide", "/")
    __ifloordiv__ = _in_place("floor_divide", "//")
    __imod__ = _in_place("remainder", "%")
    __ipow__ = _in_place("pow", "**")
    __iand__ = _in_place("bitwise_and", "&")
    __ior__ = _in_place("bitwise_or", "|")
    __ixor__ = _in_place("bitwise_xor", "^")
    __ilshift__ = _in_place("bitwise_left_shift", "<<")
    __irshift__ = _in_place("bitwise_right_shift", ">>")
    __imatmul__ = _in_place("matmul", "@")

    __neg__ = _unary("negative")
    __pos__ = _unary("positive")
    __abs__ = _unary("abs")
    __invert__ = _unary("bitwise_invert")

    __hash__ = None  # type: ignore[assignment]  # tensors are mutable and == is elementwise

    def __matmul__(self, other: Any) -> Tensor:
        """``self @ other``: see :func:`ferrum_array.matmul`."""
        spec = self._spec
        if other.__class__ is Tensor and other._spec is spec and spec.dtype.kind != "bool":
            left, right = self._data, other._data
            if left.ndim == right.ndim == 2 and left.shape[1] == right.shape[0]:
                result = _new(Tensor)
                result._data = spec.call["matmul"](left, right)
                result._spec = spec
                return result
        if isinstance(other, _SCALARS) or not _operand(other):
            return NotImplemented
        product: Tensor = _namespace().matmul(self, other)
        return product

    # Python numbers.

    def item(self, *index: int) -> Scalar:
        """The one element as a Python number, or the element at *index*.

        Raises:
            ValueError: without *index*, if the tensor does not have exactly one element; for too few indices.
        """
        one = self[index] if index else self
        if one.size != 1:
            what = f"index {index} of {self._summary()} names" if index else f"{self._summary()} has"
            raise ValueError(f"item: {what} {one.size} elements, not one; give an index along each axis")
        value: Scalar = one._spec.device.backend.to_host(one._data, copy=None).reshape(()).tolist()
        return value

    def tolist(self) -> Any:
        """The elements as nested lists of Python numbers (a number for a 0-d tensor)."""
        return self._spec.device.backend.to_host(self._data, copy=None).tolist()

    def _scalar(self, wanted: str, *kinds: str) -> Scalar:
        dtype = self._spec.dtype
        if self.size != 1 or (self.ndim and wanted in ("index",)):
            raise (ValueError if wanted == "bool" else TypeError)(
                f"{wanted}(): {self._summary()} has {self.size} elements in {self.ndim} axes; only a tensor of one "
                "element converts to a Python number; "
                + ("use any() or all()" if wanted == "bool" else "take one out by its index, or use tolist()")
            )
        if kinds and dtype.kind not in kinds:
            raise TypeError(f"{wanted}(): a {dtype} tensor does not convert to a Python {wanted}; use astype() first")
        return self.item()

    def __bool__(self) -> bool:
        return bool(self._scalar("bool"))

    def __int__(self) -> int:
        return int(self._scalar("int", "bool", "signed integer", "unsigned integer", "real floating"))  # type: ignore[arg-type]  # not complex

    def __float__(self) -> float:
        return float(self._scalar("float", "bool", "signed integer", "unsigned integer", "real floating"))  # type: ignore[arg-type]  # not complex

    def __complex__(self) -> complex:
        return complex(self._scalar("complex"))

    def __index__(self) -> int:
        return int(self._scalar("index", "signed integer", "unsigned integer"))  # type: ignore[arg-type]  # an integer

    def __round__(self, ndigits: int | None = None) -> Tensor:
        """``round(t)``, elementwise and in the same dtype: :func:`ferrum_array.round`."""
        return self.round(ndigits or 0)

    def __divmod__(self, other: Any) -> tuple[Tensor, Tensor]:
        return self // other, self % other

    def __rdivmod__(self, other: Any) -> tuple[Tensor, Tensor]:
        return other // self, other % self

    # A sequence along the first axis.

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of a 0-d tensor: it has no axis to count along")
        return self.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        if not self.shape:
            raise TypeError("iteration over a 0-d tensor: it has no axis to go along; use item()")
        spec, part = self._spec, self._spec.call["getitem"]
        return (wrap(part(self._data, i), spec) for i in range(self.shape[0]))

    def __contains__(self, value: object) -> bool:
        if not _operand(value):
            return False
        return bool(_namespace().any(self == value))

    def __getitem__(self, key: Any, /) -> Tensor:
        spec = self._spec
        if (
            key.__class__ is slice
            or key.__class__ is int
            or (key.__class__ is tuple and _PLAIN.issuperset(map(type, key)))
        ):
            result = _new(Tensor)
            try:
                result._data = spec.call["getitem"](self._data, key)
            except IndexError:
                _namespace().indexing.raw_key(self, key)  # names the tensor, if it is the number of indices
                raise
            result._spec = spec
            return result
        return wrap(spec.call["getitem"](self._data, _namespace().indexing.raw_key(self, key)), spec)

    def __setitem__(self, key: Any, value: Any, /) -> None:
        spec = self._spec
        if value.__class__ in spec.scalars and (
            key.__class__ is int
            or key.__class__ is slice
            or (key.__class__ is tuple and _PLAIN.issuperset(map(type, key)))
        ):
            call = spec.call
            try:
                data = call["full"]((), value)
                if not spec.device.backend.exclusive(self):
                    self._data = call["copy"](self._data)
                call["setitem"](self._data, key, data)
            except (IndexError, OverflowError):
                _namespace().indexing.write(self, key, value)  # the long way says what is wrong
            return
        _namespace().indexing.write(self, key, value)


def wrap(data: Any, spec: Spec) -> Tensor:
    """The Tensor that holds the raw array *data*, whose dtype and device are those of *spec*."""
    result: Tensor = _new(Tensor)
    result._data = data
    result._spec = spec
    return result
