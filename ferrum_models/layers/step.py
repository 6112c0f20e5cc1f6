"""What one pass through a decoder knows beside its tokens' vectors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ferrum_array import Tensor
from ferrum_ops import SequenceMeta, attention

__all__ = ["Step"]


@dataclass(frozen=True)
class Step:
    """One pass: which tokens belong to which sequence, how heads turn, and where keys and values are kept.

    Attributes:
        meta: the packed sequences.
        tables: cosines and sines, [T, dim / 2], by the name under which attention layers ask for them.
    """

    meta: SequenceMeta
    tables: Mapping[str, tuple[Tensor, Tensor]]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, number: int, **options: Any) -> Tensor:
        """Causal attention of layer *number*: q [T, H, D], k and v [T, Hkv, *] to [T, H, Dv]."""
        result: Tensor = attention(q, k, v, causal=True, meta=self.meta, **options)
        return result
