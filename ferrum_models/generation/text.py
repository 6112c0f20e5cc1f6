"""Text from a model: whole, or piece by piece as it comes."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Literal

from ferrum_array import Dtype
from ferrum_models.cache import ModelCache
from ferrum_models.causal import CausalLM
from ferrum_models.chat import Message
from ferrum_models.generation.prompt_cache import PromptCache
from ferrum_models.generation.sampling import Sampling
from ferrum_models.generation.tokens import Draft, Token, generate_tokens
from ferrum_models.progress import Progress, progressing
from ferrum_models.tokenizing import Tokenizer

__all__ = ["Generated", "Prompt", "StopText", "generate", "prompt_ids", "stream_generate"]

FinishReason = Literal["stop", "length"]
#: a text, its ids, or the messages of a conversation
Prompt = str | Sequence[int] | Sequence[Message]


@dataclass(frozen=True)
class Generated:
    """A piece of generated text, and how the work goes.

    Attributes:
        text: the text that the token completes; empty where a character or a stop text is not whole yet.
        token: the token.
        logprob: the logarithm of its probability under the model.
        drafted: whether a draft model proposed it.
        prompt_tokens: how many tokens the prompt has.
        prompt_tps: tokens of the prompt read per second.
        generation_tokens: how many were generated so far.
        generation_tps: how many a second, from the first on.
        peak_memory: the most memory of the host that the process had, in bytes; a GPU's own is not in it.
        finish_reason: None while it goes on; ``stop`` at a token or text that ends it, ``length`` at the limit.
        known_tokens: how many tokens of the prompt a prompt cache remembered; they are not in *prompt_tps*.
    """

    text: str
    token: int
    logprob: float
    drafted: bool
    prompt_tokens: int
    prompt_tps: float
    generation_tokens: int
    generation_tps: float
    peak_memory: int
    finish_reason: FinishReason | None = None
    known_tokens: int = 0


class StopText:
    """Passes text on until one of some texts comes up; what may be the beginning of one is held back.

    Examples:
        >>> from ferrum_models.generation.text import StopText
        >>> stop = StopText(["END"])
        >>> stop.add("the E"), stop.add("nd. EN"), stop.add("D and more"), stop.stopped
        ('the ', 'End. ', '', True)
    """

    def __init__(self, texts: Sequence[str]) -> None:
        if isinstance(texts, str) or any(not isinstance(one, str) or not one for one in texts):
            raise ValueError(f"stop must be a list of texts that are not empty, got {texts!r}")
        self._texts = tuple(texts)
        self._held = ""
        self.stopped = False

    def add(self, text: str) -> str:
        """What can be passed on now."""
        self._held += text
        places = [place for one in self._texts if (place := self._held.find(one)) >= 0]
        if places:
            self.stopped = True
            passed, self._held = self._held[: min(places)], ""
            return passed
        keep = max((n for one in self._texts for n in range(1, len(one)) if self._held.endswith(one[:n])), default=0)
        passed, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return passed

    def flush(self) -> str:
        """What was held back, which was no stop text."""
        passed, self._held = self._held, ""
        return passed


def prompt_ids(tokenizer: Tokenizer, prompt: Prompt) -> list[int]:
    """The ids of a prompt: of a text with the special tokens around it, of messages by the chat template.

    Raises:
        TypeError: for anything else. ValueError: for messages without a chat template.
    """
    if isinstance(prompt, str):
        return tokenizer.encode(prompt)
    if not isinstance(prompt, Sequence) or isinstance(prompt, bytes) or any(isinstance(one, bool) for one in prompt):
        raise TypeError(f"prompt must be a text, ids or messages, got {prompt!r:.100}")
    if all(isinstance(one, int) for one in prompt):
        return [int(one) for one in prompt if isinstance(one, int)]
    messages: Any = prompt
    return tokenizer.apply_chat_template(messages)


def stream_generate(
    model: CausalLM,
    tokenizer: Tokenizer,
    prompt: Prompt,
    *,
    max_tokens: int = 256,
    sampling: Sampling | None = None,
    stop: Sequence[str] = (),
    stop_ids: Collection[int] | None = None,
    cache: ModelCache | None = None,
    kv_dtype: Dtype | str | None = None,
    prompt_cache: PromptCache | None = None,
    draft: Draft | None = None,
) -> Iterator[Generated]:
    """Generate text piece by piece: the texts of the pieces, joined, are what :func:`generate` gives.

    Args:
        model: the language model.
        tokenizer: its tokenizer.
        prompt: a text, its ids, or messages for the chat template.
        max_tokens: the most tokens that are generated.
        sampling: how tokens are chosen; the likeliest if absent.
        stop: texts that end the answer, and are not part of it.
        stop_ids: ids that end it; those of config and tokenizer if absent.
        cache: see ``generate_ids``.
        kv_dtype: see ``generate_ids``.
        prompt_cache: see ``generate_ids``.
        draft: see ``generate_ids``.

    Raises:
        TypeError: for a prompt that is none of these. ValueError: as ``generate_ids``; before anything is computed.

    Examples:
        >>> from ferrum_models import load, stream_generate
        >>> model, tokenizer = load("models/stdlib-moe")
        >>> question = [{"role": "user", "content": "What does textwrap.dedent do?"}]
        >>> for piece in stream_generate(model, tokenizer, question, max_tokens=6):
        ...     print(piece.text, end="|")
        Remove| any| common| leading| whitespace| from|
    """
    ids = prompt_ids(tokenizer, prompt)
    stops = frozenset((*model.config.eos_token_ids, *tokenizer.eos_ids) if stop_ids is None else stop_ids)
    known = 0 if prompt_cache is None else prompt_cache.shared(ids)
    tokens = generate_tokens(
        model,
        ids,
        max_new_tokens=max_tokens,
        sampling=sampling,
        stop_ids=stops,
        cache=cache,
        kv_dtype=kv_dtype,
        prompt_cache=prompt_cache,
        draft=draft,
    )
    return _pieces(tokens, len(ids), known, TextRow(tokenizer, stop, stops))


class TextRow:
    """The text of one sequence as its tokens come.

    Args:
        tokenizer: it.
        stop: texts that end the text.
        stops: ids that end it.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str], stops: Collection[int]) -> None:
        self._stream = tokenizer.detokenizer()
        self._stop = StopText(stop)
        self._stops = stops

    def add(self, token: Token) -> tuple[str, FinishReason | None]:
        """The text that *token* completes, and why none follows, if none does."""
        ended, stop = token.id in self._stops, self._stop
        text = stop.add("" if ended else self._stream.add(token.id))
        if token.last and not stop.stopped:
            text += stop.add(self._stream.flush())
            text += "" if stop.stopped else stop.flush()
        return text, "stop" if ended or stop.stopped else "length" if token.last else None


def _pieces(tokens: Iterator[Token], prompt: int, known: int, row: TextRow) -> Iterator[Generated]:
    start = first = perf_counter()
    for count, one in enumerate(tokens, 1):
        now = perf_counter()
        if count == 1:
            first = now
        text, reason = row.add(one)
        yield Generated(
            text,
            one.id,
            one.logprob,
            one.drafted,
            prompt,
            (prompt - known) / max(first - start, 1e-9),
            count,
            (count - 1) / max(now - first, 1e-9) if count > 1 else 0.0,
            peak_memory(),
            reason,
            known,
        )
        if reason is not None:
            return


def peak_memory() -> int:
    """The most memory of the host that the process had so far, in bytes; 0 where the system does not say."""
    if sys.platform == "win32":
        return 0  # not told there by the standard library
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def generate(
    model: CausalLM,
    tokenizer: Tokenizer,
    prompt: Prompt,
    *,
    max_tokens: int = 256,
    sampling: Sampling | None = None,
    stop: Sequence[str] = (),
    stop_ids: Collection[int] | None = None,
    cache: ModelCache | None = None,
    kv_dtype: Dtype | str | None = None,
    prompt_cache: PromptCache | None = None,
    draft: Draft | None = None,
    progress: Progress = None,
) -> str:
    """The text that follows *prompt*; for the arguments see :func:`stream_generate`, for *progress* ``Progress``.

    Raises:
        TypeError, ValueError: as :func:`stream_generate`.

    Examples:
        >>> from ferrum_models import generate, load
        >>> model, tokenizer = load("models/stdlib-moe")
        >>> generate(model, tokenizer, [{"role": "user", "content": "Hello"}], max_tokens=4)
        'Hello! As'
    """
    pieces = stream_generate(
        model,
        tokenizer,
        prompt,
        max_tokens=max_tokens,
        sampling=sampling,
        stop=stop,
        stop_ids=stop_ids,
        cache=cache,
        kv_dtype=kv_dtype,
        prompt_cache=prompt_cache,
        draft=draft,
    )
    found: list[str] = []
    with progressing(progress, max_tokens, "token") as advance:
        for piece in pieces:
            found.append(piece.text)
            advance(1)
    return "".join(found)
