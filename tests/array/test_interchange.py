"""How tensors meet other libraries and files: NumPy, DLPack, buffers, pickle and copies."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import ferrum_array as fa
from ferrum_array.testing import assert_equal, dtypes, tensors
from tests.array.oracle import ALL, NP, check, to_numpy

CPU = fa.Device("cpu")
STANDARD = [d for d in ALL if d is not fa.bfloat16]  # what NumPy's DLPack describes


def address(array: Any) -> int:
    return int(array.__array_interface__["data"][0])


def same_bits(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


# NumPy.


@given(tensors())
def test_asarray_shares_memory(x: fa.Tensor) -> None:
    array = np.asarray(x)
    assert type(array) is np.ndarray
    assert array.dtype == NP[x.dtype]
    assert np.may_share_memory(array, x.numpy()) or x.size == 0
    assert same_bits(array, to_numpy(x))
    assert array.flags.writeable or 0 in array.strides


@pytest.mark.parametrize("dtype", ALL)
def test_numpy_round_trip(dtype: fa.Dtype) -> None:
    @given(tensors(dtype))
    def property_(x: fa.Tensor) -> None:
        back = fa.asarray(np.asarray(x))
        assert back.dtype is dtype
        assert same_bits(to_numpy(back), to_numpy(x))
        assert address(back.numpy()) == address(x.numpy()) or x.size == 0

    property_()


def test_copy_argument_of_numpy() -> None:
    x = fa.ones(3)
    assert address(np.asarray(x, copy=False)) == address(x.numpy())
    assert address(np.array(x, copy=True)) != address(x.numpy())
    assert address(x.numpy(copy=True)) != address(x.numpy())
    assert address(x.numpy(copy=False)) == address(x.numpy())
    assert np.asarray(x, dtype="f8").dtype == "f8"
    # from Python 3.12 on NumPy takes the buffer first, and the words are its own
    with pytest.raises(ValueError, match=r"float32\[3\].*float64.*copy=False|avoid copy"):
        np.asarray(x, dtype="f8", copy=False)


def test_copy_argument_of_asarray() -> None:
    array = np.ones(3, "f4")
    assert address(fa.asarray(array).numpy()) == address(array)
    assert address(fa.asarray(array, copy=False).numpy()) == address(array)
    assert address(fa.asarray(array, copy=True).numpy()) != address(array)
    with pytest.raises(ValueError, match="copy=False"):
        fa.asarray(array, dtype="f64", copy=False)
    for built in ([1, 2], 3, range(3), (1.0,)):
        with pytest.raises(ValueError, match="copy=False"):
            fa.asarray(built, copy=False)
    x = fa.ones(2)
    assert fa.asarray(x) is x
    assert fa.asarray(x, copy=False) is x
    assert fa.asarray(x, dtype="f32") is x
    assert fa.asarray(x, copy=True) is not x


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12).reshape(3, 4).T,
        np.arange(12)[::-2],
        np.broadcast_to(np.arange(3), (4, 3)),
        np.arange(6, dtype=">i4"),
        np.arange(3, dtype=">f8"),
        np.asarray(5),
        np.float16(1.5),
        np.zeros((2, 0, 3)),
        np.lib.stride_tricks.as_strided(np.arange(4), writeable=False),
        np.frombuffer(b"\x01\x02\x03\x04", "u1")[1:],
        np.frombuffer(b"\0" + np.arange(3, dtype="i4").tobytes(), "i4", offset=1),
    ],
)
def test_arrays_of_every_layout(array: np.ndarray[Any, Any]) -> None:
    x = fa.asarray(array)
    before = np.array(array)
    check(x, before, fa.Dtype(array.dtype.newbyteorder("=")))
    if x.size:
        x[...] = 1
        assert np.array_equal(array, before)
        assert (to_numpy(x) == 1).all()


@pytest.mark.parametrize(
    ("obj", "words"),
    [
        (np.asarray(["a"]), "<U1"),
        (np.asarray([None]), "dtype('O')"),
        (np.asarray(["2020-01-01"], "M8[D]"), "M8"),
        (np.asarray([1], "m8[s]"), "m8"),
        (np.zeros(2, [("a", "i4")]), "'a'"),
        (np.longdouble(1), "128"),
        (np.ma.masked_array([1, 2], [True, False]), "masked"),
        ({1: 2}, ""),
        ({1, 2}, ""),
        (object(), ""),
        ((n for n in [1]), ""),
        ([1, "a"], "list"),
        ([None], "list"),
        (None, "NoneType"),
        ("12", "str"),
        (b"12", "bytes"),
    ],
)
def test_what_holds_no_numbers(obj: Any, words: str) -> None:
    with pytest.raises(TypeError) as caught:
        fa.asarray(obj)
    assert words in str(caught.value)
    assert len(str(caught.value)) > 20


def test_buffers() -> None:
    import array

    assert_equal(fa.asarray(array.array("d", [1, 2])), fa.asarray([1.0, 2.0], dtype="f64"))
    assert_equal(fa.asarray(bytearray(b"ab")), fa.asarray([97, 98], dtype="u8"))
    assert_equal(fa.asarray(memoryview(b"ab")), fa.asarray([97, 98], dtype="u8"))
    buffer = bytearray(b"ab")
    x = fa.asarray(buffer)
    x[0] = 0
    assert buffer == b"ab"


def test_sequences_that_hold_tensors() -> None:
    one, two = fa.asarray([1, 2]), fa.asarray([3, 4])
    assert_equal(fa.asarray([one, two]), [[1, 2], [3, 4]])
    assert_equal(fa.asarray((one, [5, 6])), [[1, 2], [5, 6]])
    assert_equal(fa.asarray([[5, 6], one]), [[5, 6], [1, 2]])
    assert_equal(fa.asarray([[one[0], 7], [8, 9]]), [[1, 7], [8, 9]])
    assert_equal(fa.asarray([one, fa.asarray([1.5, 2.5])]), fa.asarray([[1, 2], [1.5, 2.5]]))
    assert_equal(fa.asarray([one], dtype="i8"), fa.asarray([[1, 2]], dtype="i8"))
    for ragged in ([one, fa.asarray([1])], [one, [1]], [one, 3]):
        with pytest.raises(ValueError, match="asarray"):
            fa.asarray(ragged)


# DLPack.


@pytest.mark.parametrize("dtype", STANDARD)
def test_dlpack_to_numpy_and_back(dtype: fa.Dtype) -> None:
    @given(tensors(dtype, (2, 3)))
    def property_(x: fa.Tensor) -> None:
        array = np.from_dlpack(x)
        assert same_bits(array, to_numpy(x))
        assert address(array) == address(x.numpy())
        back = fa.from_dlpack(array)
        assert back.dtype is dtype
        assert same_bits(to_numpy(back), to_numpy(x))
        assert address(back.numpy()) == address(array)

    property_()


TORCH = {
    **{d: getattr(torch, d.standard_name) for d in ALL if d not in (fa.bfloat16,)},
}


@pytest.mark.parametrize("dtype", STANDARD)
def test_dlpack_to_torch_and_back(dtype: fa.Dtype) -> None:
    @given(tensors(dtype, (2, 3), views=False))
    def property_(x: fa.Tensor) -> None:
        there = torch.from_dlpack(x)
        assert there.dtype is TORCH[dtype]
        assert same_bits(there.numpy(), to_numpy(x))
        back = fa.from_dlpack(there)
        assert back.dtype is dtype
        assert same_bits(to_numpy(back), to_numpy(x))
        taken = fa.asarray(there)
        assert address(taken.numpy()) == there.data_ptr()

    property_()


@given(tensors(fa.bfloat16, (2, 3), views=False))
def test_bfloat16_through_dlpack_keeps_memory_and_bits(x: fa.Tensor) -> None:
    """NumPy's DLPack has no bfloat16: the capsule's type is changed on the way."""
    there = torch.from_dlpack(x)
    assert there.dtype is torch.bfloat16
    assert same_bits(there.view(torch.int16).numpy(), to_numpy(x).view(np.int16))
    for take in (fa.from_dlpack, fa.asarray):
        back = take(there)
        assert back.dtype is fa.bfloat16
        assert same_bits(to_numpy(back), to_numpy(x))
        assert address(back.numpy()) == there.data_ptr()
    copied = fa.from_dlpack(there, copy=True)
    assert address(copied.numpy()) != there.data_ptr() or not x.size


def test_bfloat16_through_dlpack_of_either_version() -> None:
    x = fa.asarray([1.5, -2.0], dtype="bf16")
    for version in (None, (1, 0)):

        class Old:
            def __dlpack__(self, **_: object) -> object:
                return x.__dlpack__(max_version=version)  # noqa: B023  # it is used in this turn of the loop

            def __dlpack_device__(self) -> tuple[int, int]:
                return x.__dlpack_device__()

        assert fa.from_dlpack(Old()).dtype is fa.bfloat16
        assert torch.from_dlpack(Old()).tolist() == [1.5, -2.0]
    with pytest.raises(RuntimeError, match="Unsupported dtype"):  # NumPy itself has no bfloat16
        np.from_dlpack(x)


def test_dlpack_devices_and_versions() -> None:
    x = fa.ones(2)
    assert x.__dlpack_device__() == (1, 0)
    for version in (None, (0, 8), (1, 0), (1, 1), (9, 0)):
        capsule = x.__dlpack__(max_version=version)
        kind = "dltensor" if version is None or version < (1, 0) else "dltensor_versioned"
        assert f'"{kind}"' in repr(capsule)
    assert '"dltensor' in repr(x.__dlpack__(dl_device=(1, 0)))
    with pytest.raises(BufferError, match=r"float32\[2\]"):
        x.__dlpack__(dl_device=(2, 0))
    with pytest.raises(ValueError, match="stream"):
        x.__dlpack__(stream=3)


def test_dlpack_copies() -> None:
    x = fa.ones(2)
    assert address(np.from_dlpack(x, copy=True)) != address(x.numpy())
    assert address(np.from_dlpack(x, copy=False)) == address(x.numpy())
    array = np.ones(2)
    assert address(fa.from_dlpack(array, copy=True).numpy()) != address(array)
    assert address(fa.from_dlpack(array, copy=False).numpy()) == address(array)
    assert fa.from_dlpack(array, device="cpu").device is CPU


def test_dlpack_of_read_only_memory() -> None:
    frozen = fa.broadcast_to(fa.ones(1), (3,))
    array = np.from_dlpack(frozen)  # NumPy asks for version 1, which can say "read-only"
    assert not array.flags.writeable
    assert array.tolist() == [1.0, 1.0, 1.0]
    capsule = frozen.__dlpack__(max_version=(0, 8))
    assert "dltensor" in repr(capsule)
    with pytest.raises(BufferError, match="read-only"):
        frozen.__dlpack__(max_version=(0, 8), copy=False)
    source = np.lib.stride_tricks.as_strided(np.ones(3), writeable=False)
    x = fa.from_dlpack(source)
    x[0] = 5
    assert (source.tolist(), x.tolist()) == ([1.0, 1.0, 1.0], [5.0, 1.0, 1.0])


def test_what_has_no_dlpack() -> None:
    for bad in (3, [1], object(), "a", None):
        with pytest.raises(TypeError, match=r"from_dlpack: .* asarray\(\)"):
            fa.from_dlpack(bad)
    with pytest.raises((BufferError, RuntimeError)):
        fa.from_dlpack(torch.ones(2, requires_grad=True))


def test_memory_outlives_its_owner() -> None:
    array = np.from_dlpack(fa.full((1000,), 7.0))
    x = fa.from_dlpack(torch.full((1000,), 7.0))
    junk = [fa.zeros(1000) for _ in range(20)]
    assert len(junk) == 20
    assert (array == 7).all()
    assert bool((x == 7).all())


# Buffers.

FORMATS = {
    "bool": "?",
    "int8": "b",
    "int16": "h",
    "int32": "i",
    "int64": "l",
    "uint8": "B",
    "uint16": "H",
    "uint32": "I",
    "uint64": "L",
    "float16": "e",
    "float32": "f",
    "float64": "d",
    "complex64": "Zf",
    "complex128": "Zd",
}


@pytest.mark.skipif(sys.version_info < (3, 12), reason="Python 3.11 asks no class for a buffer")
@pytest.mark.parametrize("dtype", STANDARD)
def test_buffer_protocol(dtype: fa.Dtype) -> None:
    x = fa.ones((2, 3), dtype=dtype)
    view = memoryview(x)
    assert (view.shape, view.format) == ((2, 3), FORMATS[dtype.standard_name])
    assert view.nbytes == x.nbytes
    assert np.asarray(view).dtype == NP[dtype]


def test_buffers_that_cannot_be(device: fa.Device) -> None:
    x = fa.ones(2, dtype="bf16", device=device)
    with pytest.raises(BufferError, match=r"bfloat16\[2\].*numpy\(\)"):
        x.__buffer__(0)


# Pickle and copies.


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickle_keeps_every_bit(protocol: int) -> None:
    @given(tensors())
    def property_(x: fa.Tensor) -> None:
        y = pickle.loads(pickle.dumps(x, protocol))
        assert (y.dtype, y.device, y.shape) == (x.dtype, x.device, x.shape)
        assert same_bits(to_numpy(y), to_numpy(x))
        y[...] = True  # it can be written

    property_()


@given(dtypes("real floating"), st.data())
def test_pickle_keeps_nan_payloads(dtype: fa.Dtype, data: st.DataObject) -> None:
    bits = data.draw(st.lists(st.integers(0, 2**dtype.bits - 1), min_size=1, max_size=4))
    raw = np.asarray(bits, f"u{dtype.bytes_per_elem}").view(NP[dtype])
    back = pickle.loads(pickle.dumps(fa.asarray(raw)))
    assert to_numpy(back).tobytes() == raw.tobytes()


def test_pickle_in_another_process() -> None:
    x = fa.asarray([1.5, float("nan")], dtype="bf16")
    script = (
        "import pickle, sys; x = pickle.loads(bytes.fromhex(sys.argv[1]))\n"
        "import ferrum_array as fa; assert x.dtype is fa.bfloat16; print(x.tolist())"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, pickle.dumps(x).hex()],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "[1.5, nan]\n", done.stderr


def test_a_pickle_of_a_part_is_small() -> None:
    assert len(pickle.dumps(fa.zeros(100_000)[:3])) < 1000


@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy, lambda x: x.copy()])
def test_copies_have_memory_of_their_own(make: Any, device: fa.Device) -> None:
    x = fa.asarray([[1, 2], [3, 4]], device=device)
    y = make(x)
    y[0, 0] = 9
    assert (x[0, 0].item(), y[0, 0].item(), y.device) == (1, 9, device)
    assert [t.tolist() for t in copy.deepcopy([x, x])] == [x.tolist()] * 2


def test_deep_copies_keep_identity_inside() -> None:
    x = fa.ones(2)
    one, two = copy.deepcopy([x, x])
    one[0] = 5
    assert two is one
