"""Kernels in Triton's interpreter where places are further apart than an int32 can say."""

from __future__ import annotations

import numpy as np

import ferrum_array as fa
from ferrum_ops.kernels.cuda.attending import Config
from ferrum_ops.tiled import AttentionOptions
from tests.array.oracle import wide
from tests.ops.interpreted.test_prefill import WITHIN, attended
from tests.ops.oracle import check, noise
from tests.ops.test_attention import exact_attention


def test_a_bias_whose_last_head_begins_two_to_the_31_numbers_after_the_first() -> None:
    heads, keys = 9, 16
    memory = np.zeros((heads, 1 << 28), np.float16)  # address space, of which hardly any is used
    memory[:, :keys] = noise(1, heads, keys)
    bias = fa.asarray(memory[:, None, :keys], copy=False, device="cpu")
    q, k, v = (
        fa.asarray(noise(seed, 1 if seed == 2 else keys, heads, keys), dtype="f16", device="cpu") for seed in (2, 3, 4)
    )
    out, _ = attended(q, k, v, bias, None, Config(16, 16, 4, 2), AttentionOptions(0.25))
    expected, _ = exact_attention(wide(q), wide(k), wide(v), scale=0.25, bias=wide(bias))
    check(out, expected, fa.float16, WITHIN[fa.float16])
