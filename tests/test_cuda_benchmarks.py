"""The benchmarks of CUDA where there is none: their rows compute one thing by all ways, and their bounds are right."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import cuda_attention, cuda_products, cuda_rows, decode_cuda, ops_cuda
from benchmarks.cuda_goals import OPS, Goal, cells, goals_of
from benchmarks.cuda_rows import Row, taken
from benchmarks.decode_cuda import MODELS, Ours, Timing, in_fewer_bits, made, prompt_flops, step_bytes, touched
from benchmarks.decode_cuda_peer import Transformers
from benchmarks.ops_cuda import Ceilings, Measured, check, line
from ferrum_array import CaptureError
from ferrum_ops import QuantTensor, rms_norm

ROOT = Path(__file__).resolve().parents[1]
CPU = "cpu"
#: the rows of the benchmark, small
ROWS: dict[str, Callable[[], Iterable[Row]]] = {
    "norm": lambda: cuda_rows.norms(CPU, 3, 64),
    "rope": lambda: cuda_rows.ropes(CPU, 5, 4, 2, 16),
    "even prompts": lambda: [cuda_attention.prefill(CPU, (9, 9), 4, 2, 16)],
    "packed prompts": lambda: [cuda_attention.prefill(CPU, (9, 5, 11), 4, 2, 16)],
    "window": lambda: [cuda_attention.prefill(CPU, (20,), 4, 2, 16, window=4)],
    "values of another size": lambda: [cuda_attention.prefill(CPU, (12,), 4, 2, 24, 16)],
    "decode": lambda: cuda_attention.decodes(CPU, 3, 20, heads=4, kv_heads=2),
    "append": lambda: cuda_attention.appends(CPU, 2, 5, 2),
    "linear": lambda: cuda_products.linears(CPU, ("bf16", "int8", "int4-g128", "int4-g32", "mxfp4"), (1, 70), 24, 128),
    "grouped": lambda: cuda_products.experts(CPU, 40, 4, 128, 16),
    "moe": lambda: cuda_products.ffns(CPU, (1, 20), count=4, chosen=2, size=128, inner=128),
    "sample": lambda: cuda_products.samples(CPU, (1, 3), 50),
}


def tiny(name: str, **more: Any) -> dict[str, Any]:
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 128, "head_dim": 16}
    experts = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32} if name == "30b" else {}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2}
    return {**MODELS[name], **sizes, **experts, **heads, **more}


@pytest.mark.parametrize("group", ROWS)
def test_all_ways_of_a_row_compute_the_same(group: str) -> None:
    torch.manual_seed(0)
    rows = list(ROWS[group]())
    assert len({row.name for row in rows}) == len(rows)
    for row in rows:
        errors = check(row)
        assert errors["ours"] < (0.05 if "fp8" in row.name else 0.02), (row.name, errors)
        assert row.nbytes > 0
        assert all(len(calls) == len(row.ours) or group == "linear" for calls in row.peers.values())


def test_a_row_of_every_group_is_tested() -> None:
    assert {name.split()[0] for name in ROWS} >= set(ops_cuda.GROUPS) - {"prefill"}


def test_calls_that_take_turns_have_inputs_of_their_own() -> None:
    row = next(iter(cuda_rows.norms(CPU, 3, 64)))
    results = [taken(call()) for call in row.ours]
    assert len(results) == 16
    assert len({tuple(one.flatten().tolist()) for one in results}) == 16


def test_inputs_meet_in_pairs() -> None:
    calls = cuda_rows.turns(lambda a, b, c: (a, b, c), [1, 2], [3, 4], c=5)
    assert [call() for call in calls] == [(1, 3, 5), (2, 4, 5)]
    with pytest.raises(ValueError, match="shorter"):
        cuda_rows.turns(max, [1, 2], [3])


def test_steps_that_cannot_be_captured_are_an_error() -> None:
    by_length = tiny("8b", rope_scaling={"rope_type": "dynamic", "factor": 2.0})
    with pytest.raises(CaptureError, match=r"cannot be captured: .* depends on the length of a sequence"):
        Ours(made(by_length, CPU)).fill(1, 4, 16)


def test_large_inputs_are_fewer() -> None:
    assert [cuda_rows.copies(n) for n in (1, 1 << 25, 1 << 30)] == [16, 8, 2]


def test_a_result_that_is_too_far_away_is_an_error() -> None:
    row = next(iter(cuda_rows.norms(CPU, 3, 64)))
    x = row.ours[0].args[0]  # type: ignore[attr-defined]  # it is a partial
    for wrong in (partial(rms_norm, x * 1.05, eps=1e-6), lambda: x * float("nan")):
        with pytest.raises(ValueError, match=r"RMSNorm 3x64: ours is .* from float64, more than 0.01"):
            check(replace(row, ours=[wrong]))
    with pytest.raises(ValueError, match=r"RMSNorm 3x64: rms_norm has shape \(2, 64\), not \(3, 64\)"):
        check(replace(row, peers={"rms_norm": [lambda: taken(x)[:2]]}))


def test_what_a_window_leaves_is_counted() -> None:
    whole, seen = (cuda_attention.prefill(CPU, (6,), 2, 1, 8, window=window) for window in (6, 2))
    assert whole.flops == 2.0 * 2 * 16 * 21
    assert seen.flops == 2.0 * 2 * 16 * (1 + 5 * 2)


def test_bounds() -> None:
    found = Ceilings(bandwidth=4.0, rate=800.0)
    assert found.bound(4e6, 0) == pytest.approx(1.0)
    assert found.bound(4e6, 1.6e9) == pytest.approx(2.0)
    assert found.work(4e6, 0, 2.0) == "2.00 TB/s"
    assert found.work(4e6, 1.6e9, 4.0) == "400 TFLOP/s"


def test_the_line_of_a_row() -> None:
    peers = {"slow": 30.0, "best": 20.0}
    row = Measured("op 1x2", "cuda.op", 10.0, True, 8.0, peers, 9.0, "3.60 TB/s", 1e-3, {"slow": 2e-3})
    assert line(row) == "| op 1x2 | `cuda.op` | 10.0 | 8.0 | 20.0 | best | 2.00 | 3.60 TB/s | 0.90 |  |  | 1.0e-03 |  |"
    assert " | 0.90 | 0.90 of the bound | yes | " in line(replace(row, row="RoPE 8192x32x128"))
    alone = line(replace(row, peers={}, graph=False))
    assert alone == "| op 1x2 | `cuda.op` | 10.0 eager | 8.0 |  |  |  | 3.60 TB/s | 0.90 |  |  | 1.0e-03 |  |"
    assert line(row).count("|") == ops_cuda.HEAD.splitlines()[0].count("|")


NAMES = [
    "causal attention 1x32/8x4096x128",
    "causal attention 1x32/8x4096x128, window 1024",
    "decode 32x4096 keys, 32/8x128, int8, pages of 64",
    "decode 1x8192 keys, 32/8x128, bf16, pages of 16",
    "cache write 1x8192 tokens, 8x128, bf16",
    "RMSNorm with residual 8192x4096",
    "gated activation, SiLU, 8192x4096",
    "norms of heads, RoPE and cache write 8192x32/8x128",
    "RMSNorm 8x4096",
    "linear 16x4096 to 12288, int4-g128",
    "linear 64x4096 to 12288, int4-g128",
    "linear 4096x4096 to 12288, mxfp4",
    "linear 1x4096 to 12288, bf16",
    "grouped_linear, 128 experts, 32768x2048 to 768, even, bf16",
    "grouped_linear, 128 experts, 32768x2048 to 768, uneven, bf16",
    "moe_ffn, 128 experts top 8, 64x2048, inner 768, int4-g128",
    "moe_ffn, 128 experts top 8, 4096x2048, inner 768, bf16",
]


def test_goals_belong_to_rows() -> None:
    found = [", ".join(map(str, goals_of(name, OPS))) for name in NAMES]
    assert found == [
        *("1.00 of the peer", "", "0.93 of the bound", "20 us", "0.90 of the bound", "0.90 of the bound"),
        *("0.90 of the bound", "0.90 of the bound", "", "0.80 of the bound", "", "0.70 of the peer", ""),
        *("1.00 of the peer", "", "0.80 of the bound", ""),
    ]


def test_goals_are_reached_or_not() -> None:
    for goal, ours, reached in (
        (Goal("us", 20.0), 20.0, True),
        (Goal("us", 20.0), 20.1, False),
        (Goal("bound", 0.9), 10.0, True),
        (Goal("bound", 0.9), 10.1, False),
        (Goal("peer", 1.2), 10.0, True),
        (Goal("peer", 1.2), 10.1, False),
    ):
        assert goal.reached(ours, 9.0, 12.0) is reached, goal
    assert Goal("peer", 1.2).reached(1.0, 9.0, None) is None
    both = [Goal("peer", 1.2), Goal("bound", 0.9)]
    assert cells(both, 10.0, 9.0, None) == "1.20 of the peer, 0.90 of the bound | "
    assert cells(both, 11.0, 9.0, None) == "1.20 of the peer, 0.90 of the bound | no"
    assert cells([], 1.0, 1.0, 1.0) == " | "


def test_experts_that_tokens_meet() -> None:
    assert touched(128, 8, 1) == pytest.approx(8)
    drawn = torch.rand(2000, 6, 16).topk(3).indices.flatten(1)
    met = sum(len(torch.unique(ids)) for ids in drawn) / len(drawn)
    assert touched(16, 3, 6) == pytest.approx(met, rel=0.02)


@pytest.mark.parametrize("name", MODELS)
def test_bytes_and_operations_of_a_model(name: str) -> None:
    """By hand: 64 numbers a token, 4 heads of 16 and 2 of keys and values, 2 layers."""
    model = made(tiny(name), CPU)
    mixer, norms = 64 * (64 + 2 * 32) + 64 * 64, 2 * 64 + 2 * 16
    perceptron = 3 * 64 * 96 if name == "8b" else 8 * 64 + 3 * 64 * 32 * 8 * (1 - (1 - 2 / 8) ** 3)
    weights = 2 * (mixer + norms + perceptron) + 64 + 128 * 64 + 3 * 64  # a row of the embedding for each of 3 tokens
    held = 2 * 2 * 2 * 16
    assert step_bytes(model, 3, 10) == pytest.approx(2 * (weights + 3 * 10 * held))
    each = 3 * 64 * 96 if name == "8b" else 8 * 64 + 2 * 3 * 64 * 32
    pairs = sum(range(1, 6)) * 4 * 2 * 2 * 2 * 16
    assert prompt_flops(model, 5) == pytest.approx(2 * 5 * 2 * (mixer + each) + 2 * 128 * 64 + pairs)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
def test_both_libraries_run_one_model_on_one_memory(name: str) -> None:
    torch.manual_seed(0)
    config = tiny(name)
    model = made(config, CPU)
    tensors = {path: taken(x) for path, x in model.named_parameters()}
    assert all(x.dtype is torch.bfloat16 for x in tensors.values())
    peer, ours = Transformers(config, tensors, CPU), Ours(model, captured=False)
    assert dict(peer._model.named_parameters())["lm_head.weight"].data_ptr() == tensors["lm_head.weight"].data_ptr()
    expected, found = (one.prefill([1, 2, 3, 4, 5]).double() for one in (peer, ours))
    assert float((found - expected).norm() / expected.norm()) < 0.05
    peer._step = peer._next  # not compiled: that is PyTorch's part
    for one in (peer, ours):
        one.fill(2, 10, 32)
        ids = [one.decode() for _ in range(3)]
        assert all(len(step) == 2 and all(0 <= token < 128 for token in step) for step in ids)


def test_fewer_bits() -> None:
    config = tiny("30b", hidden_size=128, moe_intermediate_size=128, head_dim=32)
    model = in_fewer_bits(made(config, CPU), "int4-g128")
    kinds = {path: isinstance(x, QuantTensor) for path, x in model.named_parameters()}
    dense = {path for path, quantised in kinds.items() if not quantised}
    assert {re.sub(r"^model\.layers\.\d+\.", "", path) for path in dense} == {
        *("input_layernorm.weight", "post_attention_layernorm.weight", "mlp.gate.weight"),
        *("self_attn.q_norm.weight", "self_attn.k_norm.weight", "model.norm.weight", "model.embed_tokens.weight"),
    }
    assert step_bytes(model, 1, 0) < 0.4 * step_bytes(made(config, CPU), 1, 0)


def test_the_line_of_a_model() -> None:
    row = Timing("decode", "Qwen3-8B", "bf16", 8, 1024, 1200.4, 0.751, 800.0)
    assert row.line() == "| decode | Qwen3-8B | bf16 | 8 | 1024 | 1200 | 0.75 | 800 | 1.50 | 1.30 of the peer | yes |"
    assert replace(row, theirs=None).line().endswith("| 1200 | 0.75 |  |  | 1.30 of the peer |  |")
    assert replace(row, batch=1, share=0.7).line().endswith("| 0.75 of the bound, 1.30 of the peer | no |")
    assert replace(row, what="prefill", theirs=None).line().endswith("|  |  |  |  |")
    assert row.line().count("|") == decode_cuda.HEAD.splitlines()[0].count("|")


@pytest.mark.parametrize("script", ["ops_cuda", "decode_cuda"])
def test_the_scripts_say_what_they_take(script: str) -> None:
    asked = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{script}", "--help"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert "--json" in asked.stdout
    wrong = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{script}", "--none"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert wrong.returncode == 2


@pytest.mark.cuda
def test_the_table_of_ops(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ops_cuda.main(["--only", "append", "--json", str(tmp_path / "figures.json")])
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["ceilings"]["bandwidth"] > 0
    assert len(figures["rows"]) == 4
    assert capsys.readouterr().out.count("| cache write") == 4
    assert all(0 < row["bound"] / row["ours"] < 1.5 for row in figures["rows"])
