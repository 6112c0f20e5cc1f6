"""Generating: the same tokens as transformers, by every kind of cache, drafted or not."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ferrum_array as fa
from ferrum_models import (
    Batch,
    CausalLM,
    Sampling,
    Tokenizer,
    generate,
    generate_ids,
    load,
    random_model,
    step_obstacle,
    stream_generate,
    use_captured_steps,
)
from ferrum_models.generation import Draft, generate_tokens
from ferrum_models.generation.text import StopText, prompt_ids
from tests.models import parity
from tests.models.test_tokenizing import library
from tests.models.test_tokenizing import write as write_tokenizer

PROMPT = [5, 17, 3, 42, 8, 8, 1]
VOCABULARY = library().get_vocab_size()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("qwen3")
    peer = parity.make("Qwen3Config", folder, eos_token_id=None, vocab_size=VOCABULARY)
    write_tokenizer(folder)
    return folder, peer


@pytest.fixture(scope="module")
def model(pair: tuple[Path, Any], device: fa.Device) -> CausalLM:
    return load(pair[0], device=device)[0]


@pytest.fixture(scope="module")
def tokenizer(pair: tuple[Path, Any]) -> Tokenizer:
    return Tokenizer.load(pair[0])


def test_greedy_tokens_are_those_of_transformers(pair: tuple[Path, Any], model: CausalLM) -> None:
    expected = parity.greedy_of(pair[1], PROMPT, 40)
    assert list(generate_ids(model, PROMPT, max_new_tokens=40)) == expected


STRETCHED: dict[str, dict[str, Any]] = {
    "dynamic": {"rope_parameters": {"rope_type": "dynamic", "factor": 6.0, "rope_theta": 100.0}},
    "longrope": {
        "rope_parameters": {
            "rope_type": "longrope",
            "short_factor": [1.0, 1.5, 2.0, 2.0],
            "long_factor": [2.0, 3.0, 5.0, 8.0],
            "original_max_position_embeddings": 12,
            "rope_theta": 100.0,
        }
    },
}


@pytest.mark.parametrize("rope", STRETCHED)
@pytest.mark.parametrize("length", [7, 25])
def test_rope_that_depends_on_the_length(device: fa.Device, tmp_path: Path, rope: str, length: int) -> None:
    """Prompts in pieces, rows of unequal lengths and drafts give the tokens of transformers, before and beyond."""
    positions = 12 if rope == "dynamic" else 72
    peer = parity.make("LlamaConfig", tmp_path, eos_token_id=None, max_position_embeddings=positions, **STRETCHED[rope])
    model = load(tmp_path, device=device)[0]
    assert model.config.max_position_embeddings == 72
    prompt = [(n * n + 5 * n) % 61 for n in range(length)]
    expected = parity.greedy_of(peer, prompt, 16)
    assert len(set(expected)) > 3
    assert list(generate_ids(model, prompt, max_new_tokens=16)) == expected
    pieces = model.make_cache(1, 72, chunk=4)
    assert list(generate_ids(model, prompt, max_new_tokens=16, cache=pieces)) == expected
    assert list(generate_ids(model, prompt, max_new_tokens=16, draft=Draft(model, 3))) == expected
    batch = Batch(model, [prompt, [3] * 30, [4]], max_new_tokens=16)
    while batch.rows:
        batch.step()
    assert batch.ids[0] == expected
    # and as exactly as numbers can tell, in pieces as in one go
    ids = fa.asarray(prompt, device=device)
    whole = model.forward(ids, [length])
    cache = model.make_cache(1, 72)
    first = model.forward(ids[:5], [5], cache, [length])
    rest = model.forward(ids[5:], [length - 5], cache, [length])
    np.testing.assert_allclose(fa.concat([first, rest]).numpy(), whole.numpy(), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"whole must have a length for each of 1 sequences, got \[1, 2\]"):
        model.forward(ids, [length], whole=[1, 2])


@pytest.mark.parametrize("kind", ["contiguous", "paged"])
def test_every_cache_gives_the_same_tokens(model: CausalLM, kind: Any) -> None:
    expected = list(generate_ids(model, PROMPT, max_new_tokens=20))
    cache = model.make_cache(1, 40, kind=kind, block_size=4, chunk=3)
    assert list(generate_ids(model, PROMPT, max_new_tokens=20, cache=cache)) == expected
    assert cache.lengths == [len(PROMPT) + 19]


def test_a_cache_goes_on_where_it_ended(model: CausalLM) -> None:
    whole = list(generate_ids(model, PROMPT, max_new_tokens=12))
    cache = model.make_cache(1, 40)
    first = list(generate_ids(model, PROMPT, max_new_tokens=5, cache=cache))
    assert first + list(generate_ids(model, first[-1:], max_new_tokens=7, cache=cache)) == whole


@pytest.mark.parametrize(("kept", "most"), [("int8", 0.05), ("fp8_e4m3", 0.1)])
def test_coarse_keys_change_little(model: CausalLM, kept: str, most: float) -> None:
    ids = fa.asarray([PROMPT], device=model.device)
    exact = model(ids).numpy()
    found = model(ids, cache=model.make_cache(1, 40, dtype=kept)).numpy()
    error = np.linalg.norm(found - exact) / np.linalg.norm(exact)
    assert 0 < error < most


def test_steps_whose_keys_no_kernel_reads_are_not_captured() -> None:
    """On the CPU; kernels for CUDA read them."""
    tiny = {"model_type": "llama", "vocab_size": 9, "hidden_size": 8, "intermediate_size": 8}
    model = random_model({**tiny, "num_hidden_layers": 1, "num_attention_heads": 2})
    cache = model.make_cache(1, 40, dtype="fp8_e4m3")
    assert repr(cache) == "ModelCache(0 of 40 tokens, contiguous, fp8_e4m3)"
    with (
        use_captured_steps(True),
        pytest.raises(fa.CaptureError, match="layer 0 keeps fp8_e4m3, which no kernel"),
    ):
        list(generate_ids(model, [1, 2], max_new_tokens=20, cache=cache))
    plain = list(generate_ids(model, [1, 2], max_new_tokens=20, cache=model.make_cache(1, 40, dtype="fp8_e4m3")))
    assert plain == list(generate_ids(model, [1, 2], max_new_tokens=20, kv_dtype="fp8_e4m3"))
    assert step_obstacle(model) is None, "other caches of the model are not told by this one"


@pytest.mark.cuda
def test_steps_over_codes_are_captured_on_cuda() -> None:
    tiny = {"model_type": "llama", "vocab_size": 9, "hidden_size": 8, "intermediate_size": 8}
    gpu = fa.Device("cuda:0")
    model = random_model({**tiny, "num_hidden_layers": 1, "num_attention_heads": 2}, device=gpu)
    told = []
    for use in (True, False):
        with use_captured_steps(use):
            told.append(list(generate_ids(model, [1, 2], max_new_tokens=20, kv_dtype="fp8_e4m3")))
    assert told[0] == told[1]


def test_texts_end_at_their_end(model: CausalLM) -> None:
    whole = list(generate_ids(model, PROMPT, max_new_tokens=20))
    stop = whole[7]
    expected = whole[: whole.index(stop) + 1]
    assert list(generate_ids(model, PROMPT, max_new_tokens=20, stop_ids=[stop])) == expected
    assert list(generate_ids(model, PROMPT, max_new_tokens=0)) == []


def test_logprobs_are_those_of_the_model(pair: tuple[Path, Any], model: CausalLM) -> None:
    tokens = list(generate_tokens(model, PROMPT, max_new_tokens=6))
    logits = parity.logits_of(pair[1], np.asarray([PROMPT + [one.id for one in tokens]]))[0].astype(np.float64)
    for place, one in enumerate(tokens, len(PROMPT) - 1):
        row = logits[place]
        assert one.logprob == pytest.approx(row[one.id] - np.log(np.sum(np.exp(row - row.max()))) - row.max(), abs=1e-4)


# Chance.


def test_the_same_seed_gives_the_same_text(model: CausalLM) -> None:
    rules = Sampling(temperature=1.0, top_k=20, top_p=0.9, min_p=0.01, seed=3)
    first = list(generate_ids(model, PROMPT, max_new_tokens=15, sampling=rules))
    assert list(generate_ids(model, PROMPT, max_new_tokens=15, sampling=rules)) == first
    others = [list(generate_ids(model, PROMPT, max_new_tokens=15, sampling=rules.with_seed(n))) for n in range(4, 8)]
    assert any(other != first for other in others)


def test_the_same_seed_gives_the_same_text_on_every_storage(pair: tuple[Path, Any], model: CausalLM) -> None:
    rules = Sampling(temperature=1.0, top_p=0.9, seed=3)
    expected = list(generate_ids(load(pair[0], device="cpu")[0], PROMPT, max_new_tokens=15, sampling=rules))
    assert list(generate_ids(model, PROMPT, max_new_tokens=15, sampling=rules)) == expected


def test_penalties_and_biases_are_honoured(model: CausalLM) -> None:
    plain = list(generate_ids(model, PROMPT, max_new_tokens=15))
    rules = Sampling(logit_bias={plain[0]: -float("inf")})
    assert plain[0] not in list(generate_ids(model, PROMPT, max_new_tokens=15, sampling=rules))
    rules = Sampling(presence_penalty=1e4)
    found = list(generate_ids(model, PROMPT, max_new_tokens=15, sampling=rules))
    assert len(set(found)) == 15
    rules = Sampling(repetition_penalty=1e6)
    found = list(generate_ids(model, PROMPT, max_new_tokens=15, sampling=rules))
    assert not set(found) & set(PROMPT)


# Drafts.


@pytest.mark.parametrize("tokens", [1, 2, 5])
@pytest.mark.parametrize("own", [True, False])
def test_drafts_do_not_change_greedy_text(
    model: CausalLM, tmp_path_factory: pytest.TempPathFactory, tokens: int, own: bool
) -> None:
    if own:  # the model drafts for itself: all is accepted
        helper = model
    else:
        folder = tmp_path_factory.mktemp("draft")
        parity.make("Qwen3Config", folder, seed=1, eos_token_id=None, vocab_size=VOCABULARY)
        helper = load(folder, device=model.device)[0]
    expected = list(generate_ids(model, PROMPT, max_new_tokens=17))
    found = list(generate_tokens(model, PROMPT, max_new_tokens=17, draft=Draft(helper, tokens)))
    assert [one.id for one in found] == expected
    if own:
        assert sum(one.drafted for one in found) >= 17 * tokens // (tokens + 1) - tokens
    for n in range(1, 8):
        assert list(generate_ids(model, PROMPT, max_new_tokens=n, draft=Draft(helper, tokens))) == expected[:n]


def test_drafts_keep_the_distribution(pair: tuple[Path, Any]) -> None:
    """The first token, over many seeds: as often as the model alone says, within five standard deviations."""
    model = load(pair[0])[0]
    helper = load(pair[0], dtype="bf16")[0]
    runs = 150

    def counts(draft: Draft | None) -> Counter[int]:
        found: Counter[int] = Counter()
        for seed in range(runs):
            rules = Sampling(temperature=1.5, top_k=4, seed=seed)
            found[next(generate_ids(model, PROMPT, max_new_tokens=2, sampling=rules, draft=draft))] += 1
        return found

    plain, drafted = counts(None), counts(Draft(helper, 2))
    assert set(plain) | set(drafted) == set(plain) & set(drafted)
    for one, n in plain.items():
        assert abs(n - drafted[one]) < 5 * (2 * n * (1 - n / runs) + 1) ** 0.5


# Text.


def test_pieces_are_the_whole(model: CausalLM, tokenizer: Tokenizer) -> None:
    pieces = list(stream_generate(model, tokenizer, "the fox", max_tokens=12))
    text = "".join(piece.text for piece in pieces)
    assert generate(model, tokenizer, "the fox", max_tokens=12) == text
    assert tokenizer.decode([piece.token for piece in pieces], skip_special_tokens=True) == text
    last = pieces[-1]
    assert [piece.finish_reason for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert last.finish_reason == ("length" if last.generation_tokens == 12 else "stop")
    assert last.prompt_tokens == len(tokenizer.encode("the fox"))
    assert last.prompt_tps > 0
    assert last.peak_memory > 1 << 20


def test_stop_texts_end_the_answer_and_are_not_in_it(model: CausalLM, tokenizer: Tokenizer) -> None:
    text = generate(model, tokenizer, "the fox", max_tokens=30, stop_ids=())
    stop = text[5:8]
    pieces = list(stream_generate(model, tokenizer, "the fox", max_tokens=30, stop_ids=(), stop=[stop]))
    assert "".join(piece.text for piece in pieces) == text[: text.find(stop)]
    assert pieces[-1].finish_reason == "stop"


def test_conversations_go_through_the_template(model: CausalLM, tokenizer: Tokenizer) -> None:
    messages = [{"role": "user", "content": "the fox"}]
    ids = tokenizer.apply_chat_template(messages)
    assert generate(model, tokenizer, messages, max_tokens=5) == generate(model, tokenizer, ids, max_tokens=5)


@given(
    pieces=st.lists(st.text("abE", max_size=4), max_size=8),
    stops=st.lists(st.text("abE", min_size=1, max_size=3), min_size=1, max_size=2),
)
def test_stop_texts_are_found_however_text_comes(pieces: list[str], stops: list[str]) -> None:
    stop, found = StopText(stops), ""
    for piece in pieces:
        found += stop.add(piece)
        if stop.stopped:
            break
    if not stop.stopped:
        found += stop.flush()
    whole = "".join(pieces)
    places = [place for one in stops if (place := whole.find(one)) >= 0]
    assert stop.stopped == bool(places)
    if not places:
        assert found == whole
    else:  # the text up to a stop text, of which the earliest that was whole ended it
        assert whole.startswith(found)
        assert any(whole[len(found) :].startswith(one) for one in stops)
        assert not any(one in found for one in stops)


def test_progress_is_told(model: CausalLM, tokenizer: Tokenizer) -> None:
    seen: list[tuple[int, int]] = []
    generate(model, tokenizer, "the", max_tokens=4, stop_ids=(), progress=lambda *now: seen.append(now))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


# What is refused.


@pytest.mark.parametrize(
    ("ids", "options", "message"),
    [
        ([], {}, "the prompt is empty"),
        ([999], {}, "the prompt has the id 999, but the vocabulary has"),
        ([-1], {}, "the prompt has the id -1"),
        ([1] * 129, {}, "the prompt has 129 tokens, but the model's positions end at 128"),
        ([1], {"max_new_tokens": -1}, "max_new_tokens must be an integer of at least 0"),
    ],
)
def test_prompts_that_are_refused(model: CausalLM, ids: list[int], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate_ids(model, ids, **{"max_new_tokens": 1, **options})


def test_caches_that_are_refused(model: CausalLM) -> None:
    with pytest.raises(ValueError, match="one text needs a cache of one sequence"):
        generate_ids(model, [1], max_new_tokens=1, cache=model.make_cache(2, 8))
    with pytest.raises(ValueError, match="the prompt reaches 9 tokens"):
        generate_ids(model, [1] * 9, max_new_tokens=1, cache=model.make_cache(1, 8))
    assert len(list(generate_ids(model, [1] * 8, max_new_tokens=5, cache=model.make_cache(1, 8)))) == 1
    with pytest.raises(ValueError, match="penalties and a draft model together"):
        generate_ids(model, [1], max_new_tokens=1, sampling=Sampling(presence_penalty=1.0), draft=Draft(model))
    with pytest.raises(ValueError, match="capacity is 129, but the model's positions end at 128"):
        model.make_cache(1, 129)
    with pytest.raises(ValueError, match="a sequence would have 9 tokens, but the cache has room for 8"):
        model(fa.zeros((1, 9), dtype="i64", device=model.device), cache=model.make_cache(1, 8))


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1.0}, {"temperature": float("nan")}, {"top_k": 0}, {"top_k": 1.5}, {"top_p": 0.0},
        {"top_p": 1.1}, {"min_p": -0.1}, {"repetition_penalty": 0.0}, {"seed": -1}, {"presence_penalty": None},
    ],
)  # fmt: skip
def test_rules_that_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"Sampling: {next(iter(options))} must be"):
        Sampling(**options)


def test_biases_outside_the_vocabulary(model: CausalLM) -> None:
    with pytest.raises(ValueError, match="999 is no id of a vocabulary of"):
        list(generate_ids(model, [1], max_new_tokens=1, sampling=Sampling(logit_bias={999: 1.0})))


def test_rules_come_from_the_folder(tmp_path: Path) -> None:
    assert Sampling.load(tmp_path) == Sampling()
    path = tmp_path / "generation_config.json"
    path.write_text('{"do_sample": true, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "repetition_penalty": 1.1}')
    assert Sampling.load(tmp_path) == Sampling(0.6, 20, 0.95, None, 1.1)
    path.write_text('{"temperature": 0.6, "top_k": 20}')
    assert Sampling.load(tmp_path).greedy


@pytest.mark.parametrize("ids", ["text", ["a"], [1.0], [True]])
def test_prompts_that_are_no_ids(model: CausalLM, ids: Any) -> None:
    with pytest.raises(TypeError, match="a prompt is a list of integer ids here"):
        generate_ids(model, ids, max_new_tokens=1)


def test_lists_are_no_tensors() -> None:
    model: Any = random_model({"model_type": "llama", **parity.TINY})
    with pytest.raises(TypeError, match="ids must be a Tensor, got list"):
        model([[1, 2]])
    with pytest.raises(TypeError, match="mask must be a Tensor, got list"):
        model(fa.asarray([[1, 2]]), mask=[[1, 1]])


def test_a_temperature_must_be_finite() -> None:
    with pytest.raises(ValueError, match="temperature must be finite and at least 0, got inf"):
        Sampling(temperature=float("inf"))


@pytest.mark.parametrize("prompt", [None, b"abc", 7, [True, False]])
def test_prompts_of_other_types_are_refused(prompt: Any, tokenizer: Tokenizer) -> None:
    with pytest.raises(TypeError, match="prompt must be a text, ids or messages, got"):
        prompt_ids(tokenizer, prompt)
