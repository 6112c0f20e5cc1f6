"""Checkpoints of 8-bit floats with a scale for each block, as DeepSeek-V3 has them."""

from __future__ import annotations

from dataclasses import dataclass

import ferrum_array as fa
from ferrum_array import Dtype, Tensor
from ferrum_models.config import Settings
from ferrum_models.formats.reading import Kept
from ferrum_models.weights import Weights
from ferrum_ops import QuantTensor
from ferrum_ops.quant.fp8 import Fp8Scheme

__all__ = ["Fp8"]


@dataclass(frozen=True)
class Fp8:
    """Layers of ``weight`` in E4M3 and ``weight_scale_inv``, by which each block of it is multiplied.

    The inputs of products stay as they are; rounding them to 8 bits too, as ``activation_scheme`` dynamic allows, is
    a matter of speed.

    Examples:
        >>> from ferrum_models.config import Settings
        >>> from ferrum_models.formats.fp8 import Fp8
        >>> Fp8.from_settings(Settings({"weight_block_size": [128, 128]})).scheme.name
        'fp8_e4m3-b128x128'
    """

    scheme: Fp8Scheme
    dtype: Dtype
    kept: Kept

    @classmethod
    def from_settings(cls, settings: Settings) -> Fp8:
        """What ``quantization_config`` says.

        Raises:
            ValueError: for entries that are missing, wrong or not implemented.
        """
        settings.refuse("fmt", "e4m3", "float8_e4m3fn")
        settings.refuse("activation_scheme", "dynamic")
        block = settings.integers("weight_block_size")
        if len(block) != 2 or min(block) < 1:
            raise settings.error(("weight_block_size",), settings.get("weight_block_size"), "rows and columns")
        kept = Kept.from_settings(settings, "modules_to_not_convert", "ignored_layers")
        return cls(Fp8Scheme("e4m3", (block[0], block[1])), settings.dtype() or fa.bfloat16, kept)

    def __call__(self, weights: Weights, shape: tuple[int, ...]) -> QuantTensor | Tensor | None:
        """The weight of the layer that *weights* are, or None where it is dense."""
        if len(shape) != 2 or weights.path in self.kept or "weight_scale_inv" not in weights:
            return None
        wanted = self.scheme.parts(*shape)
        values = weights.raw("weight", shape, codes=True)
        scales = weights.raw("weight_scale_inv", wanted["scales"].shape)
        if values is None or scales is None:
            return fa.zeros(0)
        for name, part, found in (("weight", "values", values), ("weight_scale_inv", "scales", scales)):
            if found.dtype not in wanted[part].dtypes:
                expected = "floats of 8 bits" if part == "values" else " or ".join(map(str, wanted[part].dtypes))
                weights.problem(name, f"is {found.dtype}, expected {expected}")
                return fa.zeros(0)
        return QuantTensor(self.scheme, shape, {"values": values, "scales": scales}, weights.dtype or self.dtype)
