"""Every family agrees with transformers."""

from __future__ import annotations

import dataclasses
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ferrum_array as fa
from ferrum_models import generate_ids, load, random_model
from ferrum_models.causal import DecoderConfig
from ferrum_models.config import Settings
from ferrum_models.families import family
from ferrum_ops import LinearScaling
from tests.models import parity

MOE = {"num_experts_per_tok": 2, "num_local_experts": 5}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 10000.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
    "rope_theta": 500000.0,
}
DEEPSEEK = {
    "num_key_value_heads": 4,
    "head_dim": 4,
    "q_lora_rank": 12,
    "kv_lora_rank": 10,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4,
    "v_head_dim": 7,
    "n_routed_experts": 12,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "moe_intermediate_size": 20,
    "first_k_dense_replace": 1,
}
MSCALE = {**YARN, "mscale": 0.7, "mscale_all_dim": 1.0}
NEXT = {
    "num_experts": 5,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 20,
    "shared_expert_intermediate_size": 12,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 6,
    "linear_value_head_dim": 5,
    "num_hidden_layers": 4,
    "partial_rotary_factor": 0.5,
}
#: a name -> the class of the config in transformers, and entries that show each switch
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "llama-3": ("LlamaConfig", {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "llama-biases": ("LlamaConfig", {"attention_bias": True, "mlp_bias": True, "hidden_act": "gelu"}),
    "mistral": ("MistralConfig", {"sliding_window": 5}),
    "mistral-full": ("MistralConfig", {"sliding_window": None}),
    "qwen2": ("Qwen2Config", {"hidden_size": 32}),
    "qwen2-window": ("Qwen2Config", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
    "qwen3": ("Qwen3Config", {}),
    "qwen3-yarn": ("Qwen3Config", {"rope_parameters": YARN, "attention_bias": True}),
    "qwen3-moe": ("Qwen3MoeConfig", {**MOE, "moe_intermediate_size": 20, "norm_topk_prob": True}),
    "qwen3-moe-mixed": ("Qwen3MoeConfig", {**MOE, "moe_intermediate_size": 20, "mlp_only_layers": [1]}),
    "mixtral": ("MixtralConfig", {**MOE, "sliding_window": 6}),
    "gemma3": ("Gemma3TextConfig", {"sliding_window": 5, "query_pre_attn_scalar": 16, "num_hidden_layers": 7}),
    "gemma3-caps": ("Gemma3TextConfig", {"final_logit_softcapping": 3.0}),
    "deepseek-v3": ("DeepseekV3Config", DEEPSEEK),
    "deepseek-v3-yarn": ("DeepseekV3Config", {**DEEPSEEK, "rope_parameters": MSCALE, "n_shared_experts": 2}),
    "deepseek-v3-plain": (
        "DeepseekV3Config",
        {**DEEPSEEK, "q_lora_rank": None, "rope_interleave": False, "norm_topk_prob": False, "attention_bias": True},
    ),
    "qwen3-next": ("Qwen3NextConfig", NEXT),
    "qwen3-next-mixed": (
        "Qwen3NextConfig",
        {
            **NEXT,
            "layer_types": ["full_attention", "linear_attention", "linear_attention", "full_attention"],
            "mlp_only_layers": [1],
            "norm_topk_prob": False,
            "linear_conv_kernel_dim": 2,
            "attention_bias": True,
        },
    ),
    "gpt-oss": ("GptOssConfig", {**MOE, "sliding_window": 5, "rope_parameters": {**YARN, "truncate": False}}),
}


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp(request.param)
    config, entries = FAMILIES[request.param]
    return folder, parity.make(config, folder, **entries)


def test_the_documents_compare_them_all() -> None:
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    table = page.split("python -m benchmarks.parity")[1].split("\n## ")[0]
    assert re.findall(r"^\| (\S+) \| .* \| the same \|$", table, re.MULTILINE) == list(FAMILIES)


def test_logits(pair: tuple[Path, Any], device: fa.Device) -> None:
    folder, peer = pair
    ids = np.random.default_rng(0).integers(0, 61, (2, 23))
    model = parity.ours(folder, device)
    assert parity.distance(model(fa.asarray(ids, device=device)), parity.logits_of(peer, ids)) < 1e-4


@pytest.mark.parametrize("kind", ["contiguous", "paged"])
def test_caches_chunks_and_unequal_lengths(pair: tuple[Path, Any], device: fa.Device, kind: Any) -> None:
    """Prompts in pieces, then single tokens, for sequences of different lengths: as transformers in one go."""
    folder, peer = pair
    model = parity.ours(folder, device)
    ids = np.random.default_rng(1).integers(0, 61, (3, 17))
    lengths = [17, 9, 13]
    expected = parity.logits_of(peer, ids)
    cache = model.make_cache(3, 20, kind=kind, chunk=4, block_size=3)
    done, found = [0, 0, 0], np.zeros_like(expected)
    while done != lengths:
        tokens = [min(4 if max(done) < 8 else 1, n - d) for n, d in zip(lengths, done, strict=True)]
        width = max(tokens)
        rows = np.stack([np.pad(row[d : d + n], (0, width - n)) for row, d, n in zip(ids, done, tokens, strict=True)])
        logits = model(fa.asarray(rows, device=device), lengths=tokens, cache=cache).numpy()
        for row, (d, n) in enumerate(zip(done, tokens, strict=True)):
            found[row, d : d + n] = logits[row, :n]
        done = [d + n for d, n in zip(done, tokens, strict=True)]
        assert cache.lengths == done
    for row, n in enumerate(lengths):
        error = np.max(np.abs(found[row, :n] - expected[row, :n])) / np.max(np.abs(expected))
        assert error < 1e-4, f"sequence {row}: {error}"


def test_greedy_tokens(pair: tuple[Path, Any], device: fa.Device) -> None:
    folder, peer = pair
    model = parity.ours(folder, device)
    prompt = [5, 17, 3, 42, 8, 8, 1]
    expected = parity.greedy_of(peer, prompt, 16)
    assert len(set(expected)) > 1 or model.lm_head is None  # tied embeddings make a token follow itself
    assert list(generate_ids(model, prompt, max_new_tokens=16, stop_ids=())) == expected


@pytest.mark.parametrize("side", ["left", "right", "both"])
def test_padded_batches(pair: tuple[Path, Any], device: fa.Device, side: str) -> None:
    """Masked as transformers masks them; what stands in the padding is of no account, and a cache never sees it."""
    folder, peer = pair
    model = parity.ours(folder, device)
    width, lengths = 14, [14, 9, 1, 12]
    places = np.arange(width)
    starts = [{"left": width - n, "right": 0, "both": (width - n) // 2}[side] for n in lengths]
    mask = np.stack([(places >= start) & (places < start + n) for start, n in zip(starts, lengths, strict=True)])
    ids = np.random.default_rng(2).integers(0, 61, mask.shape)
    expected = np.where(mask[..., None], parity.logits_of(peer, ids, mask.astype(np.int64)), 0.0)
    cache = model.make_cache(4, 20)
    for marks in (mask, mask.astype(np.int32)):
        found = model(fa.asarray(np.where(mask, ids, -7), device=device), mask=fa.asarray(marks, device=device))
        assert parity.distance(found, expected) < 1e-4
        assert not np.any(found.numpy()[~mask])
    found = model(fa.asarray(ids, device=device), mask=fa.asarray(mask, device=device), cache=cache)
    assert parity.distance(found, expected) < 1e-4
    assert cache.lengths == lengths
    # and a token more of each row
    rows = [np.append(row[one], 7) for row, one in zip(ids, mask, strict=True)]
    more = model(fa.asarray([[7]] * 4, device=device), cache=cache)
    for row, one in enumerate(rows):
        last = parity.logits_of(peer, one[None])[:, -1:]
        assert parity.distance(more[row : row + 1], last) < 1e-4


@pytest.mark.parametrize(
    ("mask", "options", "error", "message"),
    [
        ([[1, 0, 1]], {}, ValueError, "stand together and 0 beside them, but row 0 is"),
        ([[0, 1, 2]], {}, ValueError, "stand together and 0 beside them"),
        ([[0, 1, -1]], {}, ValueError, "stand together and 0 beside them"),
        ([[1, 1]], {}, ValueError, r"mask must have the shape of ids, \(1, 3\), got \(1, 2\)"),
        ([[1.0, 1.0, 1.0]], {}, TypeError, "mask must be boolean or integers, got float32"),
        ([[1, 1, 1]], {"lengths": [3]}, ValueError, "lengths and mask both say"),
    ],
)
def test_masks_that_are_refused(mask: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    model = random_model({"model_type": "llama", **parity.TINY})
    with pytest.raises(error, match=message):
        model(fa.asarray([[1, 2, 3]]), mask=fa.asarray(mask), **options)


def test_rows_of_nothing_but_padding() -> None:
    model = random_model({"model_type": "llama", **parity.TINY})
    ids = fa.asarray([[1, 2, 3], [4, 5, 6]])
    found = model(ids, mask=fa.asarray([[False, True, True], [False, False, False]])).numpy()
    np.testing.assert_allclose(found[0, 1:], model(ids[:1, 1:]).numpy()[0], rtol=1e-4, atol=1e-6)
    assert not np.any(found[1])


# Gemma 3 that also sees.


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A model of transformers that also sees, and what it says of texts."""
    import torch

    folder = tmp_path_factory.mktemp("seeing")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other people's libraries
        import transformers

        text = {**parity.TINY, "sliding_window": 5, "pad_token_id": 0}
        seen = {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = transformers.Gemma3Config(
            text_config=text,
            vision_config={**seen, "image_size": 28, "patch_size": 14},
            mm_tokens_per_image=4,
            image_token_index=60,
        )
        torch.manual_seed(0)
        model = transformers.Gemma3ForConditionalGeneration(config).eval()
        with torch.no_grad():
            for value in model.model.language_model.parameters():
                torch.nn.init.normal_(value, std=0.3)
        model.save_pretrained(folder)
    return folder, model


@pytest.mark.parametrize("layout", ["language_model.model.", "model.language_model.", "model."])
def test_the_part_that_reads_text(seeing: tuple[Path, Any], tmp_path: Path, layout: str, device: fa.Device) -> None:
    folder, peer = seeing
    shutil.copyfile(folder / "config.json", tmp_path / "config.json")
    with fa.io.open_safetensors(folder / "model.safetensors") as file:
        tensors = {name.replace("language_model.model.", layout): one for name, one in file.items()}
    assert sum(name.startswith(layout) for name in tensors) > 20
    assert any(name.startswith("vision_tower.") for name in tensors)
    fa.io.save_safetensors(tensors, tmp_path / "model.safetensors")
    ids = np.random.default_rng(0).integers(0, 60, (2, 11))
    model, _ = load(tmp_path, device=device)
    assert parity.distance(model(fa.asarray(ids, device=device)), parity.logits_of(peer, ids)) < 1e-4
    assert not any("vision" in name for name, _ in model.named_parameters())


def test_other_tensors_are_not_ignored(seeing: tuple[Path, Any], tmp_path: Path) -> None:
    folder, _ = seeing
    shutil.copyfile(folder / "config.json", tmp_path / "config.json")
    with fa.io.open_safetensors(folder / "model.safetensors") as file:
        tensors = dict(file)
    norm = "language_model.model.norm.weight"
    for name, message in (
        ("language_model.model.norm.bias", r"language_model\.model\.norm\.bias is not known"),
        ("audio_tower.weight", r"audio_tower\.weight is not known"),
        ("model.norm.weight", "are one tensor of one language model, stored twice"),
    ):
        fa.io.save_safetensors({**tensors, name: tensors[norm]}, tmp_path / "model.safetensors")
        with pytest.raises(ValueError, match=message):
            load(tmp_path)


def test_what_a_config_need_not_say() -> None:
    """A config without the entries of its family means what transformers takes for granted."""
    import transformers

    named = {"deepseek_v3": "DeepseekV3Config", "qwen3_next": "Qwen3NextConfig"}
    for model_type, name in named.items():
        peer = getattr(transformers, name)()
        said = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        settings = Settings({"model_type": model_type, **{key: getattr(peer, key) for key in said}})
        config = family(settings).config(settings)
        own = {one.name for one in dataclasses.fields(config)} - {one.name for one in dataclasses.fields(DecoderConfig)}
        computed = {"attention_scale", "prediction_layers", "sparse"}
        assert len(own - computed) > 8
        for one in own - computed:
            assert getattr(config, one) == getattr(peer, one), one
    next_one = config.rotary["full_attention"]
    assert (next_one.dim, config.layer_types[:5]) == (
        64,
        (*["linear_attention"] * 3, "full_attention", "linear_attention"),
    )
    assert list(config.layer_types) == peer.layer_types


@pytest.mark.parametrize("kind", ["llama3", "longrope", "yarn"])
def test_rope_stretches_all_positions_where_a_config_names_no_original(kind: str) -> None:
    own = {"low_freq_factor": 1.0, "high_freq_factor": 4.0} if kind == "llama3" else {}
    own = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4} if kind == "longrope" else own
    entries = {"rope_type": kind, "factor": 4.0, **own}
    settings = Settings({**parity.TINY, "model_type": "llama", "rope_scaling": entries})
    scaling = family(settings).config(settings).rotary["full_attention"].scaling
    assert scaling.original_max_position_embeddings == 128


@pytest.mark.parametrize(
    ("model_type", "entries", "message"),
    [
        ("deepseek_v3", {"n_group": 5}, "8 experts of 256 cannot come from 4 of 5 groups"),
        ("deepseek_v3", {"topk_group": 9}, "cannot come from 9 of 8 groups"),
        ("deepseek_v3", {"num_experts_per_tok": 200}, "200 experts of 256 cannot come from 4 of 8 groups"),
        ("deepseek_v3", {"scoring_func": "softmax"}, "scoring_func is 'softmax', which is not implemented"),
        ("deepseek_v3", {"topk_method": "greedy"}, "topk_method is 'greedy', which is not implemented"),
        ("deepseek_v3", {"moe_layer_freq": 2}, "moe_layer_freq is 2, which is not implemented"),
        ("deepseek_v3", {"rope_scaling": {"type": "yarn", "factor": 2.0, "mscale": 1.0}}, "mscale_all_dim are needed"),
        ("qwen3_next", {"linear_num_value_heads": 5}, "linear_num_value_heads 5 is not a multiple"),
        ("qwen3_next", {"layer_types": ["sliding_attention"] * 3}, "out of full_attention, linear_attention, got"),
        ("llama", {"layer_types": ["linear_attention"] * 3}, "out of full_attention, sliding_attention, got"),
        ("deepseek_v3", {"layer_types": ["linear_attention"] * 3}, "out of full_attention, got"),
        ("qwen3_next", {"layer_types": ["recurrent"] * 3}, "layer_types must be 3 words out of"),
    ],
)
def test_configs_that_are_refused(model_type: str, entries: dict[str, Any], message: str) -> None:
    settings = Settings({**parity.TINY, "model_type": model_type, "sliding_window": 4, **entries})
    with pytest.raises(ValueError, match=message):
        family(settings).config(settings)


def test_what_predicts_tokens_further_ahead_is_left_out(tmp_path: Path) -> None:
    for model, extra, wrong in (
        ("deepseek-v3", "model.layers.3.eh_proj.weight", "model.layers.4.eh_proj.weight"),
        ("qwen3-next", "mtp.fc.weight", "mtpfc.weight"),
    ):
        config, entries = FAMILIES[model]
        folder = tmp_path / model
        parity.make(config, folder, **entries)
        with fa.io.open_safetensors(folder / "model.safetensors") as file:
            tensors = dict(file)
        for name in (extra, wrong):
            fa.io.save_safetensors({**tensors, name: fa.ones(2)}, folder / "model.safetensors")
            if name == extra:
                assert load(folder)[0].model.embed_tokens.weight.shape == (61, 32)
            else:
                with pytest.raises(ValueError, match=f"{name} is not known"):
                    load(folder)


def test_what_published_configs_leave_out() -> None:
    """The config of the model of 4 billion parameters says little of its text part."""
    text = {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    settings = Settings({"model_type": "gemma3", "eos_token_id": [1, 106], "text_config": text})
    config = family(settings).config(settings)
    import transformers

    peer = transformers.Gemma3TextConfig(**text)
    for name in ("vocab_size", "num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings"):
        assert getattr(config, name) == getattr(peer, name)
    assert list(config.layer_types) == peer.layer_types
    assert config.eos_token_ids == (1, 106)
    assert config.tie_word_embeddings
    assert config.rotary["full_attention"].scaling == LinearScaling(8.0)
    assert config.rotary["sliding_attention"].scaling is None
