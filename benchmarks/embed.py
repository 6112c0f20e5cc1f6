"""Sentences embedded per second with all-MiniLM-L6-v2: ours beside transformers, in one process.

Run ``python benchmarks/embed.py`` with the extras ``dev`` and ``demo`` installed; it prints a
Markdown table. Every library embeds the same sentences in turn, several times, and its least time
counts, because noise only adds. Lengths vary as in ordinary text, from a few to about a hundred tokens.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import time
import warnings
from collections.abc import Callable, Sequence
from datetime import date
from importlib import metadata
from typing import Any

Embed = Callable[[Sequence[str]], Any]


def sentences(count: int) -> list[str]:
    """Texts of one to five facts of the demo's collection; the same at every run."""
    from ferrum_models.demo import read_facts

    facts = [fact.text for fact in read_facts()]
    choose = random.Random(0)
    return [" ".join(choose.choices(facts, k=choose.choice((1, 1, 2, 3, 5)))) for _ in range(count)]


def ours(dtype: str) -> Embed:
    """Our encoder."""
    from ferrum_models import load_encoder
    from ferrum_models.demo import demo_model

    encoder = load_encoder(demo_model(), dtype=dtype)
    return lambda texts: encoder.encode(texts, progress=False).numpy()


def peers(threads: int) -> dict[str, Embed]:
    """transformers, with the texts as they come and sorted by length as we do it."""
    import torch

    from ferrum_models.demo import demo_model

    torch.set_num_threads(threads)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other people's libraries
        from transformers import AutoModel, AutoTokenizer

        folder = demo_model()
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModel.from_pretrained(folder, local_files_only=True).eval()

    def embed(texts: Sequence[str]) -> Any:
        found = []
        with torch.no_grad():
            for start in range(0, len(texts), 32):
                batch = tokenizer(
                    list(texts[start : start + 32]),
                    padding=True,
                    truncation=True,
                    max_length=256,
                    return_tensors="pt",
                )
                last = model(**batch).last_hidden_state
                mask = batch["attention_mask"].unsqueeze(-1).float()
                mean = (last * mask).sum(1) / mask.sum(1)
                found.append(torch.nn.functional.normalize(mean, dim=1))
        return torch.cat(found).numpy()

    def embed_sorted(texts: Sequence[str]) -> Any:
        lengths = [len(ids) for ids in tokenizer(list(texts))["input_ids"]]
        order = sorted(range(len(texts)), key=lambda i: -lengths[i])
        found = embed([texts[i] for i in order])
        back = sorted(range(len(texts)), key=lambda i: order[i])
        return found[back]

    return {"transformers, as they come": embed, "transformers, sorted by length": embed_sorted}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=256, help="how many sentences")
    parser.add_argument("--rounds", type=int, default=5, help="how often each library runs")
    parser.add_argument("--threads", type=int, default=2, help="how many threads each may use")
    options = parser.parse_args()
    # read by NumPy's BLAS when it is loaded, which is why nothing is imported before
    os.environ["OPENBLAS_NUM_THREADS"] = str(options.threads)

    texts = sentences(options.count)
    libraries: dict[str, Embed] = {
        "ferrum, float32": ours("f32"),
        "ferrum, bfloat16": ours("bf16"),
        **peers(options.threads),
    }
    exact = libraries["transformers, as they come"](texts)
    distance = {name: abs(embed(texts) - exact).max() for name, embed in libraries.items()}
    seconds: dict[str, list[float]] = {name: [] for name in libraries}
    for _ in range(options.rounds):
        for name, embed in libraries.items():
            begin = time.perf_counter()
            embed(texts)
            seconds[name].append(time.perf_counter() - begin)

    versions = ", ".join(f"{n} {metadata.version(n)}" for n in ("numpy", "torch", "transformers"))
    print(
        f"{options.count} sentences, {options.threads} threads, least of {options.rounds} rounds; "
        f"{date.today()}, Python {platform.python_version()}, {versions}\n"
    )
    base = min(seconds["transformers, sorted by length"])
    print("| library | seconds | sentences/s | time / transformers sorted | furthest element |")
    print("|---|---:|---:|---:|---:|")
    for name, times in seconds.items():
        least = min(times)
        print(
            f"| {name} | {least:.2f} | {options.count / least:.0f} | {least / base:.2f} | {float(distance[name]):.1e} |"
        )


if __name__ == "__main__":
    main()
