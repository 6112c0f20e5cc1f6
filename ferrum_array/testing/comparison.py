"""Comparisons of tensors for tests: exact, or within tolerances that are stated once, per dtype."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from ferrum_array.conversion import asarray
from ferrum_array.data_types import astype
from ferrum_array.device import CPU
from ferrum_array.dispatch import raw
from ferrum_array.dtype import Dtype
from ferrum_array.elementwise import (
    abs,
    add,
    equal,
    imag,
    isfinite,
    isnan,
    less_equal,
    logical_and,
    logical_not,
    logical_or,
    multiply,
    not_equal,
    real,
    signbit,
    subtract,
)
from ferrum_array.manipulation import stack
from ferrum_array.spec import spec_of
from ferrum_array.tensor import Tensor, wrap
from ferrum_array.utility import all as all_

__all__ = ["TOLERANCES", "Tolerance", "assert_close", "assert_equal", "tolerance"]

Number = bool | int | float | complex


class Tolerance(NamedTuple):
    """How far two elements may lie apart: at most ``atol + rtol * |expected|``.

    Examples:
        >>> from ferrum_array.testing import Tolerance
        >>> Tolerance(rtol=1e-3, atol=0.0).rtol
        0.001
    """

    rtol: float
    atol: float


#: The default tolerances. The 16-bit types may be one rounding of the result and one of an operand
#: off (2 units in the last place); the wider ones leave room for sums of some hundred terms.
#: Integers and booleans are exact, and a complex type has the tolerance of its parts.
TOLERANCES: dict[Dtype, Tolerance] = {
    Dtype.BF16: Tolerance(2.0**-6, 1e-5),
    Dtype.F16: Tolerance(2.0**-9, 1e-5),
    Dtype.F32: Tolerance(1e-5, 1e-6),
    Dtype.F64: Tolerance(1e-10, 1e-12),
}


def tolerance(*dtypes: Dtype) -> Tolerance:
    """The default tolerance for results of *dtypes*: that of the least exact of them.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_array.testing import tolerance
        >>> tolerance(fa.float64, fa.complex64)
        Tolerance(rtol=1e-05, atol=1e-06)
        >>> tolerance(fa.int8)
        Tolerance(rtol=0.0, atol=0.0)
    """
    found = [TOLERANCES[dtype.real] for dtype in dtypes if dtype.real in TOLERANCES]
    return max(found, default=Tolerance(0.0, 0.0))


def assert_close(
    actual: Any,
    expected: Any,
    *,
    rtol: float | None = None,
    atol: float | None = None,
    equal_nan: bool = True,
    signed_zero: bool = False,
    check_dtype: bool = True,
    check_device: bool = False,
) -> None:
    """Check that *actual* is a tensor whose elements are those of *expected*, within a tolerance.

    Shapes must be equal: nothing broadcasts. Each element must satisfy
    ``|actual - expected| <= atol + rtol * |expected|``, computed in float64 on the CPU; an infinity
    equals only itself. The parts of complex numbers are compared one by one, with the modulus in
    place of ``|expected|``. Integers and booleans must be equal unless a tolerance is given.

    Args:
        expected: a tensor, a NumPy array, a number (for a 0-d tensor), or nested sequences of
            numbers. Numbers have no dtype of their own: only their values are compared.
        rtol, atol: by default those of :data:`TOLERANCES` for the less exact of the two dtypes.
        equal_nan: whether two NaN are equal. signed_zero: whether 0.0 and -0.0 differ.
        check_dtype: whether dtypes must be equal. check_device: whether devices must be.

    Raises:
        AssertionError: where they differ, with the worst element, its index, and the counts.
        TypeError: if *expected* holds no numbers. ValueError: for a negative or NaN tolerance.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_array.testing import assert_close
        >>> assert_close(fa.exp(fa.asarray([0.0, 1.0])), [1.0, 2.7182817])
        >>> assert_close(fa.asarray([1.0, 2.5]), [1.0, 2.0])
        Traceback (most recent call last):
        ...
        AssertionError: assert_close: 1 of 2 elements differ (50%)
          worst at index (1,): actual 2.5, expected 2.0, |difference| 0.5 > 2.1e-05 allowed
          (rtol 1e-05, atol 1e-06)
          actual   float32[2]: [1.  2.5]
          expected numbers[2]: [1. 2.]
    """
    for name, bound in (("rtol", rtol), ("atol", atol)):
        if bound is not None and not bound >= 0:
            raise ValueError(f"assert_close: {name} must be a non-negative number, got {bound!r}")
    left, right, typed = _operands("assert_close", actual, expected, check_dtype, check_device)
    usual = tolerance(left.dtype, right.dtype) if typed else tolerance(left.dtype)
    bounds = Tolerance(usual.rtol if rtol is None else float(rtol), usual.atol if atol is None else float(atol))
    _compare("assert_close", left, right, typed, bounds, equal_nan, signed_zero)


def assert_equal(
    actual: Any,
    expected: Any,
    *,
    equal_nan: bool = True,
    signed_zero: bool = False,
    check_dtype: bool = True,
    check_device: bool = False,
) -> None:
    """Check that *actual* is a tensor whose elements equal those of *expected*.

    The arguments are those of :func:`assert_close`. Numbers without a dtype are first rounded to
    that of *actual* where it is a floating one: ``assert_equal(fa.asarray(0.1), 0.1)`` holds.

    Raises:
        AssertionError: where they differ, with the worst element, its index, and the counts.
        TypeError: if *expected* holds no numbers.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_array.testing import assert_equal
        >>> assert_equal(fa.arange(3), [0, 1, 2])
        >>> assert_equal(fa.asarray([0.0]), [-0.0], signed_zero=True)
        Traceback (most recent call last):
        ...
        AssertionError: assert_equal: 1 of 1 elements differ (100%)
          worst at index (0,): actual 0.0, expected -0.0, zeros of different sign
          actual   float32[1]: [0.]
          expected numbers[1]: [-0.]
    """
    left, right, typed = _operands("assert_equal", actual, expected, check_dtype, check_device)
    rounded = left.dtype.is_complex or (left.dtype.is_floating and right.dtype is Dtype.F64)
    if rounded and not typed:
        right = astype(right, left.dtype)
    _compare("assert_equal", left, right, typed, Tolerance(0.0, 0.0), equal_nan, signed_zero)


def _operands(
    name: str, actual: Any, expected: Any, check_dtype: bool, check_device: bool
) -> tuple[Tensor, Tensor, bool]:
    """Both sides on the CPU, their type, shape and dtype checked; whether the second has one."""
    if not isinstance(actual, Tensor):
        raise AssertionError(f"{name}: actual must be a Tensor, got {type(actual).__name__} {actual!r:.60}")
    typed = hasattr(expected, "dtype")
    wanted = asarray(expected) if typed else _numbers(name, expected)
    if actual.shape != wanted.shape:
        raise AssertionError(
            f"{name}: shapes differ: actual {actual.shape}, expected {wanted.shape}" + _shown(actual, wanted, typed)
        )
    if typed and check_dtype and actual.dtype is not wanted.dtype:
        raise AssertionError(
            f"{name}: dtypes differ: actual {actual.dtype}, expected {wanted.dtype}; "
            "check_dtype=False compares values alone" + _shown(actual, wanted, typed)
        )
    if check_device and isinstance(expected, Tensor) and actual.device is not expected.device:
        raise AssertionError(f"{name}: devices differ: actual {actual.device}, expected {expected.device}")
    return actual.to_device(CPU), wanted.to_device(CPU), typed


def _numbers(name: str, expected: Any) -> Tensor:
    """Numbers without a dtype in the widest dtype of their kind, so that none is rounded."""
    leaves = list(_leaves(expected))
    strange = [one for one in leaves if not isinstance(one, (bool, int, float, complex))]
    if strange:
        raise TypeError(
            f"{name}: expected must be a tensor, an array or numbers, "
            f"got {type(strange[0]).__name__} {strange[0]!r:.60}"
        )
    if any(isinstance(one, complex) for one in leaves):
        return asarray(expected, dtype=Dtype.C128)
    if any(isinstance(one, float) for one in leaves) or not leaves:
        return asarray(expected, dtype=Dtype.F64)
    if all(isinstance(one, bool) for one in leaves):
        return asarray(expected, dtype=Dtype.BOOL)
    return asarray(expected, dtype=Dtype.I64 if max(leaves) < 1 << 63 else Dtype.U64)


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, (list, tuple)):
        for one in value:
            yield from _leaves(one)
    else:
        yield value


def _compare(
    name: str,
    left: Tensor,
    right: Tensor,
    typed: bool,
    bounds: Tolerance,
    equal_nan: bool,
    signed_zero: bool,
) -> None:
    numeric = right.dtype.is_floating or right.dtype.is_complex
    if numeric and (left.dtype.is_floating or left.dtype.is_complex):
        good = _near(left, right, bounds, equal_nan, signed_zero)
    elif left.dtype is right.dtype and bounds == (0.0, 0.0):
        good = equal(left, right)
    else:
        good = None
    if good is not None and bool(all_(good)):
        return
    # The rare way: Python numbers compare exactly across all kinds, and are what the message shows.
    pairs = list(zip(_flat(left), _flat(right), strict=True))
    found = [_reason(a, e, bounds, equal_nan, signed_zero) for a, e in pairs]
    bad = [position for position, reason in enumerate(found) if reason is not None]
    if not bad:
        return
    worst = max(bad, key=lambda position: found[position] or (0.0, ""))
    reason = found[worst]
    assert reason is not None  # *worst* is one of the bad positions
    a, e = pairs[worst]
    limits = f"\n  (rtol {bounds.rtol:g}, atol {bounds.atol:g})" if any(bounds) else ""
    raise AssertionError(
        f"{name}: {len(bad)} of {len(pairs)} elements differ ({100 * len(bad) / len(pairs):.3g}%)\n"
        f"  worst at index {_unravel(worst, left.shape)}: actual {a!r}, expected {e!r}, {reason[1]}"
        f"{limits}{_shown(left, right, typed)}"
    )


def _near(left: Tensor, right: Tensor, bounds: Tolerance, equal_nan: bool, signed_zero: bool) -> Tensor:
    """Where the elements (the parts of complex ones) satisfy the rules, all at once."""
    is_complex = left.dtype.is_complex or right.dtype.is_complex
    wide = spec_of(Dtype.C128 if is_complex else Dtype.F64, CPU)
    a, e = (wrap(raw("assert_close", one, wide), wide) for one in (left, right))
    modulus = abs(e)
    if is_complex:
        a, e = (stack([real(one), imag(one)]) for one in (a, e))
        modulus = stack([modulus, modulus])
    bound = add(bounds.atol, multiply(bounds.rtol, modulus)) if any(bounds) else multiply(modulus, 0.0)
    good = less_equal(abs(subtract(a, e)), bound)
    good = logical_and(good, logical_and(isfinite(a), isfinite(e)))
    good = logical_or(good, equal(a, e))
    if equal_nan:
        good = logical_or(good, logical_and(isnan(a), isnan(e)))
    if signed_zero:
        zeros = logical_and(equal(a, 0.0), equal(e, 0.0))
        good = logical_and(good, logical_not(logical_and(zeros, not_equal(signbit(a), signbit(e)))))
    return good


def _reason(a: Number, e: Number, bounds: Tolerance, equal_nan: bool, signed_zero: bool) -> tuple[float, str] | None:
    """How badly two numbers differ (infinity is worst) and why; None if they do not."""
    if isinstance(a, complex) or isinstance(e, complex):
        a, e = complex(a), complex(e)
        size = math.hypot(e.real, e.imag)
        parts = [
            _part(one, other, size, bounds, equal_nan, signed_zero)
            for one, other in ((a.real, e.real), (a.imag, e.imag))
        ]
        return max((one for one in parts if one is not None), default=None)
    return _part(a, e, None, bounds, equal_nan, signed_zero)


def _part(
    a: float, e: float, size: float | None, bounds: Tolerance, equal_nan: bool, signed_zero: bool
) -> tuple[float, str] | None:
    if a != a or e != e:  # NaN
        if a != a and e != e:
            return None if equal_nan else (math.inf, "both NaN, and equal_nan=False")
        return (math.inf, "only one is NaN")
    if a == e:
        if signed_zero and a == 0 and math.copysign(1, a) != math.copysign(1, e):
            return (0.0, "zeros of different sign")
        return None
    if math.inf in (a, e) or -math.inf in (a, e):
        return (math.inf, "an infinity equals only itself")
    difference = _distance(a, e)
    magnitude = size if size is not None else e if e >= 0 else -e
    allowed = bounds.atol + bounds.rtol * magnitude if any(bounds) else 0.0
    if difference <= allowed:
        return None
    badness = difference / allowed if allowed else difference
    return (badness, f"|difference| {difference:.6g} > {allowed:.6g} allowed")


def _distance(a: float, e: float) -> float:
    # as integers where both are: a float would lose the last digits of large ones
    if isinstance(a, int) or isinstance(e, int):
        a, e = (int(n) if n == int(n) else n for n in (a, e))
    return a - e if a >= e else e - a


def _flat(x: Tensor) -> list[Number]:
    values: list[Number] = x.reshape(-1).tolist() if x.size else []
    return values


def _unravel(position: int, shape: Sequence[int]) -> tuple[int, ...]:
    index = []
    for length in reversed(shape):
        position, here = divmod(position, length)
        index.append(here)
    return tuple(reversed(index))


def _shown(actual: Tensor, expected: Tensor, typed: bool) -> str:
    kind = (
        expected._summary() if typed else "numbers" + expected._summary().lstrip("abcdefghijklmnopqrstuvwxyz0123456789")
    )
    width = max(len(actual._summary()), len(kind)) + 1
    return "".join(
        f"\n  {side:8} {summary + ':':{width}} {_text(x, 12 + width)}"
        for side, summary, x in (
            ("actual", actual._summary(), actual),
            ("expected", kind, expected),
        )
    )


def _text(x: Tensor, indent: int) -> str:
    return str(x).replace("\n", "\n" + " " * indent)
