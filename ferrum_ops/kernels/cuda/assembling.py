"""Which ptxas makes machine code for Hopper: 12.9 or newer, if the installed Triton has one.

Triton 3.6 takes ptxas 12.8.93 for Hopper. That one leaves out copies into registers of descriptors that tensor cores
read: of tiles of values of 16 or 32 columns, and of queries where a loop may have no turn. Such code compiles without
a word, and multiplies what lies at a stray address. The same package has ptxas 12.9.86, for Blackwell, which compiles
the same programs right and for Hopper too.

So kernels for Hopper are made by the ordinary ptxas if it is sound, as one that ``TRITON_PTXAS_PATH`` names may be;
else by the one for Blackwell if that is; else by the ordinary one after all. Kernels keep clear of what 12.8 is known
to get wrong, and whoever cannot asks ``sound``.

This is a backend of Triton's with a target of its own, so that nothing that other users of Triton in the process see
is changed, and that threads may compile at the same time. The version is part of the key under which code is kept.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final

from triton import knobs
from triton.backends import Backend, backends
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.backends.nvidia.compiler import CUDABackend, get_ptxas_version, ptx_get_version

__all__ = ["sound", "target"]

_HOPPER: Final = 90
_BLACKWELL: Final = 100  # the architecture for which Triton takes the other ptxas
_SOUND: Final = (12, 9)
_NAME: Final = "cuda of ferrum"


class _Assembler(CUDABackend):
    """Triton's own backend but for the last step."""

    @staticmethod
    def supports_target(target: GPUTarget) -> bool:
        return bool(target.backend == _NAME)

    def hash(self) -> str:
        return f"{_NAME}-{get_ptxas_version(_BLACKWELL)}-{self.target.arch}"

    def parse_options(self, opts: dict[str, Any]) -> Any:
        # PTX for the program that will read it: another library may have named a newer one to Triton meanwhile
        version = ptx_get_version(knobs.nvidia.ptxas_blackwell.version)
        return super().parse_options({"ptx_version": version, **opts})

    def make_cubin(self, src: str, metadata: dict[str, Any], opt: Any, capability: int) -> bytes:
        cubin: bytes = CUDABackend(GPUTarget("cuda", _BLACKWELL, 32)).make_cubin(src, metadata, opt, capability)
        return cubin


class _NoDevice(DriverBase):
    """The devices of this backend are those of Triton's own."""

    @staticmethod
    def is_active() -> bool:
        return False


backends[_NAME] = Backend(_Assembler, _NoDevice)


def _is_sound(name: str) -> bool:
    try:
        tool = getattr(knobs.nvidia, name)
    except RuntimeError:  # there is no such program
        return False
    return tuple(map(int, tool.version.split("."))) >= _SOUND


@cache
def target(capability: int) -> GPUTarget:
    """What Triton is to compile for, by the compute capability of the device."""
    other = capability == _HOPPER and not _is_sound("ptxas") and _is_sound("ptxas_blackwell")
    return GPUTarget(_NAME if other else "cuda", capability, 32)


@cache
def sound() -> bool:
    """Whether machine code for Hopper is made by a ptxas that is not known to forget registers."""
    return _is_sound("ptxas") or _is_sound("ptxas_blackwell")
