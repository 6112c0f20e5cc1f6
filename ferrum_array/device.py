"""Devices: where a tensor's memory lies and which library computes there; the current default device."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import ClassVar, final

from ferrum_array import backends
from ferrum_array.backends import Backend
from ferrum_array.dtype import Dtype

__all__ = ["Device", "default_device", "devices", "get_default_device", "set_default_device"]

_FORMS = "'cpu', 'cuda', 'cuda:N', 'mlx', 'mlx:cpu', 'mlx:gpu' or 'metal'"


@final
class Device:
    """A device: kind ``cpu`` (NumPy), ``cuda`` (CuPy) or ``mlx`` (MLX), and which one of that kind.

    There is one object per device, so ``is`` compares them. ``"cuda"`` means ``"cuda:0"``; ``"mlx"`` the GPU where MLX
    has one, else its CPU; ``"metal"`` is MLX's GPU. Making a Device loads nothing but what ``"mlx"`` must ask; its
    library is loaded at first use.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.Device("cpu"), fa.Device("cuda") is fa.Device("cuda:0")
        (Device('cpu'), True)
        >>> fa.Device("cpu").supports(fa.complex128)
        True

    Raises:
        ValueError: for a string that names no device.
    """

    __slots__ = ("_backend", "index", "kind", "name")

    kind: str
    index: int | str
    name: str
    _backend: Backend | None

    _known: ClassVar[dict[str, Device]] = {}

    def __new__(cls, spec: Device | str) -> Device:
        if isinstance(spec, Device):
            return spec
        if not isinstance(spec, str):
            raise TypeError(f"a device is given as a Device or as {_FORMS}, got {type(spec).__name__} {spec!r}")
        known = cls._known.get(spec)
        if known is not None:
            return known
        kind, _, index = spec.partition(":")
        if spec == "metal":
            kind, index = "mlx", "gpu"
        elif spec == "mlx":
            index = "gpu" if "gpu" in backends.available("mlx") else "cpu"
        elif kind == "cuda" and spec == "cuda":
            index = "0"
        if spec == "cpu":
            return cls._intern("cpu", 0, "cpu")
        if kind == "cuda" and index.isdecimal():
            return cls._intern("cuda", int(index), f"cuda:{int(index)}")
        if kind == "mlx" and index in ("cpu", "gpu"):
            return cls._intern("mlx", index, f"mlx:{index}")
        raise ValueError(f"no device is called {spec!r:.60}; write {_FORMS}")

    @classmethod
    def _intern(cls, kind: str, index: int | str, name: str) -> Device:
        device = cls._known.get(name)
        if device is None:
            device = object.__new__(cls)
            for attribute, value in (("kind", kind), ("index", index), ("name", name), ("_backend", None)):
                object.__setattr__(device, attribute, value)
            device = cls._known.setdefault(name, device)
        return device

    def __setattr__(self, attribute: str, value: object) -> None:
        raise AttributeError(f"a Device is frozen: {attribute} of {self.name} cannot be set")

    def __delattr__(self, attribute: str) -> None:
        raise AttributeError(f"a Device is frozen: {attribute} of {self.name} cannot be deleted")

    def __repr__(self) -> str:
        return f"Device({self.name!r})"

    def __str__(self) -> str:
        return self.name

    def __reduce__(self) -> tuple[type[Device], tuple[str]]:
        return (Device, (self.name,))

    @property
    def backend(self) -> Backend:
        """The storage library's services on this device, loaded at first use."""
        backend = self._backend
        if backend is None:
            backend = backends.load(self.kind, self.index)
            object.__setattr__(self, "_backend", backend)
        return backend

    @property
    def dtypes(self) -> frozenset[Dtype]:
        """The dtypes that tensors on this device can have."""
        return self.backend.dtypes

    @property
    def captures(self) -> bool:
        """Whether ``capture`` makes graphs on this device; elsewhere a captured function is called as it is."""
        return self.backend.records

    def supports(self, dtype: Dtype) -> bool:
        """Whether tensors of *dtype* can be made on this device."""
        return dtype in self.backend.dtypes


CPU = Device("cpu")

# FERRUM_DEVICE lets a whole program, such as a test suite, run on another device unchanged.
_initial: Device = Device(os.environ.get("FERRUM_DEVICE", "cpu"))
# Programs that try every device there is can be limited to some.
_visible = tuple(Device(name).name for name in os.environ.get("FERRUM_VISIBLE_DEVICES", "").split(",") if name)
_default: ContextVar[Device | None] = ContextVar("ferrum_array.default_device", default=None)


def get_default_device() -> Device:
    """The device on which tensors are made when none is named: the context's, else the process's.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.get_default_device()
        Device('cpu')
    """
    return _default.get() or _initial


def set_default_device(device: Device | str) -> None:
    """Make *device* the process's default, wherever no ``with default_device(...)`` is in force.

    The library of the device is loaded at once, so that a missing one is reported here.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.set_default_device("cpu")

    Raises:
        ValueError: for an unknown device. ImportError: if its library is not installed.
    """
    global _initial
    chosen = Device(device)
    _ = chosen.backend
    _initial = chosen


@contextmanager
def default_device(device: Device | str) -> Iterator[Device]:
    """Use *device* as the default inside a ``with`` block, for the current thread and task only.

    Examples:
        >>> import ferrum_array as fa
        >>> with fa.default_device("cpu") as device:
        ...     fa.zeros(2).device is device
        True
    """
    chosen = Device(device)
    _ = chosen.backend
    token = _default.set(chosen)
    try:
        yield chosen
    finally:
        _default.reset(token)


def devices() -> tuple[Device, ...]:
    """Every device that can be used here and now, the CPU first.

    The environment variable ``FERRUM_VISIBLE_DEVICES``, names with commas between them, limits the answer.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.devices()[0]
        Device('cpu')
    """
    others = (Device(f"{kind}:{index}") for kind in ("cuda", "mlx") for index in backends.available(kind))
    return tuple(one for one in (CPU, *others) if not _visible or one.name in _visible)
