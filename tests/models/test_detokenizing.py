"""Pieces of text add up to the whole, whatever the tokens are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from ferrum_models.detokenizing import StreamingDetokenizer

TEXT = ["größe 日本語 🙂🙃 naïve café", "the quick brown fox jumps over the lazy dog", "é́ ❤️‍🔥 العربية हिन्दी"] * 3


@cache
def tokenizer(kind: str) -> Tokenizer:
    """Small tokenizers of the kinds that checkpoints use."""
    if kind == "bytes":
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        )
        made.train_from_iterator(TEXT, trainer)
        return made
    # as SentencePiece with byte fallback: ▁ for spaces, <0x..> for what has no token
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *"abcdefghijklmnopqrstuvwxyz▁", "▁the", "▁q", "ui"]
    made = Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True))
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return made


def decoder(kind: str) -> Callable[[Sequence[int]], str]:
    made = tokenizer(kind)
    return lambda ids: str(made.decode(list(ids), skip_special_tokens=False))


@pytest.mark.parametrize("kind", ["bytes", "fallback"])
@given(st.text(st.characters(codec="utf-8"), max_size=20))
def test_pieces_of_a_text_add_up(kind: str, text: str) -> None:
    by_bytes = [1 + byte for byte in text.encode()]
    ids = by_bytes if kind == "fallback" else tokenizer(kind).encode(text).ids
    decode = decoder(kind)
    stream = StreamingDetokenizer(decode)
    pieces = [stream.add(i) for i in ids]
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) + stream.flush() == decode(ids)


@pytest.mark.parametrize("kind", ["bytes", "fallback"])
@given(st.data())
def test_pieces_of_any_ids_add_up(kind: str, data: st.DataObject) -> None:
    """Ids that no text has: half characters, and bytes that begin none."""
    decode = decoder(kind)
    ids = data.draw(st.lists(st.integers(0, tokenizer(kind).get_vocab_size() - 1), max_size=20))
    stream = StreamingDetokenizer(decode)
    text = "".join([*(stream.add(i) for i in ids), stream.flush()])
    # where bytes are invalid, a decoder with byte fallback takes back characters before them: nobody can stream that
    if kind == "bytes" or "\ufffd" not in decode(ids):
        assert text == decode(ids)
    else:
        assert text.replace("\ufffd", "") or "\ufffd" in text


def test_text_comes_as_soon_as_it_is_whole() -> None:
    decode = decoder("bytes")
    for text in TEXT:
        ids = tokenizer("bytes").encode(text).ids
        stream, given = StreamingDetokenizer(decode), ""
        for n, token in enumerate(ids, 1):
            given += stream.add(token)
            assert given == decode(ids[:n]).rstrip("\ufffd")


def test_a_stream_can_be_used_again() -> None:
    stream = StreamingDetokenizer(lambda ids: bytes(ids).decode(errors="replace"))
    assert stream.add(0xC3) == ""
    assert stream.flush() == "\ufffd"
    assert stream.add(0x61) == "a"
    assert stream.flush() == ""
