from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ferrum_array as fa
from ferrum_ops import explain, l2_norm, layer_norm, rms_norm
from tests.array.oracle import to_dtype, wide
from tests.ops.oracle import Array, check, floats, make, noise


def exact_rms(x: Array, w: Array | None, eps: float, offset: float, gate: Array | None) -> Array:
    y: Array = x / np.sqrt((x * x).sum(-1, keepdims=True) / max(x.shape[-1], 1) + eps)
    y = y if w is None else y * (w + offset)
    return y if gate is None else y * gate / (1 + np.exp(-gate))


@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.lists(st.integers(0, 4), max_size=3),
    size=st.integers(0, 40),
    used=st.sets(st.sampled_from(["w", "offset", "residual", "gate"])),
    eps=st.sampled_from([1e-12, 1e-5, 0.1]),
    spread=st.sampled_from([1e-3, 1.0, 100.0]),
    strided=st.booleans(),
    alike=st.booleans(),
    data=st.data(),
)
def test_rms_as_the_oracle_says(
    device: fa.Device,
    seed: int,
    rows: list[int],
    size: int,
    used: set[str],
    eps: float,
    spread: float,
    strided: bool,
    alike: bool,
    data: st.DataObject,
) -> None:
    dtype = data.draw(st.sampled_from(floats(device)))
    others = [dtype if alike else data.draw(st.sampled_from(floats(device))) for _ in range(3)]
    x, x64 = make(noise(seed, *rows, size) * spread, dtype, device, strided=strided)
    arguments: dict[str, Any] = {"eps": eps}
    w = w64 = g64 = None
    total = x64
    if "w" in used:
        w, w64 = make(noise(seed + 1, size), others[0], device)
        arguments["offset"] = data.draw(st.sampled_from([1.0, -0.5])) if "offset" in used else 0.0
    if "residual" in used:
        arguments["residual"], r64 = make(noise(seed + 2, *rows, size) * spread, others[1], device, strided=strided)
        total = wide(to_dtype(x64 + r64, others[1]))
    if "gate" in used:
        arguments["gate"], g64 = make(noise(seed + 3, *rows, size), others[2], device, strided=strided)
    got = rms_norm(x, w, **arguments)
    if "residual" in used:
        got, summed = got
        check(summed, total, others[1])
        total = wide(summed)  # sums rounded once, from float32, may be one place off
    check(got, exact_rms(total, w64, eps, arguments.get("offset", 0.0), g64), dtype)


@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.lists(st.integers(0, 4), max_size=2),
    size=st.integers(0, 40),
    eps=st.sampled_from([1e-12, 1e-6, 0.1]),
    strided=st.booleans(),
    data=st.data(),
)
def test_l2_as_the_oracle_says(
    device: fa.Device, seed: int, rows: list[int], size: int, eps: float, strided: bool, data: st.DataObject
) -> None:
    dtype = data.draw(st.sampled_from(floats(device)))
    x, x64 = make(noise(seed, *rows, size), dtype, device, strided=strided)
    check(l2_norm(x, eps=eps), x64 / np.sqrt((x64 * x64).sum(-1, keepdims=True) + eps), dtype)


def test_norms_as_in_transformers() -> None:
    """A weight stored as a difference from 1, a gate after the norm, and a length."""
    import torch
    from transformers.models.qwen3_next import modeling_qwen3_next as peer

    x, w, gate = (noise(i, *shape).astype(np.float32) for i, shape in enumerate([(3, 5, 16), (16,), (3, 5, 16)]))
    ours = [fa.asarray(values) for values in (x, w, gate)]
    theirs = [torch.from_numpy(values) for values in (x, w, gate)]

    def near(got: fa.Tensor, want: torch.Tensor) -> None:
        np.testing.assert_allclose(wide(got), want.detach().double().numpy(), rtol=1e-5, atol=1e-6)

    plain, gated = peer.Qwen3NextRMSNorm(16, eps=1e-3), peer.Qwen3NextRMSNormGated(16, eps=1e-3)
    for module in (plain, gated):
        module.weight.data = theirs[1]
    near(rms_norm(ours[0], ours[1], eps=1e-3, offset=1.0), plain(theirs[0]))
    near(rms_norm(ours[0], ours[1], eps=1e-3, gate=ours[2]), gated(theirs[0], theirs[2]))
    near(rms_norm(ours[0], ours[1], eps=1e-3), torch.nn.functional.rms_norm(theirs[0], (16,), theirs[1], 1e-3))
    near(l2_norm(ours[0], eps=1e-3), peer.l2norm(theirs[0], eps=1e-3))


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16"])
def test_fused_and_composed_rms_agree_to_the_bit(device: fa.Device, name: str) -> None:
    dtype = fa.Dtype(name)
    x, _ = make(noise(1, 5, 33), dtype, device)
    residual, _ = make(noise(2, 5, 33), dtype, device)
    w, _ = make(noise(3, 33), dtype, device)
    fused, total = rms_norm(x, w, eps=1e-5, residual=residual)
    assert fa.all(total == x + residual)
    assert fa.all(fused == rms_norm(x + residual, w, eps=1e-5))
    assert fa.all(fused == rms_norm(x, w, eps=1e-5, residual=residual)[0])


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16"])
def test_rows_do_not_meet(device: fa.Device, name: str) -> None:
    x, _ = make(noise(1, 4, 3, 17), fa.Dtype(name), device)
    together = rms_norm(x, eps=1e-5)
    assert np.allclose(wide(together), wide(fa.stack([rms_norm(x[i], eps=1e-5) for i in range(4)])), rtol=2e-7)


@pytest.mark.parametrize("size", [700, 2880])
@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_many_rows_of_lengths_between_powers_of_two(device: fa.Device, name: str, size: int) -> None:
    """Which kernels may cut into several blocks."""
    dtype = fa.Dtype(name)
    (x, x64), (w, w64), (residual, r64) = (
        make(noise(i, *shape), dtype, device) for i, shape in enumerate([(300, size), (size,), (300, size)])
    )
    check(rms_norm(x, w, eps=1e-5, offset=1.0), exact_rms(x64, w64, 1e-5, 1.0, None), dtype)
    got, total = rms_norm(x, w, eps=1e-5, residual=residual, gate=x)
    check(total, wide(to_dtype(x64 + r64, dtype)), dtype)
    check(got, exact_rms(wide(total), w64, 1e-5, 0.0, x64), dtype)
    got, total = layer_norm(x, w, w, eps=1e-5, residual=residual)
    check(got, exact_norm(wide(total), w64, w64, 1e-5), dtype)


def test_large_halves_do_not_overflow(device: fa.Device) -> None:
    x = fa.asarray([[60000.0, -60000.0]], dtype="f16", device=device)
    assert wide(rms_norm(x, eps=1e-5)).tolist() == [[1.0, -1.0]]
    # the sum is rounded to the residual's dtype, and infinite there
    _, total = rms_norm(x, eps=1e-5, residual=x)
    assert wide(total).tolist() == [[np.inf, -np.inf]]
    assert wide(rms_norm(x, eps=1e-5, residual=x.astype("f32"))[1]).tolist() == [[120000.0, -120000.0]]


def test_a_gate_at_its_limits(device: fa.Device) -> None:
    gate = fa.asarray([-fa.inf, -1e30, -200.0, 0.0], device=device)
    assert (wide(rms_norm(fa.ones(4, device=device), eps=0.0, gate=gate)) == 0).all()


def test_what_is_in_use_is_told() -> None:
    x, w = fa.ones((2, 3)), fa.ones(3)
    assert explain(rms_norm, x, w, eps=1e-5).features == ()
    more = explain(rms_norm, x, w.astype("f16"), eps=1e-5, offset=1.0, residual=x, gate=x)
    assert (more.dtypes, more.features) == ((fa.float32,), ("offset", "residual", "gate", "mixed"))
    assert explain(layer_norm, x, w, w.astype("f16"), eps=1e-5).features == ("mixed",)
    assert explain(layer_norm, x, eps=1e-5, residual=x).features == ("residual",)


def exact_norm(x: Array, w: Array | None, b: Array | None, eps: float) -> Array:
    y = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)
    y = y if w is None else y * w
    result: Array = y if b is None else y + b
    return result


@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.lists(st.integers(0, 4), max_size=2),
    size=st.integers(2, 40),
    weighted=st.booleans(),
    biased=st.booleans(),
    added=st.booleans(),
    eps=st.sampled_from([1e-12, 1e-5, 0.1]),
    strided=st.booleans(),
    data=st.data(),
)
def test_as_the_oracle_says(
    device: fa.Device,
    seed: int,
    rows: list[int],
    size: int,
    weighted: bool,
    biased: bool,
    added: bool,
    eps: float,
    strided: bool,
    data: st.DataObject,
) -> None:
    dtype = data.draw(st.sampled_from(floats(device)))
    x, x64 = make(noise(seed, *rows, size) + 1, dtype, device, strided=strided)
    w, w64 = make(noise(seed + 1, size), dtype, device)
    b, b64 = make(noise(seed + 2, size), dtype, device)
    residual, r64 = make(noise(seed + 3, *rows, size), dtype, device, strided=strided)
    arguments: dict[str, Any] = {"eps": eps}
    total = x64
    if added:
        total = wide(to_dtype(x64 + r64, dtype))
        arguments["residual"] = residual
    got = layer_norm(x, w if weighted else None, b if biased else None, **arguments)
    if added:
        got, summed = got
        check(summed, total, dtype)
    want = exact_norm(total, w64 if weighted else None, b64 if biased else None, eps)
    # a row whose elements nearly agree magnifies what the mean lacks
    spread = total.std(-1).min(initial=1.0) if total.size else 1.0
    check(got, want, dtype, {fa.float32: 2e-6, fa.float64: 1e-14}.get(dtype, 0.0) / min(spread, 1.0))


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16"])
def test_fused_and_composed_agree_to_the_bit(device: fa.Device, name: str) -> None:
    dtype = fa.Dtype(name)
    x, _ = make(noise(1, 5, 33), dtype, device)
    residual, _ = make(noise(2, 5, 33), dtype, device)
    w, _ = make(noise(3, 33), dtype, device)
    fused, total = layer_norm(x, w, eps=1e-5, residual=residual)
    assert fa.all(total == x + residual)
    assert fa.all(fused == layer_norm(x + residual, w, eps=1e-5))


def test_a_wider_residual_keeps_its_digits(device: fa.Device) -> None:
    x = fa.asarray([[1.0, 3.0]], dtype="bf16", device=device)
    residual = fa.asarray([[2.0**-12, 0.0]], device=device)
    _, total = layer_norm(x, eps=1e-5, residual=residual)
    assert total.dtype is fa.float32
    assert (wide(total) == [[1 + 2.0**-12, 3]]).all()


def test_a_constant_row_gives_the_bias(device: fa.Device) -> None:
    x = fa.full((2, 3), 5.0, device=device)
    got = layer_norm(x, fa.ones(3, device=device), fa.asarray([1.0, 2.0, 3.0], device=device), eps=1e-12)
    assert (wide(got) == [[1, 2, 3]] * 2).all()


def test_bad_input_is_refused() -> None:
    x = fa.ones((2, 3))
    with pytest.raises(ValueError, match=r"w must have shape \(3,\)"):
        layer_norm(x, fa.ones(2), eps=1e-5)
    with pytest.raises(ValueError, match=r"b must have shape \(3,\)"):
        layer_norm(x, None, fa.ones((1, 3)), eps=1e-5)
    with pytest.raises(ValueError, match=r"residual must have the shape of x float32\[2,3\]"):
        layer_norm(x, eps=1e-5, residual=fa.ones(3))
    for eps in (-1e-5, fa.nan, fa.inf):
        with pytest.raises(ValueError, match="eps must be finite and at least 0"):
            layer_norm(x, eps=eps)
    with pytest.raises(ValueError, match="at least one axis"):
        layer_norm(fa.asarray(1.0), eps=1e-5)
    with pytest.raises(TypeError, match="x must be real floating-point, got int64"):
        layer_norm(fa.ones(3, dtype="i64"), eps=1e-5)


def test_bad_rms_input_is_refused() -> None:
    x = fa.ones((2, 3))
    for norm in (rms_norm, l2_norm):
        for eps in (-1e-5, fa.nan, fa.inf):
            with pytest.raises(ValueError, match=rf"{norm.__name__}: eps must be finite and at least 0, got {eps}"):
                norm(x, eps=eps)
        with pytest.raises(ValueError, match="at least one axis"):
            norm(fa.asarray(1.0), eps=1e-5)
        with pytest.raises(TypeError, match="x must be real floating-point, got int64"):
            norm(fa.ones(3, dtype="i64"), eps=1e-5)
    with pytest.raises(ValueError, match=r"w must have shape \(3,\)"):
        rms_norm(x, fa.ones(2), eps=1e-5)
    with pytest.raises(ValueError, match=r"residual must have the shape of x float32\[2,3\], got float32\[3\]"):
        rms_norm(x, eps=1e-5, residual=fa.ones(3))
    with pytest.raises(ValueError, match=r"gate must have the shape of x float32\[2,3\], got float32\[2,1\]"):
        rms_norm(x, eps=1e-5, gate=fa.ones((2, 1)))
    with pytest.raises(TypeError, match="gate must be real floating-point, got bool"):
        rms_norm(x, eps=1e-5, gate=fa.ones((2, 3), dtype="bool"))
    with pytest.raises(ValueError, match=r"offset=1.0 is added to w, which is absent"):
        rms_norm(x, eps=1e-5, offset=1.0)
    with pytest.raises(ValueError, match="offset must be finite, got nan"):
        rms_norm(x, fa.ones(3), eps=1e-5, offset=fa.nan)


@pytest.mark.mlx
def test_other_devices_are_refused() -> None:
    x, there = fa.ones((2, 3)), fa.ones((2, 3), device="mlx:cpu")
    for more in ({"w": there[0]}, {"residual": there}, {"gate": there}):
        with pytest.raises(ValueError, match=f"rms_norm: {next(iter(more))} is on device mlx:cpu but the input on cpu"):
            rms_norm(x, eps=1e-5, **more)  # type: ignore[call-overload]  # one of three
