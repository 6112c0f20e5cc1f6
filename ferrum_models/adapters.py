"""LoRA adapters in PEFT's layout: read, added to a model, and merged into it."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import ferrum_array as fa
from ferrum_array import Device, Dtype, Tensor
from ferrum_models.causal import CausalLM
from ferrum_models.config import Settings
from ferrum_models.formats.reading import expression
from ferrum_models.layers import Embedding, Linear, Module
from ferrum_models.layers.lora import LoRA, LowRank
from ferrum_ops import QuantTensor

__all__ = ["AdapterConfig", "load_adapters", "merge_adapters", "remove_adapters"]

_T = TypeVar("_T")
_PREFIX = "base_model.model."
#: entries of a config that say how an adapter was trained, or where: they change no result
_IDLE = frozenset(
    (
        "auto_mapping",
        "base_model_name_or_path",
        "corda_config",
        "ensure_weight_tying",
        "eva_config",
        "inference_mode",
        "loftq_config",
        "lora_dropout",
        "lora_ga_config",
        "megatron_core",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
        "task_type",
    )
)
_READ = frozenset(
    (
        "alpha_pattern",
        "bias",
        "exclude_modules",
        "init_lora_weights",
        "layers_pattern",
        "layers_to_transform",
        "lora_alpha",
        "peft_type",
        "r",
        "rank_pattern",
        "target_modules",
        "use_rslora",
    )
)
#: how the matrices began, where the weights of the model stayed as they were
_BEGINNINGS = (True, "gaussian", "orthogonal", "eva")


@dataclass(frozen=True)
class AdapterConfig:
    """What ``adapter_config.json`` says of a LoRA adapter.

    Attributes:
        r: the rank.
        alpha: the changes are multiplied by alpha / r.
        rslora: they are multiplied by alpha / sqrt(r).
        targets: names of layers or ends of names; or an expression that whole names match; ``all-linear`` for all.
        exclude: in the same way, layers that are left out.
        ranks: other ranks, by expressions that ends of names match.
        alphas: other alphas.
        numbers: of layers of the model; all if absent.
        stacks: names of the stacks of layers that *numbers* counts.

    Source: Hu et al., "LoRA", 2021; Kalajdzievski, "A rank stabilization scaling factor for fine-tuning with LoRA",
    2023.

    Examples:
        >>> from ferrum_models.adapters import AdapterConfig
        >>> from ferrum_models.config import Settings
        >>> said = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"], "bias": "none"}
        >>> config = AdapterConfig.from_settings(Settings({**said, "alpha_pattern": {"1.q_proj": 4}}))
        >>> config.selects("layers.0.q_proj"), config.selects("layers.0.k_proj"), config.scale("layers.1.q_proj")
        (True, False, 0.5)
    """

    r: int
    alpha: float
    rslora: bool
    targets: tuple[str, ...] | str
    exclude: tuple[str, ...] | str
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    numbers: tuple[int, ...] | None
    stacks: tuple[str, ...]

    @classmethod
    def from_settings(cls, settings: Settings) -> AdapterConfig:
        """The config in *settings*.

        Raises:
            ValueError: for entries that are missing or wrong, and those that would change the result in a way that is
            not implemented, known or not.
        """
        settings.choice("peft_type", known={"LORA": None})
        settings.refuse("bias", "none")
        settings.refuse("init_lora_weights", *_BEGINNINGS)
        for name in settings.values:
            if name not in _IDLE and name not in _READ:
                settings.refuse(name, [], {}, "")
        targets = _names(settings, "target_modules")
        if not targets:
            raise settings.error(("target_modules",), settings.get("target_modules"), "names of layers or 'all-linear'")
        numbers = settings.get("layers_to_transform")
        stacks = _names(settings, "layers_pattern")
        return cls(
            settings.integer("r"),
            settings.number("lora_alpha"),
            settings.flag("use_rslora"),
            targets,
            _names(settings, "exclude_modules"),
            {
                key: Settings({key: value}, settings.source).integer(key)
                for key, value in _table(settings, "rank_pattern")
            },
            {
                key: Settings({key: value}, settings.source).number(key)
                for key, value in _table(settings, "alpha_pattern")
            },
            None if numbers is None else settings.integers("layers_to_transform"),
            (stacks,) if isinstance(stacks, str) else stacks,
        )

    def selects(self, path: str) -> bool:
        """Whether the linear layer *path* is adapted."""
        if _named(self.exclude, path):
            return False
        if self.targets == "all-linear":
            return path != "lm_head"
        if not _named(self.targets, path):
            return False
        return self.numbers is None or path in self.targets or self._number(path) in self.numbers

    def _number(self, path: str) -> int | None:
        """The number of the layer of the model that *path* is part of."""
        for stack in self.stacks or (r"[^.]*",):
            if found := re.match(rf".*\.{stack}\.(\d+)\.", path):
                return int(found[1])
        return None

    def rank(self, path: str) -> int:
        """The rank of the change of the layer *path*."""
        return _first(self.ranks, path, self.r)

    def scale(self, path: str) -> float:
        """The factor of the change of the layer *path*."""
        rank, alpha = self.rank(path), _first(self.alphas, path, self.alpha)
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank


def load_adapters(
    model: CausalLM,
    folders: str | PathLike[str] | Sequence[str | PathLike[str]],
    weights: Sequence[float] | None = None,
) -> CausalLM:
    """*model* with the LoRA adapters of *folders* beside its weights; the model itself stays as it is.

    A folder has ``adapter_config.json`` and ``adapter_model.safetensors``, as PEFT writes them. The changes of several
    adapters add up, and are added to those that the model has already. They are kept in the model's dtype; its own
    weights are shared, and may be in fewer bits.

    Args:
        model: on whose linear layers the adapters were trained.
        folders: one or several.
        weights: a factor for each adapter; 1 if absent.

    Raises:
        FileNotFoundError: for a missing file. ValueError: for a config that is not implemented, tensors that are
        missing, not known or of other shapes (all listed at once), damaged files, files that run code when they are
        read, and *weights* that are not as many finite numbers as there are folders.

    Examples:
        >>> import json, tempfile, pathlib
        >>> import ferrum_array as fa
        >>> from ferrum_models import load_adapters, random_model
        >>> tiny = {"model_type": "llama", "vocab_size": 9, "hidden_size": 8, "intermediate_size": 8}
        >>> model = random_model({**tiny, "num_hidden_layers": 1, "num_attention_heads": 2})
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> said = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["up_proj"]}
        >>> _ = (folder / "adapter_config.json").write_text(json.dumps(said))
        >>> name = "base_model.model.model.layers.0.mlp.up_proj.lora_"
        >>> tensors = {f"{name}A.weight": fa.ones((2, 8)), f"{name}B.weight": fa.ones((8, 2))}
        >>> _ = fa.io.save_safetensors(tensors, folder / "adapter_model.safetensors")
        >>> load_adapters(model, folder).model.layers[0].mlp.up_proj
        LoRA(weight=f32[8,8])
          adapters.0: LowRank(lora_A=f32[2,8], lora_B=f32[8,2], scale=2.0)
    """
    listed = [folders] if isinstance(folders, (str, PathLike)) else list(folders)
    factors = [1.0] * len(listed) if weights is None else list(weights)
    if len(factors) != len(listed) or not all(map(math.isfinite, factors)):
        raise ValueError(f"load_adapters: weights must be {len(listed)} finite numbers, one a folder, got {weights!r}")
    for folder, factor in zip(listed, factors, strict=True):
        model = _add(model, _read(Path(folder), model), factor)
    return model


def merge_adapters(model: CausalLM) -> CausalLM:
    """*model* with the changes of its adapters in its weights, summed in float32 (float64 for float64), rounded once.

    Raises:
        ValueError: if a layer with adapters is in fewer bits: the sum would have to be rounded to them again.

    Examples:
        >>> from ferrum_models import merge_adapters, random_model
        >>> tiny = {"model_type": "llama", "vocab_size": 9, "hidden_size": 8, "intermediate_size": 8}
        >>> model = random_model({**tiny, "num_hidden_layers": 1, "num_attention_heads": 2})
        >>> merge_adapters(model).size == model.size
        True
    """

    def merged(path: str, part: Module) -> Module:
        if not isinstance(part, LoRA):
            return part
        if isinstance(part.weight, QuantTensor):
            raise ValueError(f"merge_adapters: {path} is {part.weight!r}; load the model dense, or keep its adapters")
        return Linear(part.matrix, part.bias)

    return model.map_layers(merged)


def remove_adapters(model: CausalLM) -> CausalLM:
    """*model* without its adapters.

    Examples:
        >>> from ferrum_models import random_model, remove_adapters
        >>> tiny = {"model_type": "llama", "vocab_size": 9, "hidden_size": 8, "intermediate_size": 8}
        >>> model = random_model({**tiny, "num_hidden_layers": 1, "num_attention_heads": 2})
        >>> remove_adapters(model).size == model.size
        True
    """
    return model.map_layers(lambda path, part: Linear(part.weight, part.bias) if isinstance(part, LoRA) else part)


def _read(folder: Path, model: CausalLM) -> dict[str, LowRank]:
    """The changes in *folder* by the layers that they belong to."""
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no adapter folder {folder}")
    path, stored = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"the adapter folder {folder} lacks {path.name}")
    config = AdapterConfig.from_settings(Settings.load(path))
    if not stored.is_file():
        if (folder / "adapter_model.bin").is_file():
            raise ValueError(
                f"{folder} holds its tensors as adapter_model.bin, which runs code when it is read, and is refused; "
                "save the adapter as safetensors"
            )
        raise FileNotFoundError(f"the adapter folder {folder} lacks {stored.name}")
    layers = {name: part for name, part in model.modules() if isinstance(part, Linear)}
    with fa.io.open_safetensors(stored) as tensors:
        taken: set[str] = set()
        problems: list[str] = []
        found: dict[str, LowRank] = {}
        device, dtype = model.device, model.dtype
        for name in filter(config.selects, layers):
            outputs, inputs = layers[name].weight.shape
            rank = config.rank(name)
            pair = [
                _tensor(tensors, f"{_PREFIX}{name}.lora_{letter}.weight", shape, problems, taken, device, dtype)
                for letter, shape in (("A", (rank, inputs)), ("B", (outputs, rank)))
            ]
            if pair[0] is not None and pair[1] is not None:
                found[name] = LowRank(pair[0], pair[1], config.scale(name))
        tables = {name for name, part in model.modules() if isinstance(part, Embedding)}
        problems += [_unknown(name, config, layers, tables) for name in tensors if name not in taken]
    if not layers.keys() & set(filter(config.selects, layers)):
        problems.append("target_modules selects no linear layer of the model")
    if problems:
        raise ValueError(f"{folder} does not fit the model: {'; '.join(problems)}")
    return found


def _tensor(
    tensors: Mapping[str, Tensor],
    name: str,
    shape: tuple[int, ...],
    problems: list[str],
    taken: set[str],
    device: Device,
    dtype: Dtype,
) -> Tensor | None:
    if name not in tensors:
        problems.append(f"{name} is missing, expected shape {shape}")
        return None
    taken.add(name)
    found = tensors[name]
    if found.shape != shape:
        problems.append(f"{name} has shape {found.shape}, expected {shape}")
        return None
    if not found.dtype.is_floating:
        problems.append(f"{name} is {found.dtype}, expected real floating-point numbers")
        return None
    return found.to_device(device).astype(dtype, copy=False)


def _unknown(name: str, config: AdapterConfig, layers: Mapping[str, Linear], tables: Collection[str]) -> str:
    path = name.removeprefix(_PREFIX).split(".lora_")[0]
    if path in tables or ".experts." in path:
        what = "embeddings" if path in tables else "experts"
        return f"{name} is not known: adapters of {what} are not implemented"
    if path in layers:
        return f"{name} is not known" if config.selects(path) else f"{name} is there, but target_modules leaves it out"
    return f"{name} is not known: the model has no linear layer {path}"


def _add(model: CausalLM, changes: Mapping[str, LowRank], factor: float) -> CausalLM:
    def one(path: str, part: Module) -> Module:
        if path not in changes or not isinstance(part, Linear):
            return part
        change = changes[path]
        before = part.adapters if isinstance(part, LoRA) else ()
        return LoRA(part.weight, part.bias, (*before, LowRank(change.lora_A, change.lora_B, change.scale * factor)))

    return model.map_layers(one)


def _names(settings: Settings, entry: str) -> tuple[str, ...] | str:
    """A list of names, or an expression."""
    value = settings.get(entry)
    if value is None:
        return ()
    if isinstance(value, str):
        return value if value == "all-linear" else expression(settings, entry, value)
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise settings.error((entry,), value, "names of layers, or an expression that they match")
    return tuple(value)


def _table(settings: Settings, entry: str) -> Iterable[tuple[str, Any]]:
    for key, value in (settings.mapping(entry) or {}).items():
        yield expression(settings, entry, key), value


def _named(names: tuple[str, ...] | str, path: str) -> bool:
    """Whether *path* matches the expression, or is one of the names or ends with a dot and one."""
    if isinstance(names, str):
        return re.fullmatch(names, path) is not None
    return any(path == name or path.endswith(f".{name}") for name in names)


def _first(table: Mapping[str, _T], path: str, default: _T) -> _T:
    """What the first expression says that an end of *path*, from a dot on, matches."""
    return next((value for key, value in table.items() if re.match(rf"(?:.*\.)?(?:{key})$", path)), default)
