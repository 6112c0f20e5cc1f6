"""The metadata of a GGUF file as the entries of a ``config.json``.

Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. They begin with the name of the architecture. What a
file does not say (activation functions, whether embeddings are tied, which layers have biases) is known of the
architecture or seen in the names of the tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ferrum_array import Dtype
from ferrum_models.config import Settings
from ferrum_models.gguf.reader import GgufFile

__all__ = ["ARCHITECTURES", "architecture", "natural_dtype", "settings"]

#: what would change the computation, and the values that do not
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.output_scale": (0.0, 1.0),
    "attention.shared_kv_layers": (0,),
    "attention.temperature_scale": (0.0,),
    "embedding_scale": (0.0, 1.0),
    "expert_group_count": (0, 1),
    "expert_shared_count": (0,),
    "expert_weights_scale": (0.0, 1.0),
    "leading_dense_block_count": (0,),
    "logit_scale": (0.0, 1.0),
    "nextn_predict_layers": (0,),
    "residual_scale": (0.0, 1.0),
    "rope.scaling.yarn_ext_factor": (1.0,),
    "router_logit_softcapping": (0.0,),
    "use_parallel_residual": (False,),
}
_MOST_EXPERTS = 1 << 16
_EOS = ("eos", "eot", "eom")

Entries = dict[str, Any]


def settings(file: GgufFile) -> Settings:
    """The config that *file* holds, in the entries of ``config.json``.

    Raises:
        ValueError: for an unknown architecture, listing those that are known, entries that are missing or wrong, and
        those that ask for what is not implemented.
    """
    name = architecture(file)
    own = {key.removeprefix(f"{name}."): value for key, value in file.entries.items() if key.startswith(f"{name}.")}
    said = Settings(own, f"{file.path} ({name})")
    for key, neutral in _NEUTRAL.items():
        said.refuse(key, *neutral)
    return Settings({**_common(file, said), **ARCHITECTURES[name](file, said)}, str(file.path))


def architecture(file: GgufFile) -> str:
    """The architecture that *file* names.

    Raises:
        ValueError: for another one than those that are known, which it lists, and for a file that is no model.
    """
    general = Settings(file.entries, str(file.path))
    general.choice("general.type", known={"model": "model"}, default="model")
    return general.choice("general.architecture", known={one: one for one in ARCHITECTURES})


def natural_dtype(file: GgufFile) -> Dtype:
    """In what a model computes that is not told: in the type of its embedding, or float32 where that is quantised."""
    info = file.tensors.get("token_embd.weight")
    return Dtype.F32 if info is None or info.element.dtype is None else info.element.dtype


def _common(file: GgufFile, said: Settings) -> Entries:
    hidden, heads = said.integer("embedding_length"), _alike(said, "attention.head_count")
    layers = said.integer("block_count")
    if layers > len(file.tensors):  # before anything is made for each of them
        raise ValueError(f"{said.source}: block_count is {layers}, but there are only {len(file.tensors)} tensors")
    size = _head(said)
    if said.integer("attention.value_length", default=size) != size:
        raise ValueError(f"{said.source}: keys and values of different lengths are not implemented")
    turned = said.integer("rope.dimension_count", default=size)
    if turned > size:
        raise ValueError(f"{said.source}: rope.dimension_count is {turned}, but heads have {size} dimensions")
    table = file.tensors.get("token_embd.weight")
    if table is None or len(table.shape) != 2:
        raise ValueError(f"{file.path}: there is no token_embd.weight of two axes; it is the table of a language model")
    context = said.integer("context_length")
    return {
        "vocab_size": table.shape[0],
        "hidden_size": hidden,
        "intermediate_size": _alike(said, "feed_forward_length"),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": _alike(said, "attention.head_count_kv", heads),
        "head_dim": size,
        "partial_rotary_factor": turned / size,
        "rms_norm_eps": said.number("attention.layer_norm_rms_epsilon"),
        "max_position_embeddings": context,
        "rope_theta": said.number("rope.freq_base", default=10000.0),
        "rope_scaling": _scaling(file, said, size, context),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": _has(file, "attn_q.bias"),
        "mlp_bias": _has(file, "ffn_gate.bias"),
        "dtype": natural_dtype(file).standard_name,
        "eos_token_id": _ends(file, table.shape[0]),
    }


def _head(said: Settings) -> int:
    """The dimensions of a head."""
    hidden, heads = said.integer("embedding_length"), _alike(said, "attention.head_count")
    return said.integer("attention.key_length", default=max(hidden // heads, 1))


def _has(file: GgufFile, suffix: str) -> bool:
    return f"blk.0.{suffix}" in file.tensors


def _alike(said: Settings, name: str, default: int | None = None) -> int:
    """A positive integer, also written as a list with the number of each layer, if all are the same."""
    value = said.get(name)
    if value is None and default is not None:
        return default
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value):
        first = value[0]
        if any(one != first for one in value):
            raise ValueError(f"{said.source}: {name} differs from layer to layer, which is not implemented")
        return Settings({name: first}, said.source).integer(name)
    return said.integer(name)


def _ends(file: GgufFile, vocabulary: int) -> list[int]:
    """The tokens that end a text or a turn."""
    general = Settings(file.entries, str(file.path))
    found = []
    for name in _EOS:
        key = f"tokenizer.ggml.{name}_token_id"
        if general.get(key) is None:
            continue
        one = general.integer(key, least=0)
        if one >= vocabulary:
            raise ValueError(f"{file.path}: {key} is {one}, but the table has {vocabulary} rows")
        found.append(one)
    return list(dict.fromkeys(found))


def _scaling(file: GgufFile, said: Settings, size: int, context: int) -> Entries | None:
    """The entries of ``rope_scaling``, or None where positions are taken as they are."""
    kinds = {kind: kind for kind in ("none", "linear", "yarn")}
    kind = said.choice("rope.scaling.type", known=kinds, default="none")
    factor = said.number("rope.scaling.factor", "rope.scale_linear", default=1.0)
    divisors = file.tensors.get("rope_freqs.weight")
    if divisors is not None:  # a number for each frequency: what comes of llama 3's scaling
        if kind != "none" or divisors.element.dtype is None or divisors.shape != (size // 2,):
            raise ValueError(
                f"{said.source}: rope_freqs.weight must be {size // 2} numbers beside rope.scaling.type none, "
                f"got {divisors!r} beside {kind}"
            )
        numbers = file.raw("rope_freqs.weight").astype("f64").tolist()
        return {
            "rope_type": "longrope",
            "short_factor": numbers,
            "long_factor": numbers,
            "original_max_position_embeddings": context,
            "attention_factor": 1.0,
        }
    if kind == "yarn":
        given = said.optional_number("rope.scaling.attn_factor", "rope.scaling.yarn_attn_factor")
        grown = 0.1 * math.log(factor) + 1.0 if factor > 1.0 else 1.0
        return {
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": said.integer("rope.scaling.original_context_length", default=context),
            "beta_fast": said.number("rope.scaling.yarn_beta_fast", default=32.0),
            "beta_slow": said.number("rope.scaling.yarn_beta_slow", default=1.0),
            "attention_factor": None if given is None else given * grown,
        }
    if kind == "linear" or (factor != 1.0 and said.get("rope.scaling.type") is None):
        return {"rope_type": "linear", "factor": factor}
    return None


def _experts(file: GgufFile, said: Settings, *, gating: int = 1) -> Entries:
    """How many experts there are, and how many a token takes."""
    count = said.integer("expert_count")
    if count > _MOST_EXPERTS:  # before anything is made for each of them
        raise ValueError(f"{said.source}: expert_count is {count}; at most {_MOST_EXPERTS} are read")
    said.refuse("expert_gating_func", 0, gating)
    return {
        "num_local_experts": count,
        "num_experts_per_tok": said.integer("expert_used_count"),
    }


def _llama(file: GgufFile, said: Settings) -> Entries:
    """Llama, Mistral and Mixtral are one architecture."""
    size = _head(said)
    if said.integer("rope.dimension_count", default=size) != size:
        raise ValueError(f"{said.source}: heads of {size} dimensions of which a part turns are not implemented")
    window = said.optional_integer("attention.sliding_window")
    if said.integer("expert_count", default=0, least=0):
        return {"model_type": "mixtral", "sliding_window": window, **_experts(file, said)}
    return {"model_type": "llama" if window is None else "mistral", "sliding_window": window}


def _qwen(kind: str) -> Callable[[GgufFile, Settings], Entries]:
    def entries(file: GgufFile, said: Settings) -> Entries:
        window = said.optional_integer("attention.sliding_window")
        if window is not None and window < said.integer("context_length"):
            raise ValueError(f"{said.source}: attention.sliding_window {window} is not implemented for it")
        return {"model_type": kind}

    return entries


def _qwen3_moe(file: GgufFile, said: Settings) -> Entries:
    return {
        **_qwen("qwen3_moe")(file, said),
        **_experts(file, said),
        "moe_intermediate_size": _alike(said, "expert_feed_forward_length"),
        "norm_topk_prob": said.flag("expert_weights_norm", default=True),
    }


def _gemma3(file: GgufFile, said: Settings) -> Entries:
    hidden, heads = said.integer("embedding_length"), _alike(said, "attention.head_count")
    # files leave out the scale, which in the largest model, of 62 layers, is not that of the heads
    usual = hidden / heads if said.integer("block_count") == 62 else float(_head(said))
    scale = said.number("attention.scale", default=usual**-0.5, least=1e-9)
    window = said.optional_integer("attention.sliding_window")
    kinds = said.get("attention.sliding_window_pattern")
    found: Entries = {
        "model_type": "gemma3_text",
        "query_pre_attn_scalar": max(scale**-2.0, 1e-9),
        "rope_local_base_freq": said.number("rope.freq_base_swa", default=10000.0),
        "attn_logit_softcapping": said.optional_number("attn_logit_softcapping"),
        "final_logit_softcapping": said.optional_number("final_logit_softcapping"),
        "sliding_window": window,
    }
    if window is None:
        found["sliding_window_pattern"] = 1
    elif isinstance(kinds, Sequence):
        found["layer_types"] = ["sliding_attention" if one else "full_attention" for one in kinds]
    else:
        found["sliding_window_pattern"] = said.integer("attention.sliding_window_pattern", default=6)
    return found


def _gpt_oss(file: GgufFile, said: Settings) -> Entries:
    found = {
        "model_type": "gpt_oss",
        **_experts(file, said, gating=3),
        "intermediate_size": _alike(said, "expert_feed_forward_length"),
        "sliding_window": said.integer("attention.sliding_window"),
    }
    scaling = _scaling(file, said, _head(said), said.integer("context_length"))
    if scaling is not None and scaling["rope_type"] == "yarn":
        found["rope_scaling"] = {**scaling, "truncate": False}  # as this family's configs say
    return found


#: names of architectures -> the entries that are theirs
ARCHITECTURES: Mapping[str, Callable[[GgufFile, Settings], Entries]] = {
    "gemma3": _gemma3,
    "gpt-oss": _gpt_oss,
    "llama": _llama,
    "qwen2": _qwen("qwen2"),
    "qwen3": _qwen("qwen3"),
    "qwen3moe": _qwen3_moe,
}
