"""Seconds of a step's matrix products alone, which no implementation of the same step in float32 can leave out.

    python -m tests.benchmarks.floor --vocabulary 4096

The step is that of `step.py`: a rollout, a teacher's forward, an update of all weights. Counted are the products of the
linear layers and of the output matrix, each as often and with as many rows as the step needs, timed by themselves on
one thread: forward over the prompts, one column for each generated token, forward over the whole rows for the
teacher, and forward with both gradients for the student. A forward's matrix may be prepacked, as in a rollout of this
package, if that is faster; the copy itself is not counted. Attention, norms, activations, softmax, sampling and the
optimiser are left out, so that a real step takes longer than this.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import torch

from lightning_opd.models.prepacking import BREAK_EVEN_STEPS, prepacked
from tests.benchmarks.processes import machine, show, table
from tests.benchmarks.worlds import Shape

REPEATS = 7


def main() -> None:
    """Print the seconds of each part."""
    own = parser().parse_args()
    torch.set_num_threads(1)
    layers, head = weights(Shape()), (own.vocabulary, Shape().width)
    whole, generated = own.prompts * (own.prompt_tokens + own.new_tokens), own.prompts * own.new_tokens
    decode = sum(seconds(shape, own.prompts) for shape in [*layers, head]) * own.new_tokens
    parts = {
        "rollout": sum(seconds(shape, own.prompts * own.prompt_tokens) for shape in layers) + decode,
        "score": sum(seconds(shape, whole) for shape in layers) + seconds(head, generated),
        "update": sum(seconds(shape, whole, gradients=True) for shape in layers)
        + seconds(head, generated, gradients=True),
    }
    show(machine("python -m tests.benchmarks.floor " + " ".join(sys.argv[1:])) + "\n")
    parts["step"] = sum(parts.values())
    show(table(["part", "s in matrix products"], [[name, f"{value:.3f}"] for name, value in parts.items()]))


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--vocabulary", type=int, default=4096)
    made.add_argument("--prompts", type=int, default=16)
    made.add_argument("--prompt-tokens", type=int, default=32)
    made.add_argument("--new-tokens", type=int, default=64)
    return made


def weights(shape: Shape) -> list[tuple[int, int]]:
    """Return the sizes of all linear layers but the head, out × in."""
    heads, keys = shape.heads * shape.head_width, shape.key_heads * shape.head_width
    attention = [(heads, shape.width), (keys, shape.width), (keys, shape.width), (shape.width, heads)]
    feed_forward = [(shape.inner, shape.width), (shape.inner, shape.width), (shape.width, shape.inner)]
    return (attention + feed_forward) * shape.layers


def seconds(shape: tuple[int, int], num_rows: int, *, gradients: bool = False) -> float:
    """Return the fastest time of a layer's product over some rows, and of those of its two gradients."""
    layer, states = (
        torch.nn.Linear(shape[1], shape[0], bias=False).requires_grad_(False),
        torch.randn(num_rows, shape[1]),
    )
    upstream = torch.randn(num_rows, shape[0])
    work: list[Callable[[], torch.Tensor]] = [lambda: upstream @ layer.weight, lambda: upstream.T @ states]
    plain = _fastest(lambda: layer(states))
    with torch.no_grad(), prepacked(layer, BREAK_EVEN_STEPS):
        forward = min(plain, _fastest(lambda: layer(states)))
    return forward + sum(_fastest(product) for product in work if gradients)


def _fastest(work: Callable[[], torch.Tensor]) -> float:
    return min(_timed(work) for _ in range(REPEATS))


def _timed(work: Callable[[], torch.Tensor]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
