"""Tensors in files: what the tests of them share."""

from __future__ import annotations

import json
import struct
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

import ferrum_array as fa

RAW = {d: np.dtype(ml_dtypes.bfloat16 if d is fa.bfloat16 else d.standard_name) for d in fa.Dtype.all()}
SAFE = [d for d in RAW if d is not fa.complex128]

# One folder serves all examples of a property; each example writes its files anew.
shared_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


def arrays(dtypes: list[fa.Dtype] | None = None) -> st.SearchStrategy[np.ndarray[Any, Any]]:
    """Arrays of every dtype, with any bits (NaN payloads too), contiguous or not."""

    @st.composite
    def build(draw: st.DrawFn) -> np.ndarray[Any, Any]:
        raw = RAW[draw(st.sampled_from(dtypes or list(RAW)))]
        shape = tuple(draw(st.lists(st.integers(0, 4), max_size=3)))
        size = int(np.prod(shape, dtype=int))
        data = draw(st.binary(min_size=size * raw.itemsize, max_size=size * raw.itemsize))
        if raw.kind == "b":
            return (np.frombuffer(data, np.uint8) % 2 == 1).reshape(shape)
        array = np.frombuffer(data, raw).reshape(shape)
        return array.T if draw(st.booleans()) else array

    return build()


NAMES = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1, max_size=9)
FILES = st.dictionaries(NAMES.filter(lambda name: name != "__metadata__"), arrays(), max_size=5)
SAFE_FILES = st.dictionaries(NAMES.filter(lambda name: name != "__metadata__"), arrays(SAFE), max_size=5)


def same(got: Any, expected: Any) -> bool:
    """Whether two mappings hold arrays or tensors of equal names, dtypes, shapes and bits."""
    if set(got) != set(expected):
        return False
    for name in got:
        a, b = (x.numpy() if isinstance(x, fa.Tensor) else np.asarray(x) for x in (got[name], expected[name]))
        if a.dtype != b.dtype or a.shape != b.shape or a.tobytes() != b.tobytes():
            return False
    return True


@contextmanager
def little_memory(limit: int) -> Iterator[None]:
    """Fail if Python and NumPy ever hold *limit* bytes more inside the block than before it."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < limit


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.endswith(".tmp")]


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def entry(dtype: Any, shape: Any, *offsets: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": list(offsets)}


def file_of(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data
