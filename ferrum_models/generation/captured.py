"""Decode steps that are captured: one new token for each sequence, replayed as a whole where the storage can.

What changes from step to step goes to the device in one small tensor: places, lengths, slots and random numbers. The
captured work reads them there, so that the host does nothing in a step but launch it, and read the tokens.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final
from weakref import WeakKeyDictionary

import ferrum_array as fa
from ferrum_array import Captured, CaptureError, Device, Tensor
from ferrum_models.cache import ModelCache
from ferrum_models.causal import CausalLM
from ferrum_models.generation.sampling import Chooser
from ferrum_models.layers import RecurrentState, Room, Step
from ferrum_ops import KVCache, SequenceMeta, embedding
from ferrum_ops.placing import place

__all__ = ["Made", "Steps", "step_obstacle", "use_captured_steps"]

#: a step is captured where so many follow, by the kind of device: before, it runs twice for real, or is written down
_WORTH: Final = {"cuda": 8, "cpu": 16}
#: whole numbers of this many parts stand for the random numbers, which are multiples of it
_PARTS: Final = float(1 << 24)
#: rows of numbers that are sent for a step
_SENT: Final = 5

_default = False if os.environ.get("FERRUM_CAPTURED_STEPS", "1") == "0" else None
_wanted: ContextVar[bool | None] = ContextVar("ferrum_captured_steps", default=_default)
#: why the steps of a model could not be captured, or the choice of tokens in them
_refused: WeakKeyDictionary[CausalLM, dict[str, str]] = WeakKeyDictionary()


@contextmanager
def use_captured_steps(use: bool | None) -> Iterator[None]:
    """Inside the ``with`` block, in this thread or task, text that is begun uses captured decode steps or not.

    Args:
        use: None, which is how it is without this: where they can be. True: where they cannot, that is an error. False:
            nowhere, as with the environment variable ``FERRUM_CAPTURED_STEPS=0``.

    Examples:
        >>> from ferrum_models import generate_ids, random_model, use_captured_steps
        >>> tiny = {"model_type": "llama", "vocab_size": 9, "hidden_size": 8, "intermediate_size": 8}
        >>> model = random_model({**tiny, "num_hidden_layers": 1, "num_attention_heads": 2})
        >>> with use_captured_steps(False):
        ...     plain = list(generate_ids(model, [1, 2, 3], max_new_tokens=9))
        >>> plain == list(generate_ids(model, [1, 2, 3], max_new_tokens=9))
        True
    """
    token = _wanted.set(use)
    try:
        yield
    finally:
        _wanted.reset(token)


def step_obstacle(model: CausalLM, cache: ModelCache | None = None) -> str | None:
    """Why decode steps of *model* with *cache* are not captured, or None if they are, as far as is known.

    What a model's layers do is known once it was tried: after a text of some tokens was generated. Without a *cache*
    one of the longest sequence that the model has positions for is meant.

    Examples:
        >>> from ferrum_models import random_model, step_obstacle
        >>> tiny = {"model_type": "llama", "vocab_size": 9, "hidden_size": 8, "intermediate_size": 8}
        >>> scaled = {**tiny, "max_position_embeddings": 9, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}
        >>> step_obstacle(random_model({**scaled, "num_hidden_layers": 1, "num_attention_heads": 2}))
        'the rotation of full_attention depends on the length of a sequence, which is known on the host alone'
    """
    if not model.device.captures:
        return f"{model.device} has no graphs to capture"
    for kind, rotary in model.config.rotary.items():
        if rotary.by_length:
            return f"the rotation of {kind} depends on the length of a sequence, which is known on the host alone"
    kept = _kinds(model) if cache is None else cache.layers
    for number, one in enumerate(kept):
        if isinstance(one, RecurrentState):
            return f"layer {number} is recurrent, and its state is made anew at each step"
        if one.spec.layout == "ring":
            return f"layer {number} keeps a ring, whose slots are planned on the host"
        if one.spec.codes and model.device.kind == "cpu":
            return f"layer {number} keeps {one.spec.codes}, which no kernel reads: its slots are planned on the host"
    return _refused.get(model, {}).get("step")


def _kinds(model: CausalLM) -> list[KVCache | RecurrentState]:
    room = Room(1, 1, Device("cpu"), fa.float32, "contiguous", 1, 1, 1)
    return [one.mixer.new_cache(room) for one in model.model.layers]


class Steps:
    """The decode steps of the sequences of a cache, captured by batch: 1, 2, 4, 8, ... sequences.

    Attributes:
        obstacle: why they are not captured, or None.
        inside: whether tokens are chosen in the captured step; otherwise it ends with the logits.
    """

    def __init__(self, model: CausalLM, cache: ModelCache, chooser: Chooser, tokens: int) -> None:
        """For about so many *tokens* of the longest sequence.

        Raises:
            CaptureError: where captured steps are demanded, but cannot be.
        """
        self._model, self._cache, self._chooser = model, cache, chooser
        self._device = model.device  # which a model looks for among its parameters
        use = _wanted.get()
        if use is False:
            self.obstacle: str | None = "captured steps are switched off"
        elif use is None and tokens < _WORTH.get(model.device.kind, 0):
            self.obstacle = f"fewer than {_WORTH[model.device.kind]} tokens are wanted, which is sooner done"
        else:
            self.obstacle = step_obstacle(model, cache)
        if use and self.obstacle:
            raise CaptureError(f"decode steps of this model cannot be captured: {self.obstacle}")
        self._must = use is True
        self._unread = 0  # steps that were begun, and whose results nobody has asked for
        self.inside = chooser.replayable and "choice" not in _refused.get(model, {})

    def advance(self, rows: Sequence[int], tokens: Sequence[int] | None = None) -> Made | None:
        """One token more of each of *rows*: the step is begun, and not waited for.

        Without *tokens* each row reads the token that was chosen in the step before, which must have been one of the
        same rows, before the host knows it. None where steps cannot be captured; nothing has happened then.

        Raises:
            ValueError: for a sequence that would be too long for the cache or the model, and no free block.
        """
        if self.obstacle is not None:
            return None
        step = self._step(len(rows))
        if step is None:
            return None
        cache, unread = self._cache, self._unread
        slots, changed = cache.grow(rows, unread)
        size = step.size
        blanks = [0] * (size - len(rows))
        places = [cache.lengths[row] + unread for row in rows]
        draws = self._chooser.numbers(rows) if self.inside and self._chooser.chance else [0.0] * len(rows)
        numbers = [
            *(*([-1] * len(rows) if tokens is None else tokens), *blanks),
            *(*places, *blanks),
            *(*(place + 1 for place in places), *blanks),
            *(*slots, *(cache.slots for _ in blanks)),
            *(*(int(u * _PARTS) for u in draws), *blanks),
        ]
        sent = fa.asarray(numbers, dtype=fa.int32, device=self._device).reshape(_SENT, size)
        results = step(sent, step.tables(cache, rows, changed))
        self._unread += 1
        return Made(results, list(rows), self.inside, self._done)

    def _done(self, rows: list[int]) -> None:
        """The tokens of a step count from now on."""
        self._unread -= 1
        self._cache.grown(rows)

    def _step(self, rows: int) -> _Recorded | None:
        """The captured step for so many sequences, or None where it turns out that it cannot be captured."""
        size = 1 << max(0, rows - 1).bit_length()
        key = (id(self._model), size, self._chooser.key if self.inside else None)
        found: _Recorded | None = self._cache.steps.get(key)
        if found is not None and not found.moved():
            return found
        known = _refused.setdefault(self._model, {})
        try:
            found = _Recorded(self._model, self._cache, size, self._chooser if self.inside else None)
        except CaptureError as error:
            if self.inside:  # the rules of choice may be what cannot be captured
                self.inside = False
                found = self._step(rows)
                if found is not None:
                    known["choice"] = str(error)
                return found
            known["step"] = self.obstacle = str(error)
            if self._must:
                raise
            return None
        self._cache.steps[key] = found
        return found


class Made:
    """What a step gives, once it is done. To ask for it makes the step count: the cache then holds its tokens.

    Attributes:
        rows: the sequences.
        inside: whether tokens were chosen in it.
    """

    def __init__(self, results: Tensor, rows: list[int], inside: bool, done: Callable[[list[int]], None]) -> None:
        self.rows, self.inside = rows, inside
        self._results, self._done = results, done
        self._reading = fa.Reading(results) if inside else None  # before the next step is begun

    def logits(self) -> Tensor:
        """[rows, V], until the next step is begun; where tokens are chosen outside."""
        self._done(self.rows)
        return self._results[: len(self.rows)]

    def read(self) -> tuple[list[int], list[float]]:
        """Wait for the tokens that were chosen, -1 where none can be, and the logarithms of their probabilities.

        Raises:
            ValueError: where tokens are chosen outside.
        """
        if self._reading is None:
            raise ValueError("this step ends with logits; choose a token by them")
        ids, logprobs = self._reading.tolist()
        self._done(self.rows)
        count = len(self.rows)
        return [int(one) for one in ids[:count]], logprobs[:count]


class _Recorded:
    """A captured step of so many sequences."""

    def __init__(self, model: CausalLM, cache: ModelCache, size: int, chooser: Chooser | None) -> None:
        self.size = size
        room, device = cache.room, model.device
        layers = tuple(kept for kept in cache.layers if isinstance(kept, KVCache))
        spec = layers[0].spec
        width = -(-room.capacity // spec.block_size)
        bound = min(room.capacity, model.config.max_position_embeddings)
        tables = {kind: rotary.table(bound, device) for kind, rotary in model.config.rotary.items()}
        starts = fa.arange(size + 1, dtype=fa.int32, device=device)

        def decode_step(numbers: Tensor, blocks: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
            given, places, keys, slots, draws = (numbers[row] for row in range(_SENT))
            ids = fa.where(given >= 0, given.astype(fa.int64), before)
            # bounds for the host; what counts lies on the device
            host = tuple(number % spec.blocks for number in range(width))
            meta = SequenceMeta(
                tuple(range(size + 1)),
                kv_lens=(bound,) * size,
                block_tables=(host,) * size,
                slots=tuple(range(size)),
            )
            place(spec, meta, starts=starts, keys=keys, tables=blocks, slots=slots.astype(fa.int64))
            turns = {
                kind: (embedding(cos, places, check=False), embedding(sin, places, check=False))
                for kind, (cos, sin) in tables.items()
            }
            logits = model.logits(model.model(ids, Step(meta, turns, layers, known=True)))
            if chooser is None:
                return logits, before
            u = draws.astype(fa.float32) * (1.0 / _PARTS) if chooser.chance else None
            chosen, logprobs = chooser.replayed(logits, u)
            return fa.stack([chosen.astype(logprobs.dtype), logprobs]), chosen

        self._blocks = fa.zeros((size, width), dtype=fa.int32, device=device)
        self._rows: list[int] = []
        nothing = [[0] * size] * 3 + [[cache.slots] * size] + [[0] * size]
        numbers = fa.asarray(nothing, dtype=fa.int32, device=device)
        state = [one for kept in layers for one in (kept.k, kept.v, kept.k_scale, kept.v_scale) if one is not None]
        self._last = fa.zeros((size,), dtype=fa.int64, device=device)
        examples = numbers, self._blocks, self._last
        self._run: Captured[tuple[Tensor, Tensor]] = fa.capture(decode_step, *examples, borrow=True, state=state)

    def __call__(self, numbers: Tensor, blocks: Tensor) -> Tensor:
        """The tokens that are chosen and the logarithms of their probabilities, [2, size], or the logits [size, V].

        They are overwritten by the next step. *numbers* are tokens or -1, places, numbers of keys, slots and draws.
        """
        results, self._last = self._run(numbers, blocks, self._last)
        return results

    def moved(self) -> bool:
        """Whether the cache no longer lies where it lay."""
        return self._run.moved

    def tables(self, cache: ModelCache, rows: Sequence[int], changed: bool) -> Tensor:
        """The blocks of *rows*, [size, width], copied to the device when they are others than before."""
        if changed or list(rows) != self._rows:
            size, width = self._blocks.shape
            lists = [[*own, *[0] * (width - len(own))] for own in cache.blocks_of(rows)]
            lists += [[0] * width] * (size - len(lists))
            self._blocks = fa.asarray(lists, dtype=fa.int32, device=self._blocks.device).reshape(size, width)
            self._rows = list(rows)
        return self._blocks
