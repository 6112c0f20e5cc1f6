"""Rows of ``sample``, ``process_logits`` and ``embedding``: what comes before and after the layers of a model.

A row of logits is shared by many programs, and nothing is sorted: the number at which ``top_k`` or ``top_p`` ends is
found in eight launches, each of which tries sixteen keys. Tokens, and what is ruled out, are those of the references.
"""

from __future__ import annotations

import math
from typing import Any, Final

import ferrum_array as fa
from ferrum_array import Tensor
from ferrum_ops.draws import ONE
from ferrum_ops.kernels.cuda.launch import INTERPRETED, Kernel, empty, power_of_two
from ferrum_ops.kernels.cuda.layouts import in_order, rows
from ferrum_ops.kernels.cuda.source import sampling as source
from ferrum_ops.sampling import Sampled

__all__ = ["embedding", "process_logits", "process_logits_refuses", "sample", "sample_refuses", "sample_told"]

_PEAK: Final = Kernel(source.peak, aligned=("step",))
_WEIGH: Final = Kernel(source.weigh, aligned=("step",))
_PICK: Final = Kernel(source.pick, aligned=("step",))
_SPREAD: Final = Kernel(source.spread, aligned=("step",))
_TELL: Final = Kernel(source.tell, aligned=("step",))
_TALLY: Final = Kernel(source.tally, aligned=("step",))
_LEVEL: Final = Kernel(source.level, aligned=("step",))
_SETTLE: Final = Kernel(source.settle)
_LEAVE: Final = Kernel(source.leave, aligned=("step", "size"))
_GATHER: Final = Kernel(source.gather, aligned=("step", "size"))

_BLOCK: Final = 4096  # elements of a row that a program has
_MOST_PARTS: Final = 128  # of a row, which each program looks through
_LONGEST: Final = _BLOCK * _MOST_PARTS
_WAYS: Final = 16
_TURNS: Final = 8  # sixteen ways each, for keys of 32 bits
_PIECE: Final = 1024  # elements of a table's row that a program copies


def sample_refuses(logits: Tensor, u: Tensor | None, logprobs: int, model: Tensor | None) -> str | None:
    """Why the kernels cannot take a call that dtypes and features allow, or None."""
    if logprobs > 1:
        return f"tells one likeliest token, not {logprobs}"
    if u is not None and u.dtype is fa.float64:
        return "does not take float64 numbers u"
    return _too_long(logits)


def _too_long(logits: Tensor) -> str | None:
    size = logits.shape[-1]
    return f"takes up to {_LONGEST} tokens, not {size}" if size > _LONGEST else None


class _Rows:
    """Rows of logits, cut into parts, and what is known of their greatest."""

    def __init__(self, logits: Tensor, bias: Tensor | None) -> None:
        self.shape = logits._data.shape
        self.size = self.shape[-1]
        self.count = logits._data.size // self.size
        self.x, self.step = rows(logits)
        self.bias, self.bias_step = None, 0
        if bias is not None and bias.shape[-1:] == (self.size,) and bias.size == self.size:
            self.bias = in_order(bias)
        elif bias is not None:
            self.bias, self.bias_step = in_order(fa.broadcast_to(bias, self.shape)), self.size
        self.block = min(_BLOCK, max(128, power_of_two(self.size)))
        self.splits = power_of_two(-(-self.size // self.block))
        many = (self.count, self.splits)
        self.peaks = empty(many, logits, fa.float32)
        self.places = empty(many, logits, fa.int32)
        self.flaws = empty(many, logits, fa.int32)
        _PEAK(
            many,
            *(self.x, self.bias, *self.known, self.size, self.step, self.bias_step),
            SPLITS=self.splits,
            BLOCK=self.block,
        )

    @property
    def known(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of each part the greatest, its place, and how many are NaN."""
        return self.peaks, self.places, self.flaws

    @property
    def constants(self) -> dict[str, Any]:
        """How kernels are compiled for these rows."""
        return {"SPLITS": self.splits, "BLOCK": self.block, "ASSEMBLY": not INTERPRETED}


def sample(logits: Tensor, u: Tensor | None, logprobs: int, model: Tensor | None) -> Tensor:
    """The op, without its logarithms."""
    out = empty(logits._data.shape[:-1], logits, fa.int64)
    if out.size:
        _choose(_Rows(logits, None), logits, u, out)
    return out


def sample_told(logits: Tensor, u: Tensor | None, logprobs: int, model: Tensor | None) -> Sampled:
    """The op, with the logarithms of the token's probability and of the likeliest one's."""
    shape = logits._data.shape[:-1]
    ids = empty(shape, logits, fa.int64)
    own, greatest = (empty(shape, logits, fa.float32) for _ in range(2))
    best = empty(shape, logits, fa.int64)
    if ids.size:
        cut = _Rows(logits, None)
        _choose(cut, logits, u, ids)
        if model is not None and model is not logits:
            cut = _Rows(model, None)
        sums = empty((cut.count, cut.splits), logits, fa.float32)
        _SPREAD(
            (cut.count, cut.splits),
            *(cut.x, *cut.known, sums, cut.size, cut.step),
            SPLITS=cut.splits,
            BLOCK=cut.block,
        )
        _TELL((cut.count,), cut.x, ids, *cut.known, sums, own, best, greatest, cut.size, cut.step, SPLITS=cut.splits)
    return Sampled(ids, own, fa.expand_dims(best, axis=-1), fa.expand_dims(greatest, axis=-1))


def _choose(cut: _Rows, logits: Tensor, u: Tensor | None, out: Tensor) -> None:
    """A token of each row."""
    sums = None
    if u is not None:
        u = in_order(u)
        sums = empty((cut.count, cut.splits), logits, fa.int64)
        _WEIGH((cut.count, cut.splits), cut.x, *cut.known, sums, cut.size, cut.step, **cut.constants)
    _PICK((cut.count,), cut.x, u, *cut.known, sums, out, cut.size, cut.step, 1, **cut.constants)


def process_logits_refuses(logits: Tensor, rules: Any) -> str | None:
    """Why the kernels cannot take a call that dtypes and features allow, or None."""
    if rules.bias is not None and rules.bias.dtype is fa.float64:
        return "does not take a float64 bias"
    return _too_long(logits)


def process_logits(logits: Tensor, rules: Any) -> Tensor:
    """The op, with the same numbers for all rows, and no penalties."""
    out = empty(logits._data.shape, logits)
    if not out.size:
        return out
    cut = _Rows(logits, rules.bias)
    temperature = None
    if rules.temperature not in (0.0, 1.0):
        temperature = max(float(rules.temperature), fa.finfo(fa.float32).smallest_normal)
    heat = (temperature, 0.5 * float(fa.finfo(logits.dtype).max))
    search = _Search(cut, heat, logits) if rules.top_k is not None or rules.top_p is not None else None
    if search is not None:
        search.run(rules.top_k, rules.top_p)
    _LEAVE(
        (cut.count, cut.splits),
        *(cut.x, cut.bias, *cut.known),
        *((None,) * 3 if search is None else (search.state, search.prefixes, search.found)),
        *(None if rules.min_p is None else math.ceil(rules.min_p * ONE), out, cut.count),
        *(cut.size, cut.step, cut.bias_step, *heat),
        COLDEST=rules.temperature == 0.0,
        SEARCHED=search is not None,
        **cut.constants,
    )
    return out


class _Search:
    """The search for the last number that stays, row by row."""

    def __init__(self, cut: _Rows, heat: tuple[float | None, float], like: Tensor) -> None:
        self._cut, self._heat = cut, heat
        self._grid = grid = (cut.count, cut.splits)
        self.state = empty((cut.count, 4), like, fa.int64)
        self.prefixes = empty((_TURNS + 1, cut.count, 2), like, fa.int64)
        self.found = empty((*grid, 4), like, fa.int64)
        self._parts = [empty((*grid, _WAYS), like, fa.int64) for _ in range(2)]

    def run(self, top_k: int | None, top_p: float | None) -> None:
        """Find it; how many stay of those that have it goes into the state."""
        size = self._cut.size
        share = None if top_p is None else int(top_p * 2.0**32)
        if top_k is not None and top_k < size:
            self._turns(top_k)
            self._level(top_k)
        else:
            self._level(None)
        self._settle(size if top_k is None else top_k, share, share is not None)
        if share is not None:
            self._turns(None)
            self._level(None, self.state)
            self._settle(size, share, False)

    def _arguments(self, least: int | None) -> tuple[Any, ...]:
        cut = self._cut
        return (cut.count, cut.size, cut.step, cut.bias_step, *self._heat, least)

    def _turns(self, least: int | None) -> None:
        """Eight launches: to so many numbers, or to the weight that is in the state."""
        cut, state = self._cut, self.state if least is None else None
        for turn in range(_TURNS):
            before, parts = self._parts[(turn + 1) % 2], self._parts[turn % 2]
            _TALLY(
                self._grid,
                *(cut.x, cut.bias, *cut.known, state, self.prefixes, before, parts, *self._arguments(least), turn),
                warps=8,
                WEIGHTS=least is None,
                **cut.constants,
            )

    def _level(self, least: int | None, state: Tensor | None = None) -> None:
        cut = self._cut
        _LEVEL(
            self._grid,
            *(cut.x, cut.bias, *cut.known, state, self.prefixes, self._parts[(_TURNS + 1) % 2], self.found),
            *self._arguments(least),
            warps=8,
            SEARCHED=least is not None or state is not None,
            **cut.constants,
        )

    def _settle(self, top_k: int, share: int | None, shared: bool) -> None:
        cut = self._cut
        _SETTLE(
            (cut.count,),
            *(*cut.known, self.state, self.prefixes, self.found, cut.count, top_k, share, *self._heat),
            SHARED=shared,
            SPLITS=cut.splits,
            ASSEMBLY=not INTERPRETED,
        )


def embedding(table: Tensor, ids: Tensor, scale: float | None) -> Tensor:
    """The op, for ids that are in range: others are taken for the nearest."""
    size = table._data.shape[1]
    out = empty((*ids._data.shape, size), table)
    if out.size:
        table, step = rows(table)
        ids = in_order(ids)
        block = min(_PIECE, max(32, power_of_two(size)))
        _GATHER(
            (ids._data.size, -(-size // block)),
            *(table, ids, out, table._data.shape[0], size, step, None if scale is None else float(scale)),
            warps=min(4, max(1, block // 256)),
            BLOCK=block,
        )
    return out
