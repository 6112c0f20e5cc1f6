"""A matrix, or a stack of matrices, whose numbers are stored in fewer bits."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from math import lcm
from types import MappingProxyType
from typing import Any

import ferrum_array as fa
from ferrum_array import Device, Dtype, Tensor
from ferrum_array.indexing import take_known
from ferrum_ops.checks import describe
from ferrum_ops.quant.types import Part, Parts, Scheme, find_layout

__all__ = ["QuantTensor"]

#: Rows of about so many numbers are computed at once, so that memory stays bounded.
_BLOCK = 1 << 22


@dataclass(frozen=True, eq=False, repr=False)
class QuantTensor:
    """Numbers [N, K], or a stack of them [E, N, K], as tensors of fewer bits; ``quantize`` makes it, or a loader does.

    It has the shape, dtype and device of the numbers that it stands for. ``q[e]`` and ``q[a:b]`` select from its first
    axis, ``q[e, a:b]`` rows of a matrix in a stack, and a 1-D tensor of integers selects in any order; the last axis
    stays whole. Selecting copies no more than selecting from the parts does.

    Attributes:
        scheme: what the tensors mean.
        shape: [N, K] or [E, N, K].
        parts: the tensors by name; the scheme says which there are, and their shapes for one matrix.
        dtype: what ``dequantize`` gives unless it is told otherwise: often the dtype of the numbers before.
        layout: how the tensors are arranged: ``plain``, as the scheme says, or as ``repack`` made them for a kernel.

    Raises:
        TypeError: for parts of other dtypes, a *scheme* that is none, or a *dtype* that is not real floating-point.
        ValueError: for missing, unknown or wrongly shaped parts, different devices, and a shape that does not suit the
            scheme or the layout.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_ops import QuantTensor, dequantize
        >>> from ferrum_ops.quant.integer import IntScheme
        >>> values, scales = fa.asarray([[1, -2], [3, 4]], dtype="i8"), fa.asarray([[0.5], [2.0]])
        >>> q = QuantTensor(IntScheme(8), (2, 2), {"values": values, "scales": scales})
        >>> q, dequantize(q[1:])
        (QuantTensor(int8, float32[2,2]), Tensor([[6., 8.]]))
    """

    scheme: Scheme
    shape: tuple[int, ...]
    parts: Parts
    dtype: Dtype = fa.float32
    layout: str = "plain"

    def __post_init__(self) -> None:
        if not isinstance(self.scheme, Scheme):
            raise TypeError(
                f"QuantTensor: scheme must be a Scheme, got {type(self.scheme).__name__} {self.scheme!r:.60}"
            )
        object.__setattr__(self, "shape", tuple(map(operator.index, self.shape)))
        # tensors of our own on the same memory: a later write through the caller's does not reach them
        own = {name: part[...] if isinstance(part, Tensor) else part for name, part in self.parts.items()}
        object.__setattr__(self, "parts", MappingProxyType(own))
        object.__setattr__(self, "dtype", Dtype(self.dtype))
        if len(self.shape) not in (2, 3) or min(self.shape) < 0:
            raise ValueError(f"QuantTensor: the shape must be (N, K) or (E, N, K), got {self.shape}")
        if not self.dtype.is_floating:
            raise TypeError(f"QuantTensor: dtype must be real floating-point, got {self.dtype}")
        wanted = self._wanted()
        if wanted.keys() != self.parts.keys():
            raise ValueError(f"QuantTensor: {self._what} needs parts {_names(wanted)}, got {_names(self.parts)}")
        first = next(iter(wanted))
        for name, part in wanted.items():
            self._check(name, part, self.parts[first])

    def _wanted(self) -> dict[str, Part]:
        n, k = self.shape[-2:]
        if self.layout == "plain":
            return self.scheme.parts(n, k)
        layout = find_layout(self.layout)
        if reason := layout.refusal(self.scheme, n, k):
            raise ValueError(f"QuantTensor: the layout {self.layout} does not hold {self._what}: {reason}")
        return layout.parts(self.scheme, n, k)

    def _check(self, name: str, part: Part, first: Tensor) -> None:
        x = self.parts[name]
        if not isinstance(x, Tensor):
            raise TypeError(f"QuantTensor: {name} must be a Tensor, got {type(x).__name__}")
        if x.dtype not in part.dtypes:
            listed = " or ".join(map(str, part.dtypes))
            raise TypeError(f"QuantTensor: {name} of {self._what} must be {listed}, got {describe(x)}")
        if x.shape != (*self.shape[:-2], *part.shape):
            raise ValueError(
                f"QuantTensor: {name} of {self._what} must have shape {(*self.shape[:-2], *part.shape)}, "
                f"got {describe(x)}"
            )
        if x.device is not first.device:
            raise ValueError(f"QuantTensor: parts lie on different devices, {first.device} and {x.device} ({name})")

    @property
    def _what(self) -> str:
        return f"{self.scheme.name}[{','.join(map(str, self.shape))}]"

    def __repr__(self) -> str:
        where = "" if self.device.kind == "cpu" else f" on {self.device}"
        arranged = "" if self.layout == "plain" else f", {self.layout}"
        return f"QuantTensor({self.scheme.name}{arranged}, {self.dtype}[{','.join(map(str, self.shape))}]{where})"

    @property
    def ndim(self) -> int:
        """2 for a matrix, 3 for a stack."""
        return len(self.shape)

    @cached_property
    def device(self) -> Device:
        """Where the parts lie."""
        return next(iter(self.parts.values())).device

    @property
    def nbytes(self) -> int:
        """The bytes of all parts."""
        return sum(part.nbytes for part in self.parts.values())

    @cached_property
    def features(self) -> tuple[str, ...]:
        """What an implementation must honour, for the registry: those of the scheme, and ``layout:<name>``."""
        return self.scheme.features if self.layout == "plain" else (*self.scheme.features, f"layout:{self.layout}")

    @property
    def row_step(self) -> int:
        """Rows can be cut at multiples of this number."""
        return lcm(*(part.per for part in self._wanted().values()))

    def to_device(self, device: Device | str) -> QuantTensor:
        """The same numbers on another device."""
        return replace(self, parts={name: part.to_device(device) for name, part in self.parts.items()})

    def row_blocks(self) -> Iterator[slice]:
        """Slices of rows, one after another, each of a few million numbers at most."""
        n, k = self.shape[-2:]
        step = self.row_step
        size = max(_BLOCK // max(k, 1) // step * step, step)
        return (slice(start, min(start + size, n)) for start in range(0, n, size))

    def __reduce__(self) -> tuple[Any, ...]:
        # the parts are behind a view that cannot be pickled
        return QuantTensor, (self.scheme, self.shape, dict(self.parts), self.dtype, self.layout)

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[QuantTensor]:
        # without it Python would index from 0 until an IndexError, and find a matrix, whose rows are cut, empty
        if self.ndim == 2:
            raise TypeError(f"{self!r} has no rows to iterate over; use row_blocks(), or dequantize it first")
        return (self[e] for e in range(len(self)))

    def __getitem__(self, key: Any) -> QuantTensor:
        keys = key if isinstance(key, tuple) else (key,)
        if not 1 <= len(keys) < self.ndim:
            raise IndexError(
                f"{self!r} takes {'one index' if self.ndim == 2 else 'one or two indices'}, got {len(keys)}: its last "
                "axis stays whole; dequantize it first"
            )
        if self.ndim == 2:
            return self._rows(keys[0])
        found = self._matrices(keys[0])
        return found if len(keys) == 1 else found._rows(keys[1])

    def _matrices(self, key: Any) -> QuantTensor:
        count = self.shape[0]
        if isinstance(key, slice):
            parts = {name: part[key] for name, part in self.parts.items()}
            return replace(self, shape=(len(range(*key.indices(count))), *self.shape[1:]), parts=parts)
        if isinstance(key, Tensor):
            self._check_picks(key)
            parts = {name: fa.take(part, key, axis=0) for name, part in self.parts.items()}
            return replace(self, shape=(*key.shape, *self.shape[1:]), parts=parts)
        if not hasattr(key, "__index__"):
            raise IndexError(
                f"matrices of {self!r} are selected by an integer, a slice or a tensor of integers, got {key!r:.60}"
            )
        number = operator.index(key)
        if not -count <= number < count:
            raise IndexError(f"index {number} is out of bounds for the {count} matrices of {self!r}")
        return replace(self, shape=self.shape[1:], parts={name: part[number] for name, part in self.parts.items()})

    def _check_picks(self, key: Tensor) -> None:
        if key.ndim != 1 or not key.dtype.is_integer:
            raise IndexError(f"{self!r} is picked from by a 1-D tensor of integers, got {describe(key)}")

    def rows_known(self, ids: Tensor) -> QuantTensor:
        """The rows *ids* [n] of a matrix: int64, known to be from 0 to below their number, so nothing is read back.

        Raises:
            IndexError: where rows stand together, and cannot be picked.
        """
        return self._picked(ids, take_known)

    def _picked(self, ids: Tensor, take: Callable[[Tensor, Tensor, int], Tensor]) -> QuantTensor:
        if self.row_step > 1:
            raise IndexError(f"rows of {self!r} stand {self.row_step} together: they can be cut, not picked")
        *lead, _, k = self.shape
        parts = {
            name: self.parts[name] if part.axis is None else take(self.parts[name], ids, part.axis)
            for name, part in self._wanted().items()
        }
        return replace(self, shape=(*lead, *ids.shape, k), parts=parts)

    def _rows(self, key: Any) -> QuantTensor:
        *lead, n, k = self.shape
        wanted = self._wanted()
        if isinstance(key, Tensor):
            self._check_picks(key)
            return self._picked(key, lambda x, ids, axis: fa.take(x, ids, axis=axis))
        if not isinstance(key, slice):
            raise IndexError(
                f"rows of {self!r} are selected by a slice or a tensor of integers, got {key!r:.60}: q[2:3]"
            )
        start, stop, step = key.indices(n)
        start, stop = (start, stop) if start < stop else (0, 0)
        unit = self.row_step
        if step != 1 or start % unit or (stop % unit and stop != n):
            raise IndexError(
                f"rows of {self!r} can be cut at multiples of {unit}, step 1, got {start}:{stop}:{step}"
                + ("" if unit > 1 else "; select with a tensor of integers")
            )
        parts = dict(self.parts)
        for name, part in wanted.items():
            if part.axis is not None:
                cut: list[Any] = [slice(None)] * (self.ndim - 2 + len(part.shape))
                cut[part.axis] = slice(start // part.per * part.places, -(-stop // part.per) * part.places)
                parts[name] = self.parts[name][tuple(cut)]
        return replace(self, shape=(*lead, stop - start, k), parts=parts)


def _names(parts: Any) -> str:
    return ", ".join(sorted(parts))
