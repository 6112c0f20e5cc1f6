"""Which ptxas makes machine code for Hopper. Programs that say they are of some version stand for the two there are."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from triton.backends import backends
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend

from ferrum_ops.kernels.cuda import assembling

PROGRAM = """
import json, os
import ferrum_array as fa
from ferrum_ops.kernels.cuda import assembling
from ferrum_ops.kernels.cuda.launch import Kernel
from tests.ops.interpreted import scaling
import triton
before = dict(os.environ), triton.knobs.nvidia.ptxas, triton.knobs.nvidia.ptxas_blackwell
kinds = [fa.float32, None, fa.float32, "i32", "fp32"]
made = [Kernel(scaling.scaled).compiled(kind, 4, 3, kinds, dict(BLOCK=64)) for kind in (80, 90)]
assert before == (dict(os.environ), triton.knobs.nvidia.ptxas, triton.knobs.nvidia.ptxas_blackwell)
print(json.dumps([assembling.sound(), *(code.hash for code in made)]))
"""


def ran(folder: Path, releases: tuple[str, str], code: str = PROGRAM) -> tuple[list[list[str]], bool, list[str]]:
    """What the programs were asked for, whether the code is sound, and its keys for two architectures."""
    import triton

    log, environment = folder / "log", {"PATH": "", "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(folder / "cache")}
    log.write_text("")
    real = triton.knobs.nvidia.ptxas_blackwell.path
    for name, release in zip(("ptxas", "ptxas_blackwell"), releases, strict=True):
        program = folder / name
        program.write_text(
            f'#!/bin/sh\nif [ "$1" = --version ]; then echo "tools, release {release}, V{release}.0"\n'
            f'else echo "{name} $*" >> {log}; exec {real} "$@"; fi\n'
        )
        program.chmod(0o755)
        environment[f"TRITON_{name.upper()}_PATH"] = str(program)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 0, run.stderr
    asked = [[line.split()[0], line.split("--gpu-name=")[1].split()[0]] for line in log.read_text().splitlines()]
    sound, *keys = json.loads(run.stdout)
    return asked, sound, keys


@pytest.mark.parametrize(("releases", "taken", "sound"), [
    (("12.8", "12.9"), "ptxas_blackwell", True),
    (("12.8", "12.8"), "ptxas", False),
    (("12.9", "12.9"), "ptxas", True),
    (("12.9", "12.8"), "ptxas", True),
])  # fmt: skip
def test_hopper_has_the_sound_one(tmp_path: Path, releases: tuple[str, str], taken: str, sound: bool) -> None:
    asked, said, _ = ran(tmp_path, releases)
    assert asked == [["ptxas", "sm_80"], [taken, "sm_90a"]]
    assert said is sound


def test_code_is_kept_by_the_version_that_made_it(tmp_path: Path) -> None:
    first, _, (plain, key) = ran(tmp_path, ("12.8", "12.9"))
    again, _, keys = ran(tmp_path, ("12.8", "12.9"))
    assert (len(first), again, keys) == (2, [], [plain, key])
    newer, _, (still, other) = ran(tmp_path, ("12.8", "12.9, mended"))
    assert (newer, still) == ([["ptxas_blackwell", "sm_90a"]], plain)
    older, _, (_, ordinary) = ran(tmp_path, ("12.8", "12.8"))
    assert (older, len({key, other, ordinary})) == ([["ptxas", "sm_90a"]], 3)


def test_another_program_that_is_named_later_changes_nothing(tmp_path: Path) -> None:
    """As ``torch.compile`` does, which names the newest that it finds."""
    newest = tmp_path / "newest"
    newest.write_text('#!/bin/sh\necho "tools, release 13.0, V13.0.0"\n')
    newest.chmod(0o755)
    program = PROGRAM.replace(
        "\nbefore =", f"\nassembling.target(90)\nos.environ['TRITON_PTXAS_PATH'] = '{newest}'\nbefore ="
    )
    asked, _, _ = ran(tmp_path, ("12.8", "12.9"), program.replace("(80, 90)", "(90,)"))
    assert asked == [["ptxas_blackwell", "sm_90a"]]


class Missing:
    """Programs of which there is one at most."""

    def __init__(self, **versions: str) -> None:
        self.versions = versions

    def __getattr__(self, name: str) -> Any:
        if name not in self.versions:
            raise RuntimeError(f"Cannot find {name}")
        return SimpleNamespace(version=self.versions[name])


@pytest.mark.parametrize(("there", "backend", "sound"), [
    ({"ptxas": "12.8"}, "cuda", False), ({"ptxas": "13.0"}, "cuda", True),
    ({"ptxas_blackwell": "12.9"}, "cuda of ferrum", True), ({}, "cuda", False),
])  # fmt: skip
def test_programs_that_are_not_there_are_not_taken(
    monkeypatch: pytest.MonkeyPatch, there: dict[str, str], backend: str, sound: bool
) -> None:
    monkeypatch.setattr(assembling, "knobs", SimpleNamespace(nvidia=Missing(**there)))
    assert assembling.target.__wrapped__(90).backend == backend
    assert assembling.sound.__wrapped__() is sound
    assert {assembling.target.__wrapped__(other).backend for other in (80, 100, 120)} == {"cuda"}


def test_other_targets_have_the_backend_that_they_had() -> None:
    assert type(make_backend(GPUTarget("cuda", 90, 32))) is backends["nvidia"].compiler
    assert type(make_backend(assembling.target(90))) is backends["cuda of ferrum"].compiler
    assert not backends["cuda of ferrum"].driver.is_active()  # which has no devices of its own
