"""What a device can do at best, measured: a large matrix product, and a copy."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Ceilings:
    """The two rates that bound a step.

    Args:
        flops: Operations per second of a matrix product in bfloat16.
        bandwidth: Bytes per second of a copy, those read and those written.
    """

    flops: float
    bandwidth: float

    def __str__(self) -> str:
        """Return both with their units."""
        return f"{self.flops / 1e12:.3g} TFLOP/s (bfloat16 product), {self.bandwidth / 1e12:.3g} TB/s (copy)"


def measure(device: str) -> Ceilings:
    """Return the ceilings of a device: medians of ten; on the CPU of small sizes."""
    size, num_bytes = (8192, 2**32) if device == "cuda" else (256, 2**22)
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    product = torch.empty_like(left)
    source = torch.zeros(num_bytes, device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    flops = 2 * size**3 / _seconds(device, lambda: torch.mm(left, right, out=product))
    return Ceilings(flops, 2 * num_bytes / _seconds(device, lambda: target.copy_(source)))


def _seconds(device: str, work: Callable[[], object]) -> float:
    """Return the median time of a piece of work, after three to warm up."""
    found = []
    for _ in range(13):
        _wait(device)
        start = time.perf_counter()
        work()
        _wait(device)
        found.append(time.perf_counter() - start)
    return statistics.median(found[3:])


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
