"""Convolutions of signals and images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import ferrum_array as fa
from ferrum_array import Tensor
from ferrum_ops.checks import accumulator, alike, count, describe, floating
from ferrum_ops.registry import Op

__all__ = ["Padding", "conv"]

_CONV: Op[Tensor] = Op("conv")

#: one number for all axes, or for each axis one number or a pair: before and after
Padding = int | Sequence[int | tuple[int, int]] | Literal["same", "valid"]
Pairs = tuple[tuple[int, int], ...]

# Elements of patches that exist at a time, so that memory does not grow with the image times the filter.
_PATCHES = 1 << 22


def conv(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    stride: int | Sequence[int] = 1,
    padding: Padding = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """The sums of products of filters with each patch of a signal or an image, as neural networks call convolution.

    In one dimension x [..., C, L] and w [O, C / groups, K] give y [..., O, L']; in two x [..., C, H, W] and
    w [O, C / groups, KH, KW] give y [..., O, H', W'], in the dtype of *x*. In one dimension::

        y[o, i] = b[o] + sum_cj w[o, c, j] * x[c, i * stride + j * dilation - before]

    where x is 0 outside, and L' = (L + before + after - dilation * (K - 1) - 1) // stride + 1. Filters are not turned
    around. Products accumulate in float32 (float64 for float64), *b* is added there, and the sum is rounded once. The
    work is done by products of matrices on patches, of which 16 MB exist at a time. The last bits may depend on how
    much is computed together, because the storage library chooses its kernel by shape.

    Args:
        x: channels first, as are the filters in checkpoints.
        w: the filters.
        b: [O], in the dtype of *x* or the wider one of the sums.
        stride: the distance between patches; one number, or one for each axis.
        padding: zeros around *x*: one number, or for each axis a number or a pair (before, after). ``valid`` is 0.
            ``same`` gives L' = L, with the odd zero at the end; it needs a stride of 1.
        dilation: the distance between the elements of a patch; one number, or one for each axis.
        groups: channels form so many groups of neighbours, and so do the filters: each group sees its own channels. C
            groups make a filter for each channel.

    Source: LeCun et al., "Backpropagation applied to handwritten zip code recognition", 1989; Chellapilla, Puri and
    Simard, "High performance convolutional neural networks for document processing", 2006, for the products.

    Raises:
        TypeError: if *x* and *w* differ in dtype, or anything is not real floating-point. ValueError: for shapes,
        groups or devices that do not fit, numbers out of range, and filters larger than the padded input.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_ops import conv
        >>> x = fa.asarray([[1.0, 2.0, 3.0, 4.0]])
        >>> w = fa.asarray([[[1.0, 10.0]]])
        >>> conv(x, w), conv(x, w, stride=2), conv(x, w, padding="same")
        (Tensor([[21., 32., 43.]]), Tensor([[21., 43.]]), Tensor([[21., 32., 43.,  4.]]))
        >>> conv(fa.ones((3, 5, 5)), fa.ones((2, 3, 3, 3)), padding=1)[:, 0, :2]
        Tensor([[12., 18.],
                [12., 18.]])
    """
    floating("conv", "x", x)
    floating("conv", "w", w)
    alike("conv", x, "w", w)
    dims = w.ndim - 2
    if dims not in (1, 2) or x.ndim < dims + 1:
        raise ValueError(
            "conv: x must be [..., C, L] and w [O, C / groups, K], or x [..., C, H, W] and w [O, C / groups, KH, KW], "
            f"got {describe(x)} and {describe(w)}"
        )
    channels, filters = x.shape[-dims - 1], w.shape[0]
    count("conv", "groups", groups)
    if channels != w.shape[1] * groups or filters % groups:
        raise ValueError(
            f"conv: groups={groups} must divide the {filters} filters, and {channels} channels be groups times the "
            f"{w.shape[1]} of a filter, got x {describe(x)} and w {describe(w)}"
        )
    if b is not None:
        floating("conv", "b", b)
        alike("conv", x, "b", b, dtype=b.dtype is not accumulator(x.dtype))
        if b.shape != (filters,):
            raise ValueError(f"conv: b must have shape ({filters},) for w {describe(w)}, got {describe(b)}")
    strides, dilations = _each("stride", stride, dims), _each("dilation", dilation, dims)
    sizes, kernel = x.shape[-dims:], w.shape[2:]
    reach = tuple(d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True))
    pads = _pads(padding, strides, reach)
    for axis, (size, (before, after), needed) in enumerate(zip(sizes, pads, reach, strict=True)):
        if not 1 <= needed <= size + before + after:
            raise ValueError(
                f"conv: along axis {axis} the filter reaches over {needed} elements, and x has {size} with "
                f"{before} and {after} zeros around, got x {describe(x)} and w {describe(w)}"
            )
    features = (
        f"{dims}d",
        *(("bias",) if b is not None else ()),
        *(("stride",) if max(strides) > 1 else ()),
        *(("padding",) if max(map(max, pads)) else ()),
        *(("dilation",) if max(dilations) > 1 else ()),
        *(("groups",) if groups > 1 else ()),
    )
    return _CONV(x.device, (x.dtype,), features, x, w, b, strides, pads, dilations, groups)


def _each(what: str, value: int | Sequence[int], dims: int) -> tuple[int, ...]:
    """A number for each axis."""
    values = tuple(value) if isinstance(value, Sequence) else (value,) * dims
    if len(values) != dims:
        raise ValueError(f"conv: {what} must be one number or {dims}, one for each axis, got {value!r}")
    for one in values:
        count("conv", what, one)
    return values


def _pads(padding: Padding, strides: tuple[int, ...], reach: tuple[int, ...]) -> Pairs:
    """Before and after for each axis."""
    if isinstance(padding, str):
        if padding == "valid":
            return ((0, 0),) * len(reach)
        if padding != "same":
            raise ValueError(f"conv: padding must be numbers, 'same' or 'valid', got {padding!r}")
        if max(strides) > 1:
            raise ValueError(f"conv: padding 'same' needs a stride of 1, got {strides}; give the zeros as numbers")
        return tuple(((n - 1) // 2, n // 2) for n in reach)
    values = tuple(padding) if isinstance(padding, Sequence) else (padding,) * len(reach)
    pairs: list[tuple[Any, ...]] = [tuple(v) if isinstance(v, Sequence) else (v, v) for v in values]
    numbers = [number for pair in pairs for number in pair]
    if len(pairs) != len(reach) or any(len(pair) != 2 for pair in pairs):
        raise ValueError(
            f"conv: padding must be one number, or {len(reach)} numbers or pairs (before, after), one for each axis, "
            f"got {padding!r}"
        )
    if any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in numbers):
        raise ValueError(f"conv: padding must be integers of at least 0, got {padding!r}")
    return tuple((pair[0], pair[1]) for pair in pairs)


@_CONV.reference
def _conv(
    x: Tensor,
    w: Tensor,
    b: Tensor | None,
    strides: tuple[int, ...],
    pads: Pairs,
    dilations: tuple[int, ...],
    groups: int,
) -> Tensor:
    wide = accumulator(x.dtype)
    filters, depth, *kernel = w.shape
    dims = len(kernel)
    leading, sizes = x.shape[: -dims - 1], x.shape[-dims:]
    images = x.reshape(math.prod(leading), *x.shape[-dims - 1 :])
    spans = zip(sizes, pads, dilations, kernel, strides, strict=True)
    out = [(size + sum(pad) - d * (k - 1) - 1) // s + 1 for size, pad, d, k, s in spans]
    factors = w.astype(wide, copy=False).reshape(groups, filters // groups, depth * math.prod(kernel))
    bias = None if b is None else b.astype(wide, copy=False).reshape(filters, *(1,) * dims)

    def convolve(part: Tensor) -> Tensor:
        """Some images, or of one of them some rows of patches."""
        patches = _patches(part, kernel, strides, dilations)
        shape = patches.shape[2 + dims :]
        columns = patches.reshape(part.shape[0], groups, factors.shape[-1], math.prod(shape))
        y = (factors @ columns).reshape(part.shape[0], filters, *shape)
        return (y if bias is None else y + bias).astype(x.dtype, copy=False)

    row = groups * factors.shape[-1] * math.prod(out[1:])
    many, rows = max(1, _PATCHES // max(1, row * out[0])), max(1, _PATCHES // max(1, row))
    results = []
    for n in range(0, max(images.shape[0], 1), many):
        some = images[n : n + many].astype(wide, copy=False)
        if max(map(max, pads)):
            some = fa.pad(some, ((0, 0), (0, 0), *pads))
        reach = dilations[0] * (kernel[0] - 1) + 1
        parts = []
        for first in range(0, out[0], rows):
            last = min(first + rows, out[0]) - 1
            parts.append(convolve(some[:, :, first * strides[0] : last * strides[0] + reach]))
        results.append(parts[0] if len(parts) == 1 else fa.concat(parts, axis=2))
    y = results[0] if len(results) == 1 else fa.concat(results)
    return y.reshape(*leading, filters, *out)


def _patches(x: Tensor, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> Tensor:
    """[N, C, size...] as [N, C, kernel..., patches...]: for each element of a patch, its values in all patches."""
    for axis, (k, s, d) in enumerate(zip(kernel, strides, dilations, strict=True)):
        # the axes of filter elements come first, those of patches take the place of the input's
        place = 2 + 2 * axis
        reach = (x.shape[place] - d * (k - 1) - 1) // s * s + 1
        before = (slice(None),) * place
        x = fa.stack([x[(*before, slice(j * d, j * d + reach, s))] for j in range(k)], axis=2 + axis)
    return x
