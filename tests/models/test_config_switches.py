"""Whatever a config says, the model computes what transformers computes, and in the older spelling the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ferrum_array as fa
from tests.models import parity

Draw = Callable[[st.SearchStrategy[Any]], Any]
FEW = settings(max_examples=max(4, settings().max_examples // 8))
TOKENS = 13
#: what a model was trained on; the texts here are longer
SHORT = 8
FULL, SLIDING, LINEAR = "full_attention", "sliding_attention", "linear_attention"


def scaling(draw: Draw, dim: int, kinds: tuple[str, ...] = ("linear", "dynamic", "llama3", "yarn", "longrope")) -> Any:
    """Some ``rope_parameters`` for so many dimensions."""
    kind = draw(st.sampled_from(("default", *kinds)))
    entries: dict[str, Any] = {"rope_type": kind, "rope_theta": draw(st.sampled_from([100.0, 10000.0, 500000.0]))}
    if kind in ("linear", "dynamic", "llama3", "yarn"):
        entries["factor"] = draw(st.sampled_from([2.0, 4.0]))
    if kind in ("llama3", "yarn", "longrope"):
        entries["original_max_position_embeddings"] = draw(st.sampled_from([SHORT, 32]))
    if kind == "llama3":
        entries |= {"low_freq_factor": 1.0, "high_freq_factor": draw(st.sampled_from([2.0, 4.0]))}
    if kind == "yarn":
        entries |= draw(
            st.sampled_from(
                [
                    {},
                    {"beta_fast": 4.0, "beta_slow": 0.5},
                    {"attention_factor": 1.2},
                    {"mscale": 0.7, "mscale_all_dim": 0.9},
                ]
            )
        )
    if kind == "longrope":
        numbers = st.lists(st.sampled_from([1.0, 1.5, 4.0]), min_size=dim // 2, max_size=dim // 2)
        entries |= {"short_factor": draw(numbers), "long_factor": draw(numbers)}
        entries |= draw(st.sampled_from([{}, {"attention_factor": 1.1}]))
    return entries


def shared(draw: Draw, *, dim: int | None = None, rope: bool = True) -> dict[str, Any]:
    """Entries that all families have."""
    heads, kv_heads = draw(st.sampled_from([(4, 4), (4, 2), (4, 1), (1, 1), (6, 3)]))
    size = draw(st.sampled_from([4, 6, 8])) if dim is None else dim
    found: dict[str, Any] = {
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": size,
        "num_hidden_layers": 2,
        "hidden_size": draw(st.sampled_from([12, 24])),
        "rms_norm_eps": draw(st.sampled_from([1e-6, 1e-5, 1e-2])),
        "tie_word_embeddings": draw(st.booleans()),
    }
    if rope:
        found["rope_parameters"] = scaling(draw, size)
        if found["rope_parameters"]["rope_type"] == "dynamic":
            found["max_position_embeddings"] = SHORT
    return found


def flags(draw: Draw, *names: str) -> dict[str, bool]:
    return {name: draw(st.booleans()) for name in names}


def act(draw: Draw) -> dict[str, str]:
    return {"hidden_act": draw(st.sampled_from(["silu", "gelu", "gelu_pytorch_tanh", "relu"]))}


def kinds(draw: Draw) -> list[str]:
    return list(draw(st.sampled_from([(FULL, SLIDING), (SLIDING, FULL), (FULL, FULL), (SLIDING, SLIDING)])))


def experts(draw: Draw, name: str = "num_experts") -> dict[str, Any]:
    count = draw(st.sampled_from([2, 5]))
    return {name: count, "num_experts_per_tok": draw(st.integers(1, count)), "moe_intermediate_size": 12}


def llama(draw: Draw) -> dict[str, Any]:
    return {**shared(draw), **flags(draw, "attention_bias", "mlp_bias"), **act(draw)}


def mistral(draw: Draw) -> dict[str, Any]:
    return {**shared(draw), **act(draw), "sliding_window": draw(st.sampled_from([None, 1, 4, 40]))}


def windows(draw: Draw) -> dict[str, Any]:
    """The windows of a Qwen, by their number or by a list."""
    window = {"use_sliding_window": draw(st.booleans()), "sliding_window": draw(st.sampled_from([1, 5]))}
    if window["use_sliding_window"] and draw(st.booleans()):
        return {**window, "layer_types": kinds(draw)}
    return {**window, "max_window_layers": draw(st.integers(0, 2))}


def qwen2(draw: Draw) -> dict[str, Any]:
    found = shared(draw, dim=4)
    return {**found, "hidden_size": 4 * found["num_attention_heads"], **windows(draw)}


def qwen3(draw: Draw) -> dict[str, Any]:
    return {**shared(draw), **flags(draw, "attention_bias"), **act(draw), **windows(draw)}


def qwen3_moe(draw: Draw) -> dict[str, Any]:
    found = {**shared(draw), **flags(draw, "attention_bias", "norm_topk_prob"), **experts(draw)}
    sparse = [{}, {"decoder_sparse_step": 2}, {"mlp_only_layers": [0]}]
    return {**found, **draw(st.sampled_from(sparse))}


def mixtral(draw: Draw) -> dict[str, Any]:
    return {
        **shared(draw),
        **experts(draw, "num_local_experts"),
        "sliding_window": draw(st.sampled_from([None, 3])),
    }


def gemma3(draw: Draw) -> dict[str, Any]:
    found = shared(draw, rope=False)
    size = found["head_dim"]
    return {
        **found,
        **flags(draw, "attention_bias"),
        "rope_parameters": {
            "full_attention": scaling(draw, size, ("linear", "yarn")),
            "sliding_attention": scaling(draw, size, ("linear",)),
        },
        "layer_types": kinds(draw),
        "sliding_window": draw(st.sampled_from([1, 4, 40])),
        "query_pre_attn_scalar": draw(st.sampled_from([4, 16])),
        # not attn_logit_softcapping, which transformers reads and never uses
        "final_logit_softcapping": draw(st.sampled_from([None, 3.0])),
        "hidden_activation": draw(st.sampled_from(["gelu_pytorch_tanh", "silu"])),
    }


def gpt_oss(draw: Draw) -> dict[str, Any]:
    return {
        **shared(draw),
        **experts(draw, "num_local_experts"),
        **flags(draw, "attention_bias"),
        "layer_types": kinds(draw),
        "sliding_window": draw(st.sampled_from([1, 4, 40])),
    }


def deepseek_v3(draw: Draw) -> dict[str, Any]:
    turning = draw(st.sampled_from([4, 6]))
    found = shared(draw, dim=turning)
    groups, size = draw(st.sampled_from([(1, 5), (2, 2), (3, 4)]))
    chosen = draw(st.integers(1, groups))
    return {
        **found,
        **flags(draw, "attention_bias", "norm_topk_prob", "rope_interleave"),
        **act(draw),
        "num_key_value_heads": found["num_attention_heads"],
        "q_lora_rank": draw(st.sampled_from([None, 1, 7])),
        "kv_lora_rank": draw(st.sampled_from([1, 10])),
        "qk_nope_head_dim": draw(st.sampled_from([1, 6])),
        "qk_rope_head_dim": turning,
        "v_head_dim": draw(st.sampled_from([1, 7])),
        "n_group": groups,
        "topk_group": chosen,
        "n_routed_experts": groups * size,
        "num_experts_per_tok": draw(st.integers(1, min(3, chosen * size))),
        "n_shared_experts": draw(st.integers(1, 2)),
        "moe_intermediate_size": 12,
        "first_k_dense_replace": draw(st.integers(0, 2)),
        "routed_scaling_factor": draw(st.sampled_from([1.0, 2.5])),
    }


def qwen3_next(draw: Draw) -> dict[str, Any]:
    found = shared(draw, dim=8)
    part = draw(st.sampled_from([0.5, 1.0]))
    found["rope_parameters"] = {**scaling(draw, int(8 * part)), "partial_rotary_factor": part}
    if found["rope_parameters"]["rope_type"] == "dynamic":
        found["max_position_embeddings"] = SHORT
    else:
        found.pop("max_position_embeddings", None)
    keys, times = draw(st.sampled_from([1, 2])), draw(st.sampled_from([1, 2, 3]))
    return {
        **found,
        **experts(draw),
        **flags(draw, "attention_bias", "norm_topk_prob"),
        **act(draw),
        # transformers needs a layer of attention
        "layer_types": list(draw(st.sampled_from([(LINEAR, FULL), (FULL, LINEAR), (FULL, FULL)]))),
        "shared_expert_intermediate_size": 6,
        "linear_num_key_heads": keys,
        "linear_num_value_heads": keys * times,
        "linear_key_head_dim": draw(st.sampled_from([1, 6])),
        "linear_value_head_dim": draw(st.sampled_from([1, 5])),
        "linear_conv_kernel_dim": draw(st.sampled_from([1, 2, 4])),
        **draw(st.sampled_from([{}, {"mlp_only_layers": [1]}])),
    }


FAMILIES: dict[str, Callable[[Draw], dict[str, Any]]] = {
    "LlamaConfig": llama,
    "MistralConfig": mistral,
    "Qwen2Config": qwen2,
    "Qwen3Config": qwen3,
    "Qwen3MoeConfig": qwen3_moe,
    "MixtralConfig": mixtral,
    "Gemma3TextConfig": gemma3,
    "GptOssConfig": gpt_oss,
    "DeepseekV3Config": deepseek_v3,
    "Qwen3NextConfig": qwen3_next,
}


def spelt_as_of_old(path: Path) -> None:
    """Rewrite a config: ``rope_theta`` and ``rope_scaling`` for ``rope_parameters``, ``torch_dtype`` for ``dtype``."""
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    if "full_attention" in rope:  # Gemma 3 had a base for windows, and scaled the others alone
        config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
    config["rope_theta"] = rope.pop("rope_theta")
    if "partial_rotary_factor" in rope:
        config["partial_rotary_factor"] = rope.pop("partial_rotary_factor")
    rope["type"] = rope.pop("rope_type")
    config["rope_scaling"] = None if rope["type"] == "default" else rope
    config["torch_dtype"] = config.pop("dtype")
    path.write_text(json.dumps(config))


@pytest.mark.parametrize("config", FAMILIES)
@FEW
@given(data=st.data(), old=st.booleans(), pieces=st.booleans(), seed=st.integers(0, 9))
def test_switches(config: str, device: fa.Device, data: st.DataObject, old: bool, pieces: bool, seed: int) -> None:
    entries = FAMILIES[config](data.draw)
    rope = entries["rope_parameters"]
    by_length = rope.get("rope_type") in ("dynamic", "longrope")
    if rope.get("sliding_attention", {}).get("rope_type") == "linear":
        old = False  # it could not be said
    ids = np.random.default_rng(seed).integers(0, 61, (2, TOKENS))
    with TemporaryDirectory() as name:
        folder = Path(name)
        peer = parity.make(config, folder, seed, **entries)
        if old:
            spelt_as_of_old(folder / "config.json")
        model = parity.ours(folder, device)
        given = fa.asarray(ids, device=device)
        if pieces and not by_length:  # whose keys depend on how long the text was when they were made
            cache = model.make_cache(2, TOKENS, chunk=7)
            found = fa.concat([model(given[:, :7], cache=cache), model(given[:, 7:], cache=cache)], axis=1)
        else:
            found = model(given)
        assert parity.distance(found, parity.logits_of(peer, ids)) < 1e-4
