"""How texts are cut into words before bytes are joined, by the names that GGUF files give it.

The patterns are those of the tokenizers of the models that the names stand for: parts of them are data, which has to be
the same to the letter.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["WORDS", "Words"]


@dataclass(frozen=True)
class Words:
    """A way to cut texts.

    Attributes:
        patterns: regular expressions; what one finds, and what is between, is cut by the next.
        plain: whether GPT-2's own pattern is the last.
        whole: whether a word that is a token is taken as it is, whatever the merges.
        begins: whether texts begin with the token for that where the file does not say.
        normal: whether texts are brought to Unicode's form NFC first.
    """

    patterns: tuple[str, ...] = ()
    plain: bool = False
    whole: bool = False
    begins: bool = False
    normal: bool = False


_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_MARKS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_SLASHED = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_BLANKS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"

_LLAMA3 = rf"{_SHORT}|{_WORD}|\p{{N}}{{1,3}}|{_MARKS}|{_BLANKS}"
_QWEN2 = rf"{_SHORT}|{_WORD}|\p{{N}}|{_MARKS}|{_BLANKS}"
_GPT4O = rf"{_CASED[0]}{_SHORT}?|{_CASED[1]}{_SHORT}?|\p{{N}}{{1,3}}|{_SLASHED}|{_BLANKS}"
_TEKKEN = rf"{_CASED[0]}|{_CASED[1]}|\p{{N}}|{_SLASHED}|{_BLANKS}"

_gpt2 = Words(plain=True)
_llama3 = Words((_LLAMA3,), whole=True, begins=True)
_qwen2 = Words((_QWEN2,), normal=True)
_gpt4o = Words((_GPT4O,))
_tekken = Words((_TEKKEN,), whole=True, begins=True)
_digits = Words((r"\p{N}",), plain=True)

#: by the names in ``tokenizer.ggml.pre``
WORDS = {
    "gpt-2": _gpt2,
    "phi-2": _gpt2,
    "llama3": _llama3,
    "llama-v3": _llama3,
    "llama-bpe": _llama3,
    "dbrx": Words((_LLAMA3,)),
    "smaug-bpe": Words((_LLAMA3,)),
    "qwen2": _qwen2,
    "deepseek-r1-qwen": _qwen2,
    "gpt-4o": _gpt4o,
    "llama4": _gpt4o,
    "tekken": _tekken,
    "smollm": _digits,
    "starcoder": _digits,
    "refact": _digits,
    "command-r": _digits,
}
