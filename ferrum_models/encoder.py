"""Sentences to vectors: a tokenizer, an encoder, and the mean of what it says of each token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import Literal

import ferrum_array as fa
from ferrum_array import Device, Dtype, Tensor
from ferrum_models.bert import BertConfig, BertModel
from ferrum_models.config import Settings
from ferrum_models.files import read_json
from ferrum_models.progress import Progress, progressing
from ferrum_models.tokenizing import TextTokenizer
from ferrum_models.weights import Weights
from ferrum_ops import SequenceMeta

__all__ = ["SentenceEncoder", "load_encoder"]

Pooling = Literal["mean", "cls"]

_NEEDED = ("config.json", "tokenizer.json", "model.safetensors")


@dataclass(frozen=True)
class SentenceEncoder:
    """Turns texts into vectors whose scalar products say how alike the texts are.

    Made by :func:`load_encoder`.

    Examples:
        >>> from ferrum_models import load_encoder
        >>> from ferrum_models.demo import demo_model
        >>> encoder = load_encoder(demo_model())
        >>> ship, boat, bread = encoder.encode(["a ship at sea", "a small boat", "fresh bread"])
        >>> float(ship @ boat) > float(ship @ bread)
        True
    """

    model: BertModel
    tokenizer: TextTokenizer
    pooling: Pooling = "mean"

    @property
    def device(self) -> Device:
        """Where the weights lie."""
        return self.model.embeddings.word_embeddings.weight.device

    @property
    def dtype(self) -> Dtype:
        """The dtype of the weights and of the vectors."""
        return self.model.embeddings.word_embeddings.weight.dtype

    @property
    def dimension(self) -> int:
        """The length of the vectors."""
        return self.model.config.hidden_size

    def encode(
        self,
        texts: Sequence[str],
        batch_size: int = 32,
        normalize: bool = True,
        progress: Progress = None,
    ) -> Tensor:
        """The vectors of *texts*, [len(texts), dimension], in the dtype of the model.

        Texts of similar length are computed together, *batch_size* at a time. Those longer than the
        model's maximum are cut. With *normalize* every vector has length 1. *progress* is None (a
        bar on standard error if it is a terminal and the input is long), True, False, or a function
        called with (done, total).

        Raises:
            TypeError: if *texts* is one string, or holds something else than strings.
            ValueError: for *batch_size* below 1, or text that is no valid Unicode.
        """
        if isinstance(texts, str):
            raise TypeError("encode: texts must be a list of strings, got one str; write [text]")
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"encode: batch_size must be a positive integer, got {batch_size!r}")
        if not len(texts):
            return fa.zeros((0, self.dimension), dtype=self.dtype, device=self.device)
        ids = self.tokenizer(texts)
        # the longest first: the bar then promises too much time, not too little
        order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
        found = []
        with progressing(progress, len(ids), "text") as advance:
            for batch in _batches(order, batch_size):
                found.append(self._vectors([ids[i] for i in batch], normalize))
                advance(len(batch))
        place = fa.asarray(order, dtype=fa.int64, device=self.device)
        return fa.take(fa.concat(found), fa.argsort(place), axis=0)

    def _vectors(self, ids: list[list[int]], normalize: bool) -> Tensor:
        meta = SequenceMeta.packed(map(len, ids))
        flat = fa.asarray(list(chain.from_iterable(ids)), dtype=fa.int64, device=self.device)
        x = self.model(flat, meta)
        x = x.astype(fa.float64 if x.dtype is fa.float64 else fa.float32, copy=False)
        parts = []
        for run in meta.runs:
            rows = x[run.query : run.query + run.sequences * run.query_length]
            rows = rows.reshape(run.sequences, run.query_length, x.shape[1])
            parts.append(fa.mean(rows, axis=1) if self.pooling == "mean" else rows[:, 0])
        vectors = fa.concat(parts)
        if normalize:
            length = fa.sqrt(fa.sum(vectors * vectors, axis=-1, keepdims=True))
            vectors = vectors / fa.maximum(length, 1e-12)
        return vectors.astype(self.dtype, copy=False)


def _batches(order: list[int], size: int) -> Iterator[list[int]]:
    return (order[start : start + size] for start in range(0, len(order), size))


def load_encoder(
    path: str | PathLike[str],
    device: Device | str | None = None,
    dtype: Dtype | str | None = None,
) -> SentenceEncoder:
    """The sentence encoder in the folder *path*, on *device* and in *dtype* (as stored if None).

    The folder holds ``config.json``, ``tokenizer.json`` and ``model.safetensors``; how vectors are
    pooled and where texts are cut is read from ``1_Pooling/config.json`` and
    ``sentence_bert_config.json`` where they are there, as sentence-transformers writes them.

    Raises:
        FileNotFoundError: naming every file that is missing.
        ValueError: for a config, tokenizer or weights that do not fit together or are not
            implemented. TypeError: for a dtype that the device does not have, or no floating one.
        ImportError: without the library ``tokenizers``.

    Examples:
        >>> from ferrum_models import load_encoder
        >>> from ferrum_models.demo import demo_model
        >>> load_encoder(demo_model(), dtype="bf16").encode(["one text", "another"])[:, :3].shape
        (2, 3)
    """
    folder = Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no model folder {folder}")
    missing = [name for name in _NEEDED if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(f"the model folder {folder} lacks {', '.join(missing)}")
    where = fa.get_default_device() if device is None else Device(device)
    if dtype is not None:
        dtype = Dtype(dtype)
        if not dtype.is_floating or not where.supports(dtype):
            raise TypeError(f"a model can be computed in {_floating(where)} on device {where}, not in {dtype}")
    config = BertConfig.load(folder / "config.json")
    pooling = _pooling(folder)
    tokenizer = _tokenizer(folder, config)
    weights = Weights.load(folder / "model.safetensors", device=where, dtype=dtype)
    return SentenceEncoder(BertModel.load(weights, config), tokenizer, pooling)


def _floating(device: Device) -> str:
    names = (d.standard_name for d in Dtype.all() if d.is_floating and device.supports(d))
    return ", ".join(names)


def _pooling(folder: Path) -> Pooling:
    path = folder / "1_Pooling" / "config.json"
    if not path.is_file():
        return "mean"
    prefix = "pooling_mode_"
    modes = {key.removeprefix(prefix): on for key, on in read_json(path).items() if prefix in key}
    chosen = [mode for mode, on in modes.items() if on]
    if chosen == ["mean_tokens"]:
        return "mean"
    if chosen == ["cls_token"]:
        return "cls"
    raise ValueError(
        f"{path}: pooling by {' and '.join(chosen) or 'nothing'} is not implemented, "
        "only by mean_tokens or by cls_token"
    )


def _tokenizer(folder: Path, config: BertConfig) -> TextTokenizer:
    path = folder / "sentence_bert_config.json"
    said = Settings.load(path) if path.is_file() else Settings({})
    limit = config.max_position_embeddings
    longest = said.integer("max_seq_length", default=limit)
    tokenizer = TextTokenizer(
        folder / "tokenizer.json",
        min(longest, limit),
        lowercase=said.flag("do_lower_case"),
    )
    if tokenizer.vocab_size > config.vocab_size:
        raise ValueError(
            f"{folder}: the tokenizer has ids up to {tokenizer.vocab_size - 1}, "
            f"but config.json says vocab_size {config.vocab_size}"
        )
    return tokenizer
