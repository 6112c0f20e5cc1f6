"""What readers of quantised layers share: which layers are meant, and their tensors, each checked."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import ferrum_array as fa
from ferrum_array import Dtype, Tensor
from ferrum_models.config import Settings
from ferrum_models.weights import Weights
from ferrum_ops import QuantTensor
from ferrum_ops.quant.types import Scheme

__all__ = ["Kept", "expression", "group_size", "is_dense", "read"]


@dataclass(frozen=True)
class Kept:
    """The layers that stay dense: names or parts of names, from dot to dot, where ``*`` stands for anything.

    Examples:
        >>> from ferrum_models.formats.reading import Kept
        >>> kept = Kept(("lm_head", "layers.*.mlp.gate"))
        >>> [name in kept for name in ("lm_head", "model.layers.3.mlp.gate", "model.layers.3.mlp.gate_proj")]
        [True, True, False]
    """

    names: tuple[str, ...] = ()

    @classmethod
    def from_settings(cls, settings: Settings, *entries: str) -> Kept:
        """The layers that one of *entries* lists.

        Raises:
            ValueError: if it is no list of names.
        """
        value = settings.get(*entries)
        if value is None:
            return cls()
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise settings.error(entries, value, "a list of names")
        return cls(tuple(value))

    def __contains__(self, path: object) -> bool:
        return isinstance(path, str) and any(_matches(name, path) for name in self.names)


def _matches(name: str, path: str) -> bool:
    middle = ".*".join(map(re.escape, name.split("*")))
    return re.search(rf"(?:^|\.){middle}(?:\.|$)", path) is not None


def expression(settings: Settings, entry: str, text: str) -> str:
    """The regular expression *text* of an entry of a config.

    Raises:
        ValueError: if it is none.
    """
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"{settings.source}: {entry}: {text!r} is no valid expression: {error}") from None
    return text


def group_size(settings: Settings, default: int) -> int | None:
    """``group_size``: how many numbers of a row share a scale; None, written -1, for a whole row.

    Raises:
        ValueError: for anything else.
    """
    value = settings.get("group_size")
    return None if value == -1 else settings.integer("group_size", default=default)


def is_dense(weights: Weights, shape: tuple[int, ...], kept: Kept, names: Iterable[str]) -> bool:
    """Whether the layer that *weights* are is no quantised matrix: kept so, or without any of the tensors *names*."""
    return len(shape) != 2 or weights.path in kept or not any(name in weights for name in names)


def read(
    weights: Weights,
    scheme: Scheme,
    shape: tuple[int, ...],
    names: Mapping[str, str],
    dtype: Dtype | None = None,
) -> QuantTensor | Tensor:
    """The matrix [N, K] (or the matrices [E, N, K]) of this *scheme*; what does not fit becomes problems of *weights*.

    Args:
        weights: the part of the layer.
        scheme: in which it is stored.
        shape: that of the numbers.
        names: the parts of the scheme -> their names in the checkpoint.
        dtype: of the numbers, where the weights are not converted to one; that of the scales if absent.
    """
    try:
        wanted = scheme.parts(*shape[-2:])
    except ValueError as error:
        weights.problem("weight", f"cannot be {error}")
        return fa.zeros(0)
    parts: dict[str, Tensor] = {}
    for name, part in wanted.items():
        found = weights.raw(names[name], (*shape[:-2], *part.shape))
        if found is None:
            continue
        if found.dtype not in part.dtypes:
            weights.problem(names[name], f"is {found.dtype}, expected {' or '.join(map(str, part.dtypes))}")
            continue
        parts[name] = found
    if len(parts) < len(wanted):
        return fa.zeros(0)
    return QuantTensor(scheme, shape, parts, weights.dtype or dtype or parts["scales"].dtype)
