"""Libraries written against the array API standard find the namespace by themselves."""

from __future__ import annotations

from typing import Any

import array_api_compat
import numpy as np
import pytest

import ferrum_array as fa


def test_the_namespace_is_found() -> None:
    x = fa.ones(3)
    assert array_api_compat.array_namespace(x) is fa
    assert array_api_compat.array_namespace(x, x, None, 1.0) is fa
    assert array_api_compat.array_namespace(x, api_version="2023.12") is fa
    with pytest.raises(ValueError, match="2025"):
        array_api_compat.array_namespace(x, api_version="1999.12")
    with pytest.raises(TypeError, match="Multiple namespaces"):
        array_api_compat.array_namespace(x, np.ones(3))


def test_tensors_are_array_api_objects(device: fa.Device) -> None:
    x = fa.ones((2, 3), device=device)
    assert array_api_compat.is_array_api_obj(x)
    assert array_api_compat.is_array_api_strict_namespace(fa) is False
    assert array_api_compat.device(x) is device
    assert array_api_compat.size(x) == 6
    assert array_api_compat.to_device(x, device) is x
    assert array_api_compat.is_writeable_array(x)
    assert not array_api_compat.is_lazy_array(x) or device.kind == "mlx"
    for other in ("numpy", "cupy", "torch", "dask", "jax", "ndonnx", "pydata_sparse"):
        assert getattr(array_api_compat, f"is_{other}_array")(x) is False


def softmax(x: Any) -> Any:
    """A function that knows nothing of its array library."""
    xp = array_api_compat.array_namespace(x)
    e = xp.exp(x - xp.max(x, axis=-1, keepdims=True))
    return e / xp.sum(e, axis=-1, keepdims=True)


def test_generic_code_runs(device: fa.Device) -> None:
    rows = [[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]
    found = softmax(fa.asarray(rows, device=device))
    assert type(found) is fa.Tensor
    assert found.device is device
    wanted = softmax(np.asarray(rows))
    assert np.allclose(found.to_device("cpu").numpy(), wanted, rtol=1e-6)
