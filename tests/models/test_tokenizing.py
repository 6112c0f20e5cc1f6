"""The tokenizer of a language model, beside the one of transformers in the same folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from ferrum_models import Tokenizer

TEMPLATE = "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}"
SPECIAL = ["<s>", "</s>", "<pad>"]


def library() -> Library:
    made = Library(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(["the quick brown fox"] * 9, trainer)
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return made


def write(folder: Path, **config: Any) -> Path:
    library().save(str(folder / "tokenizer.json"))
    said = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": None, "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps({**said, **config}))
    return folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, PreTrainedTokenizerFast]:
    folder = write(tmp_path_factory.mktemp("tokenizer"))
    peer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), bos_token="<s>", eos_token="</s>", chat_template=TEMPLATE
    )
    return Tokenizer.load(folder), peer


texts = st.text(st.characters(codec="utf-8"), max_size=15) | st.sampled_from(["the <s> fox</s>", "quick  brown"])


@given(text=texts, special=st.booleans())
def test_ids_and_texts_are_those_of_transformers(
    pair: tuple[Tokenizer, PreTrainedTokenizerFast], text: str, special: bool
) -> None:
    ours, peer = pair
    ids = ours.encode(text, add_special_tokens=special)
    assert ids == peer.encode(text, add_special_tokens=special)
    for skip in (False, True):
        expected = peer.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
        assert ours.decode(ids, skip_special_tokens=skip) == expected
        stream = ours.detokenizer(skip_special_tokens=skip)
        assert "".join([*(stream.add(i) for i in ids), stream.flush()]) == expected


@given(text=texts)
def test_conversations_are_those_of_transformers(pair: tuple[Tokenizer, PreTrainedTokenizerFast], text: str) -> None:
    ours, peer = pair
    chat = [{"role": "user", "content": text}]
    assert ours.apply_chat_template(chat) == peer.apply_chat_template(chat, return_dict=False)


def test_what_a_folder_says(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(write(tmp_path))
    assert tokenizer.eos_ids == (1,)
    assert tokenizer.special == {"bos_token": "<s>", "eos_token": "</s>"}
    assert tokenizer.vocab_size == library().get_vocab_size()
    assert repr(tokenizer) == f"Tokenizer({tokenizer.vocab_size} ids, chat template)"
    (tmp_path / "chat_template.jinja").write_text("other")
    assert Tokenizer.load(tmp_path).decode(Tokenizer.load(tmp_path).apply_chat_template([])) == "other"
    (tmp_path / "chat_template.jinja").unlink()
    write(tmp_path, chat_template=[{"name": "tool", "template": "a"}, {"name": "default", "template": "b"}])
    assert Tokenizer.load(tmp_path).decode(Tokenizer.load(tmp_path).apply_chat_template([])) == "b"
    (tmp_path / "tokenizer_config.json").unlink()
    bare = Tokenizer.load(tmp_path)
    assert bare.eos_ids == ()
    with pytest.raises(ValueError, match="has no chat template"):
        bare.apply_chat_template([])


def test_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
        Tokenizer.load(tmp_path)
    write(tmp_path, eos_token="<nothing>")
    with pytest.raises(ValueError, match="eos_token is '<nothing>', which is not in the vocabulary"):
        Tokenizer.load(tmp_path)
    write(tmp_path, chat_template=7)
    with pytest.raises(ValueError, match="chat_template must be text, got int"):
        Tokenizer.load(tmp_path)
    write(tmp_path, chat_template="{% for %}")
    with pytest.raises(ValueError, match="chat template: line 1"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json is not a tokenizer"):
        Tokenizer.load(tmp_path)


def test_bad_texts_and_ids(pair: tuple[Tokenizer, PreTrainedTokenizerFast]) -> None:
    tokenizer = pair[0]
    with pytest.raises(TypeError, match="text must be a str, got int"):
        tokenizer.encode(3)  # type: ignore[arg-type] # what is tested
    with pytest.raises(ValueError, match="not valid Unicode"):
        tokenizer.encode("\ud800")
    for bad in (-1, 10**6):
        with pytest.raises(ValueError, match=f"id {bad} is not in the vocabulary"):
            tokenizer.decode([1, bad])


def test_generation_config_names_more_ends(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 1, 7]}')
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.eos_ids == (1, 2, 7)
    assert tokenizer.token_id("</s>") == 1
    with pytest.raises(ValueError, match="'nothing' is no token of this vocabulary of"):
        tokenizer.token_id("nothing")
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": "x"}')
    with pytest.raises(ValueError, match="eos_token_id must be an integer or a list of integers"):
        Tokenizer.load(tmp_path)
