"""Ops on the CPU beside PyTorch's eager functions: time, ratios and peaks of memory.

    python -m benchmarks.ops_cpu [--threads 1 2] [--seconds 2] [--row norm ...] [--fresh]

Everything runs in one process on the same numbers. The calls of a row are taken in turns, in bursts, because the idle
threads of a library spin for a while; the least time counts, because noise only adds. Where PyTorch has several ways,
each is timed and the fastest counts. Before a row is timed, the result of every way is compared with that of float64,
and a row whose results are further away than their dtype explains is an error. The tables are Markdown.

Results lie in memory that the process freed before and still has. With --fresh it gives that back to the system before
each call, outside the time, so that every call must ask for memory: as the first calls of a program, or one that frees
much at a time.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.cpu_rows import GROUPS, Call, check
from benchmarks.overhead import machine
from ferrum_ops import set_threads


def trim() -> None:
    """Give freed memory back to the system, where the C library can."""
    function = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if function is not None:
        function(0)


def least(calls: Sequence[Call], seconds: float, *, fresh: bool) -> list[float]:
    """The least time of each call in turns of bursts, for about *seconds* each; with *fresh*, each in new memory."""
    best = [float("inf")] * len(calls)
    end = time.perf_counter() + seconds * len(calls)
    while time.perf_counter() < end:
        for i, call in enumerate(calls):
            call()  # and the idle threads of the one before go to sleep
            until = time.perf_counter() + 0.05
            while True:
                if fresh:
                    trim()
                start = time.perf_counter()
                call()
                now = time.perf_counter()
                best[i] = min(best[i], now - start)
                if now > until:
                    break
    return best


def peak(call: Call) -> float | None:
    """MiB by which one call raises the most that the process holds; None where the system does not say."""
    marks = Path("/proc/self/clear_refs")
    if not marks.exists():
        return None

    def status(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(field)).split()[1])

    trim()  # else memory that was used before would be used again, unseen
    marks.write_text("5")  # forgets the peak so far
    before = status("VmRSS")
    held = call()
    found = (status("VmHWM") - before) / 1024
    del held
    return max(0.0, found)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=2.0, help="how long each way of a row is timed")
    parser.add_argument("--row", nargs="+", choices=GROUPS, default=list(GROUPS), help="the groups of rows to run")
    parser.add_argument("--fresh", action="store_true", help="every call in memory that is new to the process")
    options = parser.parse_args()
    print(f"{machine()}{', fresh memory' if options.fresh else ''}\n")
    missed: list[str] = []
    print("| row | runs | threads | ours, ms | PyTorch, ms | its way | ours / PyTorch | target | ours, MiB | its MiB |")
    print("|---|---|---:|---:|---:|---|---:|---:|---:|---:|")
    with torch.inference_mode():
        for group in options.row:
            for row in GROUPS[group]():
                check(row)
                for count in options.threads:
                    set_threads(count)
                    torch.set_num_threads(count)
                    mine, *others = least([row.ours, *row.peers.values()], options.seconds, fresh=options.fresh)
                    best, name = min(zip(others, row.peers, strict=True))
                    memory = [peak(row.ours), peak(row.peers[name])]
                    shown = ["-" if m is None else f"{m:.1f}" for m in memory]
                    ratio = mine / best
                    if ratio > row.target:
                        missed.append(f"{row.name}, {count} threads: {ratio:.2f} instead of {row.target}")
                    print(
                        f"| {row.name} | `{row.runs}` | {count} | {1e3 * mine:.3f} | {1e3 * best:.3f} | {name} "
                        f"| {ratio:.2f} | {row.target} | {shown[0]} | {shown[1]} |",
                        flush=True,
                    )
    print("\n" + ("All targets are met." if not missed else "Missed:\n\n" + "\n".join(f"- {m}" for m in missed)))


if __name__ == "__main__":
    if os.environ.get("OMP_WAIT_POLICY") is None:  # PyTorch's idle threads would take our cores
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks.ops_cpu", *sys.argv[1:]])
    main()
