"""Token after token from a model."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from operator import index
from typing import NamedTuple

import ferrum_array as fa
from ferrum_array import Dtype, Tensor
from ferrum_models.cache import ModelCache
from ferrum_models.causal import CausalLM
from ferrum_models.generation.captured import Made, Steps
from ferrum_models.generation.prompt_cache import PromptCache
from ferrum_models.generation.sampling import Chooser, Sampling, token_logprobs
from ferrum_models.layers import RecurrentState
from ferrum_ops import sample, spec_verify

__all__ = ["Draft", "Token", "checked_prompt", "generate_ids", "generate_tokens", "prefill", "token_logprobs"]


class Token(NamedTuple):
    """A token as it is generated.

    Attributes:
        id: the token.
        logprob: the logarithm of its probability under the model, before the rules of sampling.
        drafted: whether a draft model proposed it.
        last: whether none follows it: it ends the text, or there is no room for more.
    """

    id: int
    logprob: float
    drafted: bool = False
    last: bool = False


class Draft(NamedTuple):
    """A cheaper model of the same vocabulary that proposes tokens, so many at a time.

    The text keeps the distribution of the model that it drafts for; greedy text stays the same.

    Source: Leviathan, Kalman and Matias, "Fast inference from transformers via speculative decoding", 2023.

    Examples:
        >>> from ferrum_models import Draft, generate_ids, random_model
        >>> tiny = {"model_type": "llama", "vocab_size": 9, "hidden_size": 8, "intermediate_size": 8}
        >>> model, small = (random_model({**tiny, "num_hidden_layers": n, "num_attention_heads": 2}) for n in (3, 1))
        >>> drafted = list(generate_ids(model, [1, 2, 3], max_new_tokens=5, draft=Draft(small, tokens=2)))
        >>> drafted == list(generate_ids(model, [1, 2, 3], max_new_tokens=5))
        True
    """

    model: CausalLM
    tokens: int = 4


def generate_ids(
    model: CausalLM,
    ids: Sequence[int],
    *,
    max_new_tokens: int,
    sampling: Sampling | None = None,
    stop_ids: Collection[int] | None = None,
    cache: ModelCache | None = None,
    kv_dtype: Dtype | str | None = None,
    prompt_cache: PromptCache | None = None,
    draft: Draft | None = None,
) -> Iterator[int]:
    """The ids that follow the prompt *ids*, one at a time; the one that ends the text is given too.

    Args:
        model: the language model.
        ids: the prompt; with a cache, what follows the tokens that it holds.
        max_new_tokens: the most that are generated.
        sampling: how tokens are chosen; the likeliest if absent.
        stop_ids: ids that end the text; those of the model's config if absent, none if empty.
        cache: of one sequence, with room for the prompt and the new tokens; it holds them afterwards, but for the last.
        kv_dtype: of the keys and values that are kept, where there is no cache; that of the model, ``int8``
            or ``fp8_e4m3``.
        prompt_cache: what is remembered of an earlier prompt; what *ids* share with it is not computed again.
        draft: a model that proposes tokens; the text keeps the distribution of *model*.

    Raises:
        ValueError: for an empty prompt, ids outside the vocabulary, and more tokens than the model's positions or the
        cache have room for, all before anything is computed.

    Examples:
        >>> from ferrum_models import generate_ids, random_model
        >>> tiny = {"model_type": "llama", "vocab_size": 9, "hidden_size": 8, "intermediate_size": 8}
        >>> model = random_model({**tiny, "num_hidden_layers": 1, "num_attention_heads": 2})
        >>> len(list(generate_ids(model, [1, 2, 3], max_new_tokens=5)))
        5
    """
    tokens = generate_tokens(
        model,
        ids,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        stop_ids=stop_ids,
        cache=cache,
        kv_dtype=kv_dtype,
        prompt_cache=prompt_cache,
        draft=draft,
    )
    return (one.id for one in tokens)


def generate_tokens(
    model: CausalLM,
    ids: Sequence[int],
    *,
    max_new_tokens: int,
    sampling: Sampling | None = None,
    stop_ids: Collection[int] | None = None,
    cache: ModelCache | None = None,
    kv_dtype: Dtype | str | None = None,
    prompt_cache: PromptCache | None = None,
    draft: Draft | None = None,
) -> Iterator[Token]:
    """As :func:`generate_ids`, with the probability of each token.

    Raises:
        ValueError: as :func:`generate_ids`.
    """
    prompt = checked_prompt(model, ids)
    if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int) or max_new_tokens < 0:
        raise ValueError(f"max_new_tokens must be an integer of at least 0, got {max_new_tokens!r}")
    rules = Sampling() if sampling is None else sampling
    if (cache is not None) + (kv_dtype is not None) + (prompt_cache is not None) > 1:
        raise ValueError("cache, kv_dtype and prompt_cache exclude each other: each says what keys and values go to")
    if prompt_cache is not None and prompt_cache.model is not model:
        raise ValueError("the prompt cache belongs to another model; make one for this model")
    held = 0 if cache is None else cache.lengths[0]
    total, limit = held + len(prompt) + max_new_tokens, model.config.max_position_embeddings
    if held + len(prompt) > limit:
        raise ValueError(
            f"the prompt has {held + len(prompt)} tokens, but the model's positions end at {limit}; shorten it"
        )
    if draft is not None:
        _check_draft(model, rules, draft, held)
    rest, extra = prompt, 0 if draft is None else draft.tokens
    if prompt_cache is not None:
        rest, cache = prompt_cache.begin(prompt, max_new_tokens + extra)
        held = cache.lengths[0]
    elif cache is None:
        cache = model.make_cache(1, min(total + extra, limit), dtype=kv_dtype)
    elif cache.room.sequences != 1:
        raise ValueError(f"one text needs a cache of one sequence, got {cache!r}")
    elif held + len(prompt) > cache.room.capacity:
        raise ValueError(f"the prompt reaches {held + len(prompt)} tokens, but this is {cache!r}; make it larger")
    chooser = Chooser(rules, [prompt], model.config.vocab_size, model.device)
    stops = frozenset(model.config.eos_token_ids if stop_ids is None else stop_ids)
    room = min(max_new_tokens, min(limit, cache.room.capacity) - held - len(rest) + 1)
    if draft is None:
        tokens = _plain(model, rest, chooser, stops, cache, room)
    else:
        helper = draft.model
        if prompt_cache is not None:
            known = prompt_cache.helper(helper).begin(prompt, max_new_tokens + extra)
        else:
            known = prompt, helper.make_cache(1, min(cache.room.capacity, helper.config.max_position_embeddings))
        tokens = _speculative(model, rest, chooser, rules, stops, cache, room, draft, *known)
    return tokens if prompt_cache is None else _noted(tokens, prompt_cache)


def _check_draft(model: CausalLM, rules: Sampling, draft: Draft, held: int) -> None:
    if isinstance(draft.tokens, bool) or not isinstance(draft.tokens, int) or draft.tokens < 1:
        raise ValueError(f"a draft must propose an integer of at least 1 tokens, got {draft.tokens!r}")
    if draft.model.device is not model.device:
        raise ValueError(
            f"the draft model lies on {draft.model.device}, the model on {model.device}; move one with to(device)"
        )
    if rules.penalised:
        raise ValueError("penalties and a draft model together are not implemented; leave one of them out")
    if draft.model.config.vocab_size != model.config.vocab_size:
        raise ValueError(
            f"the draft model has a vocabulary of {draft.model.config.vocab_size}, the model one of "
            f"{model.config.vocab_size}; they must share it"
        )
    if held:
        raise ValueError(
            "a draft model has read nothing of what the cache holds; begin with an empty cache, or use a prompt cache"
        )


def _noted(tokens: Iterator[Token], cache: PromptCache) -> Iterator[Token]:
    for one in tokens:
        cache.note(one.id)
        yield one


def checked_prompt(model: CausalLM, ids: Sequence[int]) -> list[int]:
    """The ids of a prompt.

    Raises:
        TypeError: if one is no integer. ValueError: if there is none, or one is not in the vocabulary.
    """
    if isinstance(ids, str) or any(isinstance(one, bool) or not hasattr(one, "__index__") for one in ids):
        raise TypeError(f"a prompt is a list of integer ids here, got {ids!r:.80}; a tokenizer makes them of text")
    prompt = [index(one) for one in ids]
    if not prompt:
        raise ValueError("the prompt is empty; give at least one token, such as the one that begins a text")
    vocabulary = model.config.vocab_size
    wrong = next((one for one in prompt if not 0 <= one < vocabulary), None)
    if wrong is not None:
        raise ValueError(f"the prompt has the id {wrong}, but the vocabulary has {vocabulary}, counted from 0")
    return prompt


def prefill(model: CausalLM, prompt: Sequence[int], cache: ModelCache, more: int = 0) -> Tensor:
    """Read *prompt*, of which so many *more* tokens follow, into *cache*, in pieces that it has room for.

    The result are the logits [1, V] after its last token.
    """
    chunk, whole = cache.room.chunk, [cache.lengths[0] + len(prompt) + more]
    x = None
    for start in range(0, len(prompt), chunk):
        piece = fa.asarray(list(prompt[start : start + chunk]), dtype=fa.int64, device=model.device)
        x = model.forward(piece, [piece.shape[0]], cache, whole)
    assert x is not None, "prompts are not empty"
    return model.logits(x[-1:])


def _plain(
    model: CausalLM, prompt: list[int], chooser: Chooser, stops: frozenset[int], cache: ModelCache, room: int
) -> Iterator[Token]:
    if room < 1:
        return
    steps = Steps(model, cache, chooser, room)
    chosen, logprob = _choose(chooser, prefill(model, prompt, cache))
    made: Made | None = None
    for number in range(1, room + 1):
        last = chosen in stops or number == room
        yield Token(chosen, logprob, last=last)
        if last:
            return
        made = steps.advance([0], [chosen]) if made is None else made
        if made is None:
            fed = fa.asarray([chosen], dtype=fa.int64, device=model.device)
            chosen, logprob = _choose(chooser, model.logits(model.forward(fed, [1], cache)))
        elif made.inside:
            # the next step is begun before the token is read, so that the device does not wait for the host
            done, made = made, steps.advance([0]) if number + 1 < room else None
            (found,), (logprob,) = done.read()
            chosen = _known(found)
        else:
            chosen, logprob = _choose(chooser, made.logits())
            made = None


def _choose(chooser: Chooser, logits: Tensor) -> tuple[int, float]:
    """The token that is chosen after logits [1, V], and the logarithm of its probability."""
    chosen = _read(chooser.choose(logits))
    return chosen, float(token_logprobs(logits)[0, chosen])


def _read(ids: Tensor, place: int = 0) -> int:
    return _known(int(ids[place]))


def _known(chosen: int) -> int:
    if chosen < 0:
        raise ValueError("no token can be chosen: the rules leave none, or the logits have NaN")
    return chosen


def _speculative(
    model: CausalLM,
    prompt: list[int],
    chooser: Chooser,
    rules: Sampling,
    stops: frozenset[int],
    cache: ModelCache,
    room: int,
    draft: Draft,
    helper_prompt: list[int],
    helper: ModelCache,
) -> Iterator[Token]:
    """Drafts of the cheaper model, verified by the model: all tokens are the model's own.

    *prompt* and *helper_prompt* are what the two have not read yet; they end alike.
    """
    device = model.device
    if room < 1:
        return
    if len(prompt) > 1:
        prefill(model, prompt[:-1], cache, 1)
    if len(helper_prompt) > 1:
        prefill(draft.model, helper_prompt[:-1], helper, 1)
    pending = [prompt[-1]]  # what the model has not read yet: one token; the helper may lack one more
    behind = [prompt[-1]]
    given = 0
    while given < room:
        left = min(room - given, cache.room.capacity - cache.lengths[0], helper.room.capacity - helper.lengths[0])
        count = max(0, min(draft.tokens, left - len(behind)))
        drafts, shares, marks = _drafts(draft.model, behind, helper, chooser, rules, count)
        states = cache.states
        fed = fa.asarray([*pending, *drafts], dtype=fa.int64, device=device)
        logits = model.logits(model.forward(fed, [fed.shape[0]], cache, [0]))  # each as if it were the last
        verified = spec_verify(
            _shares(chooser, rules, logits),
            shares,
            fa.asarray(drafts, dtype=fa.int64, device=device),
            chooser.uniforms(count + 1),
        )
        accepted, ids = int(verified.accepted), verified.ids.tolist()
        logprobs = token_logprobs(logits)
        base = cache.lengths[0] - count
        if states and accepted < count:  # recurrent layers go back to before all drafts, and read those that hold again
            cache.truncate([base - 1], states)
            model.forward(fed[: 1 + accepted], [1 + accepted], cache, [0])
        else:
            cache.truncate([base + accepted])
        if count:  # the last draft was never read
            read = min(accepted, count - 1)
            helper.truncate([helper.lengths[0] - (count - 1) + read], marks[read])
        for place in range(accepted + 1):
            chosen = _read(verified.ids, place)
            given += 1
            last = chosen in stops or given == room
            yield Token(chosen, float(logprobs[place, chosen]), place < accepted, last)
            if last:
                return
        pending = [ids[accepted]]
        behind = [*drafts[-1:], *pending] if count and accepted == count else pending


def _drafts(
    helper: CausalLM, behind: list[int], cache: ModelCache, chooser: Chooser, rules: Sampling, count: int
) -> tuple[list[int], Tensor | None, list[dict[int, RecurrentState]]]:
    """Proposed tokens, the distributions [count, V] that they were drawn from (None where there was no chance), and
    the states of recurrent layers before each.
    """
    if not count:
        return [], None, []
    device = helper.device
    found: list[int] = []
    shares: list[Tensor] = []
    marks: list[dict[int, RecurrentState]] = []
    fed = behind
    for _ in range(count):
        piece = fa.asarray(fed, dtype=fa.int64, device=device)
        logits = helper.logits(helper.forward(piece, [len(fed)], cache)[-1:])
        p = _shares(chooser, rules, logits)
        ids = sample(logits) if rules.greedy else sample(chooser.processed(logits), chooser.uniforms(1))
        shares.append(p)
        found.append(int(ids[0]))
        marks.append(cache.states)
        fed = found[-1:]
    return found, None if rules.greedy else fa.concat(shares), marks


def _shares(chooser: Chooser, rules: Sampling, logits: Tensor) -> Tensor:
    """The probabilities [n, V] of tokens under the rules."""
    processed = chooser.processed(logits)
    if rules.greedy:  # all of it is the likeliest token's
        best = sample(processed)
        numbers = fa.arange(logits.shape[-1], device=logits.device)
        return (numbers == fa.expand_dims(best, axis=-1)).astype(logits.dtype)
    return fa.exp(token_logprobs(processed))
