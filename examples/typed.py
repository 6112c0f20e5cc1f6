"""What an editor knows of Ferrum: a program that a strict type checker accepts, and that runs.

mypy --strict examples/typed.py
python examples/typed.py
"""

from __future__ import annotations

from dataclasses import dataclass

import ferrum_array as fa
import ferrum_ops as fo
from ferrum_array import Device, Dtype, Tensor
from ferrum_models import random_model


@dataclass(frozen=True)
class Perceptron:
    """A gated layer of one's own: gate and up [N, K], out [K, N]."""

    gate: Tensor
    up: Tensor
    out: Tensor

    @classmethod
    def drawn(cls, inputs: int, hidden: int, seed: int, *, device: Device | str = "cpu") -> Perceptron:
        """Normal weights: the same bits on every device."""
        generator = fa.random.default_rng(seed)
        scale: float = inputs**-0.5

        def matrix(rows: int, columns: int) -> Tensor:
            return generator.normal((rows, columns), std=scale, device=device)

        return cls(matrix(hidden, inputs), matrix(hidden, inputs), matrix(inputs, hidden))

    def __call__(self, x: Tensor) -> Tensor:
        """x [..., K] to [..., K]."""
        hidden = fo.gated_activation(fo.linear(x, self.gate), fo.linear(x, self.up), "silu")
        return fo.linear(hidden, self.out)


def standardized(x: Tensor, dtype: Dtype = fa.float32) -> Tensor:
    """Rows of mean 0 and variance 1."""
    x = x.astype(dtype)
    return (x - fa.mean(x, axis=-1, keepdims=True)) / fa.std(x, axis=-1, keepdims=True)


def main() -> None:
    """Run it."""
    layer = Perceptron.drawn(8, 16, seed=0)
    x = standardized(fa.random.default_rng(1).normal((4, 8)))
    y: Tensor = layer(x)
    shape: tuple[int, ...] = y.shape
    total: float = float(fa.sum(y))
    normed, residual = fo.rms_norm(y, eps=1e-6, residual=x)  # with a residual there are two results
    tiny = {"model_type": "llama", "vocab_size": 9, "hidden_size": 8, "intermediate_size": 8}
    model = random_model({**tiny, "num_hidden_layers": 1, "num_attention_heads": 2})
    logits: Tensor = model(fa.asarray([[1, 2, 3]]))
    print(shape, f"{total:.3f}", normed.shape, residual.dtype, logits.shape)


if __name__ == "__main__":
    main()
