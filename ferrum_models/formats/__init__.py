"""Checkpoints whose matrices are stored in fewer bits: a module for each layout, chosen by the config."""

from __future__ import annotations

from collections.abc import Callable

from ferrum_models.config import Settings
from ferrum_models.formats import awq, fp8, gptq, mlx, mxfp4, own
from ferrum_models.weights import LinearFormat

__all__ = ["METHODS", "formats", "quantisation"]

#: ``quant_method`` of a config's ``quantization_config`` -> what reads it
METHODS: dict[str, Callable[[Settings], LinearFormat]] = {
    "awq": awq.Awq.from_settings,
    "ferrum": own.Own.from_settings,
    "fp8": fp8.Fp8.from_settings,
    "gptq": gptq.Gptq.from_settings,
    "mxfp4": mxfp4.Mxfp4.from_settings,
}


def quantisation(settings: Settings) -> Settings | None:
    """What the config says of weights in fewer bits, or None where all are dense.

    MLX's own layout has it under ``quantization``, all others under ``quantization_config``.
    """
    for name in ("quantization", "quantization_config"):
        found = settings.mapping(name)
        if found is not None:
            return Settings(found, f"{settings.source}: {name}")
    return None


def formats(settings: Settings) -> tuple[LinearFormat, ...]:
    """What reads the matrices that the checkpoint of this config stores in fewer bits; nothing where all are dense.

    Args:
        settings: the config of the model.

    Raises:
        ValueError: for a method that is not known, listing those that are, and for a variant that is not implemented.

    Examples:
        >>> from ferrum_models.config import Settings
        >>> from ferrum_models.formats import formats
        >>> formats(Settings({"quantization": {"group_size": 32, "bits": 4}}))
        (Mlx(group=32, bits=4, mode='affine'),)
        >>> formats(Settings({"quantization_config": {"quant_method": "abacus"}}))
        Traceback (most recent call last):
        ...
        ValueError: the config: quantization_config: quant_method must be one of awq, ferrum, fp8, gptq, mxfp4, or ...
    """
    found = quantisation(settings)
    if found is None:
        return ()
    inner = Settings({"dtype": settings.get("dtype", "torch_dtype"), **found.values}, found.source)
    if mlx.is_mlx(found):
        return (mlx.Mlx.from_settings(inner),)
    method = found.get("quant_method")
    if method not in METHODS:
        known = f"one of {', '.join(METHODS)}, or left out where MLX's group_size and bits are there"
        raise found.error(("quant_method",), method, known)
    return (METHODS[method](inner),)
