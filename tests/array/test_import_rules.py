"""Which file may import what: one direction, no circles, storage libraries in their place."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

#: package -> the packages of this project that it may import
MAY_IMPORT = {
    "ferrum_array": {"ferrum_array"},
    "ferrum_ops": {"ferrum_array", "ferrum_ops"},
    "ferrum_models": {"ferrum_array", "ferrum_ops", "ferrum_models"},
}
#: storage libraries, and the only folders whose files may name them
STORAGE = {"numpy", "cupy", "cupyx", "cupy_backends", "mlx", "ml_dtypes"}
STORAGE_FOLDERS = ("ferrum_array/backends", "ferrum_ops/kernels")
#: never imported at run time, anywhere
FORBIDDEN = {"torch", "torchvision", "jax", "tensorflow", "sentence_transformers"}

Sources = dict[str, ast.Module]


def sources(root: Path) -> Sources:
    """Every file of the packages, parsed; keys are paths relative to *root*."""
    return {
        path.relative_to(root).as_posix(): ast.parse(path.read_text(encoding="utf-8"), str(path))
        for package in MAY_IMPORT
        for path in sorted((root / package).rglob("*.py"))
    }


def module_name(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def is_type_checking(test: ast.expr) -> bool:
    name = test.attr if isinstance(test, ast.Attribute) else getattr(test, "id", None)
    return name == "TYPE_CHECKING"


def statements(tree: ast.AST, *, at_import: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """The import statements; with *at_import* only those that run when the module is imported."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node
        elif at_import and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        elif at_import and isinstance(node, ast.If) and is_type_checking(node.test):
            for other in node.orelse:
                yield from statements(other, at_import=at_import)
        else:
            yield from statements(node, at_import=at_import)


def targets(path: str, tree: ast.Module, *, at_import: bool = False) -> Iterator[tuple[str, str]]:
    """Pairs of a module that a file imports and the name that it takes from it, or ``""``."""
    package = module_name(path)
    if not path.endswith("/__init__.py"):
        package = package.rpartition(".")[0]
    for node in statements(tree, at_import=at_import):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
            continue
        parts = package.split(".")
        above = parts[: len(parts) - node.level + 1] if node.level else []
        base = ".".join([*above, *filter(None, [node.module])])
        yield from ((base, alias.name) for alias in node.names)


def imported(path: str, tree: ast.Module) -> list[str]:
    """The modules that a file imports anywhere, sorted."""
    return sorted({module for module, _ in targets(path, tree)})


def upward(files: Sources) -> list[str]:
    """Imports against the direction of the packages."""
    return [
        f"{path} imports {name}"
        for path, tree in files.items()
        for name in imported(path, tree)
        if (top := name.partition(".")[0]) in MAY_IMPORT and top not in MAY_IMPORT[path.partition("/")[0]]
    ]


def misplaced(files: Sources) -> list[str]:
    """Imports of storage libraries outside their folders, and of what is not used at run time."""
    found = []
    for path, tree in files.items():
        allowed = path.startswith(tuple(f"{folder}/" for folder in STORAGE_FOLDERS))
        for name in imported(path, tree):
            top = name.partition(".")[0]
            if top in FORBIDDEN or (top in STORAGE and not allowed):
                found.append(f"{path} imports {name}")
    return found


def graph(files: Sources) -> dict[str, set[str]]:
    """Which module imports which, among these files, while being imported.

    ``from a import b`` depends on the module ``a.b`` where there is one, and otherwise on ``a``,
    whose code must by then have bound the name.
    """
    modules = {module_name(path) for path in files}
    edges: dict[str, set[str]] = {}
    for path, tree in files.items():
        pairs = targets(path, tree, at_import=True)
        found = {f"{m}.{n}" if f"{m}.{n}" in modules else m for m, n in pairs}
        edges[module_name(path)] = found & modules
    return edges


def circle(edges: Mapping[str, set[str]]) -> list[str]:
    """One circle of imports, as a list of modules, or an empty list."""
    done: set[str] = set()

    def visit(node: str, way: list[str]) -> list[str]:
        if node in way:
            return [*way[way.index(node) :], node]
        if node in done:
            return []
        for other in sorted(edges.get(node, ())):
            if found := visit(other, [*way, node]):
                return found
        done.add(node)
        return []

    for start in sorted(edges):
        if found := visit(start, []):
            return found
    return []


FILES = sources(ROOT)


def test_packages_import_in_one_direction() -> None:
    assert FILES
    assert upward(FILES) == []


def test_storage_libraries_stay_in_their_folders() -> None:
    assert misplaced(FILES) == []


def test_no_circle_between_files() -> None:
    assert circle(graph(FILES)) == []


def test_import_loads_numpy_and_nothing_else() -> None:
    script = (
        "import sys; before = set(sys.modules); import ferrum_array; "
        "print(*sorted({m.partition('.')[0] for m in set(sys.modules) - before}))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    loaded = {name for name in done.stdout.split() if name not in sys.stdlib_module_names}
    assert "ferrum_array" in loaded
    assert loaded - {"ferrum_array", "numpy"} == set()


# The rules can fail: each is broken once.


def parsed(**files: str) -> Sources:
    """Files by path; ``__`` stands for the slash, and ``____init__`` for ``/__init__``."""
    return {
        name.replace("____init__", "/INIT").replace("__", "/").replace("INIT", "__init__") + ".py": ast.parse(text)
        for name, text in files.items()
    }


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("import ferrum_models", "ferrum_models"),
        ("from ferrum_models.cli import main", "ferrum_models.cli"),
        ("def f():\n    import ferrum_models.cli", "ferrum_models.cli"),
    ],
)
def test_an_upward_import_is_found(text: str, name: str) -> None:
    assert f"ferrum_ops/gemm.py imports {name}" in upward(parsed(ferrum_ops__gemm=text))
    assert upward(parsed(ferrum_models__gemm=text)) == []


@pytest.mark.parametrize(
    "text",
    [
        "import numpy as np",
        "import mlx.core as mx",
        "def f():\n    from cupy import cuda",
        "class A:\n    import ml_dtypes",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import numpy",
        "try:\n    import numpy\nexcept ImportError:\n    raise",
    ],
)
def test_misplaced_storage_is_found(text: str) -> None:
    assert misplaced(parsed(ferrum_array__tensor=text)) != []
    assert misplaced(parsed(ferrum_models__bert=text)) != []
    assert misplaced(parsed(ferrum_array__backends__numpy=text)) == []
    assert misplaced(parsed(ferrum_ops__kernels__fast=text)) == []


def test_torch_is_found_everywhere() -> None:
    text = "def f():\n    import torch"
    for path in ("ferrum_ops__kernels__fast", "ferrum_array__backends__numpy", "ferrum_models__b"):
        assert misplaced(parsed(**{path: text})) != []


def test_a_circle_is_found() -> None:
    files = parsed(
        ferrum_ops____init__="from ferrum_ops import a",
        ferrum_ops__a="from ferrum_ops import b",
        ferrum_ops__b="import ferrum_ops.c",
        ferrum_ops__c="from .a import f",
    )
    assert circle(graph(files)) == ["ferrum_ops.a", "ferrum_ops.b", "ferrum_ops.c", "ferrum_ops.a"]


def test_a_name_taken_from_an_unfinished_package_is_a_circle() -> None:
    files = parsed(
        ferrum_ops____init__="from ferrum_ops.a import f",
        ferrum_ops__a="from ferrum_ops import g",
    )
    assert circle(graph(files)) == ["ferrum_ops", "ferrum_ops.a", "ferrum_ops"]


def test_late_and_typing_imports_make_no_circle() -> None:
    files = parsed(
        ferrum_ops__a="from ferrum_ops import b",
        ferrum_ops__b="def f():\n    import ferrum_ops.a",
        ferrum_ops__c="if TYPE_CHECKING:\n    import ferrum_ops.d",
        ferrum_ops__d="import ferrum_ops.c",
    )
    assert circle(graph(files)) == []
