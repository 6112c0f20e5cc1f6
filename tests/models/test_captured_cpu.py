"""Captured decode steps on the CPU: the text is the same, whatever the model, the cache and the rules are."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ferrum_array as fa
import ferrum_ops
from ferrum_models import Batch, CausalLM, Sampling, generate_ids, random_model, step_obstacle, use_captured_steps
from ferrum_models.generation import captured

pytest.importorskip("numba")

TINY = {
    "model_type": "qwen3", "vocab_size": 61, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 700,
}  # fmt: skip
EXPERTS = {
    **TINY, "model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
    "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [],
}  # fmt: skip
GEMMA = {
    **TINY, "model_type": "gemma3_text", "sliding_window": 16, "query_pre_attn_scalar": 16,
    "layer_types": ["sliding_attention", "full_attention"], "rope_local_base_freq": 10000.0,
}  # fmt: skip
CPU = fa.Device("cpu")


def text(model: CausalLM, use: bool | None, count: int = 30, **more: Any) -> list[int]:
    with use_captured_steps(use):
        return list(generate_ids(model, [3, 1, 4, 1, 5], max_new_tokens=count, stop_ids=(), **more))


RULES = [
    Sampling(),
    Sampling(temperature=0.9, top_k=12, top_p=0.9, seed=3),
    Sampling(temperature=1.2, min_p=0.05, logit_bias={3: -1.5, 8: float("-inf")}, seed=8),
    Sampling(temperature=0.7, repetition_penalty=1.3, seed=4),
]


@given(
    config=st.sampled_from([TINY, {**TINY, "model_type": "llama"}, {**TINY, "model_type": "qwen2"}]),
    dtype=st.sampled_from(["f32", "bf16", "f16"]),
    rules=st.sampled_from(RULES),
    kind=st.sampled_from(["contiguous", "paged"]),
    kept=st.sampled_from([None, "int8"]),
    threads=st.sampled_from([1, 2]),
    seed=st.integers(0, 99),
)
def test_the_text_is_the_same(
    config: dict[str, Any], dtype: str, rules: Sampling, kind: Any, kept: str | None, threads: int, seed: int
) -> None:
    model = random_model(config, dtype=dtype, seed=seed, device=CPU)
    before = ferrum_ops.threads()
    ferrum_ops.set_threads(threads)
    try:
        caches = [model.make_cache(1, 64, kind=kind, dtype=kept) for _ in range(2)]
        got, want = (
            text(model, use, sampling=rules, cache=cache) for use, cache in zip((True, False), caches, strict=True)
        )
    finally:
        ferrum_ops.set_threads(before)
    assert got == want
    assert caches[0].steps
    assert not caches[1].steps
    mine, other = ([one for kept in cache.layers for one in (kept.k, kept.v)] for cache in caches)
    assert all(bool(fa.all(a == b)) for a, b in zip(mine, other, strict=True))


def test_a_long_text_crosses_the_stretches() -> None:
    model = random_model(TINY, dtype="bf16", device=CPU)
    assert text(model, True, 600) == text(model, False, 600)


@pytest.mark.parametrize("config", [EXPERTS, GEMMA], ids=["experts", "windows"])
def test_other_models(config: dict[str, Any]) -> None:
    model = random_model(config, dtype="bf16", device=CPU)
    cache = model.make_cache(1, 64)
    assert text(model, True, cache=cache) == text(model, False)
    assert step_obstacle(model, cache) is None


def test_a_model_whose_kernels_do_not_cover_it_goes_on_without() -> None:
    model = random_model(TINY, dtype="f64", device=CPU)
    assert text(model, None) == text(model, False)
    assert "lengths of sequences lie in memory, from which only kernels read them" in str(step_obstacle(model))
    with pytest.raises(fa.CaptureError, match=r"decode steps of this model cannot be captured: .* lie in memory"):
        text(model, True)


@pytest.mark.parametrize("layout", ["contiguous", "paged"])
def test_rows_of_a_batch_end_one_by_one(layout: Any) -> None:
    model = random_model(TINY, dtype="bf16", device=CPU)
    prompts = [[3, 1, 4], [1, 5, 9, 2, 6, 5, 3], [5]]

    def batch(use: bool) -> list[list[int]]:
        with use_captured_steps(use):
            made = Batch(
                model, prompts, max_new_tokens=30, kind=layout, sampling=Sampling(temperature=1.0), seeds=[1, 2, 3],
                stop_ids=(7, 11, 13),
            )  # fmt: skip
        while made.rows:
            made.step()
        return made.ids

    got = batch(True)
    assert got == batch(False)
    assert len({len(ids) for ids in got}) > 1, "all rows end at once: nothing is tested"


def test_a_cache_keeps_its_memory_and_its_steps() -> None:
    model = random_model(TINY, dtype="bf16", device=CPU)
    cache, other = model.make_cache(1, 90), model.make_cache(1, 90)
    text(model, True, 9, cache=cache)
    text(model, False, 9, cache=other)
    lie = [kept.k._data.ctypes.data for kept in cache.layers]
    (step,) = cache.steps.values()
    for _ in range(3):  # prompts are appended without steps, in place
        assert text(model, True, 9, cache=cache) == text(model, False, 9, cache=other)
    assert list(cache.steps.values()) == [step]
    assert [kept.k._data.ctypes.data for kept in cache.layers] == lie


def test_almost_nothing_of_a_step_is_python() -> None:
    model = random_model({**TINY, "num_hidden_layers": 9}, dtype="bf16", device=CPU)
    cache = model.make_cache(1, 64)
    text(model, True, 9, cache=cache)
    (step,) = cache.steps.values()
    assert isinstance(step, captured._Recorded)
    recording: Any = step._run._recording
    assert len(recording._items) < 20, "calls of layers are interrupted"
