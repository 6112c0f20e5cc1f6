"""bfloat16 through NumPy's DLPack, which does not know it: the bits travel as 16-bit integers.

A capsule holds a C structure that says of which type the elements are (DLPack 1.1, ``dlpack.h``). Here it is changed
before anybody reads it: from integers to bfloat16 on the way out, and back on the way in.
"""

from __future__ import annotations

import ctypes
from typing import Any, Final

__all__ = ["Integers", "as_bfloat16"]

_INTEGER: Final = 0
_BFLOAT: Final = 4
#: names of capsules -> where the code of the type stands: in DLManagedTensor, and behind the head of the versioned one
_PLACES: Final = {b"dltensor": 20, b"dltensor_versioned": 52}

_name = ctypes.pythonapi.PyCapsule_GetName
_name.argtypes, _name.restype = [ctypes.py_object], ctypes.c_char_p
_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.argtypes, _pointer.restype = [ctypes.py_object, ctypes.c_char_p], ctypes.c_void_p


def _change(capsule: Any, old: int, new: int) -> bool:
    """Whether the elements were 16-bit ones of the type *old*; they are then of the type *new*."""
    name = _name(capsule)
    address = _pointer(capsule, name)
    if name not in _PLACES or address is None:
        return False
    code = (ctypes.c_uint8 * 2).from_address(address + _PLACES[name])
    if tuple(code) != (old, 16):
        return False
    code[0] = new
    return True


def as_bfloat16(capsule: Any) -> Any:
    """*capsule* of 16-bit integers, of which nobody has taken the memory yet, as one of bfloat16."""
    if not _change(capsule, _INTEGER, _BFLOAT):
        raise BufferError("__dlpack__: bfloat16 is exported from the CPU's memory as 16-bit integers alone")
    return capsule


class Integers:
    """Exports what *source* exports, bfloat16 as 16-bit integers."""

    def __init__(self, source: Any) -> None:
        self._source = source
        self.changed = False

    def __dlpack__(self, **options: Any) -> Any:
        capsule = self._source.__dlpack__(**options)
        self.changed = _change(capsule, _BFLOAT, _INTEGER)
        return capsule

    def __dlpack_device__(self) -> Any:
        return self._source.__dlpack_device__()
