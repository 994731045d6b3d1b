"""Measures useful rollout tokens per second against `generate` of transformers, and the draw of a token alone.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.rollout [--repeats 5]

Both engines generate with the same random Qwen3 of 4 × 256 and a vocabulary of 4,096: 128 responses to prompts of 16
to 47 tokens, each token ending its response with probability 1/48, 256 tokens at most. Useful tokens are those up to
the end of each response. The draw is compared with one that inverts a cumulative sum in float64 over the whole
vocabulary. Runs alternate, medians are shown, and seconds are those of the processor, so that other processes
count little.
"""

from __future__ import annotations

import argparse
import functools
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from lightning_opd.rollouts import InProcessEngine
from lightning_opd.rollouts.drawing import draw
from lightning_opd.rollouts.noise import row_seed, uniforms
from lightning_opd.types import Sampling

VOCAB = 4_096
NUM_RESPONSES = 128
MEAN_LENGTH = 48
SAMPLING = Sampling(max_new_tokens=256, stop_token_ids=tuple(range(VOCAB // MEAN_LENGTH)))
SETTINGS = (Sampling(), Sampling(temperature=0.3, top_p=0.95), Sampling(temperature=0.7, top_k=50, top_p=0.95))


def student() -> PreTrainedModel:
    """Return a random model whose predictions are nearly uniform."""
    config = AutoConfig.for_model(
        "qwen3",
        vocab_size=VOCAB,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    model.train(False)
    return model


def prompts() -> list[list[int]]:
    """Return prompts of uneven lengths."""
    source = random.Random(0)
    return [[source.randrange(100, VOCAB) for _ in range(source.randrange(16, 48))] for _ in range(NUM_RESPONSES)]


def with_engine(engine: InProcessEngine, asked: Sequence[Sequence[int]], repeat: int) -> int:
    """Generate and return the number of useful tokens."""
    seeds = [row_seed(repeat, i) for i in range(len(asked))]
    return sum(len(sample.token_ids) for sample in engine.generate(asked, 1, seeds, SAMPLING))


def with_transformers(model: PreTrainedModel, asked: Sequence[Sequence[int]], repeat: int) -> int:
    """Generate and return the number of useful tokens."""
    torch.manual_seed(repeat)
    longest, stops = max(map(len, asked)), set(SAMPLING.stop_token_ids)
    token_ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in asked])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in asked])
    found = model.generate(  # type: ignore[operator]  # transformers mixes it in
        token_ids,
        attention_mask=mask,
        do_sample=True,
        top_k=0,
        max_new_tokens=SAMPLING.max_new_tokens,
        eos_token_id=list(stops),
        pad_token_id=0,
    )[:, longest:].tolist()
    return sum(next((i + 1 for i, token in enumerate(row) if token in stops), len(row)) for row in found)


def cumulative_draw(logits: Tensor, seeds: Tensor, position: int, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Draw from float64 sums over the whole vocabulary, sorted where there is a nucleus."""
    logprobs = torch.log_softmax(logits / sampling.temperature, dim=-1)
    if sampling.top_k is not None:
        kept = logprobs >= logprobs.topk(sampling.top_k, dim=-1).values[:, -1:]
        logprobs = torch.log_softmax(torch.where(kept, logprobs, -torch.inf), dim=-1)
    if sampling.top_p < 1:
        ordered, order = logprobs.double().exp().sort(dim=-1, descending=True)
        needed = ordered.cumsum(dim=-1) - ordered < sampling.top_p
        kept = torch.zeros_like(needed).scatter(-1, order, needed)
        logprobs = torch.log_softmax(torch.where(kept, logprobs, -torch.inf), dim=-1)
    cumulative = logprobs.double().exp().cumsum(dim=-1)
    targets = uniforms(seeds, position) * cumulative[:, -1]
    tokens = torch.searchsorted(cumulative, targets[:, None], right=True)
    return tokens, logprobs.gather(-1, tokens)


def write(line: str) -> None:
    """Show a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def seconds(function: Callable[[], object]) -> float:
    """Return the processor's seconds of one call."""
    start = time.process_time()
    function()
    return time.process_time() - start


def rollouts(repeats: int) -> None:
    """Print the tokens per second of both engines, alternating."""
    model, asked, engine = student(), prompts(), InProcessEngine()
    engine.sync(model, 0)
    rates: tuple[list[float], list[float]] = ([], [])
    for repeat in range(repeats):
        calls = (
            functools.partial(with_engine, engine, asked, repeat),
            functools.partial(with_transformers, model, asked, repeat),
        )
        for found, call in zip(rates, calls, strict=True):
            start = time.process_time()
            num_tokens = call()
            found.append(num_tokens / (time.process_time() - start))
    ours, theirs = map(statistics.median, rates)
    write("| useful tokens/s | `generate` | ratio |\n|---|---|---|")
    write(f"| {ours:,.0f} | {theirs:,.0f} | {ours / theirs:.2f} |\n")


def draws(repeats: int) -> None:
    """Print the seconds of a draw for two vocabularies, alternating."""
    write("| rows × vocabulary | sampling | ms | float64 sums, ms | ratio |\n|---|---|---|---|---|")
    for rows, vocab in ((128, 4_096), (32, 151_936)):
        logits = 2 * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(0))
        seeds = torch.arange(rows)
        for sampling in SETTINGS:
            times: tuple[list[float], list[float]] = ([], [])
            for _ in range(repeats):
                for found, function in zip(times, (draw, cumulative_draw), strict=True):
                    found.append(seconds(functools.partial(function, logits, seeds, 0, sampling)))
            ours, theirs = (1e3 * statistics.median(found) for found in times)
            name = f"temperature {sampling.temperature:g}, top-k {sampling.top_k or '-'}, top-p {sampling.top_p:g}"
            write(f"| {rows} × {vocab:,} | {name} | {ours:.1f} | {theirs:.1f} | {ours / theirs:.2f} |")


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="runs of each whose median is shown")
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    draws(repeats)
    rollouts(repeats)


if __name__ == "__main__":
    main()
