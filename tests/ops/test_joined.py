"""Products of one input with several weights: against float64, and against the ops that they stand for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ferrum_array as fa
from ferrum_ops import (
    QuantTensor,
    dequantize,
    gated_activation,
    gated_linear,
    linear,
    linears,
    quantize,
    use_fast_paths,
)
from tests.array.oracle import wide
from tests.ops.oracle import Array, check, make, noise

SIZES = st.sampled_from([0, 1, 2, 3, 5, 16, 33, 64])
DTYPES = st.sampled_from([fa.float32, fa.float16, fa.bfloat16])
SCHEMES = st.sampled_from([None, None, "int8", "int4-g32", "int4-g32-asym", "int8-a8", "q4_0"])


def weight(data: st.DataObject, seed: int, shape: tuple[int, int], dtype: Any, device: fa.Device) -> Any:
    """A weight, dense or quantised, and its numbers."""
    scheme = data.draw(SCHEMES) if shape[1] and shape[1] % 32 == 0 else None
    dense, exact = make(noise(seed, *shape), dtype, device, strided=scheme is None and data.draw(st.booleans()))
    if scheme is None:
        return dense, exact
    made = quantize(dense, scheme)
    return made, wide(dequantize(made, fa.float32))


def rounds_inputs(*ws: Any) -> bool:
    return any(isinstance(w, QuantTensor) and "a8" in w.features for w in ws)


@given(data=st.data())
def test_several_products_are_the_definition(data: st.DataObject, device: fa.Device) -> None:
    draw = data.draw
    dtype, count, rows = draw(DTYPES), draw(st.sampled_from([0, 1, 7, 32, 64])), draw(st.sampled_from([0, 1, 2, 5, 20]))
    seed = draw(st.integers(0, 99))
    x, x64 = make(noise(seed, rows, count), dtype, device, strided=draw(st.booleans()))
    columns = draw(st.lists(SIZES, min_size=1, max_size=4))
    made = [weight(data, seed + 1 + i, (n, count), dtype, device) for i, n in enumerate(columns)]
    ws = [w for w, _ in made]
    biases: list[Any] = [None] * len(ws)
    offsets: list[Array] = [np.zeros(n) for n in columns]
    for i, n in enumerate(columns):
        if draw(st.booleans()):
            biases[i], offsets[i] = make(noise(seed + 50 + i, n), draw(st.sampled_from([dtype, fa.float32])), device)
    out = draw(st.sampled_from([None, fa.float32]))
    found = linears(x, ws, draw(st.sampled_from([biases, tuple(biases)])), dtype=out)
    assert len(found) == len(ws)
    for y, w, (_, w64), bias, offset in zip(found, ws, made, biases, offsets, strict=True):
        assert y.shape == (rows, w.shape[0])
        assert y.dtype is (out or dtype)
        alone = linear(x, w, bias, dtype=out)
        check(y, wide(alone), out or dtype)
        if not rounds_inputs(w):
            check(y, x64 @ w64.T + offset, out or dtype)


@given(data=st.data())
def test_a_gated_product_is_the_definition(data: st.DataObject, device: fa.Device) -> None:
    draw = data.draw
    dtype, count, rows = draw(DTYPES), draw(st.sampled_from([0, 1, 7, 32, 64])), draw(st.sampled_from([0, 1, 2, 5, 20]))
    seed, columns = draw(st.integers(0, 99)), draw(SIZES)
    x, x64 = make(noise(seed, rows, count), dtype, device)
    (gate, gate64), (up, up64) = (weight(data, seed + i, (columns, count), dtype, device) for i in (1, 2))
    biased = draw(st.booleans())
    bias, bias64 = make(noise(seed + 3, columns), dtype, device)
    options: dict[str, Any] = {"limit": draw(st.sampled_from([None, 0.5])), "up_offset": draw(st.sampled_from([0, 1]))}
    kind = draw(st.sampled_from(["silu", "gelu", "gelu_tanh", "relu", "relu2", "sigmoid"]))
    if kind == "silu":
        options["alpha"] = draw(st.sampled_from([1.0, 1.702]))
    found = gated_linear(x, gate, up, kind, gate_bias=bias if biased else None, **options)
    opened = linear(x, gate, bias if biased else None, dtype=fa.float32)
    passed = linear(x, up, dtype=fa.float32)
    assert found.dtype is dtype
    check(found, wide(gated_activation(opened, passed, kind, **options)), dtype)
    if kind == "relu" and not rounds_inputs(gate, up):
        limit, plus = options["limit"], options["up_offset"]
        g, u = x64 @ gate64.T + (bias64 if biased else 0.0), x64 @ up64.T
        if limit is not None:
            g, u = np.minimum(g, limit), np.clip(u, -limit, limit)
        check(found, np.maximum(g, 0.0) * (u + plus), dtype)


@pytest.mark.parametrize("scheme", [None, "int8", "int4-g32", "int8-a8", "q8_0"])
@pytest.mark.parametrize("rows", [1, 4, 40])
def test_rows_are_those_of_linear(scheme: str | None, rows: int, device: fa.Device) -> None:
    """In float32 nothing is rounded in between, so only the order of sums may differ."""
    x = make(noise(0, rows, 256), fa.float32, device)[0]
    dense = [make(noise(i, n, 256), fa.float32, device)[0] for i, n in ((1, 130), (2, 7), (3, 64))]
    ws = dense if scheme is None else [quantize(w, scheme) for w in dense]
    for y, w in zip(linears(x, ws), ws, strict=True):
        check(y, wide(linear(x, w)), fa.float32)
    gated = gated_linear(x, ws[0], ws[0])
    check(gated, wide(gated_activation(linear(x, ws[0]), linear(x, ws[0]), "silu")), fa.float32)


def test_the_same_input_gives_the_same_bits(device: fa.Device) -> None:
    x = make(noise(0, 3, 256), fa.bfloat16, device)[0]
    ws = [make(noise(i, 300, 256), fa.bfloat16, device)[0] for i in (1, 2, 3)]
    first, again = linears(x, ws), linears(x, ws)
    assert all(bool(fa.all(a == b)) for a, b in zip(first, again, strict=True))
    assert fa.all(gated_linear(x, *ws[:2]) == gated_linear(x, *ws[:2]))


X = fa.ones((2, 4))
W = fa.ones((3, 4))


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: linears(X, W), TypeError, "sequence of weights"),
        (lambda: linears(X, []), ValueError, "each weight"),
        (lambda: linears(X, [W, W], [None]), ValueError, "got 2 and 1"),
        (lambda: linears(X, [W, fa.ones((3, 5))]), ValueError, r"ws\[1\]"),
        (lambda: linears(X, [W, W.astype("f16")]), TypeError, r"ws\[1\]"),
        (lambda: linears(X, [W], [fa.ones(4)]), ValueError, r"bias of ws\[0\] must have shape \(3,\)"),
        (lambda: linears(X, [W], dtype="i32"), TypeError, "real floating-point"),
        (lambda: linears(fa.asarray([1, 2]), [W]), TypeError, "x"),
        (lambda: gated_linear(X, W, fa.ones((2, 4))), ValueError, "share a shape"),
        (lambda: gated_linear(X, W, W, "tanh"), ValueError, "no kind is called 'tanh'"),
        (lambda: gated_linear(X, W, W, "gelu", alpha=2.0), ValueError, "alpha"),
        (lambda: gated_linear(X, W, W, up_bias=fa.ones(2)), ValueError, "bias of up"),
        (lambda: gated_linear(X, W, None), TypeError, "up"),
    ],
)
def test_wrong_calls_say_what_is_wrong(call: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        call()


def test_the_references_are_compositions(device: fa.Device) -> None:
    x = make(noise(0, 2, 64), fa.float16, device)[0]
    a, b = (make(noise(i, 5, 64), fa.float16, device)[0] for i in (1, 2))
    with use_fast_paths(False):
        for y, w in zip(linears(x, (a, b)), (a, b), strict=True):
            assert fa.all(y == linear(x, w))
        assert fa.all(gated_linear(x, a, b) == gated_activation(linear(x, a), linear(x, b), "silu"))
