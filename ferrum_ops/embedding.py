"""Rows of a table, chosen by integers."""

from __future__ import annotations

import ferrum_array as fa
from ferrum_array import Tensor
from ferrum_array.indexing import take_known
from ferrum_ops.checks import accumulator, alike, describe, finite, floating, integers
from ferrum_ops.registry import Op

__all__ = ["embedding"]

_EMBEDDING: Op[Tensor] = Op("embedding")


def embedding(table: Tensor, ids: Tensor, *, scale: float | None = None, check: bool = True) -> Tensor:
    """The rows *ids* of *table*: table [V, D] and integer ids [...] give [..., D] in the table's dtype.

    With *scale*, rows are multiplied by it in float32 (float64 for float64) and rounded once; without it they are
    exact copies. That ids are in range is checked by reading back their least and greatest, unless *check* is False:
    then an id that is not is taken for the nearest that is. That is for ids which are known to be in range, in work
    that is captured and must not read back.

    Source: Bengio et al., "A neural probabilistic language model", 2003; Vaswani et al., "Attention is all you need",
    2017, for the scale.

    Raises:
        TypeError: if *table* is not real floating-point, or *ids* are not integers.
        IndexError: for an id below 0 or not below V. ValueError: if *table* is not 2-D, the devices differ, or *scale*
        is not finite.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_ops import embedding
        >>> embedding(fa.asarray([[1.0, 2.0], [3.0, 4.0]]), fa.asarray([1, 1, 0]), scale=2.0)
        Tensor([[6., 8.],
                [6., 8.],
                [2., 4.]])
    """
    floating("embedding", "table", table)
    integers("embedding", "ids", ids)
    alike("embedding", table, "ids", ids, dtype=False)
    if table.ndim != 2:
        raise ValueError(f"embedding: table must be [V, D], got {describe(table)}")
    if scale is not None and not finite("embedding", "scale", scale):
        raise ValueError(f"embedding: scale must be finite, got {scale}")
    if check and ids.size:
        low, high = int(fa.min(ids)), int(fa.max(ids))
        if low < 0 or high >= table.shape[0]:
            raise IndexError(
                f"embedding: ids run from {low} to {high}, but the table {describe(table)} "
                f"has {table.shape[0]} rows, counted from 0"
            )
    elif ids.size and not table.shape[0]:
        raise IndexError(f"embedding: the table {describe(table)} has no rows to choose from")
    return _EMBEDDING(table.device, (table.dtype,), () if scale is None else ("scale",), table, ids, scale)


@_EMBEDDING.reference
def _embedding(table: Tensor, ids: Tensor, scale: float | None) -> Tensor:
    flat = ids.reshape(ids.size).astype(fa.int64, copy=False)
    rows = take_known(table, fa.clip(flat, 0, max(0, table.shape[0] - 1)), 0)
    if scale is not None:
        rows = (rows.astype(accumulator(table.dtype), copy=False) * float(scale)).astype(table.dtype, copy=False)
    return rows.reshape(*ids.shape, table.shape[1])
