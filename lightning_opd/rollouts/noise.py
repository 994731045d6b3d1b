"""Counter-based noise: a row's draws depend on its seed and the position alone."""

from __future__ import annotations

import hashlib

import torch
from jaxtyping import Float, Int
from torch import Tensor

_MASK = 2**64 - 1


def row_seed(*parts: int | str) -> int:
    """Return a 63-bit seed from the parts that identify a row, the same on every machine and rank."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _signed(value: int) -> int:
    value &= _MASK
    return value - 2**64 if value >= 2**63 else value


def _shift_right(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def uniforms(seeds: Int[Tensor, " rows"], position: int | Int[Tensor, " rows"]) -> Float[Tensor, " rows"]:
    """Return one uniform number in [0, 1) per row, in float64.

    Args:
        seeds: One int64 seed per row.
        position: Index of the draw within the row, one for all rows or one per row.

    Reference:
        Steele, Lea, Flood, Fast splittable pseudorandom number generators (2014): SplitMix64.
    """
    step = 0x9E3779B97F4A7C15
    x = seeds + (_signed((position + 1) * step) if isinstance(position, int) else (position + 1) * _signed(step))
    x = (x ^ _shift_right(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift_right(x, 27)) * _signed(0x94D049BB133111EB)
    x = x ^ _shift_right(x, 31)
    return _shift_right(x, 12).to(torch.float64) * 2.0**-52
