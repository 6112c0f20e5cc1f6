"""The wheel, built from the source distribution, used in a fresh environment outside the tree."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from email import message_from_string
from importlib.metadata import distribution
from pathlib import Path

import pytest

from tests.package_extras import PROGRAMS

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES: list[str] = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]


def run(*command: str | Path, cwd: Path) -> str:
    """The output of a command that must succeed."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, cwd=cwd)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The source distribution, and the wheel made from it alone."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    (source,) = folder.glob("*.tar.gz")
    (wheel,) = folder.glob("*.whl")
    return source, wheel


@pytest.fixture(scope="module")
def python(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that holds the wheel and what it requires, no more."""
    folder = tmp_path_factory.mktemp("outside") / "env"
    venv.create(folder, symlinks=True)
    interpreter = folder / "bin" / "python"
    (site,) = (folder / "lib").glob("python*/site-packages")
    for name in ("numpy", "ml_dtypes"):
        installed = distribution(name)
        for top in sorted({file.parts[0] for file in installed.files or ()} - {".."}):
            (site / top).symlink_to(Path(str(installed.locate_file(top))))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", interpreter]
    run(*pip, "install", "--quiet", "--no-index", built[1], cwd=folder)
    return interpreter


def test_the_wheel_holds_the_packages_alone(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[1]) as wheel:
        names = wheel.namelist()
        metadata = next(name for name in names if name.endswith(".dist-info/METADATA"))
        described = message_from_string(wheel.read(metadata).decode())
    info = metadata.partition("/")[0]
    assert {name.partition("/")[0] for name in names} == {*PACKAGES, info}
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(names)
    assert f"{info}/licenses/LICENSE" in names
    assert not [name for name in names if name.endswith((".pyc", ".so"))]
    assert described["Name"] == "ferrum"
    assert described["Requires-Python"] == "<3.14,>=3.11"
    assert described["License-Expression"] == "Apache-2.0"
    required = [r for r in described.get_all("Requires-Dist", []) if "extra ==" not in r]
    assert sorted(r.partition(">")[0] for r in required) == ["ml-dtypes", "numpy"]
    assert set(described.get_all("Provides-Extra", [])) == {*("mlx", "cuda", "cpu", "models", "demo", "docs", "dev")}


def test_the_source_distribution_holds_its_tests(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[0]) as source:
        names = {name.partition("/")[2] for name in source.getnames()}
    assert {"pyproject.toml", "LICENSE", "README.md", "Makefile", "tests/conftest.py"} <= names
    assert not [name for name in names if ".venv" in name or "__pycache__" in name]


USE = """
import sys
import ferrum_array as fa

assert "site-packages" in fa.__file__, fa.__file__
x = fa.reshape(fa.arange(6, dtype=fa.float32), (2, 3))
assert (x @ x.mT).tolist() == [[5.0, 14.0], [14.0, 50.0]]
assert fa.ones(2, dtype=fa.bfloat16).dtype is fa.bfloat16
assert not {"torch", "cupy", "mlx", "scipy"} & sys.modules.keys()
"""


def test_the_wheel_works_outside_the_tree(python: Path, tmp_path: Path) -> None:
    run(python, "-W", "error", "-c", USE, cwd=tmp_path)


@pytest.mark.parametrize("package", PACKAGES)
def test_each_package_imports(python: Path, package: str, tmp_path: Path) -> None:
    run(python, "-W", "error", "-c", f"import {package}", cwd=tmp_path)


def test_the_command_is_installed(python: Path, tmp_path: Path) -> None:
    assert "usage: ferrum" in run(python.parent / "ferrum", "--help", cwd=tmp_path)


def test_types_are_seen_by_users(python: Path, tmp_path: Path) -> None:
    (tmp_path / "use.py").write_text(
        "import ferrum_array as fa\n"
        "x: fa.Tensor = fa.ones((2, 3)) + 1\n"
        "y: int = fa.ones(3)\n"  # wrong on purpose: what follows must be more than Any
    )
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--strict", "--python-executable", str(python)),
            *("--cache-dir", str(tmp_path / "cache"), "use.py"),
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.stdout.count("error:") == 1, done.stdout
    assert "use.py:3: error: Incompatible types in assignment" in done.stdout


def test_every_extra_is_tried_alone() -> None:
    assert PROGRAMS.keys() - {""} == PROJECT["project"]["optional-dependencies"].keys()


def test_the_makefile_and_the_extras_agree() -> None:
    """What `make` installs by name has the version that the extras ask for."""
    makefile = (ROOT / "Makefile").read_text()
    extras = PROJECT["project"]["optional-dependencies"]
    for variable, extra in (("TORCH", "dev"), ("WEIGHTS", "demo")):
        (line,) = [line for line in makefile.splitlines() if line.startswith(f"{variable} :=")]
        assert line.partition(":=")[2].strip() in extras[extra]
