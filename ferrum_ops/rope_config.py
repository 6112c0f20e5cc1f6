"""The frequencies of rotary position embedding, and what the configs of models say about them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from functools import lru_cache
from typing import Any

from ferrum_ops.checks import finite
from ferrum_ops.rope_scalings import (
    DynamicScaling,
    Frequencies,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    ProportionalScaling,
    RopeScaling,
    YarnScaling,
    plain_frequencies,
)

__all__ = ["rope_frequencies", "rope_scaling"]

#: kinds by their name in configs; a value of None asks for plain frequencies
_KINDS: dict[str, type[RopeScaling] | None] = {
    "default": None,
    **{
        kind.name: kind
        for kind in (
            LinearScaling,
            DynamicScaling,
            YarnScaling,
            LongRopeScaling,
            Llama3Scaling,
            ProportionalScaling,
        )
    },
}
#: older names
_ALIASES = {"mrope": "default", "su": "longrope"}
#: entries that no scaling has, but its neighbours
_BESIDE = ("rope_theta", "max_position_embeddings", "mrope_section", "mrope_interleaved")


def rope_scaling(config: Mapping[str, Any]) -> RopeScaling | None:
    """The scaling that the ``rope_parameters`` or ``rope_scaling`` of a model's config asks for; None for none.

    ``rope_type``, in older configs ``type``, names it; the old names ``su`` (``longrope``) and ``mrope`` (``default``)
    are known. Entries that are null count as absent. Beside the entries of the kind there may be ``rope_theta``,
    ``mrope_section`` and ``mrope_interleaved``, which ``rope_table`` reads, and ``max_position_embeddings``: where
    ``factor`` is absent, ``yarn`` and ``longrope`` divide it by ``original_max_position_embeddings``.

    Raises:
        ValueError: for an unknown kind or entry, listing those that are known, and for entries that are missing or out
        of range.

    Examples:
        >>> from ferrum_ops import rope_scaling
        >>> rope_scaling({"rope_type": "linear", "factor": 8.0, "rope_theta": 10000.0})
        LinearScaling(factor=8.0)
        >>> rope_scaling({"type": "linear", "size": 8.0})
        Traceback (most recent call last):
        ...
        ValueError: rope_scaling: no entry is called 'size' for 'linear'; known are factor, rope_type, ...
    """
    given = {key: value for key, value in config.items() if value is not None}
    names = {_ALIASES.get(name, name) for key in ("rope_type", "type") if (name := given.pop(key, None)) is not None}
    if len(names) > 1:
        raise ValueError(f"rope_scaling: rope_type is {config['rope_type']!r} but type is {config['type']!r}")
    name = names.pop() if names else "default"
    if name not in _KINDS:
        raise ValueError(f"rope_scaling: no kind is called {name!r}; known are {', '.join((*_KINDS, *_ALIASES))}")
    kind = _KINDS[name]
    entries = () if kind is None else fields(kind)
    allowed = [entry.name for entry in entries]
    for key in given:
        if key == "partial_rotary_factor" and key not in allowed:
            if given[key] == 1.0:
                continue
            raise ValueError(
                f"rope_scaling: partial_rotary_factor={given[key]!r} is a share of the head dimension; "
                "give rope_table the dimensions that rotate as dim, and leave it out here"
            )
        if key not in allowed and key not in _BESIDE:
            known = ", ".join(dict.fromkeys((*allowed, "rope_type", "type", *_BESIDE)))
            raise ValueError(f"rope_scaling: no entry is called {key!r} for {name!r}; known are {known}")
    longest, original = given.get("max_position_embeddings"), given.get("original_max_position_embeddings")
    if kind in (YarnScaling, LongRopeScaling) and longest is not None and original is not None:
        given.setdefault("factor", longest / original)
    found = {key: given[key] for key in allowed if key in given}
    if missing := [entry.name for entry in entries if entry.default is MISSING and entry.name not in found]:
        raise ValueError(f"rope_scaling: {name!r} needs {', '.join(missing)}; got {', '.join(found) or 'nothing'}")
    return None if kind is None else kind(**found)


def rope_frequencies(
    dim: int, theta: float, scaling: RopeScaling | Mapping[str, Any] | None = None, *, length: int | None = None
) -> tuple[tuple[float, ...], float]:
    """The dim / 2 frequencies, in radians per position, and the factor of cosines and sines.

    Without *scaling*, frequency i is ``theta ** (-2 i / dim)``. Computed in double precision.

    Args:
        dim: how many dimensions rotate; two for each frequency.
        theta: the base.
        scaling: how the frequencies are stretched; the entries of a config are read by ``rope_scaling``.
        length: how long the sequence is; for scalings that depend on it.

    Source: Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021.

    Raises:
        TypeError: if *scaling* is no scaling. ValueError: for an odd *dim*, a *theta* that is not finite and above 1,
        a *length* that is missing, negative or no integer, and a scaling that does not fit.

    Examples:
        >>> from ferrum_ops import rope_frequencies
        >>> rope_frequencies(8, 10000.0)
        ((1.0, 0.1, 0.01, 0.001), 1.0)
    """
    if isinstance(dim, bool) or not isinstance(dim, int) or dim < 2 or dim % 2:
        raise ValueError(f"rope: dim must be an even integer of at least 2, got {dim!r}")
    if not (finite("rope", "theta", theta) and theta > 1):
        raise ValueError(f"rope: theta must be finite and above 1, got {theta}")
    if isinstance(scaling, Mapping):
        other = scaling.get("rope_theta")
        if other is not None and other != theta:
            raise ValueError(f"rope: theta is {theta}, but the entries of scaling say rope_theta={other}")
        scaling = rope_scaling(scaling)
    if length is not None and (isinstance(length, bool) or not isinstance(length, int) or length < 0):
        raise ValueError(f"rope: length must be an integer of at least 0, got {length!r}")
    if scaling is None:
        return plain_frequencies(dim, float(theta)), 1.0
    if not isinstance(scaling, RopeScaling):
        raise TypeError(
            f"rope: scaling must be a RopeScaling, the entries of a config, or None, got {type(scaling).__name__}"
        )
    if scaling.by_length and length is None:
        raise ValueError(f"rope: {scaling.name} scaling depends on the length of the sequence; pass length")
    return _scaled(scaling, dim, float(theta), length if scaling.by_length and length is not None else 0)


@lru_cache(maxsize=256)
def _scaled(scaling: RopeScaling, dim: int, theta: float, length: int) -> tuple[Frequencies, float]:
    return scaling.frequencies(dim, theta, length), scaling.magnitude
