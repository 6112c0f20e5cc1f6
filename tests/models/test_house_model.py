"""The language model that lies in the repository: its files, and what transformers reads in them."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

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
