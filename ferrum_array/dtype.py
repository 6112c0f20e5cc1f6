"""Element types: one interned, frozen :class:`Dtype` per type, and the lattice by which they combine.

The tags are those of ferrum-kernels (``f32``, ``f16``, ``u32``, ``i32``, ``i8``), extended to the types of the array
API standard and ``bfloat16``. Promotion follows the standard where it speaks; where it is silent (an integer with a
float, ``float16`` with ``bfloat16``) the result is the least upper bound in :data:`_LATTICE`.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any, ClassVar, Literal, final

Kind = Literal["bool", "signed integer", "unsigned integer", "real floating", "complex floating"]

__all__ = ["Dtype", "Kind", "integer_limits", "isdtype", "promote_dtypes", "weak_promote"]


@final
class Dtype:
    """The type of a tensor's elements.

    There is exactly one object per type, so ``is`` compares types. It can be made from itself, from a name in either
    spelling (``"f32"``, ``"float32"``), from a Python type, or from anything with a ``dtype``-like NumPy name.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.Dtype("bf16") is fa.bfloat16
        True
        >>> fa.Dtype(float), fa.Dtype.F16.bytes_per_elem, fa.Dtype.F16.name
        (ferrum_array.float32, 2, 'f16')

    Raises:
        TypeError: if nothing by that name or type exists; the message lists the names.
    """

    __slots__ = ("bits", "bytes_per_elem", "kind", "name", "standard_name")

    name: str
    standard_name: str
    kind: Kind
    bits: int
    bytes_per_elem: int

    _known: ClassVar[dict[Any, Dtype]] = {}

    BOOL: ClassVar[Dtype]
    I8: ClassVar[Dtype]
    I16: ClassVar[Dtype]
    I32: ClassVar[Dtype]
    I64: ClassVar[Dtype]
    U8: ClassVar[Dtype]
    U16: ClassVar[Dtype]
    U32: ClassVar[Dtype]
    U64: ClassVar[Dtype]
    F16: ClassVar[Dtype]
    BF16: ClassVar[Dtype]
    F32: ClassVar[Dtype]
    F64: ClassVar[Dtype]
    C64: ClassVar[Dtype]
    C128: ClassVar[Dtype]

    def __new__(cls, spec: object) -> Dtype:
        if isinstance(spec, Dtype):
            return spec
        found = cls._known.get(spec) if isinstance(spec, (str, type)) else None
        if found is None:  # a NumPy dtype or scalar type, or a dtype of another library, by its name
            for attribute in ("name", "__name__"):
                name = getattr(spec, attribute, None)
                if isinstance(name, str) and not isinstance(spec, str):
                    found = cls._known.get(name.removesuffix("_"))
                    if found is not None:
                        break
        if found is None:
            names = ", ".join(f"{d.name} ({d.standard_name})" for d in cls.all())
            raise TypeError(f"no dtype is called {spec!r:.60}; known are {names}")
        return found

    @classmethod
    def all(cls) -> tuple[Dtype, ...]:
        """Every dtype, in the order bool, signed, unsigned, real floating, complex."""
        return tuple(dict.fromkeys(cls._known.values()))

    def __setattr__(self, attribute: str, value: object) -> None:
        raise AttributeError(f"a Dtype is frozen: {self.name}.{attribute} cannot be set")

    def __delattr__(self, attribute: str) -> None:
        raise AttributeError(f"a Dtype is frozen: {self.name}.{attribute} cannot be deleted")

    def __repr__(self) -> str:
        # ends in the standard's name, which tools such as jaxtyping read
        return f"ferrum_array.{self.standard_name}"

    def __str__(self) -> str:
        return self.standard_name

    def __reduce__(self) -> tuple[type[Dtype], tuple[str]]:
        return (Dtype, (self.name,))

    @property
    def __numpy_dtype__(self) -> Any:
        """NumPy's dtype of the same name: so NumPy 2.4 reads ``numpy.dtype(ferrum_array.float32)``."""
        return import_module("ferrum_array.backends.host").raw_dtype(self)

    @property
    def itemsize(self) -> int:
        """The bytes of an element, under NumPy's name."""
        return self.bytes_per_elem

    @property
    def is_integer(self) -> bool:
        """Whether the type is a signed or unsigned integer."""
        return self.kind in ("signed integer", "unsigned integer")

    @property
    def is_floating(self) -> bool:
        """Whether the type is a real floating-point type."""
        return self.kind == "real floating"

    @property
    def is_complex(self) -> bool:
        """Whether the type is a complex floating-point type."""
        return self.kind == "complex floating"

    @property
    def real(self) -> Dtype:
        """The type of the real part: ``float32`` for ``complex64``, itself for a real type."""
        return {"c64": Dtype.F32, "c128": Dtype.F64}.get(self.name, self)

    @property
    def complex(self) -> Dtype:
        """The complex type that holds this floating type: ``complex64`` up to 32 bits, else ``complex128``."""
        return self if self.is_complex else Dtype.C128 if self is Dtype.F64 else Dtype.C64


def _define(name: str, standard_name: str, kind: Kind, bits: int) -> Dtype:
    dtype = object.__new__(Dtype)
    for attribute, value in (
        ("name", name),
        ("standard_name", standard_name),
        ("kind", kind),
        ("bits", bits),
        ("bytes_per_elem", max(bits // 8, 1)),
    ):
        object.__setattr__(dtype, attribute, value)
    Dtype._known[name] = Dtype._known[standard_name] = dtype
    return dtype


Dtype.BOOL = _define("bool", "bool", "bool", 8)
Dtype.I8 = _define("i8", "int8", "signed integer", 8)
Dtype.I16 = _define("i16", "int16", "signed integer", 16)
Dtype.I32 = _define("i32", "int32", "signed integer", 32)
Dtype.I64 = _define("i64", "int64", "signed integer", 64)
Dtype.U8 = _define("u8", "uint8", "unsigned integer", 8)
Dtype.U16 = _define("u16", "uint16", "unsigned integer", 16)
Dtype.U32 = _define("u32", "uint32", "unsigned integer", 32)
Dtype.U64 = _define("u64", "uint64", "unsigned integer", 64)
Dtype.F16 = _define("f16", "float16", "real floating", 16)
Dtype.BF16 = _define("bf16", "bfloat16", "real floating", 16)
Dtype.F32 = _define("f32", "float32", "real floating", 32)
Dtype.F64 = _define("f64", "float64", "real floating", 64)
Dtype.C64 = _define("c64", "complex64", "complex floating", 64)
Dtype.C128 = _define("c128", "complex128", "complex floating", 128)

# Host element types stand for the default type of their kind: one program means one thing on every device.
Dtype._known.update({bool: Dtype.BOOL, int: Dtype.I64, float: Dtype.F32, complex: Dtype.C64})

# Each type's immediate upper bounds. The least upper bound of two types is the lowest one above both.
_LATTICE: dict[Dtype, tuple[Dtype, ...]] = {
    Dtype.BOOL: (Dtype.U8, Dtype.I8),
    Dtype.U8: (Dtype.U16, Dtype.I16),
    Dtype.U16: (Dtype.U32, Dtype.I32),
    Dtype.U32: (Dtype.U64, Dtype.I64),
    Dtype.U64: (Dtype.F16, Dtype.BF16),
    Dtype.I8: (Dtype.I16,),
    Dtype.I16: (Dtype.I32,),
    Dtype.I32: (Dtype.I64,),
    Dtype.I64: (Dtype.F16, Dtype.BF16),
    Dtype.F16: (Dtype.F32,),
    Dtype.BF16: (Dtype.F32,),
    Dtype.F32: (Dtype.F64, Dtype.C64),
    Dtype.F64: (Dtype.C128,),
    Dtype.C64: (Dtype.C128,),
    Dtype.C128: (),
}


@cache
def _above(dtype: Dtype) -> frozenset[Dtype]:
    bounds = {dtype}
    for bound in _LATTICE[dtype]:
        bounds |= _above(bound)
    return frozenset(bounds)


@cache
def _join(a: Dtype, b: Dtype) -> Dtype:
    common = _above(a) & _above(b)
    least = [d for d in common if common <= _above(d)]
    if len(least) != 1 or (a.is_integer and b.is_integer and not least[0].is_integer):
        raise TypeError(
            f"{a} and {b} have no common type that holds the values of both; "
            "convert one of them first, for example x.astype('int64')"
        )
    return least[0]


def promote_dtypes(*dtypes: Dtype) -> Dtype:
    """The least type that holds the values of all *dtypes* (array API standard, type promotion rules).

    Examples:
        >>> from ferrum_array.dtype import Dtype, promote_dtypes
        >>> promote_dtypes(Dtype.I32, Dtype.U8), promote_dtypes(Dtype.F16, Dtype.BF16)
        (ferrum_array.int32, ferrum_array.float32)

    Raises:
        TypeError: for ``uint64`` with a signed integer, which no integer type holds.
    """
    result = dtypes[0]
    for dtype in dtypes[1:]:
        if dtype is not result:
            result = _join(result, dtype)
    return result


_RANK: dict[Kind, int] = {
    "bool": 0,
    "unsigned integer": 1,
    "signed integer": 1,
    "real floating": 2,
    "complex floating": 3,
}


def weak_promote(dtype: Dtype, scalar: type) -> Dtype:
    """The type of ``tensor op scalar``: the tensor's own, unless the Python scalar is of a higher kind.

    A complex scalar lifts a real tensor to the complex type of its precision; a float lifts integers to the default
    ``float32``; an integer lifts booleans to the default ``int64``.

    Examples:
        >>> from ferrum_array.dtype import Dtype, weak_promote
        >>> weak_promote(Dtype.BF16, float), weak_promote(Dtype.I8, float), weak_promote(Dtype.F64, complex)
        (ferrum_array.bfloat16, ferrum_array.float32, ferrum_array.complex128)
    """
    default = Dtype._known[scalar]
    if _RANK[default.kind] <= _RANK[dtype.kind]:
        return dtype
    return dtype.complex if default.is_complex and dtype.is_floating else default


def integer_limits(dtype: Dtype) -> tuple[int, int]:
    """The least and the greatest value of an integer dtype.

    Examples:
        >>> from ferrum_array.dtype import Dtype, integer_limits
        >>> integer_limits(Dtype.I8)
        (-128, 127)
    """
    low = -(1 << (dtype.bits - 1)) if dtype.kind == "signed integer" else 0
    return low, low + (1 << dtype.bits) - 1


_KINDS: dict[str, tuple[Kind, ...]] = {
    "bool": ("bool",),
    "signed integer": ("signed integer",),
    "unsigned integer": ("unsigned integer",),
    "integral": ("signed integer", "unsigned integer"),
    "real floating": ("real floating",),
    "complex floating": ("complex floating",),
    "numeric": ("signed integer", "unsigned integer", "real floating", "complex floating"),
}


def isdtype(dtype: Dtype, kind: Dtype | str | tuple[Dtype | str, ...]) -> bool:
    """Whether *dtype* is of *kind*: a dtype, one of the standard's kind names, or a tuple of them (any may match).

    Kind names: ``"bool"``, ``"signed integer"``, ``"unsigned integer"``, ``"integral"``, ``"real floating"``,
    ``"complex floating"``, ``"numeric"``. Source: array API standard, ``isdtype``.

    Examples:
        >>> import ferrum_array as fa
        >>> fa.isdtype(fa.bfloat16, "real floating"), fa.isdtype(fa.int8, ("bool", fa.int8))
        (True, True)

    Raises:
        TypeError: if *dtype* is not a Dtype. ValueError: for an unknown kind name.
    """
    if not isinstance(dtype, Dtype):
        raise TypeError(f"isdtype: expected a Dtype, got {type(dtype).__name__} {dtype!r}")
    if isinstance(kind, tuple):
        return any(isdtype(dtype, one) for one in kind)
    if isinstance(kind, Dtype):
        return dtype is kind
    if kind not in _KINDS:
        raise ValueError(f"isdtype: unknown kind {kind!r}; known are {', '.join(_KINDS)}")
    return dtype.kind in _KINDS[kind]
