"""Text to token ids, by the ``tokenizers`` library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ferrum_models.chat import ChatTemplate, Message
from ferrum_models.config import Settings
from ferrum_models.detokenizing import StreamingDetokenizer
from ferrum_models.files import read_json, write_json

__all__ = ["TextTokenizer", "Tokenizer"]

#: entries of tokenizer_config.json that templates may use
_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


class TextTokenizer:
    """The tokenizer of a model folder: text in, ids out, cut at *max_length* tokens.

    Padding that the file asks for is switched off; models here take packed sequences.

    Raises:
        ImportError: without the library ``tokenizers``. FileNotFoundError: without the file.
        ValueError: if the file cannot be read as a tokenizer.
    """

    def __init__(self, path: Path, max_length: int, *, lowercase: bool = False) -> None:
        tokenizer = _read(path)
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
            _unicode(text, f"text {number}")
        chosen = [text.lower() for text in texts] if self._lowercase else list(texts)
        return [one.ids for one in self._tokenizer.encode_batch_fast(chosen)]

    @property
    def vocab_size(self) -> int:
        """One more than the greatest id that the tokenizer makes."""
        return 1 + max(self._tokenizer.get_vocab().values(), default=-1)


class Tokenizer:
    """The tokenizer of a language model: text to ids and back, and the form of a conversation.

    Made from a ``tokenizers`` object, such as the one in ``tokenizer.json``; :meth:`load` reads a model folder.

    Args:
        tokenizer: a ``tokenizers.Tokenizer``.
        special: the texts of special tokens by name: ``bos_token``, ``eos_token`` ...
        chat_template: the source of the chat template, if there is one.
        ends: ids that end a text, beside ``eos_token``.

    Raises:
        ValueError: if a special token is not in the vocabulary, or the chat template is not valid.

    Examples:
        >>> from tokenizers import Tokenizer as Library, models, pre_tokenizers
        >>> from ferrum_models import Tokenizer
        >>> words = models.WordLevel({"hello": 0, "world": 1, "</s>": 2, "?": 3}, unk_token="?")
        >>> library = Library(words)
        >>> library.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> tokenizer = Tokenizer(library, {"eos_token": "</s>"})
        >>> tokenizer.encode("hello world"), tokenizer.decode([1, 0]), tokenizer.eos_ids
        ([0, 1], 'world hello', (2,))
    """

    def __init__(
        self,
        tokenizer: Any,
        special: Mapping[str, str] | None = None,
        chat_template: str | None = None,
        ends: Sequence[int] = (),
    ) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._tokenizer: Any = tokenizer
        self._ends = tuple(ends)
        self.special = dict(special or {})
        for name, text in self.special.items():
            if tokenizer.token_to_id(text) is None:
                raise ValueError(f"tokenizer: {name} is {text!r}, which is not in the vocabulary")
        self.chat_template = None if chat_template is None else ChatTemplate(chat_template, self.special)

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """The tokenizer of a model folder: ``tokenizer.json``, and what ``tokenizer_config.json``,
        ``chat_template.jinja`` and ``generation_config.json`` (ids that end a text) add where they are there.

        Raises:
            FileNotFoundError: without ``tokenizer.json``. ValueError: for files that cannot be read.
            ImportError: without the library ``tokenizers``.
        """
        library = _read(folder / "tokenizer.json")
        path = folder / "tokenizer_config.json"
        said = read_json(path) if path.is_file() else {}
        special = {name: text for name in _SPECIAL if (text := _text(said.get(name))) is not None}
        template = folder / "chat_template.jinja"
        source = template.read_text(encoding="utf-8") if template.is_file() else said.get("chat_template")
        if isinstance(source, list):  # several by name
            named = {one.get("name"): one.get("template") for one in source if isinstance(one, dict)}
            source = named.get("default")
        if source is not None and not isinstance(source, str):
            raise ValueError(f"{path}: chat_template must be text, got {type(source).__name__}")
        rules = folder / "generation_config.json"
        ends = Settings.load(rules).integers("eos_token_id") if rules.is_file() else ()
        try:
            return cls(library, special, source, ends)
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from None

    def save(self, folder: Path) -> None:
        """Write the tokenizer to *folder*, from which :meth:`load` reads it: ``tokenizer.json``,
        ``tokenizer_config.json``, and where they say something, ``chat_template.jinja`` and ``generation_config.json``.

        Raises:
            OSError: if writing fails.
        """
        (folder / "tokenizer.json").write_text(self._tokenizer.to_str(pretty=True), encoding="utf-8")
        write_json(folder / "tokenizer_config.json", self.special)
        if self.chat_template is not None:
            (folder / "chat_template.jinja").write_text(self.chat_template.source, encoding="utf-8")
        if self._ends:
            write_json(folder / "generation_config.json", {"eos_token_id": list(self._ends)})

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The ids of *text*; with *add_special_tokens* also those that the model expects around it.

        Raises:
            TypeError: if *text* is no string. ValueError: if it is no valid Unicode.
        """
        if not isinstance(text, str):
            raise TypeError(f"encode: text must be a str, got {type(text).__name__}")
        _unicode(text, "encode: text")
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """The text of *ids*; bytes that are no character become U+FFFD.

        Raises:
            ValueError: for an id that is not in the vocabulary.
        """
        numbers = [int(one) for one in ids]
        for one in numbers:
            if self._tokenizer.id_to_token(one) is None if one >= 0 else True:
                raise ValueError(f"decode: id {one} is not in the vocabulary of {self.vocab_size} ids")
        return str(self._tokenizer.decode(numbers, skip_special_tokens=skip_special_tokens))

    def detokenizer(self, *, skip_special_tokens: bool = True) -> StreamingDetokenizer:
        """What turns ids into text as they come."""
        tokenizer = self._tokenizer
        return StreamingDetokenizer(lambda ids: tokenizer.decode(ids, skip_special_tokens=skip_special_tokens))

    def apply_chat_template(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Any] | None = None,
        **more: Any,
    ) -> list[int]:
        """The ids of a conversation in the form that the model was trained on; *more* goes to the template.

        Raises:
            ValueError: if there is no chat template, or it refuses the messages.
        """
        if self.chat_template is None:
            raise ValueError("this tokenizer has no chat template; encode the prompt as plain text with encode")
        text = self.chat_template(messages, add_generation_prompt=add_generation_prompt, tools=tools, **more)
        return self.encode(text, add_special_tokens=False)  # the template writes them itself

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """The ids that end a text; none where nothing says so."""
        found = self.special.get("eos_token")
        own = () if found is None else (self.token_id(found),)
        return (*own, *(one for one in self._ends if one not in own))

    def token_id(self, text: str) -> int:
        """The id of the token whose text is *text*, such as ``<|im_end|>``.

        Raises:
            ValueError: if there is no such token.
        """
        found: int | None = self._tokenizer.token_to_id(text)
        if found is None:
            raise ValueError(f"{text!r} is no token of this vocabulary of {self.vocab_size} ids")
        return found

    @property
    def vocab_size(self) -> int:
        """One more than the greatest id that the tokenizer makes."""
        return 1 + max(self._tokenizer.get_vocab().values(), default=-1)

    def __repr__(self) -> str:
        chat = ", chat template" if self.chat_template else ""
        return f"Tokenizer({self.vocab_size} ids{chat})"


def _read(path: Path) -> Any:
    try:
        from tokenizers import Tokenizer as Library
    except ImportError as error:
        raise ImportError("models need the library 'tokenizers': pip install 'ferrum[models]'") from error
    content = path.read_bytes()
    try:
        tokenizer = Library.from_buffer(content)
    except Exception as error:  # the library raises plain Exception for a bad file
        raise ValueError(f"{path} is not a tokenizer: {error}") from error
    tokenizer.no_padding()
    return tokenizer


def _unicode(text: str, what: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{what} is not valid Unicode: {error}") from None


def _text(value: Any) -> str | None:
    """A special token, which is written as a text or as an object with its content."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None
