"""The real model, and the peer that it is compared with."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ferrum_array as fa
from ferrum_models import SentenceEncoder, load_encoder
from ferrum_models.demo import demo_model

Array = np.ndarray[Any, Any]


class Peer:
    """transformers' BERT with mean pooling, from local files."""

    def __init__(self, folder: Path, max_length: int) -> None:
        import torch

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other people's libraries
            from transformers import AutoModel, AutoTokenizer

            self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            self._model = AutoModel.from_pretrained(folder, local_files_only=True).eval()
        self._torch = torch
        self._max_length = max_length

    def __call__(self, texts: list[str], normalize: bool = True, pooling: str = "mean") -> Array:
        torch = self._torch
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            batch = self._tokenizer(
                texts,
                padding=True,
                truncation=True,
                max_length=self._max_length,
                return_tensors="pt",
            )
            last = self._model(**batch).last_hidden_state
            mask = batch["attention_mask"].unsqueeze(-1).float()
            means = last[:, 0] if pooling == "cls" else (last * mask).sum(1) / mask.sum(1)
            found: Array = means.numpy()
        return found / np.linalg.norm(found, axis=1, keepdims=True) if normalize else found


@pytest.fixture(scope="session")
def folder() -> Path:
    return demo_model()


@pytest.fixture(scope="session")
def peer(folder: Path) -> Peer:
    return Peer(folder, 256)


@pytest.fixture(scope="session")
def encoder(folder: Path, device: fa.Device) -> SentenceEncoder:
    return load_encoder(folder, device=device)
