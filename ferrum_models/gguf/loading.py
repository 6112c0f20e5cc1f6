"""A model from a GGUF file."""

from __future__ import annotations

from pathlib import Path

from ferrum_array import Device, Dtype
from ferrum_models.causal import CausalLM
from ferrum_models.families import family
from ferrum_models.gguf.config import natural_dtype, settings
from ferrum_models.gguf.names import GgufTensors, blocks
from ferrum_models.gguf.reader import GgufFile
from ferrum_models.gguf.vocabulary import tokenizer
from ferrum_models.progress import Progress, progressing
from ferrum_models.tokenizing import Tokenizer
from ferrum_models.weights import Weights

__all__ = ["find_gguf", "load_gguf"]


def find_gguf(path: Path) -> Path | None:
    """The GGUF file that *path* is, or that the folder holds; None where there is none, or a ``config.json`` beside.

    Raises:
        ValueError: for a folder of several.
    """
    if path.is_file():
        return path if path.suffix == ".gguf" else None
    if not path.is_dir() or (path / "config.json").is_file():
        return None
    found = sorted(one for one in path.iterdir() if one.suffix == ".gguf")
    if len(found) > 1:
        raise ValueError(f"{path} holds several models; name one: {', '.join(one.name for one in found)}")
    return found[0] if found else None


def load_gguf(
    path: Path, device: Device, dtype: Dtype | None, progress: Progress = None
) -> tuple[CausalLM, Tokenizer | None]:
    """The language model in the GGUF file *path*, and its tokenizer, or None where the file has none.

    Matrices in blocks keep their numbers, see :func:`ferrum_models.gguf.names.blocks`; all else becomes *dtype*, or if
    that is None, the type of the embedding, which is float32 where it is quantised.

    Raises:
        OSError: if the file cannot be opened. ValueError: for a file that is damaged, not implemented, or whose parts
        do not fit together. ImportError: without the library ``tokenizers`` where there is a vocabulary.
    """
    file = GgufFile(path)
    said = settings(file)
    found = family(said)
    config = found.config(said)
    wanted = natural_dtype(file) if dtype is None else dtype
    tensors = GgufTensors(file, said)
    weights = Weights(tensors, str(path), device=device, dtype=wanted, formats=(blocks,))
    with progressing(progress, len(tensors), "tensor") as advance:
        weights.tell(advance)
        model = found.load(weights, config)
    file.release()
    return model, tokenizer(file, config.vocab_size)
