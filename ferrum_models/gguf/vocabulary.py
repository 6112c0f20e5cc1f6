"""The vocabulary of a GGUF file as a tokenizer.

Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, ``tokenizer.ggml``. Two kinds are read. ``gpt2`` is
byte pair encoding of bytes, with the merges in the file; ``tokenizer.ggml.pre`` names how texts are cut into words
first. ``llama`` is SentencePiece's byte pair encoding: neighbours are joined where the result is a token, that of the
highest score first, and characters without a token become their bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from ferrum_models.config import Settings
from ferrum_models.gguf.reader import GgufFile, Strings
from ferrum_models.gguf.words import WORDS
from ferrum_models.tokenizing import Tokenizer

__all__ = ["tokenizer"]

_PREFIX = "tokenizer.ggml."
#: names of special tokens -> their keys
_SPECIAL = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
    "sep_token": "seperator_token_id",
    "cls_token": "cls_token_id",
    "mask_token": "mask_token_id",
}
#: kinds of tokens
_NORMAL, _UNKNOWN, _CONTROL, _DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_SPACE = "\u2581"
_NONE = ("none", "no_vocab")


def tokenizer(file: GgufFile, vocab_size: int) -> Tokenizer | None:
    """The tokenizer of *file*, or None where it has none, for a model of *vocab_size* ids.

    Raises:
        ValueError: for an unknown kind of vocabulary or of words, listing those that are known, for lists that are
        missing or do not fit together, and for a chat template that is not valid. ImportError: without the library
        ``tokenizers``.
    """
    said = _Vocabulary(file, vocab_size)
    kind = said.settings.get("model")
    if kind is None or kind in _NONE:
        return None
    try:
        import tokenizers
    except ImportError as error:
        raise ImportError("models need the library 'tokenizers': pip install 'ferrum[models]'") from error
    make = said.settings.choice("model", known={"gpt2": _of_bytes, "llama": _of_pieces, **dict.fromkeys(_NONE, None)})
    assert make is not None
    library, begins = make(tokenizers, said)
    special = said.special()
    _add(tokenizers, library, said, special)
    _surround(tokenizers, library, said, begins)
    template = file.entries.get("tokenizer.chat_template")
    if template is not None and not isinstance(template, str):
        raise ValueError(f"{file.path}: tokenizer.chat_template must be text, got {type(template).__name__}")
    try:
        return Tokenizer(library, {name: said.tokens[one] for name, one in special.items()}, template)
    except ValueError as error:
        raise ValueError(f"{file.path}: {error}") from None


class _Vocabulary:
    """The entries of a vocabulary, checked.

    Attributes:
        settings: those under ``tokenizer.ggml``.
        tokens: the texts by id.
        ids: the inverse.
        kinds: of the tokens.
    """

    def __init__(self, file: GgufFile, vocab_size: int) -> None:
        own = {key.removeprefix(_PREFIX): value for key, value in file.entries.items() if key.startswith(_PREFIX)}
        self.settings = Settings(own, f"{file.path} (tokenizer.ggml)")
        self.tokens: list[str] = []
        self.ids: dict[str, int] = {}
        self.kinds: Sequence[int] = ()
        if own.get("model") in (None, *_NONE):
            return
        listed = self.texts("tokens")
        if len(listed) > vocab_size:  # before they are read
            raise self.error(f"there are {len(listed)} tokens, but the model has a vocabulary of {vocab_size}")
        self.tokens = list(listed)
        self.ids = {text: number for number, text in enumerate(self.tokens)}
        if len(self.ids) < len(self.tokens):
            twice = next(text for number, text in enumerate(self.tokens) if self.ids[text] != number)
            raise self.error(f"the token {twice!r:.80} stands twice")
        kinds = self.numbers("token_type", int)
        self.kinds = [_NORMAL] * len(self.tokens) if kinds is None else kinds

    def error(self, what: str) -> ValueError:
        return ValueError(f"{self.settings.source}: {what}")

    def texts(self, name: str) -> Strings:
        found = self.settings.get(name)
        if not isinstance(found, Strings):
            raise self.error(f"{name} must be a list of texts, got {_short(found)}")
        return found

    def numbers(self, name: str, kind: type[int] | type[float]) -> Sequence[Any] | None:
        """A number for each token."""
        found = self.settings.get(name)
        if found is None:
            return None
        fits = isinstance(found, memoryview) and found.format in ("bBhHiIqQ" if kind is int else "fd")
        if not fits or len(found) != len(self.tokens):
            raise self.error(f"{name} must be a list of {len(self.tokens)} {kind.__name__}, got {_short(found)}")
        numbers: list[Any] = found.tolist()
        return numbers

    def special(self) -> dict[str, int]:
        """The ids of special tokens by name."""
        found = {}
        for name, key in _SPECIAL.items():
            if self.settings.get(key) is None:
                continue
            one = self.settings.integer(key, least=0)
            if one >= len(self.tokens):
                raise self.error(f"{key} is {one}, but there are {len(self.tokens)} tokens")
            found[name] = one
        return found


def _short(value: Any) -> str:
    """What an entry is, for errors."""
    if isinstance(value, memoryview):
        return f"{len(value)} of {'int' if value.format in 'bBhHiIqQ' else 'float' if value.format in 'fd' else 'bool'}"
    return "none" if value is None else f"{value!r:.80}"


def _of_bytes(library: Any, said: _Vocabulary) -> tuple[Any, bool]:
    """Byte pair encoding with merges, and whether texts begin with a token by default."""
    words = said.settings.choice("pre", known=WORDS)
    merges = list(_merges(said))
    model = _bpe(library, said, merges, ignore_merges=words.whole)
    made = library.Tokenizer(model)
    if words.normal:
        made.normalizer = library.normalizers.NFC()
    cut = [library.pre_tokenizers.Split(library.Regex(one), "isolated") for one in words.patterns]
    cut.append(library.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words.plain))
    made.pre_tokenizer = library.pre_tokenizers.Sequence(cut)
    made.decoder = library.decoders.ByteLevel()
    return made, words.begins


def _merges(said: _Vocabulary) -> Iterator[tuple[str, str]]:
    for text in said.texts("merges"):
        at = text.find(" ", 1)
        left, right = text[:at], text[at + 1 :]
        if at < 0 or any(one not in said.ids for one in (left, right, left + right)):
            raise said.error(f"the merge {text!r:.80} does not join two tokens to a third")
        yield left, right


def _of_pieces(library: Any, said: _Vocabulary) -> tuple[Any, bool]:
    """SentencePiece's byte pair encoding, whose order is that of scores."""
    said.settings.refuse("remove_extra_whitespaces")
    said.settings.refuse("precompiled_charsmap")
    unknown = next((text for text, kind in zip(said.tokens, said.kinds, strict=True) if kind == _UNKNOWN), None)
    spread = all(f"<0x{byte:02X}>" in said.ids for byte in range(256))
    if unknown is None and not spread:
        raise said.error("there is neither a token for what is unknown nor one for each byte")
    model = _bpe(library, said, _joined(said), unk_token=unknown, fuse_unk=True, byte_fallback=spread)
    made = library.Tokenizer(model)
    normalizers, decoders = library.normalizers, library.decoders
    before = [normalizers.Replace(" ", _SPACE)]
    after = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if said.settings.flag("add_space_prefix", default=True):
        before.insert(0, normalizers.Prepend(_SPACE))
        after.append(decoders.Strip(" ", 1, 0))
    made.normalizer = normalizers.Sequence(before)
    made.decoder = decoders.Sequence(after)
    return made, True


def _joined(said: _Vocabulary) -> list[tuple[str, str]]:
    """All ways to join two tokens to a third, those of higher scores first."""
    scores = said.numbers("scores", float)
    if scores is None:
        raise said.error(f"scores must be a list of {len(said.tokens)} float, got none")
    if not all(map(math.isfinite, scores)):
        raise said.error("scores must be finite")
    made = [number for number, kind in enumerate(said.kinds) if kind in (_NORMAL, _DEFINED)]
    made.sort(key=lambda number: -scores[number])
    known = {said.tokens[number] for number in made}
    found = []
    for number in made:
        text = said.tokens[number]
        for at in range(1, len(text)):
            if text[:at] in known and text[at:] in known:
                found.append((text[:at], text[at:]))
    return found


def _bpe(library: Any, said: _Vocabulary, merges: list[tuple[str, str]], **options: Any) -> Any:
    try:
        return library.models.BPE(said.ids, merges, **options)
    except Exception as error:  # the library raises plain Exception
        raise said.error(f"no vocabulary: {error}") from error


def _add(library: Any, made: Any, said: _Vocabulary, special: dict[str, int]) -> None:
    """Tell *made* which tokens are found in texts before anything else, and which of them are no text."""
    apart = set(special.values())
    listed: list[Any] = []
    for number, (text, kind) in enumerate(zip(said.tokens, said.kinds, strict=True)):
        control = number in apart or kind in (_UNKNOWN, _CONTROL)
        if text and (control or kind == _DEFINED):
            listed.append(library.AddedToken(text, normalized=False, special=control))
    made.add_tokens(listed)


def _surround(library: Any, made: Any, said: _Vocabulary, begins: bool) -> None:
    """Put tokens at the beginning and at the end of each text, where the file asks for it."""
    said_so = said.settings.get("add_bos_token") is not None
    pieces: list[str] = ["$A"]
    tokens: list[dict[str, Any]] = []
    special = said.special()
    for name, flag, default in (("bos_token", "add_bos_token", begins), ("eos_token", "add_eos_token", False)):
        if not said.settings.flag(flag, default=default):
            continue
        one = special.get(name)
        if one is None:
            if flag == "add_bos_token" and not said_so:
                continue
            raise said.error(f"{flag} is true, but there is no {_SPECIAL[name]}")
        pieces.insert(0 if name == "bos_token" else len(pieces), name)
        tokens.append({"id": name, "ids": [one], "tokens": [said.tokens[one]]})
    if tokens:
        made.post_processor = library.processors.TemplateProcessing(single=pieces, special_tokens=tokens)
