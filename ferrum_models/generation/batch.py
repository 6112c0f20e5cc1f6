"""Several texts at once: weights are read once for all of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import ferrum_array as fa
from ferrum_array import Dtype, Tensor
from ferrum_models.causal import CausalLM
from ferrum_models.generation.captured import Made, Steps
from ferrum_models.generation.sampling import Chooser, Sampling, token_logprobs
from ferrum_models.generation.text import Prompt, TextRow, prompt_ids
from ferrum_models.generation.tokens import Token, checked_prompt
from ferrum_models.layers import CacheKind
from ferrum_models.progress import Progress, progressing
from ferrum_models.tokenizing import Tokenizer

__all__ = ["Batch", "generate_batch"]

#: tokens of all sequences together that are read in one pass
_PASS = 2048


class Batch:
    """Texts of one model that grow together, a token each with every step; some end before others.

    Each row is computed from its own tokens alone and has its own stream of random numbers, so that it gets the tokens
    that it would get alone, up to logits that differ in their last bits.

    Args:
        model: the language model.
        prompts: the ids of each row, of any lengths.
        max_new_tokens: the most that each row gets.
        sampling: how tokens are chosen; the likeliest if absent.
        seeds: one for each row; that of *sampling* for all if absent.
        stop_ids: ids that end a row; those of the model's config if absent, none if empty.
        kv_dtype: of the keys and values that are kept; that of the model, ``int8`` or ``fp8_e4m3``.
        kind: see ``CausalLM.make_cache``.

    Raises:
        ValueError: for no prompts, an empty one, one that is longer than the model's positions, ids outside the
        vocabulary, and another number of seeds.

    Examples:
        >>> from ferrum_models import Batch, random_model
        >>> tiny = {"model_type": "llama", "vocab_size": 9, "hidden_size": 8, "intermediate_size": 8}
        >>> model = random_model({**tiny, "num_hidden_layers": 1, "num_attention_heads": 2})
        >>> batch = Batch(model, [[1, 2, 3], [4]], max_new_tokens=5)
        >>> while batch.rows:
        ...     tokens = batch.step()
        >>> [len(one) for one in batch.ids]
        [5, 5]
    """

    def __init__(
        self,
        model: CausalLM,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        sampling: Sampling | None = None,
        seeds: Sequence[int] | None = None,
        stop_ids: Collection[int] | None = None,
        kv_dtype: Dtype | str | None = None,
        kind: CacheKind = "contiguous",
    ) -> None:
        if not prompts:
            raise ValueError("a batch needs at least one prompt")
        if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int) or max_new_tokens < 0:
            raise ValueError(f"max_new_tokens must be an integer of at least 0, got {max_new_tokens!r}")
        if seeds is not None and len(seeds) != len(prompts):
            raise ValueError(f"seeds must be one for each of {len(prompts)} prompts, got {len(seeds)}")
        rules = Sampling() if sampling is None else sampling
        limit = model.config.max_position_embeddings
        self._model = model
        self._left: list[list[int]] = []  # what the model has not read yet
        for number, prompt in enumerate(prompts):
            try:
                self._left.append(checked_prompt(model, prompt))
            except ValueError as error:
                raise ValueError(f"prompt {number}: {error}") from None
            if len(prompt) > limit:
                raise ValueError(f"prompt {number} has {len(prompt)} tokens, but the model's positions end at {limit}")
        lengths = [len(prompt) for prompt in self._left]
        self._rooms = [min(max_new_tokens, limit - length + 1) for length in lengths]
        own = None if seeds is None else [rules.with_seed(seed).seed for seed in seeds]  # which checks them
        self._chooser = Chooser(rules, self._left, model.config.vocab_size, model.device, own)
        self._stops = frozenset(model.config.eos_token_ids if stop_ids is None else stop_ids)
        self._cache = model.make_cache(
            len(prompts), min(max(lengths) + max_new_tokens, limit), dtype=kv_dtype, kind=kind
        )
        self._steps = Steps(model, self._cache, self._chooser, max(self._rooms))
        self._ahead: Made | None = None  # a step that was begun before the tokens of the last one were known
        #: the ids that each row has got
        self.ids: list[list[int]] = [[] for _ in prompts]
        #: the rows that go on
        self.rows: list[int] = [row for row, room in enumerate(self._rooms) if room > 0]

    def step(self) -> dict[int, Token]:
        """The next token of each row that goes on, by row; nothing once all have ended.

        Raises:
            ValueError: if the rules of sampling leave no token, or the logits have NaN.
        """
        rows = list(self.rows)
        if not rows:
            return {}
        ids, logprobs = self._next(rows)
        if min(ids) < 0:
            row = rows[ids.index(min(ids))]
            raise ValueError(f"row {row}: no token can be chosen: the rules leave none, or the logits have NaN")
        found: dict[int, Token] = {}
        for row, one, logprob in zip(rows, ids, logprobs, strict=True):
            self.ids[row].append(one)
            self._left[row] = [one]
            last = one in self._stops or len(self.ids[row]) == self._rooms[row]
            found[row] = Token(one, logprob, last=last)
            if last:
                self.end(row)
        return found

    def end(self, row: int) -> None:
        """No more tokens for *row*."""
        if row in self.rows:
            self.rows.remove(row)

    def _next(self, rows: list[int]) -> tuple[list[int], list[float]]:
        """The next token of each of *rows*, -1 where none can be chosen, and the logarithms of their probabilities."""
        made, self._ahead = self._ahead, None
        if made is None and all(len(self._left[row]) == 1 for row in rows):
            made = self._steps.advance(rows, [self._left[row][0] for row in rows])
        if made is not None and made.inside:
            # The next step is begun before the tokens are read, so that the device does not wait for the host. A row
            # that turns out to have ended is in it for nothing.
            if made.rows == rows and all(len(self.ids[row]) + 2 <= self._rooms[row] for row in rows):
                self._ahead = self._steps.advance(rows)
            found = dict(zip(made.rows, zip(*made.read(), strict=True), strict=True))
            return [found[row][0] for row in rows], [found[row][1] for row in rows]
        logits = self._model.logits(self._read(rows)) if made is None else made.logits()
        chosen = self._chooser.choose(logits, None if len(rows) == len(self.ids) else rows)
        places = fa.arange(len(rows), device=logits.device)
        return chosen.tolist(), token_logprobs(logits)[places, chosen].tolist()

    def _read(self, rows: Sequence[int]) -> Tensor:
        """Read what *rows* have left: the vectors [rows, hidden] of their last tokens."""
        model, chunk = self._model, self._cache.room.chunk
        left = {row: self._left[row] for row in rows}
        whole = [held + len(left.get(row, ())) for row, held in enumerate(self._cache.lengths)]
        last: dict[int, Tensor] = {}
        while len(last) < len(rows):
            budget, tokens, taken = max(_PASS, len(rows)), [0] * len(self.ids), []
            for row in rows:
                tokens[row] = min(chunk, budget, len(left[row]))
                budget -= tokens[row]
                taken += left[row][: tokens[row]]
            x = model.forward(fa.asarray(taken, dtype=fa.int64, device=model.device), tokens, self._cache, whole)
            if len(taken) == len(rows) and not last:  # one token each, as in every step but the first
                return x
            end = 0
            for row in rows:
                end += tokens[row]
                left[row] = left[row][tokens[row] :]
                if tokens[row] and not left[row]:
                    last[row] = x[end - 1 : end]
        return fa.concat([last[row] for row in rows])


def generate_batch(
    model: CausalLM,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    *,
    max_tokens: int = 256,
    sampling: Sampling | None = None,
    seeds: Sequence[int] | None = None,
    stop: Sequence[str] = (),
    stop_ids: Collection[int] | None = None,
    batch_size: int = 8,
    kv_dtype: Dtype | str | None = None,
    progress: Progress = None,
) -> list[str]:
    """The text that follows each of *prompts*: what :func:`generate` gives for each alone, in less time for all.

    Args:
        model: the language model.
        tokenizer: its tokenizer.
        prompts: texts, ids, or messages for the chat template.
        max_tokens: the most tokens that each gets.
        sampling: how tokens are chosen; the likeliest if absent.
        seeds: one for each prompt; that of *sampling* for all if absent, and then equal prompts get equal texts.
        stop: texts that end an answer, and are not part of it.
        stop_ids: ids that end it; those of config and tokenizer if absent.
        batch_size: how many are computed together.
        kv_dtype: see ``generate_ids``.
        progress: of the texts; see ``Progress``.

    Raises:
        TypeError: for a prompt that is none of these. ValueError: as :class:`Batch`, and for a *batch_size* below 1.

    Examples:
        >>> from ferrum_models import generate_batch, load
        >>> model, tokenizer = load("models/stdlib-moe")
        >>> prompts = [[{"role": "user", "content": text}] for text in ("Hello", "What is the json module for?")]
        >>> generate_batch(model, tokenizer, prompts, max_tokens=4)
        ['Hello! As', 'JSON (J']
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size must be an integer of at least 1, got {batch_size!r}")
    if seeds is not None and len(seeds) != len(prompts):
        raise ValueError(f"seeds must be one for each of {len(prompts)} prompts, got {len(seeds)}")
    ids = [prompt_ids(tokenizer, prompt) for prompt in prompts]
    stops = frozenset((*model.config.eos_token_ids, *tokenizer.eos_ids) if stop_ids is None else stop_ids)
    texts: list[str] = []
    with progressing(progress, len(ids), "text") as advance:
        for start in range(0, len(ids), batch_size):
            part = slice(start, start + batch_size)
            batch = Batch(
                model,
                ids[part],
                max_new_tokens=max_tokens,
                sampling=sampling,
                seeds=None if seeds is None else seeds[part],
                stop_ids=stops,
                kv_dtype=kv_dtype,
            )
            texts += _texts(batch, [TextRow(tokenizer, stop, stops) for _ in ids[part]])
            advance(len(ids[part]))
    return texts


def _texts(batch: Batch, rows: Sequence[TextRow]) -> list[str]:
    found = [""] * len(rows)
    while batch.rows:
        for row, token in batch.step().items():
            text, reason = rows[row].add(token)
            found[row] += text
            if reason is not None:
                batch.end(row)
    return found
