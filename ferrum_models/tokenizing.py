"""Text to token ids, by the ``tokenizers`` library."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["TextTokenizer"]


class TextTokenizer:
    """The tokenizer of a model folder: text in, ids out, cut at *max_length* tokens.

    Padding that the file asks for is switched off; models here take packed sequences.

    Raises:
        ImportError: without the library ``tokenizers``. FileNotFoundError: without the file.
        ValueError: if the file cannot be read as a tokenizer.
    """

    def __init__(self, path: Path, max_length: int, *, lowercase: bool = False) -> None:
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise ImportError("models need the library 'tokenizers': pip install 'ferrum[models]'") from error
        content = path.read_bytes()
        try:
            tokenizer = Tokenizer.from_buffer(content)
        except Exception as error:  # the library raises plain Exception for a bad file
            raise ValueError(f"{path} is not a tokenizer: {error}") from error
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_length)
        self._tokenizer: Any = tokenizer
        self._lowercase = lowercase
        self.max_length = max_length

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, special tokens included.

        Raises:
            TypeError: if an item is no string. ValueError: if one is no valid Unicode.
        """
        for number, text in enumerate(texts):
            if not isinstance(text, str):
                raise TypeError(f"text {number} must be a str, got {type(text).__name__}")
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise ValueError(f"text {number} is not valid Unicode: {error}") from None
        chosen = [text.lower() for text in texts] if self._lowercase else list(texts)
        return [one.ids for one in self._tokenizer.encode_batch_fast(chosen)]

    @property
    def vocab_size(self) -> int:
        """One more than the greatest id that the tokenizer makes."""
        return 1 + max(self._tokenizer.get_vocab().values(), default=-1)
