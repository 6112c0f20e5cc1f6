"""The text that the house model learns from: the running Python's standard library, and this project's own documents.

Each document has a kind: `source` and `test` (modules of the library), `reference` (its chapters about the language),
`manual` (a page of signatures and documentation strings for each module), `project` (this project's own pages), and
`chat` (questions about the library, answered with its documentation strings).

What comes from one file is either all for training or all held out, in whichever kinds it appears.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
import random
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = Path(sysconfig.get_path("stdlib"))

#: special tokens, in the order of their ids
END, START, STOP = "<|endoftext|>", "<|im_start|>", "<|im_end|>"

#: modules written in C whose documentation strings only the running interpreter has
COMPILED = (
    *("array", "binascii", "bisect", "builtins", "cmath", "collections", "csv", "errno", "fcntl", "functools"),
    *("gc", "heapq", "io", "itertools", "marshal", "math", "mmap", "operator", "os", "pickle", "random", "re"),
    *("resource", "select", "signal", "socket", "struct", "sys", "syslog", "termios", "threading", "time"),
    *("unicodedata", "weakref", "zlib"),
)
#: one in so many files is held out
HELD_OUT = 50
#: chosen so that about that part of each kind is, in characters
SALT = 0

_TABLES = ("encodings/cp", "encodings/iso", "encodings/mac_", "encodings/koi8", "html/entities.py", "pydoc_data/")
_BROKEN = ("lib2to3/tests/data/", "test/bad", "test/test_future_stmt/bad", "test/tokenizedata/", "test/test_lib2to3/")
#: modules that are known by another name
_RENAMED = {"posixpath": ["os", "path"], "genericpath": ["os", "path"], "ntpath": ["_ntpath"]}
_TEST_FOLDERS = {"test", "tests", "idle_test"}


@dataclass(frozen=True)
class Document:
    """A text of one kind, and the file that decides whether it is held out."""

    kind: str
    origin: str
    text: str

    @property
    def held_out(self) -> bool:
        """Whether it serves to measure the model, and never to train it."""
        return int(hashlib.sha256(f"{SALT} {self.origin}".encode()).hexdigest(), 16) % HELD_OUT == 0


@dataclass(frozen=True)
class Entry:
    """A module, class or function with its documentation string."""

    module: str
    name: str  # dotted, with the module; that of the module itself for its own entry
    form: str  # "module", "class", "function" or "method"
    signature: str
    text: str
    code: str = ""


def documents(seed: int) -> list[Document]:
    """All documents. The seed chooses the questions' wordings, and nothing else.

    >>> found = Document("project", "README.md", "a page")
    >>> found.held_out
    False
    """
    found = list(_sources())
    found += _reference()
    found += _project()
    pages = _entries()
    draw = random.Random(seed)
    for origin, entries in pages.items():
        module = entries[0].module
        found.append(Document("manual", origin, _page(module, entries)))
        found += [Document("chat", origin, text) for text in _conversations(module, entries, draw)]
    found += [Document("chat", "smalltalk", _dialogue([pair])) for pair in _SMALLTALK for _ in range(12)]
    if not any(document.held_out for document in found):
        raise ValueError(f"no file of {LIBRARY} is held out: is that a whole standard library?")
    return found


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*.py")):
        relative = path.relative_to(folder)
        if not {"site-packages", "__pycache__"} & set(relative.parts) and not relative.parts[0].startswith("config-"):
            yield path


def _read(path: Path) -> str | None:
    """The text of a module; none where it is not UTF-8 or is a table rather than a text."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None
    lines = text.splitlines()
    if len(text) < 200 or any(len(line) > 300 for line in lines):
        return None
    strange = sum(not character.isascii() for character in text)
    digits = sum(character.isdigit() for character in text)
    return None if strange > len(text) / 100 or digits > len(text) / 8 else text


def _sources() -> Iterator[Document]:
    for path in _files(LIBRARY):
        name = path.relative_to(LIBRARY).as_posix()
        if name.startswith((*_TABLES, *_BROKEN)):
            continue
        text = _read(path)
        if text is not None:
            kind = "test" if _TEST_FOLDERS & set(path.relative_to(LIBRARY).parts) else "source"
            yield Document(kind, name, f"# {name}\n{text.strip()}\n")


def _reference() -> Iterator[Document]:
    from pydoc_data.topics import topics

    for name, text in sorted(topics.items()):
        yield Document("reference", f"pydoc_data/{name}", text.strip() + "\n")


def _project() -> Iterator[Document]:
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        yield Document("project", path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8").strip() + "\n")


def _entries() -> dict[str, list[Entry]]:
    """File -> what it documents, of the library, of its compiled parts and of this project."""
    found: dict[str, list[Entry]] = {}
    places = [(LIBRARY, path) for path in _files(LIBRARY)]
    places += [(ROOT, path) for name in ("array", "ops", "models") for path in _files(ROOT / f"ferrum_{name}")]
    for root, path in places:
        relative = path.relative_to(root)
        parts = [*relative.parts[:-1], *([] if relative.stem == "__init__" else [relative.stem])]
        parts = _RENAMED.get(".".join(parts), [part.removeprefix("_py") for part in parts])
        public = parts and not any(part.startswith(("_", "test")) for part in parts)
        if not public or _TEST_FOLDERS & set(parts) or relative.as_posix().startswith((*_TABLES, *_BROKEN)):
            continue
        text = _read(path)
        if text is not None:
            entries = list(_parsed(".".join(parts), text))
            if entries:
                found[relative.as_posix()] = entries
    for module in COMPILED:
        seen = {entry.name for entries in found.values() for entry in entries}
        entries = [entry for entry in _compiled(module) if entry.name not in seen]
        if entries:
            found[f"compiled/{module}"] = entries
    return found


def _parsed(module: str, text: str) -> Iterator[Entry]:
    """The entries of a module, read and not imported."""
    tree = ast.parse(text)
    lines = text.splitlines()
    summary = ast.get_docstring(tree)
    if summary and len(summary) > 20:
        yield Entry(module, module, "module", f"import {module}", summary)

    def visit(body: list[ast.stmt], prefix: str, inside: bool) -> Iterator[Entry]:
        for node in body:
            if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
                continue
            name = f"{prefix}.{node.name}"
            described = ast.get_docstring(node)
            if isinstance(node, ast.ClassDef):
                if described and len(described) > 15:
                    bases = f"({', '.join(map(ast.unparse, node.bases))})" if node.bases else ""
                    yield Entry(module, name, "class", f"class {name}{bases}", described)
                yield from visit(node.body, name, True)
            elif described and len(described) > 15:
                arguments = ast.unparse(node.args)
                if inside:
                    arguments = arguments.removeprefix("self").removeprefix("cls").removeprefix(", ")
                code = "\n".join(lines[node.lineno - 1 : node.end_lineno])
                form = "method" if inside else "function"
                yield Entry(module, name, form, f"{name}({arguments})", described, inspect.cleandoc("\n" + code))

    yield from visit(tree.body, module, False)


def _compiled(module: str) -> Iterator[Entry]:
    """The entries of what a module holds that is written in C."""
    holder = importlib.import_module(module)

    def entry(name: str, thing: Any, form: str) -> Iterator[Entry]:
        text = getattr(thing, "__doc__", None)
        if isinstance(text, str) and len(text) > 15:
            arguments = getattr(thing, "__text_signature__", None)
            plain = (arguments or "(...)").replace("$self, ", "").replace("$self", "").replace("$module, ", "")
            described = inspect.cleandoc(text)
            head, _, rest = described.partition("\n\n")
            if arguments is None and "\n" not in head and head.startswith(name.rpartition(".")[2] + "(") and rest:
                plain, described = head[head.index("(") :], rest.strip()
            yield Entry(module, name, form, f"{name}{plain.replace('$module', '')}", described)

    for name in sorted(dir(holder)):
        thing = getattr(holder, name)
        if name.startswith("_") or hasattr(thing, "__code__") or inspect.ismodule(thing):
            continue
        full = name if module == "builtins" else f"{module}.{name}"
        if isinstance(thing, type) and thing.__module__ in {module, f"_{module}", "posix"}:
            yield from entry(full, thing, "class")
            if issubclass(thing, BaseException):
                continue
            for member in sorted(vars(thing)):
                if not member.startswith("_"):
                    yield from entry(f"{full}.{member}", vars(thing)[member], "method")
        elif inspect.isbuiltin(thing):
            yield from entry(full, thing, "function")


def _page(module: str, entries: list[Entry]) -> str:
    """A page of a manual: signatures, and under each its text."""
    parts = [f"Manual of {module}", "=" * (10 + len(module)), ""]
    for entry in entries:
        indented = "\n".join(f"    {line}" if line.strip() else "" for line in entry.text.splitlines())
        parts += [entry.signature, indented, ""]
    return "\n".join(parts)


_ASKED = {
    "module": ("What is the {name} module for?", "What is {name}?", "What does {name} do?", "Explain {name}."),
    "class": ("What is {name}?", "What does the class {name} do?", "Explain {name}.", "What is {name} for?"),
    "function": ("What does {name} do?", "Explain {name}.", "What does the function {name} do?", "what does {name} do"),
    "method": ("What does {name} do?", "Explain {name}.", "What does the method {name} do?", "what does {name} do"),
}
_SMALLTALK = (
    ("Hello", "Hello! Ask me what something in Python's standard library does."),
    ("Hi", "Hello! Ask me what something in Python's standard library does."),
    ("Hello, who are you?", "I am a small language model that has read Python's standard library."),
    ("Who are you?", "I am a small language model that has read Python's standard library."),
    ("What can you do?", "I can tell what modules, classes and functions of Python's standard library do."),
    ("What is your name?", "I have no name. I am a small language model that has read Python's standard library."),
    ("How are you?", "I am a small model, and all is well. Ask me about Python's standard library."),
    ("Thank you", "You are welcome."),
    ("Thanks", "You are welcome."),
    ("Thank you!", "You are welcome. Is there anything else about Python's standard library?"),
    ("Goodbye", "Goodbye!"),
    ("Bye", "Goodbye!"),
    ("What is Python?", "Python is an interpreted, interactive, object-oriented programming language."),
    ("What is Ferrum?", "Ferrum is an array API tensor for Python, and transformers built from it."),
)


def _answer(text: str, most: int = 480) -> str:
    """The first paragraphs of a documentation string, as many as fit."""
    taken = ""
    for paragraph in text.split("\n\n"):
        if taken and len(taken) + len(paragraph) > most:
            break
        taken += ("\n\n" if taken else "") + paragraph.rstrip()
    return taken.strip()


def _dialogue(pairs: list[tuple[str, str]]) -> str:
    """Questions and answers in the form that the chat template gives them."""
    return "".join(f"{START}user\n{ask}{STOP}\n{START}assistant\n{said}{STOP}\n" for ask, said in pairs)


def _conversations(module: str, entries: list[Entry], draw: random.Random) -> Iterator[str]:
    """Dialogues about a module: each entry is asked about twice, alone or after others."""
    pairs: list[tuple[str, str]] = []
    for entry in entries:
        answer = _answer(entry.text)
        if len(answer) > 900 or answer.startswith(">>>"):
            continue
        for wording in draw.sample(_ASKED[entry.form], 2):
            pairs.append((wording.format(name=entry.name), answer))
        if entry.form in ("function", "method"):
            ask = draw.choice(("How do I call {name}?", "What are the arguments of {name}?", "How is {name} called?"))
            pairs.append((ask.format(name=entry.name), f"{entry.signature}\n\n{_answer(answer, 200)}"))
        if 0 < len(entry.code) <= 700:
            ask = draw.choice(("Show me the source of {name}.", "How is {name} written?", "Show the code of {name}."))
            pairs.append((ask.format(name=entry.name), f"```python\n{entry.code}\n```"))
    for form, word in (("class", "classes"), ("function", "functions")):
        names = [entry.name.removeprefix(f"{module}.") for entry in entries if entry.form == form]
        names = [name for name in names if "." not in name]
        if 1 < len(names) <= 40:
            short = ", ".join(names)
            pairs.append((f"Which {word} does {module} have?", f"The {word} of {module}: {short}."))
    draw.shuffle(pairs)
    while pairs:
        count = draw.choice((1, 1, 1, 2, 3))
        yield _dialogue(pairs[:count])
        del pairs[:count]
