"""A tiny language model in a folder, and commands of ``ferrum`` in this process."""

from __future__ import annotations

import io
import json
import re
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from ferrum_models import cli, generate, load, random_model
from tests.models.memories import TINY
from tests.models.test_tokenizing import library
from tests.models.test_tokenizing import write as write_tokenizer

CONFIG: dict[str, Any] = {**TINY, "vocab_size": library().get_vocab_size(), "max_position_embeddings": 20_000}


def write(folder: Path, seed: int = 3, **tokenizer: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    random_model(CONFIG, seed=seed).save(folder / "model.safetensors")
    return write_tokenizer(folder, **tokenizer)


def answer(folder: Path, text: Any, *, chat: bool = True, tokens: int = 12, **options: Any) -> str:
    """What the library says."""
    model, tokenizer = load(folder)
    assert tokenizer is not None
    prompt = [{"role": "user", "content": text}] if chat else text
    return generate(model, tokenizer, prompt, max_tokens=tokens, **options)


class Shell:
    """Runs commands in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys = capsys
        self._monkeypatch = monkeypatch
        self.err = ""

    def __call__(self, *arguments: object, stdin: str = "", code: int = 0) -> str:
        self._monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        found = cli.main([str(one) for one in arguments])
        out, self.err = self._capsys.readouterr()
        assert found == code, self.err
        return out

    def fails(self, *arguments: object, stdin: str = "") -> str:
        """The error of a command that prints nothing."""
        assert self(*arguments, stdin=stdin, code=2) == ""
        assert re.fullmatch(r"ferrum \w+: error: [^\n]+\n", self.err), self.err
        return self.err


def interrupted_after(monkeypatch: pytest.MonkeyPatch, tokens: int, times: int = 1) -> None:
    """There is a signal while a token becomes text, or several."""
    from ferrum_models.generation.text import TextRow

    add, seen = TextRow.add, 0

    def counted(row: TextRow, token: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen == tokens:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)
        return add(row, token)

    monkeypatch.setattr(TextRow, "add", counted)
