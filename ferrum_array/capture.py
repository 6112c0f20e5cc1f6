"""Functions that are captured once and replayed: on CUDA as one graph, whose work costs the host a single launch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import RLock
from types import TracebackType
from typing import Any, Generic, TypeVar, final
from weakref import ref

from ferrum_array.backends.base import Raw, Recording, Unrecordable
from ferrum_array.device import Device, get_default_device
from ferrum_array.spec import Spec
from ferrum_array.tensor import Tensor, wrap

__all__ = ["CaptureError", "Captured", "Reading", "capture", "rebuilt"]

_R = TypeVar("_R")
_OURS = ("ferrum_array", "ferrum_ops", "ferrum_models")
_INNER = (__name__, "ferrum_array.backends")
_LIBRARIES = ("cupy", "cupy_backends", "cupyx", "numpy", "nvmath", "triton")


class CaptureError(RuntimeError):
    """A function does what cannot be replayed; the message names the call and says why.

    Examples:
        >>> import ferrum_array as fa
        >>> issubclass(fa.CaptureError, RuntimeError)
        True
    """


@final
class Reading:
    """The values of a tensor on their way to the host, while the device goes on with other work.

    The copy is in order with the work that was begun before: what is written into the tensor later is not seen. Only
    to ask for the values waits.

    Examples:
        >>> import ferrum_array as fa
        >>> reading = fa.Reading(fa.asarray([1, 2]))
        >>> reading.tolist()
        [1, 2]
    """

    def __init__(self, x: Tensor) -> None:
        if not isinstance(x, Tensor):
            raise TypeError(f"Reading: a Tensor can be read, got {type(x).__name__}")
        self._wait = x.device.backend.begin_to_host(x._data)

    def tolist(self) -> Any:
        """The values as nested lists of Python numbers; a number for a tensor without axes."""
        return self._wait().tolist()


@final
class Captured(Generic[_R]):
    """What :func:`capture` returns: called with tensors like the examples, it gives what the function gives.

    Attributes:
        device: where it runs.
        recorded: whether calls replay a graph; elsewhere they call the function.
        borrowed: whether results lie in memory that the next call writes.
        state: tensors of the function's own that it reads or writes.

    Examples:
        >>> import ferrum_array as fa
        >>> double = fa.capture(lambda x: 2 * x, fa.zeros(3))
        >>> isinstance(double, fa.Captured), double
        (True, Captured(<lambda>, float32[3] on cpu))
    """

    def __init__(
        self,
        function: Callable[..., _R],
        examples: Sequence[Tensor],
        device: Device,
        borrow: bool,
        state: tuple[Tensor, ...],
    ) -> None:
        self.device = device
        self.state = state
        self.borrowed = borrow
        self._function = function
        self._name = getattr(function, "__name__", type(function).__name__)
        self._wanted = tuple((x._spec, x.shape) for x in examples)
        self._lock = RLock()
        self._form: Any = None
        self._specs: tuple[Spec, ...] = ()
        self._recording: Recording | None = None
        try:
            self._recording = device.backend.record(self._run, [x._data for x in examples], state)
        except Unrecordable as error:
            cause = error.__cause__
            where = _where(None if cause is None else cause.__traceback__)
            raise CaptureError(f"{self._name} cannot be captured on {device}{where}: {error}") from cause
        self._places = self._where()
        self._seen = tuple(ref(x._data) for x in state) if self._places else ()

    @property
    def moved(self) -> bool:
        """Whether a tensor of *state* no longer lies where it lay: the graph would use memory that is not its own."""
        # asked before each call, and addresses take longer than to see that the arrays are the ones of before
        if all(x._data is found() for x, found in zip(self.state, self._seen, strict=False)):
            return False
        return self._places != self._where()

    def _where(self) -> list[int]:
        recording = self._recording
        return [] if recording is None else recording.places([x._data for x in self.state])

    @property
    def recorded(self) -> bool:
        """Whether calls replay a graph; elsewhere they call the function."""
        return self._recording is not None

    def __call__(self, *tensors: Tensor) -> _R:
        """The result for *tensors*, which must be like the examples in number, dtypes, shapes and devices."""
        self._check(tensors)
        recording = self._recording
        if recording is None or recording.nested():
            # other handles, so that the function can neither write into the caller's tensors nor return them
            results = self._function(*(wrap(x._data, x._spec) for x in tensors))
            self._outputs(results, [])
            return results
        if self.state and self.moved:
            raise ValueError(
                f"{self._name}: a tensor of its state has got other memory since it was captured, as happens where it "
                "is written while others see it; capture the function again"
            )
        with self._lock:
            raws = recording.replay([x._data for x in tensors], not self.borrowed)
        result: _R = rebuilt(self._form, iter([wrap(raw, spec) for raw, spec in zip(raws, self._specs, strict=True)]))
        return result

    def __repr__(self) -> str:
        sizes = ", ".join(f"{spec.dtype}[{','.join(map(str, shape))}]" for spec, shape in self._wanted)
        return f"Captured({self._name}, {sizes + ' ' if sizes else ''}on {self.device})"

    def _run(self, raws: Sequence[Raw]) -> list[Raw]:
        """The function on raw arrays, for the library that records it."""
        inputs = [wrap(raw, spec) for raw, (spec, _) in zip(raws, self._wanted, strict=True)]
        found: list[Tensor] = []
        self._form = self._outputs(self._function(*inputs), found)
        self._specs = tuple(x._spec for x in found)
        return [x._data for x in found]

    def _outputs(self, results: object, found: list[Tensor]) -> Any:
        """The form of what the function returned; its tensors are added to *found*."""
        form = _flattened(self._name, results, found)
        for x in found:
            if x.device is not self.device:
                raise ValueError(
                    f"capture: {self._name} returned a tensor on {x.device}, but it is captured on {self.device}; "
                    "return results on one device, and move them after the call"
                )
        return form

    def _check(self, tensors: tuple[Tensor, ...]) -> None:
        wanted = self._wanted
        if len(tensors) != len(wanted):
            raise TypeError(f"{self._name} was captured with {len(wanted)} tensors, got {len(tensors)}")
        for number, (x, (spec, shape)) in enumerate(zip(tensors, wanted, strict=True)):
            if x.__class__ is Tensor and x._spec is spec and x.shape == shape:
                continue
            if not isinstance(x, Tensor):
                raise TypeError(f"{self._name}: argument {number} must be a Tensor, got {type(x).__name__}")
            given = f"{x.dtype} {x.shape} on {x.device}"
            kind = TypeError if x.dtype is not spec.dtype else ValueError
            raise kind(
                f"{self._name} was captured with {spec.dtype} {shape} on {spec.device} as argument {number}, "
                f"got {given}; convert it, or capture the function for such tensors too"
            )


def capture(
    fn: Callable[..., _R],
    *examples: Tensor,
    borrow: bool = False,
    device: Device | str | None = None,
    state: Sequence[Tensor] = (),
) -> Captured[_R]:
    """A callable that does what *fn* does, for tensors like *examples*, and on CUDA replays it as one graph.

    On CUDA *fn* is called three times: twice for real, which compiles what it needs, and once while a graph records
    what it launches, on a stream and in memory of its own. A call then copies its tensors into the graph's buffers,
    launches the graph on the current stream and copies the results out. On other storages there is no graph: a call
    checks its tensors in the same way and calls *fn*, so one program runs everywhere.

    *fn* must do the same work whatever values the tensors have. Python code in it runs while it is captured, not when
    it is replayed. Tensors that it finds elsewhere than in its arguments are read where they lay when it was captured,
    as weights are; they must be kept, and what changes between calls should be an argument. Tensors of its own that it
    writes into, as caches are, are written by each call, and so by the two calls for real.

    Args:
        fn: takes tensors, and returns a tensor, None, or tuples, lists and dicts of these.
        examples: one for each argument: dtype, shape and device are what counts, and the values are what *fn* is tried
            with.
        borrow: results are the graph's own buffers, which the next call overwrites: a copy less. They are read-only:
            a write into one gives it memory of its own first.
        device: where, for a function without arguments; the default device if absent.
        state: tensors of the function's own. They are kept, and each call checks that they lie where they lay.

    Source: the CUDA C++ programming guide, "CUDA graphs", on stream capture.

    Raises:
        CaptureError: on CUDA for what a graph cannot hold: values that are read back to the host, copies from it, and
            libraries that refuse, as CuPy's matrix products do. Streams stay usable.
        TypeError: for examples or results that are no tensors, and at a call for another number or other dtypes.
        ValueError: for examples on several devices, and at a call for other shapes or devices, or a state that has
            moved.

    Examples:
        >>> import ferrum_array as fa
        >>> scale = fa.asarray([1.0, 10.0])
        >>> step = fa.capture(lambda x, y: (x * scale + y, fa.sum(x)), fa.zeros(2), fa.zeros(2))
        >>> step(fa.asarray([1.0, 2.0]), fa.ones(2))
        (Tensor([ 2., 21.]), Tensor(3.))
    """
    for number, x in enumerate(examples):
        if not isinstance(x, Tensor):
            raise TypeError(f"capture: example {number} must be a Tensor, got {type(x).__name__}")
    for number, x in enumerate(state):
        if not isinstance(x, Tensor):
            raise TypeError(f"capture: state must hold Tensors, got {type(x).__name__} at place {number}")
    there = {x.device: None for x in (*examples, *state)}
    if device is not None:
        there[Device(device)] = None
    if len(there) > 1:
        raise ValueError(
            f"capture: the tensors lie on {' and '.join(one.name for one in there)}; a function is captured on one "
            "device, so move them"
        )
    return Captured(fn, examples, next(iter(there), get_default_device()), bool(borrow), tuple(state))


def _flattened(name: str, value: object, found: list[Tensor]) -> Any:
    """The form of a result; its tensors are added to *found*."""
    if isinstance(value, Tensor):
        found.append(value)
        return Tensor
    if value is None:
        return None
    if isinstance(value, (tuple, list)):
        return (type(value), [_flattened(name, one, found) for one in value])
    if type(value) is dict:
        return (dict, {key: _flattened(name, one, found) for key, one in value.items()})
    raise TypeError(
        f"capture: {name} returned {type(value).__name__} {value!r:.60}; a captured function returns tensors, None, "
        "and tuples, lists and dicts of these"
    )


def rebuilt(form: Any, tensors: Any) -> Any:
    """A result of this form with the next of *tensors*."""
    if form is Tensor:
        return next(tensors)
    if form is None:
        return None
    kind, parts = form
    if kind is dict:
        return {key: rebuilt(part, tensors) for key, part in parts.items()}
    values = [rebuilt(part, tensors) for part in parts]
    return kind(*values) if hasattr(kind, "_fields") else kind(values)


def _where(traceback: TracebackType | None) -> str:
    """Which call of ours failed, and from which line of the program, as words to go behind a name."""
    call = line = ""
    while traceback is not None:
        frame = traceback.tb_frame
        module = str(frame.f_globals.get("__name__", ""))
        name = str(frame.f_locals.get("name", "")) if frame.f_code.co_name == "operate" else frame.f_code.co_name
        package = module.partition(".")[0]
        if package in _OURS:
            if not module.startswith(_INNER) and (not name.startswith(("_", "<")) or name.endswith("__")):
                call = f"{package}: {name.strip('_')}"
        elif package not in _LIBRARIES:
            call, line = "", f"{frame.f_code.co_filename}:{traceback.tb_lineno}"
        traceback = traceback.tb_next
    return (f", by the call of {call}" if call else "") + (f" in {line}" if line else "")
