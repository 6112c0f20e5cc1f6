"""Numbers of a few bits each in a stream of bytes, the first number in the lowest bits."""

from __future__ import annotations

from math import gcd

import ferrum_array as fa
from ferrum_array import Tensor

__all__ = ["halves", "pack_bits", "planes", "unpack_bits"]


def unpack_bits(stream: Tensor, bits: int) -> Tensor:
    """The numbers in *stream*, uint8 [..., B]: uint8 [..., 8 * B / bits].

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_ops.quant.bits import unpack_bits
        >>> unpack_bits(fa.asarray([0x21, 0x43], dtype="u8"), 4)
        Tensor([1, 2, 3, 4], dtype=uint8)
    """
    if bits == 8:
        return stream
    # after so many numbers the stream is at the edge of a byte again
    period = 8 // gcd(8, bits)
    size = period * bits // 8
    lead, count = stream.shape[:-1], stream.shape[-1] // size
    groups = stream.reshape((*lead, count, size))
    numbers = []
    for i in range(period):
        place, shift = divmod(i * bits, 8)
        number = groups[..., place] >> shift
        if shift + bits > 8:
            number = number | (groups[..., place + 1] << (8 - shift))
        numbers.append(number & ((1 << bits) - 1))
    return fa.stack(numbers, axis=-1).reshape((*lead, count * period))


def pack_bits(numbers: Tensor, bits: int) -> Tensor:
    """The inverse of :func:`unpack_bits`: uint8 [..., M], each below 2**bits, to uint8 [..., M * bits / 8].

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_ops.quant.bits import pack_bits
        >>> [hex(byte) for byte in pack_bits(fa.asarray([1, 2, 3, 4], dtype="u8"), 4).tolist()]
        ['0x21', '0x43']
    """
    if bits == 8:
        return numbers
    period = 8 // gcd(8, bits)
    size = period * bits // 8
    lead, count = numbers.shape[:-1], numbers.shape[-1] // period
    groups = numbers.reshape((*lead, count, period))
    stream = []
    for place in range(size):
        byte = fa.zeros((*lead, count), dtype="u8", device=numbers.device)
        for i in range(period):
            offset = i * bits - 8 * place
            if 0 <= offset < 8:
                byte = byte | (groups[..., i] << offset)
            elif -bits < offset < 0:
                byte = byte | (groups[..., i] >> -offset)
        stream.append(byte)
    return fa.stack(stream, axis=-1).reshape((*lead, count * size))


def planes(x: Tensor, bits: int) -> Tensor:
    """The bytes *x* [..., m] as 8 / bits planes of numbers, [..., 8 / bits, m], the lowest bits of each byte first.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_ops.quant.bits import planes
        >>> planes(fa.asarray([0x21, 0x43], dtype="u8"), 4)
        Tensor([[1, 3],
                [2, 4]], dtype=uint8)
    """
    return fa.stack([(x >> shift) & ((1 << bits) - 1) for shift in range(0, 8, bits)], axis=-2)


def halves(stream: Tensor) -> Tensor:
    """The float16 numbers [..., B / 2] in *stream*, uint8 [..., B], as float32.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_ops.quant.bits import halves
        >>> halves(fa.asarray([0, 60], dtype="u8"))
        Tensor([1.])
    """
    return fa.bitcast(stream, fa.float16).astype("f32")
