"""How far every op is from its definition: the relative L2 distance to NumPy in float64, over drawn cases.

    python -m benchmarks.ops_error [--cases 200] [--device cpu mlx:cpu cuda:0] [--op rms_norm ...]

A case has drawn shapes, layouts and parameters; its operands are rounded to the dtype first, and the definition is
evaluated on the rounded ones. A figure is the greatest distance of all cases: the L2 norm of the difference over all
elements of a result, by that of the exact result. Every storage has a table of the references, and where fast
implementations ran, one of them with the cases that they covered. The tables are Markdown; ``exact`` means that no
element differed.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import inspect
import math
import pkgutil
import platform
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, TypeVar
from zlib import crc32

import numpy as np

import ferrum_array as fa
import ferrum_ops
from ferrum_ops import explain, use_fast_paths
from ferrum_ops.registry import op_names
from tests.array.oracle import wide
from tests.ops.oracle import Array, distance, make

DTYPES = {"f32": fa.float32, "f16": fa.float16, "bf16": fa.bfloat16, "f64": fa.float64}

#: Exported functions that are no ops: they choose or explain implementations, run others, or need no tensor.
NOT_MEASURED = frozenset(
    ("explain", "fast_paths", "use_fast_paths", "set_threads", "threads")
    + ("rope_frequencies", "rope_scaling", "run_ranks")
)

Results = Iterable[tuple[fa.Tensor, Array]]
_R = TypeVar("_R")


@dataclass
class Draw:
    """One case: its random numbers, where and in which dtype it is computed, what ran, and if anything else could."""

    device: fa.Device
    dtype: fa.Dtype
    rng: np.random.Generator
    ran: list[str] = field(default_factory=list)
    choice: bool = False

    @property
    def wide(self) -> fa.Dtype:
        """The dtype of the sums."""
        return fa.float64 if self.dtype is fa.float64 else fa.float32

    def one_of(self, *options: _R) -> _R:
        return options[int(self.rng.integers(len(options)))]

    def flag(self) -> bool:
        return bool(self.rng.integers(2))

    def between(self, low: int, high: int) -> int:
        """An integer; each power of two is about as likely as the next."""
        return min(high, int(low * math.exp(self.rng.random() * math.log((high + 1) / low))))

    def values(self, *shape: int) -> Array:
        """Normal numbers."""
        return self.rng.standard_normal(shape)

    def tensor(self, values: Array, dtype: fa.Dtype | None = None) -> tuple[fa.Tensor, Array]:
        """*values* in *dtype*, or else the case's own, contiguous or strided; and what it then holds."""
        return make(values, dtype or self.dtype, self.device, strided=self.flag())

    def noise(self, *shape: int, dtype: fa.Dtype | None = None) -> tuple[fa.Tensor, Array]:
        """A tensor of normal numbers, and what it holds."""
        return self.tensor(self.values(*shape), dtype)

    def integers(self, values: Any) -> fa.Tensor:
        return fa.asarray(np.asarray(values, dtype=np.int64), device=self.device)

    def call(self, op: Callable[..., _R], *args: Any, **kwargs: Any) -> _R:
        """``op(*args, **kwargs)``, noting which implementation runs."""
        if op.__name__ in op_names():
            explained = explain(op, *args, **kwargs)
            self.ran.append(explained.runs)
            self.choice = self.choice or explained.runs != "reference" or bool(explained.others)
        return op(*args, **kwargs)


_CASES: dict[str, Callable[[Draw], Results]] = {}
_C = TypeVar("_C", bound=Callable[[Draw], Results])


def case(op: str, variant: str = "") -> Callable[[_C], _C]:
    """Register a function that calls *op* and yields its results beside the exact ones; a variant has its own row."""

    def registered(function: _C) -> _C:
        name = f"{op}, {variant}" if variant else op
        assert name not in _CASES, f"{name} has two cases"
        _CASES[name] = function
        return function

    return registered


def cases() -> dict[str, Callable[[Draw], Results]]:
    """The cases of all ops, by name: ``op`` or ``op, variant``."""
    from benchmarks import error_cases

    for module in pkgutil.iter_modules(error_cases.__path__):
        importlib.import_module(f"benchmarks.error_cases.{module.name}")
    return dict(sorted(_CASES.items()))


def missing() -> list[str]:
    """The exported functions that have no case."""
    functions = {name for name in ferrum_ops.__all__ if inspect.isfunction(getattr(ferrum_ops, name))}
    return sorted(functions - NOT_MEASURED - {name.partition(",")[0] for name in cases()})


@dataclass
class Measured:
    """The cases of one op in one dtype: how many, the greatest error, the case that had it, and what ran."""

    count: int = 0
    error: float = 0.0
    worst: int = -1
    ran: Counter[str] = field(default_factory=Counter)

    def add(self, error: float, number: int, ran: Sequence[str]) -> None:
        self.count += 1
        self.ran.update(ran)
        if not error <= self.error:  # NaN too
            self.error, self.worst = error, number


def error_of(got: fa.Tensor, exact: Array) -> float:
    """The relative distance of a result, infinite if its shape is another one."""
    if got.shape != exact.shape:
        return math.inf
    found = wide(got)
    if not got.dtype.is_floating:
        return 0.0 if (found == exact).all() else math.inf
    return distance(found, exact, fa.finfo(got.dtype).smallest_normal)


def measure(
    op: str, function: Callable[[Draw], Results], device: fa.Device, dtype: fa.Dtype, fast: bool, numbers: Iterable[int]
) -> Measured:
    """The errors of the cases *numbers*; of the fast paths only those cases count that one of them covers."""
    found = Measured()
    for number in numbers:
        draw = Draw(device, dtype, np.random.default_rng([crc32(op.encode()), number]))
        with use_fast_paths(fast), np.errstate(all="ignore"):
            try:
                pairs = list(function(draw))
            except Exception as error:
                error.add_note(f"in case {number} of {op} on {device} in {dtype}, fast={fast}")
                raise
        assert pairs, f"case {number} of {op} has no result"
        if fast and not draw.choice:  # for this op the device has nothing but the reference
            break
        if not fast or any(name != "reference" for name in draw.ran):
            found.add(max(error_of(got, exact) for got, exact in pairs), number, draw.ran)
    return found


def shown(measured: Measured) -> str:
    """The error as a cell of the table."""
    if not measured.count:
        return "-"
    return "exact" if measured.error == 0.0 else f"{measured.error:.1e}"


def table(device: fa.Device, fast: bool, ops: dict[str, Callable[[Draw], Results]], count: int) -> list[str]:
    """Markdown rows, and below them the worst case of each op whose error is not finite."""
    dtypes = {tag: dtype for tag, dtype in DTYPES.items() if device.supports(dtype)}
    head = ["op", *dtypes, "cases", *(["implementations"] if fast else [])]
    rows = []
    for op, function in ops.items():
        found = [measure(op, function, device, dtype, fast, range(count)) for dtype in dtypes.values()]
        if fast and not any(m.count for m in found):
            continue
        ran = sum((m.ran for m in found), Counter[str]())
        name, _, variant = op.partition(", ")
        row = [f"`{name}` {variant}".rstrip(), *map(shown, found), str(sum(m.count for m in found))]
        if fast:
            row.append(", ".join(name for name, _ in ran.most_common() if name != "reference"))
        rows.append(row)
        for tag, m in zip(dtypes, found, strict=True):
            if not math.isfinite(m.error):
                print(f"{op} in {tag} on {device}: case {m.worst} has error {m.error}", file=sys.stderr)
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines] if rows else []


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables; 1 if some error is not finite or an exported op has no case."""
    parser = argparse.ArgumentParser(description="The error of every op, in Markdown.")
    parser.add_argument("--cases", type=int, default=200, help="how many of each op, dtype and storage")
    parser.add_argument("--device", nargs="+", help="which storages; all that are there otherwise")
    parser.add_argument("--op", nargs="+", help="which ops; all otherwise")
    options = parser.parse_args(arguments)
    if options.cases < 1:
        parser.error(f"--cases must be at least 1, got {options.cases}")
    ops = cases()
    known = {name.partition(", ")[0] for name in ops}
    if unknown := sorted(set(options.op or ()) - known):
        parser.error(f"no op is called {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    if options.op:
        ops = {name: function for name, function in ops.items() if name.partition(", ")[0] in options.op}
    devices = [fa.Device(name) for name in options.device] if options.device else list(fa.devices())
    libraries = ", ".join(f"{name} {version(name)}" for name in ("numpy", "scipy"))
    print(f"{datetime.date.today()}, {platform.machine()}, Python {platform.python_version()}, {libraries}")
    failed = False
    for device in devices:
        for fast in (False, True):
            lines = table(device, fast, ops, options.cases)
            if lines:
                failed = failed or any("inf" in line.split() or "nan" in line.split() for line in lines)
                what = "fast implementations" if fast else "references"
                print(
                    f"\n{device}, {what}, {options.cases} cases for each op and dtype\n", *lines, sep="\n", flush=True
                )
    if not options.op and (absent := missing()):
        print(f"\nwithout a case: {', '.join(absent)}")
        failed = True
    return int(failed)


if __name__ == "__main__":
    # as a module the cases know, and not a second one called __main__
    from benchmarks import ops_error

    sys.exit(ops_error.main())
