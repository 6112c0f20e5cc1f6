"""Compiled kernels on disk: what one process leaves there serves the next, and is never taken for something else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

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


def test_functions_of_one_name_must_be_told_apart() -> None:
    from ferrum_ops.kernels.cpu.jit import jit

    def make(step: int) -> None:
        @jit
        def more(x: int) -> int:
            return x + step

    with pytest.raises(TypeError, match="say which with variant"):
        make(1)
