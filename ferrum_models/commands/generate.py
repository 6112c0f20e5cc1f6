"""``ferrum generate``: a prompt in, text out as it comes."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ferrum_models.causal import CausalLM
from ferrum_models.commands import options as shared
from ferrum_models.generation import Generated, PromptCache, load_prompt_cache, save_prompt_cache, stream_generate
from ferrum_models.tokenizing import Tokenizer

__all__ = ["add", "add_template", "truth"]


def add(commands: Any) -> None:
    """Add the command to the parser's *commands*."""
    command: argparse.ArgumentParser = commands.add_parser("generate", help="go on with a prompt, or answer it")
    command.set_defaults(command=_generate)
    shared.add_model(command)
    command.add_argument("--prompt", "-p", required=True, metavar="TEXT", help="the prompt; - reads standard input")
    add_template(command)
    shared.add_choice(command)
    shared.add_cache(command)
    command.add_argument(
        "--prompt-cache-file",
        type=Path,
        metavar="FILE",
        help="FILE.safetensors: what it has of the prompt is not read again; written afterwards",
    )
    command.add_argument(
        "--verbose",
        type=truth,
        nargs="?",
        const=True,
        default=True,
        metavar="BOOL",
        help="false leaves out the statistics on standard error",
    )


def add_template(command: argparse.ArgumentParser) -> None:
    """Options of the chat template."""
    command.add_argument("--system-prompt", metavar="TEXT", help="the system's message")
    command.add_argument("--ignore-chat-template", action="store_true", help="take the text as it is")
    command.add_argument(
        "--chat-template-config",
        type=shared.template_entries,
        default={},
        metavar="JSON",
        help="""entries for the chat template, such as '{"enable_thinking": false}'""",
    )


def truth(text: str) -> bool:
    """A word for yes or no."""
    words = {"true": True, "yes": True, "1": True, "t": True, "false": False, "no": False, "0": False, "f": False}
    if text.lower() not in words:
        raise argparse.ArgumentTypeError(f"must be true or false, got {text!r}")
    return words[text.lower()]


def _generate(options: argparse.Namespace) -> None:
    sampling = shared.rules(options)
    memory: Path | None = options.prompt_cache_file
    if memory is not None and not memory.parent.is_dir():
        raise ValueError(f"--prompt-cache-file {memory}: there is no folder {memory.parent}; make it first")
    text = sys.stdin.read() if options.prompt == "-" else options.prompt
    model, tokenizer = shared.loaded(options)
    prompt = _prompt(options, tokenizer, text)
    kept = _kept(options, model)
    draft = shared.drafting(options)
    stream = stream_generate(
        model,
        tokenizer,
        prompt,
        max_tokens=options.max_tokens,
        sampling=sampling,
        stop=options.stop,
        stop_ids=shared.stop_ids(options, model, tokenizer),
        prompt_cache=kept,
        draft=draft,
    )
    pieces: list[Generated] = []
    try:
        shared.show(stream, pieces, options.interrupts)
    except KeyboardInterrupt:
        options.interrupts.asked = True
    print(flush=True)
    if options.verbose:
        shared.statistics(pieces, sampling, drafts=draft is not None)
    if options.prompt_cache_file is not None and kept.ids:
        save_prompt_cache(options.prompt_cache_file, kept)
    if options.interrupts.asked:
        raise KeyboardInterrupt


def _prompt(options: argparse.Namespace, tokenizer: Tokenizer, text: str) -> list[int]:
    if tokenizer.chat_template is None or options.ignore_chat_template:
        if options.system_prompt is not None:
            why = "--ignore-chat-template excludes it" if options.ignore_chat_template else f"{options.model} has none"
            raise ValueError(f"--system-prompt needs a chat template, but {why}")
        return tokenizer.encode(text)
    messages = [{"role": "user", "content": text}]
    if options.system_prompt is not None:
        messages.insert(0, {"role": "system", "content": options.system_prompt})
    return tokenizer.apply_chat_template(messages, **options.chat_template_config)


def _kept(options: argparse.Namespace, model: CausalLM) -> PromptCache:
    path: Path | None = options.prompt_cache_file
    fresh = shared.kept(options, model)
    if path is None or not path.exists():
        return fresh
    found = load_prompt_cache(path, model, limit=fresh.limit)
    assert found.cache is not None, "files hold at least one token"
    wanted = shared.kv_dtype(options)
    if wanted is not None and found.cache.room.kept != wanted:
        said = "--kv-bits 8" if options.kv_bits else f"--kv-dtype {wanted}"
        raise ValueError(f"{said}, but {path} holds {found.cache.room.kept}; leave one of them out")
    return found
