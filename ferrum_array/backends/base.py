"""What every storage library gives: a namespace with the standard's semantics on raw arrays, and a few services.

One :class:`Backend` object stands for one device. The layers above check arguments, promote dtypes and then call
``backend.implement(name, dtype)``, which returns the raw function for operands of that dtype. Raw functions take
canonical arguments only, by position:

==================================  ==================================================================================
names                               call on raw arrays
==================================  ==================================================================================
elementwise (one operand)           ``f(x)``
elementwise (two operands)          ``f(x1, x2)``: one dtype, shapes broadcast; Python scalars where ``scalars`` says so
``clip``                            ``f(x, lower, upper)``: arrays of one dtype, or None
``where``                           ``f(condition, x1, x2)``
``sum prod``                        ``f(x, axes, keepdims)``: *x* already has the result's dtype
``total``                           ``f(x)``: the sum of all elements, in the dtype of *x*
``max min mean all any``            ``f(x, axes, keepdims)``: axes a tuple of non-negative ints
``count_nonzero``                   ``f(x, axes, keepdims)`` -> int64
``var std``                         ``f(x, axes, correction, keepdims)``
``cumulative_sum cumulative_prod``  ``f(x, axis)``
``argmax argmin``                   ``f(x, axis, keepdims)`` -> int64: the first extreme; a NaN counts as extreme
``sort argsort``                    ``f(x, axis, descending)``: stable; NaNs last (first when descending); int64
``searchsorted``                    ``f(sorted, values, side)`` -> int64
``nonzero``                         ``f(x)`` -> tuple of int64 arrays
``unique_all``                      ``f(x)`` -> sorted values, first indices, inverse (shape of x), counts
``take``                            ``f(x, indices, axis)``: indices int64, any shape, already checked and non-negative
``take_along_axis``                 ``f(x, indices, axis)``: likewise
``repeat``                          ``f(x, repeats, axis)``: an int or a 1-D int64 array
``reshape broadcast_to``            ``f(x, shape)``: *reshape* may return a view
``permute_dims``                    ``f(x, axes)``
``concat``                          ``f(list, axis)``
``flip``                            ``f(x, axes)``
``roll``                            ``f(x, shifts, axes)``
``tril triu diagonal``              ``f(x, k)``: of the last two axes
``copy``                            ``f(x)``: a new, contiguous, writable array
``astype``                          ``f(x)``: *x* of any dtype, converted to the dtype that was asked for
``view_real``                       ``f(x)``: complex [...] -> real [..., 2]
``bitcast``                         ``f(x)``: the bits of *x* as the dtype that was asked for; the last axis follows
``full empty``                      ``f(shape, value)``, ``f(shape)``
``arange linspace eye``             ``f(start, step, count)``, ``f(start, stop, num, endpoint)``, ``f(rows, cols, k)``
``matmul vecdot``                   as the standard's, last axes; *vecdot* conjugates its first operand
``einsum``                          ``f(subscripts, *arrays)``
``cholesky eigh eigvalsh eig ...``  the linalg names of the standard on [..., M, N]
``fft ifft rfft irfft hfft ihfft``  ``f(x, n, axis, norm)``
``getitem``                         ``f(x, key)``: bounds are checked; the result may be a view
``setitem``                         ``f(x, key, value)``: writes in place
==================================  ==================================================================================
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol

from ferrum_array.dtype import Dtype

__all__ = ["Backend", "Holder", "Raw", "Recording", "Unrecordable"]

#: A raw array of a storage library. Only its own backend looks inside.
Raw = Any


class Holder(Protocol):
    """Whatever holds a raw array in ``_data``: in practice a Tensor."""

    _data: Raw


class Unrecordable(Exception):
    """A function does what a library cannot record; the message says why, and the cause is what the library said."""


class Recording(Protocol):
    """What a library has recorded of a function of raw arrays."""

    def nested(self) -> bool:
        """Whether it would be recorded by another one if it were replayed now, which it cannot be."""
        ...

    def places(self, raws: Sequence[Raw]) -> list[int]:
        """Where arrays lie."""
        ...

    def replay(self, inputs: Sequence[Raw], copy: bool) -> list[Raw]:
        """The results for *inputs*: copies, or arrays that the next replay overwrites."""
        ...


class Backend(ABC):
    """The services of one storage library on one device."""

    #: the library's name, for messages
    library: ClassVar[str]
    #: the name of the device that this object serves, for example ``"cuda:0"``
    device_name: str
    #: whether parts of an array (``getitem``, ``reshape``) see what is written to it later; if not, arrays are values
    views: ClassVar[bool] = True
    #: whether ``take`` and ``take_along_axis`` also count negative indices from the end, and raise IndexError for those
    #: out of bounds
    checks_indices: ClassVar[bool] = False
    #: whether :meth:`record` records
    records: ClassVar[bool] = False
    #: the class of the library's arrays
    array_type: type
    #: the dtypes that can be created on this device
    dtypes: frozenset[Dtype]

    @abstractmethod
    def implement(self, name: str, dtype: Dtype) -> Callable[..., Any]:
        """The raw function *name* for operands of *dtype* (see the table above)."""

    @abstractmethod
    def fast_operator(self, name: str, dtype: Dtype) -> Callable[..., Any]:
        """Like :meth:`implement` for two operands of *dtype*, or one and a Python scalar that :meth:`scalars` lists."""

    def in_place_operator(self, name: str, dtype: Dtype) -> Callable[..., Any] | None:
        """A function that writes ``target op other`` into its first operand, or None if the library has none."""
        return None

    @abstractmethod
    def scalars(self, dtype: Dtype) -> frozenset[type]:
        """The Python types that a fast operator takes in place of an array without changing the result's dtype."""

    @abstractmethod
    def dtype_of(self, raw: Raw) -> Dtype:
        """The Dtype of a raw array; TypeError where Ferrum has none for it."""

    @abstractmethod
    def adopt(self, obj: Any) -> Raw:
        """Take in an array of this library on this device, sharing its memory."""

    @abstractmethod
    def from_host(self, array: Any, *, copy: bool | None) -> Raw:
        """A raw array with the contents of a host array; ValueError if it must copy but may not."""

    @abstractmethod
    def to_host(self, raw: Raw, *, copy: bool | None) -> Any:
        """The contents as a NumPy array; ValueError if it must copy but may not."""

    def from_peer(self, raw: Raw, source: Backend) -> Raw:
        """A raw array with the contents of *raw* on the device of *source*: through the host, if need be."""
        return self.from_host(source.to_host(raw, copy=None), copy=None)

    @abstractmethod
    def exclusive(self, holder: Holder) -> bool:
        """Whether *holder* alone can see the memory of its array, so that writing in place is safe."""

    @abstractmethod
    def shares_memory(self, raw: Raw, other: Raw) -> bool:
        """Whether two raw arrays of this device can see a common element."""

    @abstractmethod
    def synchronize(self, raws: Sequence[Raw] = ()) -> None:
        """Wait until all work on the device, or what *raws* depend on, is done."""

    @abstractmethod
    def dlpack_device(self, raw: Raw) -> tuple[int, int]:
        """DLPack's (device type, id) of the memory."""

    @abstractmethod
    def to_dlpack(self, raw: Raw, *, stream: Any, max_version: tuple[int, int] | None, copy: bool | None) -> Any:
        """A DLPack capsule for the memory of *raw*."""

    @abstractmethod
    def from_dlpack(self, obj: Any, *, copy: bool | None) -> Raw:
        """A raw array of another library's memory on this device."""

    def begin_to_host(self, raw: Raw) -> Callable[[], Any]:
        """Begin to copy the contents to the host; what is returned waits for them, and gives a NumPy array."""
        host = self.to_host(raw, copy=True)
        return lambda: host

    def record(
        self, run: Callable[[Sequence[Raw]], Sequence[Raw]], inputs: Sequence[Raw], state: Sequence[Holder]
    ) -> Recording | None:
        """What *run* does with arrays like *inputs*, to be replayed; None where the library has nothing like that.

        *state* holds arrays that it may write in place. They are kept by their owner, who replays only while they lie
        where they lay.

        Raises:
            Unrecordable: if it does what cannot be replayed.
        """
        return None
