"""Random programs give the same on MLX as on NumPy: several dozen steps, with views, writes and reductions.

Each step runs on both storages. Steps that round once, or not at all, must agree in every bit, and are only compared
when the program ends, so that MLX's graph grows as it would in a program of a user. Steps whose rounding is left to
the library (``exp``, long sums, products of matrices) are compared at once, within the tolerance of their dtype; where
they differ, the program goes on with NumPy's numbers on both sides, so that no later step magnifies the difference.

FERRUM_DIFFERENTIAL says how many programs to run; they are then new ones at every run.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ferrum_array as fa
from tests.array.oracle import on, wide

CPU = fa.Device("cpu")
FLOATS = (fa.float16, fa.bfloat16, fa.float32, fa.float64)
SHAPES = ((), (1,), (5,), (0,), (3, 4), (4, 3), (1, 4), (2, 3, 4), (3, 1, 2))
LARGEST = 400  # elements; beyond that a program takes no part that grows

examples = os.environ.get("FERRUM_DIFFERENTIAL")
programs = settings(max_examples=int(examples), derandomize=False) if examples else settings()

Both = tuple[fa.Tensor, fa.Tensor]


def numbers(dtype: fa.Dtype) -> st.SearchStrategy[Any]:
    """Python numbers of *dtype*: small, at the limits, and what floating point has besides."""
    if dtype is fa.bool:
        return st.booleans()
    if dtype.is_integer:
        info = fa.iinfo(dtype)
        return st.integers(max(info.min, -9), 9) | st.sampled_from([info.min, info.max, 0, 1])
    eighths = st.integers(-64, 64).map(lambda n: n / 8)
    special = st.sampled_from([0.0, -0.0, 1.0, fa.inf, -fa.inf, fa.nan])
    if dtype.is_complex:
        return st.builds(complex, eighths, eighths)
    return st.one_of(eighths, eighths, eighths, special)


class Program:
    """The tensors of a program, twice, and the steps that it may take."""

    def __init__(self, data: st.DataObject, device: fa.Device) -> None:
        self.draw = data.draw
        self.device = device
        self.tensors: list[Both] = []
        self.log: list[str] = []

    # What a step works with.

    def new(self, dtype: fa.Dtype | None = None, shape: tuple[int, ...] | None = None) -> Both:
        dtype = dtype or self.draw(st.sampled_from(on(self.device, [*FLOATS, *fa.Dtype.all()])))
        shape = self.draw(st.sampled_from(SHAPES)) if shape is None else shape
        size = int(np.prod(shape))
        elements = self.draw(st.lists(numbers(dtype), min_size=size, max_size=size))
        here = fa.reshape(fa.asarray(elements, dtype=dtype, device=CPU), shape)
        return here, here.to_device(self.device)

    def old(self, accept: Callable[[fa.Tensor], bool] = lambda x: True) -> Both | None:
        found = [both for both in self.tensors if accept(both[0])]
        return self.draw(st.sampled_from(found)) if found else None

    def partner(self, x: fa.Tensor) -> Any:
        """An operand that goes with *x*: another tensor of its dtype and shape, a new one that broadcasts, a number."""
        kind = self.draw(st.sampled_from(["old", "new", "number"]))
        if kind == "old":
            return self.old(lambda y: y.dtype is x.dtype and y.shape == x.shape)
        if kind == "new":
            shape = tuple(1 if self.draw(st.booleans()) else n for n in x.shape[self.draw(st.integers(0, x.ndim)) :])
            return self.new(x.dtype, shape)
        number = self.draw(numbers(x.dtype))
        return number, number

    def key(self, x: fa.Tensor) -> tuple[Any, Any]:
        """A key for *x*, for both storages: integers, slices, new axes, integer arrays, masks."""
        parts: list[Both] = []
        for length in x.shape[: self.draw(st.integers(0, x.ndim))]:
            kind = self.draw(st.sampled_from(["integer", "slice", "slice", "array", "mask", "new axis"]))
            if kind == "new axis":
                parts.append((None, None))  # type: ignore[arg-type]  # a part of a key
            if kind == "integer" and length:
                index = self.draw(st.integers(-length, length - 1))
                parts.append((index, index))  # type: ignore[arg-type]  # a part of a key
            elif kind == "array" and length and not any(isinstance(p, fa.Tensor) for p, _ in parts):
                indices = self.draw(st.lists(st.integers(-length, length - 1), max_size=4))
                parts.append(self.twice(fa.asarray(indices, dtype=fa.int64, device=CPU)))
            elif kind == "mask" and not any(isinstance(p, fa.Tensor) for p, _ in parts):
                mask = self.draw(st.lists(st.booleans(), min_size=length, max_size=length))
                parts.append(self.twice(fa.asarray(mask, dtype=fa.bool, device=CPU)))
            else:
                bound = st.none() | st.integers(-length - 1, length + 1)
                step = self.draw(st.sampled_from([None, 1, 2, -1, -2]))
                part = slice(self.draw(bound), self.draw(bound), step)
                parts.append((part, part))  # type: ignore[arg-type]  # a part of a key
        return tuple(p for p, _ in parts), tuple(q for _, q in parts)

    def twice(self, x: fa.Tensor) -> Both:
        return x, x.to_device(self.device)

    def axis(self, x: fa.Tensor) -> int:
        return self.draw(st.integers(-x.ndim, x.ndim - 1))

    # Running a step.

    def run(self, what: str, function: Callable[..., Any], *operands: Any, rounded: bool = False) -> None:
        """Call *function* with the first and with the second of all *operands*, and keep what it returns."""
        self.log.append(f"{what}({', '.join(brief(one[0]) for one in operands)})")
        outcomes = []
        for side in (0, 1):
            try:
                outcomes.append(function(*(one[side] for one in operands)))
            except (TypeError, ValueError, IndexError, OverflowError) as error:
                outcomes.append(error)
        here, there = outcomes
        if isinstance(here, Exception) or isinstance(there, Exception):
            assert type(here) is type(there), f"{self.log[-1]}: NumPy {here!r}, MLX {there!r}"
            return
        for one, other in zip(*(x if isinstance(x, tuple) else (x,) for x in (here, there)), strict=True):
            if one is None:
                continue
            self.same_kind(one, other)
            if rounded and not self.equal(one, other, rounded=True):
                other = one.to_device(self.device)
            if one.size <= LARGEST:
                self.tensors.append((one, other))

    def same_kind(self, here: fa.Tensor, there: fa.Tensor) -> None:
        assert there.device is self.device
        assert (there.dtype, there.shape) == (here.dtype, here.shape), (
            f"{self.log[-1]}: NumPy gives {here._summary()}, MLX {there._summary()}"
        )

    def equal(self, here: fa.Tensor, there: fa.Tensor, *, rounded: bool) -> bool:
        """Whether the elements agree in every bit (NaNs and the sign of zeros apart); AssertionError if not at all."""
        a, b = wide(here), wide(there)
        if np.array_equal(a, b, equal_nan=here.dtype.is_floating or here.dtype.is_complex):
            return True
        assert rounded, "\n".join([*self.log, f"NumPy {here!r}", f"MLX {there!r}"])
        fa.testing.assert_close(there.to_device(CPU), here)
        return False

    def finish(self) -> None:
        for here, there in self.tensors:
            self.equal(here, there, rounded=False)


def brief(value: Any) -> str:
    if isinstance(value, tuple):
        return "(" + ", ".join(map(brief, value)) + ")"
    return value._summary() if isinstance(value, fa.Tensor) else repr(value)


EXACT_PAIRS = ("add", "subtract", "multiply", "maximum", "minimum", "floor_divide", "remainder", "divide")
COMPARISONS = ("equal", "not_equal", "less", "less_equal", "greater", "greater_equal")
BITS = ("bitwise_and", "bitwise_or", "bitwise_xor", "bitwise_left_shift", "bitwise_right_shift")
EXACT = ("negative", "abs", "square", "sign", "floor", "ceil", "trunc", "round", "isnan", "isfinite", "sqrt", "real")
ROUNDED = ("exp", "expm1", "log", "log1p", "log2", "sin", "cos", "tanh", "atan", "asinh", "sinh", "tan", "acos")


def step_new(p: Program) -> None:
    p.tensors.append(p.new())


def step_pair(p: Program) -> None:
    name = p.draw(st.sampled_from(EXACT_PAIRS + COMPARISONS + BITS))
    x = p.old()
    y = p.partner(x[0]) if x else None
    if x and y:
        # complex quotients and the float quotients' floors round more than once
        inexact = x[0].dtype.is_complex or name in ("floor_divide", "remainder")
        p.run(name, getattr(fa, name), x, y, rounded=inexact and not x[0].dtype.is_integer)


def step_power(p: Program) -> None:
    x = p.old(lambda x: not x.dtype.is_complex)
    if x:
        exponent = p.draw(st.integers(0, 3))
        p.run("pow", fa.pow, x, (exponent, exponent), rounded=x[0].dtype.is_floating)


def step_one(p: Program) -> None:
    name = p.draw(st.sampled_from(EXACT))
    x = p.old()
    if x:
        p.run(name, getattr(fa, name), x, rounded=x[0].dtype.is_complex)


def step_rounded(p: Program) -> None:
    name = p.draw(st.sampled_from(ROUNDED))
    x = p.old(lambda x: x.dtype.is_floating)
    if x:
        p.run(name, getattr(fa, name), x, rounded=True)


def step_reduce(p: Program) -> None:
    name = p.draw(st.sampled_from(["sum", "prod", "max", "min", "mean", "any", "all", "count_nonzero", "var"]))
    x = p.old()
    if x:
        axes = p.draw(st.none() | st.sampled_from(list(range(x[0].ndim)) or [None]))
        keep = p.draw(st.booleans())
        inexact = name in ("sum", "prod", "mean", "var") and not (x[0].dtype.is_integer and name in ("sum", "prod"))
        p.run(name, lambda x: getattr(fa, name)(x, axis=axes, keepdims=keep), x, rounded=inexact)


def step_place(p: Program) -> None:
    x = p.old(lambda x: x.ndim > 0 and x.size > 0 and not x.dtype.is_complex)
    if x:
        name = p.draw(st.sampled_from(["argmax", "argmin", "argsort", "sort"]))
        axis = p.axis(x[0])
        options = {"descending": p.draw(st.booleans())} if name.endswith("sort") else {}
        p.run(name, lambda x: getattr(fa, name)(x, axis=axis, **options), x)


def step_running(p: Program) -> None:
    x = p.old(lambda x: x.ndim > 0)
    if x:
        axis = p.axis(x[0])
        inexact = not x[0].dtype.is_integer
        p.run("cumulative_sum", lambda x: fa.cumulative_sum(x, axis=axis), x, rounded=inexact)


def step_view(p: Program) -> None:
    x = p.old()
    if x:
        here, there = p.key(x[0])
        p.run("getitem", lambda x, key: x[key], x, (here, there))


def step_shape(p: Program) -> None:
    x = p.old(lambda x: x.ndim > 0)
    if not x:
        return
    n = x[0].ndim
    steps: list[Callable[[fa.Tensor], fa.Tensor]] = [
        lambda x: fa.permute_dims(x, order),
        lambda x: fa.reshape(x, (-1,)) if x.size else x,
        lambda x: fa.flip(x, axis=axis),
        lambda x: fa.roll(x, shift, axis=axis),
        lambda x: fa.broadcast_to(x, (2, *x.shape)),
        lambda x: fa.repeat(x, 2, axis=axis),
        lambda x: fa.concat([x, x], axis=axis),
        lambda x: fa.expand_dims(x, axis=axis),
    ]
    order, axis, shift = p.draw(st.permutations(range(n))), p.axis(x[0]), p.draw(st.integers(-3, 3))
    p.run("shape", steps[p.draw(st.integers(0, len(steps) - 1))], x)


def step_write(p: Program) -> None:
    x = p.old()
    if x:
        here, there = p.key(x[0])
        value = p.partner(x[0][here])

        def write(x: fa.Tensor, key: Any, value: Any) -> None:
            x[key] = value

        if value:
            p.run("setitem", write, x, (here, there), value)


def step_in_place(p: Program) -> None:
    x = p.old(lambda x: x.dtype is not fa.bool)
    y = p.partner(x[0]) if x else None

    def add(x: fa.Tensor, y: Any) -> None:
        x += y

    if x and y:
        p.run("+=", add, x, y)


def step_convert(p: Program) -> None:
    x = p.old(lambda x: not x.dtype.is_complex)
    if x:
        allowed = on(p.device, [*FLOATS, *fa.Dtype.all()])
        if x[0].dtype.is_floating:  # what integers do not hold is not specified
            allowed = [d for d in allowed if not d.is_integer]
        dtype = p.draw(st.sampled_from(allowed))
        p.run(f"astype {dtype}", lambda x: fa.astype(x, dtype), x)


def step_choose(p: Program) -> None:
    x = p.old()
    y = p.partner(x[0]) if x else None
    if x and y:
        p.run("where", fa.where, p.new(fa.bool, x[0].shape), x, y)


def step_matmul(p: Program) -> None:
    x = p.old(lambda x: x.ndim > 0 and x.dtype is not fa.bool)
    if x:
        y = p.new(x[0].dtype, (x[0].shape[-1], 2))
        p.run("matmul", fa.matmul, x, y, rounded=not x[0].dtype.is_integer)


def step_unique(p: Program) -> None:
    x = p.old(lambda x: not x.dtype.is_complex)
    if x:
        p.run("unique_counts", lambda x: tuple(fa.unique_counts(x)), x)
        p.run("nonzero", lambda x: fa.nonzero(x), x)


STEPS = [
    *(step_pair, step_pair, step_pair, step_power, step_one, step_one, step_rounded, step_reduce, step_reduce),
    *(step_place, step_running, step_view, step_view, step_shape, step_shape, step_write, step_write, step_in_place),
    *(step_convert, step_choose, step_matmul, step_unique, step_new),
]


@pytest.mark.mlx
@pytest.mark.parametrize("name", ["mlx:cpu", "mlx:gpu"])
def test_programs_agree(name: str) -> None:
    @programs
    @given(st.data())
    def property_(data: st.DataObject) -> None:
        program = Program(data, fa.Device(name))
        for _ in range(4):
            step_new(program)
        for step in data.draw(st.lists(st.sampled_from(STEPS), min_size=24, max_size=48)):
            step(program)
        program.finish()

    property_()


@pytest.mark.mlx
def test_the_comparison_can_fail() -> None:
    class Drawn:
        def draw(self, *_: Any) -> Any:
            raise NotImplementedError

    program = Program(Drawn(), fa.Device("mlx:cpu"))  # type: ignore[arg-type]  # nothing is drawn
    one = fa.asarray([1.0, 2.0], device=CPU)
    program.run("add", lambda x: x + float(x.device is not CPU), program.twice(one))
    with pytest.raises(AssertionError):
        program.finish()
    with pytest.raises(AssertionError):
        program.run("exp", lambda x: x + float(x.device is not CPU), program.twice(one), rounded=True)
    with pytest.raises(AssertionError):
        program.run("astype", lambda x: x if x.device is CPU else fa.astype(x, "f64"), program.twice(one))


@pytest.mark.mlx
@given(st.integers(0, 2**64 - 1), st.sampled_from(["uniform", "normal", "integers", "permutation"]))
def test_random_bits_agree(seed: int, name: str) -> None:
    found = []
    for device in ("cpu", "mlx:cpu"):
        generator = fa.random.Generator(seed)
        arguments: dict[str, tuple[Any, ...]] = {"integers": (-9, 99, (5,)), "permutation": (7,)}
        found.append(getattr(generator, name)(*arguments.get(name, ((5,),)), device=device).tolist())
    assert found[0] == found[1]
