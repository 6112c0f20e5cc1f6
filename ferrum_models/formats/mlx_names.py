"""The names under which MLX's models keep what checkpoints have in another place."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

import ferrum_array as fa
from ferrum_array import Tensor
from ferrum_models.stacks import turns

__all__ = ["MlxTensors", "as_checkpoint", "own_names"]

#: a stack of experts, but for gpt-oss
_STACK = re.compile(r"(?P<above>.*\.)switch_mlp\.(?P<layer>\w+)\.(?P<kind>\w+)")
#: those of gpt-oss, whose gate and up are apart
_APART = re.compile(r"(?P<above>.*\.mlp\.experts\.)(?P<layer>gate|up|down)_proj\.(?P<kind>weight|scales|biases|bias)")
_MIXTRAL = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}


def as_checkpoint(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """*tensors* under the names of checkpoints; they themselves where none has a name of MLX's own.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_models.formats.mlx_names import as_checkpoint
        >>> list(as_checkpoint({"layers.0.mlp.switch_mlp.up_proj.scales": fa.ones((1, 2, 3))}))
        ['layers.0.mlp.experts.up_proj.scales']
    """
    own = any(_STACK.fullmatch(name) or _APART.fullmatch(name) for name in tensors)
    return MlxTensors(tensors) if own else tensors


def own_names(path: str) -> tuple[str, ...]:
    """What the layer *path* of a checkpoint may be called in MLX's models.

    Examples:
        >>> from ferrum_models.formats.mlx_names import own_names
        >>> own_names("layers.0.block_sparse_moe.experts.w1")
        ('layers.0.block_sparse_moe.experts.w1', 'layers.0.block_sparse_moe.switch_mlp.gate_proj')
    """
    above, dot, layer = path.rpartition(".experts.")
    if not dot:
        return (path,)
    if layer == "gate_up_proj":
        return path, f"{above}.experts.gate_proj"
    layer = next((own for own, name in _MIXTRAL.items() if name == layer), layer)
    return path, f"{above}.switch_mlp.{layer}"


class MlxTensors(Mapping[str, Tensor]):
    """*tensors* under the names of checkpoints, each read when it is asked for."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors
        self._where: dict[str, Callable[[], Tensor]] = {}
        for name in tensors:
            if found := _STACK.fullmatch(name):
                self._stack(name, found["above"], found["layer"], found["kind"])
            elif found := _APART.fullmatch(name):
                self._apart(name, found["above"], found["layer"], found["kind"])
            else:
                self._put(name, name)

    def _put(self, name: str, stored: str) -> None:
        self._where[name] = lambda: self._tensors[stored]

    def _stack(self, stored: str, above: str, layer: str, kind: str) -> None:
        if above.endswith("block_sparse_moe."):
            layer = _MIXTRAL.get(layer, layer)
        self._put(f"{above}experts.{layer}.{kind}", stored)

    def _apart(self, stored: str, above: str, layer: str, kind: str) -> None:
        dense = kind == "weight" and f"{above}{layer}_proj.scales" not in self._tensors
        end = "" if dense else "_bias" if kind == "bias" else f".{kind}"
        other = f"{above}{'up' if layer == 'gate' else 'gate'}_proj.{kind}"
        if layer == "down":
            self._where[f"{above}down_proj{end}"] = lambda: self._swapped(self._tensors[stored], dense)
        elif other not in self._tensors:
            self._put(stored, stored)  # reported as not known, and what it should be part of as missing
        elif layer == "gate":
            self._where[f"{above}gate_up_proj{end}"] = lambda: self._swapped(self._in_turns(stored, other), dense)

    def _in_turns(self, gate: str, up: str) -> Tensor:
        """The rows of gate and up in turns, as gpt-oss has them."""
        both = fa.concat([self._tensors[gate], self._tensors[up]], axis=1)
        return fa.take(both, turns(both.shape[1] // 2, both.device), axis=1)

    @staticmethod
    def _swapped(x: Tensor, dense: bool) -> Tensor:
        """Dense experts of gpt-oss are [E, in, out]."""
        return x.mT if dense else x

    def __getitem__(self, name: str) -> Tensor:
        return self._where[name]()

    def __contains__(self, name: object) -> bool:
        return name in self._where

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)
