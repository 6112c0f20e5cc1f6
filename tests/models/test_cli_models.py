"""``ferrum chat``, ``convert``, ``bench`` and ``info`` on a tiny model of random weights."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from ferrum_models import Sampling, generate, load, random_model
from tests.models import gguf_models
from tests.models.cli_tools import CONFIG, Shell, answer, interrupted_after, write


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without a chat template."""
    return write(tmp_path_factory.mktemp("model") / "plain", chat_template=None)


@pytest.fixture
def ferrum(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    return Shell(capsys, monkeypatch)


# chat


def conversation(folder: Path, *turns: str, system: str | None = None, tokens: int = 8) -> list[str]:
    """What the library answers."""
    model, tokenizer = load(folder)
    assert tokenizer is not None
    said: list[dict[str, str]] = [] if system is None else [{"role": "system", "content": system}]
    answers = []
    for turn in turns:
        said.append({"role": "user", "content": turn})
        answers.append(generate(model, tokenizer, said, max_tokens=tokens))
        said.append({"role": "assistant", "content": answers[-1]})
    return answers


def test_chat(ferrum: Shell, model: Path) -> None:
    first, second = conversation(model, "the fox", "quick", system="brown")
    assert first != second
    lines = "the fox\n\nquick\n/reset\nthe fox\n/quit\nnever read\n"
    out = ferrum("chat", "--model", model, "-m", 8, "--system-prompt", "brown", "--verbose", stdin=lines)
    assert out == f"{first}\n{second}\n{first}\n"
    known = re.findall(r"Prompt: \d+ tokens(?:, (\d+) of them known)?,", ferrum.err)
    assert [bool(one) for one in known] == [False, True, False]
    assert ferrum("chat", "--model", model, "-m", 8, stdin="") == ""
    assert ferrum("chat", "--model", model, stdin="/help\n/quit") == ""
    assert ferrum.err.startswith("/reset begins anew, /quit")
    only = conversation(model, "/resets")[0]
    assert ferrum("chat", "--model", model, "-m", 8, stdin="/resets\n") == only + "\n"


def test_chat_without_a_template_goes_on_with_the_text(ferrum: Shell, model: Path, plain: Path) -> None:
    first = answer(plain, "the\n", chat=False, tokens=8)
    second = answer(plain, f"the\n{first}\nfox\n", chat=False, tokens=8)
    for command in (("--model", plain), ("--model", model, "--ignore-chat-template")):
        assert ferrum("chat", *command, "-m", 8, stdin="the\nfox\n") == f"{first}\n{second}\n"


def test_each_turn_has_its_seed(ferrum: Shell, model: Path) -> None:
    loaded, tokenizer = load(model)
    assert tokenizer is not None
    said: list[dict[str, str]] = []
    expected = ""
    for turn, text in enumerate(("the", "fox")):
        said.append({"role": "user", "content": text})
        rules = Sampling(temperature=1.0, seed=4 + turn)
        found = generate(loaded, tokenizer, said, max_tokens=8, sampling=rules)
        said.append({"role": "assistant", "content": found})
        expected += found + "\n"
    assert ferrum("chat", "--model", model, "-m", 8, "--temp", 1, "--seed", 4, stdin="the\nfox") == expected


def test_an_interrupt_ends_the_answer_not_the_conversation(
    ferrum: Shell, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = answer(model, "the fox", tokens=30)
    interrupted_after(monkeypatch, 15)
    out = ferrum("chat", "--model", model, "-m", 30, stdin="the fox\nquick\n")
    begun, _, rest = out.partition(" ...\n")
    assert whole.startswith(begun)
    assert 2 < len(begun) < len(whole)
    monkeypatch.undo()
    loaded, tokenizer = load(model)
    assert tokenizer is not None
    said = [("user", "the fox"), ("assistant", begun), ("user", "quick")]
    messages = [{"role": role, "content": content} for role, content in said]
    assert rest == generate(loaded, tokenizer, messages, max_tokens=30) + "\n"


def test_a_conversation_that_is_too_long_can_go_on(ferrum: Shell, model: Path) -> None:
    lines = f"the fox\n{'quick ' * 60}\n/reset\nthe fox\n"
    out = ferrum("chat", "--model", model, "-m", 4, "--max-kv-size", 50, stdin=lines)
    first = conversation(model, "the fox", tokens=4)[0]
    assert out == f"{first}\n{first}\n"
    assert re.fullmatch(
        r"ferrum chat: the prompt has \d+ tokens, but .* limited to 50; /reset begins anew\n", ferrum.err
    )


# convert


@pytest.mark.parametrize(
    ("arguments", "scheme", "kept"),
    [
        (("-q", "--q-bits", 8), "int8[", ()),
        (("--quantize",), "int4-g32-f16[", ()),
        (("-q", "--q-bits", 8, "--q-group-size", 16, "--keep", "lm_head"), "int8-g16[", ("lm_head",)),
        (("--q-scheme", "q8_0", "--keep", "lm_head", "self_attn"), "q8_0[", ("lm_head", "self_attn")),
        (("--dtype", "bf16"), "bf16[", ()),
    ],
)
def test_convert(
    ferrum: Shell, tmp_path: Path, arguments: tuple[object, ...], scheme: str, kept: tuple[str, ...]
) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    config = {**CONFIG, "hidden_size": 64, "intermediate_size": 32, "head_dim": 16, "num_hidden_layers": 1}
    write(source)
    (source / "config.json").write_text(json.dumps(config))
    random_model(config).save(source / "model.safetensors")
    out = ferrum("convert", "--model", source, "--output", target, *arguments)
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (source, target)]
    assert out == f"{target}: {sizes[1] / 1e6:.2f} MB of weights, {100 * sizes[1] / sizes[0]:.0f}% of what they were\n"
    assert sizes[1] < 0.75 * sizes[0]
    tree = ferrum("info", "--model", target)
    for line in tree.splitlines():
        if "Linear(" in line:
            name = line.split(":")[0].strip()
            stays = name in kept or ("self_attn" in kept and name in ("q_proj", "k_proj", "v_proj", "o_proj"))
            assert ("f32[" if stays else scheme) in line
    assert ferrum("generate", "--model", target, "-p", "the fox", "-m", 5).endswith("\n")
    assert "is there already" in ferrum.fails("convert", "--model", source, "--output", target)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--q-bits", 8), "need --quantize"),
        (("--q-scheme", "q8_0", "--q-bits", 8), "leave out --q-bits"),
        (("--q-scheme", "nothing"), "nothing"),
        (("-q", "--q-group-size", 7), "7"),
    ],
)
def test_convert_refuses(
    ferrum: Shell, model: Path, tmp_path: Path, arguments: tuple[object, ...], message: str
) -> None:
    target = tmp_path / "target"
    assert message in ferrum.fails("convert", "--model", model, "--output", target, *arguments)
    assert not target.exists()
    assert "nowhere" in ferrum.fails("convert", "--model", "nowhere", "--output", target)


def test_gguf_files_are_converted(ferrum: Shell, tmp_path: Path) -> None:
    gguf_models.write(gguf_models.make("llama", tmp_path), "llama", tmp_path / "model.gguf", "Q8_0")
    out = ferrum("convert", "--model", tmp_path / "model.gguf", "--output", tmp_path / "target")
    size = (tmp_path / "target" / "model.safetensors").stat().st_size
    assert out == f"{tmp_path / 'target'}: {size / 1e6:.2f} MB of weights\n"


# bench and info


@pytest.mark.parametrize("source", ["model", "random"])
def test_bench(ferrum: Shell, model: Path, source: str) -> None:
    which = ("--model", model) if source == "model" else ("--random", model / "config.json")
    out = ferrum("bench", *which, "-p", 20, "-g", 6, "-n", 3, "-b", 2, "--kv-bits", 8, "--dtype", "f32")
    lines = out.splitlines()
    size = random_model(CONFIG).size
    assert lines[0].endswith(f": {size:,} parameters, {size * 4 / 1e6:.2f} MB, on cpu in float32")
    assert lines[1] == "20 tokens of prompt, 6 generated, 2 at once"
    assert lines[3].split() == ["prefill", "decode", "first", "token"]
    rows = [re.fullmatch(r"(trial \d|median) +([\d.]+) t/s +([\d.]+) t/s +([\d.]+) ms", line) for line in lines[4:8]]
    figures = [(row[1], *map(float, row.groups()[1:])) for row in rows if row]
    assert [name for name, *_ in figures] == ["trial 1", "trial 2", "trial 3", "median"]
    for _, prefill, decode, first in figures:
        assert prefill == pytest.approx(40 / (first / 1000), rel=0.1)
        assert decode > 0
    assert figures[3][1] == sorted(figure[1] for figure in figures[:3])[1]
    assert re.fullmatch(r"peak memory of the process: \d+\.\d+ GB", lines[-1])


def test_bench_measures_the_time_that_passes(ferrum: Shell, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step takes 60 ms and reading the prompt 100 ms: the figures say so."""
    from ferrum_models.causal import CausalLM

    forward = CausalLM.forward

    def slow(one: CausalLM, ids: Any, *rest: Any) -> Any:
        time.sleep(0.1 if ids.shape[0] > 1 else 0.06)
        return forward(one, ids, *rest)

    monkeypatch.setattr(CausalLM, "forward", slow)
    out = ferrum("bench", "--model", model, "-p", 20, "-g", 3, "-n", 1)
    found = re.search(r"trial 1 +([\d.]+) t/s +([\d.]+) t/s +([\d.]+) ms", out)
    assert found is not None
    prefill, decode, first = map(float, found.groups())
    assert 60 < prefill <= 200
    assert 8 < decode <= 1 / 0.06
    assert 100 <= first < 300
    assert "median" not in out
    one = ferrum("bench", "--model", model, "-p", 20, "-g", 1, "-n", 1)
    assert re.search(r"trial 1 +[\d.]+ t/s +- +[\d.]+ ms", one)


def test_bench_refuses(ferrum: Shell, model: Path, tmp_path: Path) -> None:
    error = ferrum.fails("bench", "--model", model, "-p", 19_999, "-g", 3)
    assert "20002 tokens are too many for a model of 20000 positions" in error
    path = tmp_path / "config.json"
    path.write_text('{"model_type": "unheard"}')
    assert "unheard" in ferrum.fails("bench", "--random", path)
    assert "none.json" in ferrum.fails("bench", "--random", tmp_path / "none.json")


def test_info_of_a_model(ferrum: Shell, model: Path, tmp_path: Path) -> None:
    out = ferrum("info", "--model", model)
    size = random_model(CONFIG).size
    assert f"tiny: {size:,} parameters, {size * 4 / 1e6:.2f} MB, computed in float32\n" in out
    assert "positions: 20000\n" in out
    assert f"vocabulary: {CONFIG['vocab_size']}\n" in out
    assert "a token in the cache: 256 bytes\n" in out  # 2 layers x 2 heads x (8 + 8) float32
    assert "chat template)\nends of texts: 1\n" in out
    assert "tokens are chosen by: their likelihood\n" in out
    assert "    layers.0-1: DecoderLayer()\n" in out
    own = write(tmp_path / "own")
    (own / "tokenizer.json").unlink()
    (own / "generation_config.json").write_text('{"do_sample": true, "temperature": 0.5, "top_p": 0.9}')
    out = ferrum("info", "--model", own, "--dtype", "bf16")
    assert "MB, computed in bfloat16\n" in out
    assert "tokenizer: none\nends of texts: none\ntokens are chosen by: temperature=0.5, top_p=0.9\n" in out
