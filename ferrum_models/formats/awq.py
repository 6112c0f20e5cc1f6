"""AWQ checkpoints, as AutoAWQ writes them for its matrix products."""

from __future__ import annotations

from dataclasses import dataclass

from ferrum_array import Tensor
from ferrum_models.config import Settings
from ferrum_models.formats.reading import Kept, group_size, is_dense, read
from ferrum_models.weights import Weights
from ferrum_ops import QuantTensor
from ferrum_ops.quant.awq import AwqScheme

__all__ = ["Awq"]

_NAMES = {name: name for name in ("qweight", "qzeros", "scales")}


@dataclass(frozen=True)
class Awq:
    """Layers of ``qweight``, ``qzeros`` and ``scales``, as a config with ``quant_method`` awq has them.

    Examples:
        >>> from ferrum_models.config import Settings
        >>> from ferrum_models.formats.awq import Awq
        >>> Awq.from_settings(Settings({"bits": 4, "group_size": 64, "zero_point": True})).scheme.name
        'awq4-g64'
    """

    scheme: AwqScheme
    kept: Kept

    @classmethod
    def from_settings(cls, settings: Settings) -> Awq:
        """What ``quantization_config`` says.

        Raises:
            ValueError: for entries that are wrong or not implemented.
        """
        if settings.integer("bits", "w_bit", default=4) != 4:
            raise settings.error(("bits", "w_bit"), settings.get("bits", "w_bit"), "4")
        version = str(settings.get("version", "format") or "gemm").lower()
        if version != "gemm":
            raise settings.error(("version", "format"), version, "'gemm'; other arrangements of the words are not read")
        if not settings.flag("zero_point", default=True):
            raise settings.error(("zero_point",), False, "true")
        return cls(AwqScheme(group_size(settings, 128)), Kept.from_settings(settings, "modules_to_not_convert"))

    def __call__(self, weights: Weights, shape: tuple[int, ...]) -> QuantTensor | Tensor | None:
        """The weight of the layer that *weights* are, or None where it is dense."""
        if is_dense(weights, shape, self.kept, _NAMES):
            return None
        return read(weights, self.scheme, shape, _NAMES)
