"""The block formats of GGUF with one scale for 32 numbers, and how GGUF's own tools fill them.

Blocks are uint8 [..., bytes of a block]; numbers are float32 [..., 32]. Scales d and offsets m are float16 in
little-endian order. Bytes that hold two 4-bit numbers hold number i in the low half and number i + 16 in the high
half. Each function computes in the order of the package ``gguf``, so that results agree bit for bit.

Source: ggml, ``ggml-quants.c``, and its definition in Python, the package ``gguf``.
"""

from __future__ import annotations

import ferrum_array as fa
from ferrum_array import Tensor
from ferrum_ops.quant.bits import halves, planes
from ferrum_ops.quant.integer import amax

__all__ = [
    "from_mxfp4", "from_q4_0", "from_q4_1", "from_q5_0", "from_q5_1", "from_q8_0", "integers",
    "to_mxfp4", "to_q4_0", "to_q4_1", "to_q5_0", "to_q5_1", "to_q8_0",
]  # fmt: skip


def from_q4_0(blocks: Tensor) -> Tensor:
    """d, 16 bytes of 4-bit q: d * (q - 8)."""
    return halves(blocks[..., :2]) * (_nibbles(blocks[..., 2:]).astype("f32") - 8.0)


def from_q4_1(blocks: Tensor) -> Tensor:
    """d, m, 16 bytes of 4-bit q: d * q + m."""
    return halves(blocks[..., :2]) * _nibbles(blocks[..., 4:]).astype("f32") + halves(blocks[..., 2:4])


def from_q5_0(blocks: Tensor) -> Tensor:
    """d, 4 bytes of the fifth bits, 16 bytes of the lower four of q: d * (q - 16)."""
    return halves(blocks[..., :2]) * (_fives(blocks[..., 2:6], blocks[..., 6:]) - 16.0)


def from_q5_1(blocks: Tensor) -> Tensor:
    """d, m, 4 bytes of the fifth bits, 16 bytes of the lower four of q: d * q + m."""
    return halves(blocks[..., :2]) * _fives(blocks[..., 4:8], blocks[..., 8:]) + halves(blocks[..., 2:4])


def from_q8_0(blocks: Tensor) -> Tensor:
    """d, 32 signed bytes q: q * d."""
    return fa.bitcast(blocks[..., 2:], fa.int8).astype("f32") * halves(blocks[..., :2])


def from_mxfp4(blocks: Tensor) -> Tensor:
    """An exponent e, 16 bytes of 4-bit floats: 2**(e - 128) times twice the float, also if e is 255."""
    codes = _nibbles(blocks[..., 1:])
    return _power(blocks[..., :1]) * _doubled(codes)


def integers(blocks: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """The q [..., 32] of Q4_0 (4 *bits*), Q5_0 (5) or Q8_0 (8, as int8), and d, float16 [...]."""
    d = fa.bitcast(blocks[..., :2], fa.float16)[..., 0]
    match bits:
        case 4:
            return _nibbles(blocks[..., 2:]), d
        case 5:
            return _fives(blocks[..., 2:6], blocks[..., 6:]).astype("u8"), d
        case _:
            return fa.bitcast(blocks[..., 2:], fa.int8), d


def to_q4_0(x: Tensor) -> Tensor:
    """The number farthest from 0 becomes -8; halves are rounded up, and what would be 8 is clipped to 7."""
    d, inverse = _farthest(x, -8.0)
    return fa.concat([_half_bytes(d), _pack_nibbles(_levels(x * inverse + 8.5, 15))], axis=-1)


def to_q4_1(x: Tensor) -> Tensor:
    """From the least number, m, to the greatest in 15 steps."""
    d, m, q = _between(x, 15)
    return fa.concat([_half_bytes(d), _half_bytes(m), _pack_nibbles(q)], axis=-1)


def to_q5_0(x: Tensor) -> Tensor:
    """The number farthest from 0 becomes -16; halves are rounded up, and what would be 16 is clipped to 15."""
    d, inverse = _farthest(x, -16.0)
    return fa.concat([_half_bytes(d), *_pack_fives(_levels(x * inverse + 16.5, 31))], axis=-1)


def to_q5_1(x: Tensor) -> Tensor:
    """From the least number, m, to the greatest in 31 steps."""
    d, m, q = _between(x, 31)
    return fa.concat([_half_bytes(d), _half_bytes(m), *_pack_fives(q)], axis=-1)


def to_q8_0(x: Tensor) -> Tensor:
    """The number farthest from 0 becomes 127 or -127; halves are rounded away from 0."""
    d = fa.expand_dims(amax(x), -1) / 127.0
    y = x * _inverse(d)
    size = fa.abs(y)
    whole = fa.floor(size)
    q = fa.sign(y) * (whole + fa.floor(2.0 * (size - whole)))
    return fa.concat([_half_bytes(d), fa.bitcast(q.astype("i8"), fa.uint8)], axis=-1)


def to_mxfp4(x: Tensor) -> Tensor:
    """The exponent of the number farthest from 0, less 2; then the nearest float, of equally near ones the first code.

    Numbers beyond 6 times the scale become 6 times the scale.
    """
    # the exponent is read from the bits: a logarithm rounds up to the next integer for some numbers below it
    exponent = fa.bitcast(fa.expand_dims(amax(x), -1), fa.uint32) >> 23
    e = (fa.clip(exponent, 2, 254) - 2).astype("u8")
    codes = fa.arange(16, dtype="u8", device=x.device)
    # one code after another, so that no array of 16 times the size is needed
    best = fa.zeros(x.shape, dtype="u8", device=x.device)
    least = fa.abs(x)
    for code in (1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15):
        error = fa.abs(_power(e) * _doubled(codes[code : code + 1]) - x)
        nearer = error < least
        best, least = fa.where(nearer, code, best), fa.where(nearer, error, least)
    return fa.concat([e, _pack_nibbles(best)], axis=-1)


# Reading.


def _nibbles(stream: Tensor) -> Tensor:
    """Bytes [..., B] as 4-bit numbers [..., 2 B]: the low halves, then the high ones."""
    return planes(stream, 4).reshape((*stream.shape[:-1], 2 * stream.shape[-1]))


def _fives(high: Tensor, low: Tensor) -> Tensor:
    """The 5-bit numbers, float32 [..., 32], of 4 bytes with a bit for each and 16 with the lower four bits."""
    bits = fa.stack([(high >> shift) & 1 for shift in range(8)], axis=-1).reshape((*high.shape[:-1], 32))
    return (_nibbles(low) | (bits << 4)).astype("f32")


def _doubled(codes: Tensor) -> Tensor:
    """Twice the 4-bit floats of these codes, as float32: 0 1 2 3 4 6 8 12, and negative from 8 on; there is no -0."""
    size = codes & 7
    mantissa = (size & 1) | 2
    values = fa.where(size < 2, size, mantissa << fa.where(size < 2, 0, (size >> 1) - 1)).astype("f32")
    return fa.where(codes < 8, values, 0.0 - values)


def _power(e: Tensor) -> Tensor:
    """2**(e - 128) as float32, by its bits: the least two are subnormal."""
    wide = e.astype("u32")
    bits = fa.where(wide < 2, (fa.minimum(wide, 1) + 1) * 0x00200000, (fa.maximum(wide, 1) - 1) << 23)
    return fa.bitcast(bits, fa.float32)


# Writing.


def _inverse(d: Tensor) -> Tensor:
    return fa.where(d == 0, 0.0, 1.0 / d)


def _half_bytes(d: Tensor) -> Tensor:
    return fa.bitcast(d.astype("f16"), fa.uint8)


def _levels(y: Tensor, top: int) -> Tensor:
    """*y*, which is above 0, cut to an integer of at most *top*."""
    return fa.minimum(fa.trunc(y), float(top)).astype("u8")


def _farthest(x: Tensor, level: float) -> tuple[Tensor, Tensor]:
    """The step d with which the number farthest from 0, the first of them, becomes *level*; and 1 / d, or 0."""
    d = fa.take_along_axis(x, fa.argmax(fa.abs(x), axis=-1, keepdims=True), axis=-1) / level
    return d, _inverse(d)


def _between(x: Tensor, top: int) -> tuple[Tensor, Tensor, Tensor]:
    """Step, least number and levels for *top* steps from the least number to the greatest."""
    m = fa.min(x, axis=-1, keepdims=True)
    d = (fa.max(x, axis=-1, keepdims=True) - m) / float(top)
    return d, m, _levels((x - m) * _inverse(d) + 0.5, top)


def _pack_nibbles(q: Tensor) -> Tensor:
    half = q.shape[-1] // 2
    return q[..., :half] | (q[..., half:] << 4)


def _pack_fives(q: Tensor) -> tuple[Tensor, Tensor]:
    grouped = (q >> 4).reshape((*q.shape[:-1], 4, 8))
    high = grouped[..., 0]
    for shift in range(1, 8):
        high = high | (grouped[..., shift] << shift)
    return high, _pack_nibbles(q & 15)
