"""Where each tensor of a model lies in its checkpoint, found by reading one that has no numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ferrum_array as fa
from ferrum_array import Tensor
from ferrum_models.config import Settings
from ferrum_models.families import family
from ferrum_models.stacks import turns
from ferrum_models.weights import Weights
from ferrum_ops import QuantTensor

__all__ = ["Outline", "Piece", "Stacked", "outline"]

_Cut = Callable[[Any], Any]


@dataclass(frozen=True)
class Piece:
    """A tensor of a checkpoint.

    Attributes:
        path: its name; of a matrix, which may be stored in fewer bits, the name of its layer.
        name: its name where it is dense.
        shape: as the model has it.
        cut: what makes it of the tensor in the model's tree.
        matrix: whether it is the weight of a linear layer or of an embedding.
        swapped: whether the dense tensor is stored with its last two axes swapped.
        turned: whether its rows are stored in turns of two halves.
    """

    path: str
    name: str
    shape: tuple[int, ...]
    cut: _Cut = field(default=lambda x: x, repr=False)
    matrix: bool = False
    swapped: bool = False
    turned: bool = False


@dataclass(frozen=True)
class Stacked:
    """What was asked of ``Weights.stacked``: the part of the checkpoint, the layers, and their shape."""

    path: str
    groups: Sequence[Sequence[str]]
    shape: tuple[int, ...]


class _Pieces(Weights):
    """Weights that note what is asked of them."""

    def __init__(self) -> None:
        super().__init__({}, "an outline")
        self._noted: dict[int, tuple[Tensor, list[Piece]]] = {}
        self._ignored: list[Callable[[str], bool]] = []
        self._made: dict[str, Stacked] = {}

    def __contains__(self, name: str) -> bool:
        return False

    def at(self, *names: str | int) -> Weights:
        part = _Pieces.__new__(_Pieces)
        part._shared, part._noted, part._ignored = self._shared, self._noted, self._ignored
        part._made = self._made
        part._prefix = self._prefix + "".join(f"{name}." for name in names)
        return part

    def _note(self, shape: tuple[int, ...], pieces: list[Piece]) -> Tensor:
        made = fa.broadcast_to(fa.zeros((), dtype="f32", device="cpu"), shape)
        self._noted[id(made)] = made, pieces
        return made

    def raw(self, name: str, shape: tuple[int, ...] | None = None, *, codes: bool = False) -> Tensor | None:
        if shape is None:
            raise ValueError(f"an outline: {self._prefix}{name} is asked for without a shape")
        return self.take(name, shape)

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        full = self._prefix + name
        return self._note(shape, [Piece(full, full, shape)])

    def take_halves(self, name: str, shape: tuple[int, ...]) -> Tensor:
        full = self._prefix + name
        return self._note(shape, [Piece(full, full, shape, _turned, turned=True)])

    def linear(self, shape: tuple[int, ...]) -> Tensor:
        return self._note(shape, [self._matrix(shape)])

    def experts(self, name: str, shape: tuple[int, int, int], *, in_turns: bool = False) -> Tensor:
        full = self._prefix + name
        cut = _turned if in_turns else _whole
        return self._note(shape, [Piece(full, full, shape, cut, matrix=True, swapped=True, turned=in_turns)])

    def join(self, parts: Sequence[str], name: str, shape: tuple[int, ...]) -> Tensor:
        rows = shape[0]
        pieces = []
        for number, part in enumerate(parts):
            full = f"{self._prefix}{part}.{name}"
            pieces.append(Piece(full, full, shape, _rows(slice(number * rows, (number + 1) * rows))))
        return self._note((len(parts) * rows, *shape[1:]), pieces)

    def stacked(self, groups: Sequence[Sequence[str]], shape: tuple[int, ...]) -> Tensor:
        rows = shape[0]
        pieces = []
        for place, group in enumerate(groups):
            for number, part in enumerate(group):
                path = f"{self._prefix}{part}"
                cut = _rows((place, slice(number * rows, (number + 1) * rows)))
                pieces.append(Piece(path, f"{path}.weight", shape, cut, matrix=True))
        members = len(groups[0]) if groups else 0
        self._made[pieces[0].path] = Stacked(self.path, groups, shape)
        return self._note((len(groups), members * rows, *shape[1:]), pieces)

    def check(self, *, ignore: Callable[[str], bool] | None = None) -> None:
        if ignore is not None:
            self._ignored.append(ignore)

    def _matrix(self, shape: tuple[int, ...]) -> Piece:
        return Piece(self.path, f"{self._prefix}weight", shape, matrix=True)


def _whole(x: Any) -> Any:
    return x


def _turned(x: Tensor | QuantTensor) -> Tensor | QuantTensor:
    return x[:, turns(x.shape[1] // 2, x.device)]


def _rows(key: Any) -> _Cut:
    return lambda x: x[key]


@dataclass(frozen=True)
class Outline:
    """The tensors of a checkpoint.

    Attributes:
        pieces: by the paths of the model's tree.
        stacks: of tensors that are made of many, what makes them, by the first piece's path.
        unknown: paths of the tree whose tensors the family computes from others, so that there is no way back.
        ignored: which tensors a checkpoint may have beside them.
    """

    pieces: Mapping[str, tuple[Piece, ...]]
    stacks: Mapping[str, Stacked]
    unknown: tuple[str, ...]
    ignored: Callable[[str], bool]


def outline(settings: Settings) -> Outline:
    """Where each tensor of a model of this config lies in a checkpoint.

    Raises:
        ValueError: for a config that is not implemented.

    Examples:
        >>> from ferrum_models.config import Settings
        >>> from ferrum_models.outline import outline
        >>> tiny = {"model_type": "qwen3_moe", "vocab_size": 9, "hidden_size": 8, "intermediate_size": 8}
        >>> tiny |= {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 4, "num_hidden_layers": 1}
        >>> found = outline(Settings({**tiny, "num_attention_heads": 2, "tie_word_embeddings": True}))
        >>> [piece.name for piece in found.pieces["model.layers.0.mlp.experts.down_proj"]]
        ['model.layers.0.mlp.experts.0.down_proj.weight', 'model.layers.0.mlp.experts.1.down_proj.weight']
    """
    found = family(settings)
    weights = _Pieces()
    model = found.load(weights, found.config(settings))
    pieces, unknown = {}, []
    for path, value in model.named_parameters():
        if id(value) in weights._noted:
            pieces[path] = tuple(weights._noted[id(value)][1])
        else:
            unknown.append(path)
    return Outline(pieces, weights._made, tuple(unknown), lambda name: any(ignore(name) for ignore in weights._ignored))
