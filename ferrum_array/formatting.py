"""NumPy-like display of tensors, with options that belong to a thread or task."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, replace
from typing import Any

from ferrum_array.backends import host
from ferrum_array.device import get_default_device
from ferrum_array.dtype import Dtype

__all__ = ["PrintOptions", "get_printoptions", "printoptions", "represent", "set_printoptions"]


@dataclass(frozen=True, slots=True)
class PrintOptions:
    """How tensors are shown; the meanings and defaults are those of ``numpy.set_printoptions``."""

    precision: int = 8
    threshold: int = 1000
    edgeitems: int = 3
    linewidth: int = 75
    suppress: bool = False

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not isinstance(value, int) or value < 0:
                raise ValueError(f"print option {name} must be a non-negative integer, got {value!r}")


_options: ContextVar[PrintOptions] = ContextVar("ferrum_array.printoptions", default=PrintOptions())  # noqa: B039  # frozen


def get_printoptions() -> dict[str, Any]:
    """The print options in force.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.get_printoptions()["edgeitems"]
        3
    """
    return asdict(_options.get())


def set_printoptions(**options: Any) -> None:
    """Set ``precision``, ``threshold``, ``edgeitems``, ``linewidth`` or ``suppress`` for this thread or task.

    Raises:
        TypeError: for an option that does not exist. ValueError: for a negative value.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.set_printoptions(precision=8)
    """
    _options.set(_changed(options))


def _changed(options: dict[str, Any]) -> PrintOptions:
    now = _options.get()
    unknown = set(options) - set(asdict(now))
    if unknown:
        raise TypeError(f"print options are {', '.join(asdict(now))}; there is no {', '.join(sorted(unknown))}")
    return replace(now, **options)


@contextmanager
def printoptions(**options: Any) -> Iterator[None]:
    """Use print options inside a ``with`` block; see :func:`set_printoptions`.

    Examples:
        >>> import ferrum_array as fa
        >>> with fa.printoptions(precision=2):
        ...     print(fa.asarray([3.14159]))
        [3.14]
    """
    token = _options.set(_changed(options))
    try:
        yield
    finally:
        _options.reset(token)


def represent(tensor: Any, prefix: str, suffix: str) -> str:
    """The text of *tensor* between *prefix* and *suffix*; a prefix asks for dtype and device where not default."""
    options = _options.get()
    dtype, device = tensor.dtype, tensor.device
    shown = _edges(tensor, options.edgeitems) if tensor.size > options.threshold else tensor
    text = host.format_array(
        device.backend.to_host(shown._data, copy=None),
        prefix=prefix,
        precision=min(options.precision, 4) if dtype is Dtype.BF16 else options.precision,
        threshold=0 if shown is not tensor else options.threshold,
        edgeitems=options.edgeitems,
        linewidth=options.linewidth,
        suppress_small=options.suppress,
    )
    if not prefix:
        return text
    notes = []
    if tensor.size == 0 and tensor.shape != (0,):
        notes.append(f"shape={tensor.shape}")
    if tensor.size == 0 or dtype not in (Dtype.BOOL, Dtype.I64, Dtype.F32, Dtype.C64):
        notes.append(f"dtype={dtype}")
    if device is not get_default_device():
        notes.append(f"device='{device}'")
    return prefix + ", ".join([text, *notes]) + suffix


def _edges(tensor: Any, edgeitems: int) -> Any:
    """Only what a summary shows, plus one element an axis to be left out: a device need not send the rest."""
    for axis, length in enumerate(tensor.shape):
        if length > 2 * edgeitems + 1:
            fa = tensor.__array_namespace__()
            keys = (
                (slice(None),) * axis + (part,) for part in (slice(0, edgeitems + 1), slice(length - edgeitems, None))
            )
            tensor = fa.concat([tensor[key] for key in keys], axis=axis)
    return tensor
