"""Einstein summation, beside the standard's products."""

from __future__ import annotations

from ferrum_array.dispatch import broadcast, tensor, unify
from ferrum_array.dtype import Dtype
from ferrum_array.tensor import Tensor, wrap

__all__ = ["einsum"]


def einsum(subscripts: str, /, *operands: Tensor) -> Tensor:
    """Products of *operands* summed over the labels that the result does not have.

    Args:
        subscripts: a letter for each axis, ``"ij,jk->ik"``; ``...`` stands for further axes, which broadcast. Without
            ``->`` the result has the labels that occur once, in alphabetical order.
        operands: tensors whose dtypes promote; 16-bit floats accumulate in float32.

    Raises:
        ValueError: if labels and axes, or the lengths of a label, do not agree. TypeError: for booleans.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.einsum("ij,j->i", fa.asarray([[1, 2], [3, 4]]), fa.asarray([1, 1]))
        Tensor([3, 7])
    """
    tensors = [tensor("einsum", one, f"operand {i}") for i, one in enumerate(operands, 1)]
    canonical = _checked(subscripts, [one.shape for one in tensors])
    spec, raws = unify("einsum", *tensors)
    if spec.dtype is Dtype.BOOL:
        raise TypeError("einsum: not defined for bool; convert first, for example with astype('int64')")
    return wrap(spec.call["einsum"](canonical, *raws), spec)


def _checked(subscripts: str, shapes: list[tuple[int, ...]]) -> str:
    """*subscripts* without spaces and with the result's labels written out, if they fit *shapes*."""
    if not isinstance(subscripts, str):
        raise TypeError(f"einsum: subscripts are a string such as 'ij,jk->ik', got {type(subscripts).__name__}")
    text = subscripts.replace(" ", "")
    left, arrow, result = text.partition("->")
    terms = left.split(",")
    if len(terms) != len(shapes):
        raise ValueError(f"einsum: {subscripts!r} describes {len(terms)} operands, {len(shapes)} were given")
    lengths: dict[str, int] = {}
    rest: list[tuple[int, ...]] = []
    for position, (term, shape) in enumerate(zip(terms, shapes, strict=True), 1):
        labels = term.replace("...", "", 1)
        if not all(c.isascii() and c.isalpha() for c in labels):
            raise ValueError(f"einsum: {term!r} in {subscripts!r} may hold letters and one '...' only")
        if len(labels) > len(shape) or (len(labels) < len(shape) and "..." not in term):
            raise ValueError(f"einsum: {term!r} names {len(labels)} axes, but operand {position} has the shape {shape}")
        before = term.index("...") if "..." in term else len(labels)
        extra = len(shape) - len(labels)
        rest.append(shape[before : before + extra])
        for label, length in zip(labels, shape[:before] + shape[before + extra :], strict=True):
            if length != lengths.setdefault(label, length) and 1 not in (length, lengths[label]):
                raise ValueError(
                    f"einsum: label {label!r} of {subscripts!r} has length {length} in operand {position} "
                    f"{shape} and {lengths[label]} before"
                )
            lengths[label] = max(length, lengths[label])
    broadcast("einsum ('...')", *rest)
    if not arrow:
        once = sorted(c for c in set(left) if c.isalpha() and left.count(c) == 1)
        result = ("..." if "..." in left else "") + "".join(once)
    named = result.replace("...", "", 1)
    if len(set(named)) != len(named) or not set(named) <= set(lengths):
        raise ValueError(f"einsum: the result {result!r} of {subscripts!r} must name labels of the operands, each once")
    if "..." in left and "..." not in result and any(rest):
        raise ValueError(f"einsum: the result {result!r} of {subscripts!r} leaves out '...', which has axes")
    return f"{left}->{result}"
