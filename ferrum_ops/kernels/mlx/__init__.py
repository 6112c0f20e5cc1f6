"""The fused functions of MLX, where they do what the ops mean.

Not used: ``mx.fast.rope``, because it makes its own angles, in float32, which are off by hundredths of a radian at
positions of a million, and takes no tables.
"""

from __future__ import annotations

from ferrum_array import Dtype
from ferrum_ops.registry import Row, register

__all__: list[str] = []

_FLOATS = frozenset((dtype,) for dtype in (Dtype.F32, Dtype.F16, Dtype.BF16))
_HERE = "ferrum_ops.kernels.mlx"

register(
    Row(
        *("rms_norm", "mlx.rms_norm", "mlx", _FLOATS, frozenset(("offset", "residual"))),
        load=f"{_HERE}.norm:rms_norm",
        when=f"{_HERE}.norm:has_elements",
    ),
    Row(
        *("layer_norm", "mlx.layer_norm", "mlx", _FLOATS, frozenset(("residual",))),
        load=f"{_HERE}.norm:layer_norm",
        when=f"{_HERE}.norm:has_elements",
    ),
    Row(
        *("grouped_linear", "mlx.gather_mm", "mlx", _FLOATS, frozenset(("bias", "mixed"))),
        load=f"{_HERE}.moe:grouped_linear",
        when=f"{_HERE}.moe:fits",
    ),
)
