"""Whole models on one CUDA device, beside transformers compiled: tokens a second, and shares of the bound.

    python -m benchmarks.decode_cuda [--model 8b 30b] [--weights bf16 int4] [--batch 1 8 32] [--context 1024 8192]
                                     [--plain] [--no-peer] [--no-prefill] [--json FILE]

The models have the shapes of Qwen3-8B and of Qwen3-30B-A3B. Weights are drawn on the device, in bfloat16; transformers
works on the same memory, and int4 is made of them. Decoding reads one token of each sequence at a time, chooses the
likeliest and reads that back, as a ``Batch`` does, in steps that are captured. What sequences hold before is simulated:
their caches are filled with random keys and values. transformers has a static cache, of the room that ours has, and a
step that ``torch.compile`` makes with ``mode="reduce-overhead"``; it has no weights of 4 bits here, so ours of 4 bits
stand beside its of 16.

The bound of a step is the time in which the bandwidth that a copy has, measured first, moves the weights that the step
needs and the keys and values that are held; of a mixture, the experts that tokens with experts at random meet on
average. That of a prompt is its operations at the rate of a large product, or the same bytes, if that takes longer.
Before anything is timed, the logits after a short prompt are compared with those of transformers. The tables are
Markdown.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch

import ferrum_array as fa
from benchmarks.cuda_goals import MODELS as GOALS
from benchmarks.cuda_goals import cells, goals_of
from benchmarks.cuda_rows import normal, shared, taken
from benchmarks.decode_cpu import CONFIG, distance
from benchmarks.decode_cuda_peer import Transformers
from benchmarks.matmul_cuda import machine
from benchmarks.ops_cuda import Ceilings, ceilings
from ferrum_models import Batch
from ferrum_models.causal import CausalLM
from ferrum_models.config import Settings
from ferrum_models.families import family
from ferrum_models.generation.captured import use_captured_steps
from ferrum_models.layers import Parameter
from ferrum_models.weights import RandomWeights
from ferrum_ops import KVCache, SequenceMeta, kv_append, quantize

__all__ = ["MODELS", "Ours", "Timing", "made", "main", "step_bytes", "touched"]

#: entries of config.json that differ from those of Qwen3-0.6B
MODELS: dict[str, dict[str, Any]] = {
    "8b": {
        **CONFIG,
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "max_window_layers": 36,
        "num_attention_heads": 32,
        "num_hidden_layers": 36,
        "tie_word_embeddings": False,
    },
    "30b": {
        **CONFIG,
        "architectures": ["Qwen3MoeForCausalLM"],
        "decoder_sparse_step": 1,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "max_window_layers": 48,
        "mlp_only_layers": [],
        "model_type": "qwen3_moe",
        "moe_intermediate_size": 768,
        "norm_topk_prob": True,
        "num_attention_heads": 32,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 48,
        "num_key_value_heads": 4,
        "output_router_logits": False,
        "tie_word_embeddings": False,
    },
}
NAMES = {"8b": "Qwen3-8B", "30b": "Qwen3-30B-A3B"}
_SCHEMES = {"int4": "int4-g128"}
#: how far logits may be from transformers', which rounds elsewhere and so sends some tokens to other experts; 4 bits of
#: random weights lose more. Logits that have nothing to do with each other are 1.4 apart.
_FAR = {"bf16": 0.2, "int4": 1.0}
_PROMPT = 4096
#: steps that are not timed, and the steps that are: in rounds, of which the median counts
_WARM, _STEPS, _ROUNDS = 4, 16, 3
#: tokens of the prompt after which logits are compared
_SHORT = 64


class _Normal:
    """Draws in place of a generator of ours: by PyTorch's on the device, so that both libraries share the memory."""

    def normal(
        self, shape: tuple[int, ...], *, mean: float, std: float, device: fa.Device, dtype: fa.Dtype
    ) -> fa.Tensor:
        """Normal numbers; of whatever *dtype* asks for, the model has them in bfloat16."""
        return shared(normal(str(device), *shape, scale=std).add_(mean))


def made(config: dict[str, Any], device: str) -> CausalLM:
    """The model of this config with random weights in bfloat16, drawn where they stay."""
    settings = Settings(config)
    found = family(settings)
    weights = RandomWeights(0, device=fa.Device(device), dtype=fa.bfloat16)
    weights._random = _Normal()  # type: ignore[assignment]  # it has the one method that is called
    model: CausalLM = found.load(weights, found.config(settings))
    return model


def in_fewer_bits(model: CausalLM, scheme: str) -> CausalLM:
    """The model with its matrices in *scheme*, but for routers and the embedding, of which a step reads rows alone."""

    def rounded(path: str, x: Parameter) -> Parameter:
        assert isinstance(x, fa.Tensor), "nothing is quantised yet"
        kept = path.endswith(("embed_tokens.weight", "mlp.gate.weight"))
        return x if kept or x.ndim < 2 else quantize(x, scheme)

    return model.map(rounded)


# What a step must move and compute.


def touched(experts: int, chosen: int, tokens: int) -> float:
    """How many of the *experts* so many *tokens* meet on average, each choosing its own at random."""
    return experts * (1 - (1 - chosen / experts) ** tokens)


def step_bytes(model: CausalLM, batch: int, context: int) -> float:
    """The bytes of weights that a step of *batch* tokens needs, and of what *context* tokens of each have left.

    The embedding gives a row for each token, and counts as that.
    """
    c = model.config
    total = 0.0
    for path, x in model.named_parameters():
        if path.startswith("model.embed_tokens.") and not c.tie_word_embeddings:
            total += x.nbytes / x.shape[0] * batch
        elif ".experts." in path:
            total += x.nbytes * touched(x.shape[0], c.settings.integer("num_experts_per_tok"), batch) / x.shape[0]
        else:
            total += x.nbytes
    held = 2 * c.num_key_value_heads * c.head_dim * c.num_hidden_layers * model.dtype.bytes_per_elem
    return total + 1.0 * held * context * batch


def prompt_flops(model: CausalLM, tokens: int) -> float:
    """The operations on a prompt: its products with the weights, and attention; the last token alone has logits."""
    c = model.config
    total = 0.0
    for path, x in model.named_parameters():
        if len(x.shape) < 2 or path.startswith("model.embed_tokens."):
            continue
        size = float(math.prod(x.shape))
        if ".experts." in path:
            size *= c.settings.integer("num_experts_per_tok") / x.shape[0]
        total += 2 * size * (1 if path.startswith("lm_head.") else tokens)
    return total + 2.0 * c.num_hidden_layers * c.num_attention_heads * c.head_dim * tokens * (tokens + 1)


# Who runs the model.


class Ours:
    """Ferrum's batches, whose decode steps are captured in graphs, unless *captured* says otherwise."""

    def __init__(self, model: CausalLM, *, captured: bool = True) -> None:
        self.model = model
        self._captured = captured
        self._batch: Batch | None = None

    def forget(self) -> None:
        """Free the memory of keys and values."""
        self._batch = None

    def fill(self, batch: int, context: int, room: int) -> None:
        """Each of *batch* sequences has *context* random keys and values, and *room* in all.

        Raises:
            CaptureError: if steps shall be captured and cannot be.
        """
        with use_captured_steps(self._captured):
            made = Batch(self.model, [[1]] * batch, max_new_tokens=room - 1, stop_ids=(), kind="paged")
        cache = made._cache  # which no user fills with random numbers
        plan = cache.plan([context] * batch)
        meta = SequenceMeta(plan.meta.cu_seqlens, kv_lens=plan.meta.key_lengths, block_tables=plan.blocks)
        for kept in cache.layers:
            assert isinstance(kept, KVCache), "these models attend in all layers"
            shape = (batch * context, kept.spec.kv_heads, kept.spec.head_dim)
            k, v = (shared(normal(str(kept.device), *shape)) for _ in range(2))
            kv_append(kept, k, v, meta)
        cache.commit(plan, {})
        self._batch = made

    def decode(self) -> list[int]:
        """Read a token of each sequence; the result are the likeliest next ones, which are read next time."""
        assert self._batch is not None, "fill comes first"
        return [token.id for token in self._batch.step().values()]

    def prefill(self, ids: list[int]) -> torch.Tensor:
        """The logits [V] after a prompt."""
        cache = self.model.make_cache(1, len(ids), chunk=len(ids))
        given = fa.asarray(ids, dtype=fa.int64, device=self.model.device)
        return taken(self.model.logits(self.model.forward(given, [len(ids)], cache)[-1:]))[0]


Runner = Ours | Transformers


@dataclass(frozen=True)
class Timing:
    """One line of a table.

    Attributes:
        what: ``decode`` or ``prefill``.
        model: its name.
        weights: in which they are.
        batch: how many sequences.
        context: what each holds, or the length of the prompt.
        ours: tokens a second.
        share: the bound's time over ours.
        theirs: tokens a second of transformers, if it was run.
    """

    what: str
    model: str
    weights: str
    batch: int
    context: int
    ours: float
    share: float
    theirs: float | None

    def line(self) -> str:
        """The line, in Markdown."""
        peer = ["", ""] if self.theirs is None else [f"{self.theirs:.0f}", f"{self.ours / self.theirs:.2f}"]
        theirs = None if self.theirs is None else 1 / self.theirs
        goals = cells(goals_of(self.kind, GOALS), 1 / self.ours, self.share / self.ours, theirs)
        return (
            f"| {self.what} | {self.model} | {self.weights} | {self.batch} | {self.context} | {self.ours:.0f} "
            f"| {self.share:.2f} | {peer[0]} | {peer[1]} | {goals} |"
        )

    @property
    def kind(self) -> str:
        """By what goals know it."""
        return f"{self.what} {self.model} {self.weights} {self.batch}"


HEAD = (
    "| | model | weights | batch | context or prompt | tokens/s | share of the bound | transformers, tokens/s "
    "| ours / transformers | goal | reached |\n|---|---|---|---:|---:|---:|---:|---:|---:|---|---|"
)


def release() -> None:
    """Give memory that one library freed to the other."""
    import cupy as cp

    gc.collect()
    cp.get_default_memory_pool().free_all_blocks()
    torch.cuda.empty_cache()


def seconds(run: Callable[[], object]) -> float:
    """How long *run* takes until the device is done."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def decode_seconds(runner: Runner, batch: int, context: int) -> float:
    """Of one step, with *context* tokens before it."""
    room = context + _WARM + _STEPS * _ROUNDS
    runner.fill(batch, context, -(-room // 16) * 16)
    for _ in range(_WARM):
        runner.decode()
    times = [seconds(lambda: [runner.decode() for _ in range(_STEPS)]) / _STEPS for _ in range(_ROUNDS)]
    runner.forget()
    release()
    return statistics.median(times)


def prefill_seconds(runner: Runner, ids: list[int]) -> float:
    """Of one prompt."""
    runner.prefill(ids)
    return statistics.median(seconds(lambda: runner.prefill(ids)) for _ in range(_ROUNDS))


def measure(
    name: str, runners: dict[str, Ours], peer: Transformers | None, top: Ceilings, options: argparse.Namespace
) -> Iterator[Timing]:
    """Check and time one model, line by line.

    Raises:
        RuntimeError: for logits that are too far from those of transformers.
    """
    ids = torch.randint(MODELS[name]["vocab_size"], (_PROMPT,)).tolist()
    if peer is not None:
        expected = peer.prefill(ids[:_SHORT]).double().cpu().numpy()
        for weights, ours in runners.items():
            far = distance(ours.prefill(ids[:_SHORT]).double().cpu().numpy(), expected)
            if not far <= _FAR[weights]:
                raise RuntimeError(f"{name} {weights}: logits are {far:.3g} from transformers', not {_FAR[weights]}")
    for batch, context in product(options.batch, options.context):
        theirs = None if peer is None else batch / decode_seconds(peer, batch, context)
        for weights, ours in runners.items():
            took = decode_seconds(ours, batch, context)
            bound = top.bound(step_bytes(ours.model, batch, context), 0) / 1e6
            yield Timing("decode", NAMES[name], weights, batch, context, batch / took, bound / took, theirs)
    if options.prefill:
        theirs = None if peer is None else _PROMPT / prefill_seconds(peer, ids)
        for weights, ours in runners.items():
            took = prefill_seconds(ours, ids)
            bound = top.bound(step_bytes(ours.model, _PROMPT, 0), prompt_flops(ours.model, _PROMPT)) / 1e6
            yield Timing("prefill", NAMES[name], weights, 1, _PROMPT, _PROMPT / took, bound / took, theirs)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--weights", nargs="+", choices=_FAR, default=list(_FAR))
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8, 32], help="sequences at once")
    parser.add_argument("--context", nargs="+", type=int, default=[1024, 8192], help="tokens that each holds before")
    parser.add_argument("--no-prefill", dest="prefill", action="store_false", help="time no prompt")
    parser.add_argument("--plain", dest="captured", action="store_false", help="our steps without graphs")
    parser.add_argument("--no-peer", dest="peer", action="store_false", help="without transformers")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the figures are written too")
    options = parser.parse_args(arguments)
    import cupy as cp

    torch.cuda.set_device(options.device)
    torch.manual_seed(0)
    top = ceilings(options.device)
    print(f"{machine(cp, torch)}\n\n{top}\n\n{HEAD}", flush=True)
    done: list[Timing] = []
    for name in options.model:
        dense = made(MODELS[name], options.device)
        peer = None
        if options.peer:
            peer = Transformers(MODELS[name], {path: taken(x) for path, x in dense.named_parameters()}, options.device)
        runners = {
            weights: Ours(
                dense if weights == "bf16" else in_fewer_bits(dense, _SCHEMES[weights]), captured=options.captured
            )
            for weights in options.weights
        }
        del dense
        release()
        for timing in measure(name, runners, peer, top, options):
            done.append(timing)
            print(timing.line(), flush=True)
        del peer, runners
        release()
    if options.json is not None:
        figures = {"machine": machine(cp, torch), "ceilings": asdict(top), "rows": [asdict(one) for one in done]}
        options.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
