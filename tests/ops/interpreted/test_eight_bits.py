"""Writes of int8 and E4M3: what their machine code takes for numbers are numbers."""

from __future__ import annotations

import json
import re

import pytest

from tests.ops.interpreted.test_launch import _compiling


def strays(sass: str) -> list[str]:
    """The instructions that take R1, where the stack lies, for a number: ptxas does so for what it has lost.

    None where R1 holds a number, as it may in a kernel without a stack. What a single number is converted or put beside
    may be anything.
    """
    lines = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(.+?)\s*;", sass)
    stack = re.compile(r"\[R1\b|\bLDC R1,|\bR1, R1,|\b(?:F2FP|PRMT)\b")
    used = [line for line in lines if re.search(r"\bR1\b", line) and not stack.search(line)]
    written = any(re.match(r"(@!?\w+ )?\S+ R1,", line) for line in used)
    return [] if written else used


LOST = "LOP3.LUT R26, R1, 0xffff, RZ, 0xc0, !PT"


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        ([LOST], [LOST]),
        (["LDC R1, c[0x0][0x28]", LOST.replace("R1,", "R1.reuse,")], [LOST.replace("R1,", "R1.reuse,")]),
        (["FMUL R1, R2, R3", LOST], []),
        (["LDC R1, c[0x0][0x28]", "VIADD R1, R1, 0xfffffff8", "STL [R1+0x4], R0", "FMUL R10, R11, R12"], []),
    ],
)
def test_the_place_of_the_stack_is_no_number(lines: list[str], found: list[str]) -> None:
    listed = "\n".join(f"        /*{16 * i:04x}*/            {line} ;   /* 0x000f */" for i, line in enumerate(lines))
    assert strays(listed) == found


def test_codes_of_rows_of_any_length_come_from_numbers(tmp_path: object) -> None:
    printed = _compiling(f"""
        import json, os
        os.environ["TRITON_CACHE_DIR"] = {str(tmp_path)!r}
        from ferrum_array import Tensor
        from ferrum_ops import KVCache, KVSpec, SequenceMeta, rope_table
        from ferrum_ops.kernels.cuda import caching, launch, ropes
        from tests.ops.interpreted.machine_code import disassembled
        def compile_instead(self, grid, *arguments, warps=4, stages=3, **constants):
            kinds = [x.dtype if isinstance(x, Tensor) else None if x is None else "i32" for x in arguments]
            made = self.compiled(90, warps, stages, kinds, constants)
            print(json.dumps([self.name, "e4m3x2" in made.asm["ptx"], disassembled(made.asm["cubin"])]))
        launch.Kernel.__call__ = compile_instead
        ropes.empty = lambda shape, like, dtype=None: fa.empty(shape, dtype=dtype or like.dtype)
        for dim, value_dim in ((2, 3), (8, 5), (16, 64)):
            k, v = (fa.ones((1, 1, n), dtype="f32") for n in (dim, value_dim))
            cache = KVCache.empty(KVSpec(1, dim, 1, 1, dtype="fp8_e4m3", value_dim=value_dim))
            caching.kv_append(cache, k, v, (0,), SequenceMeta.packed([1]))
            turns = rope_table(range(1), dim, 1e4)
            ropes.rope_append(cache, k, k, v, *turns, SequenceMeta.packed([1]), None, None, None, dim, False)
    """)
    made = [json.loads(line) for line in printed.splitlines()]
    assert [(name, codes) for name, codes, _ in made] == [("append", True), ("turn", True)] * 3
    assert [strays(sass) for *_, sass in made] == [[]] * 6
