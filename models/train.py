"""Makes the house model: a small Qwen3-MoE language model of Python's standard library, in Hugging Face's layout.

    python -m models.train --device cuda --compile

runs the three stages one after another; naming some of them runs these alone, so that each can have a machine to its
liking:

    prepare    collect the text, train the tokenizer, and write both, encoded, to the work folder
    fit        train the network there (the only stage that gains from a GPU; it needs PyTorch and nothing else)
    write      put the model's folder together, load it with transformers, and write its card with what it says

The text is that of the Python that runs `prepare` (3.11 for the model in this repository). Seeds are fixed. On the CPU
two runs give the same weights; on a GPU they differ in the last digits, and then in more.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.network import Network, Shape

ROOT = Path(__file__).resolve().parents[1]
SEED = 20
#: how often a document of each kind is seen in one epoch, on average
SHARES = {"source": 1.0, "test": 0.35, "reference": 2.0, "manual": 1.5, "project": 2.0, "chat": 1.0}


def prepare(work: Path, vocab: int) -> None:
    """Writes tokenizer.json, and the encoded documents of both parts as text.safetensors with its table text.json."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
    from tokenizers.models import BPE

    from models.corpus import END, START, STOP, documents

    found = documents(SEED)
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[END, START, STOP],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    kept = [document.text for document in found if document.kind != "test" and not document.held_out]
    tokenizer.train_from_iterator(kept, trainer)
    work.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(work / "tokenizer.json"), pretty=False)

    encoded = tokenizer.encode_batch([document.text + END for document in found])
    table: list[dict[str, Any]] = [
        {"kind": one.kind, "held_out": one.held_out, "bytes": len(one.text.encode()), "tokens": len(code)}
        for one, code in zip(found, encoded, strict=True)
    ]
    ids = torch.tensor([i for code in encoded for i in code.ids], dtype=torch.int16)
    save_file({"ids": ids}, work / "text.safetensors")
    (work / "text.json").write_text(json.dumps({"python": sys.version.split()[0], "documents": table}))
    totals: dict[tuple[str, bool], int] = defaultdict(int)
    for row in table:
        totals[row["kind"], row["held_out"]] += row["tokens"]
    for (kind, held_out), tokens in sorted(totals.items()):
        print(f"{kind:10} {'held out' if held_out else 'training':9} {tokens:>9} tokens")


class Text:
    """The encoded documents: epochs of windows for training, and what is held out of each kind."""

    def __init__(self, work: Path, length: int) -> None:
        table = json.loads((work / "text.json").read_text())["documents"]
        ids = load_file(work / "text.safetensors")["ids"]
        parts = torch.split(ids, [row["tokens"] for row in table])
        rows = list(zip(table, parts, strict=True))
        self.length = length
        self.training = [(SHARES[row["kind"]], part) for row, part in rows if not row["held_out"]]
        chosen = {kind: [row for row in rows if row[0]["held_out"] and row[0]["kind"] == kind] for kind in SHARES}
        for kind, every in (("source", 50), ("chat", 400)):  # for comparison: how well is known what was seen?
            seen = [row for row in rows if not row[0]["held_out"] and row[0]["kind"] == kind]
            chosen[f"{kind}, trained on"] = seen[::every]
        self.measured = {
            kind: (torch.cat([part for _, part in taken]), sum(row["bytes"] for row, _ in taken))
            for kind, taken in chosen.items()
            if taken
        }

    def epoch(self, draw: random.Random) -> Tensor:
        """Windows[N, length + 1] of all documents in a new order, cut at new places."""
        order: list[Tensor] = []
        for share, part in self.training:
            order += [part] * (int(share) + (draw.random() < share % 1))
        draw.shuffle(order)
        stream = torch.cat(order)[draw.randrange(self.length) :].long()
        windows = stream.unfold(0, self.length + 1, self.length)
        return windows[torch.tensor(draw.sample(range(len(windows)), len(windows)))]

    def batches(self, size: int) -> Iterator[Tensor]:
        """Batches without end, epoch after epoch."""
        draw = random.Random(SEED)
        while True:
            windows = self.epoch(draw)
            if len(windows) < size:
                raise ValueError(f"a batch of {size} windows is more than the {len(windows)} that the text has")
            yield from torch.split(windows[: len(windows) // size * size], size)


@torch.no_grad()
def measure(network: Network, text: Text, device: str, exactly: bool = False) -> dict[str, dict[str, float]]:
    """Loss, in nats for each token, and bits for each byte, of what is held out of each kind, and of a part seen.

    That is in bfloat16 on a GPU, unless exactly is asked for.
    """
    network.eval()
    found = {}
    for kind, (ids, octets) in text.measured.items():
        total = 0.0
        whole = (len(ids) - 1) // text.length * text.length
        windows = [ids[whole:].long().unsqueeze(0)]
        if whole:
            windows += torch.split(ids[: whole + 1].long().unfold(0, text.length + 1, text.length), 16)
        for window in windows:
            if window.shape[1] > 1:
                moved = window.to(device)
                with torch.autocast(device, torch.bfloat16, enabled=device != "cpu" and not exactly):
                    loss, _ = network(moved[:, :-1], moved[:, 1:])
                total += float(loss) * moved[:, 1:].numel()
        count = len(ids) - 1
        found[kind] = {
            "loss": total / count,
            "perplexity": math.exp(total / count),
            "bits_per_byte": total / math.log(2) / octets,
            "tokens": count,
            "bytes": octets,
        }
    network.train()
    return found


def _rate(step: int, steps: int, peak: float) -> float:
    """Up in a straight line for the first part of the steps, then down to zero."""
    warm = max(1, min(300, steps // 10))
    return peak * min((step + 1) / warm, (steps - step) / max(1, steps - warm))


def fit(work: Path, options: argparse.Namespace) -> None:
    """Trains the network on the text in the work folder; writes model.safetensors and log.json there."""
    torch.manual_seed(SEED)
    device: str = options.device
    shape = Shape()
    text = Text(work, shape.context)
    network = Network(shape, options.dropout)
    network.to(device)
    parameters = list(network.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim == 2], "weight_decay": options.decay},
        {"params": [p for p in parameters if p.ndim != 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=options.rate, betas=(0.9, 0.95), fused=device != "cpu")
    step_of = torch.compile(network) if options.compile else network
    log: dict[str, Any] = {
        "parameters": sum(p.numel() for p in parameters),
        "tokens_in_an_epoch": round(sum(share * len(part) for share, part in text.training)),
        "steps": options.steps,
        "batch_tokens": options.batch * shape.context,
        "rate": options.rate,
        "dropout": options.dropout,
        "decay": options.decay,
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "torch": torch.__version__,
        "curve": [],
    }
    began = time.perf_counter()
    shown, since, recent = began, 0, torch.zeros((), device=device)
    for step, window in zip(range(options.steps), text.batches(options.batch), strict=False):
        moved = window.to(device, non_blocking=True)
        for group in optimizer.param_groups:
            group["lr"] = _rate(step, options.steps, options.rate)
        with torch.autocast(device, torch.bfloat16, enabled=device != "cpu"):
            loss, balance = step_of(moved[:, :-1], moved[:, 1:])
        (loss + shape.balance * balance).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        recent += loss.detach()
        if (step + 1) % options.every == 0 or step + 1 == options.steps:
            count = step + 1 - since
            row = {
                "step": step + 1,
                "loss": round(float(recent) / count, 4),
                "balance": round(float(balance.detach()), 4),
            }
            now = time.perf_counter()
            speed = count * options.batch * shape.context / (now - shown)
            row |= {kind: round(found["loss"], 4) for kind, found in measure(network, text, device).items()}
            log["curve"].append(row)
            print(json.dumps(row), f"{speed:.0f} tokens/s, {now - began:.0f} s", flush=True)
            shown, since, recent = time.perf_counter(), step + 1, torch.zeros((), device=device)
    log["seconds"] = time.perf_counter() - began
    # What is measured is what is saved: the weights rounded to bfloat16.
    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(parameter.bfloat16())
    log["measured"] = measure(network, text, device, exactly=True)
    save_file(dict(network.saved()), work / "model.safetensors", {"format": "pt"})
    (work / "log.json").write_text(json.dumps(log, indent=1))
    print(json.dumps(log["measured"]))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    stages = ("prepare", "fit", "write")
    parser.add_argument("stages", nargs="*", metavar="STAGE", help="prepare, fit, write; all three where none is named")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "stdlib-moe", help="what the stages hand on")
    parser.add_argument("--folder", type=Path, default=ROOT / "models" / "stdlib-moe", help="the model's folder")
    parser.add_argument("--steps", type=int, default=3500)
    parser.add_argument("--batch", type=int, default=64, help="windows of 1024 tokens in a step")
    parser.add_argument("--rate", type=float, default=5e-3, help="the highest learning rate")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--decay", type=float, default=0.3, help="weight decay")
    parser.add_argument("--every", type=int, default=500, help="steps between measurements")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--compile", action="store_true", help="let torch.compile fuse the network")
    options = parser.parse_args()
    unknown = set(options.stages) - set(stages)
    if unknown:
        parser.error(f"{', '.join(sorted(unknown))}: not a stage; the stages are {', '.join(stages)}")
    chosen = options.stages or stages
    if "prepare" in chosen:
        prepare(options.work, Shape().vocab)
    if "fit" in chosen:
        fit(options.work, options)
    if "write" in chosen:
        from models.folder import write

        write(options.work, options.folder)


if __name__ == "__main__":
    main()
