"""A model from a folder: config, weights and tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import ferrum_array as fa
from ferrum_array import Device, Dtype
from ferrum_models.causal import CausalLM
from ferrum_models.config import Settings
from ferrum_models.families import family
from ferrum_models.files import read_json
from ferrum_models.formats import formats
from ferrum_models.formats.mlx_names import as_checkpoint
from ferrum_models.gguf.loading import find_gguf, open_gguf
from ferrum_models.gguf.reader import GgufFile
from ferrum_models.gguf.vocabulary import tokenizer as gguf_tokenizer
from ferrum_models.progress import Progress, progressing
from ferrum_models.tokenizing import Tokenizer
from ferrum_models.weights import RandomWeights, Weights

__all__ = ["Opened", "load", "opened", "random_model"]

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
#: files that run code when they are read
_PICKLED = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


def load(
    path: str | PathLike[str],
    device: Device | str | None = None,
    dtype: Dtype | str | None = None,
    *,
    progress: Progress = None,
) -> tuple[CausalLM, Tokenizer | None]:
    """The language model in the folder *path*, and its tokenizer, or None where the folder has none.

    The folder is laid out as Hugging Face checkpoints are: ``config.json``, ``model.safetensors`` (or
    ``model.safetensors.index.json`` and the files that it names), ``tokenizer.json``. Weights are read one by one, so
    that no more than the model and one tensor are in memory; on the CPU those that need no conversion stay in the file
    until they are used. Matrices in fewer bits, in the layouts of :mod:`ferrum_models.formats`, stay as they are.

    A GGUF file, or a folder with one and no ``config.json``, holds all of this in itself; without *dtype* such a model
    is computed in the type of its embedding, or in float32 where that is quantised.

    Args:
        path: the folder, or the GGUF file.
        device: where the model shall lie; the default device if absent.
        dtype: in which it is computed; that of the stored weights if absent.
        progress: True for a bar of the tensors read, False for none, or a function that is called with (done, total);
            a bar if absent, where there are many and a person may be looking.

    Raises:
        FileNotFoundError: naming the folder or every file that is missing.
        ValueError: for a config, weights or tokenizer that are damaged, not implemented or do not fit together. Files
        that run code when they are read (pickles) are refused.
        TypeError: for a dtype that the device does not have, or no floating one.
        ImportError: without the library ``tokenizers`` where there is a tokenizer.

    Examples:
        >>> from ferrum_models import load
        >>> load("nowhere")
        Traceback (most recent call last):
        ...
        FileNotFoundError: there is no model folder nowhere
    """
    source = opened(Path(path), device, dtype)
    found = family(source.settings)
    config = found.config(source.settings)
    with progressing(progress, len(source.weights.names), "tensor") as advance:
        source.weights.tell(advance)
        model = found.load(source.weights, config)
    if source.gguf is not None:
        source.gguf.release()
    tokenizer = source.tokenizer()
    if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
        raise ValueError(
            f"{path}: the tokenizer has ids up to {tokenizer.vocab_size - 1}, "
            f"but config.json says vocab_size {config.vocab_size}"
        )
    return model, tokenizer


@dataclass(frozen=True)
class Opened:
    """A model of which nothing but its config and the headers of its files has been read.

    Attributes:
        path: the folder, or a GGUF file.
        settings: its config.
        weights: its tensors, on the device and in the dtype that were asked for.
        dtype: the one to which floating tensors are converted; None where they stay as stored.
        gguf: the file, where it is one.
    """

    path: Path
    settings: Settings
    weights: Weights
    dtype: Dtype | None
    gguf: GgufFile | None = None

    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer, or None where there is none."""
        if self.gguf is not None:
            return gguf_tokenizer(self.gguf, self.settings.integer("vocab_size"))
        return Tokenizer.load(self.path) if (self.path / "tokenizer.json").is_file() else None


def opened(folder: Path, device: Device | str | None = None, dtype: Dtype | str | None = None) -> Opened:
    """The model in *folder*, or in a GGUF file, opened; for the arguments and errors see :func:`load`."""
    single = find_gguf(folder)
    if single is None and not folder.is_dir():
        if folder.is_file():
            raise FileNotFoundError(f"{folder} is a file, and no GGUF file; name the folder that it lies in")
        raise FileNotFoundError(f"there is no model folder {folder}")
    where, wanted = _place(device, dtype)
    if single is not None:
        file, settings, weights, wanted = open_gguf(single, where, wanted)
        return Opened(single, settings, weights, wanted, file)
    settings = Settings.load(_file(folder, "config.json"))
    readers = formats(settings)
    if readers and wanted is None:  # scales, norms and embeddings may be stored in several
        wanted = settings.dtype()
    path = _stored(folder)
    if path.suffix == ".json":
        _all_there(path)
    tensors = as_checkpoint(fa.io.open_safetensors(path))
    weights = Weights(tensors, str(path), device=where, dtype=wanted, formats=readers)
    return Opened(folder, settings, weights, wanted)


def random_model(
    config: Mapping[str, Any],
    *,
    seed: int = 0,
    device: Device | str | None = None,
    dtype: Dtype | str | None = None,
) -> CausalLM:
    """A language model of this *config* with random weights: to try things out, to test, and to measure time.

    Args:
        config: the entries of a ``config.json``.
        seed: the same seed gives the same weights on every device.
        device: where the model shall lie; the default device if absent.
        dtype: of the weights; float32 if absent.

    Raises:
        ValueError: for a config that is not implemented, or lacks an entry.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_models import random_model
        >>> tiny = {"model_type": "llama", "vocab_size": 9, "hidden_size": 8, "intermediate_size": 8}
        >>> model = random_model({**tiny, "num_hidden_layers": 1, "num_attention_heads": 2})
        >>> model(fa.asarray([[1, 2, 3]])).shape
        (1, 3, 9)
    """
    settings = Settings(config)
    found = family(settings)
    where = fa.get_default_device() if device is None else Device(device)
    weights = RandomWeights(seed, device=where, dtype=None if dtype is None else Dtype(dtype))
    return found.load(weights, found.config(settings))


def _place(device: Device | str | None, dtype: Dtype | str | None) -> tuple[Device, Dtype | None]:
    where = fa.get_default_device() if device is None else Device(device)
    wanted = None if dtype is None else Dtype(dtype)
    if wanted is not None and not (wanted.is_floating and where.supports(wanted)):
        known = ", ".join(one.standard_name for one in Dtype.all() if one.is_floating and where.supports(one))
        raise TypeError(f"a model can be computed in {known} on device {where}, not in {wanted}")
    return where, wanted


def _file(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.is_file():
        raise FileNotFoundError(f"the model folder {folder} lacks {name}")
    return path


def _all_there(index: Path) -> None:
    """See that every file is there that an index names; what else is wrong with it is found when it is opened.

    Raises:
        FileNotFoundError: naming all that are not.
    """
    names = read_json(index).get("weight_map")
    files = {name for name in names.values() if isinstance(name, str)} if isinstance(names, dict) else set()
    lacking = sorted(name for name in files if not (index.parent / name).is_file())
    if lacking:
        raise FileNotFoundError(f"the model folder {index.parent} lacks {', '.join(lacking)}, which {index.name} names")


def _stored(folder: Path) -> Path:
    """The file of the weights, or the index of several."""
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    pickled = sorted(one.name for one in folder.iterdir() if one.suffix in _PICKLED)
    if pickled:
        raise ValueError(
            f"{folder} holds its weights as {', '.join(pickled)}, which run code when they are read, and are refused; "
            "save the model as safetensors"
        )
    raise FileNotFoundError(f"the model folder {folder} lacks {' or '.join(_WEIGHTS)}")
