"""What stands between the products of an attention layer and its cache, in one call."""

from __future__ import annotations

from ferrum_array import Tensor
from ferrum_ops.kv_cache import KVCache
from ferrum_ops.kv_ops import append_slots, kv_append
from ferrum_ops.norm import check_rms_norm, mixed
from ferrum_ops.registry import Op
from ferrum_ops.rope import check_rope_pair, qk_norm_rope, rope, rope_features
from ferrum_ops.types import SequenceMeta

__all__ = ["rope_append"]

#: whose values can stand in a key: True would be taken for 1
_PLAIN = frozenset((int, float, type(None)))

_ROPE_APPEND: Op[Tensor] = Op("rope_append")  # rows are chosen by the dtypes of q, of the table and of the cache


def rope_append(
    cache: KVCache,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    meta: SequenceMeta,
    *,
    wq: Tensor | None = None,
    wk: Tensor | None = None,
    eps: float | None = None,
    offset: float = 0.0,
    rotary_dim: int | None = None,
    interleaved: bool = False,
) -> Tensor:
    """Queries and keys turned, keys and values written into *cache*: what ``paged_attention`` needs next.

    It is ``rope``, or with an *eps* ``qk_norm_rope``, and then ``kv_append``; the queries come back. q [T, H, D],
    k [T, Hkv, D] and v [T, Hkv, Dv] of one dtype; cos and sin [T, rotary_dim / 2]; wq and wk [D] or absent. *offset*,
    *rotary_dim* and *interleaved* are those of ``qk_norm_rope``. The reference rounds between the steps, as the calls
    do; a fused implementation need not. Everything is checked before anything is written.

    Source: as ``qk_norm_rope``.

    Raises:
        TypeError, ValueError: as ``qk_norm_rope`` and ``kv_append`` do, and for *wq*, *wk* or *offset* without *eps*.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_ops import KVCache, KVSpec, SequenceMeta, rope_append
        >>> cache = KVCache.empty(KVSpec(kv_heads=1, head_dim=2, blocks=1, block_size=4))
        >>> x = fa.asarray([[[1.0, 2.0]]])
        >>> rope_append(cache, x, 3 * x, x, fa.asarray([[0.0]]), fa.asarray([[1.0]]), SequenceMeta.packed([1]))
        Tensor([[[-2.,  1.]]])
        >>> cache.k[0], cache.v[0]
        (Tensor([[-6.,  3.]]), Tensor([[1., 2.]]))
    """
    pairs = bool(interleaved)
    key: tuple[object, ...] | None = None
    known: tuple[int, tuple[str, ...]] | None = None
    if type(meta) is SequenceMeta and type(cache) is KVCache and {type(eps), type(offset), type(rotary_dim)} <= _PLAIN:
        # the layers of a model give operands of one kind, and what was in order once is in order again
        operands = tuple([_kind(x) for x in (cache.k, q, k, v, cos, sin, wq, wk)])
        key = ("rope_append", cache.spec, operands, eps, offset, rotary_dim, pairs)
        known = meta.notes.get(key)
    if known is None:
        known = _checked(cache, q, k, v, cos, sin, meta, wq, wk, eps, offset, rotary_dim, pairs)
        if key is not None:
            meta.notes[key] = known
    turning, features = known
    dtypes = (q.dtype, cos.dtype, cache.spec.dtype)
    norm = None if eps is None else (eps, offset)
    return _ROPE_APPEND(q.device, dtypes, features, cache, q, k, v, cos, sin, meta, wq, wk, norm, turning, pairs)


def _kind(x: object) -> object:
    """All that is checked of an operand."""
    return (x._spec, x._data.shape) if type(x) is Tensor else type(x)


def _checked(
    cache: KVCache,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    meta: SequenceMeta,
    wq: Tensor | None,
    wk: Tensor | None,
    eps: float | None,
    offset: float,
    rotary_dim: int | None,
    interleaved: bool,
) -> tuple[int, tuple[str, ...]]:
    """How many dimensions turn, and the features of the call, once it is known to be in order."""
    append_slots("rope_append", cache, k, v, meta)
    turning = check_rope_pair("rope_append", q, k, cos, sin, rotary_dim)
    if eps is not None:
        check_rms_norm("rope_append", "wq", q, wq, eps, offset)
        check_rms_norm("rope_append", "wk", k, wk, eps, offset)
    else:
        for what, given in (("wq", wq is not None), ("wk", wk is not None), ("offset", offset)):
            if given:
                raise ValueError(f"rope_append: {what} belongs to the norm of queries and keys, which needs eps")
    features = (
        *(("norm",) if eps is not None else ()),
        *(("offset",) if offset else ()),
        *rope_features(q, turning, interleaved),
        *mixed(q, wq, wk),
    )
    return turning, features


@_ROPE_APPEND.reference
def _rope_append(
    cache: KVCache,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    meta: SequenceMeta,
    wq: Tensor | None,
    wk: Tensor | None,
    norm: tuple[float, float] | None,
    rotary_dim: int,
    interleaved: bool,
) -> Tensor:
    if norm is None:
        q, k = (rope(x, cos, sin, rotary_dim=rotary_dim, interleaved=interleaved) for x in (q, k))
    else:
        eps, offset = norm
        q, k = qk_norm_rope(
            q, k, wq, wk, cos, sin, eps=eps, offset=offset, rotary_dim=rotary_dim, interleaved=interleaved
        )
    kv_append(cache, k, v, meta)
    return q
