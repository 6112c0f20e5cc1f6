"""The documents say what is true: their code runs, and their commands exist."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests import docs_tools

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [page for page in PAGES if "build" not in page.relative_to(ROOT).parts]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES: list[str] = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]

#: beginnings of the names of modules that import a library which is not installed everywhere
HARDWARE = {
    "ferrum_array.backends.cupy": "cuda",
    "ferrum_array.backends.mlx": "mlx",
    "ferrum_ops.kernels.cuda": "cuda",
    "ferrum_ops.kernels.mlx": "mlx",
}
MODULES = [
    pytest.param(name, marks=[getattr(pytest.mark, m) for start, m in HARDWARE.items() if name.startswith(start)])
    for name in docs_tools.modules(ROOT, PACKAGES)
]

#: public modules besides the packages themselves, whose functions must all have an example
PUBLIC = [
    *("ferrum_array", "ferrum_array.linalg", "ferrum_array.fft", "ferrum_array.random"),
    *("ferrum_array.io", "ferrum_array.testing", "ferrum_ops", "ferrum_models"),
]


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder of a test: empty but for the models of the repository."""
    (tmp_path / "models").symlink_to(ROOT / "models", target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def named(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=named)
@pytest.mark.usefixtures("capsys")
def test_blocks_are_true(page: Path, scratch: Path) -> None:
    """In the order of the page, in one folder: Python runs, commands of ours run and print what the page says.

    ``make``, ``pip`` and scripts name what exists.
    """
    namespace: dict[str, object] = {}
    for block in docs_tools.blocks(page):
        if block.language == "python":
            docs_tools.run_python([block], namespace)
        if block.language == "sh":
            for words in docs_tools.commands(block):
                check_command(words, scratch)
        if block.language == "console":
            for words, expected in docs_tools.transcript(block):
                docs_tools.check_printed(check_command(words, scratch), expected)


def check_command(words: list[str], scratch: Path) -> str:
    """Run a command of ours, in the folder *scratch*, and return what it prints; look others up."""
    program, *arguments = words
    if program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert arguments[0] in targets, f"the Makefile has no {arguments[0]}"
    elif program == "pip":
        extras = re.findall(r"ferrum\[([\w,]+)\]", " ".join(arguments))
        asked = {extra for group in extras for extra in group.split(",")}
        assert asked <= PROJECT["project"]["optional-dependencies"].keys(), words
    elif program == "python":
        script = next(word for word in arguments if not word.startswith("-"))
        path = f"{script.replace('.', '/')}.py" if arguments[0] == "-m" else script
        assert (ROOT / path).exists() or script in ("pytest",), f"there is no {script}"
    elif program.startswith("FERRUM_"):
        return check_command(arguments, scratch)
    else:
        assert program == "ferrum", f"unknown command in a document: {words}"
        done = subprocess.run(
            [sys.executable, "-m", "ferrum_models.cli", *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd=scratch,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout
    return ""


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{named(page)} links to {target}"


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.usefixtures("scratch")
def test_examples_in_docstrings_run(name: str) -> None:
    for examples in docs_tools.examples_in(importlib.import_module(name)):
        docs_tools.run_examples(examples)


@pytest.mark.parametrize("name", PUBLIC)
@pytest.mark.usefixtures("scratch")
def test_public_examples_run_as_they_stand(name: str) -> None:
    """Whoever copies an example of a public function needs nothing else, not even an import."""
    for public, value in docs_tools.public(importlib.import_module(name)).items():
        for examples in docs_tools.examples_of(public, value, {}):
            docs_tools.run_examples(examples)


@pytest.mark.parametrize("name", PUBLIC)
def test_public_functions_have_examples(name: str) -> None:
    public = docs_tools.public(importlib.import_module(name))
    assert public, f"{name} exports nothing"
    assert [n for n, value in public.items() if ">>> " not in (value.__doc__ or "")] == []


@pytest.mark.parametrize("script", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_examples_run(script: Path) -> None:
    run = subprocess.run([sys.executable, "-W", "error", script], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout


# The helpers can fail.


def page_with(folder: Path, text: str) -> Path:
    page = folder / "page.md"
    page.write_text(text)
    return page


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("```python\nassert 1 + 1 == 3\n```\n", AssertionError),
        ("```python\n>>> 1 + 1\n3\n```\n", AssertionError),
        ("```python\nx = 1\n```\ntext\n```python\nassert x == 2\n```\n", AssertionError),
        ("```python\nundefined\n```\n", NameError),
        ("```{toctree}\nundefined\n```\n```{code-cell} python\n:tags: [hide-input]\nundefined\n```\n", NameError),
    ],
)
def test_a_wrong_block_is_found(tmp_path: Path, text: str, error: type[Exception]) -> None:
    found = docs_tools.blocks(page_with(tmp_path, text))
    with pytest.raises(error):
        docs_tools.run_python(found)


def test_blocks_of_a_page_share_names(tmp_path: Path) -> None:
    text = "```python\nx = 1\n```\n```python\n>>> x + 1\n2\n>>> y = x\n```\n```python\ny += x\n```\n"
    docs_tools.run_python(docs_tools.blocks(page_with(tmp_path, text)))


@pytest.mark.parametrize("text", ["```\nx\n```\n", "```python\nx\n"])
def test_a_broken_block_is_found(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match=r"page\.md:1"):
        docs_tools.blocks(page_with(tmp_path, text))


@pytest.mark.parametrize(
    "line",
    ["make nonsense", "pip install 'ferrum[nonsense]'", "python nonsense.py", "curl nonsense"],
)
def test_a_wrong_command_is_found(line: str, tmp_path: Path) -> None:
    (block,) = docs_tools.blocks(page_with(tmp_path, f"```sh\n{line}\n```\n"))
    (words,) = docs_tools.commands(block)
    with pytest.raises(AssertionError):
        check_command(words, tmp_path)


def test_a_wrong_transcript_is_found(tmp_path: Path) -> None:
    text = "```console\n$ ferrum --version\nferrum ...\n$ ferrum \\\n  --version\nsomething else\n```\n"
    (block,) = docs_tools.blocks(page_with(tmp_path, text))
    (right, first), (wrong, second) = docs_tools.transcript(block)
    assert right == wrong == ["ferrum", "--version"]
    docs_tools.check_printed(check_command(right, tmp_path), first)
    with pytest.raises(AssertionError, match="something else"):
        docs_tools.check_printed(check_command(wrong, tmp_path), second)
    (block,) = docs_tools.blocks(page_with(tmp_path, "```console\nferrum --version\n```\n"))
    with pytest.raises(ValueError, match="begins with"):
        list(docs_tools.transcript(block))


def test_a_wrong_docstring_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wrong_examples.py").write_text(
        "class A:\n    def method(self):\n        '''\n        >>> 1\n        2\n        '''\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    (examples,) = docs_tools.examples_in(importlib.import_module("wrong_examples"))
    with pytest.raises(AssertionError, match="Expected"):
        docs_tools.run_examples(examples)
