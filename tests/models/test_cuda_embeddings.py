"""The main job, embedding sentences with the real model, gives on CUDA what it gives on the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import ferrum_array as fa
from ferrum_models import load_encoder
from ferrum_models.demo import read_facts


@pytest.mark.cuda
def test_embeddings_are_those_of_the_cpu(folder: Path) -> None:
    texts = [fact.text for fact in read_facts()]
    expected = load_encoder(folder, device="cpu").encode(texts)
    found = load_encoder(folder, device="cuda:0").encode(texts)
    assert found.device.name == "cuda:0"
    assert np.abs(found.numpy() - expected.numpy()).max() < 1e-4


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [fa.bfloat16, fa.float16])
def test_half_precision_keeps_the_direction(folder: Path, dtype: fa.Dtype) -> None:
    texts = [fact.text for fact in read_facts()]
    expected = load_encoder(folder, device="cpu").encode(texts).numpy()
    found = load_encoder(folder, device="cuda:0", dtype=dtype).encode(texts).numpy().astype(np.float32)
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    assert (found * expected).sum(axis=1).min() > 0.999
