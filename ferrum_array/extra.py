"""Functions beside the standard that array programs ask for most.

All but one have the names and meanings of array-api-extra and are composed of the standard's functions. ``bitcast`` is
the one that the standard lacks: every storage has its own.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from math import inf
from typing import Any, Literal

from ferrum_array.creation import arange, full, zeros
from ferrum_array.data_types import finfo
from ferrum_array.dispatch import DEFAULT_FLOAT, Operand, broadcast, integer, normalize_axes, tensor, unify
from ferrum_array.dtype import Dtype
from ferrum_array.elementwise import abs as abs_
from ferrum_array.elementwise import equal, isfinite, isnan, less_equal, logical_and, logical_or, multiply
from ferrum_array.manipulation import expand_dims, reshape
from ferrum_array.searching import where
from ferrum_array.sets import unique_values
from ferrum_array.spec import spec_of
from ferrum_array.tensor import Scalar, Tensor, wrap
from ferrum_array.utility import all as all_

__all__ = [
    "allclose", "atleast_nd", "bitcast", "create_diagonal", "isclose", "kron", "nan_to_num", "nunique", "one_hot",
    "pad",
]  # fmt: skip


def isclose(a: Operand, b: Operand, *, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False) -> Tensor:
    """Whether ``|a - b| <= atol + rtol * |b|``, elementwise; infinities equal themselves, NaN only with *equal_nan*.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.isclose(fa.asarray([1.0, 2.0]), 1.0)
        Tensor([ True, False])
    """
    spec, (left, right) = unify("isclose", a, b)
    x, y = wrap(left, spec), wrap(right, spec)
    broadcast("isclose", x.shape, y.shape)
    if not (spec.dtype.is_floating or spec.dtype.is_complex):
        # differences of integers are taken in floating point, where they cannot wrap
        wide = Dtype.F64 if spec.device.supports(Dtype.F64) else DEFAULT_FLOAT
        x, y = x.astype(wide), y.astype(wide)
    near = less_equal(abs_(x - y), atol + rtol * abs_(y))
    same = logical_or(equal(x, y), logical_and(near, logical_and(isfinite(x), isfinite(y))))
    return logical_or(same, logical_and(isnan(x), isnan(y))) if equal_nan else same


def allclose(a: Operand, b: Operand, *, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False) -> bool:
    """Whether all elements are close, as a Python bool: see :func:`isclose`.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.allclose(fa.asarray([1.0, 1.0]), 1.0)
        True
    """
    return bool(all_(isclose(a, b, rtol=rtol, atol=atol, equal_nan=equal_nan)))


def atleast_nd(x: Tensor, /, *, ndim: int) -> Tensor:
    """*x* with axes of length one in front, so that it has at least *ndim* axes.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.atleast_nd(fa.asarray([1, 2]), ndim=2)
        Tensor([[1, 2]])
    """
    x = tensor("atleast_nd", x)
    return reshape(x, (1,) * (integer("atleast_nd", "ndim", ndim) - x.ndim) + x.shape)


def bitcast(x: Tensor, dtype: Any, /) -> Tensor:
    """The bits of *x* read as numbers of *dtype*, bytes in little-endian order.

    If *dtype* is smaller than that of *x*, the last axis becomes longer, and shorter if it is larger: [..., n] of 4
    bytes each is [..., 4 * n] of one byte. No bit changes, those of a NaN neither.

    Raises:
        TypeError: if *dtype* is bool, of which bytes other than 0 and 1 are no values.
        ValueError: if elements of different sizes have no last axis, or it does not give whole elements.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.bitcast(fa.asarray([1.0, -2.0], dtype="f16"), "u8")
        Tensor([  0,  60,   0, 192], dtype=uint8)
        >>> fa.bitcast(fa.asarray([0, 60], dtype="u8"), "f16")
        Tensor([1.], dtype=float16)
    """
    x = tensor("bitcast", x)
    wanted = Dtype(dtype)
    if wanted is x.dtype:
        return x.copy()
    if wanted is Dtype.BOOL:
        raise TypeError(f"bitcast: bits of {x._summary()} are not booleans; read them as uint8 and write x != 0")
    spec = spec_of(wanted, x.device)
    old, new = x.dtype.bytes_per_elem, wanted.bytes_per_elem
    if old == new:
        return wrap(spec.call["bitcast"](x._data), spec)
    if not x.ndim or (x.shape[-1] * old) % new:
        raise ValueError(
            f"bitcast: the last axis of {x._summary()} must hold a whole number of {wanted} elements of {new} bytes"
        )
    if not x.size:
        return zeros((*x.shape[:-1], x.shape[-1] * old // new), dtype=wanted, device=x.device)
    return wrap(spec.call["bitcast"](x._data), spec)


def create_diagonal(x: Tensor, /, *, offset: int = 0) -> Tensor:
    """Matrices ``[..., N + |offset|, N + |offset|]`` with *x* [..., N] on the diagonal *offset* above the main one.

    Raises:
        ValueError: for a 0-d tensor.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.create_diagonal(fa.asarray([1, 2]))
        Tensor([[1, 0],
                [0, 2]])
    """
    x = tensor("create_diagonal", x)
    if not x.ndim:
        raise ValueError("create_diagonal: needs at least one axis, got a 0-d tensor")
    n = x.shape[-1] + abs(offset)
    flat = zeros((*x.shape[:-1], n * n), dtype=x.dtype, device=x.device)
    start = offset if offset >= 0 else -offset * n
    flat[..., start : start + x.shape[-1] * (n + 1) : n + 1] = x
    return reshape(flat, (*x.shape[:-1], n, n))


def kron(a: Tensor, b: Tensor, /) -> Tensor:
    """The Kronecker product: each element of *a* times all of *b*.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.kron(fa.asarray([1, 10]), fa.asarray([1, 2]))
        Tensor([ 1,  2, 10, 20])
    """
    a, b = tensor("kron", a, "a"), tensor("kron", b, "b")
    ndim = max(a.ndim, b.ndim)
    a, b = atleast_nd(a, ndim=ndim), atleast_nd(b, ndim=ndim)
    spread = multiply(expand_dims(a, tuple(range(1, 2 * ndim, 2))), expand_dims(b, tuple(range(0, 2 * ndim, 2))))
    return reshape(spread, tuple(m * n for m, n in zip(a.shape, b.shape, strict=True)))


def nan_to_num(x: Tensor, /, *, fill_value: float = 0.0) -> Tensor:
    """NaN replaced by *fill_value*, infinities by the greatest finite numbers; integers are returned as they are.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.nan_to_num(fa.asarray([1.0, fa.nan]))
        Tensor([1., 0.])
    """
    x = tensor("nan_to_num", x)
    if x.dtype.is_complex:
        imaginary = nan_to_num(x.imag, fill_value=fill_value)
        return nan_to_num(x.real, fill_value=fill_value) + imaginary * 1j
    if not x.dtype.is_floating:
        return x.copy()
    limits = finfo(x.dtype)
    x = where(isnan(x), fill_value, x)
    x = where(equal(x, inf), limits.max, x)
    return where(equal(x, -inf), limits.min, x)


def nunique(x: Tensor, /) -> Tensor:
    """The number of distinct elements (every NaN counts), as a 0-d int64 tensor.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.nunique(fa.asarray([1, 1, 2]))
        Tensor(2)
    """
    x = tensor("nunique", x)
    return full((), unique_values(x).size, dtype=Dtype.I64, device=x.device)


def one_hot(x: Tensor, /, num_classes: int, *, dtype: Any = None, axis: int = -1) -> Tensor:
    """A new axis of length *num_classes* with a one where *x*, integers, says and zeros elsewhere: float32 by default.

    Numbers outside ``0 .. num_classes - 1`` give zeros only.

    Raises:
        TypeError: if *x* is not of an integer dtype.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.one_hot(fa.asarray([2, 0]), 3, dtype="i8")
        Tensor([[0, 0, 1],
                [1, 0, 0]], dtype=int8)
    """
    x = tensor("one_hot", x)
    if not x.dtype.is_integer:
        raise TypeError(f"one_hot: classes are integers, got {x._summary()}")
    classes = arange(num_classes, dtype=Dtype.I64, device=x.device)
    (place,) = normalize_axes("one_hot", axis, x.ndim + 1)
    shaped = reshape(classes, tuple(num_classes if i == place else 1 for i in range(x.ndim + 1)))
    hits = equal(expand_dims(x.astype(Dtype.I64), place), shaped)
    return hits.astype(DEFAULT_FLOAT if dtype is None else dtype)


def pad(
    x: Tensor,
    pad_width: int | tuple[int, int] | Sequence[tuple[int, int]],
    mode: Literal["constant"] = "constant",
    *,
    constant_values: Scalar = 0,
) -> Tensor:
    """*x* with *constant_values* around it.

    Args:
        pad_width: how many before and after: a number, a pair for all axes, or a pair for each axis.
        mode: ``"constant"`` only.

    Raises:
        TypeError: for widths that are no integers. ValueError: for another mode, a negative width or a wrong number
        of pairs.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.pad(fa.asarray([1, 2]), (1, 2))
        Tensor([0, 1, 2, 0, 0])
    """
    x = tensor("pad", x)
    if mode != "constant":
        raise ValueError(f"pad: mode must be 'constant', got {mode!r}")
    pairs = _pairs(pad_width, x.ndim)
    if len(pairs) != x.ndim or any(n < 0 for pair in pairs for n in pair):
        raise ValueError(f"pad: pad_width {pad_width} must be non-negative and fit the {x.ndim} axes of {x._summary()}")
    shape = tuple(n + a + b for n, (a, b) in zip(x.shape, pairs, strict=True))
    result = full(shape, constant_values, dtype=x.dtype, device=x.device)
    result[tuple(slice(a, a + n) for n, (a, _) in zip(x.shape, pairs, strict=True))] = x
    return result


def _pairs(width: Any, ndim: int) -> list[tuple[int, int]]:
    """How many elements :func:`pad` puts before and after, for each axis."""
    try:
        if hasattr(width, "__index__"):
            return [(operator.index(width), operator.index(width))] * ndim
        pairs = [width] * ndim if len(width) == 2 and all(hasattr(n, "__index__") for n in width) else width
        return [(operator.index(before), operator.index(after)) for before, after in pairs]
    except (TypeError, ValueError):
        raise TypeError(
            f"pad: pad_width must be an integer, a pair of them, or a pair for each axis, got {width!r:.60}"
        ) from None
