"""Prints what fused losses cost against the matrix products that they cannot avoid:

python -m tests.benchmarks.head [--tokens 1024] [--hidden 256] [--vocabulary 151936] [--repeats 5]

One thread, seconds of processor time; the loss and the bare products alternate; medians. The gradients in the states
and in the matrix are computed, too: the log-prob of sampled tokens (policy gradient) needs three products, a divergence
a fourth with the teacher's head.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from lightning_opd.functional.divergences import Divergence, ForwardKL, JensenShannon, ReverseKL
from lightning_opd.functional.fused import token_statistics
from lightning_opd.functional.heads import HeadStates
from lightning_opd.functional.logprobs import positions_per_chunk
from lightning_opd.functional.top_k import TopK
from lightning_opd.types import LinearHead


class Bench:
    """One student and one teacher of random numbers."""

    def __init__(self, tokens: int, hidden: int, vocabulary: int) -> None:
        """Draw states and matrices."""
        self.states, self.theirs = (torch.randn(tokens, hidden) * 0.5 for _ in range(2))
        self.matrix, self.teacher = (torch.randn(vocabulary, hidden) / hidden**0.5 for _ in range(2))
        self.ids = torch.randint(vocabulary, (tokens,))
        self.weights = torch.randn(tokens) / tokens

    def student(self) -> tuple[HeadStates, list[Tensor]]:
        """Return the student with leaves to differentiate."""
        inputs = [self.states.clone().requires_grad_(), self.matrix.requires_grad_()]
        return HeadStates(inputs[0], LinearHead(inputs[1], None, len(self.matrix))), inputs

    def divergence(self, divergence: Divergence) -> None:
        """One forward and backward of a divergence."""
        student, inputs = self.student()
        teacher = HeadStates(self.theirs, LinearHead(self.teacher, None, len(self.teacher)))
        values = divergence.from_states(student, [teacher], self.weights).values
        torch.autograd.grad((values * self.weights).sum(), inputs)

    def policy_gradient(self) -> None:
        """One forward and backward of −Σ Â log π, with the entropies for the logs."""
        student, inputs = self.student()
        logprobs, _ = token_statistics(student, self.ids, self.weights, with_entropies=True)
        torch.autograd.grad((logprobs * self.weights).sum(), inputs)

    @torch.no_grad()
    def products(self, *, with_teacher: bool) -> None:
        """Compute the products alone, in chunks of the same size."""
        size = positions_per_chunk(len(self.matrix), self.states.device)
        gradient, out = torch.zeros_like(self.matrix), torch.empty(size, len(self.matrix))
        for ours, theirs in zip(self.states.split(size), self.theirs.split(size), strict=True):
            logits = torch.mm(ours, self.matrix.T, out=out[: len(ours)])
            if with_teacher:
                torch.mm(theirs, self.teacher.T, out=logits)
            torch.mm(logits, self.matrix)
            gradient.addmm_(logits.T, ours)


def alternate(repeats: int, *functions: Callable[[], None]) -> list[float]:
    """Return the median processor seconds of each function, run one after the other."""
    seconds: list[list[float]] = [[] for _ in functions]
    for turn in range(repeats + 1):
        for function, own in zip(functions, seconds, strict=True):
            started = time.process_time()
            function()
            if turn:  # the first one warms up
                own.append(time.process_time() - started)
    return [statistics.median(own) for own in seconds]


def main() -> None:
    """Print one row per loss."""
    parser = argparse.ArgumentParser(description="fused losses against their matrix products")
    for name, default in (("tokens", 1024), ("hidden", 256), ("vocabulary", 151_936), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    bench = Bench(options.tokens, options.hidden, options.vocabulary)
    divergences: dict[str, Divergence] = {
        "reverse KL": ReverseKL(),
        "forward KL": ForwardKL(),
        "Jensen–Shannon": JensenShannon(),
        "top 32": TopK(ReverseKL(), 32),
    }
    losses: dict[str, Callable[[], None]] = {"policy gradient": bench.policy_gradient}
    losses |= {name: partial(bench.divergence, divergence) for name, divergence in divergences.items()}
    sys.stdout.write("| loss | seconds | its products | ratio | peak MB of the process |\n|---|---|---|---|---|\n")
    for name, loss in losses.items():
        bare_products = partial(bench.products, with_teacher=name in divergences)
        fused, bare = alternate(options.repeats, loss, bare_products)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        sys.stdout.write(f"| {name} | {fused:.2f} | {bare:.2f} | {fused / bare:.2f} | {peak:.0f} |\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
