"""Philox4x32-10, the counter-based bit generator, on tensors.

Source: J. Salmon, M. Moraes, R. Dror, D. Shaw, "Parallel random numbers: as easy as 1, 2, 3",
SC 2011 (doi 10.1145/2063384.2063405). A block of four 32-bit words is a bijection of a 128-bit
counter under a 64-bit key, so any part of a stream is computed without the parts before it.

The words are held in uint64 tensors: the product of two of them fits without overflow, and that is
arithmetic which every storage library does alike.
"""

from __future__ import annotations

from typing import Any

from ferrum_array.creation import arange
from ferrum_array.device import Device
from ferrum_array.dtype import Dtype
from ferrum_array.manipulation import stack
from ferrum_array.tensor import Tensor

__all__ = ["SEED_BITS", "STREAM_WORDS", "philox_words"]

_KEY_BITS = 64
#: a seed is the key, and above it the upper half of the counter; the lower half counts blocks
SEED_BITS = 2 * _KEY_BITS
STREAM_WORDS = 4 << 64

_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)  # added to the key after each round
_LOW = 0xFFFFFFFF


def philox_words(seed: int, first: int, count: int, device: Device) -> Tensor:
    """Words *first* to *first + count* of the stream of *seed*: uint32 [count].

    Args:
        seed: 128 bits: the key in the lower 64, the upper half of the counter in the upper 64.
        first: the place of the first word; word *w* stands in block ``w // 4``.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_array.random.philox import philox_words
        >>> [hex(w) for w in philox_words(0, 0, 2, fa.Device("cpu")).tolist()]
        ['0x6627e8d5', '0xe169c58d']
    """
    block, skip = divmod(first, 4)
    blocks = -(-(skip + count) // 4)
    counter = arange(blocks, dtype=Dtype.U64, device=device) + block
    stream = seed >> _KEY_BITS
    lanes = _philox((counter & _LOW, counter >> 32, stream & _LOW, stream >> 32), seed)
    words = stack([lane.astype(Dtype.U32) for lane in lanes], axis=-1).reshape(-1)
    return words if words.size == count else words[skip : skip + count]


def _philox(lanes: tuple[Any, Any, Any, Any], key: int) -> tuple[Any, Any, Any, Any]:
    """Ten rounds on four lanes: uint64 tensors of words, or integers that stand for equal words."""
    x0, x1, x2, x3 = lanes
    k0, k1 = key & _LOW, (key >> 32) & _LOW
    for _ in range(_ROUNDS):
        first, second = x0 * _MULTIPLIERS[0], x2 * _MULTIPLIERS[1]
        x0, x1 = x1 ^ (second >> 32) ^ k0, second & _LOW
        x2, x3 = (first >> 32) ^ x3 ^ k1, first & _LOW
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return x0, x1, x2, x3
