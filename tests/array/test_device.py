"""Device: one object per device, its names, the default and its scopes, and libraries that are missing."""

from __future__ import annotations

import asyncio
import contextvars
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import ferrum_array as fa

CPU = fa.Device("cpu")


@pytest.fixture
def other() -> Iterator[fa.Device]:
    """A second device, whose memory is the host's too: what is default can be told from what is not."""
    device = fa.Device("cuda:7")
    object.__setattr__(device, "_backend", CPU.backend)
    yield device
    object.__setattr__(device, "_backend", None)
    assert fa.get_default_device() is CPU


def python(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize(
    ("spelling", "name", "kind", "index"),
    [
        ("cpu", "cpu", "cpu", 0),
        ("cuda", "cuda:0", "cuda", 0),
        ("cuda:0", "cuda:0", "cuda", 0),
        ("cuda:12", "cuda:12", "cuda", 12),
        ("mlx:cpu", "mlx:cpu", "mlx", "cpu"),
        ("mlx:gpu", "mlx:gpu", "mlx", "gpu"),
        ("metal", "mlx:gpu", "mlx", "gpu"),
    ],
)
def test_names(spelling: str, name: str, kind: str, index: int | str) -> None:
    device = fa.Device(spelling)
    assert (str(device), device.kind, device.index) == (name, kind, index)
    assert repr(device) == f"Device({name!r})"
    assert device is fa.Device(name) is fa.Device(device)
    assert pickle.loads(pickle.dumps(device)) is device
    assert {device: 1}[fa.Device(spelling)] == 1


@pytest.mark.parametrize("bad", ["", "gpu", "CPU", "cpu:1", "cuda:", "cuda:x", "cuda:-1", "mlx:2", "cpu ", "cuda:0:1"])
def test_names_of_nothing(bad: str) -> None:
    with pytest.raises(ValueError, match=r"no device is called .*write 'cpu', 'cuda'") as caught:
        fa.Device(bad)
    assert repr(bad) in str(caught.value)
    with pytest.raises(ValueError, match="no device is called"):
        fa.zeros(2, device=bad)


@pytest.mark.parametrize("bad", [None, 5, ("cuda", 0), object()])
def test_devices_are_named_by_text(bad: Any) -> None:
    with pytest.raises(TypeError, match="a device is given as"):
        fa.Device(bad)


def test_frozen() -> None:
    for attribute in ("name", "kind", "new"):
        with pytest.raises(AttributeError):
            setattr(CPU, attribute, "x")
        with pytest.raises(AttributeError):
            delattr(CPU, attribute)
    assert CPU.name == "cpu"


def test_capabilities_are_data(device: fa.Device) -> None:
    assert device in fa.devices()
    assert device.dtypes <= set(fa.Dtype.all())
    for dtype in fa.Dtype.all():
        assert device.supports(dtype) == (dtype in device.dtypes)
        if device.supports(dtype):
            assert fa.zeros(2, dtype=dtype, device=device).dtype is dtype
        else:
            with pytest.raises(TypeError, match=f"has no {dtype}"):
                fa.zeros(2, dtype=dtype, device=device)


def test_the_cpu_has_every_dtype_and_comes_first() -> None:
    assert fa.devices()[0] is CPU
    assert CPU.dtypes == set(fa.Dtype.all())


def test_default_dtypes_are_one_everywhere(device: fa.Device) -> None:
    with fa.default_device(device):
        assert fa.zeros(1).dtype is fa.float32
        assert fa.asarray(1).dtype is fa.int64
        assert fa.asarray(1j).dtype is fa.complex64
        for made in (fa.zeros(1), fa.asarray(1), fa.arange(2), fa.eye(2), fa.linspace(0, 1, 2)):
            assert made.device is device


def test_contexts_nest(other: fa.Device) -> None:
    with fa.default_device(other) as given:
        assert given is other
        assert fa.zeros(1).device is other
        with fa.default_device("cpu"):
            assert fa.zeros(1).device is CPU
            with fa.default_device(other):
                assert fa.get_default_device() is other
            assert fa.get_default_device() is CPU
        assert fa.zeros(1).device is other
        assert fa.zeros(1, device="cpu").device is CPU
    assert fa.zeros(1).device is CPU


def test_contexts_end_at_exceptions(other: fa.Device) -> None:
    with pytest.raises(KeyError), fa.default_device(other):
        raise KeyError
    assert fa.get_default_device() is CPU
    with pytest.raises(ValueError, match="no device"), fa.default_device("nowhere"):
        pytest.fail("the block must not run")
    assert fa.get_default_device() is CPU


def test_set_default_device(other: fa.Device) -> None:
    fa.set_default_device(other)
    try:
        assert fa.zeros(1).device is other
        with fa.default_device("cpu"):
            assert fa.zeros(1).device is CPU
        assert fa.zeros(1).device is other
        with pytest.raises(ValueError, match="no device"):
            fa.set_default_device("nowhere")
        assert fa.get_default_device() is other
    finally:
        fa.set_default_device("cpu")


def test_contexts_belong_to_a_thread(other: fa.Device) -> None:
    seen: list[fa.Device] = []
    inside, seen_inside = threading.Event(), threading.Event()

    def there() -> None:
        with fa.default_device(other):
            inside.set()
            assert seen_inside.wait(10)
            seen.append(fa.get_default_device())

    thread = threading.Thread(target=there)
    thread.start()
    assert inside.wait(10)
    seen.append(fa.get_default_device())
    seen_inside.set()
    thread.join()
    assert seen == [CPU, other]


def test_contexts_belong_to_a_task(other: fa.Device) -> None:
    async def enter(device: fa.Device, gate: asyncio.Barrier) -> fa.Device:
        with fa.default_device(device):
            await gate.wait()  # both tasks are inside their blocks now
            return fa.zeros(1).device

    async def both() -> list[fa.Device]:
        gate = asyncio.Barrier(2)
        found = await asyncio.gather(enter(other, gate), enter(CPU, gate))
        assert fa.get_default_device() is CPU
        return found

    assert asyncio.run(both()) == [other, CPU]


def test_a_copied_context_inherits(other: fa.Device) -> None:
    with fa.default_device(other):
        context = contextvars.copy_context()
    assert context.run(fa.get_default_device) is other
    assert fa.get_default_device() is CPU


@pytest.mark.parametrize(("name", "library", "extra"), [("cuda", "cupy", "cuda"), ("mlx:cpu", "mlx", "mlx")])
def test_a_missing_library_names_the_extra(name: str, library: str, extra: str) -> None:
    script = (
        "import sys\n"
        f"sys.modules[{library!r}] = None\n"
        "import ferrum_array as fa\n"
        f"assert all(d.kind != {extra!r} for d in fa.devices())\n"
        f"device = fa.Device({name!r})  # naming it needs nothing\n"
        "for use in (lambda: fa.zeros(2, device=device), lambda: fa.set_default_device(device),\n"
        "            lambda: fa.ones(1).to_device(device), lambda: device.dtypes):\n"
        "    try: use()\n"
        "    except ImportError as error: print(error)\n"
        "assert fa.zeros(1).device.name == 'cpu'\n"
    )
    done = python(script)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 4
    for line in lines:
        assert f"pip install 'ferrum[{extra}]'" in line
        assert library in line


def test_the_environment_names_the_default(device: fa.Device) -> None:
    script = "import ferrum_array as fa; print(fa.zeros(2).device, fa.get_default_device())"
    done = python(script, FERRUM_DEVICE=str(device))
    assert done.stdout.split() == [str(device)] * 2, done.stderr
    done = python(script, FERRUM_DEVICE="nowhere")
    assert done.returncode != 0
    assert "no device is called 'nowhere'" in done.stderr


def test_to_device(device: fa.Device) -> None:
    x = fa.asarray([[1.5, 2.0], [3.0, 4.0]])
    there = x.to_device(device)
    assert there.device is device
    assert there.tolist() == x.tolist()
    assert there.to_device(device) is there
    assert there.to_device("cpu").device is CPU
    assert fa.asarray(x, device=device).device is device
    assert x.astype("f16", device=device).device is device


def test_mixed_devices_are_refused(other: fa.Device) -> None:
    here, there = fa.ones(2), fa.ones(2, device=other)
    calls: dict[str, Any] = {
        "add": lambda: here + there,
        "matmul": lambda: here @ there,
        "where": lambda: fa.where(here > 0, there, here),
        "concat": lambda: fa.concat([here, there]),
        "setitem": lambda: here.__setitem__(0, there[0]),
        "take": lambda: fa.take(here, fa.zeros(1, dtype="i64", device=other)),
    }
    for name, call in calls.items():
        with pytest.raises(ValueError, match=r"cpu.*cuda:7|cuda:7.*cpu") as caught:
            call()
        assert name in str(caught.value)
    with pytest.raises(ValueError, match=r"cuda:7|cpu"):
        here[fa.zeros(1, dtype="i64", device=other)]
    assert here.tolist() == [1.0, 1.0]
    assert (here * 2.0).device is CPU
    assert (2.0 * there).device is other
