"""Which responses are generated together, and what a batch that is refilled generates."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from lightning_opd.errors import ConfigError
from lightning_opd.models import causal_lm
from lightning_opd.rollouts import InProcessEngine
from lightning_opd.rollouts.admission import Queue, Siblings, by_tokens
from lightning_opd.rollouts.noise import row_seed
from lightning_opd.types import Sample, Sampling
from tests.architectures import tiny_architecture
from tests.rollouts.test_in_process import engine_of

LENGTHS = (3, 17, 1, 9, 9, 2, 30, 5)
SAMPLING = Sampling(max_new_tokens=14, stop_token_ids=tuple(range(2, 288, 9)))


def prompts() -> list[list[int]]:
    return [[(11 * i + 5 * j) % 280 for j in range(length)] for i, length in enumerate(LENGTHS)]


def generate(engine: InProcessEngine, num_samples: int = 4, sampling: Sampling = SAMPLING) -> list[Sample]:
    seeds = [row_seed(0, i, j) for i in range(len(LENGTHS)) for j in range(num_samples)]
    return engine.generate(prompts(), num_samples, seeds, sampling)


def rows_of(siblings: Sequence[Siblings]) -> list[int]:
    return [row for x in siblings for row in x.rows]


def check_same(ours: Sequence[Sample], others: Sequence[Sample], tolerance: float = 1e-11) -> None:
    for one, other in zip(ours, others, strict=True):
        assert one.token_ids == other.token_ids
        assert one.is_truncated == other.is_truncated
        assert one.logprobs == pytest.approx(other.logprobs, abs=tolerance)


def test_the_longest_prompts_begin_and_waiting_ones_follow_when_an_eighth_is_free() -> None:
    queue = Queue([3, 9, 5, 9], 4, 10, batch_size=8, max_cache_tokens=10_000, pads=True)
    assert queue.take() == [Siblings(1, range(4, 8)), Siblings(3, range(12, 16))]
    assert queue.take(8, 9) == queue.take(5, 9) == [], "siblings begin together"
    assert queue.take(4, 9) == [Siblings(2, range(8, 12))]
    assert queue.take(2, 9) == [Siblings(0, range(4))]
    assert not queue
    queue = Queue([1] * 100, 1, 10, batch_size=80, max_cache_tokens=10_000, pads=True)
    assert len(queue.take()) == 80
    assert queue.take(71, 5) == []
    assert len(queue.take(70, 5)) == 10
    assert len(queue.take(79, 5)) == 0
    assert len(queue.take(70, 5)) == 10, "and the last ones as soon as they fit"


@pytest.mark.parametrize("pads", [True, False])
@pytest.mark.parametrize(("batch_size", "tokens"), [(512, 10_000), (7, 10_000), (512, 100), (5, 40), (1, 40)])
def test_no_batch_exceeds_the_responses_or_the_tokens_and_every_response_begins_once(
    batch_size: int, tokens: int, pads: bool
) -> None:
    queue, begun = Queue(LENGTHS, 3, 10, batch_size, tokens, pads=pads), list[int]()
    while queue:
        taken = queue.take()
        rows, longest = rows_of(taken), LENGTHS[taken[0].prompt]
        assert 0 < len(rows) <= batch_size
        assert len(rows) * (longest + 10) <= tokens
        assert pads or {LENGTHS[x.prompt] for x in taken} == {longest}
        begun += rows
    assert sorted(begun) == list(range(3 * len(LENGTHS)))


def test_prompts_are_read_in_parts_of_so_many_tokens() -> None:
    siblings = [Siblings(i, range(1)) for i in (0, 1, 2, 3, 4)]
    parts = list(by_tokens(siblings, [50, 10, 10, 4, 3], 20))
    assert [[x.prompt for x in part] for part in parts] == [[0], [1, 2], [3, 4]]


@pytest.mark.parametrize(
    "bounds",
    [{"batch_size": 3}, {"batch_size": 9}, {"max_cache_tokens": 44}, {"max_cache_tokens": 300}],
    ids=str,
)
@pytest.mark.parametrize("settings", [{}, {"repetition_penalty": 1.4, "top_p": 0.8}], ids=str)
def test_a_refilled_batch_generates_what_one_large_batch_does(
    bounds: dict[str, int], settings: dict[str, Any], double_world: Path
) -> None:
    sampling = dataclasses.replace(SAMPLING, **settings)
    engine, model = engine_of(double_world / "student", dtype="float64")
    together = generate(engine, sampling=sampling)
    assert len({len(sample.token_ids) for sample in together}) > 4, "rows must leave at different times"
    small = InProcessEngine(**bounds)
    small.sync(model, 0)
    check_same(generate(small, sampling=sampling), together)
    assert small.occupancy == 1, "finished rows leave at once"


def test_long_prompts_read_in_parts_give_the_same(double_world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, _ = engine_of(double_world / "student", dtype="float64")
    together = generate(engine)
    monkeypatch.setattr("lightning_opd.rollouts.decoding.PREFILL_TOKENS", 20)
    check_same(generate(engine), together)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom", "mpt", "falcon", "minicpm3", "gemma3_text", "qwen3_5_text"])
def test_so_it_does_over_architectures(name: str) -> None:
    """Learned, rotary and linear positions, latent attention, sliding windows, recurrent states."""
    model = tiny_architecture(name)
    few = [[t % 90 for t in prompt] for prompt in prompts()]
    sampling = Sampling(max_new_tokens=8, stop_token_ids=tuple(range(2, 96, 9)))
    found = []
    for batch_size in (64, 3):
        engine = InProcessEngine(batch_size)
        engine.sync(model, 0)
        found.append(engine.generate(few, 2, [row_seed(1, i) for i in range(16)], sampling))
    check_same(found[1], found[0], 2e-4)


def test_no_more_rows_or_columns_than_the_bound_are_ever_in_the_cache(double_world: Path) -> None:
    engine, model = engine_of(double_world / "student", dtype="float64")
    engine.max_cache_tokens, sizes = 200, list[int]()

    def measure(module: nn.Module, args: object, kwargs: dict[str, Any]) -> None:
        if kwargs["input_ids"].shape[1] == 1:
            sizes.append(kwargs["attention_mask"].numel())

    causal_lm(model).register_forward_pre_hook(measure, with_kwargs=True)
    generate(engine)
    assert 100 < max(sizes) <= 200


def test_siblings_share_one_reading_of_their_prompt(double_world: Path) -> None:
    engine, model = engine_of(double_world / "student", dtype="float64")
    engine.batch_size, read = 6, list[int]()
    causal_lm(model).register_forward_pre_hook(
        lambda module, args, kwargs: read.append(len(kwargs["input_ids"])) if kwargs["logits_to_keep"] else None,
        with_kwargs=True,
    )
    sampling = dataclasses.replace(SAMPLING, max_new_tokens=1)  # reading is all there is
    generate(engine, 3, sampling)
    assert read == [2, 2, 2, 2]


def test_one_response_that_the_cache_cannot_hold_is_refused(tiny_model_dir: Path) -> None:
    engine, model = engine_of(tiny_model_dir)
    engine.max_cache_tokens = 43
    with pytest.raises(ConfigError, match=r"`max_cache_tokens`.* 30 tokens and `max_new_tokens` 14 are 44, got 43"):
        generate(engine)
    assert model.training, "nothing has been touched"
    for wrong in ({"batch_size": 0}, {"max_cache_tokens": 0}):
        with pytest.raises(ConfigError, match=f"`{next(iter(wrong))}` must be at least 1, got 0"):
            InProcessEngine(**wrong)


def test_no_prompts_give_no_responses(tiny_model_dir: Path) -> None:
    engine, _ = engine_of(tiny_model_dir)
    assert engine.generate([], 4, [], SAMPLING) == []
