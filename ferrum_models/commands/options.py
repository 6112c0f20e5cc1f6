"""Options that commands share, and what they mean."""

from __future__ import annotations

import argparse
import json
import secrets
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ferrum_array as fa
from ferrum_array import Device, Dtype
from ferrum_models.adapters import load_adapters
from ferrum_models.causal import CausalLM
from ferrum_models.commands.interrupts import Interrupts
from ferrum_models.generation import Draft, Generated, PromptCache, Sampling
from ferrum_models.loading import load
from ferrum_models.tokenizing import Tokenizer

__all__ = [
    "add_cache",
    "add_choice",
    "add_kv_dtype",
    "add_model",
    "add_place",
    "check_dtype",
    "drafting",
    "dtype",
    "kept",
    "kv_dtype",
    "loaded",
    "numbers",
    "positive",
    "rules",
    "show",
    "statistics",
    "stop_ids",
    "template_entries",
]


def add_place(command: argparse.ArgumentParser) -> None:
    """Where a model is computed, and in what."""
    command.add_argument("--device", type=_device, metavar="D", help="cpu, cuda:N, mlx, mlx:cpu or mlx:gpu")
    command.add_argument("--dtype", type=dtype, metavar="T", help="f32, f16, bf16 or f64; as stored if absent")


def add_model(command: argparse.ArgumentParser) -> None:
    """The model, its adapters, and where it is computed."""
    command.add_argument("--model", type=Path, required=True, metavar="DIR", help="a model folder, or a GGUF file")
    command.add_argument(
        "--adapter-path", type=Path, nargs="+", default=(), metavar="DIR", help="LoRA adapters in PEFT's layout"
    )
    add_place(command)


def add_choice(command: argparse.ArgumentParser) -> None:
    """How tokens are chosen, how many, and where they end."""
    group = command.add_argument_group("how tokens are chosen (generation_config.json of the model, if absent)")
    group.add_argument("--temp", type=float, metavar="T", help="temperature; 0 takes the likeliest token")
    group.add_argument("--top-p", type=float, metavar="P", help="only the likeliest with this share of probability")
    group.add_argument("--min-p", type=float, metavar="P", help="only those this likely, relative to the likeliest")
    group.add_argument("--top-k", type=int, metavar="K", help="only the K likeliest; 0 for all")
    group.add_argument("--seed", type=int, metavar="N", help="the same seed gives the same text; random if absent")
    command.add_argument(
        "--max-tokens", "-m", type=numbers, default=256, metavar="N", help="the most tokens of an answer (256)"
    )
    command.add_argument(
        "--extra-eos-token", nargs="+", default=(), metavar="TOKEN", help="more tokens that end an answer"
    )
    command.add_argument("--stop", nargs="+", default=(), metavar="TEXT", help="texts that end an answer")


def add_cache(command: argparse.ArgumentParser) -> None:
    """What is remembered, and a model that drafts."""
    command.add_argument(
        "--max-kv-size", type=positive, metavar="N", help="the most tokens of prompt and answer that are remembered"
    )
    add_kv_dtype(command)
    command.add_argument("--draft-model", type=Path, metavar="DIR", help="a cheaper model that proposes tokens")
    command.add_argument(
        "--num-draft-tokens", type=positive, default=3, metavar="N", help="how many it proposes at a time (3)"
    )


def add_kv_dtype(command: argparse.ArgumentParser) -> None:
    """What keys and values are kept as."""
    names = command.add_mutually_exclusive_group()
    names.add_argument("--kv-bits", type=int, choices=(8,), help="8 keeps keys and values in int8")
    names.add_argument("--kv-dtype", choices=("int8", "fp8_e4m3"), help="keep keys and values so")


def kv_dtype(options: argparse.Namespace) -> str | None:
    """What keys and values are kept as; None for the dtype of the model."""
    wanted: str | None = options.kv_dtype
    return "int8" if options.kv_bits == 8 else wanted


def positive(text: str) -> int:
    """An integer of at least 1."""
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, got {text!r}")
    return int(text)


def numbers(text: str) -> int:
    """An integer of at least 0."""
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"must be an integer of at least 0, got {text!r}")
    return int(text)


def _device(text: str) -> Device:
    try:
        return Device(text)
    except (ValueError, ImportError) as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def dtype(text: str) -> Dtype:
    """A real floating dtype by name."""
    try:
        found = Dtype(text)
    except TypeError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not found.is_floating:
        raise argparse.ArgumentTypeError(f"a model is computed in floating-point, not in {found}")
    return found


def check_dtype(options: argparse.Namespace) -> None:
    """Check that the device has the dtype.

    Raises:
        ValueError: if it does not.
    """
    device = options.device or fa.get_default_device()
    if options.dtype is not None and not device.supports(options.dtype):
        raise ValueError(f"device {device} has no {options.dtype}; choose another --dtype")


def loaded(options: argparse.Namespace) -> tuple[CausalLM, Tokenizer]:
    """The model and the tokenizer that the options name.

    Raises:
        FileNotFoundError: also where there is no tokenizer. ValueError: as ``load`` and ``load_adapters``.
    """
    check_dtype(options)
    model, tokenizer = load(options.model, options.device, options.dtype)
    if tokenizer is None:
        raise FileNotFoundError(f"{options.model} has no tokenizer.json, which text needs")
    return load_adapters(model, options.adapter_path), tokenizer


def drafting(options: argparse.Namespace) -> Draft | None:
    """The model that drafts, if one is named.

    Raises:
        FileNotFoundError, ValueError: as ``load``.
    """
    if options.draft_model is None:
        return None
    return Draft(load(options.draft_model, options.device, options.dtype)[0], options.num_draft_tokens)


def rules(options: argparse.Namespace) -> Sampling:
    """How tokens are chosen: what the options say, and the model's folder where they say nothing.

    Raises:
        ValueError: for numbers out of range.
    """
    found = Sampling.load(options.model)
    given: dict[str, Any] = {
        "temperature": options.temp,
        "top_p": options.top_p,
        "min_p": options.min_p,
        "top_k": options.top_k,
        "seed": secrets.randbelow(1 << 32) if options.seed is None else options.seed,
    }
    changes = {name: value for name, value in given.items() if value is not None}
    if changes.get("top_k") == 0:
        changes["top_k"] = None
    return replace(found, **changes)


def kept(options: argparse.Namespace, model: CausalLM) -> PromptCache:
    """What the model remembers of prompts, nothing yet."""
    limit = options.max_kv_size
    if limit is not None:
        limit = min(limit, model.config.max_position_embeddings)
    return PromptCache(model, limit=limit, dtype=kv_dtype(options))


def stop_ids(options: argparse.Namespace, model: CausalLM, tokenizer: Tokenizer) -> frozenset[int]:
    """The ids that end an answer.

    Raises:
        ValueError: if an extra one is no token.
    """
    extra = (tokenizer.token_id(one) for one in options.extra_eos_token)
    return frozenset((*model.config.eos_token_ids, *tokenizer.eos_ids, *extra))


def show(stream: Iterator[Generated], pieces: list[Generated], interrupts: Interrupts) -> None:
    """Print the text of *stream* as it comes, and collect its *pieces*, until it ends or there is an interrupt."""
    for piece in stream:
        interrupts.wait()  # a token takes no time, so the answer ends between two
        print(piece.text, end="", flush=True)
        pieces.append(piece)
        if interrupts.asked:
            return


def statistics(pieces: Sequence[Generated], sampling: Sampling, *, drafts: bool) -> None:
    """Say on standard error how fast it went."""
    if not pieces:
        return
    last = pieces[-1]
    known = f", {last.known_tokens} of them known" if last.known_tokens else ""
    lines = [
        f"Prompt: {last.prompt_tokens} tokens{known}, {last.prompt_tps:.1f} tokens/s",
        f"Generation: {last.generation_tokens} tokens, {last.generation_tps:.1f} tokens/s",
    ]
    if drafts:
        lines.append(f"Drafted: {sum(one.drafted for one in pieces)} of {len(pieces)} tokens")
    if not sampling.greedy:
        lines.append(f"Seed: {sampling.seed}")
    lines.append(f"Peak memory: {last.peak_memory / 1e9:.3f} GB")
    print(*lines, sep="\n", file=sys.stderr)


def template_entries(text: str) -> dict[str, Any]:
    """The entries that ``--chat-template-config`` gives to the template."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"is not valid JSON: {error}") from None
    if not isinstance(found, dict) or "messages" in found:
        raise argparse.ArgumentTypeError(f"must be a JSON object without messages, got {text}")
    return found
