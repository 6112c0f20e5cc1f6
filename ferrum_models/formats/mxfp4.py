"""Experts of 4-bit floats, as gpt-oss has them."""

from __future__ import annotations

from dataclasses import dataclass

import ferrum_array as fa
from ferrum_array import Dtype, Tensor
from ferrum_models.config import Settings
from ferrum_models.formats.reading import Kept
from ferrum_models.weights import Weights
from ferrum_ops import QuantTensor
from ferrum_ops.quant.mxfp4 import GROUP, Mxfp4Scheme

__all__ = ["Mxfp4"]


@dataclass(frozen=True)
class Mxfp4:
    """Experts of ``<name>_blocks`` [E, out, in / 32, 16] and ``<name>_scales`` [E, out, in / 32], both uint8.

    Examples:
        >>> from ferrum_models.config import Settings
        >>> from ferrum_models.formats.mxfp4 import Mxfp4
        >>> Mxfp4.from_settings(Settings({"modules_to_not_convert": ["lm_head"]})).kept
        Kept(names=('lm_head',))
    """

    dtype: Dtype
    kept: Kept

    @classmethod
    def from_settings(cls, settings: Settings) -> Mxfp4:
        """What ``quantization_config`` says.

        Raises:
            ValueError: for entries that are wrong.
        """
        return cls(settings.dtype() or fa.bfloat16, Kept.from_settings(settings, "modules_to_not_convert"))

    def __call__(self, weights: Weights, shape: tuple[int, ...]) -> QuantTensor | Tensor | None:
        """The experts that *weights* are, or None where they are dense, and for all other layers."""
        if len(shape) != 3 or weights.path in self.kept:
            return None
        above, name = weights.parent, weights.path.split(".")[-1]
        if f"{name}_blocks" not in above:
            return None
        experts, rows, columns = shape
        if columns % GROUP:
            above.problem(f"{name}_blocks", f"cannot hold rows of {columns} numbers, no multiple of {GROUP}")
            return fa.zeros(0)
        groups = columns // GROUP
        blocks = above.raw(f"{name}_blocks", (experts, rows, groups, GROUP // 2))
        scales = above.raw(f"{name}_scales", (experts, rows, groups))
        if blocks is None or scales is None:
            return fa.zeros(0)
        for ending, found in (("blocks", blocks), ("scales", scales)):
            if found.dtype is not fa.uint8:
                above.problem(f"{name}_{ending}", f"is {found.dtype}, expected uint8")
                return fa.zeros(0)
        values = blocks.reshape(experts, rows, columns // 2)
        return QuantTensor(Mxfp4Scheme(), shape, {"values": values, "scales": scales}, weights.dtype or self.dtype)
