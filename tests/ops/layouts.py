"""A layout as a kernel might want it: columns of all rows side by side, and scales in another dtype's bits."""

from __future__ import annotations

import ferrum_array as fa
from ferrum_array import Tensor
from ferrum_ops.quant.integer import IntScheme
from ferrum_ops.quant.types import Layout, Part, Parts, Scheme


class Columns(Layout):
    """4-bit integers, turned: a row of bytes holds two columns of the matrix."""

    name = "test columns"

    def refusal(self, scheme: Scheme, n: int, k: int) -> str | None:
        if not isinstance(scheme, IntScheme) or scheme.bits != 4:
            return "it is for 4-bit integers"
        return "rows come in pairs" if n % 2 else None

    def parts(self, scheme: Scheme, n: int, k: int) -> dict[str, Part]:
        plain = scheme.parts(n, k)
        turned = {"turned": Part((k // 2, n), (fa.uint8,), axis=-1, per=2, places=2)}
        return turned | {name: part for name, part in plain.items() if name != "values"}

    def pack(self, scheme: Scheme, parts: Parts, shape: tuple[int, ...]) -> dict[str, Tensor]:
        assert parts["values"].shape == (*shape[:-1], shape[-1] // 2)
        rest = {name: part for name, part in parts.items() if name != "values"}
        return {"turned": fa.moveaxis(parts["values"], -1, -2), **rest}

    def unpack(self, scheme: Scheme, parts: Parts, shape: tuple[int, ...]) -> dict[str, Tensor]:
        rest = {name: part for name, part in parts.items() if name != "turned"}
        values = fa.moveaxis(parts["turned"], -1, -2)
        assert values.shape == (*shape[:-1], shape[-1] // 2)
        return {"values": values, **rest}


COLUMNS = Columns()
