"""Kernels for NumPy storage, compiled by numba at their first use: the extra ``cpu``.

This file is a table: what runs for which calls. numba is imported with the first kernel that runs, and nothing is
compiled before.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache

from ferrum_ops.kernels.cpu.features import lacks

__all__ = ["needs"]


@cache
def _numba_is_missing() -> str | None:
    if importlib.util.find_spec("numba") is None:
        return 'numba is not installed; pip install "ferrum[cpu]"'
    return None


def needs(*features: str) -> Callable[[], str | None]:
    """What a row asks for the reason why the machine cannot run it: numba is missing, or features of the processor.

    Examples:
        >>> from ferrum_ops.kernels.cpu import needs
        >>> needs("avx1024")()
        '...avx1024'
    """
    return lambda: _numba_is_missing() or lacks(*features)
