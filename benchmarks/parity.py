"""How far every family of models is from transformers: the largest difference of logits, relative to the largest logit.

    python -m benchmarks.parity [--device cpu mlx:cpu] [--family llama ...]

Models are tiny and random, made and saved by transformers in float32 and loaded by us from the same files. Without a
cache all tokens are computed at once. With one, three sequences of unequal lengths come in pieces and then token by
token. The last column says whether 24 tokens chosen greedily are the same. The table is Markdown.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import ferrum_array as fa
from benchmarks.overhead import machine
from ferrum_models import CausalLM, generate_ids
from tests.models import parity
from tests.models.test_families import FAMILIES

Array = np.ndarray[Any, Any]
KINDS = ("contiguous", "paged")
LENGTHS, PIECE = (17, 9, 13), 4


def cached(model: CausalLM, ids: Array, kind: Any) -> Array:
    """The logits of rows of unequal lengths by way of a cache; those beyond a length are 0."""
    cache = model.make_cache(len(ids), max(LENGTHS) + 3, kind=kind, chunk=PIECE, block_size=3)
    done, found = [0] * len(ids), []
    while tuple(done) != LENGTHS:
        tokens = [min(PIECE if max(done) < 8 else 1, n - d) for n, d in zip(LENGTHS, done, strict=True)]
        rows = np.zeros((len(ids), max(tokens)), ids.dtype)
        for row, (d, n) in enumerate(zip(done, tokens, strict=True)):
            rows[row, :n] = ids[row, d : d + n]
        logits = model(fa.asarray(rows, device=model.device), lengths=tokens, cache=cache).numpy()
        found.append((tuple(done), tokens, logits))
        done = [d + n for d, n in zip(done, tokens, strict=True)]
    result = np.zeros((*ids.shape, found[0][2].shape[-1]), np.float32)
    for starts, tokens, logits in found:
        for row, (d, n) in enumerate(zip(starts, tokens, strict=True)):
            result[row, d : d + n] = logits[row, :n]
    return result


def row(name: str, devices: Sequence[fa.Device]) -> str:
    """One line of the table."""
    config, entries = FAMILIES[name]
    ids = np.random.default_rng(0).integers(0, parity.TINY["vocab_size"], (3, max(LENGTHS)))
    inside = np.arange(max(LENGTHS)) < np.asarray(LENGTHS)[:, None]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        peer = parity.make(config, folder, **entries)
        expected = parity.logits_of(peer, ids)
        wanted = parity.greedy_of(peer, ids[0].tolist(), 24)
        cells, agree = [], True
        for device in devices:
            model = parity.ours(folder, device)
            found = [model(fa.asarray(ids, device=device)).numpy()]
            found += [np.where(inside[..., None], cached(model, ids, kind), expected) for kind in KINDS]
            cells += [f"{np.max(np.abs(x - expected)) / np.max(np.abs(expected)):.1e}" for x in found]
            agree &= list(generate_ids(model, ids[0].tolist(), max_new_tokens=24, stop_ids=())) == wanted
    return f"| {name} | {' | '.join(cells)} | {'the same' if agree else 'DIFFERENT'} |"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", nargs="+", help="which storages; all that are there otherwise")
    parser.add_argument("--family", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    options = parser.parse_args()
    devices = [fa.Device(one) for one in options.device] if options.device else list(fa.devices())
    import transformers

    print(f"{machine()}, transformers {transformers.__version__}\n")
    columns = [f"{device} {kind}" for device in devices for kind in ("no cache", *KINDS)]
    print(f"| model | {' | '.join(columns)} | tokens |")
    print("|---|" + "---:|" * len(columns) + "---|")
    for name in options.family:
        print(row(name, devices), flush=True)


if __name__ == "__main__":
    main()
