"""Vocabularies of GGUF files beside the tokenizers that they come from."""

from __future__ import annotations

import json
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Library

from ferrum_models import Tokenizer, load
from ferrum_models.gguf import GgufFile
from ferrum_models.gguf.vocabulary import tokenizer
from ferrum_models.gguf.words import WORDS
from tests.models import gguf_models

KEY = "tokenizer.ggml."
TEXTS = [
    "the quick brown fox doesn't jump",
    "12345 and 67, 'Tis WE'LL\r\n\n  x\t y",
    "Äpfel e\u0301 日本語 ǅ",
    "\n\n a/b //",
] * 5
#: the patterns of the models that the names stand for, in their own tokenizer.json
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = GPT4O.replace(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?", "").replace(r"\p{N}{1,3}", r"\p{N}")
DIGITS = r"\p{N}"
#: name -> pattern, whether GPT-2's own follows, whether words that are tokens stay whole, whether NFC comes first
ORIGINALS: dict[str, tuple[str | None, bool, bool, bool]] = {
    "gpt-2": (None, True, False, False),
    "phi-2": (None, True, False, False),
    "llama3": (LLAMA3, False, True, False),
    "llama-v3": (LLAMA3, False, True, False),
    "llama-bpe": (LLAMA3, False, True, False),
    "dbrx": (LLAMA3, False, False, False),
    "smaug-bpe": (LLAMA3, False, False, False),
    "qwen2": (QWEN2, False, False, True),
    "deepseek-r1-qwen": (QWEN2, False, False, True),
    "gpt-4o": (GPT4O, False, False, False),
    "llama4": (GPT4O, False, False, False),
    "tekken": (TEKKEN, False, True, False),
    "smollm": (DIGITS, True, False, False),
    "starcoder": (DIGITS, True, False, False),
    "refact": (DIGITS, True, False, False),
    "command-r": (DIGITS, True, False, False),
}
TEMPLATE = "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}"


@cache
def original(pre: str) -> Library:
    """A tokenizer made as that of the models which *pre* names, trained on a few words."""
    pattern, plain, whole, normal = ORIGINALS[pre]
    made = Library(models.BPE(ignore_merges=whole))
    if normal:
        made.normalizer = normalizers.NFC()
    cut: list[Any] = [] if pattern is None else [pre_tokenizers.Split(Regex(pattern), "isolated")]
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [*cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=plain)]
    )
    made.decoder = decoders.ByteLevel()
    special = ["<|begin|>", "<|end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(vocab_size=380, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    made.add_tokens([AddedToken("<tool>", normalized=False, special=False)])
    ids = [(one, made.token_to_id(one)) for one in special]
    made.post_processor = processors.TemplateProcessing(single="<|begin|> $A <|end|>", special_tokens=ids)
    return made


def bytes_vocabulary(pre: str = "llama-bpe") -> dict[str, Any]:
    """The entries that a converter writes for :func:`original`."""
    library = original(pre)
    said = json.loads(library.to_str())
    tokens = [one for one, _ in sorted(library.get_vocab(with_added_tokens=True).items(), key=lambda item: item[1])]
    kinds = [3 if one.startswith("<|") else 4 if one == "<tool>" else 1 for one in tokens]
    return {
        f"{KEY}model": "gpt2",
        f"{KEY}pre": pre,
        f"{KEY}tokens": tokens,
        f"{KEY}token_type": kinds,
        f"{KEY}merges": [" ".join(pair) for pair in said["model"]["merges"]],
        f"{KEY}bos_token_id": 0,
        f"{KEY}eos_token_id": 1,
        f"{KEY}add_bos_token": True,
        f"{KEY}add_eos_token": True,
        "tokenizer.chat_template": TEMPLATE,
    }


@cache
def _pieces() -> tuple[str, ...]:
    """Pieces as SentencePiece numbers them: what was joined first comes first, then single characters."""
    made = Library(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    made.train_from_iterator([text.replace("\n", " ") for text in TEXTS], trainers.BpeTrainer(show_progress=False))
    said = json.loads(made.to_str())
    joined = [left + right for left, right in said["model"]["merges"]]
    return tuple(dict.fromkeys([*joined, *sorted(one for one in said["model"]["vocab"] if len(one) == 1)]))


def pieces_vocabulary(**changes: Any) -> dict[str, Any]:
    """The entries that a converter writes for a SentencePiece model of byte pairs."""
    pieces = _pieces()
    kinds = [2, 3, 3, *[6] * 256, *[1] * len(pieces), 4]
    return {
        f"{KEY}model": "llama",
        f"{KEY}pre": "default",
        f"{KEY}tokens": ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces, "  <tool>"],
        f"{KEY}token_type": kinds,
        f"{KEY}scores": [*[0.0] * 259, *(-float(number) for number in range(len(pieces))), -1000.0],
        f"{KEY}bos_token_id": 1,
        f"{KEY}eos_token_id": 2,
        f"{KEY}unknown_token_id": 0,
        **{f"{KEY}{name}": value for name, value in changes.items()},
    }


def written(path: Path, entries: dict[str, Any]) -> GgufFile:
    """A file of these entries alone."""
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in entries.items():
        if value is not None:
            gguf_models.add(writer, name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return GgufFile(path)


def read(path: Path, entries: dict[str, Any]) -> Tokenizer:
    found = tokenizer(written(path, entries), 10000)
    assert found is not None
    return found


texts = st.text(st.characters(codec="utf-8"), max_size=12) | st.lists(
    st.sampled_from(["the", " quick", "'LL", "E\u0301", "12345", "\n", "  ", "<tool>", "<|end|>", "/", "Ä", "ǅx"]),
    max_size=8,
).map("".join)


# Byte pairs with merges.


@pytest.fixture(scope="module", params=WORDS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Library]:
    path = tmp_path_factory.mktemp("bytes") / "a.gguf"
    return read(path, bytes_vocabulary(request.param)), original(request.param)


@given(text=texts)
def test_bytes_are_joined_as_by_the_original(pair: tuple[Tokenizer, Library], text: str) -> None:
    ours, peer = pair
    for special in (False, True):
        ids = peer.encode(text, add_special_tokens=special).ids
        assert ours.encode(text, add_special_tokens=special) == ids
        for skip in (False, True):
            assert ours.decode(ids, skip_special_tokens=skip) == peer.decode(ids, skip_special_tokens=skip)


@given(text=texts | st.text("aZ1 '\n/!\r\t\u0301Ǆ", max_size=12))
def test_texts_are_cut_as_by_the_original(pair: tuple[Tokenizer, Library], text: str) -> None:
    """Also where no token of these small vocabularies would show it."""
    ours, peer = pair
    cut, expected = (
        one.pre_tokenizer.pre_tokenize_str(one.normalizer.normalize_str(text) if one.normalizer else text)
        for one in (ours._tokenizer, peer)
    )
    assert cut == expected


def test_originals_differ() -> None:
    """Else a name could stand for another's pattern, and no comparison would see it."""
    samples = ["12345 DON'T", "don'T//\n x", "E\u0301te\u0301", "Zz1a", *TEXTS]
    kinds = {name: original(name) for name in ("gpt-2", "llama-bpe", "qwen2", "gpt-4o", "tekken", "smollm")}
    cuts = set()
    for one in kinds.values():
        normal = one.normalizer
        cuts.add(
            tuple(
                tuple(
                    piece for piece, _ in one.pre_tokenizer.pre_tokenize_str(normal.normalize_str(s) if normal else s)
                )
                for s in samples
            )
        )
    assert len(cuts) == len(kinds)
    assert ORIGINALS.keys() == WORDS.keys()


def test_words_that_are_tokens_stay_whole(tmp_path: Path) -> None:
    for pre, expected in (("llama-bpe", 1), ("dbrx", 2)):
        entries = bytes_vocabulary(pre)
        entries[f"{KEY}tokens"] = [*entries[f"{KEY}tokens"], "zq"]  # that no merge makes
        entries[f"{KEY}token_type"] = [*entries[f"{KEY}token_type"], 1]
        assert len(read(tmp_path / "a.gguf", entries).encode("zq", add_special_tokens=False)) == expected


@pytest.mark.parametrize(
    ("pre", "begin", "end", "expected"),
    [
        ("llama-bpe", None, None, [0]),
        ("llama-bpe", False, None, []),
        ("qwen2", None, None, []),
        ("qwen2", True, True, [0, 1]),
        ("tekken", None, True, [0, 1]),
    ],
)
def test_tokens_around_texts(tmp_path: Path, pre: str, begin: Any, end: Any, expected: list[int]) -> None:
    flags = {f"{KEY}add_bos_token": begin, f"{KEY}add_eos_token": end}
    assert read(tmp_path / "a.gguf", {**bytes_vocabulary(pre), **flags}).encode("") == expected


def test_special_tokens_and_chats(tmp_path: Path) -> None:
    found = read(tmp_path / "a.gguf", bytes_vocabulary())
    assert found.special == {"bos_token": "<|begin|>", "eos_token": "<|end|>"}
    assert found.eos_ids == (1,)
    assert found.decode(found.encode("a <tool> b"), skip_special_tokens=True) == "a <tool> b"
    chat = [{"role": "user", "content": "the fox"}]
    assert found.decode(found.apply_chat_template(chat)) == "<|begin|><user>the fox<|end|>"
    entries = {**bytes_vocabulary(), f"{KEY}token_type": None}  # special by their numbers alone
    assert read(tmp_path / "b.gguf", entries).encode("the <|end|>", add_special_tokens=False)[-1] == 1


# Pieces with scores.


def joined(text: str, entries: dict[str, Any], prefix: bool) -> list[int]:
    """SentencePiece's algorithm word for word: the best neighbours are joined, from the left, until none are left."""
    tokens, scores = entries[f"{KEY}tokens"], entries[f"{KEY}scores"]
    ids = {token: number for number, token in enumerate(tokens)}
    found: list[int] = []
    for part in _parts(text, ["<unk>", "<s>", "</s>", "  <tool>"]):
        if part in ids and part[-1] == ">" and len(part) > 1:
            found.append(ids[part])
            continue
        symbols = list((("\u2581" if prefix else "") + part).replace(" ", "\u2581"))
        while True:
            options = [
                (-scores[ids[a + b]], at)
                for at, (a, b) in enumerate(pairwise(symbols))
                if a + b in ids and ids[a + b] >= 259
            ]
            if not options:
                break
            at = min(options)[1]
            symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
        for one in symbols:
            found += [ids[one]] if one in ids else [3 + byte for byte in one.encode()]
    return found


def _parts(text: str, apart: list[str]) -> list[str]:
    """*text* cut at the tokens that stand for themselves."""
    for one in apart:
        if one in text:
            before, after = text.split(one, 1)
            return [*_parts(before, apart), one, *_parts(after, apart)]
    return [text] if text else []


piece_texts = st.text(st.characters(codec="utf-8", exclude_characters="\u2581"), max_size=12) | st.lists(
    st.sampled_from(["the", " quick", "brown ", "12345", "  ", " ", "\n", "<s>", "  <tool>", "Ä", "語", "doesn", "'t"]),
    max_size=8,
).map("".join)


@pytest.fixture(scope="module", params=[True, False])
def pieces(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, bool]:
    entries = pieces_vocabulary(add_space_prefix=None if request.param else False)
    return read(tmp_path_factory.mktemp("pieces") / "a.gguf", entries), request.param


@given(text=piece_texts)
def test_pieces_are_joined_by_their_scores(pieces: tuple[Tokenizer, bool], text: str) -> None:
    ours, prefix = pieces
    ids = joined(text, pieces_vocabulary(), prefix)
    assert ours.encode(text, add_special_tokens=False) == ids
    assert ours.encode(text) == [1, *ids]
    if "<s>" not in text and "<tool>" not in text:
        assert ours.decode(ids) == text
    stream = ours.detokenizer(skip_special_tokens=False)
    assert "".join([*(stream.add(one) for one in ids), stream.flush()]) == ours.decode(ids)


def test_characters_without_a_token(tmp_path: Path) -> None:
    entries = pieces_vocabulary()
    keep = [n for n, kind in enumerate(entries[f"{KEY}token_type"]) if kind != 6]
    for name in ("tokens", "token_type", "scores"):
        entries[f"{KEY}{name}"] = [entries[f"{KEY}{name}"][n] for n in keep]
    found = read(tmp_path / "a.gguf", entries)
    assert found.encode("☃☃", add_special_tokens=False)[-1] == 0  # unknown, once for both


# What is refused, or absent.


@pytest.mark.parametrize("model", [None, "none", "no_vocab"])
def test_no_vocabulary(tmp_path: Path, model: str | None) -> None:
    assert tokenizer(written(tmp_path / "a.gguf", {f"{KEY}model": model}), 10) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "bert"}, "model must be one of gpt2, llama, none, no_vocab, got 'bert'"),
        ({"pre": "eliza"}, "pre must be one of gpt-2, .*qwen2, .* got 'eliza'"),
        ({"pre": None}, "there is no pre; it must be one of gpt-2, "),
        ({"tokens": None}, "tokens must be a list of texts, got none"),
        ({"tokens": [1, 2]}, "tokens must be a list of texts, got 2 of int"),
        ({"tokens": ["a", "b", "a"]}, "the token 'a' stands twice"),
        ({"tokens": ["a"] * 10001}, "there are 10001 tokens, but the model has a vocabulary of 10000"),
        ({"token_type": [1, 1]}, r"token_type must be a list of \d+ int, got 2 of int"),
        ({"token_type": "x"}, r"token_type must be a list of \d+ int, got 'x'"),
        ({"merges": None}, "merges must be a list of texts, got none"),
        ({"merges": ["ab"]}, "the merge 'ab' does not join two tokens to a third"),
        ({"merges": ["a \u2603"]}, "the merge 'a \u2603' does not join two tokens to a third"),
        ({"merges": ["z q"]}, "the merge 'z q' does not join two tokens to a third"),
        ({"bos_token_id": 10**6}, r"bos_token_id is 1000000, but there are \d+ tokens"),
        ({"bos_token_id": None}, "add_bos_token is true, but there is no bos_token_id"),
        ({"add_eos_token": 3}, "add_eos_token must be true or false, got 3"),
    ],
)
def test_vocabularies_of_bytes_that_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    entries = {**bytes_vocabulary(), **{f"{KEY}{name}": value for name, value in changes.items()}}
    with pytest.raises(ValueError, match=message) as error:
        tokenizer(written(tmp_path / "a.gguf", entries), 10000)
    assert "a.gguf" in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": None}, r"scores must be a list of \d+ float, got none"),
        ({"scores": [1.0]}, r"scores must be a list of \d+ float, got 1 of float"),
        ({"remove_extra_whitespaces": True}, "remove_extra_whitespaces is True, which is not implemented"),
        ({"tokens": ["a"], "token_type": [1], "scores": [0.0]}, "neither a token for what is unknown nor one for each"),
    ],
)
def test_vocabularies_of_pieces_that_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tokenizer(written(tmp_path / "a.gguf", pieces_vocabulary(**changes)), 10000)


def test_scores_that_are_no_numbers(tmp_path: Path) -> None:
    entries = pieces_vocabulary()
    entries[f"{KEY}scores"][300] = float("inf")
    with pytest.raises(ValueError, match="scores must be finite"):
        tokenizer(written(tmp_path / "a.gguf", entries), 10000)


def test_chat_templates_that_are_refused(tmp_path: Path) -> None:
    for template, message in (("{% for %}", "chat template: line 1"), (3, r"chat_template must be text, got int")):
        entries = {**bytes_vocabulary(), "tokenizer.chat_template": template}
        with pytest.raises(ValueError, match=message):
            tokenizer(written(tmp_path / "a.gguf", entries), 10000)


def test_a_model_with_a_vocabulary(tmp_path: Path) -> None:
    peer = gguf_models.make("llama", tmp_path, vocab_size=400)
    gguf_models.write(peer, "llama", tmp_path / "model.gguf", "Q8_0", **bytes_vocabulary())
    model, found = load(tmp_path / "model.gguf")
    assert found is not None
    assert found.encode("the fox") == original("llama-bpe").encode("the fox", add_special_tokens=True).ids
    assert model.config.eos_token_ids == (1,)
    peer = gguf_models.make("llama", tmp_path, vocab_size=100)
    gguf_models.write(peer, "llama", tmp_path / "model.gguf", "Q8_0", **bytes_vocabulary())
    with pytest.raises(ValueError, match=r"there are \d+ tokens, but the model has a vocabulary of 100"):
        load(tmp_path / "model.gguf")
