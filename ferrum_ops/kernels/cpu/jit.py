"""How kernels are compiled: with numba, at their first use, outside the interpreter's lock, and kept on disk.

This module imports numba, so only modules of kernels import it: they are loaded when a kernel is first called.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, TypeVar, overload

import numba
from numba import extending

from ferrum_ops.kernels.cpu.cache import CodeCache

__all__ = ["ANY_ORDER", "EXACT", "intrinsic", "jit"]

_njit: Any = numba.njit  # numba's types are of some versions and incomplete
_intrinsic: Any = extending.intrinsic

_F = TypeVar("_F", bound=Callable[..., Any])

#: Sums in any order, and a product may go into a sum without being rounded. NaN, infinities and the sign of zero mean
#: what they mean: flags that would let the compiler assume that they do not occur are in no kernel.
ANY_ORDER = frozenset(("contract", "reassoc"))
#: As written, but for products that go into a sum without being rounded.
EXACT = frozenset(("contract",))


@overload
def jit(function: _F) -> _F: ...


@overload
def jit(
    *, fastmath: frozenset[str] = ANY_ORDER, variant: tuple[object, ...] = (), inner: bool = False
) -> Callable[[_F], _F]: ...


def jit(
    function: _F | None = None,
    *,
    fastmath: frozenset[str] = ANY_ORDER,
    variant: tuple[object, ...] = (),
    inner: bool = False,
) -> _F | Callable[[_F], _F]:
    """Compile *function* for the types of its arguments when it is first called with them.

    Compiled code does not hold the interpreter's lock, does not check bounds, and divides as IEEE 754 says. It is kept
    on disk, see ``cache``.

    Args:
        function: what is compiled.
        fastmath: what the compiler may do to the arithmetic: ``ANY_ORDER`` or ``EXACT``.
        variant: for a function made by another function: what tells it from its sisters, where ``repr`` says all.
        inner: it is called by compiled code alone; Python cannot call it, and it compiles faster.

    Raises:
        TypeError: for a function that reads variables of an enclosing function and has no *variant*.
    """

    def decorate(function: _F) -> _F:
        plain: Any = function
        if plain.__code__.co_freevars and not variant:
            raise TypeError(f"jit: {function.__name__} is one of several of this name; say which with variant")
        if variant:
            # numba numbers functions of one name as a process meets them and makes that the symbol of the code. Of two
            # pieces with one symbol, from the disk where two processes left them, a third would run one for both.
            own = hashlib.sha256(repr(variant).encode()).hexdigest()[:16]
            plain.__name__, plain.__qualname__ = f"{plain.__name__}_{own}", f"{plain.__qualname__}_{own}"
        compiled: Any = _njit(
            nogil=True,
            fastmath=set(fastmath),
            error_model="numpy",
            boundscheck=False,
            no_cpython_wrapper=inner,
            no_cfunc_wrapper=True,
        )(function)
        compiled._cache = CodeCache(function, variant)
        result: _F = compiled
        return result

    return decorate if function is None else decorate(function)


def intrinsic(function: Callable[..., Any]) -> Any:
    """numba's ``intrinsic``: a function that writes the code of a function, for use inside compiled code."""
    return _intrinsic(function)
