"""What one call costs on tensors of four elements, where the work itself costs next to nothing.

    python benchmarks/overhead.py [--device cpu] [--rounds 150]

Every library runs in this one process. Each round times every row of every library once, so that
a slow moment of the machine meets all of them, and the least time of all rounds counts, because
noise only adds. PyTorch gets one thread. The tables are Markdown.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import importlib
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

Call = Callable[[], object]
ROOT = Path(__file__).resolve().parents[1]

#: One round times a call about this long, in seconds.
SPAN = 0.002


@dataclass(frozen=True)
class Library:
    """A peer: its name, its namespace, how it takes an array, and how it waits for a result."""

    name: str
    xp: Any
    take: Callable[[Any], Any]
    wait: Callable[[Any], object] | None = None


def calls(library: Library) -> dict[str, Call]:
    """The rows of the table for one library."""
    xp, take = library.xp, library.take
    a = take(np.asarray([1.0, 2.0, 3.0, 4.0], dtype=np.float32))
    b = take(np.asarray([0.5, 0.25, 4.0, 8.0], dtype=np.float32))
    c = take(np.asarray([3.0, 1.0, 0.0, 2.0], dtype=np.float32))
    m = take(np.eye(4, dtype=np.float32) * 2)
    exp, total = xp.exp, xp.sum
    rows: dict[str, Call] = {
        "a + b": lambda: a + b,
        "a * 2.0": lambda: a * 2.0,
        "exp(a)": lambda: exp(a),
        "sum(a)": lambda: total(a),
        "a[1:3]": lambda: a[1:3],
        "m @ m": lambda: m @ m,
        "sum(a * b + c)": lambda: total(a * b + c),
    }
    wait = library.wait
    if wait is None:
        return rows
    return {row: lambda call=call: wait(call()) for row, call in rows.items()}


def best_times(timed: Sequence[Call], rounds: int) -> list[float]:
    """The least seconds a call, for each of *timed*, over interleaved rounds."""
    counts = [repetitions(call) for call in timed]
    best = [float("inf")] * len(timed)
    for _ in range(rounds):
        for i, (call, count) in enumerate(zip(timed, counts, strict=True)):
            best[i] = min(best[i], loop(call, count) / count)
    return best


def repetitions(call: Call) -> int:
    """How many calls fill the span of one round.

    The first calls of a library can take a thousand times as long as the others, and a short count
    would charge the clock to the call; so it is the last of several estimates that counts.
    """
    count = 100
    for _ in range(5):
        count = max(10, round(count * SPAN / loop(call, count)))
    return count


def loop(call: Call, count: int) -> float:
    """The seconds that *count* calls take, the loop itself included."""
    steps = range(count)
    start = time.perf_counter()
    for _ in steps:
        call()
    return time.perf_counter() - start


def libraries(device: str) -> tuple[list[Library], list[str]]:
    """The libraries to compare, ours last, and the names of those that are not installed."""
    import ferrum_array as fa

    found, absent = [], []
    if device == "cpu":
        found.append(Library("NumPy", np, lambda x: x))
        makers = {"PyTorch": pytorch, "array-api-strict": strict}
    elif device.startswith("mlx"):
        makers = {"MLX": lambda: mlx(device)}
    else:
        makers = {"CuPy": cupy}
    for name, make in makers.items():
        try:
            found.append(make())
        except ImportError:
            absent.append(name)
    wait = None if device == "cpu" else lambda result: result.block_until_ready()
    found.append(Library("Ferrum", fa, partial(fa.asarray, device=device), wait))
    return found, absent


def pytorch() -> Library:
    """PyTorch on the CPU, with one thread."""
    torch = importlib.import_module("torch")
    torch.set_num_threads(1)
    return Library("PyTorch", torch, torch.from_numpy)


def strict() -> Library:
    """The reference implementation of the standard."""
    xp = importlib.import_module("array_api_strict")
    return Library("array-api-strict", xp, xp.asarray)


def mlx(device: str) -> Library:
    """MLX itself. Its calls return before they compute, so each is followed by an evaluation."""
    mx = importlib.import_module("mlx.core")
    mx.set_default_device(mx.cpu if device.endswith("cpu") else mx.gpu)
    return Library("MLX", mx, mx.array, mx.eval)


def cupy() -> Library:
    """CuPy itself, each call followed by a wait for its stream."""
    cp = importlib.import_module("cupy")
    return Library("CuPy", cp, cp.asarray, lambda _: cp.cuda.get_current_stream().synchronize())


def overhead_table(found: Sequence[Library], absent: Sequence[str], rounds: int) -> str:
    """Microseconds a call, a row for each expression, and our time over that of each peer."""
    *peers, ours = found
    names = [library.name for library in found]
    header = [*names, *absent, *(f"{ours.name} / {peer.name}" for peer in peers)]
    lines = ["| microseconds | " + " | ".join(header) + " |", "|---|" + "---:|" * len(header)]
    timed = [calls(library) for library in found]
    rows = list(timed[0])
    best = best_times([library[row] for row in rows for library in timed], rounds)
    for i, row in enumerate(rows):
        seconds = best[i * len(found) : (i + 1) * len(found)]
        cells = [f"{1e6 * s:.2f}" for s in seconds]
        cells += ["absent"] * len(absent)
        cells += [f"{seconds[-1] / s:.2f}" for s in seconds[:-1]]
        lines.append(f"| `{row}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def import_times(modules: Sequence[str], rounds: int) -> list[float]:
    """The median seconds that importing each module takes in a fresh interpreter."""
    samples: list[list[float]] = [[] for _ in modules]
    for module in modules:
        import_once(module)  # leaves the byte code that later imports find
    for _ in range(rounds):
        for module, taken in zip(modules, samples, strict=True):
            taken.append(import_once(module))
    return [statistics.median(taken) for taken in samples]


def import_once(module: str) -> float:
    """The seconds that importing *module* takes in a fresh interpreter, which keeps byte code."""
    done = subprocess.run(
        [
            *(sys.executable, "-c"),
            f"import time; start = time.perf_counter(); import {module}; print(time.perf_counter() - start)",
        ],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"},
    )
    return float(done.stdout)


def import_table(rounds: int) -> str:
    """Milliseconds that the imports take, and their ratio."""
    numpy_time, our_time = import_times(["numpy", "ferrum_array"], rounds)
    return "\n".join(
        [
            "| milliseconds | `import numpy` | `import ferrum_array` | ratio |",
            "|---|---:|---:|---:|",
            f"| median of {rounds} | {1e3 * numpy_time:.1f} | {1e3 * our_time:.1f} | {our_time / numpy_time:.2f} |",
        ]
    )


def machine() -> str:
    """The date, the processor and the versions that the figures belong to."""
    installed = []
    for distribution in ("numpy", "torch", "array-api-strict", "mlx", "cupy-cuda13x"):
        try:
            installed.append(f"{distribution} {version(distribution)}")
        except PackageNotFoundError:
            continue
    return (
        f"{datetime.date.today().isoformat()}, {processor()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, {', '.join(installed)}"
    )


def processor() -> str:
    """The processor's name as the system gives it."""
    described = Path("/proc/cpuinfo")
    if described.exists():
        for line in described.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cpu", help="where our tensors lie (default: cpu)")
    parser.add_argument("--rounds", type=int, default=150, help="rounds (default: 150)")
    parser.add_argument("--import-rounds", type=int, default=15, help="fresh interpreters a module")
    chosen = parser.parse_args(arguments)
    found, absent = libraries(chosen.device)
    print(machine(), end="\n\n", flush=True)
    gc.disable()
    if chosen.device.startswith("mlx"):  # lazy: the call and the evaluation cost different things
        print("The call alone, its result never asked for:", end="\n\n")
        unasked = [replace(library, wait=None) for library in found]
        print(overhead_table(unasked, absent, chosen.rounds), end="\n\nThe call and the evaluation:\n\n", flush=True)
    print(overhead_table(found, absent, chosen.rounds), end="\n\n", flush=True)
    gc.enable()
    print(import_table(chosen.import_rounds))


if __name__ == "__main__":
    main()
