"""What the compiler makes, for a Hopper GPU, of the kernels that a program launches; no GPU is needed.

A process of its own runs rows on NumPy storage; where they launch a kernel, it is compiled instead.
"""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[3]

_PRELUDE = """
import json, re
import ferrum_array as fa
from ferrum_array import Tensor
from ferrum_ops.kernels.cuda import launch, maps
from tests.ops.interpreted.machine_code import disassembled, unset
from triton.backends.compiler import GPUTarget

if ORDINARY:
    launch.assembling.target = lambda capability: GPUTarget("cuda", capability, 32)

def compile_instead(self, grid, *arguments, warps=4, stages=3, registers=0, early=False, **constants):
    kinds = []
    for place, argument in enumerate(arguments):
        if isinstance(argument, Tensor):
            kinds.append(argument.dtype)
        elif isinstance(argument, maps.Map):
            kinds.append(maps.kind(argument.tensor.dtype, argument.tile))
        elif isinstance(argument, int):
            kinds.append(("i32",) if argument % 16 == 0 and place in self._watched else "i32")
        else:
            kinds.append("fp32" if isinstance(argument, float) else None)
    made = self.compiled(90, warps, stages, kinds, constants, registers)
    ptx = made.asm["ptx"]
    sass = disassembled(made.asm["cubin"]) if LOOKED_AT else None
    print(json.dumps({
        "name": self.name,
        "shared": made.metadata.shared,
        "moves": len(re.findall(r"(?:ld|st)[.]global", ptx)),
        "wide": len(re.findall(r"(?:ld|st)[.]global[^;]*[.]v4[.]b32", ptx)),
        "bulk": "wgmma.mma_async" in ptx and "cp.async.bulk.tensor" in ptx,
        "local": ".local" in ptx,
        "waits": "griddepcontrol.wait" in ptx,
        "spilled": None if sass is None else sass.count(" STL"),
        "unset": None if sass is None else unset(sass),
    }))

launch.Kernel.__call__ = compile_instead
launch.capability = lambda device: 90
launch.empty = lambda shape, like, dtype=None: fa.empty(shape, dtype=dtype or like.dtype, device=like.device)
"""


@dataclass(frozen=True)
class Made:
    """The code of one launch.

    Attributes:
        name: of the kernel.
        shared: bytes of shared memory.
        moves: how many loads and stores of the GPU's memory it has.
        wide: how many of them move 16 bytes.
        bulk: whether it copies in bulk, and multiplies with the tensor cores of Hopper.
        local: whether it keeps numbers in memory that have no place in registers.
        waits: whether it waits for the launch before, which may not be done when it starts.
        spilled: how many stores there are for lack of registers; None if it is not looked at.
        unset: its instructions that read uniform registers which nothing has set; None if it is not looked at.
    """

    name: str
    shared: int
    moves: int
    wide: int
    bulk: bool
    local: bool
    waits: bool
    spilled: int | None
    unset: list[str] | None


def compiled(program: str, *, looked_at: bool = False, ordinary: bool = False) -> list[Made]:
    """The code of every launch of a program, which may use ``fa``; the package of kernels is not yet imported.

    Args:
        looked_at: whether machine code is looked at, which takes half a second each.
        ordinary: whether it is made by the ptxas that Triton takes for Hopper, not by one that may be newer.
    """
    environment = {"PATH": "", "TRITON_INTERPRET": "0", "PYTHONPATH": str(_ROOT), "HOME": str(Path.home())}
    code = f"LOOKED_AT, ORDINARY = {looked_at}, {ordinary}\n{_PRELUDE}{textwrap.dedent(program)}"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 0, run.stderr
    return [Made(**json.loads(line)) for line in run.stdout.splitlines()]
