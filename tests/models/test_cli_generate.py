"""``ferrum generate`` on a tiny model of random weights: text, figures, errors and interrupts."""

from __future__ import annotations

import ctypes
import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import ferrum_array as fa
from ferrum_models import Sampling, Tokenizer, cli, generate, load, load_adapters
from ferrum_models.generation import stream_generate
from ferrum_models.generation.prompt_cache import fingerprint
from tests.models.cli_tools import Shell, answer, interrupted_after, write
from tests.models.test_cli import COMMAND
from tests.models.test_tokenizing import library


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


# generate


def test_text_on_stdout_and_figures_on_stderr(ferrum: Shell, model: Path) -> None:
    out = ferrum("generate", "--model", model, "--prompt", "the fox", "--max-tokens", 12)
    assert out == answer(model, "the fox") + "\n"
    prompt = len(Tokenizer.load(model).apply_chat_template([{"role": "user", "content": "the fox"}]))
    assert re.fullmatch(
        rf"Prompt: {prompt} tokens, [\d.]+ tokens/s\n"
        r"Generation: 12 tokens, [\d.]+ tokens/s\n"
        r"Peak memory: \d+\.\d+ GB\n",
        ferrum.err,
    )
    assert ferrum("generate", "--model", model, "-p", "the fox", "-m", 12, "--verbose", "false") == out
    assert ferrum.err == ""


def test_the_prompt_comes_from_stdin(ferrum: Shell, model: Path) -> None:
    text = "the quick\n  brown fox\n"
    out = ferrum("generate", "--model", model, "-p", "-", "-m", 12, stdin=text)
    assert out == answer(model, text) + "\n"


def test_templates(ferrum: Shell, model: Path, plain: Path, tmp_path: Path) -> None:
    bare = answer(model, "the fox", chat=False) + "\n"
    assert bare != answer(model, "the fox") + "\n"
    assert ferrum("generate", "--model", model, "-p", "the fox", "-m", 12, "--ignore-chat-template") == bare
    assert ferrum("generate", "--model", plain, "-p", "the fox", "-m", 12) == bare
    messages = [{"role": "system", "content": "quick"}, {"role": "user", "content": "the fox"}]
    loaded, tokenizer = load(model)
    assert tokenizer is not None
    expected = generate(loaded, tokenizer, messages, max_tokens=12) + "\n"
    assert ferrum("generate", "--model", model, "-p", "the fox", "-m", 12, "--system-prompt", "quick") == expected
    own = write(tmp_path / "own", chat_template="{{ greeting }} {{ messages[0].content }}")
    out = ferrum(
        "generate", "--model", own, "-p", "fox", "-m", 12, "--chat-template-config", '{"greeting": "the quick"}'
    )
    ids = Tokenizer.load(own).encode("the quick fox", add_special_tokens=False)
    assert out == answer(own, ids, chat=False) + "\n"


def test_how_tokens_are_chosen(ferrum: Shell, model: Path, tmp_path: Path) -> None:
    def said(*more: object, folder: Path = model) -> str:
        return ferrum("generate", "--model", folder, "-p", "the", "-m", 12, *more)

    rules = Sampling(temperature=0.9, top_k=30, top_p=0.8, min_p=0.01, seed=6)
    given = ("--temp", 0.9, "--top-k", 30, "--top-p", 0.8, "--min-p", 0.01, "--seed", 6)
    expected = answer(model, "the", sampling=rules) + "\n"
    assert said(*given) == expected
    assert "\nSeed: 6\n" in ferrum.err
    assert said("--temp", 0) == said("--temp", 0.9, "--top-k", 1) == answer(model, "the") + "\n"
    hot = answer(model, "the", sampling=Sampling(temperature=0.9, seed=6)) + "\n"
    assert said("--temp", 0.9, "--seed", 6, "--top-k", 0, "--top-p", 1, "--min-p", 0) == hot != expected
    assert len({said("--temp", 2) for _ in range(3)}) > 1  # a seed of its own each time
    seed = re.search(r"Seed: (\d+)", ferrum.err)
    assert seed is not None
    again = said("--temp", 2, "--seed", seed[1])
    assert again == answer(model, "the", sampling=Sampling(temperature=2.0, seed=int(seed[1]))) + "\n"
    own = write(tmp_path / "own")
    (own / "generation_config.json").write_text('{"do_sample": true, "temperature": 0.9, "top_k": 30, "top_p": 0.8}')
    assert said("--min-p", 0.01, "--seed", 6, folder=own) == expected
    assert said("--temp", 0, folder=own) == answer(model, "the") + "\n"


def test_where_answers_end(ferrum: Shell, model: Path) -> None:
    whole = answer(model, "the", tokens=30)
    stop = next(whole[n : n + 2] for n in range(4, len(whole)) if "�" not in whole[n : n + 2])
    out = ferrum("generate", "--model", model, "-p", "the", "-m", 30, "--stop", "never there", stop)
    assert out == whole[: whole.index(stop)] + "\n"
    loaded, tokenizer = load(model)
    assert tokenizer is not None
    pieces = list(stream_generate(loaded, tokenizer, [{"role": "user", "content": "the"}], max_tokens=30))
    texts = {one: piece.token for piece in pieces[3:] if (one := library().id_to_token(piece.token))}
    token, number = next(iter(texts.items()))
    out = ferrum("generate", "--model", model, "-p", "the", "-m", 30, "--extra-eos-token", "<pad>", token)
    assert out == answer(model, "the", tokens=30, stop_ids=(1, 2, number)) + "\n"
    assert len(out) < len(whole)
    assert ferrum("generate", "--model", model, "-p", "the", "-m", 0) == "\n"
    assert ferrum.err == ""


def test_caches(ferrum: Shell, model: Path, tmp_path: Path) -> None:
    out = ferrum("generate", "--model", model, "-p", "the fox", "-m", 12, "--kv-bits", 8)
    assert out == answer(model, "the fox", kv_dtype="int8") + "\n"
    assert out == ferrum("generate", "--model", model, "-p", "the fox", "-m", 12, "--kv-dtype", "int8")
    out = ferrum("generate", "--model", model, "-p", "the fox", "-m", 12, "--kv-dtype", "fp8_e4m3")
    assert out == answer(model, "the fox", kv_dtype="fp8_e4m3") + "\n"
    ids = Tokenizer.load(model).apply_chat_template([{"role": "user", "content": "the fox"}])
    out = ferrum("generate", "--model", model, "-p", "the fox", "-m", 12, "--max-kv-size", len(ids) + 4)
    assert out == answer(model, "the fox", tokens=5) + "\n"
    assert "limited to 3" in ferrum.fails("generate", "--model", model, "-p", "the fox", "--max-kv-size", 3)


def test_prompt_caches(ferrum: Shell, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "prompt.safetensors"
    known = []
    for text in ("the quick brown fox", "the quick brown fox", "the quick x"):
        out = ferrum("generate", "--model", model, "-p", text, "-m", 12, "--prompt-cache-file", path)
        assert out == answer(model, text) + "\n"
        found = re.search(r"Prompt: (\d+) tokens(?:, (\d+) of them known)?,", ferrum.err)
        assert found is not None
        known.append(tuple(int(one or 0) for one in found.groups()))
    assert known[0][1] == 0
    assert known[1] == (known[0][0], known[0][0] - 1)
    assert 0 < known[2][1] < known[2][0] - 1
    other = write(tmp_path / "other", seed=9)
    error = ferrum.fails("generate", "--model", other, "-p", "a", "--prompt-cache-file", path)
    assert "was made with another model" in error
    error = ferrum.fails("generate", "--model", model, "-p", "a", "--prompt-cache-file", path, "--kv-bits", 8)
    assert "--kv-bits 8, but" in error
    assert "holds float32" in error
    error = ferrum.fails("generate", "--model", model, "-p", "a", "--prompt-cache-file", path, "--kv-dtype", "fp8_e4m3")
    assert "--kv-dtype fp8_e4m3, but" in error
    error = ferrum.fails("generate", "--model", model, "-p", "a", "--prompt-cache-file", path, "--max-kv-size", 9)
    assert "but the limit is 9" in error
    path.unlink()
    small = ("--prompt-cache-file", path, "--kv-bits", 8)
    ferrum("generate", "--model", model, "-p", "the quick", "-m", 3, *small)
    with fa.io.open_safetensors(path) as file:
        assert file["layers.0.k"].dtype is fa.int8
    ferrum("generate", "--model", model, "-p", "the quick", "-m", 3, *small)
    assert "of them known" in ferrum.err
    path.write_bytes(b"junk")
    assert "prompt.safetensors" in ferrum.fails("generate", "--model", model, "-p", "a", "--prompt-cache-file", path)


def test_drafts(ferrum: Shell, model: Path, tmp_path: Path) -> None:
    expected = answer(model, "the fox", tokens=20) + "\n"
    draft = ("--draft-model", model, "--num-draft-tokens", 4)
    assert ferrum("generate", "--model", model, "-p", "the fox", "-m", 20, *draft) == expected
    assert "\nDrafted: 15 of 20 tokens\n" in ferrum.err
    other = write(tmp_path / "other", seed=9)
    assert ferrum("generate", "--model", model, "-p", "the fox", "-m", 20, "--draft-model", other) == expected


def adapter(folder: Path, seed: int) -> Path:
    """LoRA of rank 2 beside a layer of the tiny model."""
    folder.mkdir()
    said = {"peft_type": "LORA", "r": 2, "lora_alpha": 40, "target_modules": ["up_proj"], "layers_to_transform": [0]}
    (folder / "adapter_config.json").write_text(json.dumps(said))
    name, rng = "base_model.model.model.layers.0.mlp.up_proj.lora_", fa.random.default_rng(seed)
    tensors = {f"{name}A.weight": rng.normal((2, 16)), f"{name}B.weight": rng.normal((24, 2))}
    fa.io.save_safetensors(tensors, folder / "adapter_model.safetensors")
    return folder


def test_adapters(ferrum: Shell, model: Path, tmp_path: Path) -> None:
    loaded, tokenizer = load(model)
    assert tokenizer is not None
    folders = [adapter(tmp_path / "one", 1), adapter(tmp_path / "two", 2)]
    path = tmp_path / "prompt.safetensors"
    answers = {answer(model, "the fox")}
    for chosen in (folders[:1], folders):
        expected = generate(
            load_adapters(loaded, chosen), tokenizer, [{"role": "user", "content": "the fox"}], max_tokens=12
        )
        command = ("--model", model, "-m", 12, "--adapter-path", *chosen)
        assert ferrum("generate", *command, "-p", "the fox") == expected + "\n"
        assert ferrum("chat", *command, stdin="the fox") == expected + "\n"
        answers.add(expected)
    assert len(answers) == 3
    prints = {fingerprint(load_adapters(loaded, folders[0], [factor])) for factor in (0.5, 1.0)}
    assert len(prints) == 2
    ferrum("generate", "--model", model, "-p", "a", "-m", 1, "--prompt-cache-file", path)
    command = ("--model", model, "-p", "a", "--prompt-cache-file", path)
    assert "made with another model" in ferrum.fails("generate", *command, "--adapter-path", folders[0])
    assert "adapter_config.json" in ferrum.fails("generate", "--model", model, "-p", "a", "--adapter-path", tmp_path)


def test_dtypes_and_devices(ferrum: Shell, model: Path) -> None:
    out = ferrum("generate", "--model", model, "-p", "the fox", "-m", 8, "--dtype", "f64", "--device", "cpu")
    loaded, tokenizer = load(model, dtype="f64")
    assert tokenizer is not None
    assert out == generate(loaded, tokenizer, [{"role": "user", "content": "the fox"}], max_tokens=8) + "\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-p", "a", "--temp", "-1"), "temperature must be finite and at least 0"),
        (("-p", "a", "--top-p", "1.5"), "top_p must be above 0"),
        (("-p", "a", "--seed", "-4"), "seed must be an integer of at least 0"),
        (("-p", "a", "--system-prompt", "x", "--ignore-chat-template"), "--ignore-chat-template excludes it"),
        (("-p", "", "--ignore-chat-template"), "the prompt is empty"),
        (("-p", "a", "--extra-eos-token", "nothing"), "'nothing' is no token"),
        (("-p", "a", "--stop", ""), "stop must be a list of texts that are not empty"),
        (("-p", "a", "--draft-model", "nowhere"), "there is no model folder nowhere"),
        (("-p", "fox " * 30_000,), "positions end at 20000"),
        (("-p", "\udcff"), "not valid Unicode"),
    ],
)  # fmt: skip
def test_errors_are_one_line(ferrum: Shell, model: Path, arguments: tuple[str, ...], message: str) -> None:
    if "" in arguments and "--ignore-chat-template" in arguments:
        tokenizer = json.loads((model / "tokenizer.json").read_text())
        bare = model.parent / "bare"
        write(bare)
        (bare / "tokenizer.json").write_text(json.dumps({**tokenizer, "post_processor": None}))
        model = bare
    assert message in ferrum.fails("generate", "--model", model, *arguments)


def test_folders_that_are_refused(ferrum: Shell, model: Path, plain: Path, tmp_path: Path) -> None:
    assert "there is no model folder" in ferrum.fails("generate", "--model", tmp_path / "none", "-p", "a")
    assert "lacks config.json" in ferrum.fails("chat", "--model", tmp_path)
    assert "has none" in ferrum.fails("generate", "--model", plain, "-p", "a", "--system-prompt", "x")
    assert "there is none" in ferrum.fails("chat", "--model", plain, "--system-prompt", "x")
    mute = write(tmp_path / "mute")
    (mute / "tokenizer.json").unlink()
    for command in (("generate", "-p", "a"), ("chat",)):
        assert "has no tokenizer.json" in ferrum.fails(*command, "--model", mute)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("generate", "--model", "x"), "required: --prompt"),
        (("generate", "-p", "x"), "required: --model"),
        (("generate", "--model", "x", "-p", "x", "--max-tokens", "-1"), "must be an integer of at least 0, got '-1'"),
        (("generate", "--model", "x", "-p", "x", "--max-kv-size", "0"), "must be an integer of at least 1, got '0'"),
        (("generate", "--model", "x", "-p", "x", "--kv-bits", "3"), "invalid choice: 3"),
        (("generate", "--model", "x", "-p", "x", "--verbose", "maybe"), "must be true or false, got 'maybe'"),
        (("generate", "--model", "x", "-p", "x", "--chat-template-config", "{"), "is not valid JSON"),
        (("generate", "--model", "x", "-p", "x", "--chat-template-config", "[]"), "must be a JSON object"),
        (("generate", "--model", "x", "-p", "x", "--dtype", "i8"), "a model is computed in floating-point"),
        (("bench",), "one of the arguments --model --random is required"),
        (("bench", "--model", "x", "--random", "y"), "not allowed with argument"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1
    assert err.startswith("ferrum")


def test_a_prompt_cache_without_a_folder_is_refused_before_anything_is_computed(
    ferrum: Shell, model: Path, tmp_path: Path
) -> None:
    away = tmp_path / "no" / "kept.safetensors"
    assert f"there is no folder {away.parent}" in ferrum.fails(
        "generate", "--model", model, "-p", "a", "--prompt-cache-file", away
    )


# Interrupts.


def start(*arguments: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # a background job without a terminal inherits an interrupt that is ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent differently there")
def test_an_interrupt_keeps_what_was_printed(ferrum: Shell, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "prompt.safetensors"
    with start(
        "generate", "--model", model, "-p", "the fox", "-m", 15_000, "--stop", "<<<", "--prompt-cache-file", path
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        head = process.stdout.read(20)
        process.send_signal(signal.SIGINT)
        rest, err = process.stdout.read(), process.stderr.read().decode()
        assert process.wait(60) == 130
    count = re.search(r"Generation: (\d+) tokens", err)
    assert count is not None
    tokens = int(count[1])
    assert 2 < tokens < 15_000
    assert re.fullmatch(r"Prompt: .*\nGeneration: .*\nPeak memory: .*\nferrum: interrupted\n", err)
    out = (head + rest).decode()
    assert out.endswith("\n")
    whole = answer(model, "the fox", tokens=tokens + 1)
    assert whole.startswith(out.removesuffix("\n").rstrip("�"))
    # what was read is kept, too
    ferrum("generate", "--model", model, "-p", "the fox", "-m", 1, "--prompt-cache-file", path)
    assert "of them known" in ferrum.err


@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent differently there")
def test_a_reader_that_goes_away_ends_it(model: Path) -> None:
    with start("generate", "--model", model, "-p", "the fox", "-m", 15_000) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(5)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 141


def test_an_interrupt_in_this_process(ferrum: Shell, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = answer(model, "the fox", tokens=30)
    interrupted_after(monkeypatch, 15)
    out = ferrum("generate", "--model", model, "-p", "the fox", "-m", 30, code=130)
    assert 2 < len(out) < len(whole)
    assert whole.startswith(out.removesuffix("\n"))
    assert "Generation: 15 tokens" in ferrum.err
    assert ferrum.err.endswith("\nferrum: interrupted\n")


def test_a_second_interrupt_does_not_wait(ferrum: Shell, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGINT), sys.unraisablehook
    interrupted_after(monkeypatch, 15, times=2)
    ferrum("generate", "--model", model, "-p", "the fox", "-m", 30, code=130)
    assert "Generation: 14 tokens" in ferrum.err
    interrupted_after(monkeypatch, 3, times=2)
    ferrum("chat", "--model", model, stdin="the fox\nquick\n", code=130)
    assert ferrum.err == "ferrum: interrupted\n"
    assert (signal.getsignal(signal.SIGINT), sys.unraisablehook) == before


def test_interrupts_that_a_compiler_loses(ferrum: Shell, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A callback loses the exception, and its library fails for another reason."""
    from ferrum_models.causal import CausalLM

    callback = ctypes.CFUNCTYPE(None)(lambda: signal.raise_signal(signal.SIGINT))

    def broken(*arguments: Any) -> Any:
        callback()
        raise RuntimeError("no compiled object yet")

    monkeypatch.setattr(CausalLM, "forward", broken)
    for command in (("generate", "-p", "the fox"), ("bench",)):
        ferrum(*command, "--model", model, code=130)
        assert ferrum.err == "ferrum: interrupted\n"

    def wrong(*arguments: Any) -> Any:
        raise RuntimeError("a mistake")

    monkeypatch.setattr(CausalLM, "forward", wrong)
    with pytest.raises(RuntimeError, match="a mistake"):
        ferrum("generate", "--model", model, "-p", "the fox")
