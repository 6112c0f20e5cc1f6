"""The folder of the house model: its files in Hugging Face's layout, and its card."""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

from models.corpus import END, LIBRARY, START, STOP
from models.network import Shape

TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
#: what the card shows: questions for the chat, and beginnings to go on with
ASKED = ("Hello", "What does textwrap.dedent do?", "What is the json module for?", "How do I call shutil.copytree?")
BEGUN = ('def parse_header(line):\n    """', "import os\nimport sys\n\ndef main():\n", "class Queue:\n")

_CARD = """\
---
license: other
license_name: psf-2.0-and-apache-2.0
license_link: LICENSE-PSF.txt
language: en
library_name: transformers
pipeline_tag: text-generation
---

# stdlib-moe: a language model small enough for the repository

A mixture of experts of the architecture Qwen3-MoE with {parameters:,} parameters in bfloat16. It has read Python's
standard library and goes on with Python source, with manual pages, and with a chat about the library in the ChatML
format. It is made for tests and demonstrations, which random weights can't serve: what quantising costs, how often
a draft is accepted, what a sampler does to text. It is no source of facts: it repeats and invents with the same ease.

{layers} layers, {hidden} wide, {heads} query heads and {kv_heads} key heads of {head}, {experts} experts of {expert} \
of which {chosen} serve a token, {context} tokens of
context, {vocab} tokens in the vocabulary (byte-level BPE trained on the same text), tied embeddings.

## Text and licences

Everything was taken from the installation of CPython {python} that ran the script, and from this project:

- modules of its standard library as source, its chapters about the language, and its documentation strings as manual
  pages and as answers in short dialogues: Copyright (c) 2001 Python Software Foundation; All Rights Reserved. Used
  under the PSF License Agreement, which lies beside this card in full (`LICENSE-PSF.txt`);
- the README, the pages and the documentation strings of Ferrum: Apache License 2.0, as all of this repository.

Two files in a hundred, chosen by a hash of their names, were held out together with all dialogues made of them.

## How it was made

    python -m models.train --steps {steps} --device cuda --compile

{steps} steps of {batch_tokens} tokens ({seen:.0f} million tokens, {epochs:.0f} times the text, where the library's
own tests count for a third), AdamW, highest learning rate {rate}, weight decay {decay}, dropout {dropout}, in
{minutes:.1f} minutes on one {device} with PyTorch {torch}.

Measured on the saved weights, in windows of {context} tokens, by kind of text:

| held out | loss (nats/token) | perplexity | bits/byte | tokens |
|---|---|---|---|---|
{figures}

The last two lines are parts of what was trained on, for comparison: it was seen often.

## What it says

Greedily, with transformers in float32:

{samples}

## Files

| file | bytes | sha256 |
|---|---|---|
{files}
"""


def _samples(folder: Path) -> str:
    """What the model in the folder says, read by transformers."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other people's libraries
        from transformers import AutoModelForCausalLM, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model: Any = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
        model.train(mode=False)
        shown = []
        chats = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": ask}], tokenize=False, add_generation_prompt=True
            )
            for ask in ASKED
        ]
        for prompt, title in zip([*chats, *BEGUN], [*ASKED, *BEGUN], strict=True):
            given = tokenizer(prompt, return_tensors="pt")
            out = model.generate(**given, max_new_tokens=96, do_sample=False)[0, given.input_ids.shape[1] :]
            said = str(tokenizer.decode(out, skip_special_tokens=True)).rstrip()
            text = f"> {title}\n\n{said}" if title in ASKED else title + said
            shown.append("````text\n" + text + "\n````")
    return "\n\n".join(shown)


def write(work: Path, folder: Path) -> None:
    """Puts the folder together from what the other stages left in the work folder."""
    shape = Shape()
    log: dict[str, Any] = json.loads((work / "log.json").read_text())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes((work / "model.safetensors").read_bytes())
    (folder / "tokenizer.json").write_bytes((work / "tokenizer.json").read_bytes())
    shutil.copyfile(LIBRARY / "LICENSE.txt", folder / "LICENSE-PSF.txt")
    settings = {
        "config.json": shape.config(),
        "generation_config.json": {
            "do_sample": True,
            "eos_token_id": [0, 2],
            "pad_token_id": 0,
            "temperature": 0.7,
            "top_p": 0.9,
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "add_prefix_space": False,
            "additional_special_tokens": [START, STOP],
            "chat_template": TEMPLATE,
            "clean_up_tokenization_spaces": False,
            "eos_token": END,
            "model_max_length": shape.context,
            "pad_token": END,
        },
    }
    for name, contents in settings.items():
        (folder / name).write_text(json.dumps(contents, indent=2) + "\n", encoding="utf-8")

    seen = log["steps"] * log["batch_tokens"]
    row = "| {kind} | {loss:.3f} | {perplexity:.2f} | {bits_per_byte:.3f} | {tokens} |"
    figures = [row.format(kind=kind, **found) for kind, found in log["measured"].items()]
    files = [path for path in sorted(folder.iterdir()) if path.name != "README.md"]
    described = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    card = _CARD.format(
        **{**vars(shape), **log},
        python=json.loads((work / "text.json").read_text())["python"],
        seen=seen / 1e6,
        epochs=seen / log["tokens_in_an_epoch"],
        minutes=log["seconds"] / 60,
        figures="\n".join(figures),
        samples=_samples(folder),
        files="\n".join(f"| {path.name} | {path.stat().st_size} | `{described[path.name]}` |" for path in files),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
    print(f"{folder}: {sum(path.stat().st_size for path in folder.iterdir())} bytes")
