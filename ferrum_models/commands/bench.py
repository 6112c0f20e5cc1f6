"""``ferrum bench``: how fast a model reads and writes."""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import ferrum_array as fa
from ferrum_models.causal import CausalLM
from ferrum_models.commands import options as shared
from ferrum_models.commands import roofline
from ferrum_models.files import read_json
from ferrum_models.generation import Batch
from ferrum_models.generation.text import peak_memory
from ferrum_models.loading import load, random_model

__all__ = ["add"]


class Trial(NamedTuple):
    """What one trial took: seconds until the first token, and for each that followed."""

    first: float
    rest: float


def add(commands: Any) -> None:
    """Add the command to the parser's *commands*."""
    command: argparse.ArgumentParser = commands.add_parser("bench", help="measure how fast a model reads and writes")
    command.set_defaults(command=_bench)
    which = command.add_mutually_exclusive_group(required=True)
    which.add_argument("--model", type=Path, metavar="DIR", help="a model folder")
    which.add_argument("--random", type=Path, metavar="CONFIG.json", help="a config, for a model of random weights")
    shared.add_place(command)
    command.add_argument(
        "--prompt-tokens", "-p", type=shared.positive, default=512, metavar="N", help="tokens of a prompt (512)"
    )
    command.add_argument(
        "--generation-tokens", "-g", type=shared.positive, default=64, metavar="N", help="tokens that follow (64)"
    )
    command.add_argument("--batch-size", "-b", type=shared.positive, default=1, metavar="N", help="texts at once (1)")
    command.add_argument("--num-trials", "-n", type=shared.positive, default=3, metavar="N", help="trials (3)")
    shared.add_kv_dtype(command)
    command.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw the medians under the machine's roof, as .png, .svg or .pdf"
    )


def _bench(options: argparse.Namespace) -> None:
    shared.check_dtype(options)
    if options.plot is not None:
        roofline.check(options.plot)
    if options.random is not None:
        name = str(options.random)
        model = random_model(read_json(options.random), device=options.device, dtype=options.dtype)
    else:
        name = str(options.model)
        model = load(options.model, options.device, options.dtype)[0]
    needed, positions = options.prompt_tokens + options.generation_tokens, model.config.max_position_embeddings
    if needed > positions + 1:  # the last token is not read
        raise ValueError(f"{needed} tokens are too many for a model of {positions} positions; ask for fewer")
    print(
        f"{name}: {model.size:,} parameters, {model.nbytes / 1e6:.2f} MB, on {model.device} in {model.dtype}\n"
        f"{options.prompt_tokens} tokens of prompt, {options.generation_tokens} generated, "
        f"{options.batch_size} at once\n"
    )
    print(f"{'':8}{'prefill':>14}{'decode':>14}{'first token':>14}")
    _trial(model, options, min(2, options.generation_tokens))  # what is compiled at first use is not measured
    trials = []
    for number in range(options.num_trials):
        trials.append(_trial(model, options, options.generation_tokens))
        _show(f"trial {number + 1}", trials[-1], options)
    middle = Trial(median(one.first for one in trials), median(one.rest for one in trials))
    if len(trials) > 1:
        _show("median", middle, options)
    print(f"\npeak memory of the process: {peak_memory() / 1e9:.3f} GB")
    if options.plot is not None:
        _plot(options.plot, name, model, middle, options)


def _trial(model: CausalLM, options: argparse.Namespace, tokens: int) -> Trial:
    shape = (options.batch_size, options.prompt_tokens)
    ids = fa.random.default_rng(0).integers(0, model.config.vocab_size, shape, device="cpu").tolist()
    start = perf_counter()
    batch = Batch(model, ids, max_new_tokens=tokens, stop_ids=(), kv_dtype=shared.kv_dtype(options))
    batch.step()
    first = perf_counter()
    while batch.rows:
        batch.step()
    return Trial(first - start, (perf_counter() - first) / max(tokens - 1, 1))


def _show(name: str, trial: Trial, options: argparse.Namespace) -> None:
    prefill = options.batch_size * options.prompt_tokens / trial.first
    decode = f"{options.batch_size / trial.rest:.1f} t/s" if options.generation_tokens > 1 else "-"
    print(f"{name:8}{f'{prefill:.1f} t/s':>14}{decode:>14}{f'{trial.first * 1000:.1f} ms':>14}", flush=True)


def _plot(path: Path, name: str, model: CausalLM, middle: Trial, options: argparse.Namespace) -> None:
    points = []
    for what, tokens, seconds in (
        ("prefill", options.batch_size * options.prompt_tokens, middle.first),
        ("decode", options.batch_size, middle.rest),
    ):
        operations, read = roofline.work(model, tokens)
        if seconds > 0:
            points.append(roofline.Point(what, operations / read, operations / seconds))
    title = f"{name} on {model.device} in {model.dtype}, {options.batch_size} at once"
    roofline.draw(path, title, roofline.measure(model.device, model.dtype), points)
    print(f"drawn: {path}")
