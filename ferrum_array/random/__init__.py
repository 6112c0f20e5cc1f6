"""Random numbers with explicit seeds: the same seed gives the same bits on every storage.

There is no global generator and no hidden state. :class:`Generator` draws from a stream of words
that Philox4x32-10 computes from a seed and a position; ``split`` gives independent generators.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from ferrum_array.names import advice
from ferrum_array.random.generator import Generator

__all__ = ["Generator", "default_rng"]

#: The name that NumPy's users know. A seed must be given.
default_rng = Generator


if not TYPE_CHECKING:  # tools that check types shall find misspelt names

    def __getattr__(name: str) -> NoReturn:
        hint = advice(__name__, name)
        if not hint and hasattr(Generator, name):
            hint = f"; draw from a generator: default_rng(seed).{name}(...)"
        raise AttributeError(f"module 'ferrum_array.random' has no attribute {name!r}{hint}")
