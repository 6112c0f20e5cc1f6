"""Prompts that are read once: what a model remembers of a text, kept for the next one that begins alike."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import takewhile
from os import PathLike, fspath
from typing import Any

import ferrum_array as fa
from ferrum_array import Dtype, Tensor
from ferrum_models.cache import ModelCache, Pass
from ferrum_models.causal import CausalLM
from ferrum_models.layers import CacheKind, RecurrentState
from ferrum_ops import KVCache, QuantTensor, dequantize, rope_frequencies
from ferrum_ops.planning import block_slots

__all__ = ["PromptCache", "load_prompt_cache", "save_prompt_cache"]

_FORMAT = "ferrum prompt cache 2"
_DTYPES = ("int8", "fp8_e4m3", *(one.standard_name for one in Dtype.all() if one.is_floating))
_STEP = 256  # capacities are multiples of it
_SAMPLED = 16  # numbers of each weight that tell models apart


class PromptCache:
    """What a model remembers of the last prompt and its answer; the next prompt is read from where it differs.

    Give it to ``generate``, ``stream_generate`` or ``generate_ids`` with the whole prompt each time: of a conversation
    all messages, of questions about one document the document and the question. Memory grows as texts do. Where a
    layer cannot go back to where two prompts part (a recurrent one, or a ring that is too far), the prompt is read
    from its beginning; also where RoPE depends on the length of a prompt, and turns heads otherwise in the new one.

    Args:
        model: whose memory it is.
        limit: the most tokens that are remembered, which bounds prompt and answer together; all positions of the model
            if absent.
        dtype: of keys and values; that of the model if absent, or ``int8`` or ``fp8_e4m3``.
        kind: see ``CausalLM.make_cache``.
        chunk: see ``CausalLM.make_cache``.

    Raises:
        ValueError: for a *limit* below 1 or beyond the model's positions.

    Examples:
        >>> from ferrum_models import PromptCache, generate_ids, random_model
        >>> tiny = {"model_type": "llama", "vocab_size": 9, "hidden_size": 8, "intermediate_size": 8}
        >>> model = random_model({**tiny, "num_hidden_layers": 1, "num_attention_heads": 2})
        >>> kept = PromptCache(model)
        >>> answer = list(generate_ids(model, [1, 2, 3, 4], max_new_tokens=2, prompt_cache=kept))
        >>> kept.ids[:4], kept.shared([1, 2, 3, 7, 7])
        ([1, 2, 3, 4], 3)
    """

    def __init__(
        self,
        model: CausalLM,
        *,
        limit: int | None = None,
        dtype: Dtype | str | None = None,
        kind: CacheKind = "contiguous",
        chunk: int = 512,
    ) -> None:
        positions = model.config.max_position_embeddings
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= positions):
            raise ValueError(f"PromptCache: limit must be from 1 to the model's positions, {positions}, got {limit!r}")
        self.model = model
        self.limit = positions if limit is None else limit
        self.cache: ModelCache | None = None
        self._options: dict[str, Any] = {"dtype": dtype, "kind": kind, "chunk": chunk}
        self._ids: list[int] = []
        self._prompt = 0  # as how long a prompt what is remembered was read
        self._helpers: dict[int, PromptCache] = {}

    @property
    def ids(self) -> list[int]:
        """The tokens that are remembered."""
        if self.cache is None:
            return []
        known = self._ids[: self.cache.lengths[0]]  # drafts of an answer that was broken off may lie beyond them
        return known if self.cache.obstacle([len(known)]) is None else []

    def shared(self, prompt: Sequence[int]) -> int:
        """How many tokens at the beginning of *prompt* need not be read again; one is always left."""
        if self.cache is None:
            return 0
        pairs = zip(self.ids, prompt[:-1], strict=False)
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        return same if self.cache.obstacle([same]) is None and self._turns_alike(len(prompt)) else 0

    def _turns_alike(self, length: int) -> bool:
        """Whether RoPE turned what is remembered as it turns a prompt of this *length*.

        A prompt turns as its length says, and each token of an answer as in a text that it ends. What a new prompt
        shares of an answer is longer than the old prompt and shorter than the new one; longer texts never go back to
        the angles of shorter ones, so it turned as these two if they turn alike.
        """
        return all(
            rope_frequencies(one.dim, one.theta, one.scaling, length=length)
            == rope_frequencies(one.dim, one.theta, one.scaling, length=self._prompt)
            for one in self.model.config.rotary.values()
            if one.by_length
        )

    def begin(self, prompt: Sequence[int], more: int) -> tuple[list[int], ModelCache]:
        """Go back to what *prompt* shares: the tokens left to read, and a cache for them and *more* new ones.

        Raises:
            ValueError: if *prompt* is longer than the limit.
        """
        if len(prompt) > self.limit:
            raise ValueError(f"the prompt has {len(prompt)} tokens, but the prompt cache is limited to {self.limit}")
        same = self.shared(prompt)
        wanted, old = min(self.limit, len(prompt) + more), self.cache
        if old is None or same == 0:
            self.cache = self._make(wanted if old is None else max(wanted, old.room.capacity))
        else:
            old.truncate([same])
            if old.room.capacity < wanted:
                self.cache = self._make(max(wanted, 2 * old.room.capacity))
                _fill(self.cache, dict(_content(old)), same, old.reached[0])
        self._ids, self._prompt = list(prompt), len(prompt)
        assert self.cache is not None, "there was one, or it was made"
        return self._ids[same:], self.cache

    def hold(self, ids: Sequence[int], content: dict[str, Tensor], reached: int, prompt: int) -> None:
        """Take over what a model made of *ids*, read as a prompt of so many tokens and its answer.

        Raises:
            ValueError: for tensors that do not fit the model.
        """
        cache = self._make(reached)
        _fill(cache, content, len(ids), reached)
        self.cache, self._ids, self._prompt, self._helpers = cache, list(ids), prompt, {}

    def _make(self, capacity: int) -> ModelCache:
        return self.model.make_cache(1, min(self.limit, -(-capacity // _STEP) * _STEP), **self._options)

    def note(self, token: int) -> None:
        """*token* follows: it is remembered once the model has read it."""
        self._ids.append(token)
        for helper in self._helpers.values():
            helper.note(token)

    def helper(self, draft: CausalLM) -> PromptCache:
        """What the model that drafts remembers of the same text."""
        if id(draft) not in self._helpers:
            limit = min(self.limit, draft.config.max_position_embeddings)
            self._helpers = {id(draft): PromptCache(draft, limit=limit, kind=self._options["kind"])}
        return self._helpers[id(draft)]

    def clear(self) -> None:
        """Forget everything."""
        self.cache, self._ids, self._prompt, self._helpers = None, [], 0, {}

    def __repr__(self) -> str:
        return f"PromptCache({len(self.ids)} of {self.limit} tokens)"


def save_prompt_cache(path: str | PathLike[str], cache: PromptCache) -> None:
    """Write what *cache* remembers to the safetensors file *path*, in place of what was there.

    The file has the tokens and, for each layer, keys and values in the order of their positions, whatever the layout of
    the cache; and what tells the model apart: a digest of its config and of samples of its weights.

    Raises:
        ValueError: if it remembers nothing. OSError: if the file cannot be written.

    Examples:
        >>> import os, tempfile
        >>> from ferrum_models import PromptCache, generate_ids, load_prompt_cache, random_model, save_prompt_cache
        >>> tiny = {"model_type": "llama", "vocab_size": 9, "hidden_size": 8, "intermediate_size": 8}
        >>> model = random_model({**tiny, "num_hidden_layers": 1, "num_attention_heads": 2})
        >>> kept = PromptCache(model)
        >>> answer = list(generate_ids(model, [1, 2, 3, 4], max_new_tokens=2, prompt_cache=kept))
        >>> path = os.path.join(tempfile.mkdtemp(), "prompt.safetensors")
        >>> save_prompt_cache(path, kept)
        >>> load_prompt_cache(path, model).shared([1, 2, 3, 4, 5])
        4
    """
    ids = cache.ids
    if cache.cache is None or not ids:
        raise ValueError("the prompt cache remembers nothing yet; generate with it first")
    cache.cache.truncate([len(ids)])  # what a drafted answer that was broken off has left
    tensors = {"ids": fa.asarray(ids, dtype=fa.int64, device="cpu")}
    tensors.update({name: one.to_device("cpu") for name, one in _content(cache.cache)})
    room = cache.cache.room
    about = {
        "format": _FORMAT,
        "model": fingerprint(cache.model),
        "dtype": room.kept,
        "kind": room.kind,
        "chunk": str(room.chunk),
        "reached": str(cache.cache.reached[0]),
        "prompt": str(cache._prompt),
    }
    fa.io.save_safetensors(tensors, path, metadata=about)


def load_prompt_cache(path: str | PathLike[str], model: CausalLM, *, limit: int | None = None) -> PromptCache:
    """What :func:`save_prompt_cache` wrote to *path*, for the same *model* on any device.

    Args:
        path: the file.
        model: the model that it was made with.
        limit: the most tokens that are remembered from now on; see :class:`PromptCache`.

    Raises:
        FileNotFoundError: without the file. ValueError: for a damaged file, one that is no prompt cache, one that
        another model made, and more tokens than the *limit*.

    Examples:
        >>> from ferrum_models import load_prompt_cache, random_model
        >>> tiny = {"model_type": "llama", "vocab_size": 9, "hidden_size": 8, "intermediate_size": 8}
        >>> model = random_model({**tiny, "num_hidden_layers": 1, "num_attention_heads": 2})
        >>> load_prompt_cache("nowhere.safetensors", model)
        Traceback (most recent call last):
        ...
        FileNotFoundError: [Errno 2] No such file or directory: 'nowhere.safetensors'
    """
    name = fspath(path)
    with fa.io.open_safetensors(path) as file:
        about = file.metadata
        if about.get("format") != _FORMAT:
            raise ValueError(f"{name} is no prompt cache; save_prompt_cache writes them")
        if about.get("model") != fingerprint(model):
            raise ValueError(f"{name} was made with another model, or with this one in another dtype; make it anew")
        chunk, reached, prompt = (_number(name, about, key) for key in ("chunk", "reached", "prompt"))
        tensors = {key: file.load(key, device="cpu" if key == "ids" else model.device) for key in file}
    ids = tensors.pop("ids", fa.zeros(0)).tolist()
    if not (ids and all(isinstance(one, int) and 0 <= one < model.config.vocab_size for one in ids)):
        raise ValueError(f"{name} is damaged: its tokens do not fit the model")
    said, dtype = about.get("kind"), about.get("dtype")
    if said not in ("contiguous", "paged") or dtype not in _DTYPES or reached < len(ids):
        raise ValueError(f"{name} is damaged: it is said to be {said}, in {dtype}, and to have reached {reached}")
    kind: CacheKind = "paged" if said == "paged" else "contiguous"
    kept = PromptCache(model, limit=limit, dtype=dtype, kind=kind, chunk=chunk)
    if reached > kept.limit:
        raise ValueError(f"{name} has up to {reached} tokens, but the limit is {kept.limit}; make it larger")
    try:
        kept.hold(ids, tensors, reached, prompt)
    except ValueError as error:
        raise ValueError(f"{name} is damaged: {error}") from None
    return kept


def fingerprint(model: CausalLM) -> str:
    """A digest of the model's config, its tree and some numbers of each weight, the same on every device."""
    made = hashlib.sha256(f"{model.config!r}\n{model!r}".encode())
    for name, one in model.named_parameters():
        what = one.scheme.name if isinstance(one, QuantTensor) else one.dtype.standard_name
        made.update(f"{name} {what} {one.shape}\n".encode())
        if 0 in one.shape:
            continue
        if isinstance(one, QuantTensor):
            part = one[0, :1] if len(one.shape) == 3 else one[:1]
            row = dequantize(part, dtype="f32")[0]
        else:
            row = one[(0,) * (one.ndim - 1)].astype(fa.float32)
        # few digits: devices may round the last one differently
        made.update(" ".join(f"{number:.3e}" for number in row[:_SAMPLED].tolist()).encode())
    return made.hexdigest()


def _number(name: str, about: Any, key: str) -> int:
    text = about.get(key, "")
    if not (text.isascii() and text.isdigit() and len(text) < 12 and int(text) > 0):
        raise ValueError(f"{name} is damaged: {key} is {text!r}")
    return int(text)


def _memories(cache: ModelCache, made: Pass, length: int) -> Iterator[tuple[str, KVCache, Tensor]]:
    """Each layer's name and memory, and the rows in which the *length* tokens of the only sequence lie, in order."""
    for number, kept in enumerate(cache.layers):
        if not isinstance(kept, KVCache):
            continue
        spec = kept.spec
        table = made.blocks[0] if spec.layout == "paged" and made.blocks is not None else (0,)
        places = range(max(0, length - spec.block_size) if spec.layout == "ring" else 0, length)
        slots = block_slots(table, spec.block_size, places, ring=spec.layout == "ring")
        yield f"layers.{number}", kept, fa.asarray(slots, dtype=fa.int64, device=kept.device)


def _content(cache: ModelCache) -> Iterator[tuple[str, Tensor]]:
    """What the only sequence of *cache* has in it, by layer, in the order of positions; states as they are."""
    for name, kept, rows in _memories(cache, cache.plan([0]), cache.lengths[0]):
        for part in ("k", "v", "k_scale", "v_scale"):
            memory: Tensor | None = getattr(kept, part)
            if memory is not None:
                yield f"{name}.{part}", fa.take(memory, rows, axis=0)
    for number, state in enumerate(cache.layers):
        if isinstance(state, RecurrentState):
            yield f"layers.{number}.conv", state.conv
            yield f"layers.{number}.delta", state.delta


def _fill(cache: ModelCache, content: dict[str, Tensor], length: int, reached: int) -> None:
    """Put *content* of *length* tokens into the empty *cache*.

    Raises:
        ValueError: for tensors that are missing, too many, or of another shape or dtype.
    """
    made = cache.plan([length])
    writes: list[tuple[Tensor, Tensor, Tensor]] = []
    for name, kept, rows in _memories(cache, made, length):
        for part in ("k", "v", "k_scale", "v_scale"):
            memory: Tensor | None = getattr(kept, part)
            if memory is None:
                continue
            found = content.pop(f"{name}.{part}", None)
            wanted = (rows.shape[0], *memory.shape[1:])
            if found is not None and found.ndim and found.shape[0] > wanted[0]:
                found = found[found.shape[0] - wanted[0] :]  # a ring needs the last ones only
            writes.append((memory, rows, _fitting(f"{name}.{part}", found, memory.dtype, wanted)))
    states = {
        number: RecurrentState(
            *(
                _fitting(name, content.pop(name, None), old.dtype, old.shape)
                for name, old in ((f"layers.{number}.conv", kept.conv), (f"layers.{number}.delta", kept.delta))
            )
        )
        for number, kept in enumerate(cache.layers)
        if isinstance(kept, RecurrentState)
    }
    if content:
        raise ValueError(f"{', '.join(sorted(content))} do not belong to this model")
    for memory, rows, found in writes:
        memory[rows] = found
    cache.commit(made, states)
    cache.reached = [max(reached, length)]


def _fitting(name: str, found: Tensor | None, dtype: Dtype, shape: tuple[int, ...]) -> Tensor:
    if found is None or found.shape != shape or found.dtype is not dtype:
        given = "it is missing" if found is None else f"got {found.dtype} {found.shape}"
        raise ValueError(f"{name} must be {dtype} {shape}, {given}")
    return found
