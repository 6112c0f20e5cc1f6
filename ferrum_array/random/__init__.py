"""Random numbers with explicit seeds: the same seed gives the same bits on every storage.

There is no global generator and no hidden state. :class:`Generator` draws from a stream of words
that Philox4x32-10 computes from a seed and a position; ``split`` gives independent generators.
"""

from __future__ import annotations

from typing import NoReturn

from ferrum_array.random.generator import Generator

__all__ = ["Generator", "default_rng"]

#: The name that NumPy's users know. A seed must be given.
default_rng = Generator


def __getattr__(name: str) -> NoReturn:
    hint = f"; draw from a generator: default_rng(seed).{name}(...)" if hasattr(Generator, name) else ""
    raise AttributeError(f"module 'ferrum_array.random' has no attribute {name!r}{hint}")
