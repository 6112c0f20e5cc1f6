"""How a tensor meets the rest of Python: NumPy, DLPack, buffers, pickle, copies, and its display."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from ferrum_array.dtype import Dtype
from ferrum_array.formatting import represent
from ferrum_array.names import UFUNCS
from ferrum_array.spec import Spec

if TYPE_CHECKING:
    from ferrum_array.tensor import Tensor

__all__ = ["Interchange", "restore"]


class Interchange:
    """The part of :class:`ferrum_array.Tensor` that faces other libraries."""

    __slots__ = ()

    _data: Any
    _spec: Spec

    if TYPE_CHECKING:

        def copy(self) -> Tensor: ...
        def _summary(self) -> str: ...

    def numpy(self, *, copy: bool | None = None) -> Any:
        """The elements as a ``numpy.ndarray`` (bfloat16 with the dtype of ``ml_dtypes``).

        On NumPy storage the array shares the tensor's memory unless ``copy=True``. Writes of Ferrum then copy first and
        so do not reach the array, but what is written through the array is seen by the tensor. From other devices it
        is a copy; on MLX ``copy=False`` gives the tensor's memory itself, which can only be read.

        Raises:
            ValueError: if ``copy=False`` and the elements lie on a device whose memory NumPy cannot address.

        Examples:
            >>> import ferrum_array as fa
            >>> fa.arange(3).numpy()
            array([0, 1, 2])
        """
        backend = self._spec.device.backend
        return backend.to_host(self._data, copy=True if copy is None and not backend.views else copy)

    def __array__(self, dtype: Any = None, *, copy: bool | None = None) -> Any:
        if self._spec.device.kind == "cuda":
            raise TypeError(
                f"{self._summary()} is not copied to the host implicitly; write t.numpy(), or t.to_device('cpu')"
            )
        array = self._spec.device.backend.to_host(self._data, copy=None)
        if dtype is None or array.dtype == dtype:
            return self.numpy(copy=copy)
        if copy is False:
            raise ValueError(f"converting {self._summary()} to {dtype} needs a copy, but copy=False was given")
        return array.astype(dtype)

    @property
    def __numpy_dtype__(self) -> Any:
        """NumPy's dtype of the elements, for ``numpy.result_type`` and others that ask no more than that."""
        return self._spec.dtype.__numpy_dtype__

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        """NumPy's ufuncs on tensors give tensors: by the function of ours, or on the host for those we do not have."""
        fa = sys.modules[__package__]
        function = getattr(fa, UFUNCS.get(ufunc.__name__, ufunc.__name__), None)
        if function is not None and method == "__call__" and not kwargs and ufunc.nin == len(inputs):
            return function(*inputs)
        for one in inputs:
            if isinstance(one, Interchange) and one._spec.device.kind != "cpu":
                raise TypeError(
                    f"numpy.{ufunc.__name__} ({method}) has no counterpart that runs on {one._summary()}; "
                    "convert with t.numpy(), or use a function of ferrum_array"
                )
        out = kwargs.get("out", ())
        if any(isinstance(one, Interchange) for one in out):
            raise TypeError(f"numpy.{ufunc.__name__} cannot write into a Tensor; write t[...] = result instead")
        host = [one.numpy() if isinstance(one, Interchange) else one for one in inputs]
        result = getattr(ufunc, method)(*host, **kwargs)
        if out or result is None:
            return result
        return tuple(map(fa.asarray, result)) if isinstance(result, tuple) else fa.asarray(result)

    def __buffer__(self, flags: int, /) -> memoryview:
        """The memory of a tensor on the CPU (Python 3.12 and later ask for it through ``memoryview``)."""
        if self._spec.device.kind != "cpu" or self._spec.dtype is Dtype.BF16:
            raise BufferError(f"{self._summary()} has no memory that the buffer protocol can describe; use t.numpy()")
        return memoryview(self.numpy(copy=False))

    def __dlpack__(
        self,
        /,
        *,
        stream: Any = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[Any, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """A DLPack capsule (array API standard). Memory handed out counts as shared while the consumer holds it.

        Raises:
            BufferError: if the memory cannot be exported to *dl_device*, or not without a copy when ``copy=False``.
        """
        backend = self._spec.device.backend
        here = backend.dlpack_device(self._data)
        if dl_device is not None and (int(getattr(dl_device[0], "value", dl_device[0])), dl_device[1]) != here:
            if int(getattr(dl_device[0], "value", dl_device[0])) != 1 or copy is False:
                raise BufferError(f"{self._summary()} lies on DLPack device {here}, not on {dl_device}")
            fa = sys.modules[__package__]
            there = fa.asarray(self, device="cpu")
            return there.__dlpack__(max_version=max_version)
        return backend.to_dlpack(self._data, stream=stream, max_version=max_version, copy=copy)

    def __dlpack_device__(self, /) -> tuple[int, int]:
        """DLPack's device type and id."""
        return self._spec.device.backend.dlpack_device(self._data)

    def block_until_ready(self) -> Interchange:
        """Wait until the elements are computed, and return the tensor itself.

        Examples:
            >>> import ferrum_array as fa
            >>> fa.ones(2).block_until_ready()
            Tensor([1., 1.])
        """
        self._spec.device.backend.synchronize((self._data,))
        return self

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        host = self._spec.device.backend.to_host(self._data, copy=None)
        if self._spec.dtype is Dtype.BF16:
            host = host.view("uint16")  # a NumPy type that every reader knows
        return (restore, (host, self._spec.dtype, self._spec.device))

    def __copy__(self) -> Tensor:
        return self.copy()

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        return self.copy()

    def __repr__(self) -> str:
        return represent(self, "Tensor(", ")")

    def __str__(self) -> str:
        return represent(self, "", "")

    def __format__(self, spec: str) -> str:
        if not spec:
            return str(self)
        if self._data.shape:
            raise TypeError(
                f"format {spec!r} needs a 0-d tensor, got {self._summary()}; format its elements one by one"
            )
        return format(self.item(), spec)  # type: ignore[attr-defined]  # Tensor has it

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))


def restore(host: Any, dtype: Dtype, device: Any) -> Any:
    """The tensor that was pickled as *host*, on the device where it was."""
    conversion = sys.modules[__package__].conversion
    return conversion.from_host(host.view(conversion.host.bfloat16()) if dtype is Dtype.BF16 else host, device)
