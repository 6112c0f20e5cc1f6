"""What is executable in the documents: code blocks of Markdown pages, examples of docstrings."""

from __future__ import annotations

import doctest
import inspect
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

# a language, or a directive of the site in braces, such as {toctree}
_FENCE = re.compile(r"^```(?P<language>[\w-]*|\{[\w-]+\}[^`]*)\s*$")
_CELL = "{code-cell}"  # of a notebook that is a page; options in lines such as ":tags: [hide-input]" stand first


@dataclass(frozen=True)
class Block:
    """One fenced block: its page, the line it starts on, its language and its text."""

    page: Path
    line: int
    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a Markdown page.

    Raises:
        ValueError: if a block has no language, or no end.
    """
    found: list[Block] = []
    language, start, lines = "", 0, []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        fence = _FENCE.match(line)
        if not start and fence:
            if not fence["language"]:
                raise ValueError(f"{page.name}:{number}: name the block's language, or 'text'")
            language, start, lines = fence["language"], number, []
        elif start and fence and not fence["language"]:
            if language.startswith(_CELL):
                language = "python"
                lines = ["" if re.match(r":[\w-]+:", line) else line for line in lines]
            found.append(Block(page, start, language, "\n".join(lines) + "\n"))
            start = 0
        elif start:
            lines.append(line)
    if start:
        raise ValueError(f"{page.name}:{start}: this block has no end")
    return found


def run_python(code: list[Block], namespace: dict[str, Any] | None = None) -> None:
    """Run blocks of one page in order, in one namespace; ``>>>`` sessions with their output."""
    if namespace is None:
        namespace = {}
    namespace.setdefault("__name__", "__main__")
    for block in code:
        if ">>> " in block.text:
            session = doctest.DocTestParser().get_doctest(
                block.text, namespace, block.page.name, str(block.page), block.line
            )
            run_examples(session)
            namespace.update(session.globs)
        else:
            # Blank lines in front make line numbers in a traceback those of the page.
            exec(compile("\n" * block.line + block.text, str(block.page), "exec"), namespace)


def run_examples(examples: doctest.DocTest) -> int:
    """Run a doctest and return how many examples it had.

    Raises:
        AssertionError: with doctest's own report, if an output differs.
    """
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    failed, attempted = runner.run(examples, out=report.append, clear_globs=False)
    assert not failed, "".join(report)
    return attempted


def commands(block: Block) -> Iterator[list[str]]:
    """The commands of a shell block, split into words; comments and prompts left out."""
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line.strip().removeprefix("$ "), comments=True)
        if words:
            yield words


def transcript(block: Block) -> Iterator[tuple[list[str], str]]:
    """The commands of a console block, split into words, each with what it prints.

    Raises:
        ValueError: if the block does not begin with a command.
    """
    first, *parts = re.split(r"^\$ ", block.text, flags=re.MULTILINE)
    if first.strip():
        raise ValueError(f"{block.page.name}:{block.line}: a console block begins with '$ ' and a command")
    for part in parts:
        lines = part.splitlines(keepends=True)
        last = next(n for n, line in enumerate(lines) if not line.endswith("\\\n"))
        command, printed = "".join(lines[: last + 1]), "".join(lines[last + 1 :])
        yield shlex.split(command.replace("\\\n", " ")), printed


def check_printed(printed: str, expected: str) -> None:
    """What a command printed must be what the page says, in which ... stands for anything.

    Raises:
        AssertionError: with both, if it is not.
    """
    alike = doctest.OutputChecker().check_output(expected, printed, doctest.ELLIPSIS)
    assert alike, f"expected:\n{expected}\nprinted:\n{printed}"


def modules(root: Path, packages: list[str]) -> list[str]:
    """The names of all modules of *packages* in the folder *root*."""
    paths = (path for package in packages for path in sorted((root / package).rglob("*.py")))
    dotted = (".".join(path.relative_to(root).with_suffix("").parts) for path in paths)
    return [name.removesuffix(".__init__") for name in dotted]


def documented(module: ModuleType) -> dict[str, object]:
    """The functions and classes at home in *module*, by name, private ones included."""
    return {
        name: value
        for name, value in vars(module).items()
        if callable(value) and getattr(value, "__module__", None) == module.__name__
    }


def public(module: ModuleType) -> dict[str, object]:
    """The functions and classes that *module* exports, wherever they are defined."""
    exported = {name: getattr(module, name) for name in module.__all__}
    return {n: value for n, value in exported.items() if inspect.isclass(value) or inspect.isfunction(value)}


def examples_of(name: str, value: object, names: dict[str, Any]) -> list[doctest.DocTest]:
    """The docstrings with examples of a function or class and its methods, to be run with *names* defined."""
    # False: a function counts also if a factory in another file made it. The attributes of a class may be
    # anybody's, NumPy's array type for one, so there the file does matter.
    home = sys.modules[value.__module__] if isinstance(value, type) else False
    found = doctest.DocTestFinder().find(value, name, module=home, globs=names)
    return [test for test in found if test.examples]


def examples_in(module: ModuleType) -> list[doctest.DocTest]:
    """Every docstring of *module* that has examples; they may use the names of the module."""
    names = vars(module)
    own = doctest.DocTestParser().get_doctest(module.__doc__ or "", names, module.__name__, module.__file__, 0)
    found = [test for n, value in documented(module).items() for test in examples_of(n, value, names)]
    return [test for test in (own, *found) if test.examples]
