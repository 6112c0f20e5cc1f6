"""How the next token is chosen."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ferrum_array as fa
from ferrum_array import Tensor
from ferrum_models.config import Settings
from ferrum_ops import process_logits, sample, token_counts

__all__ = ["Chooser", "Sampling", "token_logprobs"]

#: so many random numbers of a sequence are made at once
_AHEAD = 64


@dataclass(frozen=True)
class Sampling:
    """The rules by which tokens are chosen; those of ``process_logits``, in that order, and a seed.

    Attributes:
        temperature: divides the logits; 0 takes the likeliest token.
        top_k: only the k likeliest; None for all.
        top_p: only the likeliest that have this share of the probability together; None for all.
        min_p: only those at least this part as likely as the likeliest; None for all.
        repetition_penalty: logits of tokens that were there before are divided by it (multiplied where negative).
        presence_penalty: subtracted for tokens that were generated.
        frequency_penalty: subtracted for each time that a token was generated.
        logit_bias: added to the logits of these tokens; -inf forbids one.
        seed: the same seed gives the same text on every storage, up to logits that differ in their last bits.

    Raises:
        ValueError: for a number that is out of range.

    Examples:
        >>> from ferrum_models import Sampling
        >>> Sampling(temperature=0.8, top_p=0.95, seed=7).greedy, Sampling().greedy
        (False, True)
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, good, wanted in (
            ("temperature", lambda x: x >= 0, "finite and at least 0"),
            ("top_p", lambda x: 0 < x <= 1, "above 0 and at most 1"),
            ("min_p", lambda x: 0 <= x <= 1, "from 0 to 1"),
            ("repetition_penalty", lambda x: x > 0, "above 0"),
            ("presence_penalty", lambda x: True, "finite"),
            ("frequency_penalty", lambda x: True, "finite"),
        ):
            value = getattr(self, name)
            if value is None and name in ("top_p", "min_p"):
                continue
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not math.isfinite(value) or not good(value):
                raise ValueError(f"Sampling: {name} must be {wanted}, got {value!r}")
        for name, least in (("top_k", 1), ("seed", 0)):
            value = getattr(self, name)
            if value is None and name == "top_k":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"Sampling: {name} must be an integer of at least {least}, got {value!r}")

    @property
    def greedy(self) -> bool:
        """Whether no chance is involved."""
        return self.temperature == 0.0

    @property
    def penalised(self) -> bool:
        """Whether what was there before makes a difference."""
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1.0, 0.0, 0.0)

    @classmethod
    def load(cls, folder: Path) -> Sampling:
        """What ``generation_config.json`` of a model folder asks for; the likeliest token where there is none.

        Raises:
            ValueError: for entries that are out of range.
        """
        path = folder / "generation_config.json"
        if not path.is_file():
            return cls()
        settings = Settings.load(path)
        chance = settings.flag("do_sample")
        top_k = settings.get("top_k")
        return cls(
            temperature=settings.number("temperature", default=1.0) if chance else 0.0,
            top_k=settings.integer("top_k") if chance and top_k else None,
            top_p=settings.optional_number("top_p") if chance else None,
            min_p=settings.optional_number("min_p") if chance else None,
            repetition_penalty=settings.number("repetition_penalty", default=1.0),
        )

    def with_seed(self, seed: int) -> Sampling:
        """The same rules with another seed."""
        return replace(self, seed=seed)


class Chooser:
    """Chooses tokens for a batch of sequences by the rules, and remembers what penalties need to know.

    Args:
        sampling: the rules.
        prompts: the ids of each sequence so far.
        vocabulary: how many ids there are.
        device: where logits lie.
        seeds: one for each sequence; that of the rules if absent.
    """

    def __init__(
        self,
        sampling: Sampling,
        prompts: Sequence[Sequence[int]],
        vocabulary: int,
        device: fa.Device,
        seeds: Sequence[int] | None = None,
    ) -> None:
        self._sampling = sampling
        # a stream of numbers for each, so that none depends on its neighbours
        self._random = [fa.random.default_rng(one) for one in seeds or [sampling.seed] * len(prompts)]
        self._ahead: list[list[float]] = [[] for _ in self._random]
        self._device = device
        self._rules: dict[str, Any] = {}
        if sampling.logit_bias:
            self._rules["bias"] = _biases(sampling.logit_bias, vocabulary, device)
        self._counts: Tensor | None = None
        if sampling.penalised:
            self._counts = fa.zeros((len(prompts), vocabulary), dtype=fa.int64, device=device)
            seen = [
                token_counts(fa.asarray(list(ids), dtype=fa.int64, device=device), vocabulary) > 0 for ids in prompts
            ]
            self._rules["prompt"] = fa.stack(seen)
            self._rules["repetition"] = sampling.repetition_penalty
            self._rules["presence"] = sampling.presence_penalty
            self._rules["frequency"] = sampling.frequency_penalty

    def processed(self, logits: Tensor, rows: Sequence[int] | None = None) -> Tensor:
        """Logits [B, V] after the rules; *rows* says which sequences they belong to, if not all."""
        s = self._sampling
        rules = dict(self._rules)
        if self._counts is not None:
            rules["counts"] = self._counts
            if rows is not None:
                places = fa.asarray(list(rows), dtype=fa.int64, device=self._device)
                rules.update({name: fa.take(rules[name], places, axis=0) for name in ("counts", "prompt")})
        if not s.greedy:
            rules.update(temperature=s.temperature, top_k=s.top_k, top_p=s.top_p, min_p=s.min_p)
        return process_logits(logits, **rules) if rules else logits

    def uniforms(self, count: int, row: int = 0) -> Tensor:
        """The next *count* numbers from 0 to below 1 of a sequence."""
        return self._random[row].uniform((count,), dtype=fa.float32, device=self._device)

    def numbers(self, rows: Sequence[int]) -> list[float]:
        """The next number from 0 to below 1 of each of *rows*."""
        found = []
        for row in rows:
            if not self._ahead[row]:
                self._ahead[row] = self._random[row].uniform((_AHEAD,), dtype=fa.float32, device="cpu").tolist()[::-1]
            found.append(self._ahead[row].pop())
        return found

    @property
    def chance(self) -> bool:
        """Whether tokens are drawn."""
        return not self._sampling.greedy

    @property
    def replayable(self) -> bool:
        """Whether the rules are the same at each step, as they are where penalties play no part."""
        return not self._sampling.penalised

    @property
    def key(self) -> Hashable:
        """What tells these rules from others, but for the seed."""
        s = self._sampling
        return (s.temperature, s.top_k, s.top_p, s.min_p, tuple(sorted((s.logit_bias or {}).items())))

    def replayed(self, logits: Tensor, u: Tensor | None) -> tuple[Tensor, Tensor]:
        """A token for each row of logits [B, V], and the logarithm of its probability, where rules are replayable.

        *u* [B] are numbers that :meth:`numbers` gave, and None where nothing is left to chance.
        """
        found = sample(self.processed(logits), u, logprobs=1, model=logits)
        assert not isinstance(found, Tensor)
        return found.ids, found.logprobs

    def choose(self, logits: Tensor, rows: Sequence[int] | None = None) -> Tensor:
        """A token for each row of logits [B, V]: ids [B]; *rows* says which sequences they belong to, if not all.

        Raises:
            ValueError: if the rules leave no token, or the logits have NaN; found when the ids are read.
        """
        chance: Tensor | None = None
        numbers = range(logits.shape[0]) if rows is None else rows
        if not self._sampling.greedy:
            chance = fa.asarray(self.numbers(numbers), dtype=fa.float32, device=self._device)
        ids = sample(self.processed(logits, rows), chance)
        if self._counts is not None and rows is None:  # which nothing need be read back for
            same = fa.arange(logits.shape[-1], device=self._device) == fa.expand_dims(ids, axis=-1)
            self._counts = self._counts + same.astype(fa.int64)
        elif self._counts is not None:
            places = fa.asarray(list(numbers), dtype=fa.int64, device=self._device)
            self._counts[places, ids] = self._counts[places, ids] + 1
        return ids


def token_logprobs(logits: Tensor) -> Tensor:
    """The logarithms of the probabilities of all tokens."""
    top = fa.max(logits, axis=-1, keepdims=True)
    shifted = logits - top
    return shifted - fa.log(fa.sum(fa.exp(shifted), axis=-1, keepdims=True))


def _biases(given: Mapping[int, float], vocabulary: int, device: fa.Device) -> Tensor:
    wrong = [one for one in given if isinstance(one, bool) or not isinstance(one, int) or not 0 <= one < vocabulary]
    if wrong:
        raise ValueError(f"logit_bias: {wrong[0]!r} is no id of a vocabulary of {vocabulary}")
    numbers = [0.0] * vocabulary
    for one, bias in given.items():
        numbers[one] = float(bias)
    return fa.asarray(numbers, dtype=fa.float32, device=device)
