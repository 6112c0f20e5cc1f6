"""Reading the JSON files of a model folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["integer", "number", "read_json", "write_json"]


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in the file *path*.

    Raises:
        FileNotFoundError: if there is no such file. ValueError: if it holds no JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # JSON or its encoding
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object to the file *path*.

    Raises:
        OSError: if writing fails.
    """
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def integer(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """The positive integer *key*.

    Raises:
        ValueError: if it is missing without a default, no integer, or below 1.
    """
    value = config.get(key, default)
    if value is None:
        raise ValueError(f"the config has no {key!r}; it must be a positive integer")
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"the config's {key!r} must be a positive integer, got {value!r}")
    return value


def number(config: Mapping[str, Any], key: str, default: float | None = None) -> float:
    """The non-negative number *key*.

    Raises:
        ValueError: if it is missing without a default, no number, or negative.
    """
    value = config.get(key, default)
    if value is None:
        raise ValueError(f"the config has no {key!r}; it must be a number")
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
        raise ValueError(f"the config's {key!r} must be a number of at least 0, got {value!r}")
    return float(value)
