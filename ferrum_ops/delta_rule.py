"""The gated delta rule by chunks: the work of ``gated_delta_rule`` on dense batches."""

from __future__ import annotations

import ferrum_array as fa
from ferrum_array import Tensor
from ferrum_ops.checks import accumulator
from ferrum_ops.norm import l2_norm

__all__ = ["CHUNK", "delta_rule", "unit_lower_inverse"]

#: tokens that are computed together
CHUNK = 64
# Elements of the matrices of one chunk against itself that exist at a time, so that memory does not grow with T.
_SPAN = 1 << 22


def delta_rule(
    state: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    *,
    scale: float,
    normalize: bool,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    """What ``gated_delta_rule`` gives for state [S, H, D, Dv], q and k [S, T, Hk, D], v [S, T, H, Dv], gates [S, T, H].

    The operands may be of any real floating dtype; the result is in the dtype of the state, float32 or float64.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_ops.delta_rule import delta_rule
        >>> one, gate = fa.ones((1, 1, 1, 1)), fa.full((1, 1, 1), 0.5)
        >>> o, state = delta_rule(one * 5.0, one, one, one * 3.0, 0.0 * gate, gate, scale=1.0, normalize=False, chunk=1)
        >>> o.item(), state.item()
        (4.0, 4.0)
    """
    wide = accumulator(q.dtype)
    q, k, v, g, beta = (x.astype(wide, copy=False) for x in (q, k, v, g, beta))
    sequences, length, key_heads, size = q.shape
    heads, value_size = v.shape[2:]
    if not (length and sequences and heads):
        return fa.zeros(v.shape, dtype=wide, device=v.device), state.copy()
    if normalize:
        q, k = l2_norm(q, eps=1e-6), l2_norm(k, eps=1e-6)
    q = q * scale
    # A short piece needs no chunk longer than itself.
    chunk = min(chunk, 1 << (length - 1).bit_length())
    # [S, Hk, H / Hk, T, *]: heads that share a key are neighbours
    grouped = (sequences, length, key_heads, heads // key_heads)
    q, k = (fa.moveaxis(x, 1, 2)[:, :, None] for x in (q, k))
    v = fa.moveaxis(v.reshape(*grouped, value_size), 1, 3)
    g, beta = (fa.moveaxis(x.reshape(grouped), 1, 3) for x in (g, beta))
    state = state.reshape(sequences, key_heads, heads // key_heads, size, value_size)

    span = max(1, _SPAN // (sequences * heads * chunk * chunk)) * chunk
    parts = []
    for start in range(0, length, span):
        stop = min(start + span, length)
        pieces = (_chunks(x[:, :, :, start:stop], chunk) for x in (q, k, v, g[..., None], beta[..., None]))
        o, state = _span(state, *pieces)
        parts.append(o[:, :, :, : stop - start])
    o = parts[0] if len(parts) == 1 else fa.concat(parts, axis=3)
    return fa.moveaxis(o, 3, 1).reshape(sequences, length, heads, value_size), state.reshape(
        sequences, heads, size, value_size
    )


def _chunks(x: Tensor, chunk: int) -> Tensor:
    """[S, Hk, G, T, D] as [S, Hk, G, N, C, D], filled up with zeros: such tokens leave the state as it is."""
    *leading, length, size = x.shape
    if missing := -length % chunk:
        x = fa.concat([x, fa.zeros((*leading, missing, size), dtype=x.dtype, device=x.device)], axis=-2)
    return x.reshape(*leading, (length + missing) // chunk, chunk, size)


def _span(state: Tensor, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """Some chunks: o [S, Hk, G, N * C, Dv] and the state after them."""
    chunk = v.shape[-2]
    place = fa.arange(chunk, device=v.device)
    # within[i, j] is the decay from after token j to after token i, for j <= i, and 0 above
    below = place[:, None] > place
    within = fa.exp(fa.cumulative_sum(fa.where(below, g, 0.0), axis=-2))
    within = fa.where(place[:, None] >= place, within, 0.0)
    since = fa.exp(fa.cumulative_sum(g, axis=-2))  # the decay from before the chunk to after token i
    left = fa.moveaxis(within[..., -1:, :], -1, -2)  # the decay from after token j to the end of the chunk
    reads = (q @ k.mT) * within
    solve = unit_lower_inverse(fa.where(below, (k @ k.mT) * within * beta, 0.0))
    k_left = k * left
    both = fa.concat([k, q], axis=-2)
    parts = []
    for n in range(v.shape[3]):
        old = both[..., n, :, :] @ state  # what the state before the chunk says to the keys and queries
        known, read = old[..., :chunk, :] * since[..., n, :, :], old[..., chunk:, :] * since[..., n, :, :]
        change = solve[..., n, :, :] @ (beta[..., n, :, :] * (v[..., n, :, :] - known))
        parts.append(read + reads[..., n, :, :] @ change)
        columns = k_left[..., n, :, :].mT
        # a product over one token is an outer one, which libraries for products of matrices are slow at
        state = state * since[..., n, -1:, :] + (columns * change if chunk == 1 else columns @ change)
    return fa.concat(parts, axis=3), state


def unit_lower_inverse(a: Tensor) -> Tensor:
    """The inverse of ``I + a`` for matrices *a* [..., n, n] that are 0 on the diagonal and above; n a power of two.

    Inverses of diagonal blocks, of 1, 2, 4, ... rows, are put together in pairs: the inverse of [[P, 0], [C, Q]] is
    [[P', 0], [-Q' C P', Q']] for the inverses P' and Q'. So there are products of matrices alone, on all blocks at
    once. A series in powers of *a* would need as few, but its terms can be so large that they leave no digits.

    Source: Higham, "Accuracy and stability of numerical algorithms", 2nd edition, section 14.2.2.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_ops.delta_rule import unit_lower_inverse
        >>> unit_lower_inverse(fa.asarray([[0.0, 0.0], [3.0, 0.0]]))
        Tensor([[ 1.,  0.],
                [-3.,  1.]])
    """
    *leading, n, _ = a.shape
    inverse = fa.ones((*leading, n, 1, 1), dtype=a.dtype, device=a.device)
    size = 1
    while size < n:
        pairs = n // (2 * size)
        # of each pair the block in the second row and the first column
        blocks = a.reshape(*leading, pairs, 2, size, pairs, 2, size)[..., 1, :, :, 0, :]
        corner = fa.moveaxis(fa.linalg.diagonal(fa.moveaxis(blocks, (-4, -2), (-2, -1))), -1, -3)
        inverse = inverse.reshape(*leading, pairs, 2, size, size)
        first, second = inverse[..., 0, :, :], inverse[..., 1, :, :]
        top = fa.concat([first, fa.zeros_like(first)], axis=-1)
        bottom = fa.concat([-(second @ (corner @ first)), second], axis=-1)
        inverse = fa.concat([top, bottom], axis=-2)
        size *= 2
    return inverse.reshape(*leading, n, n)
