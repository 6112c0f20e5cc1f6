"""Damaged and hostile files of tensors: each is refused, names what is wrong, and takes little memory."""

from __future__ import annotations

import io
import json
import os
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import example, given, settings
from hypothesis import strategies as st

import ferrum_array as fa
from ferrum_array.backends import hostio
from tests.array.files import (
    entry,
    file_of,
    little_memory,
    same,
    shared_folder,
    write,
)

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
