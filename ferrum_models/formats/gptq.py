"""GPTQ checkpoints, as AutoGPTQ and GPTQModel write them."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import ferrum_array as fa
from ferrum_array import Tensor
from ferrum_models.config import Settings
from ferrum_models.formats.reading import Kept, expression, group_size, is_dense, read
from ferrum_models.weights import Weights
from ferrum_ops import QuantTensor
from ferrum_ops.quant.gptq import GptqScheme

__all__ = ["Gptq"]

#: ``checkpoint_format`` -> the version of the scheme
_VERSIONS = {"gptq": 1, "gptq_v2": 2}
_NAMES = {name: name for name in ("qweight", "qzeros", "scales", "g_idx")}


@dataclass(frozen=True)
class Gptq:
    """Layers of ``qweight``, ``qzeros``, ``scales`` and ``g_idx``, as a config with ``quant_method`` gptq has them.

    ``g_idx`` decides whether groups are in order; ``desc_act`` says only whether it must be there.

    Examples:
        >>> from ferrum_models.config import Settings
        >>> from ferrum_models.formats.gptq import Gptq
        >>> Gptq.from_settings(Settings({"bits": 4, "group_size": 32, "desc_act": True})).scheme.name
        'gptq4-g32-order'
    """

    scheme: GptqScheme
    kept: Kept
    #: of layers whose names begin with what an expression matches, the first that does: None keeps them dense
    others: tuple[tuple[str, GptqScheme | None], ...] = ()

    @classmethod
    def from_settings(cls, settings: Settings) -> Gptq:
        """What ``quantization_config`` says.

        Raises:
            ValueError: for entries that are missing, wrong or not implemented.
        """
        others = []
        for key, entries in (settings.mapping("dynamic") or {}).items():
            pattern = expression(settings, "dynamic", key.removeprefix("-:").removeprefix("+:"))
            own = Settings({**settings.values, **dict(entries or {})}, f"{settings.source}: dynamic: {key}")
            others.append((pattern, None if key.startswith("-:") else _scheme(own)))
        kept = Kept.from_settings(settings, "modules_to_not_convert")
        return cls(_scheme(settings), kept, tuple(others))

    def __call__(self, weights: Weights, shape: tuple[int, ...]) -> QuantTensor | Tensor | None:
        """The weight of the layer that *weights* are, or None where it is dense."""
        path = weights.path
        scheme = next((own for pattern, own in self.others if re.match(pattern, path)), self.scheme)
        if scheme is None or is_dense(weights, shape, self.kept, _NAMES):
            return None
        if "bias" in weights:
            _unused_bias(weights, shape[0])
        if "g_idx" in weights:
            stored = weights.raw("g_idx", (shape[1],))
            if stored is None:
                return fa.zeros(0)
            if shape[1] and not 0 <= int(fa.min(stored)) <= int(fa.max(stored)) < scheme.groups(shape[1]):
                weights.problem("g_idx", f"names groups that are not from 0 to {scheme.groups(shape[1]) - 1}")
                return fa.zeros(0)
            in_order = fa.arange(shape[1], dtype=stored.dtype, device=stored.device) // (scheme.group or shape[1])
            scheme = replace(scheme, ordered=scheme.ordered or not bool(fa.all(stored == in_order)))
        return read(weights, scheme, shape, _NAMES)


def _scheme(settings: Settings) -> GptqScheme:
    settings.refuse("is_marlin_format")
    settings.refuse("pack_dtype", "int32")
    settings.refuse("quant_type", "int")
    bits = settings.integer("bits")
    if bits not in (2, 3, 4, 8):
        raise settings.error(("bits",), bits, "2, 3, 4 or 8")
    version = settings.choice("checkpoint_format", known=_VERSIONS, default="gptq")
    return GptqScheme(bits, group_size(settings, 128), version, settings.flag("desc_act"))


def _unused_bias(weights: Weights, outputs: int) -> None:
    """Take the zeros that some writers add as the bias of layers that have none."""
    stored = weights.raw("bias")
    if stored is not None and stored.shape == (outputs,) and bool(fa.any(stored != 0)):
        weights.give_back("bias")
