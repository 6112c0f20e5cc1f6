"""Hypothesis strategies for dtypes, devices, shapes, tensors and the keys that index them.

Hypothesis is an optional dependency: it is imported when the first strategy is made.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

from ferrum_array import device as device_
from ferrum_array.conversion import asarray
from ferrum_array.creation import zeros
from ferrum_array.data_types import finfo
from ferrum_array.device import Device, get_default_device
from ferrum_array.dtype import Dtype, integer_limits, isdtype
from ferrum_array.tensor import Tensor

if TYPE_CHECKING:
    from hypothesis.strategies import DrawFn, SearchStrategy

__all__ = [
    "broadcastable_pairs",
    "broadcastable_shapes",
    "devices",
    "dtypes",
    "elements",
    "indices",
    "shapes",
    "tensors",
]

T = TypeVar("T")
Shape = tuple[int, ...]
Key = Any

#: Above so many elements a tensor repeats some drawn values in drawn places: drawing each is slow.
_EACH = 24


def _st() -> Any:
    """``hypothesis.strategies``."""
    try:
        from hypothesis import strategies
    except ImportError as error:
        raise ImportError(
            "the strategies of ferrum_array.testing need the package hypothesis, which cannot be "
            f"imported ({error}); install it with: pip install hypothesis"
        ) from error
    return strategies


def _composite(draw_one: Callable[[DrawFn], T]) -> SearchStrategy[T]:
    return cast("SearchStrategy[T]", _st().composite(draw_one)())


def devices() -> SearchStrategy[Device]:
    """Every device that this machine has, the CPU first.

    Examples:
        >>> from ferrum_array.testing import devices
        >>> devices().example()  # doctest: +SKIP
        Device('cpu')
    """
    return cast("SearchStrategy[Device]", _st().sampled_from(device_.devices()))


def dtypes(
    kind: Dtype | str | tuple[Dtype | str, ...] | None = None,
    *,
    device: Device | str | None = None,
) -> SearchStrategy[Dtype]:
    """The dtypes of *kind* (see ``isdtype``; all for None) that *device* has, bool first.

    Raises:
        ValueError: for an unknown kind, or if the device has no dtype of it.

    Examples:
        >>> from ferrum_array.testing import dtypes
        >>> dtypes("real floating").example()  # doctest: +SKIP
        ferrum_array.float16
    """
    where = get_default_device() if device is None else Device(device)
    found = [d for d in Dtype.all() if where.supports(d) and (kind is None or isdtype(d, kind))]
    if not found:
        raise ValueError(f"dtypes: device {where} has no dtype of kind {kind!r}")
    return cast("SearchStrategy[Dtype]", _st().sampled_from(found))


def shapes(*, min_dims: int = 0, max_dims: int = 4, min_side: int = 0, max_side: int = 5) -> SearchStrategy[Shape]:
    """Shapes of *min_dims* to *max_dims* axes, each *min_side* to *max_side* long.

    Examples:
        >>> from ferrum_array.testing import shapes
        >>> shapes(max_dims=2).example()  # doctest: +SKIP
        (3, 0)
    """
    st = _st()
    sides = st.lists(st.integers(min_side, max_side), min_size=min_dims, max_size=max_dims)
    return cast("SearchStrategy[Shape]", sides.map(tuple))


def broadcastable_shapes(
    count: int = 2, *, max_dims: int = 3, min_side: int = 0, max_side: int = 5
) -> SearchStrategy[tuple[Shape, ...]]:
    """*count* shapes that broadcast to a common one.

    Examples:
        >>> from ferrum_array.testing import broadcastable_shapes
        >>> broadcastable_shapes(3).example()  # doctest: +SKIP
        ((2, 1), (), (5,))
    """
    st = _st()

    def one(draw: DrawFn) -> tuple[Shape, ...]:
        common = draw(shapes(max_dims=max_dims, min_side=min_side, max_side=max_side))
        found = []
        for _ in range(count):
            kept = common[draw(st.integers(0, len(common))) :]
            found.append(tuple(draw(st.sampled_from((length, 1))) for length in kept))
        return tuple(found)

    return _composite(one)


def _is_of(dtype: Dtype, value: float) -> bool:
    """Whether *value*, which float64 holds, is a number of the floating *dtype*."""
    if value == 0 or not math.isfinite(value):
        return True
    limits = finfo(dtype)
    fraction, exponent = math.frexp(value)
    # below the smallest normal number the last place keeps its value
    place = max(exponent, math.frexp(limits.smallest_normal)[1]) + math.frexp(limits.eps)[1] - 2
    return abs(value) <= limits.max and math.ldexp(fraction, exponent - place).is_integer()


def _to_bfloat16(value: float) -> float:
    """A float32 number cut to its upper half, which is a bfloat16 number."""
    if math.isnan(value):
        return value
    (bits,) = struct.unpack("<I", struct.pack("<f", value))
    (cut,) = struct.unpack("<f", struct.pack("<I", bits & 0xFFFF0000))
    return float(cut)


def elements(
    dtype: Dtype | str,
    *,
    min_value: float | None = None,
    max_value: float | None = None,
    allow_nan: bool | None = None,
    allow_infinity: bool | None = None,
    allow_subnormal: bool | None = None,
) -> SearchStrategy[Any]:
    """Python numbers that *dtype* holds exactly.

    Args:
        min_value, max_value: bounds of real numbers and of the modulus of complex ones (the upper
            one alone); by default those of the dtype. A floating bound must be a number of it.
        allow_nan, allow_infinity: by default, whether there are no bounds. allow_subnormal: by
            default, whether the bounds have room for subnormal numbers.

    Raises:
        ValueError: for bounds that the dtype does not hold.

    Examples:
        >>> from ferrum_array.testing import elements
        >>> elements("bf16", min_value=0, max_value=1).example()  # doctest: +SKIP
        0.5
    """
    st, wanted = _st(), Dtype(dtype)
    if wanted is Dtype.BOOL:
        return cast("SearchStrategy[Any]", st.booleans())
    if wanted.is_integer:
        low, high = integer_limits(wanted)
        first = low if min_value is None else math.ceil(min_value)
        last = high if max_value is None else math.floor(max_value)
        if not low <= first <= last <= high:
            raise ValueError(f"elements: bounds {min_value} and {max_value} do not fit {wanted}")
        return cast("SearchStrategy[Any]", st.integers(first, last))
    free = min_value is None and max_value is None
    special = {
        "allow_nan": free if allow_nan is None else allow_nan,
        "allow_infinity": free if allow_infinity is None else allow_infinity,
        "allow_subnormal": allow_subnormal,
    }
    if wanted.is_complex:
        if min_value is not None:
            raise ValueError("elements: complex numbers have no min_value; give max_value alone")
        special["allow_subnormal"] = allow_subnormal is not False
        found = st.complex_numbers(max_magnitude=max_value, width=wanted.bits, **special)
        return cast("SearchStrategy[Any]", found)
    for bound in (min_value, max_value):
        if bound is not None and not _is_of(wanted, bound):
            raise ValueError(f"elements: the bound {bound} is not a number of {wanted}")
    if wanted is Dtype.BF16:  # cutting moves towards zero: a bound on the far side stays kept
        cut = st.floats(min_value, max_value, width=32, **special).map(_to_bfloat16)
        return cast("SearchStrategy[Any]", cut)
    return cast("SearchStrategy[Any]", st.floats(min_value, max_value, width=wanted.bits, **special))


def tensors(
    dtype: Dtype | str | SearchStrategy[Dtype] | None = None,
    shape: int | Shape | SearchStrategy[Shape] | None = None,
    *,
    device: Device | str | SearchStrategy[Device] | None = None,
    elements: SearchStrategy[Any] | None = None,
    views: bool = True,
) -> SearchStrategy[Tensor]:
    """Tensors whose dtype, shape and device are given or drawn.

    Args:
        dtype: by default any that the device has. shape: by default up to four short axes.
        device: by default the default device. elements: a strategy for Python numbers; by default
            :func:`elements` of the dtype, with NaN and infinities.
        views: whether some tensors are transposed, reversed or strided views of larger memory, in
            which the same values lie in another order.

    Examples:
        >>> from ferrum_array.testing import tensors
        >>> tensors("i8", (2,)).example()  # doctest: +SKIP
        Tensor([-3, 17], dtype=int8)
    """
    st = _st()

    def one(draw: DrawFn) -> Tensor:
        where = _given(draw, device, Device, get_default_device)
        kind = _given(draw, dtype, Dtype, lambda: draw(dtypes(device=where)))
        lengths = _given(draw, shape, _as_shape, lambda: draw(shapes()))
        values = _elements(kind) if elements is None else elements
        count = math.prod(lengths)
        if count <= _EACH:
            numbers = draw(st.lists(values, min_size=count, max_size=count))
        else:
            some = draw(st.lists(values, min_size=1, max_size=_EACH))
            numbers = [some[b % len(some)] for b in draw(st.binary(min_size=count, max_size=count))]
        made = asarray(numbers, dtype=kind, device=where).reshape(lengths)
        return _laid_out(made, draw(st.sampled_from(_LAYOUTS))) if views else made

    return _composite(one)


_elements = elements  # the argument of tensors() has its name

_LAYOUTS = ("contiguous", "transposed", "reversed", "strided")


def _laid_out(x: Tensor, layout: str) -> Tensor:
    """A tensor with the elements of *x* in memory that is laid out otherwise."""
    if layout == "transposed" and x.ndim > 1:
        return x.T.copy().T
    if layout == "reversed" and x.ndim:
        backwards = (slice(None, None, -1),) * x.ndim
        return x[backwards].copy()[backwards]
    if layout == "strided" and x.ndim:
        room = zeros((*x.shape[:-1], 2 * x.shape[-1]), dtype=x.dtype, device=x.device)
        room[..., 1::2] = x
        return room[..., 1::2]
    return x


def _given(draw: DrawFn, value: Any, read: Callable[[Any], T], default: Callable[[], T]) -> T:
    """*value* itself, one drawn from it if it is a strategy, or the default for None."""
    if value is None:
        return default()
    return read(draw(value) if hasattr(value, "example") else value)


def _as_shape(shape: int | Sequence[int]) -> Shape:
    return (shape,) if isinstance(shape, int) else tuple(shape)


def broadcastable_pairs(
    dtype: Dtype | str | SearchStrategy[Dtype] | None = None,
    *,
    device: Device | str | None = None,
    elements: SearchStrategy[Any] | None = None,
    max_dims: int = 3,
    max_side: int = 5,
) -> SearchStrategy[tuple[Tensor, Tensor]]:
    """Two tensors of one dtype and device whose shapes broadcast.

    The arguments are those of :func:`tensors`.

    Examples:
        >>> from ferrum_array.testing import broadcastable_pairs
        >>> a, b = broadcastable_pairs("f32").example()  # doctest: +SKIP
        >>> (a + b).dtype  # doctest: +SKIP
        ferrum_array.float32
    """

    def one(draw: DrawFn) -> tuple[Tensor, Tensor]:
        kind = _given(draw, dtype, Dtype, lambda: draw(dtypes(device=device)))
        first, second = draw(broadcastable_shapes(2, max_dims=max_dims, max_side=max_side))
        return (
            draw(tensors(kind, first, device=device, elements=elements)),
            draw(tensors(kind, second, device=device, elements=elements)),
        )

    return _composite(one)


def indices(
    shape: Shape,
    *,
    arrays: bool = True,
    masks: bool = True,
    newaxis: bool = True,
    device: Device | str | None = None,
) -> SearchStrategy[Key]:
    """Keys that are valid for a tensor of *shape*: ``x[key]`` raises nothing.

    A key is an integer, a slice, ``None``, ``...``, an integer tensor, a boolean tensor, or a tuple
    of them, with at most one boolean tensor (of one or two axes) or any number of integer tensors.

    Args:
        arrays, masks, newaxis: whether keys may hold integer tensors, boolean tensors, None.
        device: where the tensors of keys lie; the default device for None.

    Examples:
        >>> from ferrum_array.testing import indices
        >>> indices((3, 4)).example()  # doctest: +SKIP
        (slice(None, 2, None), Ellipsis, 1)
    """
    st = _st()
    modes = ["basic", *(["arrays"] if arrays else []), *(["mask"] if masks else [])]

    def one(draw: DrawFn) -> Key:
        taken = draw(st.integers(0, len(shape)))
        split = draw(st.integers(0, taken))  # axes before the ellipsis; the others come after it
        has_ellipsis = draw(st.booleans())
        head = list(shape[:split])
        tail = list(shape[len(shape) - (taken - split) :] if has_ellipsis else shape[split:taken])
        mode = draw(st.sampled_from(modes))
        places: tuple[Shape, ...] = ()
        if mode == "arrays":
            places = draw(broadcastable_shapes(2, max_dims=2, max_side=3))
        parts = _parts(draw, head, mode, places, device)
        if any(isinstance(part, Tensor) and part.dtype is Dtype.BOOL for part in parts):
            mode = "basic"  # two masks need not broadcast
        behind = _parts(draw, tail, mode, places, device)
        parts = [*parts, *([...] if has_ellipsis else []), *behind]
        if newaxis and draw(st.booleans()):
            for _ in range(draw(st.integers(1, 2))):
                parts.insert(draw(st.integers(0, len(parts))), None)
        return parts[0] if len(parts) == 1 and draw(st.booleans()) else tuple(parts)

    return _composite(one)


def _parts(draw: DrawFn, lengths: list[int], mode: str, places: tuple[Shape, ...], device: Any) -> list[Any]:
    """Parts of a key for neighbouring axes: at most one mask, or tensors of the shapes *places*."""
    st = _st()
    parts: list[Any] = []
    while lengths:
        length = lengths[0]
        kinds = ["slice", "integer"] if length else ["slice"]
        kinds += ["array"] if places and length else []
        kinds += ["mask"] if mode == "mask" else []
        kind = draw(st.sampled_from(kinds))
        covered = 1
        if kind == "slice":
            parts.append(draw(st.slices(length)))
        elif kind == "integer":
            parts.append(draw(st.integers(-length, length - 1)))
        elif kind == "array":
            near = min(length, 1 << 20)
            values = st.integers(-near, near - 1)
            place = draw(st.sampled_from(places))
            parts.append(draw(tensors("i64", place, device=device, elements=values)))
        else:
            covered = draw(st.integers(1, min(2, len(lengths))))
            parts.append(draw(tensors("bool", tuple(lengths[:covered]), device=device)))
            mode = "basic"
        lengths = lengths[covered:]
    return parts
