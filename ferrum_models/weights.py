"""Weights of a model by name, with every mismatch reported at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import ferrum_array as fa
from ferrum_array import Device, Dtype, Tensor

__all__ = ["Weights"]

_ENOUGH = 1000


class Weights:
    """The tensors of a file by name; layers take what they need, then :meth:`check` reports.

    A missing tensor does not stop the loading: a placeholder takes its place, so that one error
    lists everything that does not fit.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_models.weights import Weights
        >>> weights = Weights({"dense.weight": fa.ones((2, 3))}, "a test")
        >>> weights.at("dense").take("weight", (2, 3)).shape
        (2, 3)
        >>> _ = weights.at("dense").take("bias", (2,))
        >>> weights.check()
        Traceback (most recent call last):
        ...
        ValueError: a test does not fit its config: dense.bias is missing, expected shape (2,)
    """

    def __init__(self, tensors: Mapping[str, Tensor], source: str) -> None:
        self._tensors = tensors
        self._source = source
        self._prefix = ""
        self._problems: list[str] = []

    @classmethod
    def load(cls, path: Path, *, device: Device | str | None = None, dtype: Dtype | str | None = None) -> Weights:
        """The weights of a safetensors file, moved to *device* and converted to *dtype* if given.

        Raises:
            FileNotFoundError: if there is no such file. ValueError: if it is damaged.
        """
        return cls(fa.io.load_safetensors(path, device=device, dtype=dtype), str(path))

    def __contains__(self, name: str) -> bool:
        return self._prefix + name in self._tensors

    def at(self, *names: str | int) -> Weights:
        """The part whose names begin with *names*, joined by dots."""
        part = Weights(self._tensors, self._source)
        part._prefix = self._prefix + "".join(f"{name}." for name in names)
        part._problems = self._problems  # one list for all parts
        return part

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The tensor *name*, which must have this *shape*."""
        full = self._prefix + name
        found = self._tensors.get(full)
        if found is not None and found.shape == shape and found.dtype.is_floating:
            return found
        if found is None:
            self._problems.append(f"{full} is missing, expected shape {shape}")
        elif found.shape != shape:
            self._problems.append(f"{full} has shape {found.shape}, expected {shape}")
        else:
            self._problems.append(f"{full} is {found.dtype}, expected real floating-point numbers")
        if len(self._problems) == _ENOUGH:  # an absurd config asks for layers without end
            self.check()
        return fa.zeros(0)

    def join(self, parts: Sequence[str], name: str, shape: tuple[int, ...]) -> Tensor:
        """The tensors *name* of several *parts*, of this *shape* each, one below the other."""
        before = len(self._problems)
        found = [self.at(part).take(name, shape) for part in parts]
        if len(self._problems) > before:
            return fa.zeros(0)
        return fa.concat(found)

    def check(self) -> None:
        """Report what did not fit.

        Raises:
            ValueError: listing every tensor that is missing or has another shape.
        """
        if self._problems:
            listed = "; ".join(self._problems)
            raise ValueError(f"{self._source} does not fit its config: {listed}")
