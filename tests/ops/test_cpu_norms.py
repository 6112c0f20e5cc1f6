"""Kernels for rows of numbers on the CPU: norms, activations and rotary embedding, as compiled.

What is drawn is few combinations of dtypes: each is code that must be compiled first. All of them, and loops for
processors without special instructions, are compared with the references in ``test_cpu_kernels``.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ferrum_array as fa
from ferrum_ops import (
    activation,
    gated_activation,
    l2_norm,
    layer_norm,
    qk_norm_rope,
    rms_norm,
    rope,
    rope_table,
    sigmoid_gate,
    softcap,
)
from tests.array.oracle import to_dtype, wide
from tests.ops.kernel_runs import DTYPES, LAYOUTS, laid, near, run
from tests.ops.oracle import Array, noise

pytest.importorskip("numba")

SIZES = st.sampled_from([0, 1, 2, 15, 16, 17, 64, 96, 128, 255, 1031])
ROWS = st.sampled_from([(), (1,), (0,), (3,), (2, 33)])
LAYOUT = st.sampled_from(LAYOUTS)
DTYPE = st.sampled_from(DTYPES)
#: dtypes of rows and of what else comes in; each pair is code of its own
PAIRS = st.sampled_from([*zip(DTYPES, DTYPES, strict=True), (fa.bfloat16, fa.float32), (fa.float32, fa.bfloat16)])
SEED = st.integers(0, 2**32 - 1)


def sigmoid(x: Array) -> Array:
    y: Array = 1 / (1 + np.exp(-x))
    return y


@settings(max_examples=60)
@given(
    seed=SEED, rows=ROWS, size=SIZES, layout=LAYOUT, pair=PAIRS,
    used=st.sets(st.sampled_from(["w", "offset", "residual", "gate"])), eps=st.sampled_from([1e-12, 1e-5, 0.1]),
    spread=st.sampled_from([1e-2, 1.0, 50.0]),
)  # fmt: skip
def test_rms_norm(
    seed: int, rows: tuple[int, ...], size: int, layout: str, pair: tuple[fa.Dtype, fa.Dtype], used: set[str],
    eps: float, spread: float,
) -> None:  # fmt: skip
    dtype, other = pair
    used = used if other is dtype or not used else {"w", "residual", "gate"}
    x, total = laid(noise(seed, *rows, size) * spread, dtype, layout)
    options: dict[str, Any] = {"eps": eps}
    w = None
    scale: Array | float = 1.0
    if "w" in used:
        w, scale = laid(noise(seed + 1, size), other, layout)
        if "offset" in used:
            options["offset"] = 1.0
            scale = scale + 1.0
    if "residual" in used:
        options["residual"], added = laid(noise(seed + 2, *rows, size) * spread, other, layout)
        total = total + added
    gates: Array | float = 1.0
    if "gate" in used:
        options["gate"], gate = laid(noise(seed + 3, *rows, size), other, layout)
        gates = gate * sigmoid(gate)
    mixed = other is not dtype and used & {"w", "residual", "gate"}
    with_more = "_with" if used & {"residual", "gate"} else ""
    found = run("cpu.rms_norm" + ("_mixed" if mixed else with_more), rms_norm, x, w, **options)
    if "residual" in used:
        near(found[1], total)
        total = wide(found[1])
    root = np.sqrt((total * total).sum(-1, keepdims=True) / max(size, 1) + eps)
    near(found[0], total / root * scale * gates)


@given(seed=SEED, rows=ROWS, size=SIZES, layout=LAYOUT, dtype=DTYPE, eps=st.sampled_from([1e-12, 1e-6, 0.1]))
def test_l2_norm(seed: int, rows: tuple[int, ...], size: int, layout: str, dtype: fa.Dtype, eps: float) -> None:
    x, exact = laid(noise(seed, *rows, size), dtype, layout)
    (found,) = run("cpu.l2_norm", l2_norm, x, eps=eps)
    near(found, exact / np.sqrt((exact * exact).sum(-1, keepdims=True) + eps))


@given(
    seed=SEED, rows=ROWS, size=SIZES, layout=LAYOUT, pair=PAIRS, shift=st.sampled_from([0, 9]),
    used=st.sets(st.sampled_from(["w", "b", "residual"])),
)  # fmt: skip
def test_layer_norm(
    seed: int, rows: tuple[int, ...], size: int, layout: str, pair: tuple[fa.Dtype, fa.Dtype], shift: float,
    used: set[str],
) -> None:  # fmt: skip
    dtype, other = pair
    used = used if other is dtype or not used else {"w", "b", "residual"}
    x, total = laid(noise(seed, *rows, size) + shift, dtype, layout)
    w, scale = laid(noise(seed + 1, size), other) if "w" in used else (None, 1.0)
    b, bias = laid(noise(seed + 2, size), other) if "b" in used else (None, 0.0)
    options = {}
    if "residual" in used:
        options["residual"], added = laid(noise(seed + 3, *rows, size), other, layout)
        total = total + added
    mixed = "_mixed" if other is not dtype and used else ""
    found = run("cpu.layer_norm" + mixed, layer_norm, x, w, b, eps=1e-3, **options)
    if "residual" in used:
        near(found[1], total)
        total = wide(found[1])
    centred = total - total.sum(-1, keepdims=True) / max(size, 1)
    root = np.sqrt((centred * centred).sum(-1, keepdims=True) / max(size, 1) + 1e-3)
    # a mean of 9 leaves fewer digits to what is around it
    near(found[0], centred / root * scale + bias, 2e-5 if found[0].dtype is fa.float32 else 0.0)


KINDS: dict[str, Any] = {
    "silu": lambda x: x * sigmoid(x),
    "gelu": lambda x: x / 2 * (1 + np.vectorize(math.erf, otypes=[float])(x / math.sqrt(2))),
    "gelu_tanh": lambda x: x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: np.maximum(x, 0),
    "relu2": lambda x: np.maximum(x, 0) ** 2,
    "sigmoid": sigmoid,
}
#: each kind and each dtype; each pair is code of its own
KINDS_IN = [
    *(("silu", dtype) for dtype in DTYPES),
    *zip(sorted(set(KINDS) - {"silu"}), [*DTYPES, fa.float32, fa.bfloat16], strict=True),
]


@given(seed=SEED, rows=ROWS, size=SIZES, layout=LAYOUT, of=st.sampled_from(KINDS_IN))
def test_activation(seed: int, rows: tuple[int, ...], size: int, layout: str, of: tuple[str, fa.Dtype]) -> None:
    kind, dtype = of
    x, exact = laid(noise(seed, *rows, size) * 3, dtype, layout)
    (found,) = run("cpu.activation", activation, x, kind)
    near(found, KINDS[kind](exact))


@given(
    seed=SEED, rows=ROWS, size=SIZES, layout=LAYOUT, other=LAYOUT, of=st.sampled_from(KINDS_IN),
    limit=st.sampled_from([None, 0.5, 7.0]), alpha=st.sampled_from([1.0, 1.7]), offset=st.sampled_from([0.0, 1.0]),
)  # fmt: skip
def test_gated_activation(
    seed: int, rows: tuple[int, ...], size: int, layout: str, other: str, of: tuple[str, fa.Dtype],
    limit: float | None, alpha: float, offset: float,
) -> None:  # fmt: skip
    kind, dtype = of
    gate, g = laid(noise(seed, *rows, size) * 3, dtype, layout)
    up, u = laid(noise(seed + 1, *rows, size) * 3, dtype, other)
    alpha = alpha if kind == "silu" else 1.0
    options = {"limit": limit, "alpha": alpha, "up_offset": offset}
    (found,) = run("cpu.gated_activation", gated_activation, gate, up, kind, **options)
    if limit is not None:
        g, u = np.minimum(g, limit), np.clip(u, -limit, limit)
    near(found, (g * sigmoid(alpha * g) if kind == "silu" else KINDS[kind](g)) * (u + offset))


@given(seed=SEED, rows=ROWS, size=SIZES, layout=LAYOUT, dtype=DTYPE, by_row=st.booleans(), added=st.booleans())
def test_gates(
    seed: int, rows: tuple[int, ...], size: int, layout: str, dtype: fa.Dtype, by_row: bool, added: bool
) -> None:
    x, exact = laid(noise(seed, *rows, size) * 9, dtype, layout)
    gate, g = laid(noise(seed + 1, *rows, 1 if by_row else size), dtype, layout)
    residual, r = laid(noise(seed + 2, *rows, size), dtype, layout) if added else (None, 0.0)
    (found,) = run("cpu.sigmoid_gate", sigmoid_gate, x, gate, residual=residual)
    near(found, exact * sigmoid(g) + r)
    (found,) = run("cpu.softcap", softcap, x, 5.0)
    near(found, 5 * np.tanh(exact / 5))


#: dtype, whether neighbours are turned, and the norm before
TURNS = [
    *((dtype, False, "") for dtype in DTYPES),
    *[(fa.float32, True, ""), (fa.float32, True, "plain"), (fa.bfloat16, True, "weights")],
    *((dtype, False, "weights") for dtype in DTYPES),
]


@given(
    seed=SEED, batch=st.sampled_from([(), (2,)]), tokens=st.sampled_from([0, 1, 2, 37]), heads=st.integers(1, 5),
    size=st.sampled_from([2, 6, 64, 96, 128, 256]), part=st.booleans(), layout=LAYOUT,
    of=st.sampled_from(TURNS),
)  # fmt: skip
def test_rope(
    seed: int, batch: tuple[int, ...], tokens: int, heads: int, size: int, part: bool, layout: str,
    of: tuple[fa.Dtype, bool, str],
) -> None:  # fmt: skip
    dtype, interleaved, normed = of
    turned = size // 4 * 2 if part and size > 3 else size
    cos, sin = rope_table(np.random.default_rng(seed).integers(0, 500, tokens).tolist(), turned, 1e4)
    q, q64 = laid(noise(seed, *batch, tokens, heads, size), dtype, layout)
    k, k64 = laid(noise(seed + 1, *batch, tokens, 1, size), dtype, layout)
    c, s = wide(cos)[:, None], wide(sin)[:, None]

    def turn(x: Array) -> Array:
        y = x.copy()
        one, two = (slice(0, turned, 2), slice(1, turned, 2)) if interleaved else (
            slice(0, turned // 2), slice(turned // 2, turned))  # fmt: skip
        y[..., one], y[..., two] = x[..., one] * c - x[..., two] * s, x[..., one] * s + x[..., two] * c
        return y

    options: dict[str, Any] = {"interleaved": interleaved, **({"rotary_dim": turned} if turned != size else {})}
    if not normed:
        (found,) = run("cpu.rope", rope, q, cos, sin, **options)
        near(found, turn(q64))
        return
    w, w64 = laid(noise(seed + 2, size), dtype) if normed == "weights" else (None, 0.0)
    offset = 1.0 if normed == "weights" else 0.0
    scale = w64 + offset if normed == "weights" else 1.0
    both = run("cpu.qk_norm_rope", qk_norm_rope, q, k, w, w, cos, sin, eps=1e-5, offset=offset, **options)
    for found, x in zip(both, (q64, k64), strict=True):
        near(found, turn(x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * scale))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf, 3e38])
def test_rows_that_are_no_numbers_spoil_no_others(dtype: fa.Dtype, wrong: float) -> None:
    values = noise(1, 40, 70)
    values[3, 5] = values[20, 69] = wrong
    x, _ = laid(values, dtype)
    clean, _ = laid(noise(1, 40, 70), dtype)
    others = [row for row in range(40) if row not in (3, 20)]
    w = fa.ones(70, dtype=dtype)
    for name, op, arguments in (
        ("rms_norm", rms_norm, {"eps": 1e-5}),
        ("rms_norm_with", rms_norm, {"eps": 1e-5, "w": w, "gate": x}),
        ("l2_norm", l2_norm, {"eps": 1e-5}),
        ("layer_norm", layer_norm, {"eps": 1e-5, "w": w}),
        *(("activation", activation, {"kind": kind}) for kind, own in KINDS_IN if own is dtype),
        ("softcap", softcap, {"cap": 2.0}),
    ):
        (found,) = run(f"cpu.{name}", op, x, **arguments)
        with_clean = {key: clean if value is x else value for key, value in arguments.items()}
        assert wide(found)[others].tobytes() == wide(op(clean, **with_clean))[others].tobytes()


def test_the_comparison_can_fail() -> None:
    x, _ = laid(noise(1, 3, 40), fa.float32)
    with pytest.raises(AssertionError, match=r"expected cpu\.l2_norm"):
        run("cpu.l2_norm", rms_norm, x, eps=1e-5)
    with pytest.raises(AssertionError, match="is above"):
        near(x, wide(x) * (1 + 1e-5))
    narrow = x.astype("bf16")
    with pytest.raises(AssertionError, match="is above"):
        near(narrow, wide(to_dtype(wide(narrow) * 1.01, fa.bfloat16)))
