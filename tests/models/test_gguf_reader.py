"""GGUF files, whole and broken: what they say is what they hold, and nothing broken does harm."""

from __future__ import annotations

import itertools
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ferrum_array as fa
from ferrum_array.io import CorruptFileError
from ferrum_models import load
from ferrum_models.gguf import GgufFile
from ferrum_models.gguf.types import ELEMENTS
from ferrum_ops import QuantTensor
from tests.models import gguf_models
from tests.models.test_gguf_vocabulary import bytes_vocabulary, pieces_vocabulary

NUMBERS = {
    0: ("B", st.integers(0, 255)),
    1: ("b", st.integers(-128, 127)),
    2: ("H", st.integers(0, 2**16 - 1)),
    3: ("h", st.integers(-(2**15), 2**15 - 1)),
    4: ("I", st.integers(0, 2**32 - 1)),
    5: ("i", st.integers(-(2**31), 2**31 - 1)),
    6: ("f", st.floats(width=32, allow_nan=False)),
    7: ("?", st.booleans()),
    10: ("Q", st.integers(0, 2**64 - 1)),
    11: ("q", st.integers(-(2**63), 2**63 - 1)),
    12: ("d", st.floats(allow_nan=False)),
}
texts = st.text(st.characters(codec="utf-8"), max_size=12)


def text(value: str | bytes) -> bytes:
    data = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(data)) + data


def entry(key: str | bytes, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def tensor(name: str, shape: tuple[int, ...], kind: int, start: int, axes: int | None = None) -> bytes:
    """What is said of a tensor; *shape* in the order of the file."""
    count = len(shape) if axes is None else axes
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", count, *shape, kind, start)


def file(
    path: Path, entries: list[bytes], tensors: list[bytes] | None = None, data: bytes = b"", **changes: Any
) -> Path:
    """A file of these parts; *changes* are what the header says otherwise."""
    said = {"version": 3, "count": len(tensors or []), "pairs": len(entries), **changes}
    head = b"GGUF" + struct.pack("<IQQ", said["version"], said["count"], said["pairs"])
    head += b"".join(entries) + b"".join(tensors or [])
    path.write_bytes(head + bytes(-len(head) % 32) + data)
    return path


# What is read.


@st.composite
def values(draw: st.DrawFn) -> tuple[int, bytes, Any]:
    """Number of a type, bytes, value."""
    kind = draw(st.sampled_from([*NUMBERS, 8, 9]))
    if kind == 8:
        value = draw(texts)
        return kind, text(value), value
    if kind != 9:
        code, numbers = NUMBERS[kind]
        one = draw(numbers)
        return kind, struct.pack(f"<{code}", one), one
    inner = draw(st.sampled_from([*NUMBERS, 8]))
    if inner == 8:
        many = draw(st.lists(texts, max_size=5))
        return kind, struct.pack("<IQ", 8, len(many)) + b"".join(map(text, many)), many
    code, numbers = NUMBERS[inner]
    many = draw(st.lists(numbers, max_size=5))
    return kind, struct.pack(f"<IQ{len(many)}{code}", inner, len(many), *many), many


@given(
    listed=st.dictionaries(texts.filter(lambda key: key != "general.alignment"), values()),
    version=st.sampled_from([2, 3]),
)
def test_entries(tmp_path_factory: pytest.TempPathFactory, listed: dict[str, Any], version: int) -> None:
    path = tmp_path_factory.mktemp("entries") / "a.gguf"
    found = GgufFile(file(path, [entry(key, kind, data) for key, (kind, data, _) in listed.items()], version=version))
    assert found.entries.keys() == listed.keys()
    for key, (kind, _, value) in listed.items():
        got = found.entries[key]
        assert (list(got) if kind == 9 else got) == value
        if kind == 9:
            assert list(got[1:3]) == value[1:3]
        else:
            assert type(got) is type(value)


@pytest.mark.parametrize("alignment", [8, 32, 256])
def test_tensors_as_the_package_writes_them(tmp_path: Path, alignment: int) -> None:
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_custom_alignment(alignment)
    for number, element in ELEMENTS.items():
        kind = gguf.GGMLQuantizationType(number)
        for shape in ((3, 256), (2, 3, 512)):
            raw = rng.integers(0, 60, (*shape[:-1], shape[-1] // element.block * element.size), dtype=np.uint8)
            if element.dtype is not None:
                raw = rng.standard_normal(shape).astype(np.float32)
                raw = gguf.quantize(raw, kind)
            name = f"{element.name}.{len(shape)}"
            arrays[name] = (kind, raw, shape)
            writer.add_tensor(name, raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = GgufFile(tmp_path / "a.gguf")
    assert found.tensors.keys() == arrays.keys()
    for name, (kind, raw, shape) in arrays.items():
        one = found[name]
        assert one.shape == found.tensors[name].shape == shape
        assert found.tensors[name].nbytes == raw.nbytes
        if isinstance(one, QuantTensor):
            np.testing.assert_array_equal(one.parts["blocks"].numpy(), raw)
        else:
            np.testing.assert_array_equal(one.astype("f32").numpy(), gguf.dequantize(raw, kind))


def test_data_begin_at_the_next_multiple(tmp_path: Path) -> None:
    """Whatever the length of what is before; that of one of these is a multiple itself."""
    for length in range(1, 33):
        entries, data = [entry("k" * length, 0, b"\1")], np.arange(4, dtype=np.float32).tobytes()
        found = GgufFile(file(tmp_path / "a.gguf", entries, [tensor("x", (4,), 0, 0)], data))
        assert found.raw("x").tolist() == [0, 1, 2, 3]


def test_what_is_written_does_not_reach_the_file(tmp_path: Path) -> None:
    path = file(tmp_path / "a.gguf", [], [tensor("x", (4,), 0, 0)], np.arange(4, dtype=np.float32).tobytes())
    found = GgufFile(path)
    one = found["x"]
    assert isinstance(one, fa.Tensor)
    one[0] = 9.0
    assert found.raw("x").tolist() == GgufFile(path).raw("x").tolist() == [0, 1, 2, 3]
    with pytest.raises(KeyError, match="has no tensor 'y'; it has 1"):
        found["y"]


# What is refused.


def array(kind: int, count: int, data: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + data


ONE = tensor("x", (32,), 0, 0)
BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "magic": (lambda p: p.write_bytes(b"GGML" + bytes(20)), "begins with b'GGML', not with b'GGUF'"),
    "empty": (lambda p: p.write_bytes(b""), "begins with b'', not with"),
    "version 1": (lambda p: file(p, [], version=1), "GGUF version 1; versions 2 and 3"),
    "version 4": (lambda p: file(p, [], version=4), "GGUF version 4; versions 2 and 3"),
    "big-endian": (lambda p: file(p, [], version=3 << 24), "its bytes are in big-endian order"),
    "no header": (lambda p: p.write_bytes(b"GGUF\3\0\0\0\1"), "takes 8 bytes at byte 8, but 1 are left: cut off"),
    "entries": (lambda p: file(p, [], pairs=2**63), "claims 9223372036854775808 entries, more than fit"),
    "tensors": (lambda p: file(p, [], count=2**64 - 1), "claims 18446744073709551615 tensors, more than fit"),
    "key": (lambda p: file(p, [struct.pack("<Q", 2**62) + bytes(9)]), "4611686018427387904 bytes; at most 65535"),
    "long key": (lambda p: file(p, [struct.pack("<Q", 5000) + bytes(9)]), "takes 5000 bytes at byte 32"),
    "key twice": (lambda p: file(p, [entry("a", 0, b"\1")] * 2), "the key 'a' stands twice"),
    "key is no text": (lambda p: file(p, [entry(b"\xff", 0, b"\1")]), "the key of entry 0 is not UTF-8"),
    "text is no text": (lambda p: file(p, [entry("a", 8, text(b"\xff"))]), "'a' is not UTF-8"),
    "text": (lambda p: file(p, [entry("a", 8, struct.pack("<Q", 2**63))]), "'a' takes 9223372036854775808 bytes"),
    "type": (lambda p: file(p, [entry("a", 13, b"\1")]), "'a' has the unknown type 13; known are 0 to 12"),
    "type in array": (lambda p: file(p, [entry("a", 9, array(77, 0))]), "'a' has the unknown type 77"),
    "nested": (lambda p: file(p, [entry("a", 9, array(9, 1, array(0, 0)))]), "'a' is an array of arrays"),
    "array": (lambda p: file(p, [entry("a", 9, array(12, 2**61))]), "'a' takes 18446744073709551616 bytes"),
    "texts": (lambda p: file(p, [entry("a", 9, array(8, 2**40))]), "'a' claims 1099511627776 texts"),
    "a text of many": (
        lambda p: file(p, [entry("a", 9, array(8, 2, text("b") + struct.pack("<Q", 99)))]),
        "'a' takes 99 bytes",
    ),
    "boolean": (lambda p: file(p, [entry("a", 7, b"\2")]), "'a' holds a boolean that is neither 0 nor 1"),
    "booleans": (lambda p: file(p, [entry("a", 9, array(7, 2, b"\1\x09"))]), "'a' holds a boolean"),
    "alignment": (
        lambda p: file(p, [entry("general.alignment", 4, struct.pack("<I", 48))]),
        "general.alignment must be a power of two of at least 8, got 48",
    ),
    "no alignment": (
        lambda p: file(p, [entry("general.alignment", 8, text("x"))]),
        "general.alignment must be a power of two of at least 8, got 'x'",
    ),
    "name twice": (lambda p: file(p, [], [ONE, ONE], bytes(128)), "tensor 'x' stands twice"),
    "name": (lambda p: file(p, [], [tensor("x" * 300, (32,), 0, 0)], bytes(128)), "claims 300 bytes; at most 255"),
    "no axes": (lambda p: file(p, [], [tensor("x", (), 0, 0)], bytes(128)), "tensor 'x' has 0 axes; there are 1 to 4"),
    "axes": (lambda p: file(p, [], [tensor("x", (1,), 0, 0, 2**32 - 1)], bytes(99)), "has 4294967295 axes"),
    "empty axis": (lambda p: file(p, [], [tensor("x", (3, 0), 0, 0)], bytes(99)), r"has the shape (0, 3); no axis"),
    "shape": (lambda p: file(p, [], [tensor("x", (2**63, 2**63), 0, 0)], bytes(99)), "but the file has"),
    "offset": (lambda p: file(p, [], [tensor("x", (32,), 0, 32)], bytes(128)), "at byte 224, but the file has 192"),
    "far offset": (lambda p: file(p, [], [tensor("x", (32,), 0, 2**64 - 32)], bytes(128)), "but the file has 192"),
    "odd offset": (lambda p: file(p, [], [tensor("x", (4,), 0, 8)], bytes(128)), "begins at 8, no multiple of 32"),
    "rows": (lambda p: file(p, [], [tensor("x", (33, 2), 8, 0)], bytes(128)), "rows of 33, but Q8_0 stores 32"),
    "unread type": (
        lambda p: file(p, [], [tensor("x", (256,), 23, 0)], bytes(999)),
        "has the type IQ4_XS, which is not read; known are F32, F16, Q4_0, .*, MXFP4",
    ),
    "unknown type": (lambda p: file(p, [], [tensor("x", (256,), 99, 0)], bytes(999)), "has the type number 99"),
    "integers": (lambda p: file(p, [], [tensor("x", (256,), 26, 0)], bytes(999)), "type I32, which is not read"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files(tmp_path: Path, name: str) -> None:
    write, message = BROKEN[name]
    write(tmp_path / "a.gguf")
    tracemalloc.start()
    try:
        with pytest.raises(CorruptFileError) as error:
            GgufFile(tmp_path / "a.gguf")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert str(error.value).startswith(f"{tmp_path / 'a.gguf'}: ")
    first, *rest = message.split(".*")
    at = str(error.value).find(first)
    assert at >= 0, str(error.value)
    assert all(one in str(error.value)[at:] for one in rest)


def test_blocks_of_one_axis(tmp_path: Path) -> None:
    path = file(tmp_path / "a.gguf", [], [tensor("x", (32,), 8, 0)], bytes(34))
    with pytest.raises(ValueError, match=r"'x' holds Q8_0 of shape \(32,\); blocks need two or three axes"):
        GgufFile(path)["x"]


# Anything may be broken.


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """The bytes of small models with all that a file can hold."""
    folder = tmp_path_factory.mktemp("whole")
    found = []
    for case, vocabulary in itertools.product(
        ("llama-3", "gpt-oss", "qwen3moe"), (bytes_vocabulary, pieces_vocabulary)
    ):
        peer = gguf_models.make(case, folder, vocab_size=400)
        gguf_models.write(peer, case, folder / "a.gguf", "Q8_0", **vocabulary())
        load(folder / "a.gguf")
        found.append((folder / "a.gguf").read_bytes())
    return found


WORDS = [0, 1, 8, 9, 2**16, 2**31, 2**32 - 1, 2**40, 2**61, 2**63, 2**64 - 1]
places = st.floats(0, 1, exclude_max=True)
changes = st.one_of(
    st.tuples(st.just("flip"), places, st.integers(0, 7)),
    st.tuples(st.just("byte"), places, st.integers(0, 255)),
    st.tuples(st.just("word"), places, st.sampled_from([4, 8]), st.sampled_from(WORDS)),
    st.tuples(st.just("drop"), places, st.integers(1, 9)),
    st.tuples(st.just("cut"), places),
)


def changed(data: bytes, change: tuple[Any, ...], region: tuple[int, int]) -> bytes:
    """*data* with one change at a place in a region."""
    start, stop = region
    at = min(start + int(change[1] * (stop - start)), len(data) - 1)
    match change:
        case ("flip", _, bit):
            return data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]
        case ("byte", _, byte):
            return data[:at] + bytes([byte]) + data[at + 1 :]
        case ("word", _, length, word):
            return data[:at] + (word % 256**length).to_bytes(length, "little") + data[at + length :]
        case ("drop", _, count):
            return data[:at] + data[at + count :]
    return data[:at]


@settings(max_examples=max(400, settings.default.max_examples))  # an example takes milliseconds
@given(
    number=st.integers(0, 5),
    listed=st.lists(st.tuples(st.integers(0, 3), changes), min_size=1, max_size=4),
)
def test_broken_models_are_refused_or_whole(
    whole: list[bytes], tmp_path_factory: pytest.TempPathFactory, number: int, listed: list[tuple[int, Any]]
) -> None:
    data = whole[number]
    tokens, table = data.index(b"tokenizer.ggml"), data.index(b"token_embd.weight")
    # header and config, vocabulary, what is said of tensors, all
    regions = [(0, tokens), (tokens, table), (table, table + 2500), (0, len(data))]
    for region, change in listed:
        data = changed(data, change, regions[region]) or b"G"
    path = tmp_path_factory.mktemp("broken") / "a.gguf"
    path.write_bytes(data)
    refused = None
    tracemalloc.start()
    try:
        model, tokenizer = load(path)
    except ValueError as error:  # and nothing else
        refused = str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 32 << 20
    if refused is not None:
        assert str(path) in refused
    else:
        assert model.size > 0
        assert tokenizer is None or tokenizer.vocab_size > 0
