"""Tables of angles for the tokens of a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import ferrum_array as fa
from ferrum_array import Device, Tensor
from ferrum_models.config import Settings
from ferrum_ops import RopeScaling, SequenceMeta, rope_scaling, rope_table

__all__ = ["Rotary"]

Tables = tuple[Tensor, Tensor]
_LEAST = 256
#: scalings that stretch what a model was trained on: all positions, where a config does not say
_FROM_ORIGINAL = ("llama3", "longrope", "su", "yarn")


@dataclass(frozen=True)
class Rotary:
    """How the heads of one kind of layer turn: *dim* dimensions of each, with frequencies from *theta* and *scaling*.

    Where the scaling depends on how long a sequence is, keys that a cache holds stay turned as they were.

    Examples:
        >>> from ferrum_array import Device
        >>> from ferrum_models.layers import Rotary
        >>> cos, sin = Rotary(4, 10000.0).tables((0, 1, 5), Device("cpu"))
        >>> cos.shape, sin[1]
        ((3, 2), Tensor([0.84147096, 0.00999983]))
    """

    dim: int
    theta: float
    scaling: RopeScaling | None = None
    #: tables for all positions up to a power of two, by device: decoding then takes one row a token
    _known: dict[Device, Tables] = field(default_factory=dict, repr=False, compare=False)

    def tables(self, positions: tuple[int, ...], device: Device, length: int | None = None) -> Tables:
        """Cosines and sines, [T, dim / 2] in float32, of *positions*; *length* as in ``rope_table``."""
        last = max(positions, default=0)
        if self.by_length:
            longest = last + 1 if length is None else length
            return rope_table(positions, self.dim, self.theta, self.scaling, length=longest, device=device)
        known = self._known.get(device)
        if known is None or known[0].shape[0] <= last:
            known = rope_table(
                range(max(_LEAST, 1 << last.bit_length())), self.dim, self.theta, self.scaling, device=device
            )
            self._known[device] = known
        first = positions[0] if positions else 0
        if positions == tuple(range(first, first + len(positions))):
            return known[0][first : first + len(positions)], known[1][first : first + len(positions)]
        rows = fa.asarray(positions, dtype=fa.int64, device=device)
        return fa.take(known[0], rows, axis=0), fa.take(known[1], rows, axis=0)

    @property
    def by_length(self) -> bool:
        """Whether angles depend on how long a sequence is."""
        return self.scaling is not None and self.scaling.by_length

    def table(self, length: int, device: Device) -> Tables:
        """Cosines and sines, [length, dim / 2], of all positions below *length*.

        Raises:
            ValueError: if they depend on how long a sequence is.
        """
        if self.by_length:
            raise ValueError("there is no table for all sequences: the angles depend on how long one is")
        return self.tables(tuple(range(length)), device)

    def packed(self, meta: SequenceMeta, device: Device, whole: Sequence[int]) -> Tables:
        """Cosines and sines of the tokens of packed sequences.

        Where they depend on the length, the tokens of a sequence before ``whole[s]`` turn as in one of that length, and
        each later one as in a sequence that it ends.
        """
        if not self.by_length:
            return self.tables(meta.token_positions, device)
        parts = []
        for (start, stop), length in zip(pairwise(meta.cu_seqlens), whole, strict=True):
            places = meta.token_positions[start:stop]
            early = tuple(place for place in places if place < length)
            parts += [self.tables(early, device, length)] if early else []
            parts += [self.tables((place,), device, place + 1) for place in places if place >= length]
        if not parts:
            return self.tables((), device, 1)
        return fa.concat([cos for cos, _ in parts]), fa.concat([sin for _, sin in parts])

    @classmethod
    def from_settings(
        cls, settings: Settings, dim: int, kind: str | None = None, *, theta: float = 10000.0, share: float = 1.0
    ) -> Rotary:
        """What a config says, in ``rope_parameters`` or in ``rope_theta`` and ``rope_scaling``.

        Args:
            settings: the config.
            dim: the dimensions that rotate if all of them do; ``partial_rotary_factor`` makes them fewer.
            kind: the kind of layer, where ``rope_parameters`` has one entry for each.
            theta: the base of the frequencies where the config names none.
            share: ``partial_rotary_factor`` where the config names none.

        Raises:
            ValueError: for an unknown kind of scaling, or entries that are missing or wrong.
        """
        entries: dict[str, Any] = dict(settings.mapping("rope_parameters") or settings.mapping("rope_scaling") or {})
        if kind is not None and isinstance(entries.get(kind), Mapping):
            entries = dict(entries[kind])
        inner = Settings({**settings.values, **entries}, settings.source)
        share = inner.number("partial_rotary_factor", default=share)
        entries.pop("partial_rotary_factor", None)
        entries.pop("rope_theta", None)
        entries.setdefault("max_position_embeddings", settings.get("max_position_embeddings"))
        if settings.get("original_max_position_embeddings") is not None:  # phi-3's place for it
            entries.setdefault("original_max_position_embeddings", settings.get("original_max_position_embeddings"))
        if entries.get("rope_type", entries.get("type")) in _FROM_ORIGINAL:
            entries.setdefault("original_max_position_embeddings", settings.get("max_position_embeddings"))
        try:
            scaling = rope_scaling(entries)
        except ValueError as error:
            raise ValueError(f"{settings.source}: {error}") from None
        return cls(int(dim * share), inner.number("rope_theta", default=theta), scaling)
