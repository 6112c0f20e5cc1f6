"""What other libraries call it: advice for names of NumPy and PyTorch that the array API standard does not have.

A name that does not exist is an AttributeError here as anywhere, so code that asks with ``hasattr`` learns the truth;
the advice stands in the message.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NoReturn

__all__ = ["MODULES", "TENSOR", "UFUNCS", "advice", "advise"]

#: NumPy's names of ufuncs, where the standard has another one.
UFUNCS: Mapping[str, str] = {
    "absolute": "abs",
    "arccos": "acos",
    "arccosh": "acosh",
    "arcsin": "asin",
    "arcsinh": "asinh",
    "arctan": "atan",
    "arctan2": "atan2",
    "arctanh": "atanh",
    "conjugate": "conj",
    "invert": "bitwise_invert",
    "left_shift": "bitwise_left_shift",
    "power": "pow",
    "right_shift": "bitwise_right_shift",
    "rint": "round",
    "true_divide": "divide",
}

_NAMESPACE: Mapping[str, str] = {
    **{name: f"{standard}(...)" for name, standard in UFUNCS.items()},
    "amax": "max(x)",
    "amin": "min(x)",
    "array": "asarray(obj), which shares memory where it can, or asarray(obj, copy=True)",
    "array_equal": "all(x == y)",
    "array_split": "slices, such as x[:n]",
    "ascontiguousarray": "asarray(x, copy=True)",
    "average": "mean(x)",
    "cat": "concat([x, y])",
    "concatenate": "concat([x, y])",
    "cross": "linalg.cross(x, y)",
    "cumprod": "cumulative_prod(x, axis=0)",
    "cumsum": "cumulative_sum(x, axis=0)",
    "det": "linalg.det(x)",
    "diag": "linalg.diagonal(x) to take a diagonal, create_diagonal(x) to make a matrix with it",
    "diagonal": "linalg.diagonal(x)",
    "dot": "x @ y",
    "double": "float64",
    "dstack": "stack([x, y], axis=2)",
    "fabs": "abs(x)",
    "fliplr": "flip(x, axis=1)",
    "flipud": "flip(x, axis=0)",
    "float": "float32",
    "from_numpy": "asarray(array)",
    "half": "float16",
    "hstack": "concat([x, y], axis=1), or axis=0 for vectors",
    "inner": "vecdot(x, y)",
    "int": "int64",
    "inv": "linalg.inv(x)",
    "issubdtype": "isdtype(dtype, 'real floating') or another kind",
    "load": "io.load(path)",
    "long": "int64",
    "mod": "remainder(x, y)",
    "ndarray": "Tensor",
    "norm": "linalg.vector_norm(x) or linalg.matrix_norm(x)",
    "outer": "linalg.outer(x, y)",
    "put": "x[indices] = values",
    "put_along_axis": "x[indices] = values",
    "ravel": "reshape(x, -1)",
    "row_stack": "concat([x, y], axis=0)",
    "save": "io.savez(path, name=x) or io.save_safetensors",
    "savez": "io.savez(path, name=x)",
    "seed": "random.default_rng(seed), a generator to draw from",
    "split": "slices, such as x[:n]",
    "swapaxes": "moveaxis(x, source, destination) or permute_dims(x, axes)",
    "trace": "linalg.trace(x)",
    "transpose": "x.T, x.mT or permute_dims(x, axes)",
    "unique": "unique_values(x), unique_counts(x), unique_inverse(x) or unique_all(x)",
    "unsqueeze": "expand_dims(x, axis)",
    "vstack": "concat([x, y], axis=0), or stack([x, y]) for vectors",
    **dict.fromkeys(("rand", "randn", "random_sample"), "random.default_rng(seed).normal(shape) or .uniform(shape)"),
}

_LINALG: Mapping[str, str] = {
    "norm": "linalg.vector_norm(x) or linalg.matrix_norm(x)",
    "multi_dot": "x @ y @ z",
    "lstsq": "linalg.pinv(a) @ b",
    "cond": "linalg.svdvals(x), whose first over last is the condition number",
}

_RANDOM: Mapping[str, str] = {
    "seed": "default_rng(seed), a generator to draw from",
    "rand": "default_rng(seed).uniform(shape)",
    "random": "default_rng(seed).uniform(shape)",
    "randn": "default_rng(seed).normal(shape)",
    "randint": "default_rng(seed).integers(low, high, shape)",
    "shuffle": "default_rng(seed).permutation(n), and index with it",
}

#: The same for attributes of tensors that are no functions of the namespace either.
TENSOR: Mapping[str, str] = {
    "cpu": "x.to_device('cpu')",
    "cuda": "x.to_device('cuda')",
    "cumprod": "cumulative_prod(x, axis=0)",
    "dim": "x.ndim",
    "dot": "x @ y",
    "double": "x.astype('float64')",
    "flat": "x.reshape(-1)",
    "float": "x.astype('float32')",
    "half": "x.astype('float16')",
    "int": "x.astype('int32')",
    "long": "x.astype('int64')",
    "numel": "x.size",
    "permute": "x.permute_dims(*axes)",
    "ravel": "x.reshape(-1)",
    "resize": "x.reshape(shape)",
    "to": "x.astype(dtype) or x.to_device(device)",
    "tobytes": "x.numpy().tobytes()",
    "type": "x.astype(dtype)",
    "view": "x.reshape(shape), or bitcast(x, dtype) to read the bits as another type",
}

#: What to write in place of a name, by the module that does not have it.
MODULES: Mapping[str, Mapping[str, str]] = {
    "ferrum_array": _NAMESPACE,
    "ferrum_array.linalg": _LINALG,
    "ferrum_array.random": _RANDOM,
}


def advice(module: str, name: str) -> str:
    """What to write in place of *name*, which *module* does not have: the end of an error's message, or nothing."""
    written = MODULES[module].get(name)
    return f"; write {written}" if written else ""


class _Elsewhere:
    """A method that tensors do not have: to ask for it says what to write.

    A ``__getattr__`` would say it too, but Python then looks up every attribute of a tensor the slow way, a sixth of
    the time of ``a + b``.
    """

    __slots__ = ("_message",)

    def __init__(self, name: str, written: str) -> None:
        self._message = f"'Tensor' object has no attribute {name!r}; write {written}"

    def __get__(self, _tensor: object, _type: object = None) -> NoReturn:
        raise AttributeError(self._message)


def advise(tensor: type, functions: Iterable[str]) -> None:
    """Let *tensor* answer names of other libraries, and those of our *functions* that are no methods, with advice."""
    known = {**{name: f"{name}(x), a function of ferrum_array" for name in functions}, **_NAMESPACE, **TENSOR}
    for name, written in known.items():
        if not hasattr(tensor, name):
            setattr(tensor, name, _Elsewhere(name, written))
