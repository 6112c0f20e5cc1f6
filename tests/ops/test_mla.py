"""Latent attention: both ways, with and without a cache, are the definition, and what transformers computes."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ferrum_array as fa
from ferrum_ops import (
    KVCache,
    KVSpec,
    SequenceMeta,
    kv_append,
    linear,
    mla_attention,
    rms_norm,
    rope,
    rope_table,
)
from tests.ops.caches import INT8, poisoned, shuffled_tables
from tests.ops.oracle import Array, check, floats, make, noise
from tests.ops.test_attention import exact_attention


def exact(q: Array, w: Array, latent: Array, k_rope: Array, **options: Any) -> tuple[Array, Array]:
    """The definition: keys and values of every head, then attention."""
    heads = q.shape[1]
    nope = q.shape[2] - k_rope.shape[1]
    k = np.stack([np.concatenate((latent @ w[h, :nope].T, k_rope), axis=1) for h in range(heads)], axis=1)
    v = np.stack([latent @ w[h, nope:].T for h in range(heads)], axis=1)
    return exact_attention(q, k, v, **options)


@settings(max_examples=40)
@given(data=st.data())
def test_both_ways_are_the_definition(device: fa.Device, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(floats(device)))
    heads, rank, nope, turned, value = (data.draw(st.integers(1, 5)) for _ in range(5))
    turned *= 2
    keys = [data.draw(st.integers(0, 6)) for _ in range(data.draw(st.integers(1, 3)))]
    tokens = [data.draw(st.integers(0, n)) for n in keys]
    strided = data.draw(st.booleans())
    q, exact_q = make(noise(0, sum(tokens), heads, nope + turned), dtype, device, strided=strided)
    w, exact_w = make(noise(1, heads, nope + value, rank), dtype, device)
    latent, exact_latent = make(noise(2, sum(keys), rank), dtype, device, strided=strided)
    k_rope, exact_rope = make(noise(3, sum(keys), turned), dtype, device)
    options: dict[str, Any] = {
        "window": data.draw(st.sampled_from([None, 2])),
        "softcap": data.draw(st.sampled_from([None, 2.0])),
        "scale": data.draw(st.sampled_from([None, 0.4])),
    }
    meta = SequenceMeta(SequenceMeta.packed(tokens).cu_seqlens, kv_lens=tuple(keys))
    absorb = data.draw(st.sampled_from([None, False, True]))
    found, lse = mla_attention(q, w, latent, k_rope, meta=meta, absorb=absorb, return_lse=True, **options)
    outs, sums = [], []
    for n, (a, b) in enumerate(zip(meta.cu_seqlens, meta.cu_seqlens[1:], strict=False)):
        seen = slice(sum(keys[:n]), sum(keys[: n + 1]))
        one = exact(exact_q[a:b], exact_w, exact_latent[seen], exact_rope[seen], **options)
        outs.append(one[0])
        sums.append(one[1])
    check(found, np.concatenate(outs), dtype)
    check(lse, np.concatenate(sums), lse.dtype, 1e-13 if dtype is fa.float64 else 1e-6)


@settings(max_examples=25)
@given(data=st.data())
def test_a_cache_of_latents_gives_the_same(device: fa.Device, data: st.DataObject) -> None:
    stored = data.draw(st.sampled_from([fa.float32, fa.int8]))
    total, layout = data.draw(st.integers(1, 12)), data.draw(st.sampled_from(["contiguous", "paged"]))
    heads, rank, turned, nope, value = 3, 8, 4, 5, 6
    shapes = ((total, heads, nope + turned), (heads, nope + value, rank), (total, rank), (total, turned))
    q, w, latent, k_rope = (make(noise(n, *shape), fa.float32, device)[0] for n, shape in enumerate(shapes))
    size = 3 if layout == "paged" else 12
    spec = KVSpec(1, rank, 5, size, layout, stored, turned)
    table = shuffled_tables([12], size, 5, 1) if layout == "paged" else ((3,),)
    cache, done, parts = poisoned(spec, device), 0, []
    while done < total:
        n = data.draw(st.integers(1, total - done))
        meta = SequenceMeta((0, n), kv_lens=(done + n,), block_tables=table)
        kv_append(cache, latent[done : done + n][:, None], k_rope[done : done + n][:, None], meta)
        absorb = data.draw(st.sampled_from([None, False, True]))
        parts.append(mla_attention(q[done : done + n], w, cache=cache, meta=meta, absorb=absorb))
        done += n
    whole = mla_attention(q, w, latent, k_rope)
    assert isinstance(whole, fa.Tensor)
    check(fa.concat([one for one in parts if isinstance(one, fa.Tensor)]), whole.numpy().astype(np.float64), fa.float32,
          INT8 if stored is fa.int8 else 2e-6)  # fmt: skip


@pytest.mark.parametrize("absorb", [False, True])
@pytest.mark.parametrize("rank", [None, 6])
def test_parity_with_transformers_in_float64(absorb: bool, rank: int | None) -> None:
    """A layer of DeepSeek-V3 in float64, from its own modules."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other people's libraries
        from transformers import DeepseekV3Config
        from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention, DeepseekV3RotaryEmbedding

    config = DeepseekV3Config(
        hidden_size=20, num_attention_heads=3, num_key_value_heads=3, q_lora_rank=rank, kv_lora_rank=7,
        qk_rope_head_dim=4, qk_nope_head_dim=5, v_head_dim=6, rope_interleave=True, max_position_embeddings=64,
    )  # fmt: skip
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    layer = DeepseekV3Attention(config, 0).double().eval()
    rotary = DeepseekV3RotaryEmbedding(config)
    x = torch.randn(1, 11, 20, dtype=torch.float64)
    mask = torch.full((11, 11), -torch.inf, dtype=torch.float64).triu(1)[None, None]
    with torch.no_grad():
        cos, sin = rotary(x, torch.arange(11)[None])
        angles = cos.double(), sin.double()
        expected = layer(x, angles, mask)[0][0].numpy()
    p = {name: fa.asarray(value.detach().numpy()) for name, value in layer.named_parameters()}
    ours = fa.asarray(x[0].numpy())
    if rank is None:
        q = linear(ours, p["q_proj.weight"])
    else:
        q = linear(
            rms_norm(linear(ours, p["q_a_proj.weight"]), p["q_a_layernorm.weight"], eps=1e-6), p["q_b_proj.weight"]
        )
    q = q.reshape(11, 3, 9)
    # their table is rounded to float32
    c, s = (table.astype("f32").astype("f64") for table in rope_table(range(11), 4, 10000.0, dtype="f64"))
    q = fa.concat((q[..., :5], rope(q[..., 5:], c, s, interleaved=True)), axis=-1)
    both = linear(ours, p["kv_a_proj_with_mqa.weight"])
    latent = rms_norm(both[:, :7], p["kv_a_layernorm.weight"], eps=1e-6)
    k_rope = rope(both[:, None, 7:], c, s, interleaved=True)[:, 0]
    seen = mla_attention(q, p["kv_b_proj.weight"].reshape(3, 11, 7), latent, k_rope, absorb=absorb)
    assert isinstance(seen, fa.Tensor)
    found = linear(seen.reshape(11, 18), p["o_proj.weight"]).numpy()
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < 1e-7


def test_what_is_refused() -> None:
    q, w, latent, k_rope = fa.ones((2, 3, 6)), fa.ones((3, 9, 5)), fa.ones((2, 5)), fa.ones((2, 2))
    cache = KVCache.empty(KVSpec(1, 5, 1, 4, value_dim=2))
    meta = SequenceMeta.packed([2])
    for args, options, message in (
        ((q, w), {}, "give latent and k_rope, or a cache"),
        ((q, w, latent, k_rope), {"cache": cache, "meta": meta}, "not both"),
        ((q, w), {"cache": cache}, "a cache needs meta"),
        ((q, w, latent[:1], k_rope), {}, r"latent must be \[Tk, R\] and k_rope \[Tk, Dr\]"),
        ((q, w[:2], latent, k_rope), {}, r"q must be \[T, H, Dn \+ Dr\] and w \[H, Dn \+ Dv, 5\]"),
        ((q, w[:, :4], latent, k_rope), {}, "leaves 0 of w"),
        ((q[..., :1], w, latent, k_rope), {}, "has -1 others"),
        ((q, w, latent, k_rope), {"meta": SequenceMeta.packed([3])}, "this meta has 3 tokens and 3 keys"),
        ((q, w), {"cache": cache, "meta": SequenceMeta((0, 2), kv_lens=(5,))}, "reaches position 4"),
        ((q, w), {"cache": KVCache.empty(KVSpec(2, 5, 1, 4, value_dim=2)), "meta": meta}, "kept as one head"),
        ((q, w), {"cache": KVCache.empty(KVSpec(1, 5, 1, 4, "ring", value_dim=2)), "meta": meta}, "ring caches"),
        ((q, w, latent, k_rope), {"window": 2, "causal": False}, "needs causal=True"),
    ):
        with pytest.raises(ValueError, match=message):
            mla_attention(*args, **options)  # type: ignore[arg-type] # drawn together
    with pytest.raises(TypeError, match="latent is float16"):
        mla_attention(q, w, latent.astype("f16"), k_rope)
