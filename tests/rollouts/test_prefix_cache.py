from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import DynamicCache, MistralConfig, MistralForCausalLM, Qwen3Config
from transformers.cache_utils import DynamicLayer

from lightning_opd.interfaces import OnProgress
from lightning_opd.models import StudentConfig, build_student
from lightning_opd.rollouts import InProcessEngine
from lightning_opd.rollouts.noise import row_seed
from lightning_opd.rollouts.prefix_cache import PrefixCache
from lightning_opd.types import Sample, Sampling, Trajectory
from tests.agents import ScriptedChat
from tests.rollouts.test_episodes import TOKENIZER
from tests.world import STOPS, run_episodes

SAMPLING = Sampling(max_new_tokens=8, stop_token_ids=STOPS)


class Recorder(InProcessEngine):
    """Records what each turn reuses of the turn before, and drops it on request."""

    def __init__(self, *, forgets: bool = False, batch_size: int = 512) -> None:
        super().__init__(batch_size)
        self.forgets = forgets
        self.fractions: list[float] = []

    def generate(
        self,
        token_ids: Sequence[Sequence[int]],
        num_samples: int,
        seeds: Sequence[int],
        sampling: Sampling = SAMPLING,
        on_progress: OnProgress | None = None,
    ) -> list[Sample]:
        if self.forgets:
            self.finish()
        before = self._num_prompt_tokens, self._num_read
        samples = super().generate(token_ids, num_samples, seeds, sampling, on_progress)
        self.fractions.append(1 - (self._num_read - before[1]) / (self._num_prompt_tokens - before[0]))
        return samples


def play(engine: Recorder, model: torch.nn.Module) -> list[Trajectory]:
    engine.sync(model, 0)
    prompts = ScriptedChat().prompts("train")
    seeds = [row_seed(0, i) for i in range(2 * len(prompts))]
    return run_episodes(ScriptedChat(), prompts, engine, TOKENIZER, seeds, SAMPLING, 256)


def check_alike(one: list[Trajectory], other: list[Trajectory]) -> None:
    assert [t.token_ids for t in one] == [t.token_ids for t in other]
    for mine, theirs in zip(one, other, strict=True):
        assert mine.logprobs == pytest.approx(theirs.logprobs, abs=1e-12)


@pytest.mark.parametrize("batch_size", [512, 5])
def test_later_turns_read_only_new_tokens_and_generate_the_same(batch_size: int, double_world: Path) -> None:
    model = build_student(StudentConfig(str(double_world / "student"), dtype="float64"))
    engine, forgetful = Recorder(batch_size=batch_size), Recorder(forgets=True)
    check_alike(play(engine, model), play(forgetful, model))
    assert len(engine.fractions) > 2
    assert engine.fractions[0] == 0
    assert min(engine.fractions[1:]) > 0.3
    assert engine.reused_fraction > 0.3
    assert forgetful.reused_fraction == 0


def test_nothing_outlives_the_episodes_or_the_weights(double_world: Path) -> None:
    model = build_student(StudentConfig(str(double_world / "student"), dtype="float64"))
    engine = Recorder()
    before = play(engine, model)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.1)
    after = play(engine, model)
    assert engine.fractions[len(engine.fractions) // 2 :].count(0) >= 1
    check_alike(after, play(Recorder(forgets=True), model))
    assert [t.token_ids for t in before] != [t.token_ids for t in after]
    engine.generate([[5, 6]], 1, [0], SAMPLING)
    assert engine.fractions[-1] == 0, "the last rollout batch's keys were kept"


def test_a_model_with_a_sliding_window_reads_every_turn_from_the_start() -> None:
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=288,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        sliding_window=6,
        max_position_embeddings=256,
    )
    model = MistralForCausalLM(config).double()
    engine = Recorder()
    check_alike(play(engine, model), play(Recorder(forgets=True), model))
    assert len(engine.fractions) > 2
    assert engine.reused_fraction == 0


sequences = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=7), min_size=1, max_size=6)


@given(sequences, sequences)
def test_each_row_gets_the_states_of_its_own_tokens(known: list[list[int]], prompts: list[list[int]]) -> None:
    """The state at a column encodes the tokens up to it."""
    width = max(map(len, known))
    config = Qwen3Config(num_hidden_layers=1)
    states = torch.zeros(len(known), 1, width, 7)
    for row, sequence in enumerate(known):
        for i in range(len(sequence)):
            states[row, 0, width - len(sequence) + i] = code(sequence[: i + 1])
    cache = DynamicCache(config=config)
    cache.update(states, -states, 0)
    prefixes = PrefixCache()
    prefixes.keep(known, [width - len(s) for s in known], torch.arange(len(known)), cache)
    got, num_new = prefixes.beginnings(prompts, config)
    longest = max(map(len, prompts))
    assert num_new == min(longest, max(len(p) - max(shared(p[:-1], s) for s in known) for p in prompts))
    assert got.get_seq_length() == longest - num_new
    (layer,) = got.layers
    assert isinstance(layer, DynamicLayer)
    for row, prompt in enumerate(prompts):
        for column in range(longest - num_new):
            place = column - (longest - len(prompt))
            if place >= 0:
                assert layer.keys is not None
                assert layer.values is not None
                assert torch.equal(layer.keys[row, 0, column], code(prompt[: place + 1]))
                assert torch.equal(layer.values[row, 0, column], -code(prompt[: place + 1]))


def code(sequence: list[int]) -> torch.Tensor:
    return torch.tensor([float(x + 1) for x in sequence] + [0.0] * (7 - len(sequence)))


def shared(one: list[int], other: list[int]) -> int:
    same = [a == b for a, b in zip(one, other, strict=False)]
    return same.index(False) if False in same else len(same)
