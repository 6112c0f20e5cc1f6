"""What a model remembers of the sequences that it has read."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ferrum_models.layers import RecurrentState, Room
from ferrum_ops import KVCache, SequenceMeta

__all__ = ["ModelCache", "Pass"]


@dataclass(frozen=True)
class Pass:
    """The plan of one pass: tokens of each sequence, and the blocks that they have then."""

    meta: SequenceMeta
    blocks: tuple[tuple[int, ...], ...] | None


class ModelCache:
    """Keys, values and states of some sequences: made by ``CausalLM.make_cache``, filled by the passes.

    Attributes:
        room: what it has room for.
        layers: what each layer keeps: a ``KVCache`` of keys and values or of latents, or a ``RecurrentState``.
        lengths: how many tokens of each sequence it holds.
        reached: how many each has held at most: a ring has overwritten what lies too far before that.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_models import random_model
        >>> tiny = {"model_type": "llama", "vocab_size": 9, "hidden_size": 8, "intermediate_size": 8}
        >>> model = random_model({**tiny, "num_hidden_layers": 1, "num_attention_heads": 2})
        >>> cache = model.make_cache(1, 8)
        >>> _ = model(fa.asarray([[1, 2, 3]]), cache=cache)
        >>> cache
        ModelCache(3 of 8 tokens, contiguous, float32)
    """

    def __init__(self, room: Room, layers: Sequence[KVCache | RecurrentState]) -> None:
        self.room = room
        self.layers = tuple(layers)
        self.lengths = [0] * room.sequences
        self.reached = [0] * room.sequences
        #: decode steps that were captured for this memory
        self.steps: dict[Hashable, Any] = {}
        self._paged = room.kind == "paged"
        self._blocks: list[list[int]] = [[] for _ in range(room.sequences)]
        self._free = list(range(room.blocks - 1, -1, -1))

    def plan(self, tokens: Sequence[int]) -> Pass:
        """The pass that adds so many *tokens* to each sequence; blocks that it needs are set aside for it.

        Raises:
            ValueError: for another number of sequences, a sequence that would be too long, or no free block.
        """
        room = self.room
        if len(tokens) != room.sequences:
            raise ValueError(f"the cache holds {room.sequences} sequences, got tokens for {len(tokens)}")
        after = [n + m for n, m in zip(self.lengths, tokens, strict=True)]
        if max(after, default=0) > room.capacity:
            raise ValueError(
                f"a sequence would have {max(after)} tokens, but the cache has room for {room.capacity}; make it larger"
            )
        self.reached = list(map(max, self.reached, after))  # a pass that is broken off may have written them
        blocks: tuple[tuple[int, ...], ...] | None = None
        if self._paged:
            needed = [-(-n // room.block_size) - len(own) for n, own in zip(after, self._blocks, strict=True)]
            if sum(max(0, n) for n in needed) > len(self._free):
                raise ValueError(
                    f"{sum(needed)} more blocks of {room.block_size} tokens are needed, but {len(self._free)} of "
                    f"{room.blocks} are free; end a sequence, or make the cache larger"
                )
            for own, count in zip(self._blocks, needed, strict=True):
                own += [self._free.pop() for _ in range(count)]
            blocks = tuple(map(tuple, self._blocks))
        starts = SequenceMeta.packed(tokens).cu_seqlens
        return Pass(SequenceMeta(starts, kv_lens=tuple(after)), blocks)

    def grow(self, rows: Sequence[int], unread: int = 0) -> tuple[list[int], bool]:
        """Where one more token of each of *rows* is written, and whether a row has got a block for it.

        The tokens count once :meth:`grown` says so; so many before them are *unread*, and do not count yet either.

        Raises:
            ValueError: for a sequence that would be too long, or no free block; nothing has changed then.
        """
        size, lengths = self.block_size, [n + unread for n in self.lengths]
        longest = max(lengths[row] for row in rows) + 1
        if longest > self.room.capacity:
            raise ValueError(
                f"a sequence would have {longest} tokens, but the cache has room for {self.room.capacity}; make it "
                "larger"
            )
        needy = [row for row in rows if lengths[row] >= len(self._blocks[row]) * size] if self._paged else []
        if len(needy) > len(self._free):
            raise ValueError(
                f"{len(needy)} more blocks of {size} tokens are needed, but {len(self._free)} of {self.room.blocks} "
                "are free; end a sequence, or make the cache larger"
            )
        for row in needy:
            self._blocks[row].append(self._free.pop())
        tables = self.blocks_of(rows)
        slots = [
            table[lengths[row] // size] * size + lengths[row] % size for row, table in zip(rows, tables, strict=True)
        ]
        for row in rows:  # a step that is broken off may have written them
            self.reached[row] = max(self.reached[row], lengths[row] + 1)
        return slots, bool(needy)

    def grown(self, rows: Sequence[int]) -> None:
        """One more token of each of *rows* counts from now on."""
        lengths = list(self.lengths)
        for row in rows:
            lengths[row] += 1
        self.lengths = lengths

    @property
    def block_size(self) -> int:
        """How many tokens of a sequence lie together: all of them where keys and values are not paged."""
        return self.room.block_size if self._paged else self.room.capacity

    @property
    def slots(self) -> int:
        """For how many tokens there is room."""
        return self.block_size * (self.room.blocks if self._paged else self.room.sequences)

    def blocks_of(self, rows: Sequence[int]) -> list[list[int]]:
        """The blocks of some sequences."""
        return [self._blocks[row] if self._paged else [row] for row in rows]

    def commit(self, made: Pass, states: dict[int, Any]) -> None:
        """The pass is done: its tokens and the states that it left count from now on."""
        self._set(states, list(made.meta.key_lengths))

    @property
    def states(self) -> dict[int, RecurrentState]:
        """What recurrent layers keep, by number; later passes leave it as it is."""
        return {number: kept for number, kept in enumerate(self.layers) if isinstance(kept, RecurrentState)}

    def truncate(self, lengths: Sequence[int], states: Mapping[int, RecurrentState] | None = None) -> None:
        """Forget the tokens of each sequence beyond these *lengths*.

        Where a layer is recurrent a sequence can only be forgotten as a whole: its state says nothing of how it was
        some tokens ago. But who has kept what :attr:`states` was when the cache held just these tokens can go back to
        that.

        Raises:
            ValueError: for lengths that are greater than what is held, or where a layer cannot go back: a recurrent
            one to any length but 0, and one with a ring that has overwritten what it would need.
        """
        if len(lengths) != len(self.lengths) or any(
            not 0 <= n <= m for n, m in zip(lengths, self.lengths, strict=False)
        ):
            raise ValueError(f"lengths must be from 0 to those that are held, {self.lengths}, got {list(lengths)}")
        obstacle = self.obstacle(lengths, states)
        if obstacle is not None:
            raise ValueError(obstacle)
        emptied = [row for row, (n, m) in enumerate(zip(lengths, self.lengths, strict=True)) if n == 0 < m]
        if states is None and emptied:
            states = {number: kept.cleared(emptied) for number, kept in self.states.items()}
        self._set(states or {}, list(lengths))
        for own, n in zip(self._blocks, lengths, strict=True):
            spare = own[-(-n // self.room.block_size) :]
            del own[len(own) - len(spare) :]
            self._free += spare

    def obstacle(self, lengths: Sequence[int], states: Mapping[int, RecurrentState] | None = None) -> str | None:
        """Why the tokens beyond these *lengths* cannot be forgotten, or None if they can."""
        changes = [(n, m) for n, now, m in zip(lengths, self.lengths, self.reached, strict=True) if 0 < n < now]
        if not changes:  # whole sequences can always be forgotten
            return None
        back = max(m - n for n, m in changes)
        for number, kept in enumerate(self.layers):
            if isinstance(kept, RecurrentState):
                if states is None or number not in states:
                    return "a recurrent layer cannot forget its last tokens alone; forget all, or make a new cache"
            elif kept.spec.layout == "ring" and max(self.reached) > kept.spec.block_size and back > self.room.chunk:
                return f"a ring can forget its last {self.room.chunk} tokens at most, not {back}"
        return None

    def _set(self, states: Mapping[int, RecurrentState], lengths: list[int]) -> None:
        layers = tuple(states.get(number, kept) for number, kept in enumerate(self.layers))
        # with no call in between, so that a signal does not leave one without the other
        self.layers, self.lengths = layers, lengths

    @property
    def nbytes(self) -> int:
        """The bytes of keys, values, latents and states."""
        return sum(kept.nbytes if isinstance(kept, RecurrentState) else kept.spec.nbytes for kept in self.layers)

    def __repr__(self) -> str:
        held = ", ".join(map(str, self.lengths))
        return f"ModelCache({held} of {self.room.capacity} tokens, {self.room.kind}, {self.room.kept})"
