"""How Sphinx makes the site: ``make docs``. A warning is an error; notebooks are executed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import ferrum_array

project = "Ferrum"
author = "The Ferrum contributors"
release = ferrum_array.__version__
html_title = f"Ferrum {release}"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["build"]
html_theme = "furo"
html_theme_options = {"source_edit_link": "", "navigation_with_keys": True}

# Pages: the tests run their code blocks. Notebooks: the build runs them, and an error ends it.
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "cache"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True

# Docstrings.
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
add_module_names = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_custom_sections = [("Source", "notes")]
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


def _one_error_a_line(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings say "TypeError: if so. ValueError: if not." in one paragraph; the page has a line for each."""
    for number, line in enumerate(lines):
        lines[number] = re.sub(r"(?<=\S) ((?:[A-Z]\w*Error|KeyError)): ", r" **\1**: ", line)


def _on_the_site(app: Any, name: str, source: list[str]) -> None:
    """Files beside the folder of documents have pages of their own here, with links that fit."""
    if not name.startswith("project/"):
        source[0] = re.sub(r"\]\(\.\./([A-Z]+)\.md", lambda found: f"](project/{found[1].lower()}.md", source[0])
        return
    text = (Path(app.srcdir).parent / f"{name.removeprefix('project/').upper()}.md").read_text(encoding="utf-8")
    text = text.replace("](docs/", "](../")
    text = re.sub(r"\]\(([A-Z]+)\.md", lambda found: f"]({found[1].lower()}.md", text)
    source[0] = re.sub(r"\[([^]]*)\]\(([A-Z]+|[a-z_/-]+/)\)", r"\1", text)  # a licence, a folder: no pages


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", _one_error_a_line)
    app.connect("source-read", _on_the_site)
    return {"parallel_read_safe": True}
