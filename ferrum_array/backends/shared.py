"""The body that NumPy and CuPy share: the standard's raw functions in terms of a NumPy-like namespace ``xp``.

A function is looked up in this order: the method ``fn_NAME`` of the backend (here, or in the fix table of a storage),
then ``xp`` under NumPy's own name. 16-bit floats go through float32 wherever NumPy would accumulate in 16 bits or
leak another dtype: each result is the float32 result rounded once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ferrum_array.backends.base import Backend, Raw
from ferrum_array.dtype import Dtype

__all__ = ["MOVES", "SharedBackend"]

#: the standard's names -> those of NumPy and CuPy, where they differ
_NUMPY_NAMES = {
    "acos": "arccos",
    "acosh": "arccosh",
    "asin": "arcsin",
    "asinh": "arcsinh",
    "atan": "arctan",
    "atan2": "arctan2",
    "atanh": "arctanh",
    "bitwise_invert": "invert",
    "bitwise_left_shift": "left_shift",
    "bitwise_right_shift": "right_shift",
    "concat": "concatenate",
    "permute_dims": "transpose",
    "pow": "power",
    **{name: f"linalg.{name}" for name in ("inv", "det", "solve", "eigvals")},
}

#: Functions that only move elements: right for every dtype as they are.
MOVES = frozenset(
    ("reshape", "broadcast_to", "permute_dims", "concat", "flip", "roll", "tril", "triu", "diagonal", "copy", "take")
    + ("take_along_axis", "repeat", "getitem", "setitem", "where", "full", "empty", "astype", "eye", "bitcast")
)

#: Functions that NumPy computes in float32 for float16 operands by itself, or exactly; the rest are widened by us.
_F16_NATIVE = frozenset(
    ("add", "subtract", "multiply", "divide", "pow", "negative", "positive", "abs", "square", "sign", "exp", "expm1")
    + ("log", "log1p", "log2", "log10", "sqrt", "reciprocal", "sin", "cos", "tan", "asin", "acos", "atan", "sinh")
    + ("cosh", "tanh", "asinh", "acosh", "atanh", "atan2", "copysign", "hypot", "nextafter", "signbit", "remainder")
    + ("maximum", "minimum", "floor", "ceil", "trunc", "less", "less_equal", "greater", "greater_equal", "clip")
    + ("round", "real", "isfinite", "isinf", "isnan", "conj", "equal", "not_equal", "max", "min", "all", "any")
    + ("count_nonzero", "argmax", "argmin", "sort", "argsort", "searchsorted", "nonzero", "unique_all", "floor_divide")
    + ("logaddexp",)
)

#: The same for bfloat16, which the libraries know only through ``ml_dtypes``.
_BF16_NATIVE = frozenset(("nextafter", "copysign", "signbit", "negative", "positive", "abs"))


class SharedBackend(Backend):
    """A backend whose library has NumPy's functions."""

    xp: Any

    def raw_dtype(self, dtype: Dtype) -> Any:
        """The library's dtype object for *dtype*."""
        raise NotImplementedError

    def cast(self, x: Raw, raw: Any) -> Raw:
        """*x* in another dtype of the library."""
        return x.astype(raw)

    def finish(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """*function*, returning arrays (not scalars of the library), and silent about infinities and NaN."""
        raise NotImplementedError

    def implement(self, name: str, dtype: Dtype) -> Callable[..., Any]:
        maker = getattr(self, f"make_{name}", None)
        if maker is not None:  # the function depends on the dtype that it makes
            return self.finish(name, maker(self.raw_dtype(dtype), dtype))
        function = self._function(name)
        if name in MOVES:
            return self.finish(name, function)
        native = {Dtype.F16: _F16_NATIVE, Dtype.BF16: _BF16_NATIVE}.get(dtype)
        if native is not None and name not in native:
            function = self._widened(function, self.raw_dtype(dtype))
        return self.finish(name, function)

    def _function(self, name: str) -> Callable[..., Any]:
        own = getattr(self, f"fn_{name}", None)
        if own is not None:
            return own  # type: ignore[no-any-return]  # a bound method
        found: Any = self.xp
        for part in _NUMPY_NAMES.get(name, name).split("."):
            found = getattr(found, part)
        return found  # type: ignore[no-any-return]  # a function of the library

    def _widened(self, function: Callable[..., Any], narrow: Any) -> Callable[..., Any]:
        """*function* computed in float32 for operands of the 16-bit dtype *narrow*, its results rounded back."""
        array_type: Any = self.array_type
        wide, cast = self.raw_dtype(Dtype.F32), self.cast

        def widen(value: Any) -> Any:
            if isinstance(value, list):
                return [widen(one) for one in value]
            return cast(value, wide) if isinstance(value, array_type) and value.dtype == narrow else value

        def round_back(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(round_back(one) for one in value)
            return cast(value, narrow) if getattr(value, "dtype", None) == wide else value

        def call(*args: Any) -> Any:
            return round_back(function(*map(widen, args)))

        return call

    # Making arrays of a dtype.

    def make_astype(self, raw: Any, dtype: Dtype) -> Callable[..., Raw]:
        return lambda x: self.cast(x, raw)

    def make_bitcast(self, raw: Any, dtype: Dtype) -> Callable[..., Raw]:
        # where elements become larger or smaller, those of the last axis must lie side by side
        contiguous, size = self.xp.ascontiguousarray, raw.itemsize
        return lambda x: (x if x.dtype.itemsize == size else contiguous(x)).view(raw)

    def make_full(self, raw: Any, dtype: Dtype) -> Callable[..., Raw]:
        return lambda shape, value: self.xp.full(shape, value, dtype=raw)

    def make_empty(self, raw: Any, dtype: Dtype) -> Callable[..., Raw]:
        return lambda shape: self.xp.empty(shape, dtype=raw)

    def make_eye(self, raw: Any, dtype: Dtype) -> Callable[..., Raw]:
        return lambda rows, columns, k: self.xp.eye(rows, columns, k, dtype=raw)

    def make_arange(self, raw: Any, dtype: Dtype) -> Callable[..., Raw]:
        if dtype.is_integer:

            def integers(start: int, step: int, count: int) -> Raw:
                wide = self.xp.arange(count, dtype="uint64")  # modulo 2**64, so negative steps are right too
                return (wide * self.xp.uint64(step % (1 << 64)) + self.xp.uint64(start % (1 << 64))).astype(raw)

            return integers
        return lambda start, step, count: (self.xp.arange(count, dtype="float64") * step + start).astype(raw)

    def make_linspace(self, raw: Any, dtype: Dtype) -> Callable[..., Raw]:
        wide = "complex128" if dtype.is_complex else "float64"
        return lambda a, b, num, endpoint: self.xp.linspace(a, b, num, endpoint=endpoint, dtype=wide).astype(raw)

    # Elementwise.

    def fn_clip(self, x: Raw, lower: Raw | None, upper: Raw | None) -> Raw:
        x = x if lower is None else self.xp.maximum(x, lower)
        return x.copy() if lower is upper is None else x if upper is None else self.xp.minimum(x, upper)

    def fn_real(self, x: Raw) -> Raw:
        return x.real

    def fn_imag(self, x: Raw) -> Raw:
        return x.imag

    def fn_view_real(self, x: Raw) -> Raw:
        return self.xp.stack([x.real, x.imag], axis=-1)

    # Reductions.

    def fn_total(self, x: Raw) -> Raw:
        return self.xp.add.reduce(x, axis=None)

    def fn_sum(self, x: Raw, axes: tuple[int, ...], keepdims: bool) -> Raw:
        return self.xp.sum(x, axis=axes, keepdims=keepdims, dtype=x.dtype)

    def fn_prod(self, x: Raw, axes: tuple[int, ...], keepdims: bool) -> Raw:
        return self.xp.prod(x, axis=axes, keepdims=keepdims, dtype=x.dtype)

    def fn_max(self, x: Raw, axes: tuple[int, ...], keepdims: bool) -> Raw:
        return self.xp.max(x, axis=axes, keepdims=keepdims)

    def fn_min(self, x: Raw, axes: tuple[int, ...], keepdims: bool) -> Raw:
        return self.xp.min(x, axis=axes, keepdims=keepdims)

    def fn_all(self, x: Raw, axes: tuple[int, ...], keepdims: bool) -> Raw:
        return self.xp.all(x != 0, axis=axes, keepdims=keepdims)

    def fn_any(self, x: Raw, axes: tuple[int, ...], keepdims: bool) -> Raw:
        return self.xp.any(x != 0, axis=axes, keepdims=keepdims)

    def fn_count_nonzero(self, x: Raw, axes: tuple[int, ...], keepdims: bool) -> Raw:
        return self.xp.sum(x != 0, axis=axes, keepdims=keepdims, dtype="int64")

    def fn_mean(self, x: Raw, axes: tuple[int, ...], keepdims: bool) -> Raw:
        total = self.fn_sum(x, axes, keepdims)
        return total / self._count(x, axes, total)

    def fn_var(self, x: Raw, axes: tuple[int, ...], correction: float, keepdims: bool) -> Raw:
        deviation = x - self.fn_mean(x, axes, True)
        if deviation.dtype.kind == "c":
            deviation = self.xp.abs(deviation)
        total = self.fn_sum(deviation * deviation, axes, keepdims)
        count = self._count(x, axes, total)
        return total / self.xp.maximum(count - total.dtype.type(correction), total.dtype.type(0))

    def fn_std(self, x: Raw, axes: tuple[int, ...], correction: float, keepdims: bool) -> Raw:
        return self.xp.sqrt(self.fn_var(x, axes, correction, keepdims))

    @staticmethod
    def _count(x: Raw, axes: tuple[int, ...], like: Raw) -> Any:
        count = 1
        for axis in axes:
            count *= x.shape[axis]
        return like.dtype.type(count)  # of the result's dtype, so that 0/0 is a NaN of it

    def fn_cumulative_sum(self, x: Raw, axis: int) -> Raw:
        return self.xp.cumsum(x, axis=axis, dtype=x.dtype)

    def fn_cumulative_prod(self, x: Raw, axis: int) -> Raw:
        return self.xp.cumprod(x, axis=axis, dtype=x.dtype)

    # Order.

    def fn_argmax(self, x: Raw, axis: int, keepdims: bool) -> Raw:
        return self.xp.argmax(x, axis=axis, keepdims=keepdims).astype("int64", copy=False)

    def fn_argmin(self, x: Raw, axis: int, keepdims: bool) -> Raw:
        return self.xp.argmin(x, axis=axis, keepdims=keepdims).astype("int64", copy=False)

    def fn_sort(self, x: Raw, axis: int, descending: bool) -> Raw:
        result = self.xp.sort(x, axis=axis, kind="stable")
        return self.xp.flip(result, axis=axis) if descending else result

    def fn_argsort(self, x: Raw, axis: int, descending: bool) -> Raw:
        if not descending:
            return self.xp.argsort(x, axis=axis, kind="stable").astype("int64", copy=False)
        # reversed twice, so that equal elements keep their order
        backward = self.xp.argsort(self.xp.flip(x, axis=axis), axis=axis, kind="stable").astype("int64", copy=False)
        return self.xp.flip(x.shape[axis] - 1 - backward, axis=axis)

    def fn_searchsorted(self, x: Raw, values: Raw, side: str) -> Raw:
        return self.xp.searchsorted(x, values, side=side).astype("int64", copy=False)

    def fn_nonzero(self, x: Raw) -> tuple[Raw, ...]:
        return tuple(indices.astype("int64", copy=False) for indices in self.xp.nonzero(x))

    def fn_unique_all(self, x: Raw) -> tuple[Raw, ...]:
        values, indices, inverse, counts = self.xp.unique(
            x.reshape(-1), return_index=True, return_inverse=True, return_counts=True, equal_nan=False
        )
        rest = (one.astype("int64", copy=False) for one in (indices, inverse.reshape(x.shape), counts))
        return (values, *rest)

    # Shape and selection.

    def fn_concat(self, arrays: list[Raw], axis: int) -> Raw:
        return self.xp.concatenate(arrays, axis=axis)

    def fn_reshape(self, x: Raw, shape: tuple[int, ...]) -> Raw:
        return x.reshape(shape)

    def fn_take(self, x: Raw, indices: Raw, axis: int) -> Raw:
        return self.xp.take(x, indices, axis=axis)

    def fn_diagonal(self, x: Raw, k: int) -> Raw:
        return self.xp.diagonal(x, k, -2, -1)

    def fn_copy(self, x: Raw) -> Raw:
        return x.copy(order="C")

    def fn_getitem(self, x: Raw, key: Any) -> Raw:
        return x[key]

    def fn_setitem(self, x: Raw, key: Any, value: Raw) -> None:
        x[key] = value

    # Linear algebra and Fourier transforms: canonical arguments in NumPy's form.

    def fn_cholesky(self, x: Raw, upper: bool) -> Raw:
        lower = self.xp.linalg.cholesky(x)
        return self.xp.conj(self.xp.swapaxes(lower, -1, -2)) if upper else lower

    def fn_qr(self, x: Raw, mode: str) -> tuple[Raw, ...]:
        return tuple(self.xp.linalg.qr(x, mode=mode))

    def fn_eigh(self, x: Raw) -> tuple[Raw, ...]:
        return tuple(self.xp.linalg.eigh(self._finite(x)))

    def fn_eigvalsh(self, x: Raw) -> Raw:
        return self.xp.linalg.eigvalsh(self._finite(x))

    def _finite(self, x: Raw) -> Raw:
        """*x*, whose lower triangles must be finite: LAPACK makes numbers of some that are not.

        Raises:
            ValueError: if one is not.
        """
        if not self.xp.isfinite(x).all() and not self.xp.isfinite(self.xp.tril(x)).all():
            raise ValueError("the lower triangle holds infinities or NaN")
        return x

    def fn_eig(self, x: Raw) -> tuple[Raw, ...]:
        return tuple(self.xp.linalg.eig(x))

    def fn_slogdet(self, x: Raw) -> tuple[Raw, ...]:
        return tuple(self.xp.linalg.slogdet(x))

    def fn_svd(self, x: Raw, full_matrices: bool) -> tuple[Raw, ...]:
        return tuple(self.xp.linalg.svd(x, full_matrices=full_matrices))

    def fn_svdvals(self, x: Raw) -> Raw:
        return self.xp.linalg.svd(x, compute_uv=False)

    def fn_einsum(self, subscripts: str, *arrays: Raw) -> Raw:
        return self.xp.einsum(subscripts, *arrays, optimize=True)  # optimised: pairs go to BLAS

    def _transform(self, name: str) -> Callable[..., Raw]:
        function = getattr(self.xp.fft, name)

        def transform(x: Raw, n: int | None, axis: int, norm: str) -> Raw:
            if not x.shape[axis]:  # filled up to n zeros: of none, NumPy's irfft makes what lies in memory
                x = self.xp.zeros((*x.shape[:axis], 1, *x.shape[axis + 1 :]), x.dtype)
            return function(x, n=n, axis=axis, norm=norm)

        return transform

    def __getattr__(self, name: str) -> Any:
        if name in ("fn_fft", "fn_ifft", "fn_rfft", "fn_irfft", "fn_hfft", "fn_ihfft"):
            return self._transform(name.removeprefix("fn_"))
        raise AttributeError(f"{type(self).__name__} has no attribute {name}")
