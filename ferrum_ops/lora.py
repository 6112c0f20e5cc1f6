"""Low-rank changes of weight matrices, one or many in a batch."""

from __future__ import annotations

import math
from itertools import pairwise

import ferrum_array as fa
from ferrum_array import Tensor
from ferrum_ops.checks import accumulator, alike, describe, finite, floating, integers
from ferrum_ops.registry import Op

__all__ = ["lora_delta"]

_LORA_DELTA: Op[Tensor] = Op("lora_delta")


def lora_delta(x: Tensor, A: Tensor, B: Tensor, scale: float | Tensor, adapter_ids: Tensor | None = None) -> Tensor:
    """``scale * (x @ A.T) @ B.T``: x [..., K], A [R, K], B [N, R] give [..., N], what an adapter adds to a layer.

    Everything is computed in float32 (float64 for float64), the R numbers in between included, and rounded once, to
    the dtype of *x*. With *adapter_ids* each row has an adapter of its own: A [E, R, K] and B [E, N, R] hold E of them;
    an adapter of a lower rank is filled up with zeros. A row meets its own adapter only: what the others hold, NaN
    included, does not touch it.

    Args:
        x: the input of the layer that is adapted.
        A: the adapter's first matrix, or E of them.
        B: its second.
        scale: a factor; or a tensor, with one for each adapter, [E].
        adapter_ids: integers [...] of the shape of *x* without its last axis, or of its leading axes: one for each
            sequence, say. From 0 to E - 1, or -1 for rows without an adapter, which give 0.

    The ids are read back, to make one pair of products for each adapter in use.

    Source: Hu et al., "LoRA", 2021; Chen et al., "Punica", 2023, for many adapters in a batch.

    Raises:
        TypeError: if *x*, *A* and *B* differ in dtype, anything is not real floating-point, or ids are not integers.
        ValueError: for shapes or devices that do not fit, or a *scale* that is not finite.
        IndexError: for an id that is not from -1 to E - 1.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_ops import lora_delta
        >>> x = fa.asarray([[1.0, 2.0], [1.0, 2.0], [1.0, 2.0]])
        >>> lora_delta(x[0], fa.asarray([[1.0, 1.0]]), fa.asarray([[1.0], [2.0]]), 0.5)
        Tensor([1.5, 3. ])
        >>> A, B = fa.asarray([[[1.0, 1.0]], [[0.0, 1.0]]]), fa.ones((2, 1, 1))
        >>> lora_delta(x, A, B, fa.asarray([1.0, 10.0]), fa.asarray([1, -1, 0]))
        Tensor([[20.],
                [ 0.],
                [ 3.]])
    """
    floating("lora_delta", "x", x)
    for what, matrix in (("A", A), ("B", B)):
        floating("lora_delta", what, matrix)
        alike("lora_delta", x, what, matrix)
    axes = 2 if adapter_ids is None else 3
    if not x.ndim or A.ndim != axes or B.ndim != axes:
        want = "x [..., K], A [R, K], B [N, R]" if adapter_ids is None else "x [..., K], A [E, R, K], B [E, N, R]"
        raise ValueError(
            f"lora_delta: {'without' if adapter_ids is None else 'with'} adapter_ids the operands are {want}, "
            f"got {describe(x)}, {describe(A)}, {describe(B)}"
        )
    if x.shape[-1] != A.shape[-1] or A.shape[-2] != B.shape[-1] or A.shape[:-2] != B.shape[:-2]:
        raise ValueError(
            "lora_delta: x and A must share K, A and B must share R and the number of adapters, "
            f"got x {describe(x)}, A {describe(A)}, B {describe(B)}"
        )
    features = (*(("scales",) if isinstance(scale, Tensor) else ()), *(("adapter_ids",) if axes == 3 else ()))
    _check_scale(scale, A)
    if adapter_ids is not None:
        integers("lora_delta", "adapter_ids", adapter_ids)
        alike("lora_delta", x, "adapter_ids", adapter_ids, dtype=False)
        if adapter_ids.shape != x.shape[: min(adapter_ids.ndim, x.ndim - 1)]:
            raise ValueError(
                "lora_delta: adapter_ids must have the leading axes of x, all or some, without the last: "
                f"got {describe(adapter_ids)} for x {describe(x)}"
            )
    return _LORA_DELTA(x.device, (x.dtype,), features, x, A, B, scale, adapter_ids)


def _check_scale(scale: float | Tensor, A: Tensor) -> None:
    if not isinstance(scale, Tensor):
        if not finite("lora_delta", "scale", scale):
            raise ValueError(f"lora_delta: scale must be finite, got {scale}")
        return
    floating("lora_delta", "scale", scale)
    alike("lora_delta", A, "scale", scale, dtype=False)
    if scale.shape != A.shape[:-2]:
        raise ValueError(f"lora_delta: scale must have shape {A.shape[:-2]} for A {describe(A)}, got {describe(scale)}")


@_LORA_DELTA.reference
def _lora_delta(x: Tensor, A: Tensor, B: Tensor, scale: float | Tensor, adapter_ids: Tensor | None) -> Tensor:
    wide = accumulator(x.dtype)
    shape = (*x.shape[:-1], B.shape[-2])
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    if adapter_ids is None:
        return _pair(rows.astype(wide, copy=False), A, B, scale).astype(x.dtype, copy=False).reshape(shape)
    adapters = A.shape[0]
    if adapter_ids.size:
        low, high = int(fa.min(adapter_ids)), int(fa.max(adapter_ids))
        if low < -1 or high >= adapters:
            raise IndexError(
                f"lora_delta: adapter_ids run from {low} to {high}, but A {describe(A)} holds {adapters} adapters, "
                "counted from 0; -1 stands for none"
            )
    each = math.prod(x.shape[adapter_ids.ndim : -1])
    ids = fa.repeat(adapter_ids.astype("i64", copy=False).reshape(adapter_ids.size), each)
    # Sorted by adapter, rows of one adapter lie side by side, behind those that have none.
    order = fa.argsort(ids)
    bounds = fa.searchsorted(fa.sort(ids), fa.arange(adapters + 1, device=x.device)).tolist()
    rows = fa.take(rows, order, axis=0).astype(wide, copy=False)
    parts = [fa.zeros((bounds[0], shape[-1]), dtype=wide, device=x.device)]
    parts += [
        _pair(rows[start:stop], A[e], B[e], scale[e] if isinstance(scale, Tensor) else scale)
        for e, (start, stop) in enumerate(pairwise(bounds))
        if start < stop
    ]
    y = fa.concat(parts).astype(x.dtype, copy=False)
    return fa.take(y, fa.argsort(order), axis=0).reshape(shape)


def _pair(rows: Tensor, A: Tensor, B: Tensor, scale: float | Tensor) -> Tensor:
    factor = scale.astype(rows.dtype, copy=False) if isinstance(scale, Tensor) else float(scale)
    return (rows @ A.astype(rows.dtype, copy=False).T * factor) @ B.astype(rows.dtype, copy=False).T
