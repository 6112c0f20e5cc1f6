"""Batches: each row is what it is alone, whatever its neighbours are and whenever they end."""

from __future__ import annotations

from typing import Any

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
    generate_batch,
    generate_ids,
    random_model,
)
from ferrum_models.generation import generate_tokens
from tests.models.memories import LATENT, MOE, RECURRENT, TINY
from tests.models.test_tokenizing import library
from tests.models.test_tokenizing import write as write_tokenizer

VOCABULARY = library().get_vocab_size()
CONFIGS: dict[str, dict[str, Any]] = {
    "qwen3": {**TINY, "vocab_size": VOCABULARY},
    "windowed": {**TINY, "vocab_size": VOCABULARY, "model_type": "mistral", "sliding_window": 5},
    "experts": {**TINY, **MOE, "vocab_size": VOCABULARY, "model_type": "qwen3_moe", "num_experts": 4},
    "recurrent": {**RECURRENT, "vocab_size": VOCABULARY},
    "latent": {**LATENT, "vocab_size": VOCABULARY},
}


@pytest.fixture(scope="module", params=CONFIGS)
def model(request: pytest.FixtureRequest, device: fa.Device) -> CausalLM:
    return random_model(CONFIGS[request.param], seed=3, device=device)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(write_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def finished(batch: Batch) -> list[list[int]]:
    while batch.rows:
        found = batch.step()
        assert found
    assert batch.step() == {}
    return batch.ids


PROMPTS = [[5, 17, 3, 42, 8, 8, 1], [9], [5, 17, 3, 42, 8, 8, 1, 30, 31, 32, 33, 34], [9, 9], [200, 100, 50]]


@pytest.mark.parametrize("kind", ["contiguous", "paged"])
def test_rows_are_what_they_are_alone(model: CausalLM, kind: Any) -> None:
    rules = Sampling(temperature=1.0, top_p=0.95, repetition_penalty=1.5, presence_penalty=0.3, seed=5)
    seeds = [3, 1, 4, 1, 5]
    alone = [
        list(generate_ids(model, prompt, max_new_tokens=12, sampling=rules.with_seed(seed)))
        for prompt, seed in zip(PROMPTS, seeds, strict=True)
    ]
    assert len({one for row in alone for one in row}) > 10
    assert finished(Batch(model, PROMPTS, max_new_tokens=12, sampling=rules, seeds=seeds, kind=kind)) == alone
    # rows that end early do not disturb the others
    stops = {alone[0][2], alone[1][5], alone[4][0]}
    ended = [row[: next((n for n, one in enumerate(row, 1) if one in stops), len(row))] for row in alone]
    assert len({len(row) for row in ended}) > 2
    found = Batch(model, PROMPTS, max_new_tokens=12, sampling=rules, seeds=seeds, stop_ids=stops, kind=kind)
    assert finished(found) == ended


ON_CPU = random_model(CONFIGS["qwen3"], device="cpu")


@given(
    prompts=st.lists(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=9), min_size=1, max_size=5),
    tokens=st.integers(0, 6),
    ends=st.lists(st.integers(0, 6), max_size=5),
    int8=st.booleans(),
)
def test_rows_of_any_lengths_that_end_at_any_time(
    prompts: list[list[int]], tokens: int, ends: list[int], int8: bool
) -> None:
    dtype = "int8" if int8 else None
    alone = [list(generate_ids(ON_CPU, one, max_new_tokens=tokens, kv_dtype=dtype)) for one in prompts]
    batch = Batch(ON_CPU, prompts, max_new_tokens=tokens, kv_dtype=dtype)
    limits = dict(enumerate(ends))
    while batch.rows:
        for row in list(batch.rows):
            if len(batch.ids[row]) >= limits.get(row, tokens):
                batch.end(row)
        batch.step()
    assert batch.ids == [row[: limits.get(number, tokens)] for number, row in enumerate(alone)]


def test_prompts_longer_than_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ferrum_models.generation.batch._PASS", 50)
    prompts = [[n % VOCABULARY for n in range(length)] for length in (30, 130, 1, 44, 7, 49)]
    alone = [list(generate_ids(ON_CPU, one, max_new_tokens=3)) for one in prompts]
    assert finished(Batch(ON_CPU, prompts, max_new_tokens=3)) == alone


def test_tokens_say_how_likely_they_are() -> None:
    rows: list[list[Any]] = [[], []]
    batch = Batch(ON_CPU, PROMPTS[:2], max_new_tokens=4)
    while batch.rows:
        for row, token in batch.step().items():
            rows[row].append(token)
    for prompt, found in zip(PROMPTS, rows, strict=False):
        for one, other in zip(found, generate_tokens(ON_CPU, prompt, max_new_tokens=4), strict=True):
            assert (one.id, one.last, one.drafted) == (other.id, other.last, other.drafted)
            assert one.logprob == pytest.approx(other.logprob, abs=1e-5)


def test_rows_end_where_the_positions_do() -> None:
    alone = [list(generate_ids(ON_CPU, [3] * n, max_new_tokens=9)) for n in (597, 5, 600)]
    assert [len(one) for one in alone] == [4, 9, 1]
    assert finished(Batch(ON_CPU, [[3] * 597, [3] * 5, [3] * 600], max_new_tokens=9)) == alone


TEXTS = ["the fox", "quick brown", "ż", "the quick brown fox the quick", "x"]


@pytest.mark.parametrize("name", ["qwen3", "recurrent"])
def test_texts_are_those_alone(tokenizer: Tokenizer, name: str) -> None:
    model = random_model(CONFIGS[name], seed=3, device="cpu")
    plain = [generate(model, tokenizer, text, max_tokens=12, stop_ids=()) for text in TEXTS]
    assert len(set(plain)) > 1
    stop = [plain[0][4:6], plain[3][6:8]]
    rules = Sampling(temperature=0.7, seed=2)
    for sampling, size in ((None, 2), (rules, 8)):
        options: dict[str, Any] = {"max_tokens": 12, "sampling": sampling, "stop": stop}
        alone = [generate(model, tokenizer, text, **options) for text in TEXTS]
        assert generate_batch(model, tokenizer, TEXTS, batch_size=size, **options) == alone


def test_seeds_are_those_of_the_rows(tokenizer: Tokenizer) -> None:
    rules = Sampling(temperature=1.5)
    seeds = [7, 8, 9]
    alone = [generate(ON_CPU, tokenizer, "the", max_tokens=8, sampling=rules.with_seed(seed)) for seed in seeds]
    found = generate_batch(ON_CPU, tokenizer, ["the"] * 3, max_tokens=8, sampling=rules, seeds=seeds, batch_size=2)
    assert found == alone
    assert len(set(found)) == 3
    assert len(set(generate_batch(ON_CPU, tokenizer, ["the"] * 3, max_tokens=8, sampling=rules))) == 1


def test_prompts_of_every_kind(tokenizer: Tokenizer) -> None:
    message = [{"role": "user", "content": "the fox"}]
    prompts = ["the fox", tokenizer.encode("the fox"), message]
    found = generate_batch(ON_CPU, tokenizer, prompts, max_tokens=5)
    assert found == [generate(ON_CPU, tokenizer, prompt, max_tokens=5) for prompt in prompts]
    assert generate_batch(ON_CPU, tokenizer, []) == []
    seen: list[tuple[int, int]] = []
    generate_batch(ON_CPU, tokenizer, prompts, max_tokens=1, batch_size=2, progress=lambda *now: seen.append(now))
    assert seen == [(2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([], {}, "at least one prompt"),
        ([[1], []], {}, "prompt 1: the prompt is empty"),
        ([[1], [VOCABULARY]], {}, f"prompt 1: the prompt has the id {VOCABULARY}"),
        ([[1] * 601], {}, "prompt 0 has 601 tokens, but the model's positions end at 600"),
        ([[1]], {"max_new_tokens": -1}, "max_new_tokens must be an integer of at least 0"),
        ([[1]], {"seeds": [1, 2]}, "seeds must be one for each of 1 prompts, got 2"),
        ([[1]], {"seeds": [-1]}, "seed must be an integer of at least 0"),
    ],
)
def test_batches_that_are_refused(prompts: list[list[int]], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Batch(ON_CPU, prompts, **{"max_new_tokens": 1, **options})


def test_arguments_that_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="batch_size must be an integer of at least 1, got 0"):
        generate_batch(ON_CPU, tokenizer, ["a"], batch_size=0)
    with pytest.raises(ValueError, match="seeds must be one for each of 1 prompts, got 0"):
        generate_batch(ON_CPU, tokenizer, ["a"], seeds=[])
    batch = Batch(ON_CPU, [[1], [2]], max_new_tokens=2, sampling=Sampling(temperature=1.0))
    broken = ON_CPU.map(lambda name, one: one * float("nan"))
    with pytest.raises(ValueError, match="row 0: no token can be chosen"):
        Batch(broken, [[1], [2]], max_new_tokens=2).step()
    assert len(batch.step()) == 2
