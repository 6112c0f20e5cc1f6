"""The likeliest mistakes, and what Ferrum says to each: the page of them is made from this list.

python -m tests.mistakes > docs/mistakes.md
"""

from __future__ import annotations

import textwrap
import warnings
from dataclasses import dataclass

__all__ = ["MISTAKES", "Mistake", "page"]


@dataclass(frozen=True)
class Mistake:
    """What somebody meant, what they wrote, and the words that the error must have."""

    chapter: str
    meant: str
    code: str
    words: tuple[str, ...]

    def message(self) -> str:
        """The error that the code ends with: its class and its text.

        Raises:
            AssertionError: if there is none.
        """
        namespace: dict[str, object] = {}
        exec("import ferrum_array as fa\nimport ferrum_ops as fo\nimport ferrum_models as fm", namespace)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                exec(self.code, namespace)
            except (ArithmeticError, AttributeError, LookupError, MemoryError, OSError, TypeError, ValueError) as error:
                return f"{type(error).__name__}: {error}"
        raise AssertionError(f"no error: {self.code}")


def _mistakes() -> list[Mistake]:
    found = []

    def add(chapter: str, meant: str, code: str, *words: str) -> None:
        found.append(Mistake(chapter, meant, textwrap.dedent(code).strip(), words))

    t = "Tensors"
    add(t, "Shapes that do not fit", "fa.ones((3, 4)) + fa.ones((3, 5))", "(3, 4)", "(3, 5)")
    add(t, "A product of matrices the wrong way round", "fa.ones((3, 4)) @ fa.ones((3, 4))", "[3,4]", ".mT")
    add(t, "A list in place of a tensor", "fa.sum([1.0, 2.0])", "asarray")
    add(t, "A reshape to another number of elements", "fa.ones((2, 3)).reshape(4, 2)", "6", "8")
    add(t, "An axis that is not there", "fa.sum(fa.ones((2, 3)), axis=2)", "axis", "2")
    add(t, "An index that is not there", "fa.arange(3)[3]", "3")
    add(t, "A dtype that does not exist", 'fa.ones(3, dtype="float8")', "float8", "float16")
    add(t, "uint64 beside signed integers", "fa.ones(3, dtype=fa.uint64) + fa.ones(3, dtype=fa.int64)", "astype")
    add(t, "A tensor as a condition", "if fa.asarray([1, 2]) > 0:\n    pass", "any()", "all()")
    add(t, "A number out of range", "fa.asarray([300], dtype=fa.uint8)", "300", "uint8", "0 to 255")
    add(t, "A fraction into a tensor of integers", "x = fa.arange(3)\nx[0] = 1.5", "int64", "astype")
    add(t, "A device that does not exist", 'fa.ones(3, device="gpu")', "gpu", "cuda")
    add(t, "A tensor as one number", "float(fa.ones(3))", "float32[3]")
    add(t, "Rows of different lengths", "fa.asarray([[1, 2], [3]])", "ragged", "(1,)", "(2,)")
    add(t, "A matrix that has no inverse", "fa.linalg.inv(fa.zeros((2, 2)))", "Singular", "pinv")
    add(t, "The random numbers of NumPy", "fa.random.normal(3)", "default_rng")
    add(t, "A name of NumPy's", "fa.concatenate([fa.ones(2), fa.ones(3)])", "concat(")
    add(t, "A method that is a function", "fa.asarray([2, 1]).sort()", "sort(x)")
    add(t, "A list beside a tensor", "fa.asarray([1, 2]) == [1, 2]", "asarray()")
    add(t, "A gap in a list", "fa.asarray([[1.0, 2.0], [3.0, None]])", "[1][1]", "None")
    add(t, "A key that hashes", "{fa.asarray(1.5): 1}", "hash")

    o = "Ops"
    add(o, "Weights of another length", "fo.rms_norm(fa.ones((2, 8)), fa.ones(4), eps=1e-6)", "8", "4")
    add(o, "Two dtypes in a product", "fo.linear(fa.ones((2, 8)), fa.ones((4, 8), dtype=fa.bfloat16))", "bfloat16")
    add(
        o,
        "Heads in front of tokens",
        "x = fa.ones((1, 8, 128, 64))\nkv = fa.ones((1, 8, 100, 64))\nfo.attention(x, kv, kv, causal=True)",
        "[..., T, H, D]",
    )
    add(
        o,
        "A head count that is no multiple",
        "q = fa.ones((5, 6, 16))\nkv = fa.ones((5, 4, 16))\nfo.attention(q, kv, kv, causal=True)",
        "6",
        "4",
        "multiple",
    )
    add(
        o,
        "A window without causal",
        "x = fa.ones((5, 2, 16))\nfo.attention(x, x, x, causal=False, window=4)",
        "window",
        "causal",
    )
    add(o, "An activation that is not known", 'fo.activation(fa.ones(3), "swish")', "swish", "silu")
    add(o, "More experts than there are", "fo.moe_route(fa.ones((3, 4)), k=8)", "8", "4")
    add(o, "Groups that do not divide", 'fo.quantize(fa.ones((4, 100)), "int4-g32")', "100", "32")
    add(
        o,
        "A cache that is full",
        """
        cache = fo.KVCache.empty(fo.KVSpec(kv_heads=1, head_dim=4, blocks=1, block_size=8))
        x = fa.ones((9, 1, 4))
        fo.kv_append(cache, x, x, fo.SequenceMeta.packed([9]))
        """,
        "8",
    )
    add(o, "A negative temperature", "fo.process_logits(fa.ones((1, 9)), temperature=-1.0)", "temperature", "-1.0")

    m = "Models"
    add(m, "A folder that is not there", 'fm.load("no/such/folder")', "no/such/folder")
    add(m, "An architecture that is not known", 'fm.random_model({"model_type": "rwkv"})', "rwkv", "llama")
    add(
        m,
        "Ids without a batch",
        """
        model, tokenizer = fm.load("models/stdlib-moe")
        model(fa.asarray([1, 2, 3]))
        """,
        "batch",
        "ids[None]",
    )
    add(
        m,
        "An id outside the vocabulary",
        """
        model, tokenizer = fm.load("models/stdlib-moe")
        model(fa.asarray([[4096]]))
        """,
        "4096",
    )
    add(
        m,
        "A prompt that is too long",
        """
        model, tokenizer = fm.load("models/stdlib-moe")
        fm.generate(model, tokenizer, "word " * 3000)
        """,
        "1024",
    )
    add(
        m,
        "An option that does not exist",
        """
        model, tokenizer = fm.load("models/stdlib-moe")
        fm.generate(model, tokenizer, "x", temprature=0.5)
        """,
        "temprature",
    )
    return found


MISTAKES = _mistakes()


def page() -> str:
    """The page, as Markdown."""
    lines = [
        "# Mistakes",
        "",
        "What Ferrum says when something is wrong: what was violated, what came, and what to do.",
    ]
    lines += ["The page is made by `python -m tests.mistakes`, and a test compares it with what happens.", ""]
    chapter = ""
    for one in MISTAKES:
        if one.chapter != chapter:
            chapter = one.chapter
            lines += [f"## {chapter}", ""]
        lines += [f"### {one.meant}", "", "```{code-block} python", one.code, "```", "", "```text"]
        lines += [*textwrap.wrap(one.message(), 110, break_long_words=False, break_on_hyphens=False), "```", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    print(page(), end="")
