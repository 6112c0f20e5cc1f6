"""The picture of ``ferrum bench --plot``: what was measured, under the roof that the machine sets.

Source: Williams et al., "Roofline: an insightful visual performance model for multicore architectures", 2009.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from math import prod
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import ferrum_array as fa
from ferrum_array import Device, Dtype
from ferrum_models.causal import CausalLM
from ferrum_models.layers import MoE
from ferrum_ops import linear

__all__ = ["Point", "Roof", "check", "draw", "measure", "work"]

_ROUNDS = 5
_FORMATS = (".png", ".svg", ".pdf")
_SIDE = 2048  # of the matrices whose product is timed
_COPIED = 1 << 27  # bytes, beyond every cache


class Roof(NamedTuple):
    """What a device can do: bytes that it reads and writes in a second, and operations of products."""

    bytes: float
    operations: float

    def at(self, intensity: float) -> float:
        """Operations a second at so many operations a byte."""
        return min(self.bytes * intensity, self.operations)


class Point(NamedTuple):
    """A measurement: operations a byte, and a second."""

    name: str
    intensity: float
    operations: float


def check(path: Path) -> None:
    """That a picture can be drawn to *path*, before anything is measured.

    Raises:
        ModuleNotFoundError: without Matplotlib. ValueError: for another ending, FileNotFoundError for no folder.
    """
    if path.suffix not in _FORMATS:
        raise ValueError(f"--plot: the file must end in one of {', '.join(_FORMATS)}, got {path}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"--plot: there is no folder {path.parent}")
    if find_spec("matplotlib") is None:
        raise ModuleNotFoundError("--plot needs Matplotlib; install it with: pip install matplotlib")


def _least(call: Callable[[], object], device: Device) -> float:
    times = []
    for _ in range(1 + _ROUNDS):
        fa.synchronize(device)
        start = perf_counter()
        call()
        fa.synchronize(device)
        times.append(perf_counter() - start)
    return min(times[1:])


def measure(device: Device, dtype: Dtype) -> Roof:
    """The roof of *device*: a large copy, and a product of two matrices of *dtype*."""
    memory = fa.ones((_COPIED // 4,), dtype=fa.float32, device=device)
    matrix = fa.ones((_SIDE, _SIDE), dtype=dtype, device=device)
    there = fa.zeros(memory.shape, dtype=fa.float32, device=device)

    def copy() -> None:
        there[...] = memory

    copied = _least(copy, device)
    multiplied = _least(lambda: linear(matrix, matrix), device)
    return Roof(2 * _COPIED / copied, 2 * _SIDE**3 / multiplied)


def work(model: CausalLM, tokens: int) -> tuple[float, float]:
    """Operations of a pass over so many *tokens*, and bytes of the weights that it reads once.

    Products of weights alone are counted, not attention. Of experts, those count that the tokens can reach: each
    token is worked on by k of E.
    """
    operations = read = 0.0
    for name, value in model.named_parameters():
        if name == "model.embed_tokens.weight" and model.lm_head is not None:
            continue
        share = reached = 1.0
        layer = _layer_of(model, name)
        if ".experts." in name and isinstance(layer, MoE):
            share = layer.gate.k / value.shape[0]
            reached = min(1.0, tokens * share)
        operations += 2.0 * prod(value.shape) * share * tokens
        read += value.nbytes * reached
    return operations, read


def _layer_of(model: CausalLM, name: str) -> object:
    parts = name.split(".")
    if parts[:2] != ["model", "layers"]:
        return None
    return model.model.layers[int(parts[2])].mlp


def draw(path: Path, title: str, roof: Roof, points: Sequence[Point]) -> None:
    """Write the picture to *path*, in the format that its ending names."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    ridge = roof.operations / roof.bytes
    edges = [min([ridge / 64, *(point.intensity / 2 for point in points)])]
    edges += [ridge, max([ridge * 64, *(point.intensity * 2 for point in points)])]
    axes.loglog(edges, [roof.at(x) for x in edges], color="black")
    axes.annotate(
        f"{roof.bytes / 1e9:,.1f} GB/s", (edges[0], roof.at(edges[0])), (12, 0), textcoords="offset points", fontsize=8
    )
    axes.annotate(
        f"{roof.operations / 1e12:.2f} TFLOP/s",
        (ridge, roof.operations),
        (0, 4),
        textcoords="offset points",
        fontsize=8,
    )
    for point in points:
        share = point.operations / roof.at(point.intensity)
        axes.plot(point.intensity, point.operations, "o", label=f"{point.name}: {share:.0%} of the roof")
    axes.set(title=title, xlabel="operations a byte of weights", ylabel="operations a second")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)
