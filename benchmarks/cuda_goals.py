"""What the rows of ``ops_cuda`` and ``decode_cuda`` are to reach, and whether they have."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, NamedTuple

__all__ = ["MODELS", "OPS", "Goal", "cells", "goals_of"]


@dataclass(frozen=True)
class Goal:
    """A number to reach.

    Attributes:
        of: what is compared with it: our speed over that of the peer's fastest way (``peer``), the share of the bound
            (``bound``), or our time in microseconds (``us``), which shall be no longer.
        number: the number.
    """

    of: Literal["peer", "bound", "us"]
    number: float

    def reached(self, ours: float, bound: float, peer: float | None) -> bool | None:
        """Whether our time reaches it, given the bound's and the peer's times; None without the peer it asks for."""
        if self.of == "us":
            return ours <= self.number
        if self.of == "bound":
            return bound / ours >= self.number
        return None if peer is None else peer / ours >= self.number

    def share(self, bound: float, peer: float | None) -> float | None:
        """The share of the bound that a row has which just reaches it, in microseconds as :meth:`reached`."""
        if self.of == "us":
            return bound / self.number
        if self.of == "bound":
            return self.number
        return None if peer is None else self.number * bound / peer

    def __str__(self) -> str:
        return f"{self.number:g} us" if self.of == "us" else f"{self.number:.2f} of the {self.of}"


class Kind(NamedTuple):
    """The rows whose whole names an expression matches, and their goal."""

    rows: str
    goal: Goal


#: by the names of rows
OPS: tuple[Kind, ...] = (
    Kind(r"causal attention 1x32/8x4096x128", Goal("peer", 1.0)),
    Kind(r"causal attention 8x16/16x1024x64", Goal("peer", 1.2)),
    Kind(r"decode 32x4096 keys, .*", Goal("bound", 0.93)),
    Kind(r"decode 1x8192 keys, .*, bf16, .*", Goal("us", 20.0)),
    Kind(r"cache write 1x8192 tokens, .*", Goal("bound", 0.9)),
    Kind(r"(RMSNorm|layer norm|gated activation|RoPE|norms of heads).* 8192x.*", Goal("bound", 0.9)),
    Kind(r"linear (1|4|16)x\d+ to \d+, (int|mxfp).*", Goal("bound", 0.8)),
    Kind(r"linear 4096x\d+ to \d+, (int|mxfp).*", Goal("peer", 0.7)),
    Kind(r"grouped_linear, .*, even, bf16", Goal("peer", 1.0)),
    Kind(r"moe_ffn, .*, (1|8|64)x\d+, .*", Goal("bound", 0.8)),
)
#: by what is timed, the model, the weights and the sequences at once
MODELS: tuple[Kind, ...] = (
    Kind(r"decode Qwen3-8B bf16 1", Goal("bound", 0.75)),
    Kind(r"decode .*", Goal("peer", 1.3)),
)


def goals_of(name: str, kinds: tuple[Kind, ...]) -> list[Goal]:
    """The goals of the row *name*."""
    return [kind.goal for kind in kinds if re.fullmatch(kind.rows, name)]


def cells(goals: list[Goal], ours: float, bound: float, peer: float | None) -> str:
    """Two cells of a table: the goals, and whether our time reaches all; empty where the peer they ask for is not."""
    reached = [goal.reached(ours, bound, peer) for goal in goals]
    said = "no" if False in reached else "" if not goals or None in reached else "yes"
    return f"{', '.join(map(str, goals))} | {said}"
