"""From logits to tokens."""

from __future__ import annotations

from typing import Any
from unittest import mock

import numpy as np
from scipy import special

import ferrum_array as fa
from benchmarks.ops_error import Draw, Results, case
from ferrum_ops import Sampled, process_logits, sample, spec_verify, token_counts
from tests.array.oracle import wide
from tests.ops import test_logits
from tests.ops.oracle import Array
from tests.ops.test_speculative import distributions
from tests.ops.test_speculative import exact as exact_verify

#: Sums of probabilities that are nearer to a bound than this are left to rounding, and the case is drawn again.
NEAR = 1e-5


class _Near(Exception):
    """The oracle says that rounding decides."""


def _far(condition: Any) -> None:
    if not condition:
        raise _Near


def exact_process(x: Array, rules: dict[str, Any]) -> Array:
    """The tests' oracle, row by row."""
    with mock.patch.object(test_logits, "assume", _far):
        rows = [
            test_logits.exact_process(row, {name: rule[i] if np.ndim(rule) else rule for name, rule in rules.items()})
            for i, row in enumerate(x)
        ]
    return np.stack(rows)


@case("process_logits")
def _process_logits(draw: Draw) -> Results:
    while True:
        rows, size = draw.between(1, 6), draw.between(20, 1000)
        x, x64 = draw.tensor(draw.values(rows, size) * draw.one_of(1.0, 4.0))
        bias, b64 = draw.noise(rows, size)
        given: dict[str, Any] = {
            "counts": draw.rng.integers(0, 3, (rows, size)),
            "mask": draw.rng.random((rows, size)) < 0.8,
            "prompt": draw.rng.random((rows, size)) < 0.3,
            "repetition": 1.25,
            "presence": 0.5,
            "frequency": 0.25,
            "temperature": draw.one_of(0.0, 0.75, 1.5),
            "top_k": draw.one_of(1, 10, 40),
            "top_p": draw.one_of(0.5, 0.9),
            "min_p": draw.one_of(0.05, 0.3),
        }
        kept = {name: rule for name, rule in given.items() if name == "counts" or draw.flag()}
        if draw.flag():
            kept["bias"] = b64
        try:
            exact = exact_process(x64, kept)
        except _Near:
            continue
        arrays = {name: fa.asarray(rule, device=draw.device) for name, rule in kept.items() if np.ndim(rule)}
        if "bias" in kept:
            arrays["bias"] = bias
        yield draw.call(process_logits, x, **{**kept, **arrays}), exact
        return


def drawn(draw: Draw) -> tuple[fa.Tensor, fa.Tensor | None, Array, Array]:
    """Logits, uniforms or none, the probabilities, and the tokens that must come."""
    while True:
        rows, size = draw.between(1, 20), draw.between(16, 2000)
        x, x64 = draw.tensor(draw.values(rows, size) * draw.one_of(1.0, 4.0))
        u, u64 = draw.tensor(draw.rng.random(rows) * 0.99, fa.float32)
        p = special.softmax(x64, axis=-1)
        if draw.flag():
            return x, None, p, x64.argmax(-1)
        sums = p.cumsum(-1) / p.sum(-1, keepdims=True)
        if np.abs(sums - u64[:, None]).min() > NEAR:
            return x, u, p, (sums <= u64[:, None]).sum(-1)


@case("sample")
def _sample(draw: Draw) -> Results:
    x, u, _, ids = drawn(draw)
    yield draw.call(sample, x, u), ids


@case("sample", "logprobs")
def _sample_logprobs(draw: Draw) -> Results:
    x, u, p, ids = drawn(draw)
    n = draw.one_of(1, 5, 16)
    got = draw.call(sample, x, u, logprobs=n)
    assert isinstance(got, Sampled)
    best = np.argsort(-p, axis=-1, kind="stable")[:, :n]
    yield from ((got.ids, ids), (got.top_ids, best))
    # as probabilities: the logarithm of one near 1 is next to nothing, and its relative error no measure
    for logarithms, exact in (
        (got.logprobs, p[np.arange(len(p)), ids]),
        (got.top_logprobs, np.take_along_axis(p, best, -1)),
    ):
        yield fa.asarray(np.exp(wide(logarithms)), device="cpu"), exact


@case("spec_verify")
def _spec_verify(draw: Draw) -> Results:
    """With numbers that every dtype holds, so that nothing is left to rounding."""
    rows, k, tokens = draw.between(1, 6), draw.one_of(0, 1, 4), draw.between(1, 30)
    seed = int(draw.rng.integers(2**31))
    p, p64 = draw.tensor(distributions(seed, rows, k + 1, tokens))
    q, q64 = draw.tensor(distributions(seed + 1, rows, k, tokens))
    ids = draw.rng.integers(-1, tokens, (rows, k))
    u = (draw.rng.integers(0, 1024, (rows, k + 1)) * 2 + 1) / 2048
    certain = draw.flag()
    numbers = fa.asarray(u, dtype="f32", device=draw.device)
    got = draw.call(spec_verify, p, None if certain else q, draw.integers(ids), numbers)
    want = [exact_verify(p64[i], None if certain else q64[i], ids[i].tolist(), u[i].tolist()) for i in range(rows)]
    yield got.ids, np.asarray([tokens for tokens, _ in want])
    yield got.accepted, np.asarray([many for _, many in want])


@case("token_counts")
def _token_counts(draw: Draw) -> Results:
    rows, length, tokens = draw.between(1, 6), draw.between(1, 200), draw.between(1, 300)
    ids = draw.rng.integers(-1, tokens, (rows, length))
    yield draw.call(token_counts, draw.integers(ids), tokens), (ids[..., None] == np.arange(tokens)).sum(-2)
