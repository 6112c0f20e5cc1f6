"""Triton kernels, compiled ahead of launch and launched through CuPy on its current stream. PyTorch is not imported.

A kernel is compiled once for each combination of dtypes, constants and architecture. Triton keeps the machine code on
disk (``TRITON_CACHE_DIR``), by source, target and constants, so that a second process only loads it. A launch looks
the code up, writes the arguments into a buffer and calls the driver.

With ``TRITON_INTERPRET=1`` kernels run in Triton's interpreter, on NumPy storage: so their logic is tested without a
GPU.
"""

from __future__ import annotations

import ctypes
import importlib.util
import struct
from dataclasses import dataclass, field
from functools import cache
from threading import Lock, local
from typing import Any, Final, final

import triton
from triton.compiler import ASTSource

import ferrum_array as fa
from ferrum_array import Device, Dtype, Tensor
from ferrum_array.backends.host import raw_dtype
from ferrum_array.spec import spec_of
from ferrum_array.tensor import wrap
from ferrum_ops.kernels.cuda import assembling, maps

__all__ = ["INTERPRETED", "Kernel", "capability", "chains", "empty", "power_of_two", "processors"]

#: whether kernels run in Triton's interpreter
INTERPRETED: Final = bool(triton.knobs.runtime.interpret)

if not INTERPRETED and importlib.util.find_spec("cupy") is not None:  # kernels can be compiled without a device
    import cupy
    from cupy_backends.cuda.api import driver, runtime

#: Triton's names of the dtypes that tensors have
_TYPES: Final = {
    Dtype.BOOL: "i1", Dtype.I8: "i8", Dtype.I16: "i16", Dtype.I32: "i32", Dtype.I64: "i64",
    Dtype.U8: "u8", Dtype.U16: "u16", Dtype.U32: "u32", Dtype.U64: "u64",
    Dtype.F16: "fp16", Dtype.BF16: "bf16", Dtype.F32: "fp32", Dtype.F64: "fp64",
}  # fmt: skip
_LETTERS: Final = {"i32": "i", "i64": "q", "fp32": "f"}
_MAP: Final = "128s"
_ALIGNMENT: Final = 16  # bytes that one load can take; the compiler asks whether addresses are multiples of it
_SMALL: Final = range(-(1 << 31), 1 << 31)
_WITHOUT_ASKING: Final = 48 * 1024  # bytes of shared memory that every kernel may use
_MAX_DYNAMIC_SHARED: Final = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_SCRATCH: Final = 2  # addresses that Triton's calling convention adds behind the arguments


def power_of_two(size: int) -> int:
    """The least power of two that is not below *size*: the length of a block that holds so many elements."""
    return 1 << max(0, size - 1).bit_length()


@cache
def processors(device: Device) -> int:
    """How many multiprocessors the device has; the interpreter has one."""
    return 1 if INTERPRETED else int(cupy.cuda.Device(device.index).attributes["MultiProcessorCount"])


@cache
def capability(device: Device) -> int:
    """The compute capability of the device, such as 90 for Hopper; 0 in the interpreter."""
    return 0 if INTERPRETED else int(cupy.cuda.Device(device.index).compute_capability)


def chains(x: Tensor) -> bool:
    """Whether the device of *x* has launches that come early."""
    return capability(x._spec.device) >= 90


class _Thread(local):
    """What a thread has done: the driver needs a context, which the runtime makes with the device that is set."""

    ready = False


_thread = _Thread()


@cache
def _only() -> bool:
    return int(runtime.getDeviceCount()) == 1


def _elsewhere(device: int | str) -> bool:
    """Whether another device than this one is current."""
    return not _only() and runtime.getDevice() != device


def empty(shape: tuple[int, ...], like: Tensor, dtype: Dtype | None = None) -> Tensor:
    """A tensor on the device of *like*, of its dtype unless *dtype* is given, with nothing written into it."""
    spec = like._spec if dtype is None else spec_of(dtype, like._spec.device)
    if INTERPRETED:
        return fa.empty(shape, dtype=spec.dtype, device=spec.device)
    if _elsewhere(spec.device.index):
        with cupy.cuda.Device(spec.device.index):
            return wrap(cupy.ndarray(shape, raw_dtype(spec.dtype)), spec)
    return wrap(cupy.ndarray(shape, raw_dtype(spec.dtype)), spec)


def _flat(values: list[Any], tiles: tuple[maps.Layout, ...]) -> list[Any]:
    """The numbers that stand for arguments: a map is followed by shape and steps."""
    found: list[Any] = []
    layouts = iter(tiles)
    for value in values:
        if type(value) is maps.Map:
            tensor, shape, steps, _ = value
            found += maps.numbers(tensor._data.data.ptr, tensor._spec.dtype, shape, steps, next(layouts))
        else:
            found.append(value)
    return found


def _laid_out(kinds: list[Any], ranks: list[int]) -> tuple[struct.Struct, tuple[int, ...]]:
    """How the numbers of a launch lie in its buffer, and where each of them does; *ranks* are those of the maps."""
    letters: list[str] = []
    waiting = iter(ranks)
    for kind in (kind[0] if isinstance(kind, tuple) else kind for kind in kinds if kind is not None):
        if isinstance(kind, Dtype):
            letters.append("P")
        elif kind in _LETTERS:
            letters.append(_LETTERS[kind])
        else:
            rank = next(waiting)
            letters += (_MAP, *("i",) * rank, *("q",) * rank)
    letters += ["P"] * _SCRATCH
    ends = [struct.calcsize("".join(letters[: i + 1])) for i in range(len(letters))]
    places = tuple(end - struct.calcsize(letter) for end, letter in zip(ends, letters, strict=True))
    return struct.Struct("".join(letters)), places


@dataclass(frozen=True)
class _Code:
    """A kernel's machine code on a device, and how its arguments are laid out."""

    module: Any  # keeps the code loaded
    function: int
    threads: int
    shared: int
    scratch: int  # bytes that each program asks for, for the descriptors of its bulk copies
    tiles: tuple[maps.Layout, ...]  # of the arguments that are maps
    layout: struct.Struct
    places: tuple[int, ...]
    #: buffers for the arguments of a launch; a thread takes one out for a moment
    free: list[tuple[Any, Any, int]] = field(default_factory=list)

    def buffer(self) -> tuple[Any, Any, int]:
        memory = ctypes.create_string_buffer(self.layout.size)
        start = ctypes.addressof(memory)
        pointers = (ctypes.c_void_p * len(self.places))(*(start + place for place in self.places))
        return memory, pointers, ctypes.addressof(pointers)


class _Attribute(ctypes.Structure):
    """The driver's CUlaunchAttribute."""

    _fields_ = (("id", ctypes.c_uint), ("padding", ctypes.c_uint), ("value", ctypes.c_uint64 * 8))


class _Configuration(ctypes.Structure):
    """The driver's CUlaunchConfig."""

    _fields_ = (
        *((name, ctypes.c_uint) for name in ("x", "y", "z", "threads_x", "threads_y", "threads_z", "shared")),
        ("stream", ctypes.c_void_p), ("attributes", ctypes.POINTER(_Attribute)), ("count", ctypes.c_uint),
    )  # fmt: skip


_EARLY: Final = _Attribute(6, 0, (ctypes.c_uint64 * 8)(1))  # CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION


@cache
def _launcher() -> Any:
    function = ctypes.CDLL("libcuda.so.1").cuLaunchKernelEx
    function.argtypes = [ctypes.POINTER(_Configuration), ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
    return function


def _launch_early(code: _Code, grid: tuple[int, ...], stream: int, arguments: int) -> None:
    """Launch a kernel whose programs may start before the launch before it is done."""
    asked = _Configuration(*grid, code.threads, 1, 1, code.shared, stream, ctypes.pointer(_EARLY), 1)
    failed = _launcher()(ctypes.byref(asked), code.function, arguments, None)
    if failed:
        raise RuntimeError(f"the CUDA driver does not launch {grid} programs of {code.threads} threads: error {failed}")


@final
class Kernel:
    """A Triton function that is launched on tensors.

    Args:
        function: what ``triton.jit`` made: parameters that are arguments first, constants behind them.
        aligned: names of whole numbers, mostly strides, for which multiples of 16 are worth machine code of their
            own. Addresses always are.
    """

    def __init__(self, function: Any, aligned: tuple[str, ...] = ()) -> None:
        names = tuple(function.arg_names)
        self.name: str = function.__name__
        self._function = function
        self._names = names
        if unknown := sorted(set(aligned) - set(names)):
            raise ValueError(f"{self.name}: aligned names {', '.join(unknown)}; the parameters are {', '.join(names)}")
        self._watched = frozenset(names.index(name) for name in aligned)
        self._codes: dict[tuple[Any, ...], _Code] = {}
        self._lock = Lock()

    def __repr__(self) -> str:
        return f"Kernel({self.name}, compiled {len(self._codes)} times)"

    def __call__(
        self,
        grid: tuple[int, ...],
        *arguments: Tensor | maps.Map | float | None,
        warps: int = 4,
        stages: int = 3,
        registers: int = 0,
        early: bool = False,
        **constants: Any,
    ) -> None:
        """Run a program for each point of the grid; a grid without points is no launch.

        Tensors are passed by address: shapes and strides, in elements, are arguments like others. None stands for an
        operand that is absent: the function sees the constant None. *registers* is how many a thread may have, 0 for
        as many as the compiler likes. *early*: programs may start when those of the launch before have all signalled,
        and wait themselves before they read what it writes, and before they write.
        """
        if 0 in grid:
            return
        if INTERPRETED:
            from ferrum_ops.kernels.cuda.interpreter import interpret

            interpret(self._function, grid, arguments, constants)
            return
        kind: Any
        kinds: list[Any] = []
        values: list[Any] = []
        device: int | str = -1
        for argument in arguments:
            if type(argument) is Tensor:
                spec = argument._spec
                address = argument._data.data.ptr
                device = spec.device.index
                kinds.append(spec.dtype if address % _ALIGNMENT == 0 else (spec.dtype,))
                values.append(address)
            elif type(argument) is int:
                kind = "i32" if argument in _SMALL else "i64"
                watched = argument % _ALIGNMENT == 0 and len(kinds) in self._watched
                kinds.append((kind,) if watched else kind)
                values.append(argument)
            elif type(argument) is float:
                kinds.append("fp32")
                values.append(argument)
            elif argument is None:
                kinds.append(None)
            elif type(argument) is maps.Map:
                spec = argument.tensor._spec
                device = spec.device.index
                kinds.append(maps.kind(spec.dtype, argument.tile))
                values.append(argument)
            else:
                raise TypeError(f"{self.name}: argument {self._names[len(kinds)]!r} is {argument!r}")
        key = (device, warps, stages, registers, *kinds, *constants.values())
        if not _thread.ready:
            runtime.setDevice(runtime.getDevice())
            _thread.ready = True
        if _elsewhere(device):
            with cupy.cuda.Device(device):
                self._launch(grid, key, kinds, values, constants, early)
        else:
            self._launch(grid, key, kinds, values, constants, early)

    def _launch(
        self,
        grid: tuple[int, ...],
        key: tuple[Any, ...],
        kinds: list[Any],
        values: list[Any],
        constants: dict[str, Any],
        early: bool,
    ) -> None:
        code = self._codes.get(key)
        if code is None:
            code = self._compile(key, kinds, constants)
        if code.tiles:
            values = _flat(values, code.tiles)
        x, y, z = (*grid, 1, 1)[:3]
        stream = cupy.cuda.get_current_stream().ptr
        # The pool gives the scratch memory again only to work that comes later on this stream.
        scratch = cupy.cuda.alloc(code.scratch * x * y * z) if code.scratch else None
        try:
            buffer = code.free.pop()
        except IndexError:
            buffer = code.buffer()
        code.layout.pack_into(buffer[0], 0, *values, 0 if scratch is None else scratch.ptr, 0)
        if early:
            _launch_early(code, (x, y, z), stream, buffer[2])
        else:
            driver.launchKernel(code.function, x, y, z, code.threads, 1, 1, code.shared, stream, buffer[2], 0)
        code.free.append(buffer)

    def _compile(self, key: tuple[Any, ...], kinds: list[Any], constants: dict[str, Any]) -> _Code:
        with self._lock:
            if key not in self._codes:
                device, warps, stages, registers = key[:4]
                capability = int(cupy.cuda.Device(device).compute_capability)
                self._codes[key] = self._load(
                    self.compiled(capability, warps, stages, kinds, constants, registers), kinds
                )
            return self._codes[key]

    def compiled(
        self, capability: int, warps: int, stages: int, kinds: list[Any], constants: dict[str, Any], registers: int = 0
    ) -> Any:
        """What Triton makes of the function for these kinds of arguments; *capability* is 90 for a Hopper GPU."""
        names = self._names
        expected = names[len(kinds) :]
        if set(expected) != set(constants):
            raise TypeError(f"{self.name}: the constants are {expected}, received {tuple(constants)}")
        signature: dict[str, str] = dict.fromkeys(names, "constexpr")
        attributes = {}
        fixed = dict(constants)
        for place, (name, kind) in enumerate(zip(names, kinds, strict=False)):
            marked = isinstance(kind, tuple)
            plain = kind[0] if marked else kind
            if plain is None:
                fixed[name] = None
            elif isinstance(plain, Dtype):
                signature[name] = "*" + _TYPES[plain]
            else:
                signature[name] = plain
            if isinstance(plain, Dtype) != marked and plain is not None:  # a marked address is not aligned
                attributes[(place,)] = [["tt.divisibility", _ALIGNMENT]]
        form: type[ASTSource] = ASTSource
        if self._function.is_gluon():
            from triton.experimental.gluon._runtime import GluonASTSource  # few processes need it

            form = GluonASTSource
        source = form(fn=self._function, signature=signature, constexprs=fixed, attrs=attributes)
        options = {"num_warps": warps, "num_stages": stages, "maxnreg": registers or None}
        return triton.compile(source, target=assembling.target(capability), options=options)

    def _load(self, made: Any, kinds: list[Any]) -> _Code:
        module = cupy.cuda.function.Module()
        module.load(made.asm["cubin"])
        function = module.get_function(made.metadata.name)
        if made.metadata.shared > _WITHOUT_ASKING:
            driver.funcSetAttribute(function.ptr, _MAX_DYNAMIC_SHARED, made.metadata.shared)
        tiles = tuple(maps.Layout(tuple(x["block_size"]), x["swizzle"]) for x in made.metadata.tensordesc_meta or ())
        layout, places = _laid_out(kinds, [len(tile.box) for tile in tiles])
        return _Code(
            module,
            function.ptr,
            32 * made.metadata.num_warps,
            made.metadata.shared,
            made.metadata.global_scratch_size,
            tiles,
            layout,
            places,
        )
