"""Attention over caches: into how many parts keys go, and what the kernels are compiled to."""

from __future__ import annotations

import pytest

from ferrum_ops.kernels.cuda import paged
from tests.ops.interpreted.test_launch import _compiling


@pytest.mark.parametrize(
    ("programs", "keys", "pairs", "half", "parts"),
    [
        (8, 1088, False, True, 9),  # a short context of one sequence: most processors would be idle
        (8, 100, False, True, 1),
        (8, 300, False, True, 3),
        (8, 4160, False, True, 13),
        (8, 8192, False, True, 16),
        (64, 1024, False, True, 4),
        (256, 4096, False, True, 1),
        (8, 1088, False, False, 3),
        (8, 1088, True, False, 17),
        (8, 4160, True, False, 22),  # of three tiles, as many as that makes
        (8, 8192, True, False, 32),
        (64, 1088, True, False, 6),
        (256, 4096, True, False, 2),
        (8, 1 << 20, False, True, 128),
        (8, 0, False, True, 1),
    ],
)
def test_keys_are_split_for_all_processors(programs: int, keys: int, pairs: bool, half: bool, parts: int) -> None:
    assert paged._splits(programs, keys, 64, 132, pairs, half, True) == parts


def test_prompts_are_not_cut_where_programs_are_many() -> None:
    many, few = 1 << 15, 4
    assert paged._splits(many, 1 << 17, 64, 132, False, True, False) == 1
    assert paged._splits(many, 1 << 17, 64, 132, False, True, True) == 16
    assert paged._splits(few, 1 << 17, 64, 132, False, True, False) > 1


def test_every_configuration_compiles_for_hopper(tmp_path: object) -> None:
    """With room in shared memory, and with registers for all of it."""
    printed = _compiling(f"""
        import os
        os.environ["TRITON_CACHE_DIR"] = {str(tmp_path)!r}
        from ferrum_ops import KVSpec
        from ferrum_ops.kernels.cuda import paged
        F, H, I, U = fa.float32, fa.bfloat16, fa.int8, fa.uint8
        for q, k, rows, dim, value_dim, layout in (
            (H, H, 4, 128, 128, "paged"), (H, I, 4, 128, 128, "contiguous"), (H, H, 512, 128, 128, "paged"),
            (H, I, 512, 128, 128, "paged"), (H, H, 64, 256, 256, "ring"), (F, F, 512, 256, 256, "paged"),
            (H, F, 512, 512, 512, "paged"), (H, H, 512, 512, 512, "paged"), (H, U, 4, 128, 128, "paged"),
        ):
            spec = KVSpec(1, dim, 4, 64, layout, k, value_dim, "fp8_e4m3" if k is U else "")
            pairs = k in (I, U) and rows <= 16
            config, constants = paged._code(spec, q, rows, layout == "paged", pairs)
            split = rows == 4
            scale, parts = F if k in (I, U) else None, F if split else None
            kinds = [q, k, k, scale, scale, None, fa.int32, fa.int32, fa.int32, q, None, parts]
            kinds += [fa.int32 if split else None]
            kinds += ["i32"] * 6 + [("i32",)] * 2 + ["i32"] * 3 + ["fp32", None, None]
            made = paged._ATTEND.compiled(90, config.warps, config.stages, kinds, dict(
                SPLIT=split, CAUSAL=True, DIM=dim, VALUE_DIM=value_dim, BD=constants["BD"], BV=constants["BV"],
                BM=config.rows, BN=config.keys, PAGE=constants["PAGE"], LAYOUT=layout, WHOLE=config.whole,
                PRECISION=constants["PRECISION"], PAIRS=pairs, ASSEMBLY=True, GROUP=4, ROWS=4, PIECE=8))
            found = [made.asm["ptx"].count(what) for what in ("sub.f16x2", "cvt.rn.f16x2.e4m3x2", ".acq_rel")]
            print(made.metadata.shared, *found)
    """)
    shared, pairs, eights, merged = zip(*(map(int, line.split()) for line in printed.splitlines()), strict=True)
    assert len(shared) == 9
    assert max(shared) <= 227 * 1024
    assert [n > 0 for n in pairs] == [False, True, False, False, False, False, False, False, False]
    assert [n > 0 for n in eights] == [False] * 8 + [True]
    assert [n > 0 for n in merged] == [True, True, False, False, False, False, False, False, True]
