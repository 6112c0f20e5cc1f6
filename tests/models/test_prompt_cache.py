"""Prompts that are read once: the same tokens as without, after any change of mind, from memory and from files."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ferrum_array as fa
from ferrum_array.testing import assert_close
from ferrum_models import (
    CausalLM,
    PromptCache,
    Sampling,
    generate_ids,
    load_prompt_cache,
    random_model,
    save_prompt_cache,
)
from ferrum_models.generation import Draft
from ferrum_models.generation.tokens import prefill
from tests.models.memories import LATENT, MODELS, ON_CPU, RECURRENT, TINY, WINDOWED, alone


@pytest.fixture(scope="module")
def model(device: fa.Device) -> CausalLM:
    return random_model(TINY, device=device)


@pytest.fixture(scope="module")
def windowed(device: fa.Device) -> CausalLM:
    return random_model(WINDOWED, seed=3, device=device)


class Counting:
    """Counts the tokens that a model reads."""

    def __init__(self, model: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tokens = 0
        forward = CausalLM.forward

        def counted(one: CausalLM, ids: fa.Tensor, *rest: Any) -> fa.Tensor:
            if one is model:
                self.tokens += ids.shape[0]
            return forward(one, ids, *rest)

        monkeypatch.setattr(CausalLM, "forward", counted)


prompts = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=14), min_size=1, max_size=4)


@given(
    texts=prompts,
    kind=st.sampled_from(["plain", "windowed", "recurrent", "latent", "dynamic", "long"]),
    paged=st.booleans(),
    chunk=st.sampled_from([3, 4, 512]),
    drafts=st.booleans(),
)
def test_any_sequence_of_prompts_gives_the_tokens_of_each_alone(
    texts: list[list[int]], kind: str, paged: bool, chunk: int, drafts: bool
) -> None:
    model = MODELS[kind]
    draft = Draft(MODELS["recurrent" if kind == "latent" else kind], 2) if drafts else None
    kept = PromptCache(model, kind="paged" if paged else "contiguous", chunk=chunk)
    for text in texts:
        found = alone(model, text, prompt_cache=kept, draft=draft)
        assert found == alone(model, text)
        assert kept.ids == [*text, *found[:-1]]
        assert kept.shared([*text, *found]) in (0, len(text) + len(found) - 1)


@given(
    kind=st.sampled_from(["dynamic", "long"]),
    first=st.integers(1, 14),
    answer=st.integers(1, 8),
    same=st.integers(1, 20),
    more=st.integers(1, 8),
    saved=st.booleans(),
)
def test_what_turns_otherwise_in_another_text_is_read_again(
    kind: str, first: int, answer: int, same: int, more: int, saved: bool
) -> None:
    model = MODELS[kind]
    kept = PromptCache(model)
    text = list(range(first))
    text += alone(model, text, answer, prompt_cache=kept)
    asked = [*text[:same], *[40] * more]
    if saved:
        with TemporaryDirectory() as folder:
            save_prompt_cache(Path(folder) / "prompt.safetensors", kept)
            kept = load_prompt_cache(Path(folder) / "prompt.safetensors", model)
    if len(text) <= 8 and len(asked) <= 8:
        assert kept.shared(asked) >= min(same, len(text) - 1)
    rest, cache = kept.begin(asked, 1)
    expected = model(fa.asarray([asked]))[0, -1]
    assert_close(prefill(model, rest, cache)[0], expected, rtol=1e-4, atol=1e-5)


def test_only_what_differs_is_read(model: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = PromptCache(model)
    first = alone(model, [1, 2, 3, 4, 5], prompt_cache=kept)
    count = Counting(model, monkeypatch)
    alone(model, [1, 2, 3, 9], 1, prompt_cache=kept)
    assert count.tokens == 1
    alone(model, [1, 2, 3, 9], 1, prompt_cache=kept)  # the last is read again: its logits are needed
    assert count.tokens == 2
    alone(model, [7, 2, 3, 9], 1, prompt_cache=kept)
    assert count.tokens == 6
    kept.clear()
    assert (kept.ids, repr(kept)) == ([], "PromptCache(0 of 600 tokens)")
    assert alone(model, [1, 2, 3, 4, 5], prompt_cache=kept) == first


def test_memory_grows_with_the_text() -> None:
    model = ON_CPU
    kept = PromptCache(model)
    text = [5, 6, 7]
    for tokens in (250, 20, 280):  # beyond 256, and beyond 512
        found = alone(model, text, tokens, prompt_cache=kept)
        assert found == alone(model, text, tokens)
        assert kept.cache is not None
        assert len(text) + tokens <= kept.cache.room.capacity <= 600
        text += found
    assert kept.shared(text) == len(text) - 1


def test_a_ring_grows_and_goes_back() -> None:
    windowed = MODELS["windowed"]
    kept = PromptCache(windowed, chunk=4)
    text = [5, 6, 7] * 90
    first = alone(windowed, text, 3, prompt_cache=kept)
    assert kept.shared([*text[:-2], 1]) == len(text) - 2
    assert kept.shared([*text[:-9], 1]) == 0  # overwritten
    near = [*text[:-1], 1]
    assert alone(windowed, near, 1, prompt_cache=kept) == alone(windowed, near, 1)
    assert kept.shared([*text[:-3], 1]) == 0  # two are forgotten already, and three more would be too many
    assert kept.shared([*text[:-2], 1]) == len(text) - 2
    assert alone(windowed, text, 300, prompt_cache=kept)[:3] == first


def test_a_limit_ends_texts(model: CausalLM) -> None:
    kept = PromptCache(model, limit=8)
    whole = alone(model, [1, 2, 3], 20)
    assert alone(model, [1, 2, 3], 20, prompt_cache=kept) == whole[:6]
    with pytest.raises(ValueError, match="the prompt has 9 tokens, but the prompt cache is limited to 8"):
        alone(model, [1] * 9, prompt_cache=kept)
    for limit in (0, 601, True):
        with pytest.raises(ValueError, match="limit must be from 1 to the model's positions, 600"):
            PromptCache(model, limit=limit)


@pytest.mark.parametrize("dtype", ["int8", None])
def test_answers_that_are_broken_off_leave_it_whole(model: CausalLM, dtype: str | None) -> None:
    kept = PromptCache(model, dtype=dtype)
    options = {} if dtype is None else {"kv_dtype": dtype}
    text, whole = [1, 2, 3], alone(model, [1, 2, 3], 12, **options)
    for draft in (None, Draft(model, 3)):
        tokens = generate_ids(model, text, max_new_tokens=12, prompt_cache=kept, draft=draft)
        assert [next(tokens) for _ in range(5)] == whole[:5]
        del tokens
        assert kept.ids == [*text, *whole[:5]][: len(kept.ids)]
        assert alone(model, text, 12, prompt_cache=kept) == whole


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("kind", ["recurrent", "latent"])
def test_drafts_of_every_kind(device: fa.Device, kind: str, tokens: int) -> None:
    configs = {"recurrent": RECURRENT, "latent": LATENT}
    model = random_model(configs[kind], seed=3, device=device)
    expected = alone(model, [1, 2, 3], 12)
    assert len(set(expected)) > 3
    helpers = [model, random_model(RECURRENT if kind == "recurrent" else TINY, seed=1, device=device)]
    for helper in helpers:
        draft = Draft(helper, tokens)
        assert alone(model, [1, 2, 3], 12, draft=draft) == expected
        rules = Sampling(temperature=1.0, top_k=3, seed=2)
        kept = PromptCache(model)
        first = alone(model, [1, 2, 3], 5, sampling=rules, draft=draft, prompt_cache=kept)
        assert kept.ids == [1, 2, 3, *first[:-1]]
        text = [1, 2, 3, *first, 7]
        again = alone(model, text, 5, sampling=rules, draft=draft, prompt_cache=kept)
        assert again == alone(model, text, 5, sampling=rules, draft=draft)


def test_states_are_kept_with_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A conversation goes on where it ended, also from a file; another one begins anew."""
    model, path = MODELS["recurrent"], tmp_path / "prompt.safetensors"
    kept = PromptCache(model)
    text = [1, 2, 3] * 50
    text += alone(model, text, 120, prompt_cache=kept)
    save_prompt_cache(path, kept)
    count = Counting(model, monkeypatch)
    for one in (kept, load_prompt_cache(path, model)):
        assert one.shared([*text, 5]) == len(text) - 1
        count.tokens = 0
        found = alone(model, [*text, 5], prompt_cache=one)
        assert count.tokens == 2 + 5
        assert found == alone(model, [*text, 5])
        assert one.shared([*text, 5]) == 0  # a state cannot go back
        assert alone(model, [*text, 5], prompt_cache=one) == found
    with fa.io.open_safetensors(path) as file:
        tensors, about = dict(file), dict(file.metadata)
    tensors["layers.0.delta"] = tensors["layers.0.delta"][:, :1]
    fa.io.save_safetensors(tensors, path, metadata=about)
    with pytest.raises(ValueError, match=r"layers\.0\.delta must be"):
        load_prompt_cache(path, model)


def test_states_of_a_broken_off_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    model = MODELS["recurrent"]
    expected = alone(model, [1, 2, 3], 9)
    for n in range(1, 8):
        kept = PromptCache(model)
        tokens = generate_ids(model, [1, 2, 3], max_new_tokens=9, prompt_cache=kept, draft=Draft(model, 3))
        assert [next(tokens) for _ in range(n)] == expected[:n]
        assert kept.ids in ([], [1, 2, 3, *expected[: n - 1]], [1, 2, 3, *expected[:n]])
        assert alone(model, [1, 2, 3], 9, prompt_cache=kept) == expected


def test_chance_and_penalties_see_the_whole_prompt(model: CausalLM) -> None:
    rules = Sampling(temperature=1.0, repetition_penalty=3.0, presence_penalty=1.0, seed=4)
    kept = PromptCache(model)
    for text in ([1, 2, 3], [1, 2, 3, 4, 5], [1, 2, 3]):
        assert alone(model, text, sampling=rules, prompt_cache=kept) == alone(model, text, sampling=rules)


def test_drafts_remember_too(model: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    helper = random_model(TINY, seed=1, device=model.device)
    kept, draft = PromptCache(model), Draft(helper, 3)
    text = [1, 2, 3, 4]
    found = alone(model, text, prompt_cache=kept, draft=draft)
    assert found == alone(model, text)
    count = Counting(helper, monkeypatch)
    for end in ([7], [8, 9]):
        text = [*text, *found, *end]
        found = alone(model, text, prompt_cache=kept, draft=draft)
        assert found == alone(model, text)
    count.tokens = 0
    assert len(alone(model, [*text, *found], 1, prompt_cache=kept, draft=draft)) == 1
    assert count.tokens <= 3  # of the answer what was not drafted, and a draft
    other = random_model(TINY, seed=2, device=model.device)
    assert alone(model, text, prompt_cache=kept, draft=Draft(other)) == found


@pytest.mark.parametrize("kept_in", ["int8", "fp8_e4m3"])
def test_coarse_keys_go_through_generation(model: CausalLM, kept_in: str) -> None:
    text = [1, 2, 3, 4]
    cache = model.make_cache(1, 40, dtype=kept_in)
    expected = alone(model, text, cache=cache)
    assert alone(model, text, kv_dtype=kept_in) == expected
    assert alone(model, text, prompt_cache=PromptCache(model, dtype=kept_in)) == expected


def test_drafts_that_are_refused(model: CausalLM) -> None:
    for tokens in (0, -1, True, 1.5):
        wrong: Any = tokens
        with pytest.raises(ValueError, match="a draft must propose an integer of at least 1 tokens"):
            alone(model, [1], draft=Draft(model, wrong))
    if model.device is not ON_CPU.device:
        with pytest.raises(ValueError, match="the draft model lies on cpu, the model on"):
            alone(model, [1], draft=Draft(ON_CPU))


def test_only_one_place_for_keys(model: CausalLM) -> None:
    with pytest.raises(ValueError, match="cache, kv_dtype and prompt_cache exclude each other"):
        generate_ids(model, [1], max_new_tokens=1, prompt_cache=PromptCache(model), kv_dtype="int8")
