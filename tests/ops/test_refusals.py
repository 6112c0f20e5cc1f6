"""What no op takes, whatever it is: the error names the op and the argument, and says what came."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import ferrum_array as fa
import ferrum_ops as fo
from ferrum_ops import KVCache, KVSpec, QuantTensor, SequenceMeta
from ferrum_ops.quant.awq import AwqScheme
from ferrum_ops.quant.gptq import GptqScheme
from ferrum_ops.quant.integer import IntScheme
from ferrum_ops.quant.mlx import MlxScheme

_X = fa.ones((3, 4))
_HEADS = fa.ones((3, 2, 4))
_ROWS = fa.ones((2, 3, 4))
_META: Any = [0, 3]
_ROUTED = fo.moe_plan(fa.asarray([[0], [1], [0]]), 2)


def _cache() -> KVCache:
    return KVCache.empty(KVSpec(kv_heads=2, head_dim=4, blocks=4, block_size=2, layout="paged"))


def _delta(**more: Any) -> object:
    return fo.gated_delta_rule(_HEADS, _HEADS, _HEADS, fa.ones((3, 2)), fa.ones((3, 2)), **more)


def _experts(**more: Any) -> object:
    return fo.moe_ffn(
        _X, fa.ones((2, 6, 4)), fa.ones((2, 4, 3)), fa.zeros((3, 1), dtype="i64"), fa.ones((3, 1)), **more
    )


def _logits(**more: Any) -> object:
    return fo.process_logits(_X, counts=fa.zeros((3, 4), dtype="i64"), **more)


_NUMBERS: dict[str, tuple[Callable[..., object], str]] = {
    "rms_norm": (lambda **more: fo.rms_norm(_X, fa.ones(4), **{"eps": 1e-6, **more}), "eps offset"),
    "layer_norm": (lambda **more: fo.layer_norm(_X, **more), "eps"),
    "l2_norm": (lambda **more: fo.l2_norm(_X, **more), "eps"),
    "softcap": (lambda **more: fo.softcap(_X, **more), "cap"),
    "gated_activation": (lambda **more: fo.gated_activation(_X, _X, "silu", **more), "limit alpha up_offset"),
    "moe_ffn": (_experts, "limit alpha up_offset"),
    "embedding": (lambda **more: fo.embedding(_X, fa.asarray([0]), **more), "scale"),
    "lora_delta": (lambda **more: fo.lora_delta(_X, fa.ones((2, 4)), fa.ones((5, 2)), **more), "scale"),
    "attention": (lambda **more: fo.attention(_HEADS, _HEADS, _HEADS, **more), "scale softcap"),
    "moe_route": (lambda **more: fo.moe_route(_X, 2, **more), "scale"),
    "process_logits": (_logits, "repetition presence frequency temperature top_p min_p"),
    "gated_delta_rule": (_delta, "scale"),
}


@pytest.mark.parametrize(("op", "what"), [(op, what) for op, (_, names) in _NUMBERS.items() for what in names.split()])
@pytest.mark.parametrize("value", ["1", [1.0], 1j, object()], ids=["text", "list", "complex", "object"])
def test_a_number_is_a_real_number(op: str, what: str, value: object) -> None:
    with pytest.raises(TypeError, match=f"{op}: {what} must be a real number, got {type(value).__name__}"):
        _NUMBERS[op][0](**{what: value})


@pytest.mark.parametrize("what", ["repetition", "presence", "frequency", "temperature"])
def test_a_rule_for_logits_that_is_always_there_is_not_none(what: str) -> None:
    with pytest.raises(TypeError, match=f"process_logits: {what} must be a real number, got NoneType"):
        _logits(**{what: None})


def test_an_integer_beyond_all_floats_is_not_finite() -> None:
    with pytest.raises(ValueError, match="l2_norm: eps must be finite"):
        fo.l2_norm(_X, eps=10**400)


@pytest.mark.parametrize(
    ("op", "call"),
    {
        "attention": lambda: fo.attention(_HEADS, _HEADS, _HEADS, meta=_META),
        "paged_attention": lambda: fo.paged_attention(_HEADS, _cache(), _META),
        "kv_append": lambda: fo.kv_append(_cache(), _HEADS, _HEADS, _META),
        "kv_gather": lambda: fo.kv_gather(_cache(), _META),
        "mla_attention": lambda: fo.mla_attention(
            _HEADS, fa.ones((2, 4, 3)), fa.ones((3, 3)), fa.ones((3, 2)), meta=_META
        ),
        "causal_conv1d": lambda: fo.causal_conv1d(_X, fa.ones((4, 2)), None, _META),
        "gated_delta_rule": lambda: _delta(meta=_META),
    }.items(),
)
def test_a_meta_is_a_meta(op: str, call: Callable[[], object]) -> None:
    with pytest.raises(TypeError, match=rf"{op}: meta must be a SequenceMeta, got list \[0, 3\]; SequenceMeta."):
        call()


def test_a_cache_is_a_cache_and_a_plan_a_plan() -> None:
    other: Any = _X
    meta = SequenceMeta((0, 3), block_tables=((0, 1),))
    calls: dict[str, Callable[[], object]] = {
        "kv_append: cache must be a KVCache": lambda: fo.kv_append(other, _HEADS, _HEADS, meta),
        "kv_gather: cache must be a KVCache": lambda: fo.kv_gather(other, meta),
        "kv_copy_blocks: cache must be a KVCache": lambda: fo.kv_copy_blocks(other, [0], [1]),
        "paged_attention: cache must be a KVCache": lambda: fo.paged_attention(_HEADS, other, meta),
        "mla_attention: cache must be a KVCache": lambda: fo.mla_attention(_HEADS, _ROWS, cache=other, meta=meta),
        "moe_permute: plan must be a RoutePlan": lambda: fo.moe_permute(_X, other),
        "moe_combine: plan must be a RoutePlan": lambda: fo.moe_combine(_X, other, fa.ones((3, 1))),
    }
    for message, call in calls.items():
        with pytest.raises(TypeError, match=rf"{message}, got float32\[3,4\]; .* makes one"):
            call()


@pytest.mark.parametrize("field", ["cu_seqlens", "positions", "kv_lens", "slots"])
@pytest.mark.parametrize("value", [1.0, math.nan, True, "1", None])
def test_metas_hold_integers(field: str, value: object) -> None:
    fields: dict[str, Any] = {"cu_seqlens": (0, 1), field: (0, value) if field == "cu_seqlens" else (value,)}
    with pytest.raises(TypeError, match=f"SequenceMeta: {field} must hold integers, got {type(value).__name__}"):
        SequenceMeta(**fields)


def test_metas_hold_sequences() -> None:
    none: Any = 3
    for field in ("cu_seqlens", "positions", "kv_lens", "slots", "block_tables"):
        with pytest.raises(TypeError, match=f"SequenceMeta: {field} must be a sequence, got int 3"):
            SequenceMeta(**{"cu_seqlens": (0, 1), field: none})
    for table in (None, (0.0,), (True,), "0"):
        tables: Any = (table,)
        with pytest.raises(TypeError, match="SequenceMeta: block_tables must"):
            SequenceMeta((0, 1), block_tables=tables)
    lengths: Any = [1.5]
    with pytest.raises(TypeError, match=r"SequenceMeta: lengths must hold integers, got float 1\.5"):
        SequenceMeta.packed(lengths)


def test_metas_of_lists_and_of_integers_from_elsewhere_are_the_same() -> None:
    plain = SequenceMeta((0, 2), positions=(1, 2), kv_lens=(3,), block_tables=((4, 5),), slots=(6, 7))
    lists: dict[str, Any] = {"positions": [1, 2], "kv_lens": np.array([3]), "block_tables": [[4, 5]]}
    other = SequenceMeta(np.array([0, 2]), **lists, slots=iter([6, 7]))  # type: ignore[arg-type]  # as it may come
    assert other == plain
    assert hash(other) == hash(plain)
    assert other.in_order
    assert replace(other, slots=None) == replace(plain, slots=None)


@pytest.mark.parametrize("group", [0, -1, True, 2.0, math.nan, "32"])
def test_groups_are_integers(group: Any) -> None:
    makers: tuple[Callable[[], object], ...] = (
        lambda: IntScheme(4, group),
        lambda: GptqScheme(4, group),
        lambda: AwqScheme(group),
        lambda: MlxScheme(4, group),
    )
    for make in makers:
        with pytest.raises(ValueError, match="Scheme: group must be an integer of at least 1"):
            make()


@pytest.mark.parametrize("length", [-1, True, 2.5, math.nan, "8"])
def test_the_length_of_a_table_is_an_integer(length: Any) -> None:
    scaling = {"rope_type": "dynamic", "factor": 2.0, "max_position_embeddings": 8}
    with pytest.raises(ValueError, match="rope: length must be an integer of at least 0"):
        fo.rope_table([0, 1], 4, 10000.0, scaling, length=length)


def test_lists_are_lists() -> None:
    one: Any = 1
    with pytest.raises(TypeError, match="rope_table: positions must be a list or another sequence, got int 1"):
        fo.rope_table(one, 4, 10000.0)
    with pytest.raises(TypeError, match="rope_table: sections must be a list or another sequence, got int 1"):
        fo.rope_table([[0]], 4, 10000.0, sections=one)
    with pytest.raises(TypeError, match="kv_copy_blocks: src must be a list or another sequence, got int 1"):
        fo.kv_copy_blocks(_cache(), one, [1])


@pytest.mark.parametrize("padding", [None, 1j, [None], [(0, "1")]])
def test_padding_is_made_of_integers(padding: Any) -> None:
    with pytest.raises(ValueError, match="conv: padding must be integers of at least 0"):
        fo.conv(fa.ones((4, 6)), fa.ones((4, 4, 3)), padding=padding)


def test_a_kind_is_a_name() -> None:
    kind: Any = ["silu"]
    with pytest.raises(ValueError, match="activation: no kind is called"):
        fo.activation(_X, kind)


@pytest.mark.parametrize("quantised", [False, True])
@pytest.mark.parametrize("offsets", [[1, 2, 3], [-5, 2, 3], [0, 2, 99], [-9, -8, -7], [4, 5, 6]])
@pytest.mark.mlx
def test_offsets_that_are_not_checked_reach_no_memory_beyond(
    mlx: fa.Device, offsets: list[int], quantised: bool
) -> None:
    dense = fa.ones((2, 5, 32), device=mlx)
    w: fa.Tensor | QuantTensor = fo.quantize(dense, "mlx4-g32") if quantised else dense
    with fo.use_fast_paths(True):
        y = fo.grouped_linear(fa.ones((3, 32), device=mlx), w, fa.asarray(offsets, device=mlx))
    for row, values in enumerate(y.tolist()):
        mine = offsets[0] <= row < offsets[-1]
        np.testing.assert_allclose(values, 32.0 if mine else 0.0, rtol=1e-3)
