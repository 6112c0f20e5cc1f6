"""What the processor can do, as far as kernels choose their code by it."""

from __future__ import annotations

import os
import platform
from functools import cache

__all__ = ["KNOWN", "features", "lacks", "portable"]

#: the features that kernels ask for, by LLVM's names
KNOWN = ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512vnni", "avx512bf16")

_X86 = frozenset(("x86_64", "amd64", "AMD64"))


@cache
def portable() -> bool:
    """Whether code for special processors is switched off, by ``FERRUM_CPU=portable``.

    Raises:
        ValueError: for any other value of the variable.

    Examples:
        >>> from ferrum_ops.kernels.cpu.features import features, portable
        >>> bool(features()) and portable()
        False
    """
    wanted = os.environ.get("FERRUM_CPU", "")
    if wanted not in ("", "portable"):
        raise ValueError(f"FERRUM_CPU must be 'portable' or not set, got {wanted!r}")
    return wanted == "portable"


@cache
def features() -> frozenset[str]:
    """Those of ``KNOWN`` that the processor has and kernels may use; none where ``portable()``.

    Examples:
        >>> from ferrum_ops.kernels.cpu.features import KNOWN, features
        >>> features() <= set(KNOWN)
        True
    """
    if portable() or platform.machine() not in _X86:
        return frozenset()
    from llvmlite import binding

    host = binding.get_host_cpu_features()
    return frozenset(name for name in KNOWN if host.get(name))


def lacks(*wanted: str) -> str | None:
    """Why kernels that need these features cannot run here, or None if they can.

    Examples:
        >>> from ferrum_ops.kernels.cpu.features import lacks
        >>> lacks() is None
        True
    """
    if not wanted or set(wanted) <= features():
        return None
    if portable():
        return f"FERRUM_CPU=portable switches off {', '.join(wanted)}"
    return f"the processor has no {', '.join(name for name in wanted if name not in features())}"
