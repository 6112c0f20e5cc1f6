"""Methods of tensors that NumPy users reach for; each is the function of the namespace that has its name."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from ferrum_array.device import Device
from ferrum_array.dtype import Dtype
from ferrum_array.spec import Spec

if TYPE_CHECKING:
    from ferrum_array.tensor import Tensor

__all__ = ["Axis", "Methods", "Scalar"]

Scalar = bool | int | float | complex
Axis = int | tuple[int, ...] | None


def _namespace() -> Any:
    return sys.modules[__package__]


def _no_out(name: str, out: object) -> None:
    # NumPy's functions pass out=None to the methods of other classes
    if out is not None:
        raise TypeError(f"{name}: a tensor method has no out=; write t[...] = result instead")


class Methods:
    """The methods of :class:`ferrum_array.Tensor` that are functions of the namespace."""

    __slots__ = ()

    _data: Any
    _spec: Spec

    if TYPE_CHECKING:

        @property
        def shape(self) -> tuple[int, ...]: ...

    @property
    def T(self) -> Tensor:
        """The axes in reverse order."""
        axes = tuple(range(len(self._data.shape)))[::-1]
        result: Tensor = _namespace().tensor.wrap(self._spec.call["permute_dims"](self._data, axes), self._spec)
        return result

    @property
    def mT(self) -> Tensor:
        """The last two axes swapped. ValueError for fewer than two axes."""
        result: Tensor = _namespace().matrix_transpose(self)
        return result

    @property
    def real(self) -> Tensor:
        """The real part; the tensor itself for real dtypes."""
        result: Tensor = _namespace().real(self)
        return result

    @property
    def imag(self) -> Tensor:
        """The imaginary part; zeros for real dtypes."""
        fa = _namespace()
        result: Tensor = fa.imag(self) if self._spec.dtype.is_complex else fa.zeros_like(self)
        return result

    def reshape(self, *shape: Any, order: str = "C", copy: bool | None = None) -> Tensor:
        """The same elements in another shape, given as a tuple or as numbers.

        See :func:`ferrum_array.reshape`. NumPy's functions pass *order*, which can only be ``"C"``.
        """
        if order != "C":
            raise ValueError(f"reshape: elements are taken in order 'C' alone, got {order!r}")
        result: Tensor = _namespace().reshape(self, shape[0] if len(shape) == 1 else shape, copy=copy)
        return result

    def permute_dims(self, *axes: Any) -> Tensor:
        """The axes in another order: :func:`ferrum_array.permute_dims`."""
        result: Tensor = _namespace().permute_dims(self, axes[0] if len(axes) == 1 else axes)
        return result

    def transpose(self, *axes: Any) -> Tensor:
        """The axes in the order *axes*, or reversed without any."""
        return self.permute_dims(*axes) if axes and axes != (None,) else self.T

    def flatten(self) -> Tensor:
        """All elements along one axis."""
        return self.reshape(-1)

    def squeeze(self, axis: Axis = None) -> Tensor:
        """Without the axes of length one, or those named: :func:`ferrum_array.squeeze`."""
        ones = tuple(i for i, n in enumerate(self.shape) if n == 1)
        result: Tensor = _namespace().squeeze(self, ones if axis is None else axis)
        return result

    def astype(self, dtype: Any, /, *, copy: bool = True, device: Device | str | None = None) -> Tensor:
        """The elements converted to *dtype*: :func:`ferrum_array.astype`."""
        result: Tensor = _namespace().astype(self, Dtype(dtype), copy=copy, device=device)
        return result

    def to_device(self, device: Device | str, /, *, stream: Any = None) -> Tensor:
        """The tensor on *device*: itself if it is there already, else a copy.

        Raises:
            ValueError: for an unknown device, or a *stream* where the devices take none.
        """
        result: Tensor = _namespace().conversion.transfer(self, Device(device), stream)
        return result

    def copy(self) -> Tensor:
        """A tensor with memory of its own."""
        result: Tensor = _namespace().asarray(self, copy=True)
        return result

    def fill(self, value: Scalar) -> None:
        """Write *value* to every element."""
        self[...] = value  # type: ignore[index]  # Tensor has it

    def clip(self, min: Any = None, max: Any = None, out: None = None) -> Tensor:
        """Limited to [*min*, *max*]: :func:`ferrum_array.clip`."""
        _no_out("clip", out)
        result: Tensor = _namespace().clip(self, min, max)
        return result

    def round(self, decimals: int = 0, out: None = None) -> Tensor:
        """To the nearest integer, halves to even: :func:`ferrum_array.round`.

        Raises:
            ValueError: for *decimals* other than 0.
        """
        _no_out("round", out)
        if decimals:
            raise ValueError(f"round: rounds to integers, decimals=0; got decimals={decimals!r}")
        result: Tensor = _namespace().round(self)
        return result

    def conj(self) -> Tensor:
        """The complex conjugate: :func:`ferrum_array.conj`."""
        result: Tensor = _namespace().conj(self)
        return result

    def sum(self, axis: Axis = None, dtype: Any = None, out: None = None, keepdims: bool = False) -> Tensor:
        """The sum along *axis*: :func:`ferrum_array.sum`."""
        _no_out("sum", out)
        result: Tensor = _namespace().sum(self, axis=axis, dtype=dtype, keepdims=keepdims)
        return result

    def prod(self, axis: Axis = None, dtype: Any = None, out: None = None, keepdims: bool = False) -> Tensor:
        """The product along *axis*: :func:`ferrum_array.prod`."""
        _no_out("prod", out)
        result: Tensor = _namespace().prod(self, axis=axis, dtype=dtype, keepdims=keepdims)
        return result

    def max(self, axis: Axis = None, out: None = None, keepdims: bool = False) -> Tensor:
        """The greatest element along *axis*: :func:`ferrum_array.max`."""
        _no_out("max", out)
        result: Tensor = _namespace().max(self, axis=axis, keepdims=keepdims)
        return result

    def min(self, axis: Axis = None, out: None = None, keepdims: bool = False) -> Tensor:
        """The least element along *axis*: :func:`ferrum_array.min`."""
        _no_out("min", out)
        result: Tensor = _namespace().min(self, axis=axis, keepdims=keepdims)
        return result

    def all(self, axis: Axis = None, out: None = None, keepdims: bool = False) -> Tensor:
        """Whether all elements along *axis* are true: :func:`ferrum_array.all`."""
        _no_out("all", out)
        result: Tensor = _namespace().all(self, axis=axis, keepdims=keepdims)
        return result

    def any(self, axis: Axis = None, out: None = None, keepdims: bool = False) -> Tensor:
        """Whether any element along *axis* is true: :func:`ferrum_array.any`."""
        _no_out("any", out)
        result: Tensor = _namespace().any(self, axis=axis, keepdims=keepdims)
        return result

    def mean(self, axis: Axis = None, dtype: Any = None, out: None = None, keepdims: bool = False) -> Tensor:
        """The arithmetic mean along *axis*, of the elements converted to *dtype*: :func:`ferrum_array.mean`."""
        _no_out("mean", out)
        x = self if dtype is None else self.astype(dtype, copy=False)
        result: Tensor = _namespace().mean(x, axis=axis, keepdims=keepdims)
        return result

    def var(
        self, axis: Axis = None, dtype: Any = None, out: None = None, ddof: float = 0, keepdims: bool = False,
        *, correction: float | None = None,
    ) -> Tensor:  # fmt: skip
        """The variance along *axis*, with *correction* (NumPy's *ddof*): :func:`ferrum_array.var`."""
        _no_out("var", out)
        x = self if dtype is None else self.astype(dtype, copy=False)
        over = ddof if correction is None else correction
        result: Tensor = _namespace().var(x, axis=axis, correction=over, keepdims=keepdims)
        return result

    def std(
        self, axis: Axis = None, dtype: Any = None, out: None = None, ddof: float = 0, keepdims: bool = False,
        *, correction: float | None = None,
    ) -> Tensor:  # fmt: skip
        """The standard deviation along *axis*, with *correction* (NumPy's *ddof*): :func:`ferrum_array.std`."""
        _no_out("std", out)
        x = self if dtype is None else self.astype(dtype, copy=False)
        over = ddof if correction is None else correction
        result: Tensor = _namespace().std(x, axis=axis, correction=over, keepdims=keepdims)
        return result

    def argmax(self, axis: int | None = None, out: None = None, *, keepdims: bool = False) -> Tensor:
        """The place of the greatest element along *axis*: :func:`ferrum_array.argmax`."""
        _no_out("argmax", out)
        result: Tensor = _namespace().argmax(self, axis=axis, keepdims=keepdims)
        return result

    def argmin(self, axis: int | None = None, out: None = None, *, keepdims: bool = False) -> Tensor:
        """The place of the least element along *axis*: :func:`ferrum_array.argmin`."""
        _no_out("argmin", out)
        result: Tensor = _namespace().argmin(self, axis=axis, keepdims=keepdims)
        return result

    def cumsum(self, axis: int | None = None, dtype: Any = None, out: None = None) -> Tensor:
        """The running sums along *axis*, of the flattened tensor for None: :func:`ferrum_array.cumulative_sum`."""
        _no_out("cumsum", out)
        x = self.flatten() if axis is None else self
        result: Tensor = _namespace().cumulative_sum(x, axis=0 if axis is None else axis, dtype=dtype)
        return result
