"""The likeliest mistakes say what was violated, what came and what to do; the page shows what they say."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mistakes import MISTAKES, Mistake, page

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda one: one.meant)
def test_a_mistake_is_explained(mistake: Mistake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    message = mistake.message()
    assert [word for word in mistake.words if word not in message] == [], message


def test_the_page_says_what_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert (ROOT / "docs" / "mistakes.md").read_text(encoding="utf-8") == page(), "python -m tests.mistakes"


def test_what_is_no_mistake_is_found() -> None:
    with pytest.raises(AssertionError, match="no error"):
        Mistake("", "", "fa.ones(3)", ()).message()
