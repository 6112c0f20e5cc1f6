"""What threads are made of, for use inside compiled code: atomic words, pauses, and functions by their address.

Addresses are integers; words have 64 bits. Loads acquire and stores release, as C11 has it, and the other operations
do both.
"""

from __future__ import annotations

import os
import platform
from typing import Any

from llvmlite import ir
from numba import types as untyped_types
from numba.core import cgutils as untyped

from ferrum_ops.kernels.cpu.jit import intrinsic

__all__ = ["add", "again", "call", "give_way", "keep", "load", "pause", "store", "swap_if", "task"]

types: Any = untyped_types  # numba's types are of some versions and incomplete
cgutils: Any = untyped

_WORD = ir.IntType(64)
_BYTES = ir.IntType(8).as_pointer()
#: what a job looks like to those who work on it: (arguments, first item, end of the items)
_JOB = ir.FunctionType(ir.VoidType(), [_BYTES, _WORD, _WORD])
#: what a kept call looks like: (arguments)
_KEPT = ir.FunctionType(ir.VoidType(), [_BYTES])
_ALIGNED = 8
#: bytes that the arguments of a kept call may take
_MOST = 4096


def _pointer(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, _WORD.as_pointer())


@intrinsic
def load(_typing: Any, _address: Any) -> Any:
    """The word at an address."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.load_atomic(_pointer(builder, args[0]), "acquire", _ALIGNED)

    return types.int64(types.int64), generate


@intrinsic
def store(_typing: Any, _address: Any, _value: Any) -> Any:
    """Write a word."""

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        builder.store_atomic(args[1], _pointer(builder, args[0]), "release", _ALIGNED)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def add(_typing: Any, _address: Any, _value: Any) -> Any:
    """Add to a word; what it was before."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", _pointer(builder, args[0]), args[1], "acq_rel")

    return types.int64(types.int64, types.int64), generate


@intrinsic
def swap_if(_typing: Any, _address: Any, _old: Any, _new: Any) -> Any:
    """Make a word *new* if it is *old*; whether it was."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        pair = builder.cmpxchg(_pointer(builder, args[0]), args[1], args[2], "acq_rel", "acquire")
        return builder.extract_value(pair, 1)

    return types.boolean(types.int64, types.int64, types.int64), generate


@intrinsic
def pause(_typing: Any) -> Any:
    """Tell the processor that a loop waits for memory to change."""

    def generate(context: Any, builder: Any, _signature: Any, _args: Any) -> Any:
        machine = platform.machine().lower()
        void = ir.VoidType()
        if machine in ("x86_64", "amd64"):
            kind = ir.FunctionType(void, [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse2.pause"), [])
        elif machine in ("aarch64", "arm64"):
            kind = ir.FunctionType(void, [ir.IntType(32)])
            hint = cgutils.get_or_insert_function(builder.module, kind, "llvm.aarch64.hint")
            builder.call(hint, [ir.IntType(32)(1)])
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def give_way(_typing: Any) -> Any:
    """Let the system run another thread on this core, where it has a function for that."""

    def generate(context: Any, builder: Any, _signature: Any, _args: Any) -> Any:
        if os.name == "posix":
            kind = ir.FunctionType(ir.IntType(32), [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, "sched_yield"), [])
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def call(_typing: Any, _job: Any, _first: Any, _end: Any) -> Any:
    """Do the items from *first* to *end* of a job, as ``task`` made it."""

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        function, arguments = cgutils.unpack_tuple(builder, args[0], 2)
        builder.call(
            builder.inttoptr(function, _JOB.as_pointer()), [builder.inttoptr(arguments, _BYTES), args[1], args[2]]
        )
        return context.get_dummy_value()

    return types.void(types.UniTuple(types.int64, 2), types.int64, types.int64), generate


@intrinsic
def task(typing: Any, body: Any, arguments: Any) -> Any:
    """Addresses of ``body(*arguments, first, end)``, a compiled function, and of these arguments.

    They are good until the function in which they are made returns.
    """
    called = body.get_call_type(typing, (*arguments.types, types.int64, types.int64), {})

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        values = cgutils.unpack_tuple(builder, args[1], len(arguments.types))
        packed = ir.LiteralStructType([value.type for value in values])
        place = cgutils.alloca_once(builder, packed)
        for i, value in enumerate(values):
            builder.store(value, cgutils.gep_inbounds(builder, place, 0, i))
        function = _trampoline(context, builder.module, body, called, packed)
        both = [builder.ptrtoint(function, _WORD), builder.ptrtoint(place, _WORD)]
        return context.make_tuple(builder, types.UniTuple(types.int64, 2), both)

    return types.UniTuple(types.int64, 2)(body, arguments), generate


@intrinsic
def keep(typing: Any, body: Any, arguments: Any, _code: Any, _to: Any) -> Any:
    """The address of ``body(*arguments)``, and how many bytes it takes: code and arguments are written to an address.

    For ``again``, for as long as they stay there. What they show must stay, too: it is not kept alive by them. *code*
    is where the compiled *body* begins. It is not linked in, for a copy that is compiled here may add in another order.
    """
    called = body.get_call_type(typing, arguments.types, {})

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        values = [
            _shown(builder, kind, value)
            for kind, value in zip(
                arguments.types, cgutils.unpack_tuple(builder, args[1], len(arguments.types)), strict=True
            )
        ]
        packed = ir.LiteralStructType([_WORD, *(value.type for value in values)])
        size = context.get_abi_sizeof(packed)
        if size > _MOST:
            raise ValueError(f"the arguments of a kept call take {size} bytes; {_MOST} are set aside")
        place = builder.inttoptr(args[3], packed.as_pointer())
        for i, value in enumerate([args[2], *values]):
            builder.store(value, cgutils.gep_inbounds(builder, place, 0, i))
        function = _far_trampoline(context, builder.module, called, packed)
        both = [builder.ptrtoint(function, _WORD), _WORD(size)]
        return context.make_tuple(builder, types.UniTuple(types.int64, 2), both)

    return types.UniTuple(types.int64, 2)(body, arguments, types.int64, types.int64), generate


def _shown(builder: Any, kind: Any, value: Any) -> Any:
    """A value whose arrays do not count as users of their memory, which is not freed by who has them."""
    if isinstance(kind, types.Array):
        for place in range(2):  # whoever counts, and the object of Python
            value = builder.insert_value(value, value.type.elements[place](None), place)
    elif isinstance(kind, types.BaseTuple):
        for place, one in enumerate(kind):
            value = builder.insert_value(value, _shown(builder, one, builder.extract_value(value, place)), place)
    return value


@intrinsic
def again(_typing: Any, _function: Any, _arguments: Any) -> Any:
    """Make a call that ``keep`` has kept."""

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        builder.call(builder.inttoptr(args[0], _KEPT.as_pointer()), [builder.inttoptr(args[1], _BYTES)])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


def _trampoline(context: Any, module: Any, body: Any, called: Any, packed: Any) -> Any:
    """A function of the type of all jobs that unpacks its arguments and calls *body*."""
    compiled = body.dispatcher.overloads[called.args]
    context.active_code_library.add_linking_library(compiled.library)
    target = context.declare_function(module, compiled.fndesc)
    function = ir.Function(module, _JOB, module.get_unique_name(f"job.{compiled.fndesc.unique_name}"))
    function.linkage = "internal"
    builder = ir.IRBuilder(function.append_basic_block())
    place = builder.bitcast(function.args[0], packed.as_pointer())
    values = [builder.load(cgutils.gep_inbounds(builder, place, 0, i)) for i in range(len(packed.elements))]
    # whether it raised is not asked: code of jobs has nothing that raises
    context.call_conv.call_function(builder, target, called.return_type, called.args, [*values, *function.args[1:]])
    builder.ret_void()
    return function


def _far_trampoline(context: Any, module: Any, called: Any, packed: Any) -> Any:
    """A function that finds the address of another and its arguments, and calls it."""
    function = ir.Function(module, _KEPT, module.get_unique_name("kept"))
    function.linkage = "internal"
    builder = ir.IRBuilder(function.append_basic_block())
    place = builder.bitcast(function.args[0], packed.as_pointer())
    code, *values = (builder.load(cgutils.gep_inbounds(builder, place, 0, i)) for i in range(len(packed.elements)))
    kind = context.call_conv.get_function_type(called.return_type, called.args)
    # whether it raised is not asked: code of kernels has nothing that raises
    context.call_conv.call_function(
        builder, builder.inttoptr(code, kind.as_pointer()), called.return_type, called.args, values
    )
    builder.ret_void()
    return function
