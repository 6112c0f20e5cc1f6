"""Storage libraries, one file each, loaded when first asked for. Nothing outside this package names them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module

from ferrum_array.backends.base import Backend, Raw

__all__ = ["Backend", "Raw", "available", "home", "load"]

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


def home(obj: object) -> str | None:
    """The name of the device of ours whose library made *obj*; None for NumPy's arrays and those of strangers.

    Where arrays lie in the host's memory, DLPack does not tell: those of MLX's CPU look like NumPy's.
    """
    maker = type(obj).__module__.partition(".")[0]
    kinds = (k for k, (_, library, _) in _LIBRARIES.items() if k != "cpu" and library.partition(".")[0] == maker)
    return next((f"{kind}:{index}" for kind in kinds for index in available(kind)), None)


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
