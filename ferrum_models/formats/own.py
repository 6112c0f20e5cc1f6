"""The layout in which models are saved here: the parts of every scheme under their own names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import ferrum_array as fa
from ferrum_array import Dtype, Tensor
from ferrum_models.config import Settings
from ferrum_models.formats.reading import read
from ferrum_models.weights import Weights
from ferrum_ops import QuantTensor
from ferrum_ops.quant.names import scheme as scheme_of
from ferrum_ops.quant.types import Scheme

__all__ = ["Own", "described"]


@dataclass(frozen=True)
class Own:
    """Layers of ``<part>`` for each part of a scheme, which the config names for all layers, and for some by name.

    ``quantization_config`` is ``{"quant_method": "ferrum", "scheme": NAME, "modules": {PATH: NAME or null}}``: the
    scheme of all matrices but those under *modules*, of which null ones are dense.

    Examples:
        >>> from ferrum_models.config import Settings
        >>> from ferrum_models.formats.own import Own
        >>> own = Own.from_settings(Settings({"scheme": "int4-g32", "modules": {"lm_head": "int8"}}))
        >>> own.of("lm_head").name, own.of("model.layers.0.mlp.up_proj").name
        ('int8', 'int4-g32')
    """

    scheme: Scheme
    modules: Mapping[str, Scheme | None] = field(default_factory=dict)
    dtype: Dtype = fa.float32

    @classmethod
    def from_settings(cls, settings: Settings) -> Own:
        """What ``quantization_config`` says.

        Raises:
            ValueError: for entries that are missing or wrong, and names of schemes that are not known.
        """
        listed = settings.mapping("modules") or {}
        modules = {path: None if name is None else _scheme(settings, name) for path, name in listed.items()}
        return cls(_scheme(settings, settings.get("scheme")), modules, settings.dtype() or fa.float32)

    def of(self, path: str) -> Scheme | None:
        """The scheme of the layer *path*, or None where it is dense."""
        return self.modules.get(path, self.scheme)

    def __call__(self, weights: Weights, shape: tuple[int, ...]) -> QuantTensor | Tensor | None:
        """The weight of the layer that *weights* are, or None where it is dense."""
        scheme = self.of(weights.path)
        if scheme is None:
            return None
        try:
            names = {name: name for name in scheme.parts(*shape[-2:])}
        except ValueError as error:
            weights.problem("weight", f"cannot be {error}")
            return fa.zeros(0)
        if not any(name in weights for name in names):
            return None
        return read(weights, scheme, shape, names, self.dtype)


def _scheme(settings: Settings, name: object) -> Scheme:
    if not isinstance(name, str):
        raise settings.error(("scheme",), name, "the name of a scheme, such as 'int8'")
    try:
        return scheme_of(name)
    except ValueError as error:
        raise ValueError(f"{settings.source}: {error}") from None


def described(schemes: Mapping[str, Scheme]) -> dict[str, object]:
    """``quantization_config`` for layers by name: the most frequent scheme, and the others one by one.

    Examples:
        >>> from ferrum_models.formats.own import described
        >>> from ferrum_ops.quant.integer import IntScheme
        >>> described({"a": IntScheme(8), "b": IntScheme(4, 32), "c": IntScheme(8)})
        {'quant_method': 'ferrum', 'scheme': 'int8', 'modules': {'b': 'int4-g32'}}
    """
    common, _ = Counter(schemes.values()).most_common(1)[0]
    modules = {path: one.name for path, one in schemes.items() if one != common}
    return {"quant_method": "ferrum", "scheme": common.name, **({"modules": modules} if modules else {})}
