"""The functions that are computed on the host, by NumPy storage: one row each, with the dtypes and the reason.

A visit waits for the operands. On ``mlx:cpu`` nothing is copied on the way there, because the memory is the host's.
The documentation shows this table.
"""

from __future__ import annotations

from typing import NamedTuple

from ferrum_array.dtype import Dtype

__all__ = ["VISITS", "Visit", "visits_host"]

INTEGERS = frozenset(d for d in Dtype.all() if d.is_integer)
COMPLEX = frozenset((Dtype.C64,))
DOUBLE = frozenset((Dtype.F64,))
FLOATS = frozenset(d for d in Dtype.all() if d.is_floating)
EVERY = frozenset(Dtype.all())

_GROUPS = {INTEGERS: "integers", COMPLEX: "complex64", DOUBLE: "float64", EVERY: "all"}
_GROUPS |= {FLOATS: "floats", COMPLEX | DOUBLE: "float64, complex64"}


class Visit(NamedTuple):
    """One row: functions, the dtypes for which they visit the host, and why."""

    names: tuple[str, ...]
    dtypes: frozenset[Dtype]
    reason: str

    @property
    def kinds(self) -> str:
        """The dtypes in words."""
        return _GROUPS[self.dtypes]


_LAPACK = ("cholesky", "det", "eig", "eigh", "eigvals", "eigvalsh", "inv", "qr", "slogdet", "solve", "svd", "svdvals")

VISITS: tuple[Visit, ...] = (
    Visit(
        ("nonzero", "unique_all"), EVERY, "the shape of the result depends on values, and MLX must know shapes first"
    ),
    Visit(("arange", "linspace"), EVERY, "MLX makes them in 32 bits; on the host they are exact, in 64"),
    Visit(_LAPACK, EVERY, "MLX lacks some, and returns numbers where there is no answer"),
    Visit(("matmul", "vecdot", "einsum"), INTEGERS, "MLX multiplies matrices of floats only"),
    Visit(("hypot", "nextafter"), FLOATS, "MLX has none"),
    Visit(("exp", "sin", "cos", "logaddexp"), DOUBLE, "MLX computes them to the precision of float32"),
    Visit(
        ("divide", "pow", "reciprocal", "square", "sign", "expm1", "log1p", "tanh"),
        COMPLEX,
        "MLX has none, or other results for zeros, infinities and NaN",
    ),
    Visit(("prod", "cumulative_prod"), COMPLEX, "MLX's complex product treats infinities in another way"),
)


def visits_host(name: str, dtype: Dtype) -> bool:
    """Whether the raw function *name* is computed on the host for operands of *dtype*."""
    return any(name in row.names and dtype in row.dtypes for row in VISITS)
