"""Kernels of ``linear`` for processors with AVX-512: dense weights, and integers with scales.

Sums are float32, in an order of their own. Products of bfloat16 are those of the instruction ``vdpbf16ps``, which takes
numbers and sums below the least normal one, 2**-126, as 0, and adds two products before it rounds. Weights are read
where they lie; nothing is kept between calls but where that is. Where N is large and there are few inputs, the time is
that of reading the weights.

Scales meet sums: where inputs times integers leave the range of float32, from about 2**113 on, a result may be infinite
though weights times inputs would not be.

=======================  ====================  ===================  ====================================
weights                  inputs                few rows (up to 15)  more rows
=======================  ====================  ===================  ====================================
f32                      f32                   f32                  f32
f16                      f16                   f32                  f32
bf16                     bf16                  bf16                 bf16
int8, int4               f32, f16              f32                  f32
int8, int4               bf16                  bf16: 8 bits are     bf16
                                               exact in it
int8, int4 and ``a8``    any, made int8        int8, exact sums     int8, exact sums of groups
=======================  ====================  ===================  ====================================
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

import ferrum_array as fa
from ferrum_array import Dtype, Tensor
from ferrum_ops.kernels.cpu.arrays import Array, address, empty, flat, rows
from ferrum_ops.kernels.cpu.graph import hold, launch
from ferrum_ops.kernels.cpu.inputs import Inputs, as_int8, as_records, as_rows
from ferrum_ops.kernels.cpu.integers import Format
from ferrum_ops.kernels.cpu.microkernels import SIZE
from ferrum_ops.kernels.cpu.products import BF16, DEPTH, F16, F32, FEW, Product, product, together, whole
from ferrum_ops.kernels.cpu.products_int import few_integers, many_integers
from ferrum_ops.kernels.cpu.threads import crew
from ferrum_ops.quant.integer import IntScheme
from ferrum_ops.quant.tensor import QuantTensor
from ferrum_ops.recorded import ACTIVE, records

__all__ = [
    "EVERY", "Recipe", "Weights", "linear", "linear_a8_refuses", "linear_refuses", "no_a8", "prepared", "recipe",
    "refuses", "weights_of", "written_as",
]  # fmt: skip

_NAMES = {fa.float32: "f32", fa.float16: "f16", fa.bfloat16: "bf16"}
_WRITTEN = {fa.float32: F32, fa.float16: F16, fa.bfloat16: BF16}
#: groups for which there are tiles
_SMALL_GROUPS, _STEP, _LARGEST = (32, 64), 128, 2048
#: stands for rows of x that are taken as they come
EVERY = np.empty(0, np.int64)


class Recipe(NamedTuple):
    """How a kind of weights is multiplied with inputs of a dtype.

    Attributes:
        kind: the numbers that are multiplied: ``f32``, ``bf16`` or ``int8``.
        form: what few rows are multiplied as, where they come as records.
        run: multiplies all: see ``products.whole``.
        together: multiplies the same inputs with several weights: see ``products.together``.
        made: their parts.
        variant: what tells the recipe from others.
    """

    kind: str
    form: Format | None
    run: Callable[..., None]
    together: Callable[..., None]
    made: Product
    variant: tuple[object, ...]


class Weights(NamedTuple):
    """Weights [N, K], or [E, N, K], as kernels take them.

    Attributes:
        recipe: how they are multiplied.
        numbers: see ``products``.
        strides: from one matrix of a stack to the next: of values, scales and zeros.
        group: how many numbers of a row have one scale; K where all of it has.
        memory: what beside the weights must exist as long as they are used.
    """

    recipe: Recipe
    numbers: tuple[int, int, int, int, int, int, int]
    strides: tuple[int, int, int]
    group: int
    memory: object


@cache
def recipe(x: Dtype, stored: str, form: Format | None) -> Recipe:
    """The recipe for inputs of a dtype and weights that are stored so.

    *form* is given for integers with scales in groups, or with inputs of 8 bits; its kind matters only for these.
    """
    kind = "bf16" if x is fa.bfloat16 else "f32"
    variant = (kind, stored, form)
    if form is not None:
        kind = "int8" if form.kind == "int8" else kind
        form = form._replace(kind=kind)
        made = Product(few_integers(form), many_integers(form), form.bits)
    else:
        made = product(kind, stored)
        if (kind, stored) == ("bf16", "int8"):
            form = Format("bf16", 8, False, "f32", 1)
            made = made._replace(few=few_integers(form))
    return Recipe(kind, form, whole(made, variant), together(made, variant), made, variant)


class _Known(NamedTuple):
    """What was found out about weights, which holds as long as their tensors have these arrays: *storage*, in pairs.

    References are weak: memory that something else refers to is copied by the next write, and stays when weights go.
    """

    owner: weakref.ref[Any]
    storage: Sequence[tuple[Callable[[], Any], Callable[[], Any]]]
    refusal: str | None
    found: dict[Dtype, Weights]


#: by the identity of weights; an entry leaves with them
_known: dict[int, _Known] = {}


def _known_of(w: Tensor | QuantTensor) -> _Known:
    """The entry of *w*: a new one at first, and where a write has given *w* other memory."""
    key = id(w)
    entry = _known.get(key)
    if entry is not None:
        for tensor, array in entry.storage:
            if tensor()._data is not array():
                break
        else:
            return entry
    owner = weakref.ref(w, lambda _: _known.pop(key, None))
    tensors = (w,) if isinstance(w, Tensor) else w.parts.values()
    storage = [(weakref.ref(tensor), weakref.ref(tensor._data)) for tensor in tensors]
    entry = _known[key] = _Known(owner, storage, _refuses(w), {})
    return entry


def weights_of(x: Dtype, w: Tensor | QuantTensor) -> Weights:
    """*w* for inputs of a dtype; ``refuses`` must have had no objection. The caller keeps *w* as long as it uses them.

    Worked out once for each tensor, and again when a write has given it other memory.
    """
    known = _known_of(w).found
    found = known.get(x)
    if found is None:
        found = _weights_of(x, w)
        if found.memory is None:  # a copy of scales would not see a write in place
            known[x] = found
    return found


def _weights_of(x: Dtype, w: Tensor | QuantTensor) -> Weights:
    if isinstance(w, Tensor):
        place, row, stack = _place(w._data)
        found = recipe(x, _NAMES[w.dtype], None)
        return Weights(found, (place, row, 0, 0, 0, 0, 0), (stack, 0, 0), w.shape[-1], None)
    scheme, parts, count = w.scheme, w.parts, w.shape[-1]
    assert isinstance(scheme, IntScheme)
    place, row, stack = _place(parts["values"]._data)
    scales = parts["scales"]
    if scheme.group is None and scheme.bits == 8 and scheme.activations is None:
        # rows of nothing have no scales
        line = np.ascontiguousarray(scales.astype("f32", copy=False)._data) if count else np.zeros(w.shape[:-1], "f4")
        numbers = (place, row, line.ctypes.data, 4, 0, 0, max(count, 1))
        own = None if line is scales._data else line
        return Weights(recipe(x, "int8", None), numbers, (stack, 4 * w.shape[-2], 0), count, own)
    s_place, s_row, s_stack = _place(scales._data)
    z_place, z_row, z_stack = (0, 0, 0) if scheme.symmetric else _place(parts["zeros"]._data)
    group = count if scheme.group is None else scheme.group
    block = 512 // scheme.bits
    shares = block // group if scheme.group is not None and group < block else 1
    kind = "int8" if scheme.activations else "f32"
    form = Format(kind, scheme.bits, not scheme.symmetric, _NAMES[scales.dtype], shares)
    numbers = (place, row, s_place, s_row, z_place, z_row, max(group, 1))
    return Weights(recipe(x, f"int{scheme.bits}", form), numbers, (stack, s_stack, z_stack), group, None)


def _place(data: Array) -> tuple[int, int, int]:
    """The address of an array and its strides, from row to row and from matrix to matrix."""
    strides = data.strides
    return data.ctypes.data, strides[-2], strides[0] if data.ndim == 3 else 0


def refuses(w: Tensor | QuantTensor) -> str | None:
    """Why kernels cannot read the weights, or None."""
    return _known_of(w).refusal


def _refuses(w: Tensor | QuantTensor) -> str | None:
    if isinstance(w, Tensor):
        return None if _dense(w._data) else "the rows of w have gaps"
    scheme = w.scheme
    if not isinstance(scheme, IntScheme) or w.layout != "plain":
        return f"does not read {scheme.name}, {w.layout}"
    if scheme.bits == 8 and not scheme.symmetric:
        return "does not take 8 bits with zeros"
    group = scheme.group
    if group is not None and group not in _SMALL_GROUPS and (group % _STEP or group > _LARGEST):
        return f"groups are of 32, 64, 128 or multiples of 128 up to {_LARGEST} numbers, not {group}"
    if not all(_dense(part._data) for part in w.parts.values()):
        return "the rows of w have gaps"
    return None


def no_a8(*weights: Tensor | QuantTensor) -> str | None:
    """Why kernels that only multiply integers of 8 bits cannot take the weights, or None."""
    for w in weights:
        if isinstance(w, Tensor) or not isinstance(w.scheme, IntScheme) or w.scheme.activations is None:
            return "only takes weights that ask for inputs of 8 bits"
    return None


def _dense(data: Array) -> bool:
    """Whether the numbers of each row lie side by side, and rows do not go backwards."""
    return not data.size or (
        (data.shape[-1] == 1 or data.strides[-1] == data.itemsize) and all(stride >= 0 for stride in data.strides)
    )


def prepared(line: Array, step: int, index: Array, rows: int, count: int, dtype: Dtype, w: Weights) -> Inputs:
    """Rows of inputs as the weights want them: those of the flat array *line*, a step apart; with *index*, gathered."""
    kind, form, helpers = w.recipe.kind, w.recipe.form, crew(rows * count)
    if form is not None and rows <= FEW:
        return as_records(line, step, index, rows, count, w.group, form)
    if kind == "int8":
        assert form is not None
        piece = min(w.group, DEPTH)
        return as_int8(line, step, index, rows, count, w.group, piece, 16 if form.bits == 4 else 128, helpers)
    wanted = fa.bfloat16 if kind == "bf16" else fa.float32
    # words of two numbers are read whole
    if dtype is wanted and not index.size and (count * SIZE[kind] % 4 == 0 or rows <= FEW):
        return Inputs((address(line), step * line.itemsize, 0, 0, 0), line)
    return as_rows(line, step, index, rows, count, wanted, helpers)


def written_as(dtype: Dtype) -> int:
    """How results of a dtype are written: see ``products``."""
    return _WRITTEN[dtype]


def linear_refuses(_x: Tensor, w: Tensor | QuantTensor, bias: Tensor | None, out: Dtype) -> str | None:
    """Why the kernel does not take a call, or None."""
    if out not in _WRITTEN:
        return f"does not give {out}"
    return refuses(w)


def linear_a8_refuses(x: Tensor, w: Tensor | QuantTensor, bias: Tensor | None, out: Dtype) -> str | None:
    """The same, where a processor may multiply integers of 8 bits and not bfloat16."""
    return no_a8(w) or linear_refuses(x, w, bias, out)


@records
def linear(x: Tensor, w: Tensor | QuantTensor, bias: Tensor | None, out: Dtype) -> Tensor:
    """The op."""
    columns, count = w.shape
    given = math.prod(x.shape[:-1])
    line, step = rows(x)
    result, target = empty((*x.shape[:-1], columns), out, x)
    biases = None if bias is None else flat(bias.astype("f32", copy=False))
    weights = weights_of(x.dtype, w)
    inputs = prepared(line, step, EVERY, given, count, x.dtype, weights)
    output = (
        address(target),
        columns * target.itemsize,
        written_as(out),
        0 if biases is None else address(biases),
    )
    work = columns * count * given
    if ACTIVE:
        hold(w, weights.memory, inputs.memory, biases)
    launch(weights.recipe.run, inputs.numbers, weights.numbers, output, (given, count, columns), crew(work))
    return result
