"""Weights of a model by name: read one at a time, with every mismatch reported at once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import ferrum_array as fa
from ferrum_array import Device, Dtype, Tensor
from ferrum_array.io import SafetensorsFile
from ferrum_models.stacks import Stack, below, halves
from ferrum_ops import QuantTensor, dequantize

__all__ = ["LinearFormat", "RandomWeights", "Weights"]

_ENOUGH = 1000

#: reads the weight of a linear layer that is stored in a form of its own: given the part of the weights that belongs
#: to the layer and the shape [out, in], the weight, or None where the layer is stored as a dense one
LinearFormat = Callable[["Weights", tuple[int, ...]], Tensor | QuantTensor | None]


@dataclass
class _Shared:
    """What all parts of the weights have in common; *names* are those of the tensors, without what says whose part."""

    tensors: Mapping[str, Tensor]
    names: Mapping[str, str]
    source: str
    device: Device | None
    dtype: Dtype | None
    formats: tuple[LinearFormat, ...]
    problems: list[str] = field(default_factory=list)
    taken: set[str] = field(default_factory=set)
    tell: Callable[[int], None] = lambda count: None


class Weights:
    """The tensors of a model by name; layers take what they need, then :meth:`check` reports.

    Each tensor is moved to *device* and converted to *dtype* when it is taken, so that no more than the model and one
    tensor are in memory. A missing tensor does not stop the loading: a placeholder takes its place, so that one error
    lists everything that does not fit.

    Models that also see or hear keep the part that reads text under ``language_model`` or ``model.language_model``;
    that is left out of the names here.

    Args:
        tensors: the tensors by name, such as an open safetensors file.
        source: what errors call them.
        device: where they shall lie; where they are, if absent.
        dtype: of floating tensors; as stored, if absent.
        formats: readers of matrices that are not stored as a dense ``weight``; the first that finds its own reads.

    Raises:
        ValueError: if two tensors have one name then.

    Examples:
        >>> import ferrum_array as fa
        >>> from ferrum_models.weights import Weights
        >>> weights = Weights({"dense.weight": fa.ones((2, 3))}, "a test")
        >>> weights.at("dense").take("weight", (2, 3)).shape
        (2, 3)
        >>> _ = weights.at("dense").take("bias", (2,))
        >>> weights.check()
        Traceback (most recent call last):
        ...
        ValueError: a test does not fit its config: dense.bias is missing, expected shape (2,)
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        source: str,
        *,
        device: Device | None = None,
        dtype: Dtype | None = None,
        formats: Sequence[LinearFormat] = (),
    ) -> None:
        names: dict[str, str] = {}
        for name in tensors:
            other = names.setdefault(_in_text(name), name)
            if other != name:
                raise ValueError(f"{source}: {other} and {name} are one tensor of one language model, stored twice")
        self._shared = _Shared(tensors, names, source, device, dtype, tuple(formats))
        self._prefix = ""

    @classmethod
    def load(
        cls,
        path: Path,
        *,
        device: Device | str | None = None,
        dtype: Dtype | str | None = None,
        formats: Sequence[LinearFormat] = (),
    ) -> Weights:
        """The weights of a safetensors file or an index of several, on *device* and in *dtype* if given.

        Raises:
            FileNotFoundError: if there is no such file. ValueError: if it is damaged.
        """
        where = fa.get_default_device() if device is None else Device(device)
        wanted = None if dtype is None else Dtype(dtype)
        return cls(fa.io.open_safetensors(path), str(path), device=where, dtype=wanted, formats=formats)

    def __contains__(self, name: str) -> bool:
        return self._prefix + name in self._shared.names

    @property
    def names(self) -> Collection[str]:
        """The names of all tensors, of all parts together."""
        return self._shared.names.keys()

    def tell(self, function: Callable[[int], None]) -> None:
        """Call *function* with the number of tensors just read, from now on."""
        self._shared.tell = function

    def at(self, *names: str | int) -> Weights:
        """The part whose names begin with *names*, joined by dots."""
        part = Weights.__new__(Weights)
        part._shared = self._shared
        part._prefix = self._prefix + "".join(f"{name}." for name in names)
        return part

    @property
    def path(self) -> str:
        """The name of this part; empty for the whole."""
        return self._prefix.removesuffix(".")

    @property
    def parent(self) -> Weights:
        """The part that this one belongs to."""
        *above, _ = self.path.split(".")
        part = self.at()
        part._prefix = "".join(f"{name}." for name in above)
        return part

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The tensor *name*, of real floating-point numbers and this *shape*.

        A matrix ``weight`` that is stored in fewer bits is brought to numbers: what asks here needs them dense.
        """
        if name == "weight" and len(shape) == 2:
            stored = self._formatted(shape)
            if stored is not None:
                return dequantize(stored, self._shared.dtype) if isinstance(stored, QuantTensor) else stored
        return self._dense(name, shape)

    def take_halves(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """As :meth:`take`, of a tensor whose second axis has two halves in turns: one half after the other."""
        found = self._dense(name, shape)
        return found[:, halves(shape[1] // 2, found.device)] if found.shape == shape else found

    def raw(self, name: str, shape: tuple[int, ...] | None = None, *, codes: bool = False) -> Tensor | None:
        """The tensor *name* in the dtype in which it is stored, or None and a problem where it is not as expected.

        With *codes* floats of 8 bits, for which there is no dtype, come as their bits, uint8.
        """
        shared, full = self._shared, self._prefix + name
        if full not in shared.names:
            self.problem(name, "is missing" + ("" if shape is None else f", expected shape {shape}"))
            return None
        if full not in shared.taken:
            shared.taken.add(full)
            shared.tell(1)
        tensors, stored = shared.tensors, shared.names[full]
        found = tensors.load(stored, codes=True) if codes and isinstance(tensors, SafetensorsFile) else tensors[stored]
        if shape is not None and found.shape != shape:
            self.problem(name, f"has shape {found.shape}, expected {shape}")
            return None
        return found if shared.device is None else found.to_device(shared.device)

    def give_back(self, name: str) -> None:
        """Take the tensor *name* for one that nobody has taken yet."""
        self._shared.taken.discard(self._prefix + name)

    def linear(self, shape: tuple[int, ...]) -> Tensor | QuantTensor:
        """The weight [out, in] of the linear layer that this part is, in whatever form it is stored."""
        found = self._formatted(shape)
        return self._dense("weight", shape) if found is None else found

    def table(self, shape: tuple[int, ...]) -> Tensor | QuantTensor:
        """The weight [rows, D] of the embedding that this part is, in whatever form it is stored."""
        return self.linear(shape)

    def experts(self, name: str, shape: tuple[int, int, int], *, in_turns: bool = False) -> Tensor | QuantTensor:
        """The linear layers *name* of all experts, [E, out, in]; as a dense tensor they are stored as [E, in, out].

        With *in_turns* the rows of two halves are stored in turns, and given one half after the other.
        """
        count, rows, columns = shape
        found = self.at(name)._formatted(shape)
        if found is None:
            dense = self._dense(name, (count, columns, rows))
            if dense.ndim < 3:
                return dense
            found = dense.mT
        return found[:, halves(rows // 2, found.device)] if in_turns and found.shape == shape else found

    def _formatted(self, shape: tuple[int, ...]) -> Tensor | QuantTensor | None:
        """The weight of this part as one of the formats reads it, or None where it is dense."""
        return next((found for read in self._shared.formats if (found := read(self, shape)) is not None), None)

    def _dense(self, name: str, shape: tuple[int, ...]) -> Tensor:
        found = self.raw(name, shape)
        if found is None:
            return fa.zeros(0)
        if not found.dtype.is_floating:
            self.problem(name, f"is {found.dtype}, expected real floating-point numbers")
            return fa.zeros(0)
        dtype = self._shared.dtype
        return found if dtype is None else found.astype(dtype, copy=False)

    def join(self, parts: Sequence[str], name: str, shape: tuple[int, ...]) -> Tensor:
        """The tensors *name* of several *parts*, of this *shape* each, one below the other."""
        before = len(self._shared.problems)
        found = [self.at(part).take(name, shape) for part in parts]
        if len(self._shared.problems) > before:
            return fa.zeros(0)
        return fa.concat(found)

    def stacked(self, groups: Sequence[Sequence[str]], shape: tuple[int, ...]) -> Tensor | QuantTensor:
        """Linear layers of this *shape* each: those of a group one below the other, the groups along a new first axis.

        The result is filled piece by piece, so that the pieces are never all in memory beside it. Where the groups are
        numbered, and layers of one name are stored as a stack of all groups, the stacks are taken as they are.
        """
        before = len(self._shared.problems)
        stacks = self._stacks(groups, shape)
        if stacks is not None:
            if len(self._shared.problems) > before:
                return fa.zeros(0)
            joined = stacks[0] if len(stacks) == 1 else below(stacks)
            if not isinstance(joined, str):
                return joined
            self.at(groups[0][0].partition(".")[2]).problem("weight", joined)
            return fa.zeros(0)
        stack = Stack(len(groups), len(groups[0]) if groups else 0)
        for place, group in enumerate(groups):
            for number, part in enumerate(group):
                piece = self.at(part).linear(shape)
                if len(self._shared.problems) > before:
                    continue
                if reason := stack.put(place, number, piece):
                    self.at(part).problem("weight", reason)
        return fa.zeros(0) if len(self._shared.problems) > before else stack.whole()

    def _stacks(self, groups: Sequence[Sequence[str]], shape: tuple[int, ...]) -> list[Tensor | QuantTensor] | None:
        """The layers of each name, of all *groups*, or None where they are not stored together."""
        found: list[Tensor | QuantTensor] = []
        for part in groups[0] if groups and f"{groups[0][0]}.weight" not in self else ():
            at, whole = self.at(part.partition(".")[2]), (len(groups), *shape)
            one = at._formatted(whole)
            if one is None and "weight" in at:
                one = at._dense("weight", whole)
            if one is None:
                return None
            found.append(one)
        return found or None

    @property
    def dtype(self) -> Dtype | None:
        """The dtype to which floating tensors are converted."""
        return self._shared.dtype

    def problem(self, name: str, what: str) -> None:
        """Note what does not fit; :meth:`check` will say it."""
        shared = self._shared
        shared.problems.append(f"{self._prefix}{name} {what}")
        if len(shared.problems) == _ENOUGH:  # an absurd config asks for layers without end
            self.check()

    def check(self, *, ignore: Callable[[str], bool] | None = None) -> None:
        """Report what did not fit.

        Args:
            ignore: given, also tensors that nobody took are reported, but for those of which it is true.

        Raises:
            ValueError: listing every tensor that is missing, has another shape, or was not taken.
        """
        shared = self._shared
        problems = list(shared.problems)
        if ignore is not None:
            rest = [name for name in shared.names if name not in shared.taken and not ignore(name)]
            problems += [f"{shared.names[name]} is not known" for name in rest]
        if problems:
            raise ValueError(f"{shared.source} does not fit its config: {'; '.join(problems)}")


def _in_text(name: str) -> str:
    """The name of a tensor in the part of the model that reads text."""
    if name.startswith("model.language_model."):
        return "model." + name.removeprefix("model.language_model.")
    return name.removeprefix("language_model.")


class RandomWeights(Weights):
    """Weights that nobody has learnt: every tensor that is asked for is there, normal numbers of a small deviation.

    Norms are near 1 and biases near 0, so that models of any depth compute ordinary numbers. The same seed gives the
    same weights on every device.
    """

    def __init__(self, seed: int, *, device: Device | None = None, dtype: Dtype | None = None) -> None:
        super().__init__({}, "random weights", device=device, dtype=dtype)
        self._random = fa.random.default_rng(seed)

    def __contains__(self, name: str) -> bool:
        return True

    def at(self, *names: str | int) -> Weights:
        """The part whose names begin with *names*, joined by dots."""
        part = RandomWeights.__new__(RandomWeights)
        part._shared = self._shared
        part._prefix = self._prefix + "".join(f"{name}." for name in names)
        part._random = self._random
        return part

    def raw(self, name: str, shape: tuple[int, ...] | None = None, *, codes: bool = False) -> Tensor | None:
        """Random numbers of this *shape*, in float32."""
        if shape is None:
            raise ValueError(f"random weights: {self._prefix}{name} is asked for without a shape")
        norm = len(shape) == 1 and name == "weight"
        deviation = 0.1 if len(shape) == 1 else shape[-1] ** -0.5
        device = fa.get_default_device() if self._shared.device is None else self._shared.device
        mean = 1.0 if norm else 0.0
        return self._random.normal(shape, mean=mean, std=deviation, dtype=fa.float32, device=device)
