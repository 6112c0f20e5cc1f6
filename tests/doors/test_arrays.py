"""Libraries of arrays: NumPy, array-api-compat and -extra, einops, jaxtyping, DLPack with PyTorch and JAX, dask."""

from __future__ import annotations

import subprocess
import sys

import array_api_compat
import array_api_extra as xpx
import dask.array
import einops
import numpy as np
import pytest
import torch
from jaxtyping import Float, Int

import ferrum_array as fa
from tests.doors.same import numbers, same

X = numbers(12, 4)


@pytest.mark.door("NumPy")
def test_numpy_takes_tensors_and_leaves_them_tensors(device: fa.Device) -> None:
    if device.kind == "cuda":
        pytest.skip("not run: device memory is copied by t.numpy() alone")
    x = fa.asarray(X, device=device)
    assert np.array_equal(np.asarray(x), X)
    assert np.dtype(x.dtype) == np.result_type(x) == np.float32
    for found in (np.float64(2.0) * x, np.exp(x), np.add(x, 1.0)):
        assert type(found) is fa.Tensor
        assert found.device is device
    if device.kind == "cpu":
        assert type(X + x) is type(np.add(X, x)) is fa.Tensor
    else:
        with pytest.raises(ValueError, match="different devices"):
            X + x


@pytest.mark.door("NumPy")
def test_scalars_and_arrays_of_numpy_become_tensors(device: fa.Device) -> None:
    assert fa.asarray(np.float32(1.5), device=device).dtype is fa.float32
    assert fa.asarray([np.int8(1), np.int8(2)], device=device).device is device
    assert fa.asarray(X[::2, ::-1], device=device).tolist() == X[::2, ::-1].tolist()


@pytest.mark.door("array-api-compat")
def test_compat_finds_the_namespace(device: fa.Device) -> None:
    x = fa.asarray(X, device=device)
    assert array_api_compat.array_namespace(x) is fa
    assert array_api_compat.device(x) is device
    assert array_api_compat.to_device(x, device) is x
    assert array_api_compat.size(x) == X.size


@pytest.mark.door("array-api-extra")
def test_extra_computes_on_tensors(device: fa.Device) -> None:
    same(lambda x: xpx.cov(x.T), device, X)
    same(lambda x: xpx.kron(x, x), device, X[0])
    same(lambda x: xpx.pad(x, 1), device, X)
    same(lambda x: xpx.atleast_nd(x, ndim=3), device, X)
    same(lambda x: xpx.sinc(x), device, X)
    x = fa.asarray(X, device=device)
    assert fa.all(xpx.at(x)[0].set(9.0, copy=True)[0] == 9.0)
    assert fa.all(x == fa.asarray(X, device=device))
    assert fa.all(xpx.at(x)[1:].add(1.0)[1:] == fa.asarray(X[1:] + 1.0, device=device))
    x = fa.asarray(X, device=device)
    found = xpx.apply_where(x > 0.0, x, fa.log, fill_value=0.0)
    assert found.device is device
    assert fa.all((found == 0.0) == (x <= 0.0))


@pytest.mark.door("einops")
def test_einops_rearranges_reduces_and_repeats(device: fa.Device) -> None:
    same(lambda x: einops.rearrange(x, "(a b) c -> b c a", a=3), device, X)
    same(lambda x: einops.repeat(x, "a c -> a 2 c"), device, X)
    same(lambda x: einops.einsum(x, x, "a b, c b -> a c"), device, X)
    same(lambda x: einops.pack([x, x], "* c")[0], device, X)
    for operation in ("mean", "sum", "max", "min", "prod"):
        same(lambda x, operation=operation: einops.reduce(x, "(a b) c -> a c", operation, b=4), device, X)


@pytest.mark.door("einops")
@pytest.mark.parametrize(
    "first", ["einops, ferrum_array", "ferrum_array, einops", "ferrum_array, einops.array_api, einops"]
)
def test_the_backend_is_there_whichever_comes_first(first: str) -> None:
    program = (
        f"import gc, sys, {first}\n"
        "import einops, ferrum_array as fa\n"
        "gc.collect()\n"
        "print(einops.rearrange(fa.ones((6, 2)), '(a b) c -> a b c', a=2).shape)\n"
        "print([one.name for one in sys.meta_path if type(one).__name__ == '_Watch'])"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.split("\n")[:2] == ["(2, 3, 2)", "['dask.array.backends']"]


@pytest.mark.door("einops")
def test_einops_is_not_imported_by_us() -> None:
    program = "import sys, ferrum_array; print('einops' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"


@pytest.mark.door("jaxtyping")
def test_annotations_are_checked(device: fa.Device) -> None:
    x = fa.asarray(X, device=device)
    assert isinstance(x, Float[fa.Tensor, "rows 4"])
    assert not isinstance(x, Float[fa.Tensor, "rows 5"])
    assert not isinstance(x, Int[fa.Tensor, "rows columns"])


@pytest.mark.door("PyTorch, DLPack")
def test_pytorch_and_back(device: fa.Device) -> None:
    x = fa.asarray(X, device=device)
    other = torch.from_dlpack(x)
    assert np.array_equal(other.cpu().numpy(), X)
    assert fa.all(fa.from_dlpack(other, device=device) == x)
    half = fa.from_dlpack(torch.arange(6, dtype=torch.bfloat16).reshape(2, 3).T, device=device)
    assert half.dtype is fa.bfloat16
    assert half.tolist() == [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
    assert torch.from_dlpack(half).dtype is torch.bfloat16
    assert fa.asarray(torch.ones(2), device=device).device is device


@pytest.mark.door("JAX, DLPack")
def test_jax_and_back(device: fa.Device) -> None:
    if device.kind == "cuda":
        pytest.skip("not run: JAX runs on the CPU here")
    jax = pytest.importorskip("jax", reason="not run: needs JAX")
    x = fa.asarray(X, device=device)
    other = jax.dlpack.from_dlpack(x)
    assert np.array_equal(np.asarray(other), X)
    assert fa.all(fa.from_dlpack(other, device=device) == x)
    assert np.array_equal(np.asarray(jax.numpy.asarray(x)), X)


@pytest.mark.door("dask.array")
def test_dask_computes_with_tensors_in_chunks(device: fa.Device) -> None:
    x = fa.asarray(X, device=device)
    chunks = dask.array.from_array(x, chunks=(4, 2), asarray=False)
    for found, expected in (
        ((chunks + 1.0).sum(axis=0), X.sum(axis=0) + 12.0),
        (chunks.mean(), X.mean()),
        (dask.array.exp(chunks).max(axis=1), np.exp(X).max(axis=1)),
        (chunks.rechunk((12, 1)) * 2, X * 2),
    ):
        made = found.compute()
        assert type(made) is fa.Tensor
        assert made.device is device
        assert np.allclose(made.numpy(), expected, rtol=1e-5, atol=1e-5)
