"""Gluon's language on NumPy for kernels whose groups of warps copy and multiply at the same time.

Groups are threads of which one runs at a time: whenever one waits for a barrier or arrives at one, a seed decides
which goes on, or which copy lands. So many orders are met in which a GPU may do things, and these are errors:

- that nobody can go on;
- memory that changes while a product or a copy still reads it, or that a copy reads before a fence;
- the use of a product before it was waited for;
- descriptors whose steps bulk copies cannot take, or that reach beyond their tensor.

Memory is poison until something is written, and again from when a copy into it begins until it lands.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np

from ferrum_array import Tensor
from ferrum_ops.kernels.cuda.maps import Map
from tests.ops.interpreted.gluon_memory import (
    Barrier,
    Descriptor,
    Groups,
    Pointer,
    Product,
    Shared,
    array_of,
)

__all__ = ["Program", "stand_in"]


class _Language:
    """What a program calls."""

    float32, int32, int64 = np.dtype(np.float32), np.dtype(np.int32), np.dtype(np.int64)
    static_range = range

    def __init__(self) -> None:
        self.begin(0, 1, 0)
        self.NVMMASharedLayout = SimpleNamespace(get_default_for=lambda *_: None)
        self.mbarrier = SimpleNamespace(
            MBarrierLayout=lambda: None,
            init=lambda barrier, count: barrier.init(count),
            arrive=self._arrive,
            expect=self._expect,
            wait=self._wait,
        )
        self.tma = SimpleNamespace(
            async_copy_global_to_shared=self._copy_in,
            async_copy_shared_to_global=self._copy_out,
            store_wait=self._store_wait,
        )

    def begin(self, program: int, programs: int, seed: int) -> None:
        self.program, self.programs, self.groups = program, programs, Groups(seed)
        self.named: dict[int, Barrier] = {}

    # layouts do not matter
    def BlockedLayout(self, *_: Any) -> None: ...
    def SliceLayout(self, *_: Any) -> None: ...
    def NVMMADistributedLayout(self, *_: Any) -> None: ...

    def DotOperandLayout(self, *_: Any) -> Any:
        return SimpleNamespace(parent=None)

    def convert_layout(self, values: Any, _: Any) -> Any:
        return values

    # numbers
    def constexpr(self, value: Any) -> Any:
        return value

    def program_id(self, _: int) -> int:
        return self.program

    def num_programs(self, _: int) -> int:
        return self.programs

    def cdiv(self, a: int, b: int) -> int:
        return -(-a // b)

    def arange(self, start: int, end: int, layout: Any) -> Any:
        return array_of(np.arange(start, end, dtype=np.int32))

    def full(self, shape: Sequence[int], value: float, kind: Any, layout: Any) -> Any:
        return array_of(np.full(shape, value, kind))

    def zeros(self, shape: Sequence[int], kind: Any, layout: Any) -> Any:
        return array_of(np.zeros(shape, kind))

    def where(self, condition: Any, a: Any, b: Any) -> Any:
        if not np.ndim(condition):
            return a if condition else b
        kind = np.result_type(*(x for x in (a, b) if isinstance(x, np.ndarray)))
        return array_of(np.where(condition, a, b).astype(kind))

    def cast(self, x: Any, kind: Any) -> Any:
        return array_of(np.asarray(x).astype(kind))

    def to_tensor(self, x: Any) -> Any:
        return x

    def minimum(self, a: Any, b: Any) -> Any:
        return array_of(np.minimum(a, b))

    def maximum(self, a: Any, b: Any) -> Any:
        return array_of(np.maximum(a, b))

    def abs(self, x: Any) -> Any:
        return np.abs(x)

    def exp2(self, x: Any) -> Any:
        return np.exp2(x)

    def log2(self, x: Any) -> Any:
        return np.log2(x)

    def max(self, x: Any, axis: int) -> Any:
        return x.max(axis=axis)

    def sum(self, x: Any, axis: int) -> Any:
        return x.sum(axis=axis, dtype=x.dtype)

    # memory
    def allocate_shared_memory(self, kind: Any, shape: Sequence[int], layout: Any) -> Shared:
        if kind is self.int64:
            barriers = np.empty(shape, object)
            for place in np.ndindex(*shape):
                barriers[place] = Barrier()
            return Shared(barriers, self.groups)
        poison = np.frombuffer(b"\xff" * int(np.prod(shape)) * kind.itemsize, kind)
        return Shared(poison.reshape(shape).copy(), self.groups)

    def load(self, source: Pointer) -> Any:
        found = source.array.reshape(-1)[source.at]
        return array_of(found)

    def store(self, to: Pointer, values: Any, mask: Any) -> None:
        places, numbers, chosen = np.broadcast_arrays(to.at, values, mask)
        to.array.reshape(-1)[places[chosen]] = numbers[chosen]

    def inline_asm_elementwise(self, text: str, _: str, names: Sequence[Any], **_options: Any) -> None:
        """Arrive at a barrier of two groups that has a number, and wait there for the other or go on."""
        found = re.search(r"bar[.](sync|arrive) [$]1, 256;", text)
        assert found is not None, text
        (name,) = set(names[0].tolist())
        barrier = self.named.setdefault(name, Barrier())
        if not barrier.count:
            barrier.init(2)
        phase = barrier.phase
        barrier.arrive(1)
        self.groups.wait(lambda: found[1] == "arrive" or barrier.phase != phase)

    def _arrive(self, barrier: Barrier, count: int) -> None:
        barrier.arrive(count)
        self.groups.wait(lambda: True)

    def _expect(self, barrier: Barrier, size: int) -> None:
        barrier.bytes += size
        barrier.arrive(1)

    def _wait(self, barrier: Barrier, parity: int) -> None:
        self.groups.wait(lambda: barrier.phase % 2 != parity)

    def _copy_in(self, source: Descriptor, start: Sequence[int], barrier: Barrier, to: Shared) -> None:
        to.values.view(np.uint8)[...] = 0xFF
        held = to.held()

        def land() -> None:
            held()
            found, places = source.part(start)
            to.values[...] = 0
            to.values[places] = found
            barrier.land(to.values.nbytes)

        self.groups.copies.append(land)

    def _copy_out(self, to: Descriptor, start: Sequence[int], source: Shared) -> None:
        assert self.groups.own.fenced, "a copy of what was stored without a fence"
        self.groups.own.stores.append((to, start, source, source.held()))

    def _store_wait(self, left: int) -> None:
        assert left == 0
        for to, start, source, held in self.groups.own.stores:
            held()
            found, places = to.part(start)
            found[...] = source.values[places]
        self.groups.own.stores.clear()

    def fence_async_shared(self) -> None:
        self.groups.own.fenced = True

    # products
    def warpgroup_mma(self, a: Any, b: Shared, total: Any, *, use_acc: bool = True, is_async: bool) -> Product:
        assert is_async
        held = [x.held() for x in (a, b) if isinstance(x, Shared)]
        left = a.values if isinstance(a, Shared) else a
        assert left.dtype == b.dtype
        if isinstance(total, Product):  # that may still be on its way
            total = total.value
        assert total.shape == (left.shape[0], b.values.shape[1])
        product = np.einsum("ik,kj->ij", left.astype(np.float32), b.values.astype(np.float32))  # begins no threads
        self.groups.own.products.append(Product(array_of(product + total if use_acc else product), held))
        made: Product = self.groups.own.products[-1]
        return made

    def warpgroup_mma_wait(self, left: int, values: Sequence[Any]) -> Any:
        products = self.groups.own.products
        while len(products) > left:
            product = products.pop(0)
            for same in product.held:
                same()
            product.done = True
        found = []
        for value in values:
            assert not isinstance(value, Product) or value.done, "a product that is still on its way"
            found.append(value.value if isinstance(value, Product) else value)
        return found[0] if len(found) == 1 else found

    def warp_specialize(self, groups: Sequence[Any], warps: Sequence[int], registers: Sequence[int]) -> None:
        assert len(groups) - 1 == len(warps) == len(registers)
        self.groups.run(groups)


class Program:
    """A kernel, and how it is launched; stands for ``Kernel``. *seed* says in which order things happen."""

    def __init__(self, function: Callable[..., None], language: _Language) -> None:
        self._function, self._language = function, language
        self.seed = self.launches = 0

    def __call__(self, grid: tuple[int], *arguments: Any, **constants: Any) -> None:
        """Run a program for each point of the grid, one after another."""
        self.launches += 1
        ready = [
            Pointer(x._data)
            if isinstance(x, Tensor)
            else Descriptor(x.tensor._data, x.shape, x.steps, x.tile)
            if isinstance(x, Map)
            else x
            for x in arguments
        ]
        for place in range(grid[0]):
            self._language.begin(place, grid[0], self.seed + place)
            self._function(*ready, **constants)


def stand_in(path: Path, name: str, parts: Sequence[str] = ()) -> Program:
    """The kernel *name* of the file, which imports Gluon, as a program on NumPy.

    Args:
        parts: modules beside the file that it imports, each after those that it imports itself.
    """
    language = _Language()
    gluon = SimpleNamespace(jit=lambda function: function, language=language)
    names: dict[str, Any] = {
        "triton.experimental": SimpleNamespace(gluon=gluon),
        "triton.experimental.gluon": gluon,
        "triton.experimental.gluon.language.nvidia.hopper": language,
    }
    with mock.patch.dict(sys.modules, names):
        for part in parts:
            sys.modules[f"ferrum_ops.kernels.cuda.source.{part}"] = _executed(path.with_name(f"{part}.py"))
        return Program(getattr(_executed(path), name), language)


def _executed(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("stand_in_" + path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
