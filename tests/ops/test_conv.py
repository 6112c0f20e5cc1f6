from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import ferrum_array as fa
from ferrum_ops import conv, explain, linear
from tests.array.oracle import wide
from tests.ops.oracle import Array, check, distance, floats, make, noise


def exact(
    x: Array,
    w: Array,
    stride: tuple[int, ...],
    pads: tuple[tuple[int, int], ...],
    dilation: tuple[int, ...],
    groups: int,
) -> Array:
    """Patch by patch: x [N, C, size...]."""
    dims = w.ndim - 2
    x = np.pad(x, ((0, 0), (0, 0), *pads))
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, w.shape[2:], strict=True)]
    out = [(n - r) // s + 1 for n, r, s in zip(x.shape[2:], reach, stride, strict=True)]
    y = np.zeros((x.shape[0], w.shape[0], *out))
    own, depth = w.shape[0] // groups, w.shape[1]
    for o in range(w.shape[0]):
        channels = slice(o // own * depth, (o // own + 1) * depth)
        for place in np.ndindex(*out):
            window = tuple(
                slice(i * s, i * s + r, d) for i, s, r, d in zip(place, stride, reach, dilation, strict=True)
            )
            y[(slice(None), o, *place)] = (x[(slice(None), channels, *window)] * w[o]).sum(tuple(range(1, dims + 2)))
    return y


@st.composite
def geometries(draw: st.DrawFn) -> dict[str, Any]:
    dims = draw(st.integers(1, 2))

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(dims))

    found: dict[str, Any] = {
        "sizes": each(0, 9),
        "kernel": each(1, 4),
        "stride": each(1, 3),
        "dilation": each(1, 3),
        "pads": tuple((draw(st.integers(0, 3)), draw(st.integers(0, 3))) for _ in range(dims)),
        "groups": draw(st.integers(1, 3)),
        "depth": draw(st.integers(0, 3)),
        "own": draw(st.integers(0, 3)),
    }
    for n, k, d, pad in zip(found["sizes"], found["kernel"], found["dilation"], found["pads"], strict=True):
        assume(n + sum(pad) >= d * (k - 1) + 1)
    return found


@given(
    seed=st.integers(0, 2**32 - 1),
    leading=st.lists(st.integers(0, 3), max_size=2),
    geometry=geometries(),
    biased=st.booleans(),
    strided=st.booleans(),
    data=st.data(),
)
def test_as_the_oracle_says(
    device: fa.Device,
    seed: int,
    leading: list[int],
    geometry: dict[str, Any],
    biased: bool,
    strided: bool,
    data: st.DataObject,
) -> None:
    dtype = data.draw(st.sampled_from(floats(device)))
    groups, own, depth = geometry["groups"], geometry["own"], geometry["depth"]
    x, x64 = make(noise(seed, *leading, groups * depth, *geometry["sizes"]), dtype, device, strided=strided)
    w, w64 = make(noise(seed + 1, groups * own, depth, *geometry["kernel"]), dtype, device, strided=strided)
    b, b64 = make(noise(seed + 2, groups * own), dtype, device)
    got = conv(
        x,
        w,
        b if biased else None,
        stride=geometry["stride"],
        padding=geometry["pads"],
        dilation=geometry["dilation"],
        groups=groups,
    )
    images = x64.reshape(math.prod(leading), *x64.shape[len(leading) :])
    want = exact(images, w64, geometry["stride"], geometry["pads"], geometry["dilation"], groups)
    if biased:
        want += b64.reshape(-1, *(1,) * (w.ndim - 2))
    # sums that cancel keep the error of their terms
    terms = np.sqrt(np.square(w64).sum() * max(np.square(x64).mean() if x64.size else 0.0, 1e-30) * want[:, :1].size)
    slack = max(terms / max(np.linalg.norm(want), 1e-30), 1.0)
    tolerance = {fa.float32: 1e-6, fa.float64: 1e-14}.get(dtype, 0.0) * slack
    check(got, want.reshape(*leading, *want.shape[1:]), dtype, tolerance)


@given(seed=st.integers(0, 2**32 - 1), geometry=geometries(), batch=st.integers(1, 3))
def test_as_in_torch(seed: int, geometry: dict[str, Any], batch: int) -> None:
    import torch

    groups, own, depth = geometry["groups"], geometry["own"], geometry["depth"]
    assume(own and depth and all(geometry["sizes"]))
    x = noise(seed, batch, groups * depth, *geometry["sizes"])
    w, b = noise(seed + 1, groups * own, depth, *geometry["kernel"]), noise(seed + 2, groups * own)
    padding = tuple(before for before, _ in geometry["pads"])  # as many before as after
    sizes = zip(geometry["sizes"], padding, geometry["kernel"], geometry["dilation"], strict=True)
    assume(all(n + 2 * p >= d * (k - 1) + 1 for n, p, k, d in sizes))
    function = torch.nn.functional.conv1d if w.ndim == 3 else torch.nn.functional.conv2d
    more = {"stride": geometry["stride"], "padding": padding, "dilation": geometry["dilation"], "groups": groups}
    want = function(*map(torch.from_numpy, (x, w, b)), **more)
    got = conv(*map(fa.asarray, (x, w, b)), **more)
    assert got.shape == tuple(want.shape)
    assert distance(wide(got), want.numpy()) < 1e-13


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")  # it says that it copies
@pytest.mark.parametrize("kernel", [(1,), (2,), (3,), (4,), (2, 3), (3, 3), (1, 4)])
@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_same_and_valid_as_in_torch(kernel: tuple[int, ...], dilation: int) -> None:
    import torch

    x, w = noise(1, 2, 4, *(11, 13)[: len(kernel)]), noise(2, 6, 4, *kernel)
    function = torch.nn.functional.conv1d if len(kernel) == 1 else torch.nn.functional.conv2d
    for padding in ("same", "valid"):
        want = function(torch.from_numpy(x), torch.from_numpy(w), padding=padding, dilation=dilation).numpy()
        got = conv(fa.asarray(x), fa.asarray(w), padding=padding, dilation=dilation)  # type: ignore[arg-type]  # literals
        assert got.shape == want.shape
        assert distance(wide(got), want) < 1e-14
        if padding == "same":
            assert got.shape[2:] == x.shape[2:]


@pytest.mark.parametrize("budget", [1, 100, 700, 5000])
def test_memory_is_bounded_without_a_difference(
    device: fa.Device, monkeypatch: pytest.MonkeyPatch, budget: int
) -> None:
    for sizes, kernel, stride in (((23,), (4,), (3,)), ((9, 8), (3, 2), (2, 1))):
        dims = len(sizes)
        x, x64 = make(noise(1, 3, 4, *sizes), fa.float32, device)
        w, w64 = make(noise(2, 6, 2, *kernel), fa.float32, device)
        pads, dilation = ((1, 2),) * dims, (2,) * dims
        monkeypatch.setattr(sys.modules["ferrum_ops.conv"], "_PATCHES", budget)
        got = conv(x, w, stride=stride, padding=pads, dilation=dilation, groups=2)
        check(got, exact(x64, w64, stride, pads, dilation, 2), fa.float32)


def test_special_cases_are_products(device: fa.Device) -> None:
    x, _ = make(noise(1, 2, 5, 7), fa.float32, device)
    w, _ = make(noise(2, 3, 5, 1), fa.float32, device)
    want = fa.moveaxis(linear(fa.moveaxis(x, 1, 2), w[..., 0]), 2, 1)
    assert distance(wide(conv(x, w)), wide(want)) < 1e-6
    # patches that do not overlap, as a vision transformer cuts them
    image, _ = make(noise(3, 2, 3, 8, 12), fa.float32, device)
    filters, _ = make(noise(4, 6, 3, 4, 4), fa.float32, device)
    pieces = fa.permute_dims(image.reshape(2, 3, 2, 4, 3, 4), (0, 2, 4, 1, 3, 5)).reshape(2, 6, 48)
    want = fa.moveaxis(linear(pieces, filters.reshape(6, 48)), 2, 1).reshape(2, 6, 2, 3)
    assert distance(wide(conv(image, filters, stride=4)), wide(want)) < 1e-6


def test_a_bias_is_added_before_the_sum_is_rounded(device: fa.Device) -> None:
    x, w = fa.full((1, 1), 256.0, dtype="bf16", device=device), fa.ones((1, 1, 1), dtype="bf16", device=device)
    for name in ("bf16", "f32"):
        got = conv(
            fa.concat([x, fa.ones_like(x) / 2]), fa.concat([w, w], axis=1), fa.asarray([0.5], dtype=name, device=device)
        )
        assert got.tolist() == [[256.0]]
        more = fa.asarray([0.625], dtype=name, device=device)
        assert conv(fa.concat([x, fa.ones_like(x) / 2]), fa.concat([w, w], axis=1), more).tolist() == [[258.0]]


def test_what_is_in_use_is_told() -> None:
    x, w = fa.ones((4, 9, 9)), fa.ones((4, 2, 3, 3))
    more = explain(conv, x, w, fa.ones(4), stride=2, padding=(0, (0, 1)), dilation=(1, 2), groups=2)
    assert more.features == ("2d", "bias", "stride", "padding", "dilation", "groups")
    assert explain(conv, x[0], fa.ones((1, 9, 1)), padding="same").features == ("1d",)


def test_bad_input_is_refused() -> None:
    x, w = fa.ones((2, 4, 9)), fa.ones((6, 4, 3))
    with pytest.raises(TypeError, match="x must be real floating-point, got int64"):
        conv(x.astype("i64"), w)
    with pytest.raises(TypeError, match="w is float16"):
        conv(x, w.astype("f16"))
    for bad_x, bad_w in ((x[0, 0], w), (x, w[0]), (x[0, :, :], fa.ones((6, 4, 3, 3))), (x, fa.ones((1,) * 5))):
        with pytest.raises(ValueError, match=r"conv: (x must be \[..., C, L\] and w|groups=1 must divide)"):
            conv(bad_x, bad_w)
    for groups in (0, -1, 1.0, True):
        with pytest.raises(ValueError, match="groups must be an integer at least 1"):
            conv(x, w, groups=groups)  # type: ignore[arg-type]  # what is tested
    with pytest.raises(ValueError, match="groups=2 must divide the 6 filters, and 4 channels be groups times the 4"):
        conv(x, w, groups=2)
    with pytest.raises(ValueError, match="groups=4 must divide the 6 filters"):
        conv(x, fa.ones((6, 1, 3)), groups=4)
    with pytest.raises(ValueError, match=r"b must have shape \(6,\) .* got float32\[4\]"):
        conv(x, w, fa.ones(4))
    with pytest.raises(TypeError, match="b is float64"):
        conv(x, w, fa.ones(6, dtype="f64"))
    for what in ("stride", "dilation"):
        for bad in (0, -1, 1.5, True, (0,), (1.0,)):
            with pytest.raises(ValueError, match=f"conv: {what} must be an integer at least 1"):
                conv(x, w, **{what: bad})  # type: ignore[arg-type]  # what is tested
        with pytest.raises(ValueError, match=rf"conv: {what} must be one number or 1, one for each axis, got \(1, 1\)"):
            conv(x, w, **{what: (1, 1)})  # type: ignore[arg-type]  # one or the other
    for padding in ("full", "SAME"):
        with pytest.raises(ValueError, match="padding must be numbers, 'same' or 'valid', got"):
            conv(x, w, padding=padding)  # type: ignore[arg-type]  # what is tested
    with pytest.raises(ValueError, match=r"padding 'same' needs a stride of 1, got \(2,\)"):
        conv(x, w, padding="same", stride=2)
    for padding in ((1, 2), ((1, 2, 3),), ()):
        with pytest.raises(ValueError, match="padding must be one number, or 1 numbers or pairs"):
            conv(x, w, padding=padding)  # type: ignore[arg-type]  # what is tested
    for padding in (-1, 1.5, (True,), ((0, -1),), (1.5,)):
        with pytest.raises(ValueError, match="padding must be integers of at least 0"):
            conv(x, w, padding=padding)  # type: ignore[arg-type]  # what is tested
    with pytest.raises(
        ValueError, match="along axis 0 the filter reaches over 11 elements, and x has 9 with 1 and 0 zeros"
    ):
        conv(x, w, dilation=5, padding=((1, 0),))
    with pytest.raises(ValueError, match="along axis 0 the filter reaches over 0 elements"):
        conv(x, w[..., :0])


@pytest.mark.mlx
def test_other_devices_are_refused() -> None:
    x, w = fa.ones((2, 4, 9)), fa.ones((6, 4, 3))
    with pytest.raises(ValueError, match="conv: w is on device mlx:cpu but the input on cpu"):
        conv(x, w.to_device("mlx:cpu"))
