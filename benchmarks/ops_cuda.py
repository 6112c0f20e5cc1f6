"""Ops on one CUDA device beside PyTorch's: times, ratios, and shares of what the device can do.

    python -m benchmarks.ops_cuda [--only prefill decode ...] [--json FILE]

First the ceilings are measured: the bandwidth of a copy, bytes read and written together, and the rate of a product of
matrices of 8192 rows and columns in bfloat16. The bound of a row is the greater of its bytes over the one and its
operations over the other; its share is the bound over our time.

Ours and PyTorch's ways work on the same memory, in one process. Before a row is timed, the result of every way is
compared with float64's, and a row whose results are further away than their dtype explains is an error. Inputs take
turns, so that those that are large lie in memory and not in the cache; small ones lie in the cache. The time is that of
the device between two events, the median of several bursts: the host puts the calls of a burst into the queue while the
device is kept busy, so that the device never waits for the host. Calls of less than 200 us are also captured in a
graph, whose replay counts; the others are marked ``eager``. What the host spends on a call of ours is a column of its
own. Rows that have a goal say it, and whether it is reached. The table is Markdown.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import chain, cycle, islice
from pathlib import Path
from typing import Any

import torch

from benchmarks.cuda_attention import appends, decodes, prefill
from benchmarks.cuda_goals import OPS, cells, goals_of
from benchmarks.cuda_products import experts, ffns, linears, samples
from benchmarks.cuda_rows import CLOSE, Call, Row, norms, ropes
from benchmarks.matmul_cuda import machine

__all__ = ["GROUPS", "Ceilings", "Measured", "check", "line", "main"]

#: a shorter call is replayed from a graph, in microseconds: between launches from the queue the device idles longer
_SHORT = 200.0
#: a burst of calls is about so long on the device, in microseconds
_BURST = 3000.0
_BURSTS = 5
_CUDA: Any = torch.cuda  # much of it has no types
_SCHEMES = ("bf16", "int8", "int4-g128", "int4-g32", "mxfp4")


def _prefills(device: str) -> Iterator[Row]:
    yield prefill(device, (4096,), 32, 8, 128)
    yield prefill(device, (1024,) * 8, 16, 16, 64)
    yield prefill(device, (4096,), 32, 8, 128, window=1024)
    yield prefill(device, (3000, 37, 1024, 511, 2048, 1, 1500), 32, 8, 128)
    for size, value_size in ((96, 96), (256, 256), (192, 128)):
        yield prefill(device, (4096,), 16, 16, size, value_size)


GROUPS: dict[str, Callable[[str], Iterator[Row]]] = {
    "prefill": _prefills,
    "decode": lambda device: chain.from_iterable(decodes(device, *one) for one in ((32, 4096), (1, 8192), (8, 1024))),
    "append": lambda device: chain(appends(device, 1, 8192), appends(device, 32, 1)),
    "norm": lambda device: chain.from_iterable(norms(device, rows) for rows in (8192, 8, 1)),
    "rope": lambda device: chain.from_iterable(ropes(device, rows) for rows in (8192, 8, 1)),
    "linear": lambda device: linears(device, _SCHEMES),
    "grouped": experts,
    "moe": ffns,
    "sample": samples,
}


@dataclass(frozen=True)
class Ceilings:
    """What the device can do.

    Attributes:
        bandwidth: of a copy, bytes read and written, in TB/s.
        rate: of a large product in bfloat16, in TFLOP/s.
    """

    bandwidth: float
    rate: float

    def bound(self, nbytes: float, flops: float) -> float:
        """The microseconds that nothing can be faster than."""
        return max(nbytes / self.bandwidth, flops / self.rate) / 1e6

    def work(self, nbytes: float, flops: float, microseconds: float) -> str:
        """What was done in a second, in the unit of the ceiling that is nearer."""
        if nbytes / self.bandwidth >= flops / self.rate:
            return f"{nbytes / microseconds / 1e6:.2f} TB/s"
        return f"{flops / microseconds / 1e6:.0f} TFLOP/s"


@dataclass(frozen=True)
class Measured:
    """A row's figures, times in microseconds.

    Attributes:
        row: its name.
        runs: the implementation of ours that ran.
        ours: our time on the device.
        graph: whether a graph was replayed for it.
        host: what the host spends on a call of ours.
        peers: the times of PyTorch's ways.
        bound: what nothing can be faster than.
        work: what we did in a second.
        error: the distance of our result from float64's.
        peer_errors: those of PyTorch's ways, where their numbers are comparable.
    """

    row: str
    runs: str
    ours: float
    graph: bool
    host: float
    peers: dict[str, float]
    bound: float
    work: str
    error: float
    peer_errors: dict[str, float]


def check(row: Row) -> dict[str, float]:
    """How far the results of all ways are from float64's.

    Raises:
        ValueError: naming the one that is further away than its numbers explain.
    """
    exact, errors = row.exact(), {}
    for name, calls in {"ours": row.ours, **row.peers}.items():
        if name in row.unlike:
            continue
        found = row.found(calls[0]()).double()
        if found.shape != exact.shape:
            raise ValueError(f"{row.name}: {name} has shape {tuple(found.shape)}, not {tuple(exact.shape)}")
        errors[name] = float((found - exact).norm() / exact.norm())
        if not errors[name] <= CLOSE[row.within]:
            raise ValueError(f"{row.name}: {name} is {errors[name]:.2e} from float64, more than {CLOSE[row.within]}")
    return errors


# Time on the device.


def _elapsed(run: Callable[[], object], times: int, before: Callable[[], object] = lambda: None) -> float:
    """The median of the device's microseconds for *run*, after *before*."""
    found: list[float] = []
    for _ in range(times):
        begin, end = (_CUDA.Event(enable_timing=True) for _ in range(2))
        before()
        begin.record()
        run()
        end.record()
        end.synchronize()
        found.append(1e3 * begin.elapsed_time(end))
    return statistics.median(found)


def _burst(calls: Sequence[Call], count: int) -> None:
    for call in islice(cycle(calls), count):
        call()


def _host(calls: Sequence[Call], count: int) -> float:
    """Microseconds that the host spends on one of *count* calls while the device is behind."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    _burst(calls, count)
    return 1e6 * (time.perf_counter() - start) / count


def timed(calls: Sequence[Call], stream: Any, *, capture: bool = True) -> tuple[float, bool, float]:
    """Microseconds of one call on the device, whether a graph was replayed, and microseconds on the host."""
    _burst(calls, len(calls))
    host = min(_host(calls, 10) for _ in range(3))
    rough = _elapsed(lambda: _burst(calls, len(calls)), 2) / len(calls)
    count = int(max(min(len(calls), 1e5 / rough), min(100, _BURST / rough), 1))
    # cycles, at about two thousand a microsecond, in which the host gets ahead
    cycles = int(min(2500 * host * count, 1e8))
    eager = _elapsed(lambda: _burst(calls, count), _BURSTS, lambda: _CUDA._sleep(cycles)) / count
    if eager >= _SHORT or not capture:
        return eager, False, host
    return _replayed(calls, max(count, len(calls)), stream), True, host


def _replayed(calls: Sequence[Call], count: int, stream: Any) -> float:
    """Microseconds of one of *count* calls that are replayed from a graph; both libraries work on *stream*."""
    side, other = stream
    graph = torch.cuda.CUDAGraph()
    with other, torch.cuda.stream(side):
        _burst(calls, len(calls))  # memory that the capture needs is there then
    torch.cuda.synchronize()
    with other, torch.cuda.graph(graph, stream=side, capture_error_mode="relaxed"):
        kept = [call() for call in islice(cycle(calls), count)]
    graph.replay()
    found = _elapsed(graph.replay, _BURSTS) / count
    del kept
    return found


def ceilings(device: str) -> Ceilings:
    """Measure them."""
    a = torch.empty(1 << 30, dtype=torch.uint8, device=device).random_()
    b = torch.empty_like(a)
    copied = _elapsed(lambda: b.copy_(a), 9)
    x, y = (torch.randn(8192, 8192, device=device, dtype=torch.bfloat16) for _ in range(2))
    multiplied = _elapsed(lambda: torch.matmul(x, y), 9)
    return Ceilings(2 * a.nbytes / copied / 1e6, 2 * 8192**3 / multiplied / 1e6)


def measure(row: Row, found: Ceilings, stream: Any, known: dict[int, float]) -> Measured:
    """Check and time a row; *known* are the times of ways that rows share."""
    errors = check(row)
    # references read values back here and there, which a graph cannot
    ours, graph, host = timed(row.ours, stream, capture=row.runs != "reference")
    for calls in row.peers.values():
        if id(calls) not in known:
            known[id(calls)] = timed(calls, stream)[0]
    return Measured(
        row.name,
        row.runs,
        ours,
        graph,
        host,
        {name: known[id(calls)] for name, calls in row.peers.items()},
        found.bound(row.nbytes, row.flops),
        found.work(row.nbytes, row.flops, ours),
        errors.pop("ours"),
        errors,
    )


HEAD = (
    "| row | runs | ours, us | host, us | PyTorch, us | its way | PyTorch / ours | ours | share of the bound "
    "| goal | reached | error | its error |\n|---|---|---:|---:|---:|---|---:|---:|---:|---|---|---:|---:|"
)


def line(row: Measured) -> str:
    """The row of the table: of PyTorch's ways the fastest counts."""
    theirs = ["", "", "", ""]
    goals = cells(goals_of(row.row, OPS), row.ours, row.bound, min(row.peers.values(), default=None))
    if row.peers:
        name, best = min(row.peers.items(), key=lambda one: one[1])
        error = f"{row.peer_errors[name]:.1e}" if name in row.peer_errors else ""
        theirs = [f"{best:.1f}", name, f"{best / row.ours:.2f}", error]
    return (
        f"| {row.row} | `{row.runs}` | {row.ours:.1f}{'' if row.graph else ' eager'} | {row.host:.1f} | {theirs[0]} "
        f"| {theirs[1]} | {theirs[2]} | {row.work} | {row.bound / row.ours:.2f} | {goals} "
        f"| {row.error:.1e} | {theirs[3]} |"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS), help="the groups of rows to run")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the figures are written too")
    options = parser.parse_args(arguments)
    import cupy as cp

    device = options.device
    index = torch.device(device).index or 0
    torch.cuda.set_device(index)
    torch.manual_seed(0)
    cp.cuda.Device(index).use()
    side = _CUDA.Stream()
    stream = (side, cp.cuda.ExternalStream(side.cuda_stream))
    top = ceilings(device)
    print(
        f"{machine(cp, torch)}\n\nA copy moves {top.bandwidth:.2f} TB/s, a product of 8192x8192 matrices in bfloat16 "
        f"runs at {top.rate:.0f} TFLOP/s.\n\n{HEAD}",
        flush=True,
    )
    done: list[Measured] = []
    for group in options.only:
        with torch.inference_mode():
            rows = list(GROUPS[group](device))
            with ThreadPoolExecutor(initializer=cp.cuda.Device(index).use) as pool:
                list(pool.map(lambda row: row.ours[0](), rows))  # kernels are compiled at their first use, side by side
            known: dict[int, float] = {}
            for row in rows:
                done.append(measure(row, top, stream, known))
                print(line(done[-1]), flush=True)
        del rows, row
        cp.get_default_memory_pool().free_all_blocks()
        torch.cuda.empty_cache()
    if options.json is not None:
        figures = {"machine": machine(cp, torch), "ceilings": asdict(top), "rows": [asdict(one) for one in done]}
        options.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
