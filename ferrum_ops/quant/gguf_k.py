"""The block formats of GGUF with 256 numbers, whose scales are quantised themselves.

Blocks are uint8 [..., bytes of a block]; numbers are float32 [..., 256]. A block has one or two float16 factors, d and
dmin, and integer scales for groups of 16 or 32 numbers. Each function computes in the order of the package ``gguf``,
so that results agree bit for bit.

Source: ggml, ``ggml-quants.c``, and its definition in Python, the package ``gguf``.
"""

from __future__ import annotations

import ferrum_array as fa
from ferrum_array import Tensor
from ferrum_ops.quant.bits import halves, planes

__all__ = ["from_q2_k", "from_q3_k", "from_q4_k", "from_q5_k", "from_q6_k"]


def from_q2_k(blocks: Tensor) -> Tensor:
    """16 bytes of scales (low half) and offsets (high half), 64 of 2-bit q, d, dmin: d s * q - dmin o, 16 a group."""
    scales, d, dmin = blocks[..., :16], halves(blocks[..., 80:82]), halves(blocks[..., 82:84])
    step = fa.expand_dims(d * (scales & 15).astype("f32"), -1)
    offset = fa.expand_dims(dmin * (scales >> 4).astype("f32"), -1)
    q = planes(_split(blocks[..., 16:80], 32), 2).reshape((*blocks.shape[:-1], 16, 16)).astype("f32")
    return _joined(step * q - offset)


def from_q3_k(blocks: Tensor) -> Tensor:
    """32 bytes of third bits, 64 of the lower two of q, 12 of 6-bit scales, d: d (s - 32) * (q - 4), 16 a group.

    The lower four bits of the scales stand in the first 8 bytes, and the upper two in the other 4.
    """
    d = halves(blocks[..., 108:110])
    scales = _joined(planes(blocks[..., 96:104], 4)) | (_joined(planes(blocks[..., 104:108], 2)) << 4)
    low = planes(_split(blocks[..., 32:96], 32), 2).reshape((*blocks.shape[:-1], 16, 16))
    high = planes(blocks[..., :32], 1).reshape(low.shape)
    q = low | (high << 2)
    return _joined(fa.expand_dims(d * (scales.astype("f32") - 32.0), -1) * (q.astype("f32") - 4.0))


def from_q4_k(blocks: Tensor) -> Tensor:
    """d, dmin, 12 bytes of 6-bit scales and offsets, 128 of 4-bit q: d s * q - dmin o, 32 a group."""
    step, offset = _steps_and_offsets(blocks)
    q = planes(_split(blocks[..., 16:], 32), 4).reshape((*blocks.shape[:-1], 8, 32)).astype("f32")
    return _joined(step * q - offset)


def from_q5_k(blocks: Tensor) -> Tensor:
    """d, dmin, 12 bytes of 6-bit scales and offsets, 32 of fifth bits, 128 of the lower four of q; then as Q4_K."""
    step, offset = _steps_and_offsets(blocks)
    low = planes(_split(blocks[..., 48:], 32), 4).reshape((*blocks.shape[:-1], 8, 32))
    q = (low | (planes(blocks[..., 16:48], 1) << 4)).astype("f32")
    return _joined(step * q - offset)


def from_q6_k(blocks: Tensor) -> Tensor:
    """128 bytes of the lower four bits of q, 64 of the upper two, 16 signed scales, d: d s * (q - 32), 16 a group."""
    scales, d = fa.bitcast(blocks[..., 192:208], fa.int8).astype("f32"), halves(blocks[..., 208:210])
    low = planes(_split(blocks[..., :128], 64), 4).reshape((*blocks.shape[:-1], 16, 16))
    high = planes(_split(blocks[..., 128:192], 32), 2).reshape(low.shape)
    q = (low | (high << 4)).astype("f32") - 32.0
    return _joined(fa.expand_dims(d * scales, -1) * q)


def _steps_and_offsets(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """d s and dmin o, [..., 8, 1] each, of a block that begins with d, dmin and 12 bytes of scales and offsets.

    Of the 12 bytes, the first four hold scales 0 to 3 and the next four offsets 0 to 3, in their lower six bits; the
    last four hold the lower half of scales 4 to 7 (low) and of offsets 4 to 7 (high), whose upper two bits are the
    upper two of the first eight bytes.
    """
    first, second, third = blocks[..., 4:8], blocks[..., 8:12], blocks[..., 12:16]
    scales = fa.concat([first & 63, (third & 15) | ((first >> 2) & 48)], axis=-1).astype("f32")
    offsets = fa.concat([second & 63, (third >> 4) | ((second >> 2) & 48)], axis=-1).astype("f32")
    d, dmin = halves(blocks[..., :2]), halves(blocks[..., 2:4])
    return fa.expand_dims(d * scales, -1), fa.expand_dims(dmin * offsets, -1)


def _split(x: Tensor, size: int) -> Tensor:
    """[..., m * size] as [..., m, size]."""
    return x.reshape((*x.shape[:-1], x.shape[-1] // size, size))


def _joined(x: Tensor) -> Tensor:
    """[..., m, n] as [..., m * n]."""
    return x.reshape((*x.shape[:-2], x.shape[-2] * x.shape[-1]))
