"""Models of transformers as GGUF files, written by the package ``gguf`` with its own table of names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from ferrum_ops.quant.gguf import TYPES
from tests.models import parity

Array = np.ndarray[Any, Any]

#: what can be divided into blocks; of Q2_K and so on with 256 numbers
SIZES = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16, "num_hidden_layers": 2}
WIDE = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64, "num_hidden_layers": 2}
MOE = {"num_experts_per_tok": 2, "num_local_experts": 3}
YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 16, "rope_theta": 10000.0}
#: where truncating makes a difference
LONG = {**YARN, "factor": 2.0, "original_max_position_embeddings": 64}
LLAMA3 = {
    "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32, "rope_theta": 500000.0,
}  # fmt: skip
#: a name -> the architecture, the class of the config in transformers, and its entries
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("llama", "LlamaConfig", {"rms_norm_eps": 1e-5}),
    "llama-tied-biases": (
        "llama", "LlamaConfig", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}
    ),
    "llama-3": ("llama", "LlamaConfig", {"rope_parameters": LLAMA3}),
    "llama-linear": ("llama", "LlamaConfig", {"rope_parameters": {"rope_type": "linear", "factor": 3.0}}),
    "mistral": ("llama", "MistralConfig", {"sliding_window": 5}),
    "mixtral": ("llama", "MixtralConfig", MOE),
    "qwen2": ("qwen2", "Qwen2Config", {}),
    "qwen3": ("qwen3", "Qwen3Config", {"rope_parameters": YARN}),
    "qwen3moe": ("qwen3moe", "Qwen3MoeConfig", {**MOE, "moe_intermediate_size": 32, "norm_topk_prob": True}),
    "qwen3moe-unscaled": (
        "qwen3moe", "Qwen3MoeConfig", {**MOE, "moe_intermediate_size": 32, "norm_topk_prob": False}
    ),
    "gemma3": (
        "gemma3", "Gemma3TextConfig", {"sliding_window": 5, "query_pre_attn_scalar": 16, "num_hidden_layers": 7}
    ),
    "gpt-oss": (
        "gpt-oss", "GptOssConfig", {**MOE, "sliding_window": 5, "rope_parameters": {**LONG, "truncate": False}}
    ),
}  # fmt: skip


def make(case: str, folder: Path, **entries: Any) -> Any:
    """The random model of a case."""
    _, config, own = CASES[case]
    return parity.make(config, folder, **{**SIZES, **own, **entries})


def _permutation(rows: int, heads: int) -> Array:
    """Where llama's rows stand in the file: the two dimensions of a pair beside each other."""
    return np.arange(rows).reshape(heads, 2, rows // heads // 2).swapaxes(1, 2).reshape(-1)


def _stored(arch: str, config: Any, name: str, value: Array) -> Iterator[tuple[str, Array, Callable[[Array], Array]]]:
    """What the file holds of a tensor: names, values, and what makes the part of the tensor from each value again."""
    heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
    if name == "lm_head.weight" and config.tie_word_embeddings:
        return
    if arch == "llama" and ("q_proj" in name or "k_proj" in name):
        order = _permutation(len(value), heads)
        yield name, value[order], lambda x: x[np.argsort(order)]
    elif arch == "gemma3" and name.endswith("norm.weight"):
        yield name, value + 1, lambda x: x - 1
    elif name.endswith("sinks"):
        yield f"{name}.weight", value, lambda x: x
    elif "experts.gate_up_proj" in name:
        end = "bias" if name.endswith("bias") else "weight"
        base = name[: name.index("gate_up_proj")]
        if arch == "gpt-oss":  # [E, in, 2 * out] in turns
            rows = value if end == "bias" else value.swapaxes(1, 2)
            for number, part in enumerate(("gate", "up")):
                yield f"{base}{part}_proj.{end}", rows[:, number::2], lambda x: x
        else:
            for number, part in enumerate(("gate", "up")):
                yield f"{base}{part}_proj.{end}", np.split(value, 2, axis=1)[number], lambda x: x
    elif "experts.down_proj" in name:
        end = "bias" if name.endswith("bias") else "weight"
        base = name[: name.index("down_proj")]
        turned = arch == "gpt-oss" and end == "weight"
        yield f"{base}down_proj.{end}", value.swapaxes(1, 2) if turned else value, lambda x: x
    else:
        yield name, value, lambda x: x


def _encoded(value: Array, kind: str, rng: np.random.Generator) -> Array:
    """The blocks of *value*; where the package only reads a type, random ones."""
    if TYPES[kind].write is not None:
        return gguf.quantize(value, gguf.GGMLQuantizationType[kind])
    from tests.ops.test_quantize_gguf import HALVES

    block = TYPES[kind]
    blocks = rng.integers(0, 256, (*value.shape[:-1], value.shape[-1] // block.block, block.size), dtype=np.uint8)
    for place in HALVES[kind]:
        bits = (rng.standard_normal(blocks.shape[:-1]) / 256).astype(np.float16).view(np.uint16)
        blocks[..., place : place + 2] = bits[..., None].view(np.uint8)
    return blocks.reshape((*value.shape[:-1], -1))


def write(peer: Any, case: str, path: Path, kind: str = "F32", **changes: Any) -> None:
    """Write *peer* to a GGUF file, matrices as *kind*, and give it the weights that the file then holds.

    *changes* are entries of the metadata that are added or replaced: values, or None for none.
    """
    import torch

    arch, config = CASES[case][0], peer.config
    number = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
    table = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    writer = gguf.GGUFWriter(path, arch)
    rng = np.random.default_rng(0)
    for name, value in metadata(arch, config, changes).items():
        if value is not None:
            add(writer, name, value)
    state = {name: value.numpy() for name, value in peer.state_dict().items()}
    for name, value in state.items():
        made = []
        for target, part, back in _stored(arch, config, name, value):
            found = table.get_name(target, try_suffixes=(".weight", ".bias"))
            assert found is not None, target
            matrix = part.ndim > 1 and not target.endswith("bias") and "gate.weight" not in target
            if not matrix or "router" in target or kind == "F32":
                writer.add_tensor(found, np.ascontiguousarray(part))
                made.append(back(part))
            elif kind in TYPES:
                blocks = _encoded(np.ascontiguousarray(part), kind, rng)
                writer.add_tensor(found, blocks, raw_dtype=gguf.GGMLQuantizationType[kind])
                made.append(back(gguf.dequantize(blocks, gguf.GGMLQuantizationType[kind])))
            else:
                cut = gguf.quantize(np.ascontiguousarray(part), gguf.GGMLQuantizationType[kind])
                writer.add_tensor(found, cut, raw_dtype=gguf.GGMLQuantizationType[kind])
                made.append(back(gguf.dequantize(cut, gguf.GGMLQuantizationType[kind])))
        if made:
            state[name] = _whole(arch, name, made)
    if CASES[case][2].get("rope_parameters", {}).get("rope_type") == "llama3":
        writer.add_tensor("rope_freqs.weight", _divisors(peer))
    if config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    peer.load_state_dict({name: torch.tensor(np.ascontiguousarray(value)) for name, value in state.items()})


def _whole(arch: str, name: str, parts: list[Array]) -> Array:
    """A tensor of transformers from the parts that the file holds."""
    turned = arch == "gpt-oss" and not name.endswith("bias")
    if len(parts) == 2:
        axis = 2 if arch == "gpt-oss" else 1
        whole = np.stack(parts, axis).reshape((len(parts[0]), -1, *parts[0].shape[2:])) if axis == 2 else None
        joined = np.concatenate(parts, axis=1) if whole is None else whole
        return joined.swapaxes(1, 2) if turned else joined
    return parts[0].swapaxes(1, 2) if turned and "experts" in name else parts[0]


def _divisors(peer: Any) -> Array:
    """The plain frequencies divided by those of the model."""
    rope = peer.model.rotary_emb
    size, theta = peer.config.head_dim, peer.config.rope_parameters["rope_theta"]
    plain = theta ** (-np.arange(0, size, 2) / size)
    found: Array = (plain / rope.inv_freq.double().numpy()).astype(np.float32)
    return found


def metadata(arch: str, config: Any, changes: dict[str, Any]) -> dict[str, Any]:
    """The entries that llama.cpp's converters write."""
    said = config.to_dict()
    rope = said["rope_parameters"]
    full = rope.get("full_attention", rope)
    found = {
        f"{arch}.context_length": said["max_position_embeddings"],
        f"{arch}.embedding_length": said["hidden_size"],
        f"{arch}.block_count": said["num_hidden_layers"],
        f"{arch}.feed_forward_length": said["intermediate_size"],
        f"{arch}.attention.head_count": said["num_attention_heads"],
        f"{arch}.attention.head_count_kv": said["num_key_value_heads"],
        f"{arch}.attention.key_length": config.head_dim if hasattr(config, "head_dim") else None,
        f"{arch}.attention.layer_norm_rms_epsilon": float(said["rms_norm_eps"]),
        f"{arch}.rope.freq_base": float(full["rope_theta"]),
        f"{arch}.attention.sliding_window": said.get("sliding_window"),
        f"{arch}.expert_count": said.get("num_local_experts", said.get("num_experts")),
        f"{arch}.expert_used_count": said.get("num_experts_per_tok"),
    }
    if arch == "qwen3moe":
        found[f"{arch}.expert_feed_forward_length"] = said["moe_intermediate_size"]
        found[f"{arch}.expert_weights_norm"] = said["norm_topk_prob"]
    if arch == "gpt-oss":
        found[f"{arch}.expert_feed_forward_length"] = said["intermediate_size"]
    if full["rope_type"] in ("yarn", "linear"):
        found[f"{arch}.rope.scaling.type"] = full["rope_type"]
        found[f"{arch}.rope.scaling.factor"] = float(full["factor"])
    if full["rope_type"] == "yarn":
        found[f"{arch}.rope.scaling.original_context_length"] = full["original_max_position_embeddings"]
    return {**found, **changes}


def add(writer: gguf.GGUFWriter, name: str, value: Any) -> None:
    match value:
        case bool():
            writer.add_bool(name, value)
        case int():
            writer.add_uint32(name, value)
        case float():
            writer.add_float32(name, value)
        case str():
            writer.add_string(name, value)
        case _:
            writer.add_array(name, value)
