"""Prompts that are read once: the same tokens as without, after any change of mind, from memory and from files."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
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

TINY: dict[str, Any] = {
    "model_type": "qwen3",
    "vocab_size": 41,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 600,
}
WINDOWED = {**TINY, "model_type": "mistral", "sliding_window": 5}
MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 12, "norm_topk_prob": True}
#: heads turn by other angles in texts of more than 8 tokens
DYNAMIC = {**TINY, "max_position_embeddings": 8, "rope_scaling": {"rope_type": "dynamic", "factor": 9.0}}
LONG = {
    **TINY,
    "rope_scaling": {
        "rope_type": "longrope",
        "short_factor": [1.0] * 4,
        "long_factor": [1.0, 3.0, 9.0, 27.0],
        "original_max_position_embeddings": 8,
    },
}
RECURRENT = {
    **TINY,
    **MOE,
    "model_type": "qwen3_next",
    "num_hidden_layers": 3,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "num_experts": 4,
    "shared_expert_intermediate_size": 12,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 6,
    "linear_value_head_dim": 5,
    "linear_conv_kernel_dim": 4,
}
LATENT = {
    **TINY,
    **MOE,
    "model_type": "deepseek_v3",
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4,
    "v_head_dim": 7,
    "n_routed_experts": 4,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "n_shared_experts": 1,
    "routed_scaling_factor": 1.5,
}


@pytest.fixture(scope="module")
def model(device: fa.Device) -> CausalLM:
    return random_model(TINY, device=device)


@pytest.fixture(scope="module")
def windowed(device: fa.Device) -> CausalLM:
    return random_model(WINDOWED, seed=3, device=device)


def alone(model: CausalLM, ids: list[int], tokens: int = 6, **options: Any) -> list[int]:
    return list(generate_ids(model, ids, max_new_tokens=tokens, **options))


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


ON_CPU = random_model(TINY, device="cpu")
MODELS = {
    "plain": ON_CPU,
    "windowed": random_model(WINDOWED, seed=3, device="cpu"),
    "recurrent": random_model(RECURRENT, seed=3, device="cpu"),
    "latent": random_model(LATENT, seed=3, device="cpu"),
    "dynamic": random_model(DYNAMIC, seed=3, device="cpu"),
    "long": random_model(LONG, seed=3, device="cpu"),
}


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


# Files.


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
