"""8-bit floats with a scale for each row or for each block."""

from __future__ import annotations

from dataclasses import dataclass

import ferrum_array as fa
from ferrum_array import Tensor
from ferrum_ops.quant.integer import scale_up
from ferrum_ops.quant.minifloat import E4M3, E5M2
from ferrum_ops.quant.types import Part, Parts, Scheme, whole

__all__ = ["Fp8Scheme"]

_FORMATS = {"e4m3": E4M3, "e5m2": E5M2}


@dataclass(frozen=True)
class Fp8Scheme(Scheme):
    """``float * scale``, with floats of 8 bits and a scale for each row, or for each block of rows and columns.

    The tensors of an [N, K] matrix:

    * ``values``: uint8 [N, K], the bits of the floats.
    * ``scales``: float32, bfloat16 or float16: [N, 1] for rows (0 columns if K is 0), and for blocks
      [N / rows, K / columns], rounded up: the last blocks may be smaller.

    Numbers are computed in float32. Quantising makes the greatest magnitude of a row or block the format's greatest
    number and rounds to nearest, half to even; infinities and NaN make their row or block NaN.

    Source: Micikevicius et al., "FP8 formats for deep learning", 2022; blocks as in DeepSeek-V3's weights.

    Attributes:
        format: ``e4m3`` (to 448, without infinities) or ``e5m2`` (to 57344).
        block: rows and columns of a block; None for a scale a row.

    Raises:
        ValueError: for another format, or a block that is not two positive integers.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_ops import dequantize, quantize
        >>> q = quantize(fa.asarray([[448.0, 1.07], [-1.0, 0.0]]), "fp8_e4m3")
        >>> dequantize(q)
        Tensor([[448.   ,   1.125],
                [ -1.   ,   0.   ]])
    """

    format: str = "e4m3"
    block: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.format not in _FORMATS:
            raise ValueError(f"Fp8Scheme: format must be 'e4m3' or 'e5m2', got {self.format!r}")
        if self.block is None:
            return
        if not isinstance(self.block, (tuple, list)) or len(self.block) != 2 or not all(map(whole, self.block)):
            raise ValueError(f"Fp8Scheme: block must be rows and columns, both positive, or None, got {self.block!r}")
        object.__setattr__(self, "block", tuple(self.block))

    @property
    def kind(self) -> str:
        """``fp8_e4m3`` or ``fp8_e5m2``."""
        return f"fp8_{self.format}"

    @property
    def name(self) -> str:
        """For example ``fp8_e4m3``, ``fp8_e4m3-b128x128``."""
        return self.kind if self.block is None else f"{self.kind}-b{self.block[0]}x{self.block[1]}"

    @property
    def features(self) -> tuple[str, ...]:
        """``quant:fp8_e4m3`` or ``quant:fp8_e5m2``; ``blocks`` where there are blocks."""
        return (f"quant:{self.kind}",) if self.block is None else (f"quant:{self.kind}", "blocks")

    def _block(self, k: int) -> tuple[int, int]:
        return (1, max(k, 1)) if self.block is None else self.block

    def parts(self, n: int, k: int) -> dict[str, Part]:
        rows, columns = self._block(k)
        scales = Part((-(-n // rows), -(-k // columns)), (fa.float32, fa.bfloat16, fa.float16), per=rows)
        return {"values": Part((n, k), (fa.uint8,)), "scales": scales}

    def decode(self, parts: Parts, shape: tuple[int, ...]) -> Tensor:
        numbers = _FORMATS[self.format].decode(parts["values"])
        if 0 in shape:
            return numbers
        return numbers * self._spread(parts["scales"].astype("f32"), shape)

    def encode(self, x: Tensor) -> dict[str, Tensor]:
        form = _FORMATS[self.format]
        *lead, n, k = x.shape
        rows, columns = self._block(k)
        down, across = -(-n // rows), -(-k // columns)
        if not x.size:
            scales = fa.zeros((*lead, down, across), dtype="f32", device=x.device)
            return {"values": x.astype("u8"), "scales": scales}
        padding = [(0, 0)] * len(lead) + [(0, down * rows - n), (0, across * columns - k)]
        padded = fa.pad(fa.abs(x), padding) if any(map(any, padding)) else fa.abs(x)
        greatest = fa.max(padded.reshape((*lead, down, rows, across, columns)), axis=(-3, -1))
        scales = scale_up(greatest / form.top, fa.float32)
        return {"values": form.encode(x / self._spread(scales, x.shape)), "scales": scales}

    def _spread(self, scales: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The scale of each number, or of each row."""
        if self.block is None:
            return scales
        rows, columns = self.block
        spread = fa.repeat(fa.repeat(scales, rows, axis=-2), columns, axis=-1)
        return spread[..., : shape[-2], : shape[-1]]
