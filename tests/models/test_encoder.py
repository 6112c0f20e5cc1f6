from __future__ import annotations

from pathlib import Path

import pytest

import ferrum_array as fa
from ferrum_models import SentenceEncoder, load_encoder
from ferrum_models.progress import progressing
from tests.array.oracle import wide


@pytest.fixture(scope="module")
def local(folder: Path) -> SentenceEncoder:
    return load_encoder(folder)


def test_the_order_is_that_of_the_texts(local: SentenceEncoder) -> None:
    texts = ["a much longer sentence than the others", "short", "of middle length", "short"]
    got = wide(local.encode(texts, batch_size=2))
    for text, row in zip(texts, got, strict=True):
        assert abs(wide(local.encode([text]))[0] - row).max() < 1e-6
    assert (abs((got**2).sum(1) - 1) < 1e-6).all()


def test_no_text_at_all(local: SentenceEncoder) -> None:
    got = local.encode([])
    assert got.shape == (0, 384)
    assert got.dtype is fa.float32


def test_progress_is_told(local: SentenceEncoder) -> None:
    told: list[tuple[int, int]] = []
    local.encode(["a", "b b", "c c c"], batch_size=2, progress=lambda *both: told.append(both))
    assert told == [(2, 3), (3, 3)]


@pytest.mark.parametrize("progress", [None, False])
def test_nothing_is_drawn_without_a_terminal(
    local: SentenceEncoder, progress: bool | None, capsys: pytest.CaptureFixture[str]
) -> None:
    local.encode(["a"] * 300, batch_size=300, progress=progress)
    assert capsys.readouterr() == ("", "")


def test_a_bar_is_drawn_on_request(local: SentenceEncoder, capsys: pytest.CaptureFixture[str]) -> None:
    local.encode(["a"] * 3, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "text" in err


@pytest.mark.parametrize(("total", "drawn"), [(200, False), (201, True)])
def test_a_terminal_sees_a_bar_for_long_work(
    total: int, drawn: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with progressing(None, total, "text") as advance:
        advance(total)
    assert ("/201" in capsys.readouterr().err) == drawn


def test_without_the_library_of_bars_there_is_none_unasked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setattr("ferrum_models.progress.find_spec", lambda name: None)
    with progressing(None, 201, "text") as advance:
        advance(201)
    assert capsys.readouterr().err == ""


def test_bad_input_is_refused(local: SentenceEncoder) -> None:
    with pytest.raises(TypeError, match=r"got one str; write \[text\]"):
        local.encode("a text")
    with pytest.raises(TypeError, match="text 1 must be a str, got int"):
        local.encode(["a", 1])  # type: ignore[list-item]  # what is tested
    with pytest.raises(ValueError, match="text 0 is not valid Unicode"):
        local.encode(["\ud800"])
    for size in (0, -1, 2.0, True):
        with pytest.raises(ValueError, match="batch_size must be a positive integer"):
            local.encode(["a"], batch_size=size)  # type: ignore[arg-type]  # what is tested
