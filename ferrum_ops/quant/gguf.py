"""The block formats of GGUF files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import ferrum_array as fa
from ferrum_array import Tensor
from ferrum_ops.quant import gguf_k, gguf_legacy
from ferrum_ops.quant.bits import pack_bits
from ferrum_ops.quant.integer import IntScheme
from ferrum_ops.quant.types import Part, Parts, Scheme, divided

__all__ = ["TYPES", "GgufScheme", "GgufType"]


@dataclass(frozen=True)
class GgufType:
    """One block format.

    Attributes:
        block: how many numbers a block holds.
        size: its bytes.
        read: uint8 [..., size] to float32 [..., block].
        write: the inverse, where there is one here.
    """

    block: int
    size: int
    read: Callable[[Tensor], Tensor]
    write: Callable[[Tensor], Tensor] | None = None


#: The formats by GGUF's names.
TYPES: dict[str, GgufType] = {
    "Q4_0": GgufType(32, 18, gguf_legacy.from_q4_0, gguf_legacy.to_q4_0),
    "Q4_1": GgufType(32, 20, gguf_legacy.from_q4_1, gguf_legacy.to_q4_1),
    "Q5_0": GgufType(32, 22, gguf_legacy.from_q5_0, gguf_legacy.to_q5_0),
    "Q5_1": GgufType(32, 24, gguf_legacy.from_q5_1, gguf_legacy.to_q5_1),
    "Q8_0": GgufType(32, 34, gguf_legacy.from_q8_0, gguf_legacy.to_q8_0),
    "MXFP4": GgufType(32, 17, gguf_legacy.from_mxfp4, gguf_legacy.to_mxfp4),
    "Q2_K": GgufType(256, 84, gguf_k.from_q2_k),
    "Q3_K": GgufType(256, 110, gguf_k.from_q3_k),
    "Q4_K": GgufType(256, 144, gguf_k.from_q4_k),
    "Q5_K": GgufType(256, 176, gguf_k.from_q5_k),
    "Q6_K": GgufType(256, 210, gguf_k.from_q6_k),
}


@dataclass(frozen=True)
class GgufScheme(Scheme):
    """Blocks along K as they stand in a GGUF file: ``blocks``, uint8 [N, K / numbers of a block * bytes of a block].

    What a block holds is described, and computed in the order of GGUF's own definition, in ``gguf_legacy`` (32 numbers)
    and ``gguf_k`` (256 numbers). Quantising gives the bytes that the package ``gguf`` gives; k-quants can be read only.
    Their scales are float16, so numbers beyond it are lost, and a block with infinities or NaN keeps no number of it;
    MXFP4 has no NaN, and makes such a block 0.

    Source: ggml, ``ggml-quants.c``.

    Attributes:
        type: GGUF's name: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, MXFP4, Q2_K, Q3_K, Q4_K, Q5_K or Q6_K.

    Raises:
        ValueError: for another type.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_ops import dequantize, quantize
        >>> q = quantize(fa.arange(32, dtype="f32").reshape(1, 32) - 16, "q5_0")
        >>> q.parts["blocks"].shape, dequantize(q)[0, :3]
        ((1, 22), Tensor([-16., -15., -14.]))
    """

    type: str

    def __post_init__(self) -> None:
        if self.type not in TYPES:
            raise ValueError(f"GgufScheme: there is no type {self.type!r} here; there are {', '.join(TYPES)}")

    @property
    def kind(self) -> str:
        """The type in small letters; ``gguf_mxfp4`` for MXFP4, which others arrange in another way."""
        return "gguf_mxfp4" if self.type == "MXFP4" else self.type.lower()

    @property
    def name(self) -> str:
        """As ``kind``."""
        return self.kind

    def parts(self, n: int, k: int) -> dict[str, Part]:
        found = TYPES[self.type]
        count = divided(self, "K", k, found.block, "the numbers of a block")
        return {"blocks": Part((n, count * found.size), (fa.uint8,))}

    def decode(self, parts: Parts, shape: tuple[int, ...]) -> Tensor:
        found = TYPES[self.type]
        if 0 in shape:
            return fa.zeros(shape, dtype="f32", device=parts["blocks"].device)
        blocks = parts["blocks"].reshape((*shape[:-1], shape[-1] // found.block, found.size))
        return found.read(blocks).reshape(shape)

    def as_integers(self, parts: Parts, shape: tuple[int, ...]) -> tuple[Scheme, dict[str, Tensor]] | None:
        bits = {"Q4_0": 4, "Q5_0": 5, "Q8_0": 8}.get(self.type)
        if bits is None:
            return None
        found = TYPES[self.type]
        count = shape[-1] // found.block
        blocks = parts["blocks"].reshape((*shape[:-1], count, found.size))
        values, scales = gguf_legacy.integers(blocks, bits)
        packed = pack_bits(values.reshape(shape), bits)
        return IntScheme(bits, found.block, True, fa.float16), {"values": packed, "scales": scales.copy()}

    def encode(self, x: Tensor) -> dict[str, Tensor]:
        found = TYPES[self.type]
        if found.write is None:
            return super().encode(x)
        count = x.shape[-1] // found.block
        if not x.size:
            return {"blocks": fa.zeros((*x.shape[:-1], count * found.size), dtype="u8", device=x.device)}
        blocks = found.write(x.reshape((*x.shape[:-1], count, found.block)))
        return {"blocks": blocks.reshape((*x.shape[:-1], count * found.size))}
