"""Experts' products on a CUDA device, where kernels that no interpreter runs take part."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

import ferrum_array as fa
from ferrum_ops import grouped_linear, linear, moe_ffn, moe_route, quantize
from tests.array.oracle import wide
from tests.ops.oracle import Array, distance, make, noise

pytestmark = pytest.mark.cuda

if any(device.kind == "cuda" for device in fa.devices()):
    from ferrum_ops.kernels.cuda import moe
    from ferrum_ops.kernels.cuda import moe_products as products
    from ferrum_ops.kernels.cuda.moe_products import Bulk, Gate, Product, Sorted, stack_of

HALVES = (fa.float16, fa.bfloat16)
#: of sums that are rounded once, and of networks whose parts are rounded
CLOSE = {fa.float16: 5e-4, fa.bfloat16: 4e-3}


@pytest.fixture(scope="module")
def device() -> fa.Device:
    return fa.Device("cuda:0")


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("size", [16, 64, 208, 512])
@pytest.mark.parametrize("columns", [8, 72, 300])
@pytest.mark.parametrize("counts", [(300,), (0, 1, 64, 0, 65, 129, 0), (128, 127, 500)])
def test_warps_that_copy_and_warps_that_multiply(
    device: fa.Device, dtype: fa.Dtype, size: int, columns: int, counts: tuple[int, ...]
) -> None:
    """Sorted rows with and without a tail of nobody; rows of choices with a gate. The same bits each time."""
    experts, offsets = len(counts), np.asarray([0, *np.cumsum(counts)])
    rows = int(offsets[-1])
    ends = fa.asarray(offsets, device=device)
    x, x64 = make(noise(1, rows + 5, size), dtype, device)
    w, w64 = make(noise(2, experts, columns, size) / size**0.5, dtype, device)
    bias, b64 = make(noise(3, experts, columns), fa.float32, device)
    product = Product(x, stack_of(w), bias, columns, None)
    want = np.zeros((rows + 5, columns))
    for e, (a, b) in enumerate(pairwise(offsets)):
        want[a:b] = x64[a:b] @ w64[e].T + b64[e]
    assert products.bulk_refuses(product) is None
    for cut in (Bulk(64, 256, 64, 4, 232), Bulk(64, 256, 64, 3, 232)):
        got = products.bulk(product, Sorted(None, ends, rows + 5, 1), cut)
        assert distance(wide(got), want) < CLOSE[dtype]
        assert not wide(got)[rows:].any()
        assert fa.all(products.bulk(product, Sorted(None, ends, rows + 5, 1), cut) == got)
    half = columns // 2
    order = np.random.default_rng(4).permutation(rows)
    product = Product(x, stack_of(w[:, : 2 * half]), bias[:, : 2 * half], half, Gate("silu", 1.0, 1.5, 1.0))
    if products.bulk_refuses(product) is None:
        h = np.concatenate([x64[order[a:b] // 2] @ w64[e].T + b64[e] for e, (a, b) in enumerate(pairwise(offsets))])
        gate, up = np.minimum(h[:, :half], 1.0), np.clip(h[:, half : 2 * half], -1.0, 1.0)
        where = Sorted(fa.asarray(order, device=device), ends, rows, 2)
        got = products.bulk(product, where, Bulk(64, 256, 64, 4, 208))
        assert distance(wide(got), gate / (1.0 + np.exp(-1.5 * gate)) * (up + 1.0)) < CLOSE[dtype]
        assert fa.all(products.bulk(product, where, Bulk(64, 256, 64, 4, 208)) == got)


@pytest.mark.parametrize("wrong", [[0, -5, 2**40, 700], [500, 300, 100, 0], [-(2**60), 2**60, 0, 2**62]])
def test_wrong_offsets_lead_nowhere(device: fa.Device, wrong: list[int]) -> None:
    w, _ = make(noise(1, 3, 64, 64), fa.bfloat16, device)
    x, _ = make(noise(2, 700, 64), fa.bfloat16, device)
    guard = fa.ones((1 << 16,), device=device)
    got = grouped_linear(x, w, fa.asarray(wrong, dtype="i64", device=device))
    assert got.shape == (700, 64)
    assert fa.all(guard == 1.0)


def network(device: fa.Device, dtype: fa.Dtype, tokens: int) -> tuple[tuple[fa.Tensor, ...], tuple[Array, ...]]:
    """Tokens, a router and 8 experts."""
    shapes = ((tokens, 96), (8, 96), (8, 128, 96), (8, 96, 64))
    made = [make(noise(i, *shape) / shape[-1] ** 0.5, dtype, device) for i, shape in enumerate(shapes)]
    return tuple(tensor for tensor, _ in made), tuple(values for _, values in made)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("tokens", [1, 9, 70, 1000])
def test_a_network_replays_in_a_graph(device: fa.Device, dtype: fa.Dtype, tokens: int) -> None:
    """With no look at the ids; other tokens go to other experts."""
    (x, router, w13, w2), (x64, _, w13_64, w2_64) = network(device, dtype, tokens)

    def run(x: fa.Tensor) -> fa.Tensor:
        return moe_ffn(x, w13, w2, *moe_route(linear(x, router), 2))

    replay = fa.capture(run, fa.zeros_like(x))
    got = replay(x)
    assert fa.all(got == run(x))
    ids, weights = moe_route(linear(x, router), 2)
    want = np.zeros((tokens, 96))
    for (t, j), e in np.ndenumerate(wide(ids).astype(np.int64)):
        h = w13_64[e] @ x64[t]
        want[t] += wide(weights)[t, j] * (w2_64[e] @ (h[:64] / (1.0 + np.exp(-h[:64])) * h[64:]))
    assert distance(wide(got), want) < 2 * CLOSE[dtype]


def test_ids_of_no_expert_make_tokens_nan(device: fa.Device) -> None:
    for tokens in (3, 70, 1000):
        (x, _, w13, w2), _ = network(device, fa.bfloat16, tokens)
        ids = np.tile(np.asarray([[0, 1]]), (tokens, 1))
        ids[1], ids[2, 0] = (8, 0), -1
        got = moe_ffn(x, w13, w2, fa.asarray(ids, device=device), fa.ones((tokens, 2), device=device))
        assert np.isnan(wide(got)).all(axis=1).tolist() == [False, True, True] + [False] * (tokens - 3)


@pytest.mark.parametrize("scheme", [None, "int4-g128", "int4-g32-bf16", "int8-g128", "mxfp4"])
@pytest.mark.parametrize("tokens", [1, 4])
def test_launches_that_come_early_read_what_is_written_for_them(
    device: fa.Device, scheme: str | None, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many calls one after another, each of other rows, against the same with launches that wait for each other."""
    experts, size, inner = 9, 2048, 256
    made = [
        make(noise(seed, experts, n, k) / k**0.5, fa.bfloat16, device)[0]
        for seed, n, k in ((1, 2 * inner, size), (2, size, inner))
    ]
    w13, w2 = made if scheme is None else (quantize(w, scheme) for w in made)
    rows = [make(noise(10 + i, tokens, size), fa.bfloat16, device)[0] for i in range(12)]
    rng = np.random.default_rng(3)
    ids = [fa.asarray(np.argsort(rng.random((tokens, experts)), axis=1)[:, :8].copy(), device=device) for _ in rows]
    share, _ = make(noise(4, tokens, 8), fa.float32, device)
    with monkeypatch.context() as patch:
        patch.setattr(moe, "chains", lambda x: False)
        patch.setattr(products, "chains", lambda x: False)
        want = [wide(moe_ffn(x, w13, w2, chosen, share)) for x, chosen in zip(rows, ids, strict=True)]
    for _ in range(5):
        got = [moe_ffn(x, w13, w2, chosen, share) for x, chosen in zip(rows, ids, strict=True)]
        for one, other in zip(got, want, strict=True):
            assert distance(wide(one), other) < CLOSE[fa.bfloat16]
