"""A causal language model: what every decoder family has in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import ferrum_array as fa
from ferrum_array import Dtype, Tensor
from ferrum_models.cache import ModelCache, Pass
from ferrum_models.config import Settings
from ferrum_models.layers import (
    CacheKind,
    DecoderLayer,
    Embedding,
    Linear,
    Module,
    RMSNorm,
    Room,
    Rotary,
    Step,
    layer,
)
from ferrum_ops import ActivationKind, SequenceMeta, softcap
from ferrum_ops.kv_cache import kept_as

__all__ = ["ACTIVATIONS", "CausalLM", "Decoder", "DecoderConfig"]

#: names of activation functions in configs -> ours
ACTIVATIONS: dict[str, ActivationKind] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
    "silu": "silu",
    "swish": "silu",
}


@dataclass(frozen=True)
class DecoderConfig:
    """What the configs of all decoder families say; families add what is theirs.

    Attributes:
        rotary: how heads turn, by the kind of layer.
        layer_types: the kind of each layer: ``full_attention``, ``sliding_attention`` or ``linear_attention``.
        dtype: in which the weights were stored, if the config says so.
        settings: the entries of ``config.json`` themselves.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    hidden_act: ActivationKind
    max_position_embeddings: int
    tie_word_embeddings: bool
    rotary: Mapping[str, Rotary]
    layer_types: tuple[str, ...]
    sliding_window: int | None
    dtype: Dtype | None
    eos_token_ids: tuple[int, ...]
    settings: Settings = field(repr=False, compare=False)

    def window(self, number: int) -> int | None:
        """The window of layer *number*, or None where it sees everything before it."""
        return self.sliding_window if self.layer_types[number] == "sliding_attention" else None


@layer
class Decoder(Module):
    """The vectors of tokens, through all layers.

    Attributes:
        embed_tokens: the vectors of the vocabulary.
        layers: the decoder layers.
        norm: of the last layer's result.
        embed_scale: a factor of the embedded vectors.
    """

    embed_tokens: Embedding
    layers: tuple[DecoderLayer, ...]
    norm: RMSNorm
    embed_scale: float | None = None

    def __call__(self, ids: Tensor, step: Step) -> Tensor:
        """Packed token *ids* [T] to vectors [T, hidden]."""
        x = self.embed_tokens(ids, scale=self.embed_scale, check=not step.known)
        change = None
        for one in self.layers:
            x, change = one(x, step, change)
        return self.norm.of_sum(x, change)[0]


@layer
class CausalLM(Module):
    """A decoder that predicts the next token, in the names of Hugging Face checkpoints.

    Attributes:
        config: what the family's ``config.json`` says.
        model: the decoder.
        lm_head: vectors to logits; absent where the embedding does it.
        logits_softcap: logits become ``cap * tanh(logit / cap)``.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_models import random_model
        >>> tiny = {"model_type": "llama", "vocab_size": 9, "hidden_size": 8, "intermediate_size": 8}
        >>> model = random_model({**tiny, "num_hidden_layers": 2, "num_attention_heads": 2})
        >>> model(fa.asarray([[1, 2, 3], [4, 5, 0]]), lengths=[3, 2]).shape, model.size
        ((2, 3, 9), 1080)
    """

    config: DecoderConfig
    model: Decoder
    lm_head: Linear | None = None
    logits_softcap: float | None = None

    def __call__(
        self,
        ids: Tensor,
        *,
        lengths: Sequence[int] | None = None,
        mask: Tensor | None = None,
        cache: ModelCache | None = None,
    ) -> Tensor:
        """The logits [B, T, V] of token *ids* [B, T], in float32 (float64 for float64).

        Rows of unequal lengths are padded on the right, and *lengths* says how far, or on either side, and *mask* says
        where. Padding is not computed: it may be any integers, changes nothing, goes into no cache and has logits of 0.
        Positions count from the first token of a row that is none.

        Args:
            ids: a sequence in each row; with a cache, what follows the tokens that it holds.
            lengths: how many tokens of each row count, from its beginning.
            mask: [B, T], boolean or integers: True or 1 for tokens, False or 0 for padding to the left or the right of
                them. It is read on the host.
            cache: of B sequences; it then holds these tokens too.

        Raises:
            TypeError: if *ids* are not integers, or *mask* is neither these nor boolean. ValueError: for other shapes,
            sequences longer than the model's positions or the cache, a mask with padding between tokens or other
            numbers than 0 and 1, and both *lengths* and *mask*. IndexError: for ids outside the vocabulary.
        """
        for name, value in (("ids", ids), ("mask", mask)):
            if value is not None and not isinstance(value, Tensor):
                raise TypeError(f"{name} must be a Tensor, got {type(value).__name__}; write fa.asarray(...)")
        if ids.ndim != 2:
            raise ValueError(f"ids must be [batch, tokens], got shape {ids.shape}; for one text write ids[None]")
        batch, width = ids.shape
        if mask is None:
            given = (width,) * batch if lengths is None else tuple(lengths)
            if len(given) != batch or any(not 0 <= n <= width for n in given):
                raise ValueError(f"lengths must be {batch} numbers from 0 to {width}, got {given}")
            rows = [slice(0, n) for n in given]
        elif lengths is not None:
            raise ValueError("lengths and mask both say what is padding; give one of them")
        else:
            rows = _unmasked(mask, ids.shape)
            given = tuple(row.stop - row.start for row in rows)
        whole = all(n == width for n in given)
        flat = (
            ids.reshape(batch * width) if whole else fa.concat([one[row] for one, row in zip(ids, rows, strict=True)])
        )
        logits = self.logits(self.forward(flat, given, cache))
        if whole:
            return logits.reshape(batch, width, logits.shape[-1])
        padded = fa.zeros((batch, width, logits.shape[-1]), dtype=logits.dtype, device=logits.device)
        for number, (start, row) in enumerate(zip(SequenceMeta.packed(given).cu_seqlens, rows, strict=False)):
            padded[number, row] = logits[start : start + row.stop - row.start]
        return padded

    def forward(
        self,
        ids: Tensor,
        lengths: Sequence[int],
        cache: ModelCache | None = None,
        whole: Sequence[int] | None = None,
    ) -> Tensor:
        """The last layer's vectors [T, hidden], normalised, of token *ids* [T], *lengths* of each sequence.

        Args:
            ids: the tokens of all sequences, one after the other.
            lengths: how many there are of each sequence.
            cache: of so many sequences; it then holds these tokens too.
            whole: for prompts that are read in pieces how long they are as a whole, so that RoPE that depends on it
                turns all pieces alike; as long as each sequence is after this pass, if absent. Tokens after it turn as
                in a text that they end.

        Raises:
            ValueError: for sequences longer than the model's positions or the cache, and another number of *whole*
            lengths. IndexError: for ids outside the vocabulary. The cache is then as before.
        """
        made = Pass(SequenceMeta.packed(lengths), None) if cache is None else cache.plan(lengths)
        config, meta = self.config, made.meta
        longest = max(meta.key_lengths, default=0)
        if longest > config.max_position_embeddings:
            raise ValueError(f"a sequence has {longest} tokens, but positions end at {config.max_position_embeddings}")
        lasting = meta.key_lengths if whole is None else whole
        if len(lasting) != len(lengths):
            raise ValueError(f"whole must have a length for each of {len(lengths)} sequences, got {list(lasting)}")
        tables = {kind: rotary.packed(meta, ids.device, lasting) for kind, rotary in config.rotary.items()}
        step = Step(meta, tables, () if cache is None else cache.layers, made.blocks)
        x = self.model(ids, step)
        if cache is not None:
            cache.commit(made, step.states)
        return x

    def make_cache(
        self,
        sequences: int = 1,
        capacity: int | None = None,
        *,
        kind: CacheKind = "contiguous",
        dtype: Dtype | str | None = None,
        block_size: int = 16,
        blocks: int | None = None,
        chunk: int = 512,
    ) -> ModelCache:
        """An empty cache for so many *sequences* of *capacity* tokens at most.

        Args:
            sequences: how many are computed together.
            capacity: the longest; all positions of the model if absent.
            kind: ``contiguous`` sets the memory aside at once, ``paged`` gives out blocks as sequences grow. Layers
                with a window keep rings in both.
            dtype: of keys and values; that of the model, or ``int8`` or ``fp8_e4m3``; see ``KVSpec``.
            block_size: tokens of a block.
            blocks: how many blocks; enough for all sequences at full length if absent.
            chunk: the most tokens of one sequence in one pass.

        Raises:
            ValueError: for numbers below 1, or more capacity than the model has positions.
        """
        limit = self.config.max_position_embeddings
        capacity = limit if capacity is None else capacity
        for what, n in (("sequences", sequences), ("capacity", capacity), ("block_size", block_size), ("chunk", chunk)):
            if isinstance(n, bool) or not isinstance(n, int) or n < 1:
                raise ValueError(f"make_cache: {what} must be a positive integer, got {n!r}")
        if capacity > limit:
            raise ValueError(f"make_cache: capacity is {capacity}, but the model's positions end at {limit}")
        if blocks is None:
            blocks = sequences * -(-capacity // block_size)
        wanted, codes = kept_as(self.dtype if dtype is None else dtype)
        room = Room(sequences, capacity, self.device, wanted, kind, block_size, blocks, min(chunk, capacity), codes)
        return ModelCache(room, [one.mixer.new_cache(room) for one in self.model.layers])

    def logits(self, x: Tensor) -> Tensor:
        """The logits [..., V], in float32, of vectors x [..., hidden]."""
        head = self.model.embed_tokens.as_linear if self.lm_head is None else self.lm_head
        y = head(x, dtype=fa.float64 if x.dtype is fa.float64 else fa.float32)
        return y if self.logits_softcap is None else softcap(y, self.logits_softcap)


def _unmasked(mask: Tensor, shape: tuple[int, ...]) -> list[slice]:
    """Where the tokens of each row stand."""
    if mask.shape != shape:
        raise ValueError(f"mask must have the shape of ids, {shape}, got {mask.shape}")
    if not (mask.dtype is fa.bool or mask.dtype.is_integer):
        raise TypeError(f"mask must be boolean or integers, got {mask.dtype}")
    found = []
    for number, row in enumerate(mask.tolist()):
        marks = [int(one) for one in row]
        count = sum(marks)
        first = marks.index(1) if 1 in marks else 0
        if marks != [0] * first + [1] * count + [0] * (len(marks) - first - count):
            raise ValueError(
                f"mask must be 1 for tokens that stand together and 0 beside them, but row {number} is {row}"
            )
        found.append(slice(first, first + count))
    return found
