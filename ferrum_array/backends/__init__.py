"""Storage libraries, one file each, loaded when first asked for. Nothing outside this package names them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module

from ferrum_array.backends.base import Backend, Raw

__all__ = ["Backend", "Raw", "available", "load"]

#: device kind -> (module of this package, distribution that must be installed, extra of ours that installs it)
_LIBRARIES = {
    "cpu": ("numpy", "numpy", ""),
    "cuda": ("cupy", "cupy", "cuda"),
    "mlx": ("mlx", "mlx.core", "mlx"),
}


@cache
def load(kind: str, index: int | str) -> Backend:
    """The backend for device *index* of *kind* (``"cpu"``, ``"cuda"`` or ``"mlx"``).

    Raises:
        ImportError: if its library is not installed; the message names the extra that installs it.
        ValueError: if the library has no such device.
    """
    module, distribution, extra = _LIBRARIES[kind]
    try:
        import_module(distribution)
    except ImportError as error:
        raise ImportError(
            f"device {kind}:{index} needs the library {distribution.split('.')[0]}, which cannot be imported "
            f"({error}); install it with: pip install 'ferrum[{extra}]'"
        ) from error
    make: Callable[[int | str], Backend] = import_module(f"ferrum_array.backends.{module}").make
    return make(index)


@cache
def available(kind: str) -> tuple[int | str, ...]:
    """The indices of the usable devices of *kind*; empty if its library is not installed or sees no device."""
    module, distribution, _ = _LIBRARIES[kind]
    try:
        import_module(distribution)
    except ImportError:
        return ()
    indices: Callable[[], tuple[int | str, ...]] = import_module(f"ferrum_array.backends.{module}").indices
    return indices()
