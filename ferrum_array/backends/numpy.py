"""NumPy storage, on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import getitem
from sys import getrefcount
from typing import Any

import numpy as np

from ferrum_array.backends import float16, host
from ferrum_array.backends.base import Holder, Raw, Recording
from ferrum_array.backends.dlpack import Integers, as_bfloat16
from ferrum_array.backends.shared import MOVES, SharedBackend
from ferrum_array.dtype import Dtype
from ferrum_array.spec import ELEMENTWISE

__all__ = ["NumpyBackend", "indices", "make"]

_CPU = 1  # DLPack's kDLCPU

#: Functions of one and of two arrays.
_TWO = frozenset(
    ("add", "subtract", "multiply", "divide", "floor_divide", "remainder", "pow", "atan2", "copysign", "hypot")
    + ("logaddexp", "maximum", "minimum", "nextafter", "less", "less_equal", "greater", "greater_equal", "equal")
    + ("not_equal", "bitwise_and", "bitwise_or", "bitwise_xor", "bitwise_left_shift", "bitwise_right_shift")
    + ("logical_and", "logical_or", "logical_xor", "matmul", "vecdot")
)
_ONE = frozenset(ELEMENTWISE) - _TWO - {"clip"} | {"total", "astype"}

_REDUCE: dict[str, Any] = {
    name: getattr(np, name).reduce for name in ("add", "multiply", "maximum", "minimum", "logical_and", "logical_or")
}

_WORD = 1 << 63  # int64 holds -_WORD to _WORD - 1
_LONG = 1 << 10  # elements from which a look at all of them costs less than a stable sort

#: The dtypes that BLAS knows, by NumPy's letters.
_BLAS = frozenset("fdFD")


class NumpyBackend(SharedBackend):
    """NumPy's functions, with the standard's special cases where NumPy has others."""

    library = "NumPy"
    device_name = "cpu"
    records = True
    checks_indices = True
    array_type = np.ndarray
    dtypes = frozenset(Dtype.all())
    xp = np

    def raw_dtype(self, dtype: Dtype) -> Any:
        return host.raw_dtype(dtype)

    def implement(self, name: str, dtype: Dtype) -> Callable[..., Any]:
        if self.raw_dtype(dtype).char in _BLAS and name in ("matmul", "total"):
            return self._quick(name)
        return super().implement(name, dtype)

    @staticmethod
    def _quick(name: str) -> Callable[..., Any]:
        """Products and whole sums in one function each: small ones are on the way of every interactive user."""
        variable, ignore = host.QUIET
        set_, reset, add_reduce, matmul, asarray = variable.set, variable.reset, np.add.reduce, np.matmul, np.asarray

        def total(x: Any) -> Any:
            token = set_(ignore)
            try:
                return add_reduce(x, None, out=...)  # an array, never a NumPy scalar
            finally:
                reset(token)

        def product(x1: Any, x2: Any) -> Any:
            token = set_(ignore)
            try:
                # dot hands 2-D operands to BLAS as matmul does, at half the cost of a call
                return x1.dot(x2) if x1.ndim == x2.ndim == 2 else asarray(matmul(x1, x2))
            finally:
                reset(token)

        return total if name == "total" else product

    def cast(self, x: Raw, raw: Any) -> Raw:
        if x.__class__ is np.ndarray:
            if raw.char == "f" and x.dtype.char == "e":
                return float16.widen(x)
            if raw.char == "e" and x.dtype.char == "f":
                return float16.narrow(x)
        return x.astype(raw)

    def finish(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        # One closure for each number of operands: this is on the way of every operation.
        variable, ignore = host.QUIET
        set_, reset, ndarray, asarray = variable.set, variable.reset, np.ndarray, np.asarray

        def unary(x: Any) -> Any:
            token = set_(ignore)
            try:
                result = function(x)
            finally:
                reset(token)
            return result if result.__class__ is ndarray else asarray(result)

        def binary(x1: Any, x2: Any) -> Any:
            token = set_(ignore)
            try:
                result = function(x1, x2)
            finally:
                reset(token)
            return result if result.__class__ is ndarray else asarray(result)

        def several(*args: Any) -> Any:
            token = set_(ignore)
            try:
                result = function(*args)
            finally:
                reset(token)
            if result.__class__ is ndarray or result is None:
                return result
            return tuple(map(asarray, result)) if isinstance(result, tuple) else asarray(result)

        if name in MOVES and name not in ("astype", "full"):  # these round, and may overflow
            return self._silent(function)
        return unary if name in _ONE else binary if name in _TWO else several

    def _silent(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """*function*, which never warns, returning arrays."""
        ndarray, asarray = np.ndarray, np.asarray

        def several(*args: Any) -> Any:
            result = function(*args)
            return result if result.__class__ is ndarray or result is None else asarray(result)

        def pair(x1: Any, x2: Any) -> Any:
            result = function(x1, x2)
            return result if result.__class__ is ndarray else asarray(result)

        return pair if function is getitem or isinstance(function, np.ufunc) else several

    def fast_operator(self, name: str, dtype: Dtype) -> Callable[..., Any]:
        if name == "pow" and dtype.is_floating:
            return self._power(dtype)
        function = self._function(name)
        never_warns = dtype.is_integer and name not in ("floor_divide", "remainder", "pow", "divide")
        return self._silent(function) if never_warns and isinstance(function, np.ufunc) else self.implement(name, dtype)

    def _power(self, dtype: Dtype) -> Callable[..., Any]:
        """Powers, of which the most frequent, ``x ** 2``, is a product: several times as fast."""
        power, square, ndarray = self.implement("pow", dtype), self.implement("square", dtype), np.ndarray

        def raised(x1: Any, x2: Any) -> Any:
            return square(x1) if x2.__class__ is not ndarray and x2 == 2 else power(x1, x2)

        return raised

    def in_place_operator(self, name: str, dtype: Dtype) -> Callable[..., Any] | None:
        function = self._function(name)
        if dtype is Dtype.BF16 or not isinstance(function, np.ufunc):
            return None
        return self.finish("", lambda target, other: function(target, other, out=target))

    def scalars(self, dtype: Dtype) -> frozenset[type]:
        if dtype.is_floating and dtype is not Dtype.BF16:
            return frozenset((float, int))
        if dtype.is_complex:
            return frozenset((complex, float, int))
        return frozenset((int,)) if dtype.is_integer else frozenset()

    def dtype_of(self, raw: Raw) -> Dtype:
        return host.dtype_of(raw)

    def adopt(self, obj: Any) -> Raw:
        return host.array(obj, None)[...]  # an array object of our own: nobody else can reshape it

    def from_host(self, array: Any, *, copy: bool | None) -> Raw:
        return array.copy(order="C") if copy else array[...]

    def to_host(self, raw: Raw, *, copy: bool | None) -> Any:
        return raw.copy(order="C") if copy else raw[...]

    def exclusive(self, holder: Holder) -> bool:
        # Every view keeps its base alive, every export keeps the array alive: reference counts tell who can see it.
        raw = holder._data
        if not raw.flags.writeable:
            return False
        base = raw.base
        if base is not None and (base.__class__ is not np.ndarray or not base.flags.owndata):
            return False  # memory of another library
        del base, raw
        if getrefcount(holder._data) > _ALONE:
            return False
        return holder._data.base is None or getrefcount(holder._data.base) <= _ALONE

    def shares_memory(self, raw: Raw, other: Raw) -> bool:
        return bool(np.may_share_memory(raw, other))

    def synchronize(self, raws: Sequence[Raw] = ()) -> None:
        """NumPy computes at once: there is nothing to wait for."""

    def dlpack_device(self, raw: Raw) -> tuple[int, int]:
        return (_CPU, 0)

    def to_dlpack(self, raw: Raw, *, stream: Any, max_version: tuple[int, int] | None, copy: bool | None) -> Any:
        if stream is not None:
            raise ValueError(f"__dlpack__: the CPU has no streams, got stream={stream!r}")
        if not raw.flags.writeable and (max_version is None or max_version < (1, 0)):
            # the older protocol cannot say "read-only"
            if copy is False:
                raise BufferError("__dlpack__: read-only memory needs max_version >= (1, 0) or a copy")
            copy = True
        if host.dtype_of(raw) is Dtype.BF16:
            return as_bfloat16((raw.copy() if copy else raw).view(np.int16).__dlpack__(max_version=max_version))
        return (raw.copy() if copy else raw[...]).__dlpack__(max_version=max_version)

    def from_dlpack(self, obj: Any, *, copy: bool | None) -> Raw:
        source = Integers(obj)
        try:
            raw = np.from_dlpack(source, copy=copy)
        except (RuntimeError, BufferError) as error:  # the class depends on NumPy's version
            raise BufferError(
                f"from_dlpack: NumPy cannot take this memory of {type(obj).__name__} ({error}); copy it to the CPU "
                "first, or convert it to a dtype of the standard"
            ) from error
        return self.adopt(raw.view(host.bfloat16()) if source.changed else raw)

    def record(
        self, run: Callable[[Sequence[Raw]], Sequence[Raw]], inputs: Sequence[Raw], state: Sequence[Holder]
    ) -> Recording | None:
        from ferrum_array.backends.numpy_graphs import HostGraph  # which needs all dtypes of this device

        return HostGraph(run, inputs, state)

    # Quicker ways to the same.

    def make_full(self, raw: Any, dtype: Dtype) -> Callable[..., Raw]:
        return lambda shape, value: np.full(shape, value, raw) if shape else np.array(value, raw)

    def make_arange(self, raw: Any, dtype: Dtype) -> Callable[..., Raw]:
        several = super().make_arange(raw, dtype)

        def integers(start: int, step: int, count: int) -> Raw:
            stop = start + step * count
            if -_WORD <= start < _WORD and -_WORD <= stop < _WORD and -_WORD <= step < _WORD:
                return np.arange(start, stop, step, dtype=np.int64).astype(raw, copy=False)
            return several(start, step, count)

        return integers if dtype.is_integer else several

    fn_getitem: Any = staticmethod(getitem)

    def fn_clip(self, x: Raw, lower: Raw | None, upper: Raw | None) -> Raw:
        return x.copy() if lower is upper is None else np.clip(x, lower, upper)

    def fn_count_nonzero(self, x: Raw, axes: tuple[int, ...], keepdims: bool) -> Raw:
        return (
            np.count_nonzero(x) if len(axes) == x.ndim and not keepdims else super().fn_count_nonzero(x, axes, keepdims)
        )

    def fn_sort(self, x: Raw, axis: int, descending: bool) -> Raw:
        # NumPy's vectorised sort, four times as fast, is not stable: that is seen in zeros of both signs and in the
        # bits of NaN alone. Short and 16-bit arrays are sorted as quickly by the stable one.
        if x.size < _LONG or x.dtype.itemsize < 4 or x.dtype.kind not in "iuf":
            return super().fn_sort(x, axis, descending)
        if x.dtype.kind == "f" and bool(((x == 0) & np.signbit(x) | (x != x)).any()):
            return super().fn_sort(x, axis, descending)
        result = np.sort(x, axis=axis)
        return np.flip(result, axis=axis) if descending else result

    # The ufuncs' own reductions: NumPy's functions check again what is checked, for a microsecond.

    def fn_sum(self, x: Raw, axes: tuple[int, ...], keepdims: bool) -> Raw:
        return _REDUCE["add"](x, axes, x.dtype, None, keepdims)

    def fn_prod(self, x: Raw, axes: tuple[int, ...], keepdims: bool) -> Raw:
        return _REDUCE["multiply"](x, axes, x.dtype, None, keepdims)

    def fn_max(self, x: Raw, axes: tuple[int, ...], keepdims: bool) -> Raw:
        return _REDUCE["maximum"](x, axes, None, None, keepdims)

    def fn_min(self, x: Raw, axes: tuple[int, ...], keepdims: bool) -> Raw:
        return _REDUCE["minimum"](x, axes, None, None, keepdims)

    def fn_all(self, x: Raw, axes: tuple[int, ...], keepdims: bool) -> Raw:
        return _REDUCE["logical_and"](x, axes, None, None, keepdims)

    def fn_any(self, x: Raw, axes: tuple[int, ...], keepdims: bool) -> Raw:
        return _REDUCE["logical_or"](x, axes, None, None, keepdims)

    # Where NumPy differs from the standard's special cases.

    def fn_floor_divide(self, x1: Raw, x2: Raw) -> Raw:
        result = np.floor_divide(x1, x2)
        if result.dtype.kind != "f":
            return result
        # NumPy follows Python's divmod (inf // 2 is nan, -1 // inf is -1); the standard rounds the quotient down
        x2 = np.asarray(x2, result.dtype)  # a Python number may be infinite in this dtype
        unusual = ~np.isfinite(result) | np.isinf(x2)
        return np.where(unusual, np.floor(np.divide(x1, x2)), result) if np.any(unusual) else result

    def fn_expm1(self, x: Raw) -> Raw:
        result = np.expm1(x)
        if result.dtype.kind != "c":
            return result
        result = np.asarray(result)
        result.real += 0.0  # -0 + 0j goes to 0 + 0j
        unusual = ~np.isfinite(x) | ~np.isfinite(result)
        # NumPy's formula makes NaN of infinities; the exponential itself has the right limits
        return np.where(unusual, np.exp(x) - 1, result) if np.any(unusual) else result

    def fn_tanh(self, x: Raw) -> Raw:
        result = np.tanh(x)
        if result.dtype.kind != "c" or not np.any(np.isinf(x.real)):
            return result
        # C gives the limit's zero the sign of sin(2b), the standard that of b
        limit = np.empty(x.shape, result.dtype)
        limit.real, limit.imag = np.sign(x.real), np.copysign(0.0, x.imag)
        return np.where(np.isinf(x.real) & np.isfinite(x.imag), limit, result)


class _Probe:
    __slots__ = ("_data",)
    _data: Raw


def _alone() -> int:
    """What ``getrefcount(holder._data)`` says when only the holder has the array, in this Python."""
    probe = _Probe()
    probe._data = np.empty(1)
    return getrefcount(probe._data)


_ALONE = _alone()


def make(index: int | str) -> NumpyBackend:
    """The backend of the CPU."""
    return NumpyBackend()


def indices() -> tuple[int | str, ...]:
    """NumPy has one device."""
    return (0,)
