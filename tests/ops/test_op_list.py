"""The ops that are promised are there, are documented, and choose among implementations."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

import ferrum_ops
from ferrum_ops.registry import op_names

ROOT = Path(__file__).resolve().parents[2]

OPS = [
    *("linear", "linears", "gated_linear", "grouped_linear", "lora_delta", "embedding"),
    *("rms_norm", "layer_norm", "l2_norm"),
    *("activation", "gated_activation", "sigmoid_gate", "softcap"),
    *("rope_table", "rope", "qk_norm_rope", "rope_append"),
    *("kv_append", "kv_gather", "kv_copy_blocks"),
    *("attention", "paged_attention", "merge_attention", "mla_attention"),
    *("causal_conv1d", "gdn_gates", "gated_delta_rule"),
    *("moe_route", "moe_plan", "moe_permute", "moe_combine", "moe_ffn"),
    *("quantize", "dequantize", "repack"),
    *("process_logits", "sample", "spec_verify"),
    *("all_reduce", "all_gather", "conv"),
]
#: nobody's method in particular
PLAIN = {
    "linear",
    "embedding",
    "moe_permute",
    "moe_combine",
    "repack",
    "kv_append",
    "kv_gather",
    "all_reduce",
    "all_gather",
}
VALUES = ["SequenceMeta", "KVSpec", "KVCache", "QuantTensor", "RoutePlan"]


def test_there_are_forty_one() -> None:
    assert len(OPS) == len(set(OPS)) == 41


@pytest.mark.parametrize("name", OPS + VALUES)
def test_each_is_exported_and_documented(name: str) -> None:
    assert name in ferrum_ops.__all__
    doc = inspect.getdoc(getattr(ferrum_ops, name)) or ""
    assert ">>> " in doc, f"{name} has no example"
    assert re.search(r"Raises:", doc), f"{name} does not say what it raises"


@pytest.mark.parametrize("name", [name for name in OPS if name not in PLAIN])
def test_each_says_where_it_comes_from(name: str) -> None:
    assert "Source:" in (inspect.getdoc(getattr(ferrum_ops, name)) or "")


def test_every_name_of_the_registry_is_an_op() -> None:
    ours = {name for name in op_names() if not name.endswith("_in_an_example")}  # docstrings may have run before
    assert ours <= set(OPS)


def test_the_page_lists_every_op() -> None:
    page = (ROOT / "docs" / "ops.md").read_text(encoding="utf-8")
    for name in OPS:
        assert f"`{name}`" in page, f"docs/ops.md does not name {name}"
