"""Tensors in files: there and back, beside NumPy and the safetensors package, and damaged files."""

from __future__ import annotations

import io
import json
import os
import struct
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import ferrum_array as fa
from ferrum_array.backends import hostio
from ferrum_array.io.saving import plan_shards

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


def test_same_can_fail() -> None:
    one = {"x": np.asarray([0.0, 1.0])}
    assert same(one, one)
    assert not same(one, {"y": one["x"]})
    assert not same(one, {"x": -one["x"]})
    assert not same(one, {"x": one["x"].astype(np.float32)})
    assert not same(one, {"x": one["x"].reshape(2, 1)})


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


def test_little_memory_can_fail() -> None:
    with pytest.raises(AssertionError), little_memory(1 << 20):
        np.ones(1 << 20)


# There and back.


@shared_folder
@given(files=FILES)
def test_npz_there_and_back(files: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    fa.io.savez(path, **{name: fa.asarray(array) for name, array in files.items()})
    assert same(fa.io.load_npz(path), files)
    assert same(fa.io.load(path), files)
    assert list(fa.io.load_npz(path)) == list(files)


@shared_folder
@given(files=SAFE_FILES, texts=st.dictionaries(NAMES, st.text(st.characters(exclude_categories=("Cs",)))))
def test_safetensors_there_and_back(files: dict[str, Any], texts: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    assert fa.io.save_safetensors(files, path, metadata=texts) == path
    assert same(fa.io.load_safetensors(path), files)
    assert same(fa.io.load(path), files)
    with fa.io.open_safetensors(path) as file:
        assert file.metadata == texts
        assert list(file) == list(files)


@shared_folder
@given(files=SAFE_FILES, most=st.integers(1, 300))
def test_shards_there_and_back(files: dict[str, Any], most: int, tmp_path: Path) -> None:
    for old in tmp_path.iterdir():
        old.unlink()
    path = fa.io.save_safetensors(files, tmp_path / "m.safetensors", max_shard_bytes=most)
    assert same(fa.io.load_safetensors(path), files)
    assert list(fa.io.load_safetensors(path)) == list(files)
    parts = sorted(tmp_path.glob("*.safetensors"))
    if path.suffix == ".json":
        index = json.loads(path.read_text(encoding="utf-8"))
        assert set(index["weight_map"].values()) == {part.name for part in parts}
        assert index["metadata"]["total_size"] == sum(array.nbytes for array in files.values())
    for part in parts:
        held = fa.io.load_safetensors(part)
        assert len(held) == 1 or sum(t.nbytes for t in held.values()) <= most


@given(st.lists(st.integers(0, 50), max_size=20), st.integers(1, 60))
def test_shards_are_full_but_not_too_full(sizes: list[int], most: int) -> None:
    shards = plan_shards(sizes, most)
    assert [i for shard in shards for i in shard] == list(range(len(sizes)))
    for shard, after in zip(shards, [*shards[1:], None], strict=True):
        total = sum(sizes[i] for i in shard)
        assert total <= most or len(shard) == 1
        assert after is None or total + sizes[after[0]] > most


@pytest.mark.parametrize("dtype", SAFE)
def test_files_from_and_to_every_device(dtype: fa.Dtype, device: fa.Device, tmp_path: Path) -> None:
    if not device.supports(dtype):
        fa.io.save_safetensors({"x": fa.ones(2, dtype=dtype, device="cpu")}, tmp_path / "a")
        with pytest.raises(TypeError, match=dtype.standard_name):
            fa.io.load_safetensors(tmp_path / "a", device=device)
        return
    x = fa.asarray([[0, 1, 1], [1, 0, 1]], dtype=dtype, device=device)
    fa.io.save_safetensors({"x": x}, tmp_path / "a")
    fa.io.savez(tmp_path / "b", x=x)
    for path in (tmp_path / "a", tmp_path / "b"):
        assert fa.io.load(path, device="cpu")["x"].device.kind == "cpu"
        back = fa.io.load(path, device=device)["x"]
        assert (back.dtype, back.device) == (dtype, device)
        assert back.tolist() == x.tolist()
        with fa.default_device(device):
            assert fa.io.load(path)["x"].device is device


# Beside the programs that own the formats.


@shared_folder
@given(files=FILES)
def test_numpy_reads_our_archives(files: dict[str, Any], tmp_path: Path) -> None:
    fa.io.savez(tmp_path / "a.npz", **files)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as archive:
        assert archive.files == list(files)
        read = {name: archive[name] for name in files}
    bits = {name: array.view(np.uint16) if array.dtype == RAW[fa.bfloat16] else array for name, array in files.items()}
    assert same(read, bits)


@shared_folder
@given(
    files=st.dictionaries(
        st.from_regex(r"[a-z][a-z/._]{0,8}", fullmatch=True).filter(lambda name: name != "file"),
        arrays([d for d in RAW if d is not fa.bfloat16]),
        max_size=4,
    ),
    compressed=st.booleans(),
    order=st.sampled_from("<>"),
)
def test_we_read_numpys_archives(files: dict[str, Any], compressed: bool, order: str, tmp_path: Path) -> None:
    given_order = {name: array.astype(array.dtype.newbyteorder(order)) for name, array in files.items()}
    (np.savez_compressed if compressed else np.savez)(tmp_path / "a.npz", **given_order)
    assert same(fa.io.load_npz(tmp_path / "a.npz"), files)


@shared_folder
@given(files=SAFE_FILES)
def test_the_safetensors_package_reads_our_files(files: dict[str, Any], tmp_path: Path) -> None:
    fa.io.save_safetensors(files, tmp_path / "a.safetensors", metadata={"format": "np"})
    with safetensors.safe_open(tmp_path / "a.safetensors", "np") as file:
        assert file.metadata() == {"format": "np"}
        read = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
    assert same(read, files)


@shared_folder
@given(files=st.dictionaries(NAMES, arrays(SAFE), min_size=1, max_size=5))
def test_we_read_files_of_the_safetensors_package(files: dict[str, Any], tmp_path: Path) -> None:
    contiguous = {name: array.copy(order="C") for name, array in files.items() if name != "__metadata__"}
    safetensors.numpy.save_file(contiguous, tmp_path / "a.safetensors", metadata={"k": "v"})
    assert same(fa.io.load_safetensors(tmp_path / "a.safetensors"), contiguous)


# Reading part of a file.


def test_opening_reads_the_header_alone(tmp_path: Path) -> None:
    path = tmp_path / "big.safetensors"
    fa.io.save_safetensors({"a": fa.ones((1024, 4096)), "b": fa.ones(3, dtype="i8")}, path)
    with little_memory(1 << 20), fa.io.open_safetensors(path) as file:
        info = file.info("a")
        assert (info.dtype, info.format, info.shape, info.nbytes) == (fa.float32, "F32", (1024, 4096), 1 << 24)
        row = file.load("a", key=5)
        corner = file.load("a", key=(slice(0, 2), slice(-2, None)), dtype="bf16")
        whole = file["a"]
        assert "a" in file
        assert "c" not in file
        assert len(file) == 2
        with pytest.raises(KeyError, match="no tensor 'c'"):
            file["c"]
    assert row.tolist() == [1.0] * 4096
    assert (corner.shape, corner.dtype) == ((2, 2), fa.bfloat16)
    path.unlink()
    assert bool(fa.all(whole == 1))
    assert repr(file).endswith("closed>")
    for use in (lambda: file["a"], lambda: file.info("a"), lambda: list(file), lambda: "a" in file):
        with pytest.raises(ValueError, match="the file is closed"):
            use()


def test_what_is_written_never_reaches_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    fa.io.save_safetensors({"x": fa.arange(4)}, path)
    before = path.read_bytes()
    with fa.io.open_safetensors(path) as file:
        first, second = file["x"], file["x"]
        first[0] = 9
        assert second.tolist() == [0, 1, 2, 3]
        exported = second.numpy()
        exported[1] = 7  # exported memory is writable, and private
    assert first.tolist() == [9, 1, 2, 3]
    assert path.read_bytes() == before
    assert fa.io.load_safetensors(path)["x"].tolist() == [0, 1, 2, 3]


def test_floating_tensors_are_converted_and_others_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    fa.io.save_safetensors({"w": fa.asarray([1.5], dtype="bf16"), "i": fa.arange(2), "z": fa.asarray([1j])}, path)
    loaded = fa.io.load_safetensors(path, dtype="f64")
    assert {name: t.dtype for name, t in loaded.items()} == {"w": fa.float64, "i": fa.int64, "z": fa.complex64}
    with pytest.raises(TypeError, match="real floating dtype, got int8"):
        fa.io.load_safetensors(path, dtype="i8")


def test_eight_bit_floats_travel_as_codes(tmp_path: Path) -> None:
    path, codes = tmp_path / "a.safetensors", np.arange(256, dtype=np.uint8)
    fa.io.save_safetensors({"w": codes, "s": fa.ones(1)}, path, codes={"w": "F8_E4M3"})
    with safetensors.safe_open(path, "np") as file:
        assert file.get_slice("w").get_dtype() == "F8_E4M3"
    with fa.io.open_safetensors(path) as ours:
        assert (ours.info("w").format, ours.info("w").dtype) == ("F8_E4M3", None)
        assert ours["s"].item() == 1.0
        with pytest.raises(ValueError, match="holds F8_E4M3, which no dtype describes; codes=True"):
            ours.load("w")
        assert same({"w": ours.load("w", codes=True)}, {"w": codes})
    with pytest.raises(ValueError, match="F8_E4M3"):
        fa.io.load_safetensors(path)


def test_four_bit_floats_are_refused_where_they_are_asked_for(tmp_path: Path) -> None:
    header = {"a": entry("F4", [4], 0, 2), "b": entry("U8", [1], 2, 3)}
    path = write(tmp_path / "a.safetensors", file_of(header, b"abc"))
    with fa.io.open_safetensors(path) as file:
        assert file["b"].tolist() == [ord("c")]
        with pytest.raises(ValueError, match="'a' holds F4, which cannot be loaded"):
            file.load("a", codes=True)


def test_tensors_at_odd_places_are_loaded(tmp_path: Path) -> None:
    header = {"x": entry("U8", [1], 0, 1), "y": entry("BF16", [2], 1, 5), "z": entry("F64", [1], 5, 13)}
    data = b"\1" + np.asarray([1, 2], ml_dtypes.bfloat16).tobytes() + struct.pack("<d", 0.5)
    loaded = fa.io.load_safetensors(write(tmp_path / "a", file_of(header, data)))
    assert [loaded[name].tolist() for name in "xyz"] == [[1], [1.0, 2.0], [0.5]]
    assert all(t.numpy().flags.aligned for t in loaded.values())


# Writing.


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.endswith(".tmp")]


@pytest.mark.parametrize("shards", [None, 8])
@pytest.mark.parametrize("save", ["npz", "safetensors"])
def test_a_failed_save_leaves_the_old_file(
    save: str, shards: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_two(path: Path, value: float) -> None:
        tensors = {"a": fa.full(4, value), "b": fa.full(4, value)}
        if save == "npz":
            fa.io.savez(path, **tensors)
        else:
            fa.io.save_safetensors(tensors, path, max_shard_bytes=shards)

    path, real, calls = tmp_path / "a.safetensors", hostio.bytes_of, []
    write_two(path, 1.0)
    before = {one.name: one.read_bytes() for one in tmp_path.iterdir()}

    def full_disk(array: Any) -> memoryview:
        calls.append(array)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return real(array)

    monkeypatch.setattr(hostio, "bytes_of", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_two(path, 2.0)
    assert {one.name: one.read_bytes() for one in tmp_path.iterdir()} == before


def test_saving_replaces_what_a_link_points_to_and_respects_the_umask(tmp_path: Path) -> None:
    real, link = tmp_path / "real.npz", tmp_path / "link.npz"
    fa.io.savez(real, x=fa.arange(2))
    link.symlink_to(real)
    fa.io.savez(link, x=fa.arange(3))
    assert link.is_symlink()
    assert fa.io.load(real)["x"].size == 3
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    assert real.stat().st_mode == plain.stat().st_mode
    assert not leftovers(tmp_path)


def test_a_file_can_be_saved_over_while_its_tensors_are_in_use(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    fa.io.save_safetensors({"x": fa.arange(1000)}, path)
    loaded = fa.io.load_safetensors(path)
    fa.io.save_safetensors({"x": loaded["x"] + 1, "y": loaded["x"]}, path)
    assert loaded["x"][0].item() == 0
    assert fa.io.load_safetensors(path)["x"][0].item() == 1


def test_equal_tensors_give_equal_files(tmp_path: Path) -> None:
    for save in (fa.io.save_safetensors, lambda tensors, path: fa.io.savez(path, **tensors)):
        written = []
        for name in ("a", "b"):
            save({"x": fa.arange(3), "y": fa.ones(2, dtype="bf16")}, tmp_path / name)
            written.append((tmp_path / name).read_bytes())
        assert written[0] == written[1]


BAD_SAVES: dict[str, tuple[Callable[[Path], object], type[Exception], str]] = {
    "no tensor": (lambda p: fa.io.savez(p, [1, 2]), TypeError, "savez: 'arr_0' must be a Tensor"),
    "name twice": (lambda p: fa.io.savez(p, fa.ones(1), arr_0=fa.ones(1)), ValueError, "given twice"),
    "NUL": (lambda p: fa.io.savez(p, **{"a\0b": fa.ones(1)}), ValueError, "cannot hold the name"),
    "empty name": (lambda p: fa.io.savez(p, **{"": fa.ones(1)}), ValueError, "cannot hold the name"),
    "surrogate": (lambda p: fa.io.savez(p, **{"\ud800": fa.ones(1)}), ValueError, "not valid Unicode"),
    "c128": (lambda p: fa.io.save_safetensors({"x": fa.ones(1, dtype="c128")}, p), TypeError, "'x' is complex128"),
    "list": (lambda p: fa.io.save_safetensors({"x": [1]}, p), TypeError, "'x' must be a Tensor, got list"),
    "reserved": (lambda p: fa.io.save_safetensors({"__metadata__": fa.ones(1)}, p), ValueError, "reserved"),
    "int name": (lambda p: fa.io.save_safetensors({1: fa.ones(1)}, p), TypeError, "names are texts, got int 1"),
    "bad name": (lambda p: fa.io.save_safetensors({"\udfff": fa.ones(1)}, p), ValueError, "not valid Unicode"),
    "metadata": (lambda p: fa.io.save_safetensors({}, p, metadata={"a": 1}), TypeError, "texts to texts"),
    "shard size": (lambda p: fa.io.save_safetensors({}, p, max_shard_bytes=0), ValueError, "at least 1, got 0"),
    "shard type": (lambda p: fa.io.save_safetensors({}, p, max_shard_bytes=1.5), TypeError, "got float 1.5"),
    "code": (
        lambda p: fa.io.save_safetensors({"x": fa.ones(1, dtype="u8")}, p, codes={"x": "F9"}),
        ValueError,
        "not one of",
    ),
    "code dtype": (
        lambda p: fa.io.save_safetensors({"x": fa.ones(1)}, p, codes={"x": "F8_E5M2"}),
        TypeError,
        "must be uint8 to be stored as F8_E5M2, got float32",
    ),
    "code name": (lambda p: fa.io.save_safetensors({}, p, codes={"x": "F8_E5M2"}), ValueError, r"\['x'\]"),
    "no folder": (lambda p: fa.io.savez(p / "no" / "x.npz"), FileNotFoundError, "No such file"),
}


@pytest.mark.parametrize("case", BAD_SAVES)
def test_bad_saves_write_nothing(case: str, tmp_path: Path) -> None:
    call, kind, message = BAD_SAVES[case]
    with pytest.raises(kind, match=message):
        call(tmp_path / "x")
    assert not list(tmp_path.iterdir())


# Damaged and hostile files.


def entry(dtype: Any, shape: Any, *offsets: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": list(offsets)}


def file_of(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


FOUR = entry("F32", [1], 0, 4)
BAD_SAFETENSORS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "0 bytes are too few"),
    "short": (b"\0" * 7, "7 bytes are too few"),
    "no header": (struct.pack("<Q", 0), "begins with b''"),
    "huge header": (file_of({}, length=2**63), "claims 9223372036854775808 bytes; safetensors allows"),
    "cut header": (file_of({}, length=99), "claims 99 bytes, but only 2 follow"),
    "no JSON": (file_of(b"{nonsense"), "the header is not valid"),
    "no object": (file_of(b"[1, 2]"), "begins with b'\\['"),
    "leading space": (file_of(b' {"a": 1}'), "begins with b' '"),
    "no UTF-8": (file_of(b'{"\xff": 1}'), "the header is not valid"),
    "deep": (file_of(b'{"a":' + b"[" * 100_000), "nests too deeply"),
    "NaN": (file_of(b'{"a": NaN}'), "NaN is not JSON"),
    "long number": (file_of(b'{"a": ' + b"9" * 10_000 + b"}"), "the header is not valid"),
    "key twice": (file_of(b'{"a": 1, "a": 1}'), "'a' stands twice"),
    "inner key twice": (file_of(b'{"a": {"dtype": "F32", "dtype": "F32"}}'), "'dtype' stands twice"),
    "surrogate": (file_of(b'{"\\ud800": {}}'), "not valid Unicode"),
    "metadata": (file_of({"__metadata__": {"a": 1}}), "must map names to texts"),
    "metadata list": (file_of({"__metadata__": []}), "must map names to texts"),
    "no entry": (file_of({"a": 5}), "must have dtype, shape and data_offsets, got 5"),
    "missing": (file_of({"a": {"dtype": "F32", "shape": []}}), "must have dtype, shape"),
    "more": (file_of({"a": {**FOUR, "x": 1}}, b"1234"), "must have dtype, shape"),
    "dtype": (file_of({"a": entry("F33", [1], 0, 4)}, b"1234"), "unknown dtype 'F33'"),
    "dtype list": (file_of({"a": entry(["F32"], [1], 0, 4)}, b"1234"), "unknown dtype"),
    "negative length": (file_of({"a": entry("F32", [-1, -1], 0, 4)}, b"1234"), "integers of at least 0"),
    "float length": (file_of({"a": entry("F32", [1.0], 0, 4)}, b"1234"), "integers of at least 0"),
    "bool length": (file_of({"a": entry("F32", [True], 0, 4)}, b"1234"), "integers of at least 0"),
    "many axes": (file_of({"a": entry("F32", [1] * 65, 0, 4)}, b"1234"), "up to 64 integers"),
    "huge": (file_of({"a": entry("F32", [2**40, 2**40], 0, 4)}, b"1234"), "larger than any memory"),
    "huge and empty": (file_of({"a": entry("F32", [0, 2**62], 0, 0)}), "larger than any memory"),
    "overflow": (file_of({"a": entry("F32", [2**62, 4, 1], 0, 0)}), "larger than any memory"),
    "offsets": (file_of({"a": entry("F32", [1], 4, 0)}, b"1234"), "two ordered integers"),
    "three offsets": (file_of({"a": entry("F32", [1], 0, 4, 4)}, b"1234"), "two ordered integers"),
    "negative offset": (file_of({"a": entry("F32", [1], -4, 0)}, b"1234"), "two ordered integers"),
    "size": (file_of({"a": entry("F32", [2], 0, 4)}, b"1234"), "takes 8 bytes, but data_offsets give it 4"),
    "half a byte": (file_of({"a": entry("F4", [1], 0, 0)}), "takes 0.5 bytes"),
    "overlap": (file_of({"a": FOUR, "b": entry("F32", [1], 2, 6)}, b"123456"), "overlaps the tensor before it"),
    "same place": (file_of({"a": FOUR, "b": FOUR}, b"1234"), "overlaps the tensor before it"),
    "gap": (file_of({"a": FOUR, "b": entry("F32", [1], 6, 10)}, b"1234567890"), "leaves a gap before it"),
    "first gap": (file_of({"a": entry("F32", [1], 4, 8)}, b"12345678"), "leaves a gap before it"),
    "cut data": (file_of({"a": FOUR}, b"123"), "take 4 bytes, but 3 follow"),
    "beyond": (file_of({"a": entry("F32", [2**50], 0, 2**52)}, b"1234"), "but 4 follow"),
    "more data": (file_of({"a": FOUR}, b"12345"), "take 4 bytes, but 5 follow"),
    "no boolean": (file_of({"a": entry("BOOL", [2], 0, 2)}, b"\1\2"), "stored as the byte 2"),
}


@pytest.mark.parametrize("case", BAD_SAFETENSORS)
def test_hostile_safetensors_files(case: str, tmp_path: Path) -> None:
    data, message = BAD_SAFETENSORS[case]
    path = write(tmp_path / "hostile.safetensors", data)
    with little_memory(1 << 21), pytest.raises(ValueError, match=message) as caught:
        fa.io.load_safetensors(path)
    assert str(path) in str(caught.value)


def test_the_hostile_files_are_hostile_in_one_thing_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "a", file_of({"a": FOUR, "b": entry("BOOL", [2], 4, 6)}, b"1234\0\1"))
    assert set(fa.io.load_safetensors(path)) == {"a", "b"}


BAD_INDEXES: dict[str, tuple[Any, str]] = {
    "no JSON": (b"{", "the index is not valid"),
    "list": ([], "an object weight_map"),
    "no map": ({"weight_map": []}, "an object weight_map"),
    "parent": ({"weight_map": {"x": "../m.safetensors"}}, "files of an index lie beside it"),
    "absolute": ({"weight_map": {"x": "/etc/m.safetensors"}}, "files of an index lie beside it"),
    "windows": ({"weight_map": {"x": "..\\m.safetensors"}}, "files of an index lie beside it"),
    "drive": ({"weight_map": {"x": "c:m.safetensors"}}, "files of an index lie beside it"),
    "hidden": ({"weight_map": {"x": ".safetensors"}}, "files of an index lie beside it"),
    "NUL": ({"weight_map": {"x": "m\0.safetensors"}}, "files of an index lie beside it"),
    "other file": ({"weight_map": {"x": "passwd"}}, "files of an index lie beside it"),
    "number": ({"weight_map": {"x": 7}}, "files of an index lie beside it"),
    "no tensor": ({"weight_map": {"y": "m.safetensors"}}, "has no such tensor"),
    "twice": (b'{"weight_map": {"x": "m.safetensors", "x": "m.safetensors"}}', "'x' stands twice"),
}


@pytest.mark.parametrize("case", BAD_INDEXES)
def test_hostile_indexes(case: str, tmp_path: Path) -> None:
    content, message = BAD_INDEXES[case]
    fa.io.save_safetensors({"x": fa.ones(1)}, tmp_path / "m.safetensors")
    path = tmp_path / "m.safetensors.index.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(ValueError, match=message) as caught:
        fa.io.load_safetensors(path)
    assert str(path) in str(caught.value)


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {"x": "gone.safetensors"}}))
    with pytest.raises(FileNotFoundError, match=r"gone\.safetensors"):
        fa.io.load_safetensors(path)


def archive(*members: tuple[str, bytes], method: int = zipfile.ZIP_STORED, comment: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", method) as made:
        warnings.simplefilter("ignore", UserWarning)  # a name that is there twice
        for name, data in members:
            info = zipfile.ZipInfo(name)
            info.comment, info.compress_type = comment, method
            made.writestr(info, data)
    return buffer.getvalue()


def npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.asarray(array), allow_pickle=True)
    return buffer.getvalue()


def npy_of(text: bytes, data: bytes = b"", version: bytes = b"\1\0") -> bytes:
    return b"\x93NUMPY" + version + struct.pack("<H" if version[0] == 1 else "<I", len(text)) + text + data


GOOD = npy(np.arange(3.0))
HEADER = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }\n"


def patched(data: bytes, field: str, value: int) -> bytes:
    """*data*, an archive of one member, with another number in its central directory."""
    place = data.index(b"PK\x01\x02") + {"flags": 8, "method": 10, "compressed": 20, "size": 24, "offset": 42}[field]
    width = 2 if field in ("flags", "method") else 4
    return data[:place] + value.to_bytes(width, "little") + data[place + width :]


ONE = archive(("x.npy", GOOD))
BAD_NPZ: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "no .npz archive"),
    "text": (b"hello" * 20, "no .npz archive"),
    "cut": (ONE[:-30], "no .npz archive"),
    "checksum": (ONE.replace(GOOD[-8:], b"\1" * 8), "CRC"),
    "no array": (archive(("x.npy", b"nonsense" * 9)), "begins with b'nonsen'"),
    "nothing": (archive(("x.npy", b"")), "begins with b''"),
    "other member": (archive(("x.txt", b"")), "names of arrays end in .npy"),
    "twice": (archive(("x.npy", GOOD), ("x.npy", GOOD)), "is there twice"),
    "comment": (archive(("x.npy", GOOD), comment=b"dtype=float8"), "says nothing known"),
    "not bfloat16": (archive(("x.npy", GOOD), comment=b"dtype=bfloat16"), "its elements are float64, not uint16"),
    "encrypted": (patched(ONE, "flags", 1), "is encrypted"),
    "method": (patched(ONE, "method", 14), "compression method 14"),
    "lzma": (archive(("x.npy", GOOD), method=zipfile.ZIP_LZMA), "compression method 14"),
    "offset": (patched(ONE, "offset", 2**31), "outside the file|damaged"),
    "claims": (patched(ONE, "size", 2**31), "claims 2147483648 bytes"),
    "claims less": (patched(ONE, "size", 140), "CRC"),
    "ends early": (patched(archive(("x.npy", npy(np.zeros(4))[:-8]), method=8), "size", 160), "ends after 24 of 32"),
    "objects": (archive(("x.npy", npy(np.asarray([{}], dtype=object)))), "pickled Python objects, which are never"),
    "strings": (archive(("x.npy", npy(["a"]))), "holds text"),
    "dates": (archive(("x.npy", npy(np.zeros(2, "M8[s]")))), "holds dates"),
    "void": (archive(("x.npy", npy(np.zeros(2, "V2")))), "holds raw records"),
    "records": (archive(("x.npy", npy(np.zeros(2, [("a", "f4")])))), "not a header"),
    "long double": (archive(("x.npy", npy(np.zeros(2, np.longdouble)))), "elements of an unknown type"),
    "version": (archive(("x.npy", npy_of(HEADER, b"1234", b"\x09\0"))), "has version 9.0"),
    "cut header": (archive(("x.npy", npy_of(HEADER)[:20])), "ends within its header"),
    "long header": (archive(("x.npy", npy_of(b" " * 20_000))), "claims a header of 20000 bytes"),
    "code": (archive(("x.npy", npy_of(b"__import__('os').abort()"))), "not a header"),
    "negative": (archive(("x.npy", npy_of(HEADER.replace(b"1,", b"-1,"), b"1234"))), "not a header"),
    "number": (archive(("x.npy", npy_of(HEADER.replace(b"1,", b"1"), b"1234"))), "not a header"),
    "no shape": (archive(("x.npy", npy_of(b"{'descr': '<f4', 'fortran_order': False}"))), "not a header"),
    "shape twice": (archive(("x.npy", npy_of(HEADER.replace(b"}", b"'shape': (),}"), b"1234"))), "not a header"),
    "huge": (archive(("x.npy", npy_of(HEADER.replace(b"1,", b"9" * 18 + b",9" * 9), b"1234"))), "larger than any"),
    "larger": (archive(("x.npy", npy_of(HEADER.replace(b"1,", b"9" * 12 + b","), b"1234"))), "the member holds 4"),
    "less": (archive(("x.npy", npy_of(HEADER, b"12345"))), "takes 4 bytes, but the member holds 5"),
    "no UTF-8": (archive(("x.npy", npy_of(b"\xff", b"", b"\3\0"))), "not UTF-8"),
    "no boolean": (archive(("x.npy", npy(np.asarray([2], np.uint8).view(bool)))), "stored as the byte 2"),
    "bomb": (
        archive(("x.npy", npy_of(HEADER.replace(b"1,", b"%d," % 2**27), bytes(2**29))), method=8),
        "set max_bytes=",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_NPZ)
def test_hostile_archives(case: str, tmp_path: Path) -> None:
    data, message = BAD_NPZ[case]
    path = write(tmp_path / "hostile.npz", data)
    with little_memory(1 << 21), pytest.raises(ValueError, match=message) as caught:
        fa.io.load_npz(path)
    assert str(path) in str(caught.value)


def test_the_limit_of_an_archive_can_be_set(tmp_path: Path) -> None:
    path = write(tmp_path / "a.npz", archive(("x.npy", npy(np.zeros(10_000))), method=zipfile.ZIP_DEFLATED))
    assert fa.io.load_npz(path, max_bytes=80_128)["x"].size == 10_000
    with pytest.raises(ValueError, match="take 80128 bytes, more than the limit of 80127"):
        fa.io.load_npz(path, max_bytes=80_127)


def test_other_files_are_named(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones(3))
    with pytest.raises(ValueError, match=r"this is one array \(.npy\)"):
        fa.io.load(tmp_path / "a.npy")
    with pytest.raises(ValueError, match="too few for a safetensors file"):
        fa.io.load(write(tmp_path / "b", b""))
    with pytest.raises(FileNotFoundError):
        fa.io.load(tmp_path / "c")


# Random damage: what loads is what is there, anything else is a ValueError, and memory stays small.


def mutated(data: st.DataObject, good: bytes, limit: int) -> bytes:
    """*good* with some bytes changed before *limit*, cut out, repeated or cut off."""
    bad = bytearray(good)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, max(min(limit, len(bad)) - 1, 0)))
        action = data.draw(st.sampled_from(("change", "digit", "cut", "repeat", "end")))
        length = data.draw(st.integers(1, 12))
        if action == "change":
            bad[place : place + 1] = data.draw(st.binary(min_size=1, max_size=1))
        elif action == "digit":
            bad[place : place + 1] = data.draw(st.sampled_from((b"0", b"9", b",", b'"', b"[", b"-", b"e")))
        elif action == "cut":
            del bad[place : place + length]
        elif action == "repeat":
            bad[place:place] = bad[place : place + length]
        else:
            del bad[place:]
    return bytes(bad)


TENSORS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b.c": np.asarray([True, False]),
    "d": np.asarray([1.5, -2.0], ml_dtypes.bfloat16),
    "e": np.zeros((0, 3), np.int64),
    "f": np.asarray(1 + 2j, np.complex64),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A good file of each kind."""
    folder = tmp_path_factory.mktemp("whole")
    fa.io.save_safetensors(TENSORS, folder / "safetensors", metadata={"k": "v"})
    fa.io.savez(folder / "stored", **TENSORS)
    with open(folder / "deflated", "wb") as file:
        np.savez_compressed(file, **{name: array for name, array in TENSORS.items() if name != "d"})
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@settings(shared_folder, max_examples=400)
@given(data=st.data())
def test_damaged_safetensors_files(data: st.DataObject, whole: dict[str, bytes], tmp_path: Path) -> None:
    path, good = tmp_path / "a.safetensors", whole["safetensors"]
    bad = mutated(data, good, 8 + int.from_bytes(good[:8], "little"))
    path.write_bytes(bad)
    with little_memory(1 << 21):
        try:
            with fa.io.open_safetensors(path) as file:
                infos = {name: file.info(name) for name in file}
                loaded = {name: file.load(name, codes=True) for name in file}
        except ValueError as error:
            assert str(path) in str(error)  # noqa: PT017  # that it was raised is not demanded
            return
    start = 8 + int.from_bytes(bad[:8], "little")
    assert sum(info.nbytes for info in infos.values()) == len(bad) - start
    for name, tensor in loaded.items():
        info = infos[name]
        assert hostio.bytes_of(tensor.numpy()) == bad[start + info.start : start + info.stop]
    safetensors.deserialize(bad)  # what we accept, the owners of the format accept


@settings(shared_folder, max_examples=400)
@given(data=st.data(), kind=st.sampled_from(["stored", "deflated"]))
def test_damaged_archives(data: st.DataObject, kind: str, whole: dict[str, bytes], tmp_path: Path) -> None:
    path = write(tmp_path / "a.npz", mutated(data, whole[kind], len(whole[kind])))
    with little_memory(1 << 21):
        try:
            loaded = fa.io.load_npz(path)
        except ValueError as error:
            assert str(path) in str(error)  # noqa: PT017  # that it was raised is not demanded
            return
    assert all(same({name: loaded[name]}, {name: TENSORS[name]}) for name in loaded)


@settings(shared_folder)
@given(junk=st.binary(max_size=200))
@example(junk=b"PK\x05\x06" + bytes(18))
@example(junk=b"PK\x03\x04" + bytes(40))
def test_junk(junk: bytes, tmp_path: Path) -> None:
    path = write(tmp_path / "junk", junk)
    for load in (fa.io.load, fa.io.load_npz, fa.io.load_safetensors):
        try:
            loaded = load(path)
        except ValueError as error:
            assert os.fspath(path) in str(error)  # noqa: PT017  # that it was raised is not demanded
        else:
            assert loaded == {}
