"""What a prompt cache remembers, in files: brought back, used, and refused where it does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ferrum_array as fa
from ferrum_models import (
    CausalLM,
    PromptCache,
    load_prompt_cache,
    random_model,
    save_prompt_cache,
)
from tests.models.memories import ON_CPU, TINY, WINDOWED, alone


@pytest.fixture(scope="module")
def model(device: fa.Device) -> CausalLM:
    return random_model(TINY, device=device)


@pytest.fixture(scope="module")
def windowed(device: fa.Device) -> CausalLM:
    return random_model(WINDOWED, seed=3, device=device)


@pytest.mark.parametrize("kind", ["contiguous", "paged"])
@pytest.mark.parametrize("dtype", [None, "int8", "fp8_e4m3", "bf16"])
@pytest.mark.parametrize("ring", [False, True])
def test_files_bring_it_back(
    tmp_path: Path, model: CausalLM, windowed: CausalLM, kind: Any, dtype: str | None, ring: bool
) -> None:
    one = windowed if ring else model
    path = tmp_path / "prompt.safetensors"
    text = [4, 5, 6] * 100
    kept = PromptCache(one, dtype=dtype, kind=kind, chunk=7)
    alone(one, text, prompt_cache=kept)
    alone(one, [*text[:-1], 8], 1, prompt_cache=kept)  # a ring that went back has less to go back to
    save_prompt_cache(path, kept)
    back = load_prompt_cache(path, one)
    assert back.shared([*text[:-4], 8]) == kept.shared([*text[:-4], 8]) == (0 if ring else len(text) - 4)
    assert back.ids == kept.ids
    assert back.cache is not None
    assert kept.cache is not None
    assert (back.cache.room.kind, back.cache.room.kept) == (kind, kept.cache.room.kept)
    for asked in ([*text[:-2], 8, 8], [*text, 9], text[:-1], [1, 2], text):
        assert back.shared(asked) == kept.shared(asked)
        assert alone(one, asked, prompt_cache=back) == alone(one, asked, prompt_cache=kept)
    again = tmp_path / "again.safetensors"
    save_prompt_cache(again, load_prompt_cache(path, one))
    assert again.read_bytes() == path.read_bytes()


def test_what_a_file_holds_is_used(tmp_path: Path) -> None:
    """Numbers that were changed in the file change what follows."""
    path = tmp_path / "prompt.safetensors"
    kept = PromptCache(ON_CPU)
    alone(ON_CPU, [4, 5, 6, 7], 1, prompt_cache=kept)
    save_prompt_cache(path, kept)
    with fa.io.open_safetensors(path) as file:
        tensors, about = dict(file), dict(file.metadata)
    assert set(tensors) == {"ids", "layers.0.k", "layers.0.v", "layers.1.k", "layers.1.v"}
    tensors["layers.0.v"] = tensors["layers.0.v"] + 9
    fa.io.save_safetensors(tensors, path, metadata=about)
    logits = []
    for one in (kept, load_prompt_cache(path, ON_CPU)):
        rest, cache = one.begin([4, 5, 6, 7, 8], 1)
        assert rest == [8]
        logits.append(ON_CPU(fa.asarray([rest]), cache=cache).numpy())
    assert np.max(np.abs(logits[0] - logits[1])) > 0.1


def test_a_file_of_one_storage_serves_another(tmp_path: Path, model: CausalLM) -> None:
    path = tmp_path / "prompt.safetensors"
    text = [4, 5, 6, 7, 8]
    kept = PromptCache(ON_CPU)
    expected = alone(ON_CPU, text, prompt_cache=kept)
    save_prompt_cache(path, kept)
    back = load_prompt_cache(path, model)
    assert back.shared(text) == 4
    assert alone(model, text, prompt_cache=back) == expected


def test_files_that_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "prompt.safetensors"
    kept = PromptCache(ON_CPU)
    with pytest.raises(ValueError, match="remembers nothing yet"):
        save_prompt_cache(path, kept)
    alone(ON_CPU, [1, 2, 3], prompt_cache=kept)
    save_prompt_cache(path, kept)
    others = [
        random_model(TINY, seed=1),
        random_model({**TINY, "rope_theta": 5.0}),
        random_model({**TINY, "num_hidden_layers": 3}),
        random_model(TINY, dtype="bf16"),
    ]
    for other in others:
        with pytest.raises(ValueError, match="was made with another model, or with this one in another dtype"):
            load_prompt_cache(path, other)
        with pytest.raises(ValueError, match="the prompt cache belongs to another model"):
            alone(other, [1], prompt_cache=kept)
    with pytest.raises(ValueError, match="has up to 8 tokens, but the limit is 7"):
        load_prompt_cache(path, ON_CPU, limit=7)
    with pytest.raises(FileNotFoundError):
        load_prompt_cache(tmp_path / "none.safetensors", ON_CPU)
    content = path.read_bytes()
    for size in (0, 7, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(ValueError, match=r"prompt\.safetensors"):
            load_prompt_cache(path, ON_CPU)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("format", "something", "is no prompt cache"),
        ("kind", "heap", "said to be heap"),
        ("dtype", "i32", "in i32"),
        ("chunk", "0", "chunk is '0'"),
        ("chunk", "", "chunk is ''"),
        ("prompt", "", "prompt is ''"),
        ("reached", "-1", "reached is '-1'"),
        ("reached", "2", "to have reached 2"),
        ("reached", "99999999999", "the limit is 600"),
        ("ids", [1, 2, 41], "its tokens do not fit"),
        ("ids", [], "its tokens do not fit"),
        ("ids", [[1], [2]], "its tokens do not fit"),
        ("ids", [1, 2, 3, 4, 5, 6, 7, 8, 9], "to have reached 8"),
        ("ids", [1.0], "its tokens do not fit"),
        ("ids", [1, 2, 3, 4, 5, 6, 7, 7, 7, 7], "said to be"),
        ("layers.1.k", None, "layers.1.k must be float32 .8, 2, 8., it is missing"),
        ("layers.1.k", [[[1.0]]], r"got float32 \(1, 1, 1\)"),
        ("layers.2.k", [1.0], "layers.2.k do not belong to this model"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, name: str, value: Any, message: str) -> None:
    path = tmp_path / "prompt.safetensors"
    kept = PromptCache(ON_CPU)
    alone(ON_CPU, [1, 2, 3], prompt_cache=kept)
    save_prompt_cache(path, kept)
    with fa.io.open_safetensors(path) as file:
        tensors, about = dict(file), dict(file.metadata)
    if name in about:
        about[name] = value
    elif value is None:
        del tensors[name]
    else:
        tensors[name] = fa.asarray(value)
    fa.io.save_safetensors(tensors, path, metadata=about)
    with pytest.raises(ValueError, match=message):
        load_prompt_cache(path, ON_CPU)
