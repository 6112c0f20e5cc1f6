"""Products of square matrices of 16-bit floats on the CPU, beside float32, NumPy's own and PyTorch's.

    python benchmarks/half_matmul.py [--threads 1]

Everything runs in one process, rows and libraries interleaved; the least time counts. The last columns say how much
longer than in float32 a product of ours takes. The table is Markdown.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence

SIZES = (128, 256, 512, 1024)


def least(calls: Sequence[Callable[[], object]], seconds: float) -> list[float]:
    """The least time of each call, over interleaved rounds for about *seconds*."""
    best = [float("inf")] * len(calls)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for i, call in enumerate(calls):
            start = time.perf_counter()
            call()
            best[i] = min(best[i], time.perf_counter() - start)
    return best


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=1, help="threads of BLAS and PyTorch (default: 1)")
    threads = parser.parse_args().threads
    os.environ["OPENBLAS_NUM_THREADS"] = str(threads)  # read when NumPy is imported

    import numpy as np
    import torch
    from overhead import machine

    import ferrum_array as fa

    torch.set_num_threads(threads)
    print(f"{machine()}, {threads} thread(s)\n")
    print(
        "| N | ours f32, ms | ours f16 | ours bf16 | NumPy f16 | PyTorch f16 | PyTorch bf16 | f16 / f32 | bf16 / f32 |"
    )
    print("|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    for n in SIZES:
        start = np.random.default_rng(0).standard_normal((n, n)).astype(np.float32)
        x = fa.asarray(start)
        operands = [x, x.astype("f16"), x.astype("bf16")]
        operands += [torch.from_numpy(start).half(), torch.from_numpy(start).bfloat16()]
        calls: list[Callable[[], object]] = [lambda a=a: a @ a for a in operands]  # type: ignore[misc]  # a default binds
        single, half, brain, torch_half, torch_brain = (1e3 * t for t in least(calls, 4.0))
        narrow = start.astype(np.float16)
        (own,) = (1e3 * t for t in least([lambda a=narrow: a @ a], 0.5))  # type: ignore[misc]  # a default binds
        cells = [single, half, brain, own, torch_half, torch_brain, half / single, brain / single]
        print(f"| {n} | " + " | ".join(f"{c:.2f}" for c in cells) + " |", flush=True)


if __name__ == "__main__":
    main()
