from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ferrum_array as fa
from ferrum_ops import (
    DynamicScaling,
    LongRopeScaling,
    YarnScaling,
    qk_norm_rope,
    rms_norm,
    rope,
    rope_frequencies,
    rope_table,
)
from tests.array.oracle import wide
from tests.ops.oracle import Array, check, floats, make, noise

# The table.


def exact_table(positions: Array, dim: int, theta: float) -> tuple[Array, Array]:
    """In 80 bits, so that angles of a million are known to 13 places."""
    turns = np.longdouble(theta) ** (-np.arange(0, dim, 2, dtype=np.longdouble) / dim)
    angles = positions[..., None].astype(np.longdouble) * turns
    return np.cos(angles).astype(np.float64), np.sin(angles).astype(np.float64)


@given(
    shape=st.sampled_from([(0,), (1,), (5,), (2, 3), (3, 0), (0, 2)]),
    seed=st.integers(0, 2**32 - 1),
    dim=st.integers(1, 33).map(lambda n: 2 * n),
    theta=st.sampled_from([10.0, 10000.0, 5e6]),
    kind=st.sampled_from(["int32", "int64", "uint32", "list"]),
    data=st.data(),
)
def test_tables_as_the_oracle_says(
    device: fa.Device, shape: tuple[int, ...], seed: int, dim: int, theta: float, kind: str, data: st.DataObject
) -> None:
    dtype = data.draw(st.sampled_from(floats(device)))
    positions = np.random.default_rng(seed).integers(0, 1_000_001, shape)
    if kind == "list":
        tables = rope_table(positions.tolist(), dim, theta, dtype=dtype, device=device) if positions.size else None
    else:
        tables = rope_table(fa.asarray(positions.astype(kind), device=device), dim, theta, dtype=dtype)
    if tables is None:
        return
    half = fa.finfo(dtype).eps / 2
    for got, want in zip(tables, exact_table(positions, dim, theta), strict=True):
        assert got.device is device
        assert got.dtype is dtype
        assert got.shape == want.shape
        # half a unit in the last place, and what an angle of a million lacks in double precision
        room = np.abs(want) * half + fa.finfo(dtype).smallest_normal * half
        assert (np.abs(wide(got) - want) <= room * 1.0001 + 1e-9).all()


@pytest.mark.mlx
def test_a_device_without_float64_gets_the_same_bits() -> None:
    device = fa.Device("mlx:gpu")
    assert not device.supports(fa.float64)
    positions = [0, 1, 77, 999_983]
    want = rope_table(positions, 64, 1e4)
    for given_as in (positions, fa.asarray(positions, device=device)):
        got = rope_table(given_as, 64, 1e4, device=device)
        for a, b in zip(got, want, strict=True):
            assert a.device is device
            assert (a.numpy() == b.numpy()).all()


def test_every_storage_has_the_same_table(device: fa.Device) -> None:
    positions = [0, 1, 77, 999_983]
    got, want = (rope_table(positions, 128, 5e5, {"type": "linear", "factor": 3.0}, device=d) for d in (device, "cpu"))
    for a, b in zip(got, want, strict=True):
        # libraries may differ in the last place of float64, and so by one of float32 where it decides the rounding
        assert (np.abs(wide(a) - wide(b)) <= 2.0**-23 * np.abs(wide(b))).all()
        assert (wide(a) == wide(b)).mean() > 0.99


def test_positions_may_be_a_range_and_negative(device: fa.Device) -> None:
    cos, sin = rope_table(range(-2, 2), 4, 1e4, device=device)
    assert cos.shape == (4, 2)
    assert (wide(cos[0]) == wide(rope_table([2], 4, 1e4)[0][0])).all()
    assert (wide(sin[0]) == -wide(rope_table([2], 4, 1e4)[1][0])).all()
    assert rope_table([], 4, 1e4, device=device)[0].shape == (0, 2)


def test_the_attention_factor_multiplies_both(device: fa.Device) -> None:
    plain = rope_table([3], 4, 1e4, {"rope_type": "yarn", "factor": 1.0, "original_max_position_embeddings": 64})
    doubled = rope_table([3], 4, 1e4, YarnScaling(1.0, 64, attention_factor=2.0), device=device)
    for a, b in zip(plain, doubled, strict=True):
        assert np.allclose(wide(b), 2 * wide(a), rtol=1e-7)


@given(rows=st.lists(st.lists(st.integers(0, 40), min_size=3, max_size=3), min_size=1, max_size=4), long=st.booleans())
def test_rows_have_their_own_length(device: fa.Device, rows: list[list[int]], long: bool) -> None:
    scaling = LongRopeScaling((1.0, 1.5), (3.0, 5.0), 16, 4.0) if long else DynamicScaling(4.0, 16)
    together = rope_table(rows, 4, 100.0, scaling, device=device)
    for i, row in enumerate(rows):
        for positions, more in ((row, {}), (row, {"length": max(row) + 1}), ([row], {})):
            alone = rope_table(positions, 4, 100.0, scaling, device=device, **more)
            for a, b in zip(together, alone, strict=True):
                assert fa.all(a[i] == b)
    one = rope_table(rows, 4, 100.0, scaling, length=41, device=device)
    plain, _ = rope_frequencies(4, 100.0, scaling, length=41)
    for i, row in enumerate(rows):
        np.testing.assert_allclose(wide(one[1][i]) / scaling.magnitude, np.sin(np.outer(row, plain)), atol=1e-6)


@given(
    sizes=st.sampled_from([(16, 24, 24), (24, 20, 20), (2, 1, 1), (4, 2), (8,), (6, 2, 2)]),
    seed=st.integers(0, 2**32 - 1),
    batched=st.booleans(),
    interleaved=st.booleans(),
    by_config=st.booleans(),
)
def test_sections_choose_the_kind_of_position(
    device: fa.Device, sizes: tuple[int, ...], seed: int, batched: bool, interleaved: bool, by_config: bool
) -> None:
    """Frequency by frequency, against the table of that kind alone."""
    shape = (len(sizes), 2, 5) if batched else (len(sizes), 5)
    positions = np.random.default_rng(seed).integers(0, 3000, shape)
    if interleaved and sizes[0] < max(sizes):
        with pytest.raises(ValueError, match="cannot take turns"):
            rope_table(fa.asarray(positions), 2 * sum(sizes), 1e4, None, sizes, interleaved_sections=True)
        return
    dim = 2 * sum(sizes)
    if by_config:
        config = {"type": "mrope", "mrope_section": list(sizes), "mrope_interleaved": interleaved}
        got = rope_table(fa.asarray(positions, device=device), dim, 1e4, config)
    else:
        got = rope_table(fa.asarray(positions, device=device), dim, 1e4, None, sizes, interleaved_sections=interleaved)
    alone = [rope_table(fa.asarray(row, device=device), dim, 1e4) for row in positions]
    left = list(sizes)
    for j in range(dim // 2):
        axis = j % len(sizes) if interleaved else next(i for i in range(len(sizes)) if j < sum(sizes[: i + 1]))
        if interleaved and j >= sizes[axis] * len(sizes):
            axis = 0
        left[axis] -= 1
        for part in (0, 1):
            assert fa.all(got[part][..., j] == alone[axis][part][..., j])
    assert not any(left)


@pytest.mark.parametrize("interleaved", [False, True])
def test_sections_as_in_transformers(interleaved: bool) -> None:
    import torch
    from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLTextConfig
    from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLRotaryEmbedding
    from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLTextConfig
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextRotaryEmbedding

    sizes = [24, 20, 20] if interleaved else [16, 24, 24]
    entries = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sizes}
    module: Any
    if interleaved:
        entries["mrope_interleaved"] = True
        settings = Qwen3VLTextConfig(hidden_size=128, num_attention_heads=1, head_dim=128, rope_parameters=entries)
        module = Qwen3VLTextRotaryEmbedding(settings)
    else:
        settings = Qwen2VLTextConfig(hidden_size=128, num_attention_heads=1, rope_parameters=entries)
        module = Qwen2VLRotaryEmbedding(settings)
    positions = np.random.default_rng(0).integers(0, 200, (3, 2, 7))
    want = module(torch.zeros(1), torch.from_numpy(positions))
    got = rope_table(fa.asarray(positions), 128, 1e6, entries)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(wide(a), b.double().numpy().reshape(2, 7, 128)[..., :64], atol=4e-5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"positions": fa.ones(3)}, TypeError, r"positions must be integers, got float32\[3\]"),
        ({"positions": [0.5]}, TypeError, "positions must be integers"),
        ({"positions": fa.ones((1, 1, 1), dtype="i64")}, ValueError, r"must be \[T\] or \[B, T\], got int64\[1,1,1\]"),
        ({"positions": fa.asarray(3)}, ValueError, r"must be \[T\] or \[B, T\], got int64\[\]"),
        ({"sections": (1, 1)}, ValueError, r"\[n, T\] or \[n, B, T\] with n = 2 sections, got int64\[2\]"),
        ({"positions": [[1]], "sections": (1, 1)}, ValueError, r"with n = 2 sections, got int64\[1,1\]"),
        ({"sections": (1, 2)}, ValueError, r"sum to dim / 2, 2, got \(1, 2\)"),
        ({"sections": ()}, ValueError, "sections must be integers"),
        ({"sections": (3, -1)}, ValueError, "sections must be integers"),
        ({"sections": (1.0, 1.0)}, ValueError, "sections must be integers"),
        ({"interleaved_sections": True}, ValueError, "interleaved_sections needs sections"),
        ({"scaling": {"mrope_interleaved": True}}, ValueError, "interleaved sections need the sections"),
        ({"scaling": {"mrope_section": [2]}, "sections": (1, 1)}, ValueError, r"says mrope_section=\(2,\)"),
        ({"scaling": {"rope_type": "magic"}}, ValueError, "no kind is called 'magic'"),
        ({"scaling": {"rope_theta": 5.0}}, ValueError, "theta is 10000.0, but the entries of scaling say"),
        ({"dim": 5}, ValueError, "dim must be an even integer"),
        ({"theta": 0.5}, ValueError, "theta must be finite and above 1"),
        ({"dtype": "i64"}, TypeError, "dtype must be real floating-point, got int64"),
    ],
)
def test_bad_tables_are_refused(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        rope_table(**{"positions": [0, 1], "dim": 4, "theta": 1e4, **arguments})


# The rotation.


def exact_rope(x: Array, cos: Array, sin: Array, dim: int, interleaved: bool) -> Array:
    """As products of complex numbers, pair by pair."""
    out = np.array(x)
    factor = (cos + 1j * sin)[..., None, :]
    for j in range(dim // 2):
        a, b = (2 * j, 2 * j + 1) if interleaved else (j, j + dim // 2)
        turned = (x[..., a] + 1j * x[..., b]) * factor[..., j]
        out[..., a], out[..., b] = turned.real, turned.imag
    return out


@given(
    seed=st.integers(0, 2**32 - 1),
    batch=st.sampled_from([(), (2,), (1, 3), (0,)]),
    tokens=st.integers(0, 5),
    heads=st.integers(0, 3),
    half=st.integers(1, 6),
    beyond=st.integers(0, 5),
    interleaved=st.booleans(),
    shared=st.booleans(),
    strided=st.booleans(),
    data=st.data(),
)
def test_turns_as_the_oracle_says(
    device: fa.Device,
    seed: int,
    batch: tuple[int, ...],
    tokens: int,
    heads: int,
    half: int,
    beyond: int,
    interleaved: bool,
    shared: bool,
    strided: bool,
    data: st.DataObject,
) -> None:
    dtype = data.draw(st.sampled_from(floats(device)))
    table = data.draw(st.sampled_from([fa.float32, dtype]))
    x, x64 = make(noise(seed, *batch, tokens, heads, 2 * half + beyond), dtype, device, strided=strided)
    lead = () if shared else data.draw(st.sampled_from([batch, (1,) * len(batch)]))
    angles = noise(seed + 1, *lead, tokens, half)
    cos, cos64 = make(np.cos(angles), table, device, strided=strided)
    sin, sin64 = make(np.sin(angles), table, device)
    got = rope(x, cos, sin, rotary_dim=2 * half, interleaved=interleaved)
    check(got, exact_rope(x64, cos64, sin64, 2 * half, interleaved), dtype)
    # what does not turn is copied
    assert fa.all(got[..., 2 * half :] == x[..., 2 * half :])
    if not beyond:
        assert fa.all(rope(x, cos, sin, interleaved=interleaved) == got)


@given(seed=st.integers(0, 2**32 - 1), interleaved=st.booleans(), positions=st.lists(st.integers(0, 10**6), max_size=5))
def test_turning_back(device: fa.Device, seed: int, interleaved: bool, positions: list[int]) -> None:
    x, x64 = make(noise(seed, len(positions), 2, 8), fa.float32, device)
    cos, sin = rope_table(positions, 8, 1e4, device=device)
    turned = rope(x, cos, sin, interleaved=interleaved)
    check(rope(turned, cos, -sin, interleaved=interleaved), x64, fa.float32)
    # lengths stay
    assert np.allclose((wide(turned) ** 2).sum(-1), (x64**2).sum(-1), rtol=1e-5)


@given(seed=st.integers(0, 2**32 - 1), interleaved=st.booleans(), far=st.integers(0, 10**6 - 10))
def test_products_see_distances_alone(device: fa.Device, seed: int, interleaved: bool, far: int) -> None:
    q, k = (make(noise(seed + i, 1, 1, 16), fa.float32, device)[0] for i in range(2))

    def product(i: int, j: int) -> float:
        one, two = (
            rope(x, *rope_table([at], 16, 1e4, device=device), interleaved=interleaved) for x, at in ((q, i), (k, j))
        )
        return float((wide(one) * wide(two)).sum())

    assert math.isclose(product(7, 3), product(far + 7, far + 3), rel_tol=1e-5, abs_tol=2e-5)


def test_position_zero_changes_nothing(device: fa.Device) -> None:
    x, _ = make(noise(1, 1, 2, 8), fa.float16, device)
    assert fa.all(rope(x, *rope_table([0], 8, 1e4, device=device)) == x)


def test_a_batch_is_as_one_by_one(device: fa.Device) -> None:
    x, _ = make(noise(1, 3, 4, 2, 8), fa.bfloat16, device)
    cos, sin = rope_table([[0, 1, 2, 3], [9, 10, 11, 12], [5, 5, 5, 5]], 8, 1e4, device=device)
    together = rope(x, cos, sin)
    assert fa.all(together == fa.stack([rope(x[i], cos[i], sin[i]) for i in range(3)]))
    assert fa.all(together == rope(x, cos, sin))


@pytest.mark.parametrize("family", ["llama", "glm", "qwen3_next"])
def test_turns_as_in_transformers(family: str) -> None:
    """Halves, neighbours, and a part of the head."""
    import importlib

    import torch

    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    x64 = noise(3, 1, 5, 2, 16)
    dim = 8 if family == "qwen3_next" else 16
    cos, sin = rope_table(range(5), dim, 1e4)
    # theirs has heads before tokens, and tables for both halves
    x = torch.from_numpy(x64).float().transpose(1, 2)
    tables = [torch.from_numpy(np.concatenate([wide(t)] * 2, -1)).float()[None] for t in (cos, sin)]
    want, _ = module.apply_rotary_pos_emb(x, x, *tables)
    got = rope(fa.asarray(x64, dtype="f32"), cos, sin, rotary_dim=dim, interleaved=family == "glm")
    np.testing.assert_allclose(wide(got), want.transpose(1, 2).double().numpy(), atol=1e-6)


@given(
    seed=st.integers(0, 2**32 - 1),
    offset=st.sampled_from([0.0, 1.0]),
    weighted=st.booleans(),
    interleaved=st.booleans(),
    part=st.sampled_from([None, 4]),
    data=st.data(),
)
def test_norm_and_turn_are_the_two_calls(
    device: fa.Device,
    seed: int,
    offset: float,
    weighted: bool,
    interleaved: bool,
    part: int | None,
    data: st.DataObject,
) -> None:
    dtype = data.draw(st.sampled_from(floats(device)))
    q, q64 = make(noise(seed, 2, 3, 4, 8), dtype, device)
    k, _ = make(noise(seed + 1, 2, 3, 2, 8), dtype, device)
    weights = [make(noise(seed + 2 + i, 8), dtype, device)[0] if weighted else None for i in range(2)]
    offset = offset if weighted else 0.0
    cos, sin = rope_table(range(5, 8), part or 8, 1e4, device=device)
    turn: dict[str, Any] = {"rotary_dim": part, "interleaved": interleaved}
    got = qk_norm_rope(q, k, *weights, cos, sin, eps=1e-5, offset=offset, **turn)
    for one, x, w in zip(got, (q, k), weights, strict=True):
        two_calls = rope(rms_norm(x, w, eps=1e-5, offset=offset), cos, sin, **turn)
        check(one, wide(two_calls), dtype)
    factor = 1.0 if weights[0] is None else wide(weights[0]) + offset
    normed = q64 / np.sqrt((q64**2).mean(-1, keepdims=True) + 1e-5) * factor
    check(
        got[0],
        exact_rope(normed, wide(cos), wide(sin), part or 8, interleaved),
        dtype,
        1e-6 if dtype is fa.float64 else 0,
    )


X, C = fa.ones((2, 3, 1, 4)), fa.ones((3, 2))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": fa.ones((3, 4))}, ValueError, r"x must be \[..., T, H, D\], got float32\[3,4\]"),
        ({"x": X.astype("i64")}, TypeError, "x must be real floating-point, got int64"),
        ({"cos": C.astype("f16")}, TypeError, "cos and sin must share a dtype, got float16"),
        ({"cos": fa.ones((3, 1))}, ValueError, "cos and sin must share a shape"),
        ({"cos": fa.ones((4, 2)), "sin": fa.ones((4, 2))}, ValueError, r"broadcast to \(2, 3, 2\).*got float32\[4,2\]"),
        ({"cos": fa.ones((1, 2)), "sin": fa.ones((1, 2))}, ValueError, r"got float32\[1,2\]"),
        ({"cos": fa.ones((3, 3, 2)), "sin": fa.ones((3, 3, 2))}, ValueError, r"got float32\[3,3,2\]"),
        ({"cos": fa.ones((1, 2, 3, 2)), "sin": fa.ones((1, 2, 3, 2))}, ValueError, r"got float32\[1,2,3,2\]"),
        ({"cos": fa.ones(2), "sin": fa.ones(2)}, ValueError, r"got float32\[2\]"),
        ({"cos": fa.ones((3, 1)), "sin": fa.ones((3, 1))}, ValueError, "first 2 dimensions alone, pass rotary_dim=2"),
        ({"cos": fa.ones((3, 4)), "sin": fa.ones((3, 4))}, ValueError, r"got float32\[3,4\]$"),
        ({"rotary_dim": 2}, ValueError, r"broadcast to \(2, 3, 1\)"),
        ({"rotary_dim": 6}, ValueError, r"rotary_dim is 6, but x float32\[2,3,1,4\] has 4 dimensions"),
        ({"rotary_dim": 3}, ValueError, "rotary_dim must be an even integer of at least 2, got 3"),
        ({"rotary_dim": 0}, ValueError, "rotary_dim must be an even integer of at least 2, got 0"),
        ({"x": fa.ones((3, 1, 5))}, ValueError, "rotary_dim must be an even integer of at least 2, got 5"),
    ],
)
def test_bad_turns_are_refused(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        rope(**{"x": X, "cos": C, "sin": C, **arguments})


def test_bad_pairs_are_refused() -> None:
    def call(q: fa.Tensor = X, k: fa.Tensor = X, wq: Any = None, wk: Any = None, **more: Any) -> None:
        qk_norm_rope(q, k, wq, wk, C, C, **{"eps": 1e-5, **more})

    with pytest.raises(ValueError, match="q and k must share all axes but the heads"):
        call(k=fa.ones((1, 3, 1, 4)))
    with pytest.raises(TypeError, match=r"k is float16\[2,3,1,4\] but the input is float32"):
        call(k=X.astype("f16"))
    with pytest.raises(ValueError, match=r"wk must have shape \(4,\)"):
        call(wk=fa.ones(3))
    with pytest.raises(ValueError, match=r"offset=1.0 is added to wk, which is absent"):
        call(wq=fa.ones(4), offset=1.0)
    with pytest.raises(ValueError, match="eps must be finite"):
        call(eps=-1.0)
    with pytest.raises(ValueError, match="k must be"):
        call(k=fa.ones((3, 4)))
