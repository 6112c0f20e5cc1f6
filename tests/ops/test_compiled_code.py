"""Compiled kernels on disk: what one process leaves there serves the next, and is never taken for something else."""

from __future__ import annotations

import ast
import importlib
import os
import pkgutil
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from types import ModuleType

import numpy as np
import pytest

from ferrum_ops.quant.gguf import GgufType

pytest.importorskip("numba")

#: gated activations in a process of its own, beside the reference
SCRIPT = dedent("""
    import sys
    import ferrum_array as fa
    from ferrum_ops import explain, gated_activation, use_fast_paths

    x, up = fa.linspace(-4.0, 4.0, 64), fa.ones(64)
    for kind in sys.argv[1:]:
        assert explain(gated_activation, x, up, kind).runs == "cpu.gated_activation"
        found = gated_activation(x, up, kind)
        with use_fast_paths(False):
            print(kind, float(fa.max(fa.abs(found - gated_activation(x, up, kind)))))
""")


def errors(folder: Path, *kinds: str) -> dict[str, float]:
    """How far kernels are from the reference in a new process that keeps its code in *folder*."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *kinds],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "NUMBA_CACHE_DIR": str(folder)},
    )
    return {kind: float(error) for kind, error in (line.split() for line in done.stdout.splitlines())}


def test_pieces_from_several_processes_are_told_apart(tmp_path: Path) -> None:
    """Each process calls what it compiles first by one name; the last one loads what both have left."""
    for kinds in (("gelu",), ("gelu_tanh",), ("gelu", "gelu_tanh"), ("gelu_tanh", "gelu")):
        found = errors(tmp_path, *kinds)
        assert found.keys() == set(kinds)
        assert max(found.values()) < 1e-6


def test_broken_pieces_are_compiled_again(tmp_path: Path) -> None:
    assert max(errors(tmp_path, "relu").values()) < 1e-6
    pieces = list(tmp_path.rglob("*.code"))
    assert len(pieces) > 2
    for piece in pieces:
        data = piece.read_bytes()
        piece.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert max(errors(tmp_path, "relu").values()) < 1e-6


LOST = dedent("""
    import shutil
    import ferrum_array as fa
    from ferrum_ops import activation
    from ferrum_ops.kernels.cpu.cache import folder

    shutil.rmtree(folder())
    print(activation(fa.asarray([-1.0, 2.0]), "relu").tolist())
""")


def test_a_lost_folder_stops_nothing(tmp_path: Path) -> None:
    where = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", LOST], capture_output=True, text=True, check=True, env=where)
    assert done.stdout.strip() == "[0.0, 2.0]"


def constants(module: ModuleType) -> set[str]:
    """The names of what a module of kernels imports from elsewhere in Ferrum and that holds numbers."""
    found = set()
    assert module.__file__ is not None
    for node in ast.walk(ast.parse(Path(module.__file__).read_text())):
        place = (node.module or "") if isinstance(node, ast.ImportFrom) else ""
        if place.startswith("ferrum_") and not place.startswith("ferrum_ops.kernels.cpu"):
            source = importlib.import_module(place)
            found |= {one.name for one in node.names if holds_numbers(getattr(source, one.name))}
    return found


def holds_numbers(value: object) -> bool:
    if isinstance(value, (tuple, list)):
        return any(map(holds_numbers, value))
    if isinstance(value, dict):
        return any(map(holds_numbers, value.values()))
    return isinstance(value, (int, float, np.generic, GgufType))


def test_code_is_told_apart_by_the_numbers_of_other_folders_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from ferrum_ops.kernels import cpu
    from ferrum_ops.kernels.cpu import activations, cache

    found: set[str] = set()
    for one in pkgutil.iter_modules(cpu.__path__):
        found |= constants(importlib.import_module(f"{cpu.__name__}.{one.name}"))
    assert found == cache.CONSTANTS.keys()
    file, digest = str(activations.__file__), cache._sources.__wrapped__
    before = digest(file)
    assert digest(file) == before
    monkeypatch.setitem(cache.CONSTANTS, "GREATEST_SCALE", 1.0)
    assert digest(file) != before


def test_functions_of_one_name_must_be_told_apart() -> None:
    from ferrum_ops.kernels.cpu.jit import jit

    def make(step: int) -> None:
        @jit
        def more(x: int) -> int:
            return x + step

    with pytest.raises(TypeError, match="say which with variant"):
        make(1)
