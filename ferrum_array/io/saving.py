"""Writing safetensors files: one, or many with an index where a size is not to be passed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ferrum_array.backends import hostio
from ferrum_array.dispatch import tensor
from ferrum_array.dtype import Dtype
from ferrum_array.io.files import PathLike, replacing
from ferrum_array.io.header import CODES, NAMES, build_header
from ferrum_array.tensor import Tensor

__all__ = ["plan_shards", "save_safetensors"]


@dataclass(frozen=True, slots=True)
class _Item:
    name: str
    format: str
    value: Tensor


def save_safetensors(
    tensors: Mapping[str, Any],
    path: PathLike,
    *,
    metadata: Mapping[str, str] | None = None,
    max_shard_bytes: int | None = None,
    codes: Mapping[str, str] | None = None,
) -> Path:
    """Write *tensors* to a safetensors file, or to several with an index.

    A file is written beside its target and then takes its name, so that a failure leaves the old file as it was. With
    several files all are written before the first takes its name, and the index comes last.

    Args:
        tensors: from names to tensors or NumPy arrays, on any device.
        path: the file; parts are named after it, ``model-00001-of-00002.safetensors`` for ``model.safetensors``.
        metadata: texts to store beside the tensors, in every part.
        max_shard_bytes: begin another part before the tensors of one pass this size; a larger tensor is alone in its
            part. If one part suffices the file is *path* and there is no index.
        codes: for uint8 tensors by name, an 8-bit float type of the format that their bytes stand for, for example
            ``"F8_E4M3"``.

    Returns:
        What to load: *path*, or that of the index, ``model.safetensors.index.json``.

    Raises:
        TypeError: for a name or text that is not a string, a value that is no tensor, complex128, which the format
        lacks, or *codes* for a tensor that is not uint8. ValueError: for a reserved or invalid name. OSError: if
        writing fails.

    Examples:
        >>> import ferrum_array as fa, tempfile, os
        >>> path = os.path.join(tempfile.mkdtemp(), "model.safetensors")
        >>> fa.io.save_safetensors({"a": fa.ones(8), "b": fa.ones(8)}, path, max_shard_bytes=32).name
        'model.safetensors.index.json'
    """
    if not isinstance(tensors, Mapping):
        raise TypeError(
            f"save_safetensors: tensors must map names to tensors, got {type(tensors).__name__} {tensors!r:.60}; "
            "the path comes second"
        )
    target, texts = Path(path), _texts(metadata)
    items = [_item(name, value, codes or {}) for name, value in tensors.items()]
    unknown = set(codes or ()) - set(tensors)
    if unknown:
        raise ValueError(f"save_safetensors: codes names {sorted(unknown)}, which are not among the tensors")
    sizes = [item.value.nbytes for item in items]
    shards = [list(range(len(items)))] if max_shard_bytes is None else plan_shards(sizes, max_shard_bytes)
    if len(shards) == 1:
        with replacing(target) as file:
            _write(file, items, texts)
        return target
    stem = target.name.removesuffix(".safetensors")
    index = target.with_name(f"{stem}.safetensors.index.json")
    names = [f"{stem}-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    weight_map = {items[i].name: name for name, shard in zip(names, shards, strict=True) for i in shard}
    table = {"metadata": {"total_size": sum(sizes)}, "weight_map": weight_map}
    with ExitStack() as stack:  # leaves in reverse: the index takes its name last
        index_file = stack.enter_context(replacing(index))
        index_file.write(json.dumps(table, indent=2).encode("utf-8"))
        for name, shard in zip(names, shards, strict=True):
            file = stack.enter_context(replacing(target.with_name(name)))
            _write(file, [items[i] for i in shard], texts)
    return index


def plan_shards(sizes: list[int], most: int) -> list[list[int]]:
    """Consecutive places of *sizes*, cut so that no group's sum passes *most* unless it is one size alone.

    Examples:
        >>> plan_shards([3, 3, 9, 1], 6)
        [[0, 1], [2], [3]]
    """
    if isinstance(most, bool) or not isinstance(most, int):
        raise TypeError(f"save_safetensors: max_shard_bytes must be an integer, got {type(most).__name__} {most!r}")
    if most < 1:
        raise ValueError(f"save_safetensors: max_shard_bytes must be at least 1, got {most}")
    shards: list[list[int]] = [[]]
    filled = 0
    for i, size in enumerate(sizes):
        if shards[-1] and filled + size > most:
            shards.append([])
            filled = 0
        shards[-1].append(i)
        filled += size
    return shards


def _texts(metadata: Mapping[str, str] | None) -> dict[str, str]:
    texts = dict(metadata or {})
    for key, text in texts.items():
        if not isinstance(key, str) or not isinstance(text, str):
            raise TypeError(f"save_safetensors: metadata maps texts to texts, got {key!r:.60}: {text!r:.60}")
        _encodable("metadata", key)
        _encodable("metadata", text)
    return texts


def _encodable(what: str, text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"save_safetensors: {what} {text!r:.60} is not valid Unicode") from None


def _item(name: Any, value: Any, codes: Mapping[str, str]) -> _Item:
    if not isinstance(name, str):
        raise TypeError(f"save_safetensors: names are texts, got {type(name).__name__} {name!r:.60}")
    if name == "__metadata__":
        raise ValueError("save_safetensors: the name '__metadata__' is reserved; give texts with metadata=")
    _encodable("name", name)
    one = tensor("save_safetensors", value, f"{name!r:.60}")
    code = codes.get(name)
    if code is not None:
        if code not in CODES:
            raise ValueError(f"save_safetensors: codes gives {name!r:.60} {code!r:.60}, not one of {sorted(CODES)}")
        if one.dtype is not Dtype.U8:
            raise TypeError(f"save_safetensors: {name!r:.60} must be uint8 to be stored as {code}, got {one.dtype}")
        return _Item(name, code, one)
    if one.dtype not in NAMES:
        raise TypeError(
            f"save_safetensors: {name!r:.60} is {one.dtype}, which safetensors files do not have; "
            "convert it to complex64, or use savez()"
        )
    return _Item(name, NAMES[one.dtype], one)


def _write(file: BinaryIO, items: list[_Item], metadata: Mapping[str, str]) -> None:
    facts = [(item.name, item.format, item.value.shape, item.value.nbytes) for item in items]
    head, order = build_header(facts, metadata)
    file.write(head)
    for chunk in _data(items, order):
        file.write(chunk)


def _data(items: list[_Item], order: list[int]) -> Iterator[memoryview]:
    for i in order:
        array = items[i].value.numpy()
        yield hostio.bytes_of(array if hostio.NATIVE == "<" else hostio.byteswapped(array))
