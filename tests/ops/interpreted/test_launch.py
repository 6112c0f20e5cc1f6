"""The launcher: which code a launch asks for, and what the interpreter runs in its place."""

from __future__ import annotations

import ctypes
import struct
import subprocess
import sys
import textwrap
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ferrum_array as fa
from ferrum_ops.kernels.cuda import launch
from ferrum_ops.kernels.cuda.launch import INTERPRETED, Kernel, empty, power_of_two
from tests.ops.interpreted import scaling


@given(st.integers(0, 1 << 20))
def test_power_of_two_is_the_least_that_holds_so_many(size: int) -> None:
    found = power_of_two(size)
    assert found & (found - 1) == 0
    assert found >= max(1, size)
    assert found == 1 or found // 2 < size


@given(st.integers(0, 70), st.sampled_from([fa.float32, fa.float16]), st.booleans())
def test_a_launch_writes_what_the_function_computes(size: int, dtype: fa.Dtype, weighted: bool) -> None:
    x = fa.arange(size, dtype=fa.float32).astype(dtype)
    w = fa.linspace(1.0, 2.0, size).astype(dtype) if weighted else None
    out = empty(x.shape, x)
    out[...] = fa.nan
    Kernel(scaling.scaled)((-(-size // 16),), x, w, out, size, 0.5, BLOCK=16)
    expected = x.astype(fa.float32) * 0.5 * (1.0 if w is None else w.astype(fa.float32))
    assert fa.all(out == expected.astype(dtype))


def test_empty_has_the_dtype_that_is_asked_for() -> None:
    assert INTERPRETED
    like = fa.ones((2,), dtype=fa.float16)
    assert empty((3, 0), like).shape == (3, 0)
    assert empty((1,), like).dtype is fa.float16
    assert empty((1,), like, fa.int32).dtype is fa.int32


def test_launches_that_come_early_ask_the_driver_so(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def driver(configuration: Any, function: int, arguments: int, extra: None) -> int:
        it = configuration._obj
        one = it.attributes[0]
        asked.append((it.x, it.y, it.z, it.threads_x, it.threads_y, it.threads_z, it.shared, it.stream, it.count))
        asked.append((one.id, one.value[0], function, arguments, extra))
        return 1 if it.x > 7 else 0

    monkeypatch.setattr(launch, "_launcher", lambda: driver)
    code = launch._Code(None, 99, 128, 4096, 0, (), struct.Struct(""), ())
    launch._launch_early(code, (7, 5, 3), 11, 13)
    assert asked == [(7, 5, 3, 128, 1, 1, 4096, 11, 1), (6, 1, 99, 13, None)]
    assert ctypes.sizeof(launch._Attribute) == 72
    assert launch._Configuration.stream.offset == 32
    with pytest.raises(RuntimeError, match=r"does not launch \(8, 1, 1\) programs of 128 threads: error 1"):
        launch._launch_early(code, (8, 1, 1), 11, 13)


def _compiling(program: str) -> str:
    """What a process prints in which kernels are compiled, not interpreted."""
    code = "import ferrum_array as fa\nfrom ferrum_ops.kernels.cuda.launch import Kernel\n" + textwrap.dedent(program)
    environment = {"PATH": "", "TRITON_INTERPRET": "0"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_kernels_compile_for_a_gpu_that_is_not_there_and_without_torch(tmp_path: object) -> None:
    printed = _compiling(f"""
        import os, sys
        os.environ["TRITON_CACHE_DIR"] = {str(tmp_path)!r}
        from tests.ops.interpreted import scaling
        kernel = Kernel(scaling.scaled, aligned=("size",))
        made = kernel.compiled(90, 4, 3, [fa.bfloat16, None, fa.bfloat16, "i32", "fp32"], dict(BLOCK=1024))
        few = kernel.compiled(90, 4, 3, [fa.bfloat16, None, fa.bfloat16, "i32", "fp32"], dict(BLOCK=1024), 24)
        assert ".maxnreg 24" in few.asm["ptx"]
        assert ".maxnreg" not in made.asm["ptx"]
        print(len(made.asm["cubin"]) > 0, "torch" in sys.modules, "cupy" in sys.modules)
        aligned, not_aligned = (
            kernel.compiled(90, 4, 3, [x, None, x, ("i32",), "fp32"], dict(BLOCK=1024)).asm["ptx"]
            for x in (fa.float32, (fa.float32,))
        )
        print(".v4" in aligned, ".v4" in not_aligned)
    """)
    assert printed.split() == ["True", "False", "False", "True", "False"]


def test_missing_and_unknown_constants_are_named() -> None:
    printed = _compiling("""
        from tests.ops.interpreted import scaling
        try:
            Kernel(scaling.scaled).compiled(90, 4, 3, [fa.float32, None, fa.float32, "i32", "fp32"], dict(BLOC=1024))
        except TypeError as error:
            print(error)
    """)
    assert printed.strip() == "scaled: the constants are ('BLOCK',), received ('BLOC',)"


def test_aligned_names_a_parameter() -> None:
    with pytest.raises(ValueError, match="stride"):
        Kernel(scaling.scaled, aligned=("stride",))
