"""``ferrum convert``: a model in fewer bits, or in another dtype."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ferrum_models.commands import options as shared
from ferrum_models.saving import convert

__all__ = ["add"]


def add(commands: Any) -> None:
    """Add the command to the parser's *commands*."""
    command: argparse.ArgumentParser = commands.add_parser("convert", help="quantise a model, or change its dtype")
    command.set_defaults(command=_convert)
    command.add_argument("--model", type=Path, required=True, metavar="PATH", help="a model folder or GGUF file")
    command.add_argument("--output", type=Path, required=True, metavar="DIR", help="the new folder")
    command.add_argument("--quantize", "-q", action="store_true", help="store matrices as integers with scales")
    command.add_argument("--q-bits", type=int, choices=(4, 8), help="bits of an integer (4)")
    command.add_argument(
        "--q-group-size", type=shared.positive, metavar="N", help="numbers that share a scale (32; a row in 8 bits)"
    )
    command.add_argument("--q-scheme", metavar="NAME", help="another scheme: q8_0, mxfp4, fp8_e4m3, int4-g128-asym ...")
    command.add_argument(
        "--keep", nargs="+", default=(), metavar="LAYER", help="layers that stay as they are, such as lm_head"
    )
    command.add_argument("--dtype", type=shared.dtype, metavar="T", help="of the other numbers; as stored if absent")


def _convert(options: argparse.Namespace) -> None:
    before, scheme = options.model, _scheme(options)
    convert(before, options.output, quantize=scheme, dtype=options.dtype, keep=options.keep)
    old, new = (sum(one.stat().st_size for one in path.glob("*.safetensors")) for path in (before, options.output))
    share = f", {100 * new / old:.0f}% of what they were" if old else ""  # a GGUF file has more in it than weights
    print(f"{options.output}: {new / 1e6:.2f} MB of weights{share}")


def _scheme(options: argparse.Namespace) -> str | None:
    """The name of the scheme that the options ask for, if they do."""
    parts = (options.q_bits, options.q_group_size)
    if options.q_scheme is not None:
        if parts != (None, None):
            raise ValueError("--q-scheme says bits and groups itself; leave out --q-bits and --q-group-size")
        return str(options.q_scheme)
    if not options.quantize:
        if parts != (None, None):
            raise ValueError("--q-bits and --q-group-size need --quantize")
        return None
    bits = options.q_bits or 4
    if options.q_group_size is None:
        return f"int{bits}"  # convert knows the groups of int4
    return f"int{bits}-g{options.q_group_size}" + ("-f16" if bits == 4 else "")
