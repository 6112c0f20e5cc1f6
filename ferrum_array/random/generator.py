"""The generator object: distributions drawn from a stream of random words."""

from __future__ import annotations

import math
from typing import Any, final

from ferrum_array.conversion import asarray
from ferrum_array.device import Device
from ferrum_array.dispatch import normalize_axis, shape_tuple
from ferrum_array.dtype import Dtype
from ferrum_array.elementwise import minimum
from ferrum_array.indexing import take
from ferrum_array.random import weights
from ferrum_array.random.arguments import (
    LARGEST,
    Shape,
    count,
    floating,
    index,
    real,
    same_device,
    target_device,
)
from ferrum_array.random.integers import below_bound, pair, words_for_bound
from ferrum_array.random.quantiles import (
    below,
    exponential_from_bits,
    nearest,
    normal_from_bits,
    unit_from_bits,
)
from ferrum_array.random.stream import Stream
from ferrum_array.searching import searchsorted
from ferrum_array.sorting import argsort
from ferrum_array.spec import spec_of
from ferrum_array.tensor import Tensor

__all__ = ["Generator"]

#: How many bits of a word make a uniform number, which is then exact in its dtype.
_UNIT_DIGITS = {Dtype.F16: 11, Dtype.BF16: 8, Dtype.F32: 24, Dtype.F64: 53}


@final
class Generator(Stream):
    """A source of random tensors: the same seed and calls give the same bits on every storage.

    The generator is a place in a stream of 32-bit words, which Philox4x32-10 computes from *seed*
    and the place. Each element of a draw takes a fixed number of words and depends on them alone,
    so drawing n elements and then m gives the same numbers as drawing n + m. Words per element:
    1 for 16- and 32-bit floats, 2 for float64; 2 for integers of a range of up to 2**32 values and
    4 beyond; 2 for permutations.

    Draws are safe from several threads (no word is used twice; which thread gets which words is
    up to their timing). Generators can be pickled, copied and compared. They are not for secrets.

    Args:
        seed: an integer in [0, 2**128). position: the number of words that count as used.

    Raises:
        TypeError: if *seed* is not an integer. ValueError: if it is out of range.

    Examples:
        >>> import ferrum_array as fa
        >>> g = fa.random.Generator(0)
        >>> g.integers(1, 7, shape=5)
        Tensor([3, 5, 6, 5, 1])
        >>> g
        Generator(0, position=10)
    """

    def uniform(
        self, shape: Shape = (), *, low: float = 0.0, high: float = 1.0,
        dtype: Any = None, device: Any = None,
    ) -> Tensor:  # fmt: skip
        """Numbers uniform in [*low*, *high*), both rounded to *dtype*; never *high* itself.

        On [0, 1) the values are the multiples of 2**-24 for float32, 2**-53 for float64, 2**-11 for
        float16 and 2**-8 for bfloat16, all equally likely. Another interval scales and shifts them,
        with a rounding each, so its values are as many or fewer.

        Args:
            dtype: a real floating dtype, float32 by default. device: the default device by default.

        Raises:
            TypeError: for another dtype. ValueError: if *low* is not below *high* in *dtype*, or
            their distance is not finite in it.

        Examples:
            >>> import ferrum_array as fa
            >>> fa.random.Generator(0).uniform(3, low=-1, high=1)
            Tensor([-0.20190716,  0.76104033,  0.47142553])
        """
        wanted, lengths, target = floating("uniform", shape, dtype, device)
        a, b = real("uniform", "low", low, wanted), real("uniform", "high", high, wanted)
        wide = _working(wanted)
        span = nearest(b - a, wide)
        if not a < b:
            raise ValueError(f"uniform: low must be below high; in {wanted} they are {a} and {b}")
        if not abs(span) <= LARGEST[wide]:
            raise ValueError(f"uniform: the distance from {a} to {b} is not finite in {wide}")
        last = below(b, wanted)

        def transform(words: Tensor) -> Any:
            unit: Any = unit_from_bits(_bits_for(words, wide), _UNIT_DIGITS[wanted])
            if (a, b) == (0.0, 1.0):
                return unit.astype(wanted, copy=False)
            return minimum((unit * span + a).astype(wanted, copy=False), last)

        return self._draw(lengths, _words_for(wide), wanted, target, transform)

    def normal(
        self, shape: Shape = (), *, mean: float = 0.0, std: float = 1.0,
        dtype: Any = None, device: Any = None,
    ) -> Tensor:  # fmt: skip
        """Normal numbers of the given *mean* and standard deviation *std*, by inversion.

        A float32 result stands for one of 2**32 equally likely bit patterns, so at most 6.34
        deviations from the mean; a float64 for one of 2**64, at most 9.16. 16-bit floats are
        the float32 result rounded. Source: algorithm AS 241 (Wichura, 1988).

        Args:
            dtype: a real floating dtype, float32 by default. device: the default device by default.

        Raises:
            TypeError: for another dtype. ValueError: if *mean* or *std* is not finite in *dtype*,
            or *std* is negative.

        Examples:
            >>> import ferrum_array as fa
            >>> fa.random.Generator(0).normal(3)
            Tensor([-0.84332526, -0.1503098 ,  0.33753607])
        """
        wanted, lengths, target = floating("normal", shape, dtype, device)
        centre, spread = real("normal", "mean", mean, wanted), real("normal", "std", std, wanted)
        if spread < 0:
            raise ValueError(f"normal: std must not be negative, got {std}")
        wide = _working(wanted)

        def transform(words: Tensor) -> Any:
            standard = normal_from_bits(_bits_for(words, wide))
            if (centre, spread) != (0.0, 1.0):
                standard = standard * spread + centre
            return standard.astype(wanted, copy=False)

        return self._draw(lengths, _words_for(wide), wanted, target, transform)

    def exponential(self, shape: Shape = (), *, scale: float = 1.0, dtype: Any = None, device: Any = None) -> Tensor:
        """Exponential numbers of mean *scale*: ``-scale * log(u)`` for uniform u in (0, 1).

        u is one of 2**31 equally likely numbers for float32 (results up to 22.2 times *scale*) and
        of 2**63 for float64 (up to 44.4). Always positive for a *scale* of 1; 16-bit floats are
        the float32 result rounded.

        Args:
            dtype: a real floating dtype, float32 by default. device: the default device by default.

        Raises:
            TypeError: for another dtype. ValueError: if *scale* is negative or not finite.

        Examples:
            >>> import ferrum_array as fa
            >>> fa.random.Generator(0).exponential(3)
            Tensor([0.9186774 , 0.1272424 , 0.30691546])
        """
        wanted, lengths, target = floating("exponential", shape, dtype, device)
        factor = real("exponential", "scale", scale, wanted)
        if factor < 0:
            raise ValueError(f"exponential: scale must not be negative, got {scale}")
        wide = _working(wanted)

        def transform(words: Tensor) -> Any:
            standard = exponential_from_bits(_bits_for(words, wide))
            return (standard if factor == 1.0 else standard * factor).astype(wanted, copy=False)

        return self._draw(lengths, _words_for(wide), wanted, target, transform)

    def integers(
        self, low: int, high: int | None = None, shape: Shape = (), *,
        dtype: Any = None, device: Any = None,
    ) -> Tensor:  # fmt: skip
        """Integers of [*low*, *high*), or of [0, *low*) without *high*, all equally likely.

        The probability of a value deviates from its ideal by a factor within 1 +- 2**-32 for up to
        2**32 values, and 1 +- 2**-64 beyond; not at all if their number is a power of two.

        Args:
            dtype: an integer dtype that holds the range, int64 by default.

        Raises:
            TypeError: for bounds that are not integers, or another dtype. ValueError: if no integer
            lies in the range. OverflowError: if *dtype* does not hold the range.

        Examples:
            >>> import ferrum_array as fa
            >>> fa.random.Generator(7).integers(-3, 4, shape=(2, 3), dtype="int8").dtype
            ferrum_array.int8
        """
        wanted, target = Dtype.I64 if dtype is None else Dtype(dtype), target_device(device)
        if not wanted.is_integer:
            raise TypeError(f"integers: dtype must be an integer dtype, got {wanted}")
        first, last = (
            index("integers", "low", low),
            high if high is None else index("integers", "high", high),
        )
        first, last = (0, first - 1) if last is None else (first, last - 1)
        if last < first:
            raise ValueError(f"integers: no integer lies in [{first}, {last + 1})")
        least = -(1 << (wanted.bits - 1)) if wanted.kind == "signed integer" else 0
        if first < least or last > least + (1 << wanted.bits) - 1:
            raise OverflowError(f"integers: {wanted} does not hold the integers of [{first}, {last + 1})")
        spec_of(wanted, target)
        bound = last - first + 1

        def transform(words: Tensor) -> Any:
            # modulo 2**64, and then modulo the width of the dtype: negative numbers come out right
            return (below_bound(words, bound) + first % (1 << 64)).astype(wanted)

        lengths = shape_tuple("integers", shape)
        return self._draw(lengths, words_for_bound(bound), wanted, target, transform)

    def permutation(self, x: int | Tensor, *, axis: int = 0, device: Any = None) -> Tensor:
        """The integers below *x*, or the slices of the tensor *x* along *axis*, in random order.

        Orders n of them by n random 64-bit keys; equal keys, which leave their two in the order
        they had, appear with a probability below n**2 / 2**65.

        Args:
            device: for an integer *x*; a tensor's order is drawn where the tensor lies.

        Raises:
            ValueError: for a negative integer, or a *device* that is not the tensor's.
            IndexError: for an axis that the tensor does not have.

        Examples:
            >>> import ferrum_array as fa
            >>> fa.random.Generator(0).permutation(5)
            Tensor([4, 0, 3, 1, 2])
        """
        if isinstance(x, Tensor):
            same_device("permutation", x, device)
            place = normalize_axis("permutation", axis, x.ndim)
            return take(x, self._order(x.shape[place], x.device), axis=place)
        return self._order(count("permutation", "x", x), target_device(device))

    def _order(self, n: int, device: Device) -> Tensor:
        return argsort(self.bits(n, dtype=Dtype.U64, device=device))

    def choice(
        self, a: int | Tensor, shape: Shape = (), *, replace: bool = True, p: Any = None,
        axis: int = 0, device: Any = None,
    ) -> Tensor:  # fmt: skip
        """Random elements: integers below *a*, or slices of the tensor *a* along *axis*.

        Args:
            shape: how many are chosen; it takes the place of *axis* in the result.
            replace: whether one may be chosen again.
            p: their probabilities, a 1-D tensor or sequence; equal by default. With *replace* they
                are honoured to 2**-61, in exact integers; without, each next
                one is chosen among the rest in proportion to float32 probabilities (Efraimidis and
                Spirakis, 2006).
            device: for an integer *a*.

        Raises:
            ValueError: if there is nothing to choose from, not enough without *replace*, or *p* is
            not one finite, non-negative number each with sum 1.

        Examples:
            >>> import ferrum_array as fa
            >>> fa.random.Generator(0).choice(3, 8, p=[0.5, 0.0, 0.5])
            Tensor([0, 2, 0, 2, 2, 0, 2, 2])
        """
        lengths = shape_tuple("choice", shape)
        if isinstance(a, Tensor):
            same_device("choice", a, device)
            target, place = a.device, normalize_axis("choice", axis, a.ndim)
            n = a.shape[place]
        else:
            target, place = target_device(device), 0
            n = count("choice", "a", a)
        chosen = self._chosen(n, lengths, bool(replace), p, target)
        if not isinstance(a, Tensor):
            return chosen
        taken = take(a, chosen.reshape(-1), axis=place)
        return taken.reshape((*a.shape[:place], *lengths, *a.shape[place + 1 :]))

    def _chosen(self, n: int, shape: tuple[int, ...], replace: bool, p: Any, device: Device) -> Tensor:
        wanted = math.prod(shape)
        numbers = None if p is None else weights.checked(p, n)
        available = n if numbers is None or replace else weights.nonzero(numbers)
        if wanted and not available:
            raise ValueError("choice: there is nothing to choose from")
        if not replace and wanted > available:
            raise ValueError(f"choice: {wanted} of {available} elements cannot be chosen without replacement")
        if not replace:
            if numbers is None:
                order = self._order(n, device)
            else:
                waiting = self.exponential(n, device=device)
                order = argsort(waiting / weights.as_float32(numbers, device))
            return order[:wanted].reshape(shape)
        if numbers is None:
            return self.integers(0, max(n, 1), shape, device=device)
        bounds = weights.cumulative(numbers)
        drawn = self.integers(0, max(bounds[-1], 1) if bounds else 1, shape, dtype=Dtype.U64, device=device)
        table = asarray(bounds, dtype=Dtype.U64, device=device)
        return searchsorted(table, drawn, side="right")


def _working(dtype: Dtype) -> Dtype:
    """The type in which numbers of *dtype* are computed, before the last rounding."""
    return Dtype.F64 if dtype is Dtype.F64 else Dtype.F32


def _words_for(wide: Dtype) -> int:
    return 2 if wide is Dtype.F64 else 1


def _bits_for(words: Tensor, wide: Dtype) -> Tensor:
    return pair(words) if wide is Dtype.F64 else words
