"""Rotary position embedding: pairs of dimensions turn by angles that grow with the position."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ferrum_array as fa
from ferrum_array import Device, Dtype, Tensor
from ferrum_ops.checks import accumulator, alike, describe, floating, listed
from ferrum_ops.norm import check_rms_norm, mixed, rms_norm
from ferrum_ops.registry import Op
from ferrum_ops.rope_config import rope_frequencies, rope_scaling
from ferrum_ops.rope_scalings import RopeScaling

__all__ = ["qk_norm_rope", "rope", "rope_table"]

_ROPE_TABLE: Op[tuple[Tensor, Tensor]] = Op("rope_table")
_ROPE: Op[Tensor] = Op("rope")  # rows are chosen by the dtypes of x and of the table
_QK_NORM_ROPE: Op[tuple[Tensor, Tensor]] = Op("qk_norm_rope")  # by those of q and of the table

_CPU = Device("cpu")


def rope_table(
    positions: Tensor | Sequence[Any],
    dim: int,
    theta: float,
    scaling: RopeScaling | Mapping[str, Any] | None = None,
    sections: Sequence[int] | None = None,
    *,
    interleaved_sections: bool = False,
    length: int | None = None,
    dtype: Dtype | str = fa.float32,
    device: Device | str | None = None,
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the angles ``position * frequency``: positions [..., T] give two of [..., T, dim / 2].

    Frequencies and angles are computed in double precision, so that a table is right to the last bits of *dtype* at
    positions in the millions, and the same on every device; on a device without float64 they are computed on the CPU,
    and positions that lie on such a device are read back. A loop that must not wait for the device makes one table for
    all positions first and takes its rows.

    Args:
        positions: integers, as a Tensor or as (nested) sequences: [T] or [B, T], with *sections* [n, T] or [n, B, T].
        dim: how many dimensions rotate, an even number.
        theta: the base of the frequencies.
        scaling: how the frequencies are stretched to longer texts: a scaling, or the entries ``rope_parameters`` or
            ``rope_scaling`` of a model's config as they stand (see ``rope_scaling``). Its attention factor multiplies
            cosines and sines.
        sections: for texts with pictures: each of n kinds of position (time, height, width) has so many of the dim / 2
            frequencies, the first section the first ones. The entry ``mrope_section`` of a config counts as given.
        interleaved_sections: the kinds take turns instead, frequency by frequency, as long as each has some left; what
            is left over belongs to the first. The entry ``mrope_interleaved`` of a config counts as given.
        length: how long the sequence is, for the scalings that depend on it, ``dynamic`` and ``longrope``. Without it,
            one more than the largest position, for each row of [B, T] by itself. Give one length for a whole
            generation, so that the keys in its cache and its new queries turn alike.
        dtype: of the tables, floating-point.
        device: where the tables lie; where the positions lie, or the default device.

    Source: Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021; Wang et al., "Qwen2-VL",
    2024, for the sections.

    Raises:
        TypeError: for positions that are not integers, or a *dtype* that is not floating. ValueError: for shapes,
        sections and parameters that do not fit, listing what is known where a scaling is unknown.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_ops import rope_table
        >>> cos, sin = rope_table([0, 1], 4, 10000.0)
        >>> cos.shape, sin[1]
        ((2, 2), Tensor([0.84147096, 0.00999983]))
        >>> rope_table([8], 2, 10000.0, {"rope_type": "linear", "factor": 8.0})[1]
        Tensor([[0.84147096]])
    """
    dtype = Dtype(dtype)
    if not dtype.is_floating:
        raise TypeError(f"rope_table: dtype must be real floating-point, got {dtype}")
    if not isinstance(positions, Tensor):
        listed("rope_table", "positions", positions)
        positions = fa.asarray(positions, dtype=fa.int64 if not len(positions) else None, device=_CPU)
        where = fa.get_default_device() if device is None else Device(device)
    else:
        where = positions.device if device is None else Device(device)
    if not positions.dtype.is_integer:
        raise TypeError(f"rope_table: positions must be integers, got {describe(positions)}")
    if sections is not None:
        listed("rope_table", "sections", sections)
    if isinstance(scaling, Mapping):
        sections, interleaved_sections = _sections_of(scaling, sections, interleaved_sections)
    elif interleaved_sections and sections is None:
        raise ValueError("rope_table: interleaved_sections needs sections")
    axes = None if sections is None else _axes(sections, dim, interleaved_sections)
    least = 1 if sections is None else 2
    if positions.ndim not in (least, least + 1) or (sections is not None and positions.shape[0] != len(sections)):
        wanted = "[T] or [B, T]" if sections is None else f"[n, T] or [n, B, T] with n = {len(sections)} sections"
        raise ValueError(f"rope_table: positions must be {wanted}, got {describe(positions)}")
    rows, magnitude = _frequencies(positions, least, dim, theta, scaling, length)
    features = ("sections",) if axes is not None else ()
    return _ROPE_TABLE(where, (dtype,), features, positions, rows, magnitude, axes, dtype, where)


@_ROPE_TABLE.reference
def _rope_table(
    positions: Tensor,
    frequencies: tuple[tuple[float, ...], ...],
    magnitude: float,
    axes: tuple[int, ...] | None,
    dtype: Dtype,
    device: Device,
) -> tuple[Tensor, Tensor]:
    at = device if device.supports(fa.float64) else _CPU
    places = positions.to_device(at).astype(fa.float64)
    if axes is None:
        places = fa.expand_dims(places, axis=-1)
    else:  # [n, ..., T] -> [..., T, dim / 2]: the kind of position that each frequency goes by
        places = fa.moveaxis(fa.take(places, fa.asarray(axes, device=at), axis=0), 0, -1)
    turns = fa.asarray(frequencies, dtype=fa.float64, device=at)
    angles = places * (turns[0] if len(frequencies) == 1 else fa.expand_dims(turns, axis=1))
    cos, sin = ((function(angles) * magnitude).astype(dtype, copy=False) for function in (fa.cos, fa.sin))
    return cos.to_device(device), sin.to_device(device)


def _frequencies(
    positions: Tensor,
    least: int,
    dim: int,
    theta: float,
    scaling: RopeScaling | Mapping[str, Any] | None,
    length: int | None,
) -> tuple[tuple[tuple[float, ...], ...], float]:
    """The frequencies for all positions, or for each row where they depend on its length; and the magnitude."""
    kind = rope_scaling(scaling) if isinstance(scaling, Mapping) else scaling
    if not isinstance(kind, RopeScaling) or not kind.by_length or length is not None:
        found, magnitude = rope_frequencies(dim, theta, scaling, length=length)
        return (found,), magnitude
    if not positions.size:
        lengths = [0]
    else:
        over = (-1,) if least == 1 else (0, -1)
        lengths = [max(0, int(n)) + 1 for n in fa.max(positions, axis=over).reshape(-1).tolist()]
    every = [rope_frequencies(dim, theta, scaling, length=n) for n in lengths]
    return tuple(found for found, _ in every), every[0][1]


def _sections_of(
    config: Mapping[str, Any], sections: Sequence[int] | None, interleaved: bool
) -> tuple[Sequence[int] | None, bool]:
    """The sections that the call or the config gives, which must not disagree."""
    given = config.get("mrope_section")
    if given is not None:
        if sections is not None and tuple(sections) != tuple(given):
            raise ValueError(
                f"rope_table: sections are {tuple(sections)}, but the config says mrope_section={tuple(given)}"
            )
        sections = given
    interleaved = interleaved or bool(config.get("mrope_interleaved"))
    if interleaved and sections is None:
        raise ValueError("rope_table: interleaved sections need the sections, got none")
    return sections, interleaved


def _axes(sections: Sequence[int], dim: int, interleaved: bool) -> tuple[int, ...]:
    """Which kind of position each of the dim / 2 frequencies goes by."""
    sizes = tuple(sections)
    whole = all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in sizes)
    if not sizes or not whole or sum(sizes) * 2 != dim:
        raise ValueError(f"rope_table: sections must be integers that sum to dim / 2, {dim // 2}, got {sizes}")
    if not interleaved:
        return tuple(axis for axis, n in enumerate(sizes) for _ in range(n))
    many = len(sizes)
    axes = tuple(i % many if i < sizes[i % many] * many else 0 for i in range(dim // 2))
    if any(axes.count(axis) != n for axis, n in enumerate(sizes)):
        raise ValueError(f"rope_table: sections {sizes} cannot take turns; the first must be the longest")
    return axes


def rope(x: Tensor, cos: Tensor, sin: Tensor, *, rotary_dim: int | None = None, interleaved: bool = False) -> Tensor:
    """Pairs of the first *rotary_dim* dimensions of each head, turned: ``(a, b) -> (a cos - b sin, a sin + b cos)``.

    x [..., T, H, D]; cos and sin [..., T, rotary_dim / 2] as ``rope_table`` makes them, their leading axes
    broadcasting to those of *x*. The result has the shape and dtype of *x*; dimensions from *rotary_dim* on are
    copied. Computed in float32 (float64 for float64) and rounded once. With ``-sin`` it turns back.

    Args:
        x: queries or keys.
        cos: cosines, of any real floating dtype.
        sin: sines, of the dtype and shape of *cos*.
        rotary_dim: how many dimensions turn, an even number; all of D where it is absent.
        interleaved: pairs are dimensions 2i and 2i + 1, as in GPT-J; otherwise i and i + rotary_dim / 2, as in
            GPT-NeoX and Llama.

    Source: Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021.

    Raises:
        TypeError: for anything not real floating-point, or two dtypes of *cos* and *sin*. ValueError: for shapes or
        devices that do not fit.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_ops import rope
        >>> x = fa.asarray([[[1.0, 2.0, 3.0, 4.0]]])
        >>> quarter = fa.asarray([[0.0, 0.0]]), fa.asarray([[1.0, 1.0]])
        >>> rope(x, *quarter)
        Tensor([[[-3., -4.,  1.,  2.]]])
        >>> rope(x, *quarter, interleaved=True)
        Tensor([[[-2.,  1., -4.,  3.]]])
    """
    turning = check_rope("rope", "x", x, cos, sin, rotary_dim)
    features = rope_features(x, turning, interleaved)
    return _ROPE(x.device, (x.dtype, cos.dtype), features, x, cos, sin, turning, bool(interleaved))


@_ROPE.reference
def _rope(x: Tensor, cos: Tensor, sin: Tensor, rotary_dim: int, interleaved: bool) -> Tensor:
    wide = accumulator(x.dtype)
    c, s = (fa.expand_dims(table.astype(wide, copy=False), axis=-2) for table in (cos, sin))
    turning = x[..., :rotary_dim].astype(wide, copy=False)
    half = rotary_dim // 2
    a, b = (turning[..., ::2], turning[..., 1::2]) if interleaved else (turning[..., :half], turning[..., half:])
    parts = (a * c - b * s).astype(x.dtype, copy=False), (a * s + b * c).astype(x.dtype, copy=False)
    turned = fa.stack(parts, axis=-1).reshape(turning.shape) if interleaved else fa.concat(parts, axis=-1)
    return turned if rotary_dim == x.shape[-1] else fa.concat((turned, x[..., rotary_dim:]), axis=-1)


def qk_norm_rope(
    q: Tensor,
    k: Tensor,
    wq: Tensor | None,
    wk: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    *,
    eps: float,
    offset: float = 0.0,
    rotary_dim: int | None = None,
    interleaved: bool = False,
) -> tuple[Tensor, Tensor]:
    """Queries and keys normalised over each head, then turned: ``rope(rms_norm(q, wq), ...)`` and so for k.

    q [..., T, H, D] and k [..., T, Hkv, D] give two like them; wq and wk [D] or absent; cos and sin
    [..., T, rotary_dim / 2]. *eps* and *offset* are those of ``rms_norm``, *rotary_dim* and *interleaved* those of
    ``rope``. The reference rounds between the two, as the two calls do; a fused implementation need not.

    Source: Zhang and Sennrich, 2019, and Su et al., 2021; norms of queries and keys as in Dehghani et al., "Scaling
    Vision Transformers to 22 Billion Parameters", 2023.

    Raises:
        TypeError, ValueError: as ``rms_norm`` and ``rope`` do, and for q and k that do not fit together.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_ops import qk_norm_rope
        >>> q, k = fa.asarray([[[3.0, 3.0]]]), fa.asarray([[[5.0, -5.0]]])
        >>> qk_norm_rope(q, k, None, fa.asarray([0.5, 1.0]), fa.asarray([[0.0]]), fa.asarray([[1.0]]), eps=0.0)
        (Tensor([[[-1.,  1.]]]), Tensor([[[1. , 0.5]]]))
    """
    turning = check_rope_pair("qk_norm_rope", q, k, cos, sin, rotary_dim)
    check_rms_norm("qk_norm_rope", "wq", q, wq, eps, offset)
    check_rms_norm("qk_norm_rope", "wk", k, wk, eps, offset)
    features = (
        *(("offset",) if offset else ()),
        *rope_features(q, turning, interleaved),
        *mixed(q, wq, wk),
    )
    dtypes = (q.dtype, cos.dtype)
    return _QK_NORM_ROPE(q.device, dtypes, features, q, k, wq, wk, cos, sin, eps, offset, turning, bool(interleaved))


@_QK_NORM_ROPE.reference
def _qk_norm_rope(
    q: Tensor,
    k: Tensor,
    wq: Tensor | None,
    wk: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    eps: float,
    offset: float,
    rotary_dim: int,
    interleaved: bool,
) -> tuple[Tensor, Tensor]:
    def turned(x: Tensor, w: Tensor | None) -> Tensor:
        return rope(rms_norm(x, w, eps=eps, offset=offset), cos, sin, rotary_dim=rotary_dim, interleaved=interleaved)

    return turned(q, wq), turned(k, wk)


def rope_features(x: Tensor, rotary_dim: int, interleaved: bool) -> tuple[str, ...]:
    """What a turn of *x* has beyond the plain one."""
    return (
        *(("rotary_dim",) if rotary_dim != x.shape[-1] else ()),
        *(("interleaved",) if interleaved else ()),
    )


def check_rope(op: str, what: str, x: Tensor, cos: Tensor, sin: Tensor, rotary_dim: int | None) -> int:
    """How many dimensions of *x*, which *what* names, turn by the tables.

    Raises:
        TypeError, ValueError: as ``rope`` says.
    """
    floating(op, what, x)
    if x.ndim < 3:
        raise ValueError(f"{op}: {what} must be [..., T, H, D], got {describe(x)}")
    for name, table in (("cos", cos), ("sin", sin)):
        floating(op, name, table)
        alike(op, x, name, table, dtype=False)
    if cos.shape != sin.shape:
        raise ValueError(f"{op}: cos and sin must share a shape, got {describe(cos)} and {describe(sin)}")
    if cos.dtype is not sin.dtype:
        raise TypeError(f"{op}: cos and sin must share a dtype, got {describe(cos)} and {describe(sin)}")
    if rotary_dim is None:
        rotary_dim = x.shape[-1]
    if isinstance(rotary_dim, bool) or not isinstance(rotary_dim, int) or rotary_dim < 2 or rotary_dim % 2:
        raise ValueError(f"{op}: rotary_dim must be an even integer of at least 2, got {rotary_dim!r}")
    if rotary_dim > x.shape[-1]:
        raise ValueError(f"{op}: rotary_dim is {rotary_dim}, but {what} {describe(x)} has {x.shape[-1]} dimensions")
    want = (*x.shape[:-2], rotary_dim // 2)
    short = len(want) - cos.ndim
    if (
        not 0 <= short <= len(want) - 2
        or cos.shape[-2:] != want[-2:]
        or any(n not in (1, m) for n, m in zip(cos.shape, want[short:], strict=True))
    ):
        hint = ""
        if cos.ndim and cos.shape[-1] * 2 < x.shape[-1]:
            hint = f"; to turn the first {cos.shape[-1] * 2} dimensions alone, pass rotary_dim={cos.shape[-1] * 2}"
        raise ValueError(
            f"{op}: cos and sin must be [..., T, rotary_dim / 2] and broadcast to {want} for {what} {describe(x)}, "
            f"got {describe(cos)}{hint}"
        )
    return rotary_dim


def check_rope_pair(op: str, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, rotary_dim: int | None) -> int:
    """How many dimensions of queries and keys turn by the same tables.

    Raises:
        TypeError, ValueError: as ``qk_norm_rope`` says.
    """
    turning = check_rope(op, "q", q, cos, sin, rotary_dim)
    floating(op, "k", k)
    alike(op, q, "k", k)
    if k.ndim < 2 or (*q.shape[:-2], q.shape[-1]) != (*k.shape[:-2], k.shape[-1]):
        want = ",".join(map(str, (*q.shape[:-2], "Hkv", q.shape[-1])))
        raise ValueError(
            f"{op}: q and k must share all axes but the heads: for q {describe(q)} k must be [{want}], "
            f"got {describe(k)}"
        )
    return turning
