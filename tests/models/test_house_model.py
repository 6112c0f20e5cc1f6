"""The language model that lies in the repository: its files, and what transformers reads in them."""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import ferrum_array as fa
from ferrum_models import CausalLM, Sampling, Tokenizer, convert, generate, load, stream_generate
from ferrum_models.generation import Draft
from models.network import Network, Shape

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "models" / "stdlib-moe"
SMALL = Shape(vocab=97, hidden=48, layers=2, heads=4, kv_heads=2, head=8, experts=4, chosen=2, expert=16, context=40)


def read(folder: Path) -> Any:
    """transformers' model of a folder, which holds all the weights of the model and nothing else."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other people's libraries
        from transformers import AutoModelForCausalLM

        read: Any = AutoModelForCausalLM.from_pretrained
        model, told = read(folder, local_files_only=True, dtype=torch.float32, output_loading_info=True)
    assert not any(told.values()), told
    return model.eval()


@pytest.mark.parametrize("seed", range(3))
def test_the_network_that_is_trained_is_the_one_that_transformers_reads(tmp_path: Path, seed: int) -> None:
    torch.manual_seed(seed)
    network = Network(SMALL, dropout=0.5).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    save_file(dict(network.saved(torch.float32)), tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(SMALL.config()))
    ids = torch.randint(SMALL.vocab, (3, SMALL.context))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = read(tmp_path)(ids, output_router_logits=True)
        got, balance = network.logits(ids)
    assert (got - expected.logits).norm() < 1e-5 * expected.logits.norm()
    chosen = [scores.softmax(-1).topk(SMALL.chosen, -1).indices for scores in expected.router_logits]
    assert (
        len({tuple(pair) for pair in torch.cat(chosen).sort(-1).values.tolist()}) > 3
    )  # experts of all sorts were used
    assert 0.9 < float(balance) < SMALL.experts


def test_the_card_says_what_lies_beside_it() -> None:
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\S+) \| (\d+) \| `([0-9a-f]{64})` \|$", card, re.MULTILINE)
    assert {name for name, _, _ in rows} == {path.name for path in FOLDER.iterdir()} - {"README.md"}
    for name, size, digest in rows:
        contents = (FOLDER / name).read_bytes()
        assert (len(contents), hashlib.sha256(contents).hexdigest()) == (int(size), digest), name
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 12_000_000


@pytest.fixture(scope="module")
def house() -> tuple[CausalLM, Tokenizer]:
    model, tokenizer = load(FOLDER, dtype="f32")
    assert tokenizer is not None
    return model, tokenizer


TEXT = (ROOT / "docs" / "tensor.md").read_text(encoding="utf-8")[:2000]


def test_logits_are_those_of_transformers(house: tuple[CausalLM, Tokenizer], device: fa.Device) -> None:
    model, tokenizer = house
    ids = tokenizer.encode(TEXT)[:300]
    with torch.no_grad():
        expected = read(FOLDER)(torch.tensor([ids])).logits.numpy()
    got = model.to(device=device)(fa.asarray([ids], device=device)).numpy()
    assert np.linalg.norm(got - expected) < 1e-4 * np.linalg.norm(expected)


def test_it_answers_as_its_card_says(house: tuple[CausalLM, Tokenizer], device: fa.Device) -> None:
    """The card was written by transformers."""
    model, tokenizer = house
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    answers = re.findall(r"````text\n> ([^\n]*)\n\n(.*?)\n````", card, re.DOTALL)
    assert len(answers) > 3
    for question, answer in answers:
        asked = [{"role": "user", "content": question}]
        assert generate(model.to(device=device), tokenizer, asked, max_tokens=96).rstrip() == answer


def test_a_seed_gives_the_same_text_everywhere(house: tuple[CausalLM, Tokenizer]) -> None:
    model, tokenizer = house
    rules = Sampling(temperature=0.9, top_p=0.95, top_k=50, min_p=0.02, repetition_penalty=1.1, seed=11)
    texts = {
        generate(model.to(device=device), tokenizer, "class Queue:\n", max_tokens=60, sampling=rules)
        for device in fa.devices()
    }
    assert len(texts) == 1
    other = generate(model, tokenizer, "class Queue:\n", max_tokens=60, sampling=rules.with_seed(12))
    assert other not in texts


@pytest.fixture(scope="module")
def in_few_bits(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], CausalLM]:
    """The model converted to a scheme, each once."""

    @cache
    def made(scheme: str) -> CausalLM:
        folder = tmp_path_factory.mktemp("converted") / scheme
        convert(FOLDER, folder, quantize=scheme, dtype="f32", progress=False)
        return load(folder)[0]

    return made


def loss(model: CausalLM, tokenizer: Tokenizer) -> float:
    """The mean loss of a text in nats for each token."""
    ids = tokenizer.encode(TEXT)
    logits = model(fa.asarray([ids]))[0].numpy().astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    found = np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(ids)), [*ids[1:], 0]]
    return float(found[:-1].mean())


@pytest.mark.parametrize(
    ("scheme", "least", "most"),
    [("int8", 0.0, 0.01), ("q8_0", 0.0, 0.01), ("int4-g32", 0.01, 0.2), ("q4_0", 0.01, 0.2), ("mxfp4", 0.01, 0.2)],
)
def test_what_fewer_bits_cost(
    house: tuple[CausalLM, Tokenizer],
    in_few_bits: Callable[[str], CausalLM],
    scheme: str,
    least: float,
    most: float,
) -> None:
    """Random weights can't show it: each step of a trained model matters, and 4 bits cost more than 8."""
    model, tokenizer = house
    fewer = in_few_bits(scheme)
    assert fewer.nbytes < model.nbytes * (0.27 if most < 0.1 else 0.17)
    assert least < loss(fewer, tokenizer) - loss(model, tokenizer) < most


@pytest.mark.parametrize("rules", [None, Sampling(temperature=0.8, seed=1)], ids=["greedy", "sampled"])
def test_a_model_in_4_bits_drafts_well(
    house: tuple[CausalLM, Tokenizer], in_few_bits: Callable[[str], CausalLM], rules: Sampling | None
) -> None:
    """Three drafts and one token of the model at a time: at best three quarters of the tokens are drafts."""
    model, tokenizer = house
    prompt = "import os\n\n"
    draft = Draft(in_few_bits("int4-g32"), 3)
    pieces = list(stream_generate(model, tokenizer, prompt, max_tokens=80, sampling=rules, draft=draft))
    drafted = sum(piece.drafted for piece in pieces) / len(pieces)
    assert 0.5 < drafted <= 0.75
    if rules is None:
        assert "".join(piece.text for piece in pieces) == generate(model, tokenizer, prompt, max_tokens=80)
    stranger = Draft(in_few_bits("int2-g32"), 3)  # 2 bits are too few for this model
    pieces = list(stream_generate(model, tokenizer, prompt, max_tokens=80, sampling=rules, draft=stranger))
    assert sum(piece.drafted for piece in pieces) / len(pieces) < drafted - 0.3


def test_samplers_change_what_is_said(house: tuple[CausalLM, Tokenizer]) -> None:
    """Hotter sampling leaves the likeliest tokens more often; cutting the tail takes that back."""
    model, tokenizer = house

    def surprise(rules: Sampling) -> float:
        pieces = stream_generate(model, tokenizer, "import os\n", max_tokens=120, sampling=rules, stop_ids=())
        return -float(np.mean([piece.logprob for piece in pieces]))

    cool, warm, hot = (surprise(Sampling(temperature=t, seed=3)) for t in (0.2, 1.0, 2.0))
    assert cool < warm < hot
    for cut in (Sampling(temperature=2.0, top_k=3, seed=3), Sampling(temperature=2.0, min_p=0.5, seed=3)):
        assert surprise(cut) < 0.6 * hot
    assert surprise(Sampling(temperature=2.0, top_p=0.3, seed=3)) < 0.6 * hot
