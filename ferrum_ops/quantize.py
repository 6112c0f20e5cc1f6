"""Numbers in fewer bits: into a scheme, out of it, and into the order that a kernel reads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ferrum_array as fa
from ferrum_array import Dtype, Tensor
from ferrum_ops.checks import describe, floating
from ferrum_ops.quant.integer import IntScheme
from ferrum_ops.quant.names import scheme as scheme_of
from ferrum_ops.quant.tensor import QuantTensor
from ferrum_ops.quant.types import Scheme, find_layout, layout_names
from ferrum_ops.registry import Op, load_kernels

__all__ = ["dequantize", "quantize", "repack"]

# Rows of quantize are chosen by the dtype of x, those of dequantize by the dtype of the result.
_QUANTIZE: Op[QuantTensor] = Op("quantize")
_DEQUANTIZE: Op[Tensor] = Op("dequantize")


def quantize(x: Tensor, scheme: Scheme | str) -> QuantTensor:
    """The numbers *x*, [N, K] or [E, N, K], in *scheme*: each is stored as the nearest number that its group can hold.

    *x* is rounded to float32 first. ``dequantize`` then gives back each number within half a step of its group; the
    scheme says what a step is. Numbers are read, and nothing else: schemes whose authors choose the integers by what
    they do to a model's output (GPTQ, AWQ) cannot be made here.

    Args:
        x: any real floating dtype; the result's ``dtype`` is this one.
        scheme: a scheme, or its name: ``int8``, ``int4-g32``, ``q8_0``, ``mxfp4``, ``fp8_e4m3`` and so on; see
            ``ferrum_ops.quant.names.scheme``.

    Source: the scheme's.

    Raises:
        TypeError: for anything not real floating-point, and a *scheme* that is none.
        ValueError: for another number of axes, an N or K that the scheme cannot divide, an unknown name, and a scheme
            that numbers cannot be brought into here.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_ops import dequantize, quantize
        >>> q = quantize(fa.asarray([[1.0, -127.0], [0.5, 2.54]]), "int8")
        >>> q.parts["values"]
        Tensor([[   1, -127],
                [  25,  127]], dtype=int8)
        >>> dequantize(q)
        Tensor([[   1.  , -127.  ],
                [   0.5 ,    2.54]])
    """
    floating("quantize", "x", x)
    if x.ndim not in (2, 3):
        raise ValueError(f"quantize: x must be [N, K] or [E, N, K], got {describe(x)}")
    if isinstance(scheme, str):
        scheme = scheme_of(scheme)
    if not isinstance(scheme, Scheme):
        raise TypeError(f"quantize: scheme must be a Scheme or its name, got {type(scheme).__name__} {scheme!r:.60}")
    scheme.parts(*x.shape[-2:])  # says what cannot be divided
    return _QUANTIZE(x.device, (x.dtype,), scheme.features, x, scheme)


@_QUANTIZE.reference
def _quantize(x: Tensor, scheme: Scheme) -> QuantTensor:
    return QuantTensor(scheme, x.shape, scheme.encode(x.astype("f32", copy=False)), x.dtype)


def dequantize(q: QuantTensor, dtype: Any = None) -> Tensor:
    """The numbers that *q* stands for, [N, K] or [E, N, K], computed in float32 and rounded to *dtype* once.

    Without *dtype* they have the dtype of *q*. In float32 they equal those of the scheme's own definition bit for bit;
    for GGUF that is the package ``gguf``. The layout of *q* makes no difference.

    Source: the scheme's.

    Raises:
        TypeError: for anything but a QuantTensor, and a *dtype* that is not real floating-point.
        IndexError: for a group that the scales lack, where each number names its group (GPTQ).

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_ops import dequantize, quantize
        >>> q = quantize(fa.asarray([[0.25, 7.0], [0.0, 0.0]]), "int4")
        >>> dequantize(q, "f16")
        Tensor([[0., 7.],
                [0., 0.]], dtype=float16)
    """
    _quantised("dequantize", q)
    wanted = q.dtype if dtype is None else Dtype(dtype)
    if not wanted.is_floating:
        raise TypeError(f"dequantize: dtype must be real floating-point, got {wanted}")
    return _DEQUANTIZE(q.device, (wanted,), q.features, q, wanted)


@_DEQUANTIZE.reference
def _dequantize(q: QuantTensor, dtype: Dtype) -> Tensor:
    q = repack(q, "plain")
    blocks = list(q.row_blocks())
    if q.ndim == 2 and len(blocks) <= 1:
        return q.scheme.decode(q.parts, q.shape).astype(dtype, copy=False)
    # part by part, so that little memory is needed beside the result
    out = fa.zeros(q.shape, dtype=dtype, device=q.device)
    for e in range(q.shape[0]) if q.ndim == 3 else (None,):
        for rows in blocks:
            part = q[rows] if e is None else q[e, rows]
            numbers = part.scheme.decode(part.parts, part.shape).astype(dtype, copy=False)
            if e is None:
                out[rows] = numbers
            else:
                out[e, rows] = numbers
    return out


def repack(q: QuantTensor, layout: str) -> QuantTensor:
    """*q* with its tensors in another layout, for a kernel that reads them in that order; the numbers stay as they are.

    Args:
        q: in any layout.
        layout: ``plain``, the one of the scheme itself, or one that a package of kernels brings
            (``ferrum_ops.quant.types.register_layout``). ``int`` changes the scheme too: integers with scales in order
            of rows (``IntScheme``, plain), to which GPTQ without act order, AWQ, Q4_0, Q5_0 and Q8_0 come without
            changing a number.

    Raises:
        TypeError: for anything but a QuantTensor. ValueError: for an unknown layout, or one that does not hold *q*.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_ops import quantize, repack
        >>> q = quantize(fa.ones((2, 4)), "int4")
        >>> repack(q, "plain") is q
        True
        >>> repack(quantize(fa.ones((1, 32)), "q8_0"), "int")
        QuantTensor(int8-g32-f16, float32[1,32])
    """
    _quantised("repack", q)
    if layout == q.layout:
        return q
    load_kernels(q.device.kind)  # they bring layouts
    if layout not in ("int", *layout_names()):
        raise ValueError(f"repack: there is no layout {layout!r}; there are int, {', '.join(layout_names())}")
    if q.layout != "plain":
        parts = find_layout(q.layout).unpack(q.scheme, q.parts, q.shape)
        q = replace(q, parts=parts, layout="plain")
    if layout == "plain":
        return q
    if layout == "int":
        if isinstance(q.scheme, IntScheme):
            return q
        found = q.scheme.as_integers(q.parts, q.shape)
        if found is None:
            raise ValueError(f"repack: {q!r} does not become integers with scales without changing its numbers")
        return replace(q, scheme=found[0], parts=found[1])
    wanted = find_layout(layout)
    if reason := wanted.refusal(q.scheme, *q.shape[-2:]):
        raise ValueError(f"repack: the layout {layout} does not hold {q!r}: {reason}")
    return replace(q, parts=wanted.pack(q.scheme, q.parts, q.shape), layout=layout)


def _quantised(op: str, q: object) -> None:
    if not isinstance(q, QuantTensor):
        given = describe(q) if isinstance(q, Tensor) else type(q).__name__
        raise TypeError(f"{op}: q must be a QuantTensor, got {given}; quantize(x, scheme) makes one")
