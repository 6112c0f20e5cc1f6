"""Quantised matrices of every format, and what they hold by the format's description.

Formats that can be made here hold normal numbers; the others random integers with moderate scales.
"""

from __future__ import annotations

import gguf
import ml_dtypes
import numpy as np

import ferrum_array as fa
from benchmarks.ops_error import Draw
from ferrum_ops import QuantTensor, quantize
from ferrum_ops.quant.gguf import TYPES
from ferrum_ops.quant.gptq import GptqScheme
from ferrum_ops.quant.names import scheme
from tests.array.oracle import to_numpy, wide
from tests.ops.oracle import Array
from tests.ops.test_quantize import oracle
from tests.ops.test_quantize_gguf import HALVES

#: by row of the table: the schemes of its cases
SCHEMES = {
    "int8": ("int8", "int8-g64", "int8-g32-asym"),
    "int4": ("int4-g32", "int4-g64-asym-f16", "int4-g128"),
    "GGUF": tuple(scheme_name.lower() for scheme_name in TYPES if scheme_name != "MXFP4"),
    "GPTQ": ("gptq4-g128", "gptq4-g64-v2", "gptq3-g32", "gptq8-g128-order", "gptq4-g32-order"),
    "AWQ": ("awq4-g128", "awq4-g32"),
    "MXFP4": ("mxfp4",),
    "FP8": ("fp8_e4m3", "fp8_e5m2", "fp8_e4m3-b32x64"),
}
#: rows whose schemes numbers can be brought into here, and which of them
MADE = {
    **{row: SCHEMES[row] for row in ("int8", "int4", "MXFP4", "FP8")},
    "GGUF": ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0"),
}

_FLOATS = {"e4m3": ml_dtypes.float8_e4m3fn, "e5m2": ml_dtypes.float8_e5m2}


def stored(draw: Draw, row: str, *lead: int, inner: int = 0) -> tuple[QuantTensor, Array]:
    """A matrix, or a stack of them, [*lead, K]: N must be a multiple of 32."""
    name = draw.one_of(*SCHEMES[row])
    k = inner or 256 * draw.one_of(1, 1, 2)
    made, held = {
        "int8": _integers, "int4": _integers, "GGUF": _gguf, "GPTQ": _gptq, "AWQ": _awq, "MXFP4": _mxfp4, "FP8": _fp8,
    }[row](draw, name, (*lead, k))  # fmt: skip
    return made, held.astype(np.float64)


def _from(draw: Draw, name: str, shape: tuple[int, ...], parts: dict[str, Array]) -> QuantTensor:
    return QuantTensor(scheme(name), shape, {part: fa.asarray(x, device=draw.device) for part, x in parts.items()})


def _normal(draw: Draw, name: str, shape: tuple[int, ...]) -> QuantTensor:
    return quantize(draw.tensor(draw.values(*shape) / shape[-1] ** 0.5, fa.float32)[0], name)


def _scales(draw: Draw, *shape: int) -> Array:
    return (draw.values(*shape) / 64).astype(np.float16)


def _integers(draw: Draw, name: str, shape: tuple[int, ...]) -> tuple[QuantTensor, Array]:
    q = _normal(draw, name, shape)
    return q, oracle(q)


def _gguf(draw: Draw, name: str, shape: tuple[int, ...]) -> tuple[QuantTensor, Array]:
    kind = TYPES[name.upper()]
    blocks = draw.rng.integers(0, 256, (*shape[:-1], shape[-1] // kind.block, kind.size), dtype=np.uint8)
    for place in HALVES[name.upper()]:
        blocks[..., place : place + 2] = _scales(draw, *blocks.shape[:-1], 1).view(np.uint8)
    raw = blocks.reshape(*shape[:-1], -1)
    return _from(draw, name, shape, {"blocks": raw}), gguf.dequantize(raw, gguf.GGMLQuantizationType[name.upper()])


def _words(values: Array, bits: int) -> Array:
    """Rows of unsigned values as int32 words, bit by bit: the first value has the lowest bits of the first word."""
    stream = (values[..., None] >> np.arange(bits) & 1).reshape(*values.shape[:-1], -1).astype(np.uint8)
    return np.packbits(stream, axis=-1, bitorder="little").view("<i4")


def _gptq(draw: Draw, name: str, shape: tuple[int, ...]) -> tuple[QuantTensor, Array]:
    found = scheme(name)
    assert isinstance(found, GptqScheme)
    *lead, n, k = shape
    groups = found.groups(k)
    values, stored_zeros = (draw.rng.integers(0, 2**found.bits, (*lead, *end)) for end in ((n, k), (groups, n)))
    scales = _scales(draw, *lead, groups, n)
    each = np.broadcast_to(np.arange(k) // (found.group or k), (*lead, k))
    if found.ordered:
        each = draw.rng.permuted(each, axis=-1)
    zeros = stored_zeros + (1 if found.version == 1 else 0)
    of_each = [
        np.take_along_axis(np.swapaxes(x, -1, -2).astype(np.float32), each[..., None, :], -1) for x in (zeros, scales)
    ]
    parts = {
        "qweight": np.swapaxes(_words(values, found.bits), -1, -2),
        "qzeros": _words(stored_zeros, found.bits),
        "scales": scales,
        **({"g_idx": each.astype(np.int32)} if found.ordered else {}),
    }
    return _from(draw, name, shape, parts), (values - of_each[0]) * of_each[1]


def _awq(draw: Draw, name: str, shape: tuple[int, ...]) -> tuple[QuantTensor, Array]:
    *lead, n, k = shape
    group = int(name.partition("-g")[2])
    values, zeros = (draw.rng.integers(0, 16, (*lead, length, n)) for length in (k, k // group))
    scales = _scales(draw, *lead, k // group, n)

    def packed(numbers: Array) -> Array:
        inward = numbers.reshape(*numbers.shape[:-1], -1, 8)[..., [0, 2, 4, 6, 1, 3, 5, 7]]
        return _words(inward.reshape(numbers.shape), 4)

    held = (values - np.repeat(zeros, group, axis=-2)) * np.repeat(scales.astype(np.float32), group, axis=-2)
    parts = {"qweight": packed(values), "qzeros": packed(zeros), "scales": scales}
    return _from(draw, name, shape, parts), np.swapaxes(held, -1, -2)


def _mxfp4(draw: Draw, name: str, shape: tuple[int, ...]) -> tuple[QuantTensor, Array]:
    q = _normal(draw, name, shape)
    values, scales = (to_numpy(q.parts[part]) for part in ("values", "scales"))
    codes = np.stack([values & 15, values >> 4], axis=-1).reshape(shape)
    powers = np.repeat(scales.view(ml_dtypes.float8_e8m0fnu).astype(np.float32), 32, axis=-1)
    return q, codes.view(ml_dtypes.float4_e2m1fn).astype(np.float32) * powers


def _fp8(draw: Draw, name: str, shape: tuple[int, ...]) -> tuple[QuantTensor, Array]:
    q = _normal(draw, name, shape)
    rows, columns = (32, 64) if name.endswith("-b32x64") else (1, shape[-1])
    scales = np.repeat(np.repeat(wide(q.parts["scales"]), rows, axis=-2), columns, axis=-1).astype(np.float32)
    numbers = to_numpy(q.parts["values"]).view(_FLOATS[name[4:8]]).astype(np.float32)
    return q, numbers * scales
