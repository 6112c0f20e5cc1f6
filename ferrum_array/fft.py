"""Discrete Fourier transforms: the ``fft`` extension of the array API standard. 16-bit floats give complex64."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, Protocol, TypeVar

from ferrum_array.creation import arange
from ferrum_array.device import Device
from ferrum_array.dispatch import DEFAULT_FLOAT, integer, normalize_axes, normalize_axis, shape_tuple, tensor
from ferrum_array.dtype import Dtype
from ferrum_array.manipulation import concat, roll
from ferrum_array.spec import spec_of
from ferrum_array.tensor import Axis, Tensor, wrap

__all__ = [
    "fft", "fftfreq", "fftn", "fftshift", "hfft", "ifft", "ifftn", "ifftshift", "ihfft", "irfft", "irfftn", "rfft",
    "rfftfreq", "rfftn",
]  # fmt: skip

_F = TypeVar("_F", bound=Callable[..., Tensor])

#: What a transform is, an example, and its result.
Doc = tuple[str, str, str]

Norm = Literal["backward", "ortho", "forward"]

#: What transforms complex numbers where a function takes real ones only; ihfft makes half of what ifft makes of them.
_OF_COMPLEX = {"rfft": "fft", "rfftn": "fftn", "ihfft": "ifft"}


class Transform(Protocol):
    """A transform along one axis."""

    def __call__(self, x: Tensor, /, *, n: int | None = None, axis: int = -1, norm: Norm = "backward") -> Tensor: ...


class TransformN(Protocol):
    """A transform along several axes."""

    def __call__(
        self,
        x: Tensor,
        /,
        *,
        s: Sequence[int] | None = None,
        axes: Sequence[int] | None = None,
        norm: Norm = "backward",
    ) -> Tensor: ...


def _check(name: str, norm: str, *lengths: int | None) -> None:
    if norm not in ("backward", "ortho", "forward"):
        raise ValueError(f"{name}: norm must be 'backward', 'ortho' or 'forward', got {norm!r}")
    for length in lengths:
        if length is not None and length < 1:
            raise ValueError(f"{name}: a transform needs at least one point, got {length}")


def _ready(name: str, x: Tensor, takes: str) -> Tensor:
    """*x* in the dtype that the transform works on: complex, or real where *takes* says so."""
    x = tensor(name, x)
    dtype = x.dtype
    if takes == "real":
        if dtype.is_complex:
            raise TypeError(f"{name}: takes real numbers, got {x._summary()}; use {_OF_COMPLEX[name]} for complex ones")
        wanted = dtype if dtype in (Dtype.F32, Dtype.F64) else DEFAULT_FLOAT
    else:
        wanted = dtype.complex if dtype.is_floating or dtype.is_complex else Dtype.C64
    return x if wanted is dtype else wrap(spec_of(wanted, x.device).call["astype"](x._data), spec_of(wanted, x.device))


def _transform(name: str, takes: str, real_result: bool, doc: Doc) -> Transform:
    def function(x: Tensor, /, *, n: int | None = None, axis: int = -1, norm: Norm = "backward") -> Tensor:
        x = _ready(name, x, takes)
        place = normalize_axis(name, axis, x.ndim)
        length = None if n is None else integer(name, "n", n)
        _check(name, norm, length)
        if length is not None:
            shape_tuple(name, (*x.shape[:place], length, *x.shape[place + 1 :]))  # no memory holds some
        if length is None and x.shape[place] < (2 if real_result else 1):
            raise ValueError(f"{name}: axis {place} of {x._summary()} is too short; give n=")
        result = spec_of(x.dtype.real if real_result else x.dtype.complex, x.device)
        return wrap(x._spec.call[name](x._data, length, place, norm), result)

    return _named(function, name, _ONE_AXIS, doc)


_ONE_AXIS = """
    n: the number of points: *x* is cut or filled with zeros at the end of the axis; the axis as it is by default.
    axis: along which."""
_SEVERAL_AXES = """
    s: the number of points of each axis: *x* is cut or filled with zeros at its end; the axes as they are by default.
    axes: along which; by default the last ones, as many as *s* says, or all."""


def _named(function: _F, name: str, arguments: str, doc: Doc) -> _F:
    real = name in _OF_COMPLEX
    function.__name__ = function.__qualname__ = name
    function.__doc__ = (
        f"{doc[0]}\n\n"
        "Computed in float64 and complex128 for these, else in float32 and complex64.\n\n"
        f"Args:\n    x: [...], {'real' if real else 'real or complex'}.{arguments}\n"
        "    norm: where 1/n stands: ``backward`` in the inverse, ``forward`` in the forward transform, ``ortho`` its\n"
        "        root in both.\n\n"
        "Raises:\n    ValueError: for another norm, no points, or lengths that do not fit the axes.\n"
        f"    IndexError: for an axis out of bounds. TypeError: for {'complex numbers, ' if real else ''}numbers of\n"
        "        points that are no integers, and a device without the complex dtype.\n\n"
        "Source: array API standard 2025.12, ``fft`` extension.\n\n"
        f"Examples:\n    >>> import ferrum_array as fa\n    >>> {doc[1]}\n    {doc[2]}\n"
    )
    return function


def _sequence(name: str, what: str, values: Any) -> tuple[Any, ...] | None:
    """*values*, the argument *what*, one for each axis, or None."""
    if values is not None and not isinstance(values, Iterable):
        raise TypeError(f"{name}: {what} must be a sequence, got {type(values).__name__} {values!r:.60}")
    return None if values is None else tuple(values)


def _transform_n(name: str, one: Callable[..., Tensor], last: Callable[..., Tensor], doc: Doc) -> TransformN:
    """Several axes: *last* along the last one, *one* along the others (before it for inverse transforms)."""

    def function(
        x: Tensor, /, *, s: Sequence[int] | None = None, axes: Sequence[int] | None = None, norm: Norm = "backward"
    ) -> Tensor:
        x = tensor(name, x)
        lengths, chosen = _sequence(name, "s", s), _sequence(name, "axes", axes)
        if lengths is not None:  # None among them stands for the length that the axis has
            lengths = tuple(None if one is None else integer(name, "a length in s", one) for one in lengths)
        if chosen is not None:
            places = normalize_axes(name, chosen, x.ndim)
        else:
            places = tuple(range(x.ndim))[-len(lengths) if lengths else None :]
        if lengths is not None and len(lengths) != len(places):
            raise ValueError(f"{name}: s={lengths} needs one axis for each length, got axes {places} of {x._summary()}")
        if not places:
            raise ValueError(f"{name}: needs at least one axis, got {x._summary()} with axes={axes}")
        _check(name, norm, *(lengths or ()))
        if last is rfft and x.dtype.is_complex:
            _ready(name, x, "real")  # says what to use, in the name of this function
        steps = list(zip(places, lengths or (None,) * len(places), strict=True))
        if last is irfft:
            for place, length in steps[:-1]:
                x = one(x, n=length, axis=place, norm=norm)
            return last(x, n=steps[-1][1], axis=steps[-1][0], norm=norm)
        x = last(x, n=steps[-1][1], axis=steps[-1][0], norm=norm)
        for place, length in reversed(steps[:-1]):
            x = one(x, n=length, axis=place, norm=norm)
        return x

    return _named(function, name, _SEVERAL_AXES, doc)


fft = _transform(
    "fft",
    "complex",
    False,
    (
        "The discrete Fourier transform along one axis.",
        "fa.fft.fft(fa.asarray([1.0, 0.0]))",
        "Tensor([1.+0.j, 1.+0.j])",
    ),
)
ifft = _transform(
    "ifft",
    "complex",
    False,
    ("The inverse of :func:`fft`.", "fa.fft.ifft(fa.asarray([2.0, 0.0]))", "Tensor([1.+0.j, 1.+0.j])"),
)
rfft = _transform(
    "rfft",
    "real",
    False,
    (
        "The transform of real numbers: the n // 2 + 1 points that are not mirrored.",
        "fa.fft.rfft(fa.ones(4))",
        "Tensor([4.+0.j, 0.+0.j, 0.+0.j])",
    ),
)
irfft = _transform(
    "irfft",
    "complex",
    True,
    (
        "The inverse of :func:`rfft`: real; n = 2 (points - 1) by default.",
        "fa.fft.irfft(fa.asarray([4.0, 0.0, 0.0]))",
        "Tensor([1., 1., 1., 1.])",
    ),
)
hfft = _transform(
    "hfft",
    "complex",
    True,
    (
        "The transform of a Hermitian sequence: real; n = 2 (points - 1) by default.",
        "fa.fft.hfft(fa.asarray([1.0, 0.0]))",
        "Tensor([1., 1.])",
    ),
)
ihfft = _transform(
    "ihfft", "real", False, ("The inverse of :func:`hfft`.", "fa.fft.ihfft(fa.ones(2))", "Tensor([1.-0.j, 0.-0.j])")
)
fftn = _transform_n(
    "fftn",
    fft,
    fft,
    ("The discrete Fourier transform along several axes.", "fa.fft.fftn(fa.ones((2, 2)))[0, 0]", "Tensor(4.+0.j)"),
)
ifftn = _transform_n(
    "ifftn", ifft, ifft, ("The inverse of :func:`fftn`.", "fa.fft.ifftn(fa.ones((2, 2)))[0, 0]", "Tensor(1.+0.j)")
)
rfftn = _transform_n(
    "rfftn",
    fft,
    rfft,
    (
        "The transform of real numbers along several axes, the last one halved.",
        "fa.fft.rfftn(fa.ones((2, 4))).shape",
        "(2, 3)",
    ),
)
irfftn = _transform_n(
    "irfftn", ifft, irfft, ("The inverse of :func:`rfftn`.", "fa.fft.irfftn(fa.ones((2, 3))).shape", "(2, 4)")
)


def _frequencies(name: str, n: int, d: float, dtype: Any, device: Device | str | None, half: bool) -> Tensor:
    count = integer(name, "n", n)
    try:
        spacing = float(d)
    except (TypeError, ValueError):
        raise TypeError(f"{name}: d must be a real number, got {type(d).__name__} {d!r:.60}") from None
    if count < 1 or spacing == 0:
        raise ValueError(f"{name}: needs n >= 1 and d != 0, got n={n}, d={d}")
    wanted = DEFAULT_FLOAT if dtype is None else Dtype(dtype)
    if not wanted.is_floating:
        raise TypeError(f"{name}: frequencies are real floating numbers, not {wanted}")
    wide = Dtype.F32 if wanted.bits == 16 else wanted  # 16 bits do not hold every number of a point
    if half:
        steps = arange(count // 2 + 1, dtype=wide, device=device)
    else:
        steps = concat([arange((count + 1) // 2, dtype=wide, device=device),
                        arange(-(count // 2), 0, dtype=wide, device=device)])  # fmt: skip
    return (steps / (count * spacing)).astype(wanted, copy=False)


def fftfreq(n: int, /, *, d: float = 1.0, dtype: Any = None, device: Device | str | None = None) -> Tensor:
    """The frequencies of the *n* points of :func:`fft`, in cycles per unit of the sample spacing *d*.

    Raises:
        ValueError: for ``n < 1`` or ``d == 0``.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.fft.fftfreq(4)
        Tensor([ 0.  ,  0.25, -0.5 , -0.25])
    """
    return _frequencies("fftfreq", n, d, dtype, device, False)


def rfftfreq(n: int, /, *, d: float = 1.0, dtype: Any = None, device: Device | str | None = None) -> Tensor:
    """The frequencies of the n // 2 + 1 points of :func:`rfft`, in cycles per unit of the sample spacing *d*.

    Raises:
        ValueError: for ``n < 1`` or ``d == 0``.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.fft.rfftfreq(4)
        Tensor([0.  , 0.25, 0.5 ])
    """
    return _frequencies("rfftfreq", n, d, dtype, device, True)


def fftshift(x: Tensor, /, *, axes: Axis = None) -> Tensor:
    """The zero frequency moved to the middle of *axes* (all by default).

    Examples:
        >>> import ferrum_array as fa
        >>> fa.fft.fftshift(fa.asarray([0, 1, -2, -1]))
        Tensor([-2, -1,  0,  1])
    """
    x = tensor("fftshift", x)
    places = normalize_axes("fftshift", axes, x.ndim)
    return roll(x, tuple(x.shape[a] // 2 for a in places), axis=places) if places else x.copy()


def ifftshift(x: Tensor, /, *, axes: Axis = None) -> Tensor:
    """The inverse of :func:`fftshift`.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.fft.ifftshift(fa.asarray([-2, -1, 0, 1]))
        Tensor([ 0,  1, -2, -1])
    """
    x = tensor("ifftshift", x)
    places = normalize_axes("ifftshift", axes, x.ndim)
    return roll(x, tuple(-(x.shape[a] // 2) for a in places), axis=places) if places else x.copy()
