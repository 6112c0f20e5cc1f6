"""Models into folders: as they are, or tensor by tensor into fewer bits."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from tempfile import mkdtemp

import ferrum_array as fa
from ferrum_array import Dtype, Tensor
from ferrum_models.causal import CausalLM
from ferrum_models.config import Settings
from ferrum_models.files import write_json
from ferrum_models.formats import own
from ferrum_models.formats.reading import Kept
from ferrum_models.layers import Parameter
from ferrum_models.loading import Opened, opened
from ferrum_models.outline import Outline, Piece, outline
from ferrum_models.progress import Progress, progressing
from ferrum_models.weights import Weights
from ferrum_ops import QuantTensor, dequantize, quantize, repack
from ferrum_ops.quant.names import scheme as scheme_of
from ferrum_ops.quant.types import Scheme

__all__ = ["convert", "save_model"]

#: what a model folder may have beside its config and weights
_BESIDE = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
_SHARD = 2 << 30
#: so many numbers are quantised at once
_BLOCK = 1 << 23
#: schemes that are wanted so often that they have a shorter name here; with float16 scales a weight is 4.5 bits, not 5
_SHORT = {"int4": "int4-g32-f16"}


def save_model(
    model: CausalLM,
    folder: str | PathLike[str],
    *,
    source: str | PathLike[str] | None = None,
    max_shard_bytes: int = _SHARD,
    progress: Progress = None,
) -> None:
    """Write *model* to a new *folder*, from which ``load`` reads it again, and transformers too if it is dense.

    The folder has ``config.json``, ``model.safetensors`` (or several files and their index), and what *source* has of
    a tokenizer. Weights in fewer bits stay as they are, and the config says how they are stored. All is written beside
    the folder, which takes its name when it is complete: a failure leaves nothing behind.

    Args:
        model: dense or in fewer bits, without adapters.
        folder: which must not exist, or be empty.
        source: a folder whose tokenizer files and ``generation_config.json`` are copied.
        max_shard_bytes: begin another file before tensors of more bytes than this; about so much memory is in use.
        progress: as in ``SentenceEncoder.encode``: a bar for long work if absent.

    Raises:
        FileExistsError: if *folder* is there and not empty. FileNotFoundError: if *source* is not there.
        ValueError: for a model whose tensors are not those of its config. OSError: if writing fails.

    Examples:
        >>> import tempfile
        >>> from ferrum_models import load, random_model, save_model
        >>> tiny = {"model_type": "llama", "vocab_size": 9, "hidden_size": 8, "intermediate_size": 8}
        >>> model = random_model({**tiny, "num_hidden_layers": 1, "num_attention_heads": 2})
        >>> folder = tempfile.mkdtemp() + "/tiny"
        >>> save_model(model, folder)
        >>> load(folder)[0].size == model.size
        True
    """
    settings = model.config.settings
    plan = outline(settings)
    leaves = dict(model.named_parameters())
    problems = [f"{path} has no place in a checkpoint" for path in [*plan.unknown, *(leaves.keys() - plan.pieces)]]
    problems += [f"{path} is missing" for path in plan.pieces if path not in leaves]
    if problems:
        raise ValueError(f"save_model: the model does not fit its config: {'; '.join(sorted(problems))}")
    jobs = [(piece, leaves[path]) for path, pieces in plan.pieces.items() for piece in pieces]
    with _new_folder(Path(folder)) as partial, progressing(progress, len(jobs), "tensor") as advance:
        beside = None if source is None else _folder(source)
        writer = _Writer(partial, max_shard_bytes)
        for piece, leaf in jobs:
            writer.add(piece, piece.cut(repack(leaf, "plain") if isinstance(leaf, QuantTensor) else leaf))
            advance(1)
        writer.close()
        _write_config(partial, settings, model.dtype, writer.schemes)
        _copy(beside, partial)


def convert(
    source: str | PathLike[str],
    target: str | PathLike[str],
    *,
    quantize: Scheme | str | None = None,
    dtype: Dtype | str | None = None,
    keep: Sequence[str] = (),
    max_shard_bytes: int = _SHARD,
    progress: Progress = None,
) -> None:
    """The model of *source*, and its tokenizer, in a new folder *target*, in fewer bits or in another dtype.

    Tensors are read, converted and written one by one, so that no more than *max_shard_bytes* and a tensor are in
    memory. What is quantised are the matrices of linear layers, of experts and of embeddings; norms, biases, routers
    and gates of one row stay dense. Matrices that are in fewer bits already stay as they are, unless *quantize* says
    otherwise.

    Args:
        source: a model folder or GGUF file that ``load`` reads.
        target: which must not exist, or be empty.
        quantize: a scheme or its name, such as ``int8``, ``int4-g64``, ``q8_0``, ``mxfp4``, ``fp8_e4m3``; ``int4`` is
            short for ``int4-g32-f16``. Nothing is quantised if absent.
        dtype: of what stays dense, and in which the model is computed; as it is if absent.
        keep: names of layers that stay as they are, or parts of names, from dot to dot: ``lm_head``, ``layers.0``,
            ``mlp.*_proj``.
        max_shard_bytes: begin another file before tensors of more bytes than this.
        progress: as in :func:`save_model`.

    Raises:
        FileExistsError: if *target* is there and not empty. FileNotFoundError: for missing files of *source*.
        ValueError: for a *source* that ``load`` would refuse, a scheme that is not known or cannot be made, matrices
        that it cannot divide, all of them named, and a name in *keep* that belongs to no layer. TypeError: for a
        *dtype* that is not real floating-point, and one text as *keep*. OSError: if writing fails.

    Examples:
        >>> import tempfile
        >>> from ferrum_models import convert, load, random_model, save_model
        >>> tiny = {"model_type": "llama", "vocab_size": 9, "hidden_size": 32, "intermediate_size": 32}
        >>> folder = tempfile.mkdtemp()
        >>> save_model(random_model({**tiny, "num_hidden_layers": 1, "num_attention_heads": 2}), folder + "/tiny")
        >>> convert(folder + "/tiny", folder + "/small", quantize="int4", keep=["lm_head"])
        >>> model, _ = load(folder + "/small")
        >>> model.model.layers[0].mlp.up_proj, model.lm_head
        (Linear(weight=int4-g32-f16[32,32]), Linear(weight=f32[9,32]))
    """
    if isinstance(keep, str):
        raise TypeError(f"convert: keep must be a list of names, got one str; write [{keep!r}]")
    found = opened(Path(source), dtype=None if dtype is None else Dtype(dtype))
    scheme = scheme_of(_SHORT.get(quantize, quantize)) if isinstance(quantize, str) else quantize
    plan = outline(found.settings)
    if plan.unknown:
        raise ValueError(f"convert: {', '.join(plan.unknown)} have no place of their own in a checkpoint")
    goals = _goals([piece for pieces in plan.pieces.values() for piece in pieces], scheme, keep)
    with _new_folder(Path(target)) as partial, progressing(progress, len(goals), "tensor") as advance:
        writer = _Writer(partial, max_shard_bytes)
        for pieces in plan.pieces.values():
            for piece, value in _read(found, plan, pieces):
                writer.add(piece, _in(value, goals[piece.path]))
            advance(len(pieces))
        found.weights.check(ignore=plan.ignored)
        writer.close()
        _write_config(partial, found.settings, found.dtype or found.settings.dtype() or writer.dtype, writer.schemes)
        _tokenizer(found, partial)


def _goals(pieces: Sequence[Piece], scheme: Scheme | None, keep: Sequence[str]) -> dict[str, Scheme | None]:
    """The scheme of each piece by its path, or None where it stays as it is."""
    strange = [name for name in keep if not any(piece.path in Kept((name,)) for piece in pieces)]
    if strange:
        raise ValueError(f"convert: keep names {', '.join(strange)}, but the model has no such layer")
    kept = Kept(tuple(keep))
    goals, problems = {}, []
    for piece in pieces:
        goal = scheme if piece.matrix and piece.shape[-2] > 1 and piece.path not in kept else None
        if goal is not None:
            try:
                goal.parts(*piece.shape[-2:])
            except ValueError as error:
                problems.append(f"{piece.path}: {error}")
        goals[piece.path] = goal
    if problems:
        raise ValueError(f"convert: name them in keep, or choose another scheme: {'; '.join(problems)}")
    return goals


def _read(found: Opened, plan: Outline, pieces: Sequence[Piece]) -> Iterator[tuple[Piece, Parameter]]:
    """What a checkpoint holds for the *pieces* of a tensor; what does not fit is noted, and left out."""
    stack = plan.stacks.get(pieces[0].path)
    if stack is not None and not any(name.startswith(f"{pieces[0].path}.") for name in found.weights.names):
        whole = found.weights.at(stack.path).stacked(stack.groups, stack.shape)  # they are stored together
        if whole.ndim == 3:
            yield from ((piece, piece.cut(whole)) for piece in pieces)
        return
    for piece in pieces:
        value = _read_one(found.weights, piece)
        if value.shape == piece.shape:
            yield piece, value


def _read_one(weights: Weights, piece: Piece) -> Parameter:
    if piece.swapped:
        count, rows, columns = piece.shape
        return weights.experts(piece.path, (count, rows, columns))
    if piece.matrix:
        return weights.at(piece.path).linear(piece.shape)
    above, _, name = piece.path.rpartition(".")
    return (weights.at(above) if above else weights).take(name, piece.shape)


def _in(value: Parameter, goal: Scheme | None) -> Parameter:
    if goal is None:
        return repack(value, "plain") if isinstance(value, QuantTensor) else value
    if isinstance(value, QuantTensor):
        if value.scheme == goal:
            return repack(value, "plain")
        value = dequantize(value, fa.float32)
    return _quantised(value, goal)


def _quantised(x: Tensor, scheme: Scheme) -> QuantTensor:
    """What ``quantize`` gives, rows after rows, so that large tensors need little memory beside the result."""
    *lead, n, k = x.shape
    wanted = scheme.parts(n, k)
    unit = math.lcm(*(part.per for part in wanted.values()))
    rows = max(_BLOCK // max(math.prod(lead) * k, 1) // unit * unit, unit)
    if n <= rows:
        return quantize(x, scheme)
    parts: dict[str, Tensor] = {}
    for start in range(0, n, rows):
        stop = min(start + rows, n)
        for name, value in quantize(x[..., start:stop, :], scheme).parts.items():
            part = wanted[name]
            if name not in parts:
                parts[name] = fa.empty((*lead, *part.shape), dtype=value.dtype, device=value.device)
            assert part.axis is not None, "schemes that can be made share nothing between rows"
            cut: list[slice] = [slice(None)] * value.ndim
            cut[part.axis] = slice(start // part.per * part.places, -(-stop // part.per) * part.places)
            parts[name][tuple(cut)] = value
    return QuantTensor(scheme, x.shape, parts, x.dtype)


@dataclass
class _Writer:
    """Tensors into safetensors files of a folder, a file whenever there is enough for one."""

    folder: Path
    limit: int
    schemes: dict[str, Scheme | None] = field(default_factory=dict)
    dtype: Dtype = fa.float32
    _held: dict[str, Tensor] = field(default_factory=dict)
    _bytes: int = 0
    _total: int = 0
    _files: list[list[str]] = field(default_factory=list)

    def add(self, piece: Piece, value: Parameter) -> None:
        """Write what a piece holds: one tensor, or the parts of a quantised matrix."""
        if isinstance(value, QuantTensor):
            self.schemes[piece.path] = value.scheme
            for name, part in value.parts.items():
                self._hold(f"{piece.path}.{name}", part)
            return
        if not self._files and not self._held:
            self.dtype = value.dtype
        self._hold(piece.name, value.mT if piece.swapped else value)

    def _hold(self, name: str, value: Tensor) -> None:
        if self._held and self._bytes + value.nbytes > self.limit:
            self._flush()
        self._held[name] = value
        self._bytes += value.nbytes
        self._total += value.nbytes

    def _flush(self) -> None:
        path = self.folder / f"part-{len(self._files)}.safetensors"
        fa.io.save_safetensors(self._held, path, metadata={"format": "pt"})
        self._files.append(list(self._held))
        self._held, self._bytes = {}, 0

    def close(self) -> None:
        """Write the rest, and give the files the names by which they are found."""
        self._flush()
        count = len(self._files)
        if count == 1:
            os.rename(self.folder / "part-0.safetensors", self.folder / "model.safetensors")
            return
        where: dict[str, str] = {}
        for number, names in enumerate(self._files):
            final = f"model-{number + 1:05}-of-{count:05}.safetensors"
            os.rename(self.folder / f"part-{number}.safetensors", self.folder / final)
            where |= dict.fromkeys(names, final)
        index = {"metadata": {"total_size": self._total}, "weight_map": where}
        write_json(self.folder / "model.safetensors.index.json", index)


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """A folder beside *folder*, which takes its name at the end of the block, or goes if the block fails."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise FileExistsError(f"{folder} is there already; remove it, or name another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield partial
        partial.chmod(0o777 & ~_umask())  # temporary ones are for their owner alone
        os.replace(partial, folder)
    except BaseException:
        shutil.rmtree(partial)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _write_config(folder: Path, settings: Settings, dtype: Dtype, schemes: dict[str, Scheme | None]) -> None:
    gone = ("quantization", "quantization_config", "torch_dtype")
    config = {key: value for key, value in settings.values.items() if key not in gone}
    config["dtype"] = dtype.standard_name
    if schemes:
        config["quantization_config"] = own.described({p: s for p, s in schemes.items() if s is not None})
    write_json(folder / "config.json", config)


def _tokenizer(found: Opened, target: Path) -> None:
    """Put the tokenizer of what was converted into the new folder: as it is, or made of a GGUF file's vocabulary."""
    if found.gguf is None:
        _copy(found.path, target)
    elif (tokenizer := found.tokenizer()) is not None:
        tokenizer.save(target)


def _folder(path: str | PathLike[str]) -> Path:
    folder = Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder} to copy a tokenizer from")
    return folder


def _copy(source: Path | None, target: Path) -> None:
    for name in _BESIDE:
        if source is not None and (source / name).is_file():
            shutil.copyfile(source / name, target / name)
