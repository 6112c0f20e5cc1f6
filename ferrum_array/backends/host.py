"""The host side that all storages share: NumPy arrays made from Python objects, and their text.

A host array is a ``numpy.ndarray`` of native byte order; bfloat16 is the dtype of ``ml_dtypes``, which is
imported when the first bfloat16 appears.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from ferrum_array.dtype import Dtype, integer_limits

__all__ = [
    "QUIET",
    "array",
    "bfloat16",
    "dtype_of",
    "format_array",
    "is_numpy",
    "is_numpy_scalar",
    "raw_dtype",
    "stranger",
]


@cache
def bfloat16() -> np.dtype[Any]:
    """The NumPy dtype of bfloat16."""
    import ml_dtypes  # not at the top: importing ferrum_array imports NumPy alone

    dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return dtype


_RAW: dict[Dtype, Any] = {d: np.dtype(d.standard_name) for d in Dtype.all() if d is not Dtype.BF16}
_DTYPES = {raw: d for d, raw in _RAW.items()}


def raw_dtype(dtype: Dtype) -> np.dtype[Any]:
    """The NumPy dtype for *dtype*."""
    return bfloat16() if dtype is Dtype.BF16 else _RAW[dtype]


def dtype_of(raw: Any) -> Dtype:
    """The Dtype of a NumPy array or of its dtype.

    Raises:
        TypeError: for strings, dates, objects, records and other types that tensors do not have.
    """
    raw = getattr(raw, "dtype", raw)
    found = _DTYPES.get(raw)
    if found is None:
        if raw.name == "bfloat16":
            return Dtype.BF16
        found = _DTYPES.get(raw.newbyteorder("="))
    if found is None:
        raise TypeError(f"tensors have no dtype for NumPy's {raw!r}; convert the array to a number type first")
    return found


def is_numpy(obj: object) -> bool:
    """Whether *obj* is a NumPy array or scalar."""
    return isinstance(obj, (np.ndarray, np.generic))


def is_numpy_scalar(obj: object) -> bool:
    """Whether *obj* is a NumPy scalar."""
    return isinstance(obj, np.generic)


def _as_host(obj: Any) -> np.ndarray[Any, Any]:
    if isinstance(obj, np.ma.MaskedArray):
        raise TypeError("a masked array would lose its mask; fill it first, for example with obj.filled(0)")
    found = np.asarray(obj)
    dtype = raw_dtype(dtype_of(found))
    return found if found.dtype == dtype and found.dtype.isnative else found.astype(dtype)


def array(obj: Any, dtype: Dtype | None) -> np.ndarray[Any, Any]:
    """A host array from a Python number, nested sequences of them, a NumPy array or a buffer.

    Python numbers take the default dtype of their kind unless *dtype* is given. The array may share memory with *obj*.

    Raises:
        ValueError: for ragged sequences. TypeError: for elements that are not numbers.
        OverflowError: for an integer outside the dtype.
    """
    given = (
        f"{type(obj).__name__} {obj!r:.60}"
        if isinstance(obj, (str, bytes, int, float, complex))
        else "NoneType"
        if obj is None
        else f"a number in the {type(obj).__name__}"
    )
    if is_numpy(obj) or not isinstance(obj, (bool, int, float, complex, list, tuple, range)):
        if isinstance(obj, (str, bytes)) or obj is None:
            raise TypeError(f"asarray: a tensor holds numbers, got {given}")
        if not is_numpy(obj) and np.asarray(obj).dtype == object:  # neither array nor buffer
            raise TypeError(f"asarray: a tensor holds numbers, got {type(obj).__name__} {obj!r:.60}")
        found = _as_host(obj)
        return found if dtype is None else convert(found, dtype)
    try:
        if dtype is not None and dtype is not Dtype.BF16:
            with np.errstate(all="ignore"):  # 1e300 is infinity in float32, as on every storage
                return np.asarray(obj, dtype=_RAW[dtype])
        found = np.asarray(obj)
    except ValueError as error:
        if "inhomogeneous" in str(error):
            raise ValueError(f"asarray: the rows are ragged, not a rectangular block: {_uneven(obj)}") from None
        raise ValueError(f"asarray: {error}, making {dtype} from {given}") from error
    except OverflowError as error:
        raise OverflowError(f"asarray: {error}{_limits(dtype)}") from error
    except TypeError as error:
        hint = "; take the real parts first" if "complex" in str(error) else ""
        raise TypeError(f"asarray: {dtype} cannot be made from {given}: {error}{hint}") from error
    if found.dtype.kind == "O" and all(type(one) in (bool, int) for one in found.flat):
        raise OverflowError(f"asarray: {given} is an integer of more than 64 bits; write it as a float")
    if found.dtype.kind not in "biufc":
        raise TypeError(f"asarray: a tensor holds numbers, but this {type(obj).__name__} has {stranger(obj)}")
    typed = _typed(obj)
    if dtype is None:
        if found.dtype == np.uint64 and not typed:
            raise OverflowError(f"asarray: {given} is beyond int64; name the dtype, for example dtype='uint64'")
        kinds = {"b": Dtype.BOOL, "i": Dtype.I64, "f": Dtype.F32, "c": Dtype.C64}
        dtype = dtype_of(found) if typed else kinds[found.dtype.kind]
    return convert(found, dtype)


def _limits(dtype: Dtype | None) -> str:
    if dtype is None or not dtype.is_integer:
        return ""
    low, high = integer_limits(dtype)
    return f"; {dtype} holds {low} to {high}"


def _uneven(rows: Any, place: str = "") -> str:
    """Which of nested sequences has another shape than the first beside it."""
    for i, row in enumerate(rows):
        inside = _uneven(row, f"{place}[{i}]") if isinstance(row, (list, tuple)) else ""
        if inside:
            return inside
        if np.shape(row) != np.shape(rows[0]):
            return f"{place}[{i}] has the shape {np.shape(row)}, {place}[0] the shape {np.shape(rows[0])}"
    return ""


def stranger(rows: Any, place: str = "") -> str:
    """Which element of nested sequences is no number."""
    for i, one in enumerate(rows):
        if isinstance(one, (list, tuple)):
            inside = stranger(one, f"{place}[{i}]")
            if inside:
                return inside
        elif not isinstance(one, (bool, int, float, complex)) and (
            one.dtype.kind not in "biufcV" if is_numpy(one) else not hasattr(one, "dtype")  # V is bfloat16's
        ):
            return f"{type(one).__name__} {one!r:.60} at {place}[{i}]"
    return ""


def _typed(obj: Any) -> bool:
    """Whether the first element of nested sequences is a NumPy array or scalar, which has a dtype of its own."""
    while isinstance(obj, (list, tuple)) and obj:
        obj = obj[0]
    return is_numpy(obj)


def convert(found: np.ndarray[Any, Any], dtype: Dtype) -> np.ndarray[Any, Any]:
    """*found* in *dtype*, copied only where it has another; without NumPy's warnings about overflow.

    Raises:
        TypeError: for complex to real, which would drop the imaginary parts.
    """
    wanted = raw_dtype(dtype)
    if found.dtype == wanted:
        return found
    if found.dtype.kind == "c" and not dtype.is_complex:
        raise TypeError(f"asarray: {found.dtype} to {dtype} would drop the imaginary parts; take the real parts first")
    with np.errstate(all="ignore"):
        return found.astype(wanted)


def format_array(array: Any, *, prefix: str, **options: Any) -> str:
    """NumPy's text for a host array, without NumPy's own print options; see ``numpy.array2string``."""
    if array.dtype.name == "bfloat16":
        array = array.astype(np.float32)
    if array.size == 0:
        return "[]"
    separator, width = ", " if prefix else " ", options.pop("linewidth")
    with np.printoptions(floatmode="maxprec", legacy=False, sign="-", nanstr="nan", infstr="inf", formatter=None):
        return np.array2string(array, separator=separator, prefix=prefix, max_line_width=width, **options)


def _quiet() -> tuple[Any, Any]:
    """The context variable that holds NumPy's error state, and its value for "ignore everything".

    NumPy warns on the host where other storages are silent (1/0 is inf). ``numpy.errstate`` would silence it for
    1 us a call; setting its context variable takes 0.15 us. NumPy gives the variable no public name, but a fresh
    context in which ``numpy.seterr`` has run holds just that one.
    """
    from contextvars import Context

    context = Context()
    context.run(np.seterr, all="ignore")
    [(variable, value)] = context.items()
    return variable, value


QUIET = _quiet()


def same_memory(array: Any, obj: Any) -> bool:
    """Whether *array* shares the memory of *obj*, a NumPy array or another buffer."""
    return bool(np.may_share_memory(array, np.asarray(obj)))
