"""The fused functions of MLX, where they do what the ops mean.

Not used: ``mx.fast.rope``, because it makes its own angles, in float32, which are off by hundredths of a radian at
positions of a million, and takes no tables.
"""

from __future__ import annotations

from ferrum_array import Dtype
from ferrum_ops.quant.types import register_layout
from ferrum_ops.registry import Row, register

__all__: list[str] = []

_FLOATS = frozenset((dtype,) for dtype in (Dtype.F32, Dtype.F16, Dtype.BF16))
_BITS = (2, 3, 4, 5, 6, 8)
_QUANTISED = {
    *(f"quant:{kind}{bits}" for kind in ("int", "mlx") for bits in _BITS),
    *("quant:mxfp4", "zeros", "layout:mlx-affine", "layout:mlx-mxfp4"),
}
_HERE = "ferrum_ops.kernels.mlx"


def _row(op: str, name: str, features: set[str], load: str, when: str) -> Row:
    return Row(op, f"mlx.{name}", "mlx", _FLOATS, frozenset(features), load=f"{_HERE}.{load}", when=f"{_HERE}.{when}")


register_layout("mlx-affine", f"{_HERE}.layouts:AFFINE")
register_layout("mlx-mxfp4", f"{_HERE}.layouts:MXFP4")

register(
    _row("rms_norm", "rms_norm", {"offset", "residual"}, "norm:rms_norm", "norm:has_elements"),
    _row("layer_norm", "layer_norm", {"residual"}, "norm:layer_norm", "norm:has_elements"),
    _row("attention", "sdpa", {"full", "window", "sinks", "bias"}, "attention:attention", "attention:fits"),
    # without a bias, linear is MLX's product anyway
    _row("linear", "addmm", {"bias"}, "gemm:with_bias", "gemm:bias_fits"),
    _row(
        "linear", "quantized_matmul", _QUANTISED | {"bias", "mixed", "dtype"}, "gemm:quantised", "gemm:quantised_fits"
    ),
    _row("grouped_linear", "gather_mm", {"bias", "mixed"}, "gemm:grouped", "gemm:grouped_fits"),
    _row("grouped_linear", "gather_qmm", {*_QUANTISED, "bias", "mixed"}, "gemm:grouped", "gemm:quantised_fits"),
)
