"""Matrix products on CUDA beside PyTorch's, and what one small call costs beside CuPy's and PyTorch's.

    python benchmarks/matmul_cuda.py [--device cuda:0] [--calls 20] [--rounds 7]

Both libraries run in this one process on the same random operands (zeros would run faster), turn about, and the
median of the rounds counts. The products' rates are from CUDA events around a run of calls; the cost of a call is
what the host spends, with the device kept busy but never full. The tables are Markdown.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import math
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import ferrum_array as fa

Call = Callable[[], object]

#: name -> shapes of the operands; a quote stands for an operand that is a transposed view
PRODUCTS: dict[str, tuple[tuple[int, ...], tuple[int, ...], bool]] = {
    "[8192, 8192] @ [8192, 8192]": ((8192, 8192), (8192, 8192), False),
    "[4096, 4096] @ [4096, 4096]": ((4096, 4096), (4096, 4096), False),
    "[4096, 4096] @ [4096, 4096]'": ((4096, 4096), (4096, 4096), True),
    "[64, 1024, 1024] @ [64, 1024, 1024]": ((64, 1024, 1024), (64, 1024, 1024), False),
    "[256, 512, 64] @ [256, 512, 64]'": ((256, 512, 64), (256, 512, 64), True),
    "[8, 2048, 4096] @ [4096, 4096]": ((8, 2048, 4096), (4096, 4096), False),
    "[8, 1, 512, 512] @ [8, 4, 512, 512]": ((8, 1, 512, 512), (8, 4, 512, 512), False),
    "[16, 2048, 2048] @ [2048, 2048]'": ((16, 2048, 2048), (2048, 2048), True),
}
DTYPES = ("bfloat16", "float16", "float32")


def milliseconds(cp: Any, call: Call, calls: int) -> float:
    """The time on the device of one of *calls* calls."""
    start, end = cp.cuda.Event(), cp.cuda.Event()
    start.record()
    for _ in range(calls):
        call()
    end.record()
    end.synchronize()
    return float(cp.cuda.get_elapsed_time(start, end)) / calls


def medians(measure: Callable[[Call], float], compared: Sequence[Call], rounds: int) -> list[float]:
    """The median of *measure* for each call, measured turn about after a round that does not count."""
    samples: list[list[float]] = [[] for _ in compared]
    for round_ in range(rounds + 1):
        for call, taken in zip(compared, samples, strict=True):
            value = measure(call)
            if round_:
                taken.append(value)
    return [statistics.median(taken) for taken in samples]


def product_table(cp: Any, torch: Any, device: str, calls: int, rounds: int) -> str:
    """TFLOP/s for each product and dtype, ours over PyTorch's, and how far the results lie apart."""
    lines = [
        "| product | dtype | Ferrum TFLOP/s | PyTorch TFLOP/s | ratio | difference |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for name, (first, second, turned) in PRODUCTS.items():
        for dtype in DTYPES:
            p, q = (torch.randn(*shape, device=device, dtype=getattr(torch, dtype)) for shape in (first, second))
            q = q.mT if turned else q
            x, y = fa.from_dlpack(p), fa.from_dlpack(q)
            theirs = torch.matmul(p, q)
            ours = torch.from_dlpack(fa.matmul(x, y))
            apart = float((ours.double() - theirs.double()).norm() / theirs.double().norm())
            compared: list[Call] = [lambda x=x, y=y: fa.matmul(x, y), lambda p=p, q=q: torch.matmul(p, q)]  # type: ignore[misc]  # bound now
            times = medians(lambda call: milliseconds(cp, call, calls), compared, rounds)
            work = 2 * math.prod(theirs.shape) * first[-1] / 1e9
            rates = [work / one for one in times]
            lines.append(
                f"| `{name}` | {dtype} | {rates[0]:.0f} | {rates[1]:.0f} | {rates[0] / rates[1]:.2f} | {apart:.0e} |"
            )
    p = torch.randint(-128, 128, (4096, 4096), device=device, dtype=torch.int8)
    x = fa.from_dlpack(p)
    times = medians(
        lambda call: milliseconds(cp, call, calls), [lambda: fa.matmul(x, x), lambda: torch._int_mm(p, p)], rounds
    )
    rates = [2 * 4096**3 / one / 1e9 for one in times]
    lines.append(
        f"| `[4096, 4096] @ [4096, 4096]` | int8 | {rates[0]:.0f} | {rates[1]:.0f} (int32 result) "
        f"| {rates[0] / rates[1]:.2f} | |"
    )
    return "\n".join(lines)


def microseconds(cp: Any, call: Call, calls: int = 300) -> float:
    """What the host spends on one of *calls* calls; the device is given time to catch up before."""
    cp.cuda.Device().synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls * 1e6


def overhead_table(cp: Any, torch: Any, device: str, rounds: int) -> str:
    """Microseconds on the host for one small call, ours less CuPy's beside both."""
    x = fa.ones((2, 2), device=device)
    a, p = x._data, torch.ones(2, 2, device=device)
    rows: dict[str, tuple[Call, Call, Call]] = {
        "a + b": (lambda: x + x, lambda: a + a, lambda: p + p),
        "a * 2.0": (lambda: x * 2.0, lambda: a * 2.0, lambda: p * 2.0),
        "a < b": (lambda: x < x, lambda: a < a, lambda: p < p),
        "a / b": (lambda: x / x, lambda: a / a, lambda: p / p),
        "exp(a)": (lambda: fa.exp(x), lambda: cp.exp(a), lambda: torch.exp(p)),
        "sum(a)": (lambda: fa.sum(x), lambda: cp.sum(a), lambda: torch.sum(p)),
        "a @ b": (lambda: x @ x, lambda: a @ a, lambda: p @ p),
        "a[0]": (lambda: x[0], lambda: a[0], lambda: p[0]),
        "reshape(a, (4,))": (lambda: fa.reshape(x, (4,)), lambda: cp.reshape(a, (4,)), lambda: torch.reshape(p, (4,))),
        "where(a < b, a, b)": (
            lambda: fa.where(x < x, x, x), lambda: cp.where(a < a, a, a), lambda: torch.where(p < p, p, p),
        ),
    }  # fmt: skip
    lines = ["| microseconds | CuPy | PyTorch | Ferrum | Ferrum - CuPy |", "|---|---:|---:|---:|---:|"]
    for name, calls in rows.items():
        ours, cupys, torchs = medians(lambda call: microseconds(cp, call), calls, rounds)
        lines.append(f"| `{name}` | {cupys:.2f} | {torchs:.2f} | {ours:.2f} | {ours - cupys:+.2f} |")
    return "\n".join(lines)


def machine(cp: Any, torch: Any) -> str:
    """The date, the device and the versions that the figures belong to."""
    properties = cp.cuda.runtime.getDeviceProperties(0)
    runtime, driver = cp.cuda.runtime.runtimeGetVersion(), cp.cuda.runtime.driverGetVersion()
    return (
        f"{datetime.date.today().isoformat()}, {properties['name'].decode()}, CUDA driver interface {driver}, runtime "
        f"{runtime}, Python {platform.python_version()}, CuPy {cp.__version__}, PyTorch {torch.__version__}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda:0", help="where to compute (default: cuda:0)")
    parser.add_argument("--calls", type=int, default=20, help="products timed together (default: 20)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds (default: 7)")
    chosen = parser.parse_args(arguments)
    cp, torch = importlib.import_module("cupy"), importlib.import_module("torch")
    print(machine(cp, torch), end="\n\n", flush=True)
    print(product_table(cp, torch, chosen.device, chosen.calls, chosen.rounds), end="\n\n", flush=True)
    print(overhead_table(cp, torch, chosen.device, chosen.rounds))


if __name__ == "__main__":
    main()
