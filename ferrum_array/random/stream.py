"""A place in a stream of random words: seed, position, split, and drawing in parts."""

from __future__ import annotations

import math
from collections.abc import Callable
from threading import Lock
from typing import Any, Self

from ferrum_array.creation import empty
from ferrum_array.device import CPU, Device
from ferrum_array.dispatch import shape_tuple
from ferrum_array.dtype import Dtype
from ferrum_array.manipulation import concat
from ferrum_array.random.arguments import Shape, target_device, whole
from ferrum_array.random.integers import pair
from ferrum_array.random.philox import SEED_BITS, STREAM_WORDS, philox_words
from ferrum_array.spec import spec_of
from ferrum_array.tensor import Tensor

__all__ = ["Stream"]

#: Words computed at a time: they bound the working memory and change no result.
_CHUNK = 1 << 20


class Stream:
    """The part of :class:`~ferrum_array.random.Generator` that counts words."""

    __slots__ = ("_lock", "_position", "_seed")

    def __init__(self, seed: int, *, position: int = 0) -> None:
        self._seed = whole(type(self).__name__, "seed", seed, 0, (1 << SEED_BITS) - 1)
        self._position = whole(type(self).__name__, "position", position, 0, STREAM_WORDS)
        self._lock = Lock()

    @property
    def seed(self) -> int:
        """What the generator was made with."""
        return self._seed

    @property
    def position(self) -> int:
        """The number of 32-bit words of the stream that are used."""
        return self._position

    def copy(self) -> Self:
        """A generator at the same place: both give the same numbers from here on.

        Examples:
            >>> import ferrum_array as fa
            >>> g = fa.random.Generator(1)
            >>> h = g.copy()
            >>> bool(g.uniform() == h.uniform())
            True
        """
        return type(self)(self._seed, position=self._position)

    def __copy__(self) -> Self:
        return self.copy()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self.copy()

    def __reduce__(self) -> tuple[Any, tuple[type, int, int]]:
        return _restore, (type(self), self._seed, self._position)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Stream):
            return NotImplemented
        return (self._seed, self._position) == (other._seed, other._position)

    __hash__ = None  # type: ignore[assignment]  # a generator changes with every draw

    def __repr__(self) -> str:
        place = f", position={self._position}" if self._position else ""
        return f"{type(self).__name__}({self._seed}{place})"

    def split(self, n: int = 2) -> tuple[Self, ...]:
        """*n* generators whose streams are independent of each other and of this one.

        Each takes 128 bits of this stream, four words, as its seed, so further splits give other
        generators. Two of N generators have the same seed with a probability below N**2 / 2**129.

        Raises:
            TypeError: if *n* is not an integer. ValueError: if it is negative.

        Examples:
            >>> import ferrum_array as fa
            >>> data, weights = fa.random.Generator(0).split(2)
            >>> data.seed == weights.seed
            False
        """
        count = whole("split", "n", n, 0, 1 << 40)
        words = philox_words(self._seed, self._reserve(4 * count), 4 * count, CPU).tolist()
        seeds = (sum(words[4 * i + j] << (32 * j) for j in range(4)) for i in range(count))
        return tuple(map(type(self), seeds))

    def bits(self, shape: Shape = (), *, dtype: Any = Dtype.U32, device: Any = None) -> Tensor:
        """Random bits: the words of the stream as uint32, or pairs as uint64, the first above.

        Raises:
            TypeError: for another dtype. ValueError: for a shape with a negative length.

        Examples:
            >>> import ferrum_array as fa
            >>> fa.random.Generator(0).bits(2)  # the known answer for key 0 and counter 0
            Tensor([1713891541, 3781805453], dtype=uint32)
        """
        wanted, target = Dtype(dtype), target_device(device)
        if wanted not in (Dtype.U32, Dtype.U64):
            raise TypeError(f"bits: dtype must be uint32 or uint64, got {wanted}")
        spec_of(wanted, target)
        lengths = shape_tuple("bits", shape)
        if wanted is Dtype.U32:
            return self._draw(lengths, 1, wanted, target, lambda words: words)
        return self._draw(lengths, 2, wanted, target, pair)

    def _reserve(self, words: int) -> int:
        """The position of the next *words* words, which count as used from now on."""
        with self._lock:
            first = self._position
            if first + words > STREAM_WORDS:
                raise OverflowError(
                    f"the stream of seed {self._seed} has {STREAM_WORDS - first} words left, "
                    f"and {words} are wanted; use another seed, or split() earlier"
                )
            self._position = first + words
        return first

    def _draw(
        self,
        shape: tuple[int, ...],
        words: int,
        dtype: Dtype,
        device: Device,
        transform: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """*transform* of the *words* words of each element, a part of the elements at a time."""
        count = math.prod(shape)
        empty(count, dtype=dtype, device=device)  # where memory is short, say so before the work
        first, step = self._reserve(words * count), _CHUNK // words
        parts = []
        for done in range(0, count or 1, step):
            length = min(step, count - done) * words
            parts.append(transform(philox_words(self._seed, first + words * done, length, device)))
        return (parts[0] if len(parts) == 1 else concat(parts)).reshape(shape)


def _restore(kind: type[Stream], seed: int, position: int) -> Stream:
    return kind(seed, position=position)
