"""Checkpoints in MLX's own layout, as mlx-lm writes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import ferrum_array as fa
from ferrum_array import Dtype, Tensor
from ferrum_models.config import Settings
from ferrum_models.formats.mlx_names import own_names
from ferrum_models.formats.reading import read
from ferrum_models.weights import Weights
from ferrum_ops import QuantTensor
from ferrum_ops.quant.mlx import MlxScheme
from ferrum_ops.quant.mxfp4 import Mxfp4Scheme

__all__ = ["Mlx", "is_mlx"]

_MODES = ("affine", "mxfp4")
_BITS = (2, 3, 4, 5, 6, 8)
_NAMES = {"values": "weight", "scales": "scales", "biases": "biases"}


def is_mlx(settings: Settings) -> bool:
    """Whether a config's entry is MLX's: group_size and bits, and no name of a method."""
    return settings.get("quant_method") is None and settings.get("group_size") is not None


@dataclass(frozen=True)
class Mlx:
    """Layers of ``weight`` in words of 32 bits, ``scales`` and ``biases``; embeddings too.

    A layer is quantised where it has ``scales`` or ``biases``. The config gives group and bits for all, and may give
    others, or false, for layers by name.

    Examples:
        >>> from ferrum_models.config import Settings
        >>> from ferrum_models.formats.mlx import Mlx
        >>> Mlx.from_settings(Settings({"group_size": 64, "bits": 4, "lm_head": {"bits": 8}})).of("lm_head")
        Mlx(group=64, bits=8, mode='affine')
    """

    group: int
    bits: int
    mode: str = "affine"
    #: what the config says of layers by name
    others: Mapping[str, Any] = field(default_factory=dict, repr=False)
    source: str = field(default="the config", repr=False)
    dtype: Dtype = field(default=fa.bfloat16, repr=False)

    @classmethod
    def from_settings(cls, settings: Settings) -> Mlx:
        """What ``quantization`` says.

        Raises:
            ValueError: for entries that are missing, wrong or not implemented.
        """
        others = {name: value for name, value in settings.values.items() if isinstance(value, (Mapping, bool))}
        return cls._of(settings, others)

    @classmethod
    def _of(cls, settings: Settings, others: Mapping[str, Any]) -> Mlx:
        mode = settings.get("mode") or "affine"
        if mode not in _MODES:
            raise settings.error(("mode",), mode, f"one of {', '.join(_MODES)}")
        bits, group = settings.integer("bits"), settings.integer("group_size")
        if mode == "mxfp4" and (bits, group) != (4, 32):
            raise ValueError(
                f"{settings.source}: mode mxfp4 has 4 bits in groups of 32, got {bits} in groups of {group}"
            )
        if bits not in _BITS:
            raise settings.error(("bits",), bits, f"one of {', '.join(map(str, _BITS))}")
        return cls(group, bits, mode, others, settings.source, settings.dtype() or fa.bfloat16)

    def of(self, path: str) -> Mlx | None:
        """What the config says of the layer *path*; None where it stays dense.

        Raises:
            ValueError: for entries that are wrong or not implemented.
        """
        found = next((self.others[name] for name in own_names(path) if name in self.others), True)
        if isinstance(found, bool):
            return self if found else None
        common = {"group_size": self.group, "bits": self.bits, "mode": self.mode, "dtype": self.dtype.standard_name}
        return self._of(Settings({**common, **found}, f"{self.source}: {path}"), {})

    def __call__(self, weights: Weights, shape: tuple[int, ...]) -> QuantTensor | Tensor | None:
        """The weight of the layer that *weights* are, or None where it is dense."""
        own = self.of(weights.path)
        if own is None or not ("scales" in weights or "biases" in weights):
            return None
        if own.mode == "mxfp4":
            return own._floats(weights, shape)
        return read(weights, MlxScheme(own.bits, own.group), shape, _NAMES)

    def _floats(self, weights: Weights, shape: tuple[int, ...]) -> QuantTensor | Tensor:
        *lead, n, k = shape
        if k % self.group:
            weights.problem("weight", f"cannot hold rows of {k} numbers, no multiple of {self.group}")
            return fa.zeros(0)
        words = weights.raw("weight", (*lead, n, k // 8))
        scales = weights.raw("scales", (*lead, n, k // self.group))
        if words is None or scales is None:
            return fa.zeros(0)
        for name, found, dtype in (("weight", words, fa.uint32), ("scales", scales, fa.uint8)):
            if found.dtype is not dtype:
                weights.problem(name, f"is {found.dtype}, expected {dtype}")
                return fa.zeros(0)
        parts = {"values": fa.bitcast(words, fa.uint8), "scales": scales}
        return QuantTensor(Mxfp4Scheme(), shape, parts, weights.dtype or self.dtype)
