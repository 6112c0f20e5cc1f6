"""How many threads the kernels of this package use on the CPU: a setting, without the threads."""

from __future__ import annotations

import os

__all__ = ["set_threads", "threads"]


def _available() -> int:
    """The cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _checked(value: object, source: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{source} must be an integer of at least 1, got {value!r}")
    return value


def _from_environment() -> int:
    text = os.environ.get("FERRUM_THREADS")
    if text is None:
        return _available()
    return _checked(int(text) if text.strip().isdecimal() else text, "FERRUM_THREADS")


_count: int | None = None


def threads() -> int:
    """How many threads one call of an op may use on the CPU, the calling thread included.

    It is what ``set_threads`` said last, else the environment variable ``FERRUM_THREADS``, else the number of cores
    that the process may run on.

    Raises:
        ValueError: if ``FERRUM_THREADS`` is not an integer of at least 1.

    Examples:
        >>> from ferrum_ops import threads
        >>> threads() >= 1
        True
    """
    global _count
    if _count is None:
        _count = _from_environment()
    return _count


def set_threads(count: int) -> None:
    """Let calls of ops use *count* threads on the CPU from now on, in the whole process.

    Where several Python threads call ops at once, one of them has the helpers and the others work alone, so there are
    never more than ``count - 1`` helpers. Results are the same to the bit for every count. The setting is about the
    kernels of this package: NumPy's own linear algebra, which references use, follows the settings of its BLAS.

    Raises:
        ValueError: if *count* is not an integer of at least 1.

    Examples:
        >>> from ferrum_ops import set_threads, threads
        >>> before = threads()
        >>> set_threads(1)
        >>> threads()
        1
        >>> set_threads(before)
    """
    global _count
    _count = _checked(count, "set_threads: count")
