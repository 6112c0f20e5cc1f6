"""``ferrum chat``: a conversation, of which only what is new is read at every turn."""

from __future__ import annotations

import argparse
import sys
from contextlib import suppress
from importlib import import_module
from typing import Any

from ferrum_models.causal import CausalLM
from ferrum_models.commands import options as shared
from ferrum_models.commands.generate import add_template, truth
from ferrum_models.generation import Draft, Generated, Sampling, stream_generate
from ferrum_models.tokenizing import Tokenizer

__all__ = ["add"]

_HELP = "/reset begins anew, /quit (or the end of input) ends; Ctrl-C ends an answer"


def add(commands: Any) -> None:
    """Add the command to the parser's *commands*."""
    command: argparse.ArgumentParser = commands.add_parser("chat", help="talk with a model", epilog=_HELP)
    command.set_defaults(command=_chat)
    shared.add_model(command)
    add_template(command)
    shared.add_choice(command)
    shared.add_cache(command)
    command.add_argument(
        "--verbose", type=truth, nargs="?", const=True, default=False, metavar="BOOL", help="statistics of each answer"
    )


class _Conversation:
    """What was said so far, and the model's memory of it."""

    def __init__(
        self,
        options: argparse.Namespace,
        model: CausalLM,
        tokenizer: Tokenizer,
        sampling: Sampling,
        draft: Draft | None,
    ) -> None:
        self._options = options
        self._model = model
        self._tokenizer = tokenizer
        self._sampling = sampling
        self._draft = draft
        self._plain = tokenizer.chat_template is None or options.ignore_chat_template
        if self._plain and options.system_prompt is not None:
            raise ValueError("--system-prompt needs a chat template, but there is none or it is to be ignored")
        self._stop_ids = shared.stop_ids(options, model, tokenizer)
        self._kept = shared.kept(options, model)
        self._turns = 0
        self._said: list[dict[str, str]] = []
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        system = self._options.system_prompt
        self._said = [] if system is None else [{"role": "system", "content": system}]
        self._kept.clear()

    def answer(self, text: str) -> None:
        """Print the answer to *text*; interrupted, it ends where it is.

        Raises:
            ValueError: if the conversation is too long; it is then as before.
        """
        said = [*self._said, {"role": "user", "content": text}]
        if self._plain:  # each turn goes on with the text
            prompt = self._tokenizer.encode("".join(one["content"] for one in said) + "\n")
        else:
            prompt = self._tokenizer.apply_chat_template(said, **self._options.chat_template_config)
        sampling = self._sampling.with_seed(self._sampling.seed + self._turns)
        stream = stream_generate(
            self._model,
            self._tokenizer,
            prompt,
            max_tokens=self._options.max_tokens,
            sampling=sampling,
            stop=self._options.stop,
            stop_ids=self._stop_ids,
            prompt_cache=self._kept,
            draft=self._draft,
        )
        pieces: list[Generated] = []
        interrupts = self._options.interrupts
        interrupts.wait()  # a compiler that is broken off may not work again
        shared.show(stream, pieces, interrupts)
        print(" ..." if interrupts.asked else "", flush=True)
        interrupts.asked = False
        interrupts.hurry()
        answer = "".join(piece.text for piece in pieces)
        if self._plain:
            said[-1]["content"] += "\n"
            answer += "\n"
        self._said = [*said, {"role": "assistant", "content": answer}]
        self._turns += 1
        if self._options.verbose:
            shared.statistics(pieces, sampling, drafts=self._draft is not None)


def _chat(options: argparse.Namespace) -> None:
    sampling = shared.rules(options)
    model, tokenizer = shared.loaded(options)
    talk = _Conversation(options, model, tokenizer, sampling, shared.drafting(options))
    person = sys.stdin.isatty()
    if person:
        with suppress(ImportError):  # not on every system; with it, input() lets lines be edited
            import_module("readline")
        print(_HELP, file=sys.stderr)
    while True:
        try:
            line = input(">> " if person else "")
        except EOFError:
            return
        if line.strip() == "/quit":
            return
        if line.strip() == "/reset":
            talk.reset()
        elif line.strip() == "/help":
            print(_HELP, file=sys.stderr)
        elif line.strip():
            try:
                talk.answer(line)
            except ValueError as error:
                print(f"ferrum chat: {' '.join(str(error).split())}; /reset begins anew", file=sys.stderr)
