"""Caches of keys and values: contiguous, ring or paged, in floating-point, int8 or E4M3.

The three layouts are one memory, a row of slots that lie in blocks. They differ in which slot a position of a sequence
has: see :class:`KVSpec`. Which sequence a token belongs to, where it stands and which blocks its sequence has is said
by a ``SequenceMeta``; the cache itself remembers nothing but the numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

import ferrum_array as fa
from ferrum_array import Device, Dtype, Tensor
from ferrum_ops.checks import count, describe, instance
from ferrum_ops.quant.minifloat import E4M3
from ferrum_ops.types import SequenceMeta

__all__ = ["GREATEST_SCALE", "KVCache", "KVSpec", "Layout", "cache_of", "kept_as", "quantised", "read"]

Layout = Literal["contiguous", "ring", "paged"]
Codes = Literal["", "fp8_e4m3"]

#: 127 times the float32 after it is infinite
GREATEST_SCALE = 2.6793883890187504e36


def kept_as(dtype: Dtype | str) -> tuple[Dtype, Codes]:
    """The dtype of the memory of a cache, and what its numbers stand for if not for themselves.

    Raises:
        ValueError: for no such dtype.
    """
    return (fa.uint8, "fp8_e4m3") if dtype == "fp8_e4m3" else (Dtype(dtype), "")


@dataclass(frozen=True)
class KVSpec:
    """What a cache of keys and values holds, and in which order.

    Attributes:
        kv_heads: heads of keys and values, Hkv.
        head_dim: the length of a key, D.
        blocks: how many blocks there are; ``contiguous`` and ``ring`` have one for each sequence.
        block_size: slots of a block: for ``contiguous`` the longest sequence, for ``ring`` how many positions are kept.
        layout: where position p of a sequence lies. ``contiguous``: in slot p of its block. ``ring``: in slot
            ``p % block_size`` of its block, in place of what was there. ``paged``: in slot ``p % block_size`` of the
            block that the sequence's block table names at ``p // block_size``.
        dtype: a real floating dtype, or int8: then each token and head has a float32 scale, the greatest magnitude
            over 127, for its key and one for its value. Or ``"fp8_e4m3"``, which is kept as uint8 with *codes*: floats
            of 8 bits, with scales too, the greatest magnitude over 448. Where all numbers of a row are of about one
            size int8 is nearer; where few are far greater than the others E4M3 is.
        value_dim: the length of a value, Dv; that of a key if absent.
        codes: what uint8 stands for: ``"fp8_e4m3"``; empty for other dtypes.

    Source of E4M3: Micikevicius et al., "FP8 formats for deep learning", 2022.

    Raises:
        ValueError: for numbers below 1 or an unknown layout. TypeError: for another dtype, or codes that are not its
        own.

    Examples:
        >>> from ferrum_ops import KVSpec
        >>> spec = KVSpec(kv_heads=8, head_dim=128, blocks=100, block_size=16, layout="paged", dtype="int8")
        >>> spec.slots, spec.nbytes
        (1600, 3379200)
    """

    kv_heads: int
    head_dim: int
    blocks: int
    block_size: int
    layout: Layout = "contiguous"
    dtype: Dtype = fa.float32
    value_dim: int = 0
    codes: Codes = ""

    def __post_init__(self) -> None:
        if self.value_dim == 0:
            object.__setattr__(self, "value_dim", self.head_dim)
        for what in ("kv_heads", "head_dim", "blocks", "block_size", "value_dim"):
            count("KVSpec", what, getattr(self, what))
        if self.layout not in get_args(Layout):
            raise ValueError(f"KVSpec: layout must be one of {', '.join(get_args(Layout))}, got {self.layout!r}")
        dtype, codes = kept_as(self.dtype)
        codes = self.codes or codes
        if codes:
            if codes not in get_args(Codes) or dtype is not fa.uint8:
                raise TypeError(f"KVSpec: codes must be 'fp8_e4m3', of uint8, got {codes!r} of {dtype}")
        elif not (dtype.is_floating or dtype is fa.int8):
            raise TypeError(f"KVSpec: dtype must be real floating-point, int8 or 'fp8_e4m3', got {dtype}")
        object.__setattr__(self, "dtype", dtype)
        object.__setattr__(self, "codes", codes)

    @property
    def slots(self) -> int:
        """How many tokens there is room for."""
        return self.blocks * self.block_size

    @property
    def quantised(self) -> bool:
        """Whether keys and values are int8 or codes, with scales."""
        return not self.dtype.is_floating

    @property
    def kept(self) -> str:
        """What keys and values are kept as: the name of a dtype, or ``fp8_e4m3``."""
        return self.codes or self.dtype.name

    @property
    def nbytes(self) -> int:
        """The bytes of a cache like this."""
        numbers = self.slots * self.kv_heads * (self.head_dim + self.value_dim) * self.dtype.bytes_per_elem
        return numbers + (8 * self.slots * self.kv_heads if self.quantised else 0)


@dataclass(frozen=True, eq=False)
class KVCache:
    """The memory of a cache, which it owns: ``kv_append`` and ``kv_copy_blocks`` write into it.

    Made by :meth:`empty`. All tensors are in C order; slot s of block b has row ``b * block_size + s``.

    Attributes:
        spec: what it holds.
        k: [slots, Hkv, D].
        v: [slots, Hkv, Dv].
        k_scale: [slots, Hkv] float32 where keys are int8 or codes: ``k * k_scale[..., None]`` are the numbers, where
            codes stand for theirs.
        v_scale: the same of the values.

    Raises:
        ValueError: for tensors that are not as *spec* says.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_ops import KVCache, KVSpec, SequenceMeta, kv_append, kv_gather
        >>> cache = KVCache.empty(KVSpec(kv_heads=1, head_dim=2, blocks=1, block_size=8))
        >>> kv_append(cache, fa.ones((3, 1, 2)), fa.zeros((3, 1, 2)), SequenceMeta.packed([3]))
        >>> keys, values = kv_gather(cache, SequenceMeta((0, 0), kv_lens=(3,)))
        >>> keys.shape
        (3, 1, 2)
    """

    spec: KVSpec
    k: Tensor
    v: Tensor
    k_scale: Tensor | None = None
    v_scale: Tensor | None = None

    def __post_init__(self) -> None:
        spec = self.spec
        rows = (spec.slots, spec.kv_heads)
        for name, shape, dtype in (
            ("k", (*rows, spec.head_dim), spec.dtype),
            ("v", (*rows, spec.value_dim), spec.dtype),
            ("k_scale", rows, fa.float32),
            ("v_scale", rows, fa.float32),
        ):
            found: Tensor | None = getattr(self, name)
            if name.endswith("scale") and not spec.quantised:
                if found is not None:
                    raise ValueError(
                        f"KVCache: {name} belongs to int8 and fp8_e4m3 caches, but this one holds {spec.dtype}"
                    )
            elif found is None or found.shape != shape or found.dtype is not dtype or found.device is not self.k.device:
                given = "None" if found is None else describe(found)
                raise ValueError(f"KVCache: {name} must be {dtype}[{','.join(map(str, shape))}], got {given}")

    @classmethod
    def empty(cls, spec: KVSpec, device: Device | str | None = None) -> KVCache:
        """A cache of zeros on *device*, or the default device.

        Raises:
            TypeError: if the device does not have the dtype. MemoryError: if it lacks the memory.
        """
        rows = (spec.slots, spec.kv_heads)

        def made(*shape: int, dtype: Dtype) -> Tensor:
            return fa.zeros(shape, dtype=dtype, device=device)

        return cls(
            spec,
            made(*rows, spec.head_dim, dtype=spec.dtype),
            made(*rows, spec.value_dim, dtype=spec.dtype),
            made(*rows, dtype=fa.float32) if spec.quantised else None,
            made(*rows, dtype=fa.float32) if spec.quantised else None,
        )

    @property
    def device(self) -> Device:
        """Where the memory lies."""
        return self.k.device

    def __repr__(self) -> str:
        s = self.spec
        where = "" if self.device.kind == "cpu" else f" on {self.device}"
        return (
            f"KVCache({s.layout}, {s.kept}, {s.blocks} blocks of {s.block_size} slots, "
            f"{s.kv_heads} heads of {s.head_dim}+{s.value_dim}{where})"
        )


def cache_of(op: str, cache: KVCache, *metas: SequenceMeta) -> KVCache:
    """*cache*, once it is known to be one, and the metas to be metas.

    Raises:
        TypeError: naming the op and what came.
    """
    for meta in metas:
        instance(op, "meta", meta, SequenceMeta, "SequenceMeta(cu_seqlens, kv_lens=..., block_tables=...)")
    return instance(op, "cache", cache, KVCache, "KVCache.empty(spec)")


def quantised(x: Tensor, codes: Codes = "") -> tuple[Tensor, Tensor]:
    """Rows x [..., D] as int8 or *codes*, and float32 scales [...]: times ``scales[..., None]`` they are nearest x."""
    top = E4M3.top if codes else 127.0
    wide = x.astype(fa.float32, copy=False)
    scale = fa.max(fa.abs(wide), axis=-1) / top
    finite = fa.isfinite(scale)
    scale = fa.where(finite, fa.minimum(scale, GREATEST_SCALE), fa.nan)
    step = fa.expand_dims(fa.where(fa.logical_and(finite, scale > 0.0), scale, 1.0), axis=-1)
    steps = fa.where(fa.expand_dims(finite, axis=-1), wide, 0.0) / step
    if codes:
        return E4M3.encode(steps), scale
    return fa.clip(fa.round(steps), -127.0, 127.0).astype(fa.int8), scale


@cache
def _numbers(device: Device) -> Tensor:
    """What each of the 256 codes stands for, float32."""
    return E4M3.decode(fa.arange(256, device="cpu").astype(fa.uint8)).to_device(device)


def read(memory: Tensor, scale: Tensor | None, index: Tensor, dtype: Dtype) -> Tensor:
    """The rows *index* [...] of keys or values, [..., Hkv, *], as numbers of *dtype*."""
    rows = fa.take(memory, index, axis=0)
    if scale is None:
        return rows.astype(dtype, copy=False)
    if memory.dtype is fa.uint8:
        numbers = fa.take(_numbers(memory.device), rows.reshape(-1).astype(fa.int32), axis=0).reshape(rows.shape)
    else:
        numbers = rows.astype(fa.float32)
    wide = numbers * fa.expand_dims(fa.take(scale, index, axis=0), axis=-1)
    return wide.astype(dtype, copy=False)
