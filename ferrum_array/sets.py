"""Set functions of the array API standard. Every NaN is unique; -0 and 0 are one value."""

from __future__ import annotations

from typing import NamedTuple

from ferrum_array.dispatch import Operand, tensor, unify
from ferrum_array.dtype import Dtype
from ferrum_array.elementwise import equal, logical_not
from ferrum_array.spec import spec_of
from ferrum_array.tensor import Tensor, wrap
from ferrum_array.utility import any as any_

__all__ = ["isin", "unique_all", "unique_counts", "unique_inverse", "unique_values"]


class UniqueAll(NamedTuple):
    """What :func:`unique_all` returns."""

    values: Tensor
    indices: Tensor
    inverse_indices: Tensor
    counts: Tensor


class UniqueCounts(NamedTuple):
    """What :func:`unique_counts` returns."""

    values: Tensor
    counts: Tensor


class UniqueInverse(NamedTuple):
    """What :func:`unique_inverse` returns."""

    values: Tensor
    inverse_indices: Tensor


def unique_all(x: Tensor, /) -> UniqueAll:
    """The distinct elements in order, with first indices (in the flattened *x*), inverse (shape of *x*) and counts.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.unique_all(fa.asarray([3, 1, 3])).counts
        Tensor([1, 2])
    """
    x = tensor("unique_all", x)
    values, indices, inverse, counts = x._spec.call["unique_all"](x._data)
    index = spec_of(Dtype.I64, x.device)
    return UniqueAll(wrap(values, x._spec), wrap(indices, index), wrap(inverse, index), wrap(counts, index))


def unique_counts(x: Tensor, /) -> UniqueCounts:
    """The distinct elements in order, and how often each occurs.

    Examples:
        >>> import ferrum_array as fa
        >>> values, counts = fa.unique_counts(fa.asarray([3, 1, 3]))
        >>> values, counts
        (Tensor([1, 3]), Tensor([1, 2]))
    """
    found = unique_all(x)
    return UniqueCounts(found.values, found.counts)


def unique_inverse(x: Tensor, /) -> UniqueInverse:
    """The distinct elements in order, and for each element of *x* its place among them (in the shape of *x*).

    Examples:
        >>> import ferrum_array as fa
        >>> fa.unique_inverse(fa.asarray([3, 1, 3])).inverse_indices
        Tensor([1, 0, 1])
    """
    found = unique_all(x)
    return UniqueInverse(found.values, found.inverse_indices)


def unique_values(x: Tensor, /) -> Tensor:
    """The distinct elements in order.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.unique_values(fa.asarray([3, 1, 3]))
        Tensor([1, 3])
    """
    x = tensor("unique_values", x)
    if not x.size or x.dtype.is_complex:
        return unique_all(x).values
    # sorted, and of each run of equal elements the first: indices and counts would cost several times as much
    call, truth = x._spec.call, spec_of(Dtype.BOOL, x.device).call
    ordered = call["sort"](call["reshape"](x._data, (x.size,)), 0, False)
    changes = call["not_equal"](call["getitem"](ordered, slice(1, None)), call["getitem"](ordered, slice(None, -1)))
    firsts = truth["concat"]([truth["full"]((1,), True), changes], 0)
    return wrap(call["getitem"](ordered, firsts), x._spec)


#: How many comparisons are made at once; above that the values are sorted and searched instead.
_DIRECT = 1 << 12


def isin(x1: Operand, x2: Operand, /, *, invert: bool = False) -> Tensor:
    """For each element of *x1*, whether it equals some element of *x2* (none, with *invert*).

    Examples:
        >>> import ferrum_array as fa
        >>> fa.isin(fa.asarray([1, 2, 3]), fa.asarray([3, 1]))
        Tensor([ True, False,  True])
    """
    spec, (left, right) = unify("isin", x1, x2)
    elements, tests = wrap(left, spec), wrap(right, spec).reshape(-1)
    if tests.size == 0:
        found = wrap(
            spec_of(Dtype.BOOL, spec.device).call["full"](elements.shape, False), spec_of(Dtype.BOOL, spec.device)
        )
    elif elements.size * tests.size <= _DIRECT or spec.dtype.is_complex:
        found = any_(equal(elements.reshape((*elements.shape, 1)), tests), axis=-1)
    else:
        ordered = spec.call["sort"](tests._data, 0, False)
        place = spec.call["searchsorted"](ordered, elements._data, "left")
        index = spec_of(Dtype.I64, spec.device)
        last = index.call["full"]((), tests.size - 1)
        nearest = spec.call["take"](ordered, index.call["minimum"](place, last), 0)
        found = equal(wrap(nearest, spec), elements)
    return logical_not(found) if invert else found
