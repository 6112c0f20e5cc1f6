"""Tensors in files: there and back, beside NumPy and the safetensors package, and in parts."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

import ferrum_array as fa
from ferrum_array.backends import hostio
from ferrum_array.io.saving import plan_shards
from tests.array.files import (
    FILES,
    NAMES,
    RAW,
    SAFE,
    SAFE_FILES,
    arrays,
    entry,
    file_of,
    leftovers,
    little_memory,
    same,
    shared_folder,
    write,
)


def test_same_can_fail() -> None:
    one = {"x": np.asarray([0.0, 1.0])}
    assert same(one, one)
    assert not same(one, {"y": one["x"]})
    assert not same(one, {"x": -one["x"]})
    assert not same(one, {"x": one["x"].astype(np.float32)})
    assert not same(one, {"x": one["x"].reshape(2, 1)})


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
    "no folder": (lambda p: fa.io.savez(p / "no" / "x.npz"), FileNotFoundError, "no such folder"),
}


@pytest.mark.parametrize("case", BAD_SAVES)
def test_bad_saves_write_nothing(case: str, tmp_path: Path) -> None:
    call, kind, message = BAD_SAVES[case]
    with pytest.raises(kind, match=message):
        call(tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_a_file_that_somebody_else_has_open_is_left_open(tmp_path: Path) -> None:
    path = tmp_path / "theirs"
    path.write_bytes(b"abc")
    with path.open("rb") as theirs:
        for load in (fa.io.load, fa.io.load_npz, fa.io.load_safetensors):
            with pytest.raises(TypeError, match=r"os\.PathLike object, (got|not) int"):
                load(theirs.fileno())  # type: ignore[operator]  # wrong on purpose
        assert theirs.read() == b"abc"
