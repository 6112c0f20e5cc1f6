"""Reading a config: types, spellings, and errors that name the entry."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ferrum_array as fa
from ferrum_models.config import Settings
from ferrum_models.families import family
from tests.models import parity

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)


@given(JSON)
def test_an_entry_has_its_type_or_there_is_an_error(value: Any) -> None:
    settings = Settings({"key": value}, "here")
    good = {
        "integer": isinstance(value, int) and not isinstance(value, bool) and value >= 1,
        "number": isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < float("inf"),
        "flag": value is None or isinstance(value, bool),
    }
    for reader, fits in good.items():
        if fits:
            assert getattr(settings, reader)("key") == (value or False if reader == "flag" else value)
        else:
            with pytest.raises(ValueError, match=r"here: (key must be|there is no key)"):
                getattr(settings, reader)("key")


def test_the_first_spelling_that_is_there_counts() -> None:
    settings = Settings({"old": 3, "new": None, "newest": 4})
    assert settings.integer("new", "old") == 3
    assert settings.integer("newest", "old") == 4
    assert settings.integer("nothing", default=7) == 7
    assert settings.optional_integer("new") is None
    assert settings.optional_number("old") == 3.0
    with pytest.raises(ValueError, match="there is no a or b; it must be an integer of at least 1"):
        settings.integer("a", "b")


def test_a_nested_text_config_is_read_in_place_of_the_outer_level() -> None:
    settings = Settings({"hidden_size": 1, "torch_dtype": "bfloat16", "text_config": {"hidden_size": 2}})
    assert settings.integer("hidden_size") == 2
    assert settings.dtype() is fa.bfloat16


@pytest.mark.parametrize(
    ("text", "dtype"),
    [("float32", fa.float32), ("torch.bfloat16", fa.bfloat16), ("float16", fa.float16), (None, None)],
)
def test_dtypes_in_both_spellings(text: str | None, dtype: fa.Dtype | None) -> None:
    assert Settings({"dtype": text}).dtype() is dtype
    assert Settings({"torch_dtype": text}).dtype() is dtype


@pytest.mark.parametrize("text", ["int8", "float7", 16])
def test_bad_dtypes(text: Any) -> None:
    with pytest.raises(ValueError, match="dtype"):
        Settings({"dtype": text}).dtype()


def test_words_and_lists() -> None:
    settings = Settings({"kinds": ["a", "b"], "ids": [1, 2], "id": 3, "act": "silu", "object": {}}, "here")
    assert settings.words("kinds", 2, "ab") == ("a", "b")
    assert settings.words("nothing", 2, "ab") is None
    assert settings.integers("ids") == (1, 2)
    assert settings.integers("id") == (3,)
    assert settings.integers("nothing") == ()
    assert settings.choice("act", known={"silu": 1}) == 1
    assert settings.choice("nothing", known={"silu": 1}, default="silu") == 1
    assert settings.mapping("object") == {}
    for bad in (
        lambda: settings.words("kinds", 3, "ab"),
        lambda: settings.words("kinds", 2, "a"),
        lambda: settings.integers("act"),
        lambda: settings.choice("act", known={"relu": 1}),
        lambda: settings.choice("nothing", known={"relu": 1}),
        lambda: settings.mapping("id"),
    ):
        with pytest.raises(ValueError, match="here: "):
            bad()


def test_what_is_not_implemented_is_refused() -> None:
    settings = Settings({"a": None, "b": False, "c": "x", "d": 5})
    for name in ("a", "b", "nothing"):
        settings.refuse(name)
    settings.refuse("c", "x")
    with pytest.raises(ValueError, match="d is 5, which is not implemented; it must be left out"):
        settings.refuse("d")
    with pytest.raises(ValueError, match="it must be 1"):
        settings.refuse("d", 1)


def test_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"hidden_size": 4}))
    assert Settings.load(path).integer("hidden_size") == 4
    with pytest.raises(ValueError, match=r"config\.json: there is no nothing"):
        Settings.load(path).integer("nothing")
    with pytest.raises(FileNotFoundError):
        Settings.load(tmp_path / "none.json")


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe", "qwen3_next", "gpt_oss"])
def test_more_experts_for_a_token_than_there_are(kind: str) -> None:
    entries = {
        **parity.TINY,
        "model_type": kind,
        "num_experts": 4,
        "num_experts_per_tok": 5,
        "moe_intermediate_size": 8,
    }
    settings = Settings(entries, "config.json")
    with pytest.raises(ValueError, match="num_experts_per_tok must be an integer of at least 1 and at most 4, got 5"):
        family(settings).config(settings)
