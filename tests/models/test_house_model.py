"""The language model that lies in the repository: its files, and what transformers reads in them."""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import ferrum_array as fa
from ferrum_models import CausalLM, Sampling, Tokenizer, generate, load
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
