"""The command ``ferrum``: ``info``, ``demo`` and ``embed``; those of language models are in ``commands``."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import NoReturn

import ferrum_array as fa
from ferrum_array import Dtype
from ferrum_models import demo
from ferrum_models.commands import bench, chat, convert, generate
from ferrum_models.commands.info import show_model
from ferrum_models.commands.interrupts import Interrupts
from ferrum_models.commands.options import add_place, check_dtype
from ferrum_models.encoder import load_encoder

__all__ = ["main"]

_FAILED, _INTERRUPTED, _UNREAD = 2, 130, 141  # the last two as shells report the signals
_STORED = (".npz", ".safetensors")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line *arguments* (those of the process if None); the result is the exit code.

    0 means done, 2 an error, 130 interrupted, 141 that nobody reads the output any more.
    Errors are one line on standard error.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.name is None:
        parser.error("there is no command; ferrum --help lists them")
    command: Callable[[argparse.Namespace], None] = options.command
    options.interrupts = interrupts = Interrupts()
    try:
        with interrupts.noticed():
            command(options)
            sys.stdout.flush()
    except BrokenPipeError:
        # Python would complain when it flushes at exit: give it somewhere to write to
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _UNREAD
    except (KeyboardInterrupt, RuntimeError):
        if isinstance(sys.exception(), RuntimeError) and not interrupts.asked:
            raise  # a mistake of ours; after an interrupt, a compiler that was broken off
        print("ferrum: interrupted", file=sys.stderr)
        return _INTERRUPTED
    except (OSError, ValueError, ImportError, MemoryError) as error:
        text = str(error) if not isinstance(error, MemoryError) else f"out of memory: {error}"
        print(f"ferrum {options.name}: error: {' '.join(text.split())}", file=sys.stderr)
        return _FAILED
    return 0


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, as all others are; its commands' parsers are of this class, too."""

    def error(self, message: str) -> NoReturn:
        self.exit(_FAILED, f"{self.prog}: error: {' '.join(message.split())}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="ferrum", description="Tensors in the array API standard, and transformers built on them.")
    parser.add_argument("--version", action="version", version=f"ferrum {fa.__version__}")
    commands = parser.add_subparsers(title="commands", dest="name", metavar="COMMAND")

    info = commands.add_parser("info", help="what is installed and can be computed, or what a model is made of")
    info.add_argument("--model", type=Path, metavar="DIR", help="the folder of a language model")
    info.set_defaults(command=_info)

    show = commands.add_parser("demo", help="embed a small text collection and ask it questions")
    show.add_argument("--plot", type=Path, metavar="FILE", help="also write a heat map, as PNG")
    show.set_defaults(command=_demo)

    embed = commands.add_parser("embed", help="turn texts into vectors")
    embed.add_argument("text", nargs="+", help="texts; a single - reads one per line from stdin")
    embed.add_argument("--model", type=Path, required=True, metavar="DIR", help="a model folder")
    embed.add_argument(
        "--output",
        default="-",
        metavar="FILE",
        help="FILE.npz or FILE.safetensors; without it, JSON lines on stdout",
    )
    embed.set_defaults(command=_embed)

    for command in (info, show, embed):
        add_place(command)
    for one in (generate, chat, convert, bench):
        one.add(commands)
    return parser


# ferrum info


def _info(options: argparse.Namespace) -> None:
    if options.model is not None:
        show_model(options)
        return
    print(f"ferrum {fa.__version__} (array API {fa.__array_api_version__})")
    print(f"Python {platform.python_version()} on {platform.system()} {platform.machine()}")
    print("\ndevices")
    for device in fa.devices():
        dtypes = " ".join(dtype.name for dtype in Dtype.all() if device.supports(dtype))
        default = ", default" if device is fa.get_default_device() else ""
        print(f"  {device.name} ({device.backend.library}{default}): {dtypes}")
    print("\nlibraries")
    for extra, names in sorted(_requirements().items()):
        versions = {name: _version(name) for name in names}
        listed = ", ".join(f"{name} {version or '(absent)'}" for name, version in versions.items())
        print(f"  {extra or 'always'}: {listed}")
        if extra and None in versions.values():
            print(f"    to complete it: pip install 'ferrum[{extra}]'")


def _requirements() -> dict[str, list[str]]:
    """The libraries that ferrum asks for, by extra; those without one under an empty name."""
    found: dict[str, list[str]] = {}
    for line in metadata.requires("ferrum") or []:
        name = re.match(r"[\w.-]+", line)
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", line)
        if name is not None and name[0] != "ferrum":
            names = found.setdefault(extra[1] if extra else "", [])
            if name[0] not in names:
                names.append(name[0])
    return found


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


# ferrum demo


def _demo(options: argparse.Namespace) -> None:
    model = demo.demo_model()
    check_dtype(options)
    found = demo.run(model, options.device, options.dtype)
    count = len(found.facts) + len(found.answers)
    print(
        f"{demo.MODEL_NAME}, {found.parameters / 1e6:.1f} million parameters, "
        f"on {found.device} in {found.dtype}\n"
        f"loaded in {found.load_seconds:.2f} s; {count} sentences embedded in "
        f"{found.embed_seconds:.2f} s, {found.sentences_per_second:.0f} sentences/s"
    )
    for question, ranked in found.answers:
        print(f"\n{question}")
        for fact, score in ranked[:3]:
            print(f"  {score:5.2f}  {fact.text}")
    topics = [fact.topic for fact in found.facts]
    columns = shutil.get_terminal_size().columns
    text = demo.picture(found.similarity, topics, wide=columns >= 100, unicode=_has_blocks())
    print(f"\nHow alike the {len(topics)} sentences are, topic by topic:\n\n{text}")
    if options.plot is not None:
        demo.plot(found.similarity, topics, options.plot)
        print(f"\nheat map written to {options.plot}")


def _has_blocks() -> bool:
    """Whether standard output can show the shading characters."""
    try:
        "░▒▓█".encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


# ferrum embed


def _embed(options: argparse.Namespace) -> None:
    output = Path(options.output)
    if options.output != "-" and output.suffix not in _STORED:
        raise ValueError(f"--output must end in {' or '.join(_STORED)} or be -, got {output}")
    check_dtype(options)
    encoder = load_encoder(options.model, options.device, options.dtype)
    texts = options.text
    if texts == ["-"]:
        texts = [line.rstrip("\r\n") for line in sys.stdin]
    vectors = encoder.encode(texts)
    if output.suffix == ".npz":
        fa.io.savez(output, embeddings=vectors)
    elif output.suffix == ".safetensors":
        fa.io.save_safetensors({"embeddings": vectors}, output)
    else:
        for text, row in zip(texts, vectors.astype(fa.float64).tolist(), strict=True):
            # nine digits bring every float32 back
            values = [float(f"{value:.9g}") for value in row]
            print(json.dumps({"text": text, "embedding": values}, ensure_ascii=False))


if __name__ == "__main__":
    sys.exit(main())
