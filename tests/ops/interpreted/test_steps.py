"""Decode steps as they are captured, without a GPU: lengths, places and blocks come from tensors alone.

The rows for CUDA stand in for those of the CPU, in Triton's interpreter; replays call them each time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

import ferrum_array as fa
from ferrum_models import Batch, CausalLM, Sampling, generate_ids, random_model, step_obstacle, use_captured_steps
from ferrum_models.generation import captured
from ferrum_models.generation.sampling import Chooser
from ferrum_ops import registry
from ferrum_ops.placing import place_for

TINY = {
    "model_type": "llama", "vocab_size": 29, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64,
}  # fmt: skip
PLANNED = ("paged_attention", "kv_append", "rope_append")


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The CPU with the rows for CUDA, which read lengths from tensors; replays run them again."""

    def place(*arguments: Any, **tensors: Any) -> Any:
        return place_for("cuda", *arguments, **tensors)

    monkeypatch.setattr(captured, "place", place)
    for kind in ("cuda", "cpu"):
        registry.load_kernels(kind)
    kept = {op: list(registry._rows.get((op, "cpu"), [])) for op in PLANNED}
    for op in PLANNED:
        rows = [replace(row, device="cpu", name=f"interpreted.{row.name}") for row in registry._rows[op, "cuda"]]
        registry._rows[op, "cpu"] = rows + kept[op]
        registry._ops[op]._chosen.clear()
    yield
    for op in PLANNED:
        registry._rows[op, "cpu"] = kept[op]
        registry._ops[op]._chosen.clear()


def text(model: CausalLM, prompt: list[int], count: int, use: bool | None, **more: Any) -> list[int]:
    with use_captured_steps(use):
        return list(generate_ids(model, prompt, max_new_tokens=count, stop_ids=(), **more))


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@pytest.mark.parametrize(
    "rules",
    [
        Sampling(),
        Sampling(temperature=0.9, top_k=12, top_p=0.9, seed=3),
        Sampling(temperature=1.2, min_p=0.05, logit_bias={3: -1.5, 8: float("-inf")}, seed=8),
        Sampling(temperature=0.7, repetition_penalty=1.3, presence_penalty=0.2, seed=4),
    ],
    ids=["greedy", "top", "bias", "penalties"],
)
@pytest.mark.usefixtures("captures")
def test_the_text_is_the_same(kind: str, rules: Sampling) -> None:
    model = random_model({**TINY, "model_type": kind, "head_dim": 16})
    prompt = [3, 1, 4, 1, 5]
    assert text(model, prompt, 9, True, sampling=rules) == text(model, prompt, 9, False, sampling=rules)


@pytest.mark.parametrize("layout", ["contiguous", "paged"])
@pytest.mark.usefixtures("captures")
def test_rows_of_a_batch_end_one_by_one(layout: Any) -> None:
    model = random_model(TINY)
    prompts = [[3, 1, 4], [1, 5, 9, 2, 6, 5, 3], [5]]

    def batch(use: bool) -> tuple[list[list[int]], list[float]]:
        with use_captured_steps(use):
            made = Batch(
                model, prompts, max_new_tokens=24, kind=layout, sampling=Sampling(temperature=1.0), seeds=[1, 2, 3],
                stop_ids=(7, 11),
            )  # fmt: skip
        logprobs = []
        while made.rows:
            for one in made.step().values():
                logprobs.append(one.logprob)
        return made.ids, logprobs

    got, want = batch(True), batch(False)
    assert got[0] == want[0]
    assert len({len(ids) for ids in got[0]}) > 1, "all rows end at once: nothing is tested"
    assert got[1] == pytest.approx(want[1], abs=1e-4)


@pytest.mark.usefixtures("captures")
def test_a_cache_keeps_its_steps() -> None:
    model = random_model(TINY)
    cache = model.make_cache(1, 40)
    first = text(model, [1, 2, 3], 9, True, cache=cache)
    assert len(cache.steps) == 1
    (step,) = cache.steps.values()
    text(model, [4], 9, True, cache=cache)
    assert list(cache.steps.values()) == [step]
    assert cache.lengths == [3 + 8 + 1 + 8]
    assert first == text(model, [1, 2, 3], 9, False)


def test_random_numbers_are_sent_whole() -> None:
    chooser = Chooser(Sampling(temperature=1.0, seed=5), [[1], [2]], 9, fa.Device("cpu"))
    numbers = [u for _ in range(100) for u in chooser.numbers([0, 1])]
    assert all(int(u * captured._PARTS) / captured._PARTS == u for u in numbers)
    assert any(int(u * captured._PARTS / 2) * 2 / captured._PARTS != u for u in numbers), "half as many parts do too"
    assert numbers[::2] == numbers[1::2], "rows with one seed have one stream"
    assert numbers[::2] == fa.random.default_rng(5).uniform(100, dtype="f32", device="cpu").tolist()


def test_why_not() -> None:
    model = random_model(TINY, device="mlx:cpu")
    assert step_obstacle(model) == "mlx:cpu has no graphs to capture"
    with pytest.raises(fa.CaptureError, match="cannot be captured: mlx:cpu has no graphs to capture"):
        text(model, [1], 3, True)


@pytest.mark.usefixtures("captures")
def test_why_not_by_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    assert step_obstacle(random_model(TINY)) is None
    windowed = random_model({**TINY, "model_type": "mistral", "sliding_window": 4})
    cache = windowed.make_cache(1, 64, chunk=8)
    assert step_obstacle(windowed, cache) == "layer 0 keeps a ring, whose slots are planned on the host"
    scaled = {"rope_type": "dynamic", "factor": 2.0}
    assert "depends on the length" in str(step_obstacle(random_model({**TINY, "rope_scaling": scaled})))

    model = random_model(TINY)
    tried = []

    def refuse(*arguments: Any, **named: Any) -> None:
        tried.append(1)
        raise fa.CaptureError("decode_step cannot be captured: it reads")

    monkeypatch.setattr(captured.fa, "capture", refuse)
    want = text(model, [1, 2], 16, False)
    assert text(model, [1, 2], 16, None) == want
    assert len(tried) == 2  # with the choice of tokens, and without
    assert step_obstacle(model) == "decode_step cannot be captured: it reads"
    assert text(model, [1, 2], 16, None) == want
    assert len(tried) == 2  # and never again
    with pytest.raises(fa.CaptureError, match="it reads"):
        text(model, [1, 2], 16, True)


@pytest.mark.usefixtures("captures")
def test_few_tokens_are_not_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(TINY)
    made = []
    real = captured._Recorded

    def record(*arguments: Any) -> Any:
        made.append(1)
        return real(*arguments)

    monkeypatch.setattr(captured, "_Recorded", record)
    text(model, [1, 2], captured._WORTH["cpu"] - 1, None)
    assert not made
    text(model, [1, 2], captured._WORTH["cpu"], None)
    assert made
