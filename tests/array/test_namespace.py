"""The namespace is that of the array API standard 2025.12, name by name and parameter by parameter."""

from __future__ import annotations

import importlib
import inspect
import math
import re
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import pytest

import ferrum_array as fa
from ferrum_array import names

#: name, then parameters as the standard has them: those before / by position alone, those after * by name alone
MAIN = """
arange start / stop step * dtype device
asarray obj / * dtype device copy
empty shape * dtype device
empty_like x / * dtype device
eye n_rows n_cols / * k dtype device
from_dlpack x / * device copy
full shape fill_value * dtype device
full_like x / fill_value * dtype device
linspace start stop / num * dtype device endpoint
meshgrid *arrays indexing
ones shape * dtype device
ones_like x / * dtype device
tril x / * k
triu x / * k
zeros shape * dtype device
zeros_like x / * dtype device

astype x dtype / * copy device
can_cast from_ to /
finfo type /
iinfo type /
isdtype dtype kind
result_type *arrays_and_dtypes

clip x / min max
take x indices / * axis
take_along_axis x indices / * axis

matmul x1 x2 /
matrix_transpose x /
tensordot x1 x2 / * axes
vecdot x1 x2 / * axis

broadcast_arrays *arrays
broadcast_shapes *shapes
broadcast_to x / shape
concat arrays / * axis
expand_dims x / axis
flip x / * axis
moveaxis x source destination /
permute_dims x / axes
repeat x repeats / * axis
reshape x / shape * copy
roll x / shift * axis
squeeze x / axis
stack arrays / * axis
tile x repetitions /
unstack x / * axis

argmax x / * axis keepdims
argmin x / * axis keepdims
count_nonzero x / * axis keepdims
nonzero x /
searchsorted x1 x2 / * side sorter
where condition x1 x2 /

isin x1 x2 / * invert
unique_all x /
unique_counts x /
unique_inverse x /
unique_values x /

argsort x / * axis descending stable
sort x / * axis descending stable

cumulative_prod x / * axis dtype include_initial
cumulative_sum x / * axis dtype include_initial
max x / * axis keepdims
mean x / * axis keepdims
min x / * axis keepdims
prod x / * axis dtype keepdims
std x / * axis correction keepdims
sum x / * axis dtype keepdims
var x / * axis correction keepdims

all x / * axis keepdims
any x / * axis keepdims
diff x / * axis n prepend append

__array_namespace_info__
"""

UNARY = """abs acos acosh asin asinh atan atanh bitwise_invert ceil conj cos cosh exp expm1 floor imag isfinite
isinf isnan log log1p log2 log10 logical_not negative positive real reciprocal round sign signbit sin sinh square
sqrt tan tanh trunc"""
BINARY = """add atan2 bitwise_and bitwise_left_shift bitwise_or bitwise_right_shift bitwise_xor copysign divide equal
floor_divide greater greater_equal hypot less less_equal logaddexp logical_and logical_or logical_xor maximum minimum
multiply nextafter not_equal pow remainder subtract"""

LINALG = """
cholesky x / * upper
cross x1 x2 / * axis
det x /
diagonal x / * offset
eigh x /
eigvalsh x /
eig x /
eigvals x /
inv x /
matmul x1 x2 /
matrix_norm x / * keepdims ord
matrix_power x n /
matrix_rank x / * rtol
matrix_transpose x /
outer x1 x2 /
pinv x / * rtol
qr x / * mode
slogdet x /
solve x1 x2 /
svd x / * full_matrices
svdvals x /
tensordot x1 x2 / * axes
trace x / * offset dtype
vecdot x1 x2 / * axis
vector_norm x / * axis keepdims ord
"""

FFT = """
fft x / * n axis norm
ifft x / * n axis norm
fftn x / * s axes norm
ifftn x / * s axes norm
rfft x / * n axis norm
irfft x / * n axis norm
rfftn x / * s axes norm
irfftn x / * s axes norm
hfft x / * n axis norm
ihfft x / * n axis norm
fftfreq n / * d dtype device
rfftfreq n / * d dtype device
fftshift x / * axes
ifftshift x / * axes
"""

INFO = """
capabilities
default_device
default_dtypes * device
devices
dtypes * device kind
"""

METHODS = """
__array_namespace__ / * api_version
__dlpack__ / * stream max_version dl_device copy
__dlpack_device__ /
to_device device / * stream
"""

DTYPES = """bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float32 float64 complex64 complex128"""
OPERATORS = """abs add and bool complex eq float floordiv ge getitem gt index int invert le lshift lt matmul mod mul ne
neg or pos pow rshift setitem sub truediv xor
radd rand rfloordiv rlshift rmatmul rmod rmul ror rpow rrshift rsub rtruediv rxor
iadd iand ifloordiv ilshift imatmul imod imul ior ipow irshift isub itruediv ixor"""


def rows(table: str) -> list[tuple[str, str]]:
    found = [line.partition(" ") for line in table.splitlines() if line]
    return [(name, parameters) for name, _, parameters in found]


ALL_ROWS: list[tuple[Any, str, str]] = [
    *((fa, name, parameters) for name, parameters in rows(MAIN)),
    *((fa, name, "x /") for name in UNARY.split()),
    *((fa, name, "x1 x2 /") for name in BINARY.split()),
    *((fa.linalg, name, parameters) for name, parameters in rows(LINALG)),
    *((fa.fft, name, parameters) for name, parameters in rows(FFT)),
    *((fa.__array_namespace_info__(), name, parameters) for name, parameters in rows(INFO)),
    *((fa.ones(1), name, parameters) for name, parameters in rows(METHODS)),
]


def parameters(function: Any) -> str:
    """The parameters of a function in the notation of the tables."""
    found: list[str] = []
    before = None
    for parameter in inspect.signature(function).parameters.values():
        kind = parameter.kind
        if before is kind.POSITIONAL_ONLY and kind is not kind.POSITIONAL_ONLY:
            found.append("/")
        if kind is kind.VAR_POSITIONAL:
            found.append(f"*{parameter.name}")
        else:
            if kind is kind.KEYWORD_ONLY and before not in (kind, kind.VAR_POSITIONAL):
                found.append("*")
            found.append(parameter.name)
        before = kind
    if before is inspect.Parameter.POSITIONAL_ONLY:
        found.append("/")
    return " ".join(found)


def test_the_notation_tells_kinds_of_parameters_apart() -> None:
    assert parameters(lambda x, /, *, a: 0) == "x / * a"
    assert parameters(lambda x, *, a: 0) == "x * a"
    assert parameters(lambda x, a: 0) == "x a"
    assert parameters(lambda *x, a: 0) == "*x a"
    assert parameters(lambda x, /: 0) == "x /"
    assert parameters(lambda: 0) == ""


@pytest.mark.parametrize(("owner", "name", "expected"), ALL_ROWS)
def test_signatures_are_those_of_the_standard(owner: Any, name: str, expected: str) -> None:
    found = parameters(getattr(owner, name))
    if isinstance(owner, fa.Tensor):  # bound methods have lost "self /"
        found, expected = found.removeprefix("/ "), expected.removeprefix("/").lstrip()
    assert found == expected


def test_positions_and_names_are_enforced() -> None:
    x = fa.ones((2, 2))
    calls: list[Any] = [
        lambda: fa.sum(x=x),
        lambda: fa.sum(x, 0),
        lambda: fa.zeros(2, "f32"),
        lambda: fa.add(x1=x, x2=x),
        lambda: fa.sort(x, 0),
        lambda: fa.linalg.qr(x, "complete"),
        lambda: fa.fft.fft(x, 3),
        lambda: fa.asarray(x, "f32"),
    ]
    for call in calls:
        with pytest.raises(TypeError, match="argument"):
            call()


def test_dtypes_constants_and_operators() -> None:
    for name in DTYPES.split():
        assert getattr(fa, name) is fa.Dtype(name)
    assert (fa.e, fa.pi, fa.inf, fa.newaxis) == (math.e, math.pi, math.inf, None)
    assert math.isnan(fa.nan)
    assert [f"__{name}__" for name in OPERATORS.split() if not hasattr(fa.Tensor, f"__{name}__")] == []
    assert fa.__array_api_version__ == "2025.12"
    for name in ("dtype", "device", "mT", "ndim", "shape", "size", "T"):
        assert isinstance(getattr(fa.Tensor, name), property)


# What is exported.

MODULES = [fa, fa.linalg, fa.fft, fa.testing, fa.random, fa.io]


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.__name__)
def test_all_is_what_is_there(module: ModuleType) -> None:
    assert len(module.__all__) == len(set(module.__all__)), "a name is listed twice"
    missing = [name for name in module.__all__ if not hasattr(module, name)]
    assert missing == []
    public = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (getattr(value, "__module__", "") or "").startswith("ferrum_array")
        and not isinstance(value, ModuleType)
    }
    if module in (fa, fa.testing):  # the others have helpers of their own
        assert public - set(module.__all__) == set()


def test_all_has_the_standard() -> None:
    for module, listed in (
        (fa, [name for owner, name, _ in ALL_ROWS if owner is fa] + DTYPES.split()),
        (fa, ["e", "pi", "inf", "nan", "newaxis", "linalg", "fft", "__array_api_version__"]),
        (fa, ["einsum", "random", "io", "testing", "Dtype", "Device", "Tensor", "bfloat16", "float16"]),
        (fa.linalg, [name for name, _ in rows(LINALG)]),
        (fa.fft, [name for name, _ in rows(FFT)]),
    ):
        assert sorted(set(listed) - set(module.__all__)) == []
        assert sorted(set(listed) - set(dir(module))) == []


def test_a_star_import_gives_all_of_it() -> None:
    names: dict[str, Any] = {}
    exec("from ferrum_array import *", names)
    assert set(fa.__all__) <= set(names)


def test_the_products_are_one() -> None:
    for name in ("matmul", "matrix_transpose", "tensordot", "vecdot"):
        assert getattr(fa, name) is getattr(fa.linalg, name)


@pytest.mark.parametrize("name", ["nothing", "_nothing", "__nothing__"])
def test_what_is_not_there(name: str) -> None:
    for module in (fa, fa.linalg, fa.random):
        with pytest.raises(AttributeError, match=f"module '{module.__name__}' has no attribute '{name}'$"):
            getattr(module, name)
    with pytest.raises(AttributeError, match=f"'Tensor' object has no attribute '{name}'$"):
        getattr(fa.ones(2), name)


@pytest.mark.parametrize(
    ("found", "name", "written"),
    [
        (fa, "concatenate", "concat"),
        (fa, "arcsin", "asin"),
        (fa.linalg, "norm", "linalg.vector_norm"),
        (fa.random, "seed", "default_rng(seed), a"),
        (fa.random, "exponential", "default_rng(seed).exponential"),
        (fa.ones(2), "sort", "sort(x), a function of ferrum_array"),
        (fa.ones(2), "ravel", "x.reshape(-1)"),
        (fa.ones(2), "arctan", "atan"),
    ],
)
def test_names_of_other_libraries_are_answered_with_ours(found: Any, name: str, written: str) -> None:
    assert not hasattr(found, name)
    with pytest.raises(AttributeError, match=f"no attribute '{name}'; (write|draw from a generator:) .*") as raised:
        getattr(found, name)
    assert written in str(raised.value)


def test_advice_is_for_names_that_are_not_there_and_names_what_is() -> None:
    tables: list[tuple[Mapping[str, str], Any]] = [(names.TENSOR, fa.ones(2))]
    tables += [(table, importlib.import_module(name)) for name, table in names.MODULES.items()]
    for table, found in tables:
        assert [name for name in table if hasattr(found, name)] == []
        for written in table.values():
            for word in re.findall(r"(?<![.\w])([a-z_]\w*)\(", written):
                assert hasattr(fa, word) or hasattr(fa.random, word), written
            for word in re.findall(r"\b(linalg|io|random)\.(\w+)", written):
                assert hasattr(getattr(fa, word[0]), word[1]), written
            for word in re.findall(r"\bx\.(\w+)", written):
                assert hasattr(fa.ones((1, 1)), word), written


def functions(module: ModuleType) -> list[str]:
    return [name for name in module.__all__ if inspect.isfunction(getattr(module, name))]


DOCUMENTED = [(m, name) for m in (fa, fa.linalg, fa.fft, fa.testing) for name in functions(m)]


@pytest.mark.parametrize(("module", "name"), DOCUMENTED, ids=[f"{m.__name__}.{name}" for m, name in DOCUMENTED])
def test_every_function_has_a_docstring_with_an_example(module: ModuleType, name: str) -> None:
    function = getattr(module, name)
    text = inspect.getdoc(function) or ""
    assert len(text.splitlines()[0]) > 2
    assert text.splitlines()[0].rstrip().endswith((".", ":", ";")), text.splitlines()[0]
    assert ">>> " in text, "no example"
    assert function.__name__ == name


def test_info() -> None:
    info = fa.__array_namespace_info__()
    assert info.capabilities()["boolean indexing"] is True
    assert info.capabilities()["data-dependent shapes"] is True
    assert info.default_device() is fa.get_default_device()
    assert info.devices() == fa.devices()
    assert info.default_dtypes() == {
        "real floating": fa.float32,
        "complex floating": fa.complex64,
        "integral": fa.int64,
        "indexing": fa.int64,
    }
    assert set(info.dtypes()) == set(DTYPES.split())
    assert info.dtypes(kind="bool") == {"bool": fa.bool}
    assert set(info.dtypes(kind=("signed integer", "complex floating"))) == {
        *("int8", "int16", "int32", "int64", "complex64", "complex128")
    }
    with pytest.raises(ValueError, match="unknown kind"):
        info.dtypes(kind="real")
    for device in fa.devices():
        assert all(device.supports(d) for d in info.dtypes(device=device).values())
        assert info.default_dtypes(device=device) == info.default_dtypes()
