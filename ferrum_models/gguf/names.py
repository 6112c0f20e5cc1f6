"""The tensors of a GGUF file under the names, and in the order, of checkpoints.

Names: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. A matrix in blocks is the tensor ``weight.q4_0`` (or
another scheme's name) of its layer, uint8, which :func:`blocks` reads as the quantised weight that it is. What files
arrange in another way than checkpoints is brought back: the rows of queries and keys of the architecture ``llama``,
whose pairs of rotating dimensions stand together; norms of Gemma, which are 1 more; stacks of experts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import ferrum_array as fa
from ferrum_array import Tensor
from ferrum_models.config import Settings
from ferrum_models.gguf.reader import GgufFile
from ferrum_models.gguf.types import ELEMENTS
from ferrum_models.weights import Weights
from ferrum_ops import QuantTensor, repack

__all__ = ["GgufTensors", "blocks"]

Get = Callable[[], Tensor]

_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
#: what families call otherwise, or have besides
_OWN = {
    "gemma3_text": {
        "post_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
    },
    "gpt_oss": {"post_attention_norm": "post_attention_layernorm", "ffn_gate_inp": "mlp.router"},
    "mixtral": {"ffn_gate_inp": "block_sparse_moe.gate"},
    "qwen3_moe": {"ffn_gate_inp": "mlp.gate"},
}
#: where the experts of a layer lie, and what their three matrices are called
_EXPERTS = {
    "mixtral": ("block_sparse_moe.experts", {"gate": "w1", "up": "w3", "down": "w2"}),
    "qwen3_moe": ("mlp.experts", {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}),
}
#: families of the architecture whose queries and keys are arranged otherwise
_PAIRED = ("llama", "mistral", "mixtral")
_PART = re.compile(r"blk\.(0|[1-9][0-9]*)\.([a-z_]+)(?:\.(0|[1-9][0-9]*))?")
#: after so many bytes of the file have been read, those that nothing needs leave memory
_RELEASE = 1 << 26
#: blocks that are nothing but integers and a scale
_INTEGERS = ("Q4_0", "Q5_0", "Q8_0")
_SCHEMES = {element.scheme.name: element for element in ELEMENTS.values() if element.scheme is not None}


class GgufTensors(Mapping[str, Tensor]):
    """The tensors of *file* by the names of checkpoints of the family that *config* names; each is read when asked for.

    Tensors that are not known of the family keep the name that they have in the file. What is read leaves memory again
    where only a copy of it is used, so that the file and the model are not in memory together.

    Raises:
        ValueError: for queries or keys whose rows do not divide into heads.
    """

    def __init__(self, file: GgufFile, config: Settings) -> None:
        self._file = file
        self._kind = str(config.get("model_type"))
        self._heads = {"attn_q": config.integer("num_attention_heads"), "attn_k": config.integer("num_key_value_heads")}
        self._names = {**_LAYER, **_OWN.get(self._kind, {})}
        self._where: dict[str, Get] = {}
        self._bytes = 0
        for name in file.tensors:
            # the config has the one, and nobody needs the others
            if name != "rope_freqs.weight" and ".attn_rot_embd." not in name:
                self._add(name)

    def __getitem__(self, name: str) -> Tensor:
        if self._bytes > _RELEASE:
            self._file.release()
            self._bytes = 0
        found = self._where[name]()
        self._bytes += found.nbytes
        return found

    def __contains__(self, name: object) -> bool:
        return name in self._where

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)

    def _add(self, name: str) -> None:
        stem, _, kind = name.rpartition(".")
        if stem in _TOP:
            self._put(f"{_TOP[stem]}.{kind}", name)
            return
        found = _PART.fullmatch(stem)
        if found is None:
            self._keep(name)
            return
        layer, part, number = found.groups()
        at = f"model.layers.{layer}"
        if part.endswith("_exps") or number is not None:
            self._add_experts(name, at, part.removeprefix("ffn_").removesuffix("_exps"), kind, number)
        elif part == "attn_sinks":
            self._put(f"{at}.self_attn.sinks", name)
        elif part in self._names:
            self._put(f"{at}.{self._names[part]}.{kind}", name, self._heads.get(part))
        else:
            self._keep(name)

    def _add_experts(self, name: str, at: str, part: str, kind: str, number: str | None) -> None:
        """A stack [E, out, in], or in older files the matrix of an expert."""
        if self._kind == "gpt_oss" and number is None:
            self._add_joined(name, at, part, kind)
            return
        place, names = _EXPERTS.get(self._kind, ("", {}))
        if part not in names or kind != "weight":
            self._keep(name)
        elif number is None:
            self._put(f"{at}.{place}.{names[part]}.weight", name)
        else:
            self._put(f"{at}.{place}.{number}.{names[part]}.weight", name)

    def _add_joined(self, name: str, at: str, part: str, kind: str) -> None:
        """The experts of gpt-oss, whose checkpoints hold them transposed, and gate and up in turns."""
        file, where = self._file, f"{at}.mlp.experts"
        scheme = file.tensors[name].element.scheme
        if part == "up" and _alike(file, name, name.replace("_up_", "_gate_")):
            return  # with the gate
        other = name.replace("_gate_", "_up_")
        joined = part == "gate" and _alike(file, name, other)
        if part != "down" and not joined:
            self._keep(name)
            return
        target = f"{where}.gate_up_proj" if joined else f"{where}.down_proj"

        def get() -> Tensor:
            return _in_turns(file.raw(name), file.raw(other)) if joined else file.raw(name)

        def transposed() -> Tensor:
            return get().mT

        if kind == "bias":
            self._where[f"{target}_bias"] = get
        elif scheme is not None:
            self._where[f"{target}.weight.{scheme.name}"] = get
        else:
            self._where[target] = transposed if len(file.tensors[name].shape) > 1 else get

    def _keep(self, name: str) -> None:
        """A tensor that is not known."""
        self._where[name] = partial(self._file.raw, name)

    def _put(self, target: str, name: str, heads: int | None = None) -> None:
        file, kind, info = self._file, self._kind, self._file.tensors[name]
        if info.element.scheme is not None:
            target = f"{target}.{info.element.scheme.name}"
        if target in self._where:  # a second tensor for one name
            self._keep(name)
            return

        def get() -> Tensor:
            found = file.raw(name)
            if kind == "gemma3_text" and target.endswith("norm.weight") and found.dtype.is_floating:
                found = found.astype("f32") - 1.0
            return found if heads is None or kind not in _PAIRED else _apart(found, heads, f"{file.path}: {name}")

        self._where[target] = get


def _alike(file: GgufFile, name: str, other: str) -> bool:
    if other not in file.tensors:
        return False
    one, two = file.tensors[name], file.tensors[other]
    return (one.element, one.shape) == (two.element, two.shape) and len(one.shape) > 1


def _in_turns(one: Tensor, two: Tensor) -> Tensor:
    """[E, n, ...] twice as [E, 2 n, ...]: a row of one, a row of the other, and so on."""
    count, rows, *rest = one.shape
    return fa.stack([one, two], axis=2).reshape((count, 2 * rows, *rest))


def _apart(x: Tensor, heads: int, where: str) -> Tensor:
    """Rows whose rotating dimensions stand in pairs, as the first of all pairs of a head and then the second."""
    rows, *rest = x.shape
    if rows % (2 * heads):
        raise ValueError(f"{where} has {rows} rows, which are not {heads} heads of pairs")
    pairs = x.reshape((heads, rows // (2 * heads), 2, *rest))
    return fa.concat([pairs[:, :, 0], pairs[:, :, 1]], axis=1).reshape(x.shape)


def blocks(weights: Weights, shape: tuple[int, ...]) -> Tensor | QuantTensor | None:
    """The weight of this *shape* where it lies in blocks of GGUF, or None where it does not.

    Blocks of nothing but integers and a scale, Q4_0, Q5_0 and Q8_0, become ``IntScheme``, which products on every
    device are made for: the same numbers, in memory of their own. All others stay the blocks that they are.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_models.gguf.names import blocks
        >>> from ferrum_models.weights import Weights
        >>> weights = Weights({"dense.weight.q8_0": fa.zeros((2, 34), dtype="u8")}, "a test", formats=(blocks,))
        >>> weights.at("dense").linear((2, 32))
        QuantTensor(int8-g32-f16, float32[2,32])
    """
    for name, element in _SCHEMES.items():
        full = f"weight.{name}"
        if full not in weights:
            continue
        assert element.scheme is not None
        if shape[-1] % element.block:
            weights.problem(full, f"has rows of {element.block} numbers together, expected shape {shape}")
            return fa.zeros(0)
        found = weights.raw(full, (*shape[:-1], shape[-1] // element.block * element.size))
        dtype = fa.float32 if weights.dtype is None else weights.dtype
        if found is None:
            return fa.zeros(0)
        stored = QuantTensor(element.scheme, shape, {"blocks": found}, dtype)
        return repack(stored, "int") if element.name in _INTEGERS else stored
    return None
