"""What the namespace can do: the inspection API of the array API standard."""

from __future__ import annotations

from ferrum_array.device import Device, devices, get_default_device
from ferrum_array.dtype import Dtype, isdtype

__all__ = ["__array_namespace_info__"]


class Info:
    """Capabilities, devices and dtypes of ``ferrum_array`` (array API standard, inspection)."""

    __slots__ = ()

    def capabilities(self) -> dict[str, bool | int | None]:
        """Boolean indexing and data-dependent shapes work; tensors may have up to 64 axes (NumPy's limit)."""
        return {"boolean indexing": True, "data-dependent shapes": True, "max dimensions": 64}

    def default_device(self) -> Device:
        """The device of new tensors."""
        return get_default_device()

    def default_dtypes(self, *, device: Device | str | None = None) -> dict[str, Dtype]:
        """The default dtypes: the same on every device, so that one program means one thing everywhere."""
        if device is not None:
            Device(device)
        return {"real floating": Dtype.F32, "complex floating": Dtype.C64, "integral": Dtype.I64, "indexing": Dtype.I64}

    def dtypes(
        self, *, device: Device | str | None = None, kind: str | tuple[str, ...] | None = None
    ) -> dict[str, Dtype]:
        """The standard's dtypes that *device* has, by name; only those of *kind* if one is given (see ``isdtype``)."""
        where = get_default_device() if device is None else Device(device)
        return {
            dtype.standard_name: dtype
            for dtype in Dtype.all()
            if dtype is not Dtype.BF16 and dtype is not Dtype.F16  # not the standard's
            and where.supports(dtype) and (kind is None or isdtype(dtype, kind))
        }  # fmt: skip

    def devices(self) -> tuple[Device, ...]:
        """Every device that can be used."""
        return devices()


def __array_namespace_info__() -> Info:
    """The inspection object of the namespace.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.__array_namespace_info__().default_dtypes()["real floating"]
        ferrum_array.float32
    """
    return Info()
