"""The compiler of machine code is not taken at its word: what kernels of attention read has been set."""

from __future__ import annotations

import pytest

from tests.ops.interpreted.hopper import compiled
from tests.ops.interpreted.machine_code import unset


def sass(*lines: str) -> str:
    """Instructions 16 bytes apart, as they are listed."""
    listed = (
        f"        /*{16 * i:04x}*/                   {line} ;    /* 0x0000000000000000 */"
        for i, line in enumerate(lines)
    )
    return "\n        /* 0x000fe20000000f00 */\n".join(listed)


ADD = "UIADD3 UR8, UP0, UR8, 0x20, URZ"


@pytest.mark.parametrize(("lines", "found"), [
    ([ADD, "EXIT"], [ADD]),
    (["UMOV UR8, UR4", ADD], ["UMOV UR8, UR4"]),
    (["S2UR UR8, SR_CTAID.X", ADD], []),
    (["@UP1 UMOV UR8, URZ", ADD], []),  # whoever reads it has asked the same
    # a loop that may have no turn sets nothing
    (["@!P2 BRA 0x30", "UMOV UR8, URZ", "NOP", ADD, "@P1 BRA 0x10"], [ADD]),
    (["UMOV UR8, URZ", "@!P2 BRA 0x30", "UMOV UR8, URZ", ADD], []),
    (["BRA 0x20", ADD, "EXIT"], []),  # never runs
    (["BRX R2 -0x10", "EXIT", ADD], [ADD]),
    (["R2UR UR8, R0", "BRX R2 -0x10", "EXIT", ADD], []),
    # pairs, and descriptors
    (["ULDC.64 UR8, c[0x0][0x208]", "LDG.E.U16 R14, desc[UR8][R22.64]"], []),
    (["ULDC UR8, c[0x0][0x208]", "LDG.E.U16 R14, desc[UR8][R22.64]"], ["LDG.E.U16 R14, desc[UR8][R22.64]"]),
    (["UIMAD.WIDE.U32 UR6, UR7, 0x2, URZ"], ["UIMAD.WIDE.U32 UR6, UR7, 0x2, URZ"]),
    (["ULDC.64 UR6, c[0x0][0x208]", "HGMMA.64x64x16.F32.BF16 R24, R20, gdesc[UR4].tnspB, R24"], []),
    (["ULDC.64 UR6, c[0x0][0x208]", "HGMMA.64x64x16.F32.BF16 R24, gdesc[UR4], R24"],
     ["HGMMA.64x64x16.F32.BF16 R24, gdesc[UR4], R24"]),
    (["@UP0 UTMASTG.4D [UR8], [UR6]"], ["@UP0 UTMASTG.4D [UR8], [UR6]"]),
    (["UISETP.NE.AND UP0, UPT, UR8, URZ, UPT"], ["UISETP.NE.AND UP0, UPT, UR8, URZ, UPT"]),
])  # fmt: skip
def test_registers_that_nothing_has_set_are_found(lines: list[str], found: list[str]) -> None:
    assert unset(sass(*lines)) == found


ORDINARY = pytest.mark.parametrize("ordinary", [False, True])


@ORDINARY
def test_attention_with_values_of_few_columns_reads_what_was_set(ordinary: bool) -> None:
    """Where tiles of values are copied ahead, or have 64 columns, their descriptors are not what ptxas 12.8 forgets."""
    made = compiled("""
        from ferrum_ops.kernels.cuda import attending
        from ferrum_ops.tiled import AttentionOptions
        attending.INTERPRETED = True  # addresses of NumPy's storage need not be aligned
        attending.capability, attending.processors = lambda device: 90, lambda device: 132
        for tokens, dim, value_dim in ((300, 32, 32), (60, 64, 16), (300, 24, 8), (300, 33, 7), (60, 33, 7)):
            q = fa.zeros((1, tokens, 1, dim), dtype="bf16")
            k, v = (fa.zeros((1, 300, 1, n), dtype="bf16") for n in (dim, value_dim))
            attending.attention(q, k, v, None, None, AttentionOptions(1.0))
    """, looked_at=True, ordinary=ordinary)  # fmt: skip
    assert len(made) == 5
    assert [code.unset for code in made] == [[]] * 5


@ORDINARY
def test_attention_over_caches_reads_what_was_set(ordinary: bool) -> None:
    made = compiled("""
        from ferrum_ops import KVCache, KVSpec, SequenceMeta
        from ferrum_ops.kernels.cuda import paged
        from ferrum_ops.tiled import AttentionOptions
        paged.processors = lambda device: 132
        for tokens, stored, dim, value_dim in (
            (64, "bf16", 33, 7), (64, "i8", 64, 16), (400, "i8", 64, 32), (400, "i8", 24, 8), (64, "bf16", 32, 32),
        ):
            meta = SequenceMeta((0, tokens), block_tables=(tuple(range(7)),))
            cache = KVCache.empty(KVSpec(1, dim, 7, 64, "paged", fa.Dtype(stored), value_dim), "cpu")
            paged.paged_attention(fa.zeros((tokens, 1, dim), dtype="bf16"), cache, meta, (), AttentionOptions(1.0))
    """, looked_at=True, ordinary=ordinary)  # fmt: skip
    assert [code.unset for code in made if code.name == "attend"] == [[]] * 5
