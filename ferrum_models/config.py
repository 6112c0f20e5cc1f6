"""Reading ``config.json``: typed entries, in the older and the newer spelling of their names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from ferrum_array import Dtype
from ferrum_models.files import read_json

__all__ = ["Settings"]

_T = TypeVar("_T")
_MISSING: Any = object()
#: what models that also see or hear say of all their parts
_OUTER = ("dtype", "torch_dtype", "eos_token_id", "quantization", "quantization_config", "tie_word_embeddings")


class Settings:
    """The entries of a model's config, each read by its name with its type checked.

    Several names are spellings of one entry: the first that is there and not null counts. Nested ``text_config``
    of models that also see or hear is read in place of the outer level.

    Raises:
        ValueError: from every method, naming the config, the entry, what came and what is wanted.

    Examples:
        >>> from ferrum_models.config import Settings
        >>> settings = Settings({"num_experts": 8, "rope_theta": 1e6}, "an example")
        >>> settings.integer("num_local_experts", "num_experts")
        8
        >>> settings.integer("hidden_size")
        Traceback (most recent call last):
        ...
        ValueError: an example: there is no hidden_size; it must be an integer of at least 1
    """

    def __init__(self, values: Mapping[str, Any], source: str = "the config") -> None:
        inner = values.get("text_config")
        if isinstance(inner, Mapping):
            values = {**{key: values[key] for key in _OUTER if key in values}, **inner}
        self.values = values
        self.source = source

    @classmethod
    def load(cls, path: Path) -> Settings:
        """The settings in the file *path*.

        Raises:
            FileNotFoundError: if there is no such file. ValueError: if it holds no JSON object.
        """
        return cls(read_json(path), str(path))

    def get(self, *names: str) -> Any:
        """The value of the first of *names* that is there and not null, or None."""
        return next((self.values[name] for name in names if self.values.get(name) is not None), None)

    def integer(self, *names: str, default: int = _MISSING, least: int = 1, most: int | None = None) -> int:
        """An integer of at least *least*, and at most *most* where that is given."""
        value = self.get(*names)
        wanted = f"an integer of at least {least}" + ("" if most is None else f" and at most {most}")
        if value is None:
            value, least = self._default(names, default, wanted), default
        if (
            isinstance(value, bool)
            or not isinstance(value, int)
            or not least <= value <= (value if most is None else most)
        ):
            raise self.error(names, value, wanted)
        return value

    def optional_integer(self, *names: str) -> int | None:
        """A positive integer, or None where it is absent or null."""
        return None if self.get(*names) is None else self.integer(*names)

    def number(self, *names: str, default: float = _MISSING, least: float = 0.0) -> float:
        """A finite number of at least *least*."""
        value = self.get(*names)
        if value is None:
            return float(self._default(names, default, f"a number of at least {least}"))
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value < float("inf"):
            raise self.error(names, value, f"a number of at least {least}")
        return float(value)

    def optional_number(self, *names: str) -> float | None:
        """A number, or None where it is absent or null."""
        return None if self.get(*names) is None else self.number(*names)

    def flag(self, *names: str, default: bool = False) -> bool:
        """True or false."""
        value = self.get(*names)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(names, value, "true or false")
        return value

    def choice(self, *names: str, known: Mapping[str, _T], default: str = _MISSING) -> _T:
        """What *known* holds for a word.

        Raises:
            ValueError: for another word, listing those that are known.
        """
        value = self.get(*names)
        if value is None:
            value = self._default(names, default, f"one of {', '.join(known)}")
        if not isinstance(value, str) or value not in known:
            raise self.error(names, value, f"one of {', '.join(known)}")
        return known[value]

    def words(self, name: str, count: int, known: Iterable[str]) -> tuple[str, ...] | None:
        """A list of *count* words out of *known*, or None where it is absent."""
        value = self.get(name)
        if value is None:
            return None
        allowed = tuple(known)
        if not isinstance(value, list) or len(value) != count or any(word not in allowed for word in value):
            raise self.error((name,), value, f"{count} words out of {', '.join(allowed)}")
        return tuple(value)

    def integers(self, *names: str) -> tuple[int, ...]:
        """One integer or a list of them; none where it is absent."""
        value = self.get(*names)
        if value is None:
            return ()
        found = value if isinstance(value, list) else [value]
        if any(isinstance(one, bool) or not isinstance(one, int) or one < 0 for one in found):
            raise self.error(names, value, "an integer or a list of integers, none negative")
        return tuple(found)

    def mapping(self, *names: str) -> Mapping[str, Any] | None:
        """A JSON object, or None where it is absent."""
        value = self.get(*names)
        if value is not None and not isinstance(value, Mapping):
            raise self.error(names, value, "an object")
        return value

    def dtype(self) -> Dtype | None:
        """The floating dtype in which the weights were stored, if the config says so."""
        value = self.get("dtype", "torch_dtype")
        if value is None:
            return None
        try:
            found = Dtype(str(value).removeprefix("torch."))
        except TypeError as error:
            raise ValueError(f"{self.source}: dtype: {error}") from None
        if not found.is_floating:
            raise self.error(("dtype", "torch_dtype"), value, "a floating dtype")
        return found

    def refuse(self, name: str, *unless: Any) -> None:
        """Demand that *name* is absent, null, false or one of *unless*: what else it asks for is not implemented."""
        value = self.values.get(name)
        if value is None or value is False or value in unless:
            return
        allowed = ", ".join(map(repr, unless)) or "left out"
        raise ValueError(f"{self.source}: {name} is {value!r}, which is not implemented; it must be {allowed}")

    def error(self, names: tuple[str, ...], value: Any, wanted: str) -> ValueError:
        """The error for an entry that came as *value*."""
        there = next((name for name in names if self.values.get(name) is not None), names[0])
        text = repr(value)
        text = text if len(text) < 80 else f"{text[:76]} ..."
        return ValueError(f"{self.source}: {there} must be {wanted}, got {text}")

    def _default(self, names: tuple[str, ...], default: Any, wanted: str) -> Any:
        if default is _MISSING:
            raise ValueError(f"{self.source}: there is no {' or '.join(names)}; it must be {wanted}")
        return default
