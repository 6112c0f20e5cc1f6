"""How models stretch the frequencies of rotary position embedding to longer texts.

Plain Python numbers, so that every storage gets the same frequencies to the last bit.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import ClassVar

__all__ = [
    "DynamicScaling",
    "LinearScaling",
    "Llama3Scaling",
    "LongRopeScaling",
    "ProportionalScaling",
    "RopeScaling",
    "YarnScaling",
]

Frequencies = tuple[float, ...]


@lru_cache(maxsize=64)
def plain_frequencies(dim: int, theta: float) -> Frequencies:
    """Frequency i is ``theta ** (-2 i / dim)``."""
    return tuple(theta ** (-i / dim) for i in range(0, dim, 2))


@dataclass(frozen=True)
class RopeScaling(ABC):
    """What all scalings share; one of its kinds is used, made by hand or by ``rope_scaling`` from a config.

    Attributes:
        name: what configs call the kind.
        by_length: whether the frequencies depend on how long the sequence is.

    Raises:
        ValueError: for numbers that are not finite and above 0, or do not fit together.

    Examples:
        >>> from ferrum_ops import LinearScaling, RopeScaling
        >>> isinstance(LinearScaling(factor=2.0), RopeScaling), LinearScaling.name, LinearScaling.by_length
        (True, 'linear', False)
    """

    name: ClassVar[str]
    by_length: ClassVar[bool] = False
    _flags: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in self._flags:
                if not isinstance(value, bool):
                    raise ValueError(f"{type(self).__name__}: {field.name} must be True or False, got {value!r}")
            elif isinstance(value, (list, tuple)):
                object.__setattr__(self, field.name, tuple(value))
                for number in value:
                    self._check(field.name, number)
            elif value is not None or field.default is not None:
                self._check(field.name, value)

    def _check(self, name: str, value: object) -> None:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not (math.isfinite(value) and value > 0):
            raise ValueError(f"{type(self).__name__}: {name} must be finite and above 0, got {value!r}")

    @abstractmethod
    def frequencies(self, dim: int, theta: float, length: int) -> Frequencies:
        """The dim / 2 frequencies for a sequence of *length* tokens."""

    @property
    def magnitude(self) -> float:
        """The factor of cosines and sines."""
        return 1.0


@dataclass(frozen=True)
class LinearScaling(RopeScaling):
    """Position interpolation: every frequency divided by *factor*.

    Source: Chen et al., "Extending Context Window of Large Language Models via Position Interpolation", 2023.

    Examples:
        >>> from ferrum_ops import LinearScaling, rope_frequencies
        >>> rope_frequencies(4, 10000.0, LinearScaling(factor=4.0))
        ((0.25, 0.0025), 1.0)
    """

    name: ClassVar[str] = "linear"
    factor: float

    def frequencies(self, dim: int, theta: float, length: int) -> Frequencies:
        """All divided by the factor."""
        return tuple(f / self.factor for f in plain_frequencies(dim, theta))


@dataclass(frozen=True)
class DynamicScaling(RopeScaling):
    """The base grows with the length of the sequence beyond *max_position_embeddings*.

    Source: "NTK-aware scaled RoPE", dynamic form, 2023, as described by Peng et al., "YaRN", 2023, appendix B.

    Examples:
        >>> from ferrum_ops import DynamicScaling, rope_frequencies
        >>> scaling = DynamicScaling(factor=2.0, max_position_embeddings=8)
        >>> rope_frequencies(4, 100.0, scaling, length=8), rope_frequencies(4, 100.0, scaling, length=16)
        (((1.0, 0.1), 1.0), ((1.0, 0.0333...), 1.0))
    """

    name: ClassVar[str] = "dynamic"
    by_length: ClassVar[bool] = True
    factor: float
    max_position_embeddings: float

    def frequencies(self, dim: int, theta: float, length: int) -> Frequencies:
        """Those of a larger base, where the sequence is longer than the model was trained on."""
        if dim == 2:
            raise ValueError("rope: dynamic scaling needs dim of at least 4, got 2")
        stretch = self.factor * max(length / self.max_position_embeddings, 1.0) - (self.factor - 1.0)
        return plain_frequencies(dim, theta * stretch ** (dim / (dim - 2)))


@dataclass(frozen=True)
class YarnScaling(RopeScaling):
    """Low frequencies divided by *factor*, high ones kept, a ramp between them.

    The ramp lies between the frequencies that turn *beta_fast* and *beta_slow* times in the
    *original_max_position_embeddings*; *truncate* widens it to whole indices. Cosines and sines are multiplied by
    *attention_factor*; without it by m(1), where m(s) = 1 + 0.1 s log(factor) for factors above 1, and with both
    *mscale* and *mscale_all_dim* by m(mscale) / m(mscale_all_dim).

    Source: Peng et al., "YaRN: Efficient Context Window Extension of Large Language Models", 2023; the two scales as in
    DeepSeek-V2, *truncate* as in gpt-oss.

    Examples:
        >>> from ferrum_ops import YarnScaling, rope_frequencies
        >>> scaling = YarnScaling(factor=4.0, original_max_position_embeddings=4096)
        >>> rope_frequencies(4, 10000.0, scaling)
        ((1.0, 0.00625), 1.138...)
    """

    name: ClassVar[str] = "yarn"
    _flags: ClassVar[tuple[str, ...]] = ("truncate",)
    factor: float
    original_max_position_embeddings: float
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta_fast < self.beta_slow:
            raise ValueError(
                f"YarnScaling: beta_fast must be at least beta_slow, got {self.beta_fast} and {self.beta_slow}"
            )
        if self.attention_factor is None and (self.mscale is None) != (self.mscale_all_dim is None):
            raise ValueError(
                "YarnScaling: mscale and mscale_all_dim are needed together, "
                f"got {self.mscale} and {self.mscale_all_dim}; or give attention_factor"
            )

    def frequencies(self, dim: int, theta: float, length: int) -> Frequencies:
        """A blend of the plain and the divided ones."""

        def index(turns: float) -> float:
            """Which frequency turns so often in the original length."""
            return dim * math.log(self.original_max_position_embeddings / (turns * 2 * math.pi)) / (2 * math.log(theta))

        low, high = index(self.beta_fast), index(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, dim - 1)
        width = high - low if high != low else 0.001  # a ramp of no width is a step
        blend = (min(max((i - low) / width, 0.0), 1.0) for i in range(dim // 2))
        return tuple(
            f * (1.0 - part) + f / self.factor * part
            for f, part in zip(plain_frequencies(dim, theta), blend, strict=True)
        )

    @property
    def magnitude(self) -> float:
        """The attention factor, given or as the paper has it."""
        if self.attention_factor is not None:
            return self.attention_factor

        def grown(scale: float) -> float:
            return 0.1 * scale * math.log(self.factor) + 1.0 if self.factor > 1.0 else 1.0

        if self.mscale is not None and self.mscale_all_dim is not None:
            return grown(self.mscale) / grown(self.mscale_all_dim)
        return grown(1.0)


@dataclass(frozen=True)
class LongRopeScaling(RopeScaling):
    """Each frequency divided by a number of its own: one list for sequences up to the original length, one beyond.

    Cosines and sines are multiplied by *attention_factor*; without it by
    sqrt(1 + log(factor) / log(original_max_position_embeddings)) for factors above 1.

    Source: Ding et al., "LongRoPE", 2024, as in Phi-3.

    Examples:
        >>> from ferrum_ops import LongRopeScaling, rope_frequencies
        >>> scaling = LongRopeScaling((1.0, 2.0), (4.0, 8.0), original_max_position_embeddings=4, factor=1.0)
        >>> rope_frequencies(4, 100.0, scaling, length=4), rope_frequencies(4, 100.0, scaling, length=5)
        (((1.0, 0.05), 1.0), ((0.25, 0.0125), 1.0))
    """

    name: ClassVar[str] = "longrope"
    by_length: ClassVar[bool] = True
    short_factor: tuple[float, ...]
    long_factor: tuple[float, ...]
    original_max_position_embeddings: float
    factor: float | None = None
    attention_factor: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.factor is None and self.attention_factor is None:
            raise ValueError("LongRopeScaling: factor or attention_factor is needed, got neither")
        if self.attention_factor is None and self.original_max_position_embeddings <= 1:
            raise ValueError(
                "LongRopeScaling: without attention_factor, original_max_position_embeddings must be above 1, "
                f"got {self.original_max_position_embeddings}"
            )

    def frequencies(self, dim: int, theta: float, length: int) -> Frequencies:
        """Divided by the list for this length."""
        long = length > self.original_max_position_embeddings
        for name, divisors in (("short_factor", self.short_factor), ("long_factor", self.long_factor)):
            if len(divisors) != dim // 2:
                raise ValueError(
                    f"rope: {name} must have dim / 2 numbers, {dim // 2} for dim={dim}, got {len(divisors)}"
                )
        divisors = self.long_factor if long else self.short_factor
        return tuple(f / divisor for f, divisor in zip(plain_frequencies(dim, theta), divisors, strict=True))

    @property
    def magnitude(self) -> float:
        """The attention factor, given or as the paper has it."""
        if self.attention_factor is not None:
            return self.attention_factor
        assert self.factor is not None
        if self.factor <= 1.0:
            return 1.0
        return math.sqrt(1.0 + math.log(self.factor) / math.log(self.original_max_position_embeddings))


@dataclass(frozen=True)
class Llama3Scaling(RopeScaling):
    """Frequencies divided by *factor* where they turn less than *low_freq_factor* times in the original length.

    Those that turn more than *high_freq_factor* times are kept; a ramp joins the two.

    Source: Llama Team, "The Llama 3 Herd of Models", 2024, and the reference code of Llama 3.1.

    Examples:
        >>> from ferrum_ops import Llama3Scaling, rope_frequencies
        >>> scaling = Llama3Scaling(8.0, 1.0, 4.0, original_max_position_embeddings=8192)
        >>> rope_frequencies(4, 500000.0, scaling)
        ((1.0, 0.00052...), 1.0)
    """

    name: ClassVar[str] = "llama3"
    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(
                "Llama3Scaling: high_freq_factor must be above low_freq_factor, "
                f"got {self.high_freq_factor} and {self.low_freq_factor}"
            )

    def frequencies(self, dim: int, theta: float, length: int) -> Frequencies:
        """A blend of the plain and the divided ones."""

        def scaled(f: float) -> float:
            turns = self.original_max_position_embeddings * f / (2 * math.pi)
            kept = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
            kept = min(max(kept, 0.0), 1.0)
            return f * kept + f / self.factor * (1.0 - kept)

        return tuple(map(scaled, plain_frequencies(dim, theta)))


@dataclass(frozen=True)
class ProportionalScaling(RopeScaling):
    """The first *partial_rotary_factor* of the pairs turn, as they would if all did; the others stand still.

    Source: the global layers of Gemma 4.

    Examples:
        >>> from ferrum_ops import ProportionalScaling, rope_frequencies
        >>> rope_frequencies(8, 10000.0, ProportionalScaling(partial_rotary_factor=0.5))
        ((1.0, 0.1, 0.0, 0.0), 1.0)
    """

    name: ClassVar[str] = "proportional"
    partial_rotary_factor: float = 1.0
    factor: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.partial_rotary_factor > 1.0:
            raise ValueError(
                f"ProportionalScaling: partial_rotary_factor must be at most 1, got {self.partial_rotary_factor}"
            )

    def frequencies(self, dim: int, theta: float, length: int) -> Frequencies:
        """The first ones divided by the factor, then zeros."""
        turning = int(self.partial_rotary_factor * dim // 2)
        return tuple(f / self.factor if i < turning else 0.0 for i, f in enumerate(plain_frequencies(dim, theta)))
