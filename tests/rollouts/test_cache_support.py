from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import PreTrainedModel

from lightning_opd.errors import ConfigError
from lightning_opd.functional.logprobs import token_logprobs
from lightning_opd.models import cache_argument
from lightning_opd.rollouts import InProcessEngine
from lightning_opd.rollouts.cache_support import keeps_states
from lightning_opd.rollouts.noise import row_seed
from lightning_opd.types import Sample, Sampling
from tests.architectures import VOCAB, tiny_architecture

PROMPTS = [[5, 9, 30], [7], [40, 41, 42, 43, 44, 45], [9, 9]]
NUM_SAMPLES = 3
SAMPLING = Sampling(max_new_tokens=8, stop_token_ids=tuple(range(2, VOCAB, 9)))


def generate(engine: InProcessEngine) -> list[Sample]:
    seeds = [row_seed(0, i, j) for i in range(len(PROMPTS)) for j in range(NUM_SAMPLES)]
    return engine.generate(PROMPTS, NUM_SAMPLES, seeds, SAMPLING)


def check(model: PreTrainedModel, prompt: list[int], sample: Sample) -> None:
    """A reply's log-probs are those of a plain forward."""
    ids = torch.tensor([[*prompt, *sample.token_ids]])
    with torch.no_grad():
        expected = token_logprobs(model(input_ids=ids, use_cache=False).logits, ids)[0, len(prompt) :]
    assert torch.tensor(sample.logprobs) == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize("name", ["lfm2", "qwen3_5_text", "jamba", "falcon_h1", "mamba2", "mamba"])
def test_rollouts_of_models_with_states_have_the_log_probs_of_a_plain_forward(name: str) -> None:
    """Hybrids and state-space models: several samples of prompts of different lengths, ending at different times."""
    model, engine = tiny_architecture(name), InProcessEngine()
    assert keeps_states(model)
    engine.sync(model, 0)
    samples = generate(engine)
    assert len({len(sample.token_ids) for sample in samples}) > 2, "rows must leave the batch at different times"
    assert len({sample.token_ids for sample in samples}) > len(PROMPTS), "siblings must differ"
    for row, sample in enumerate(samples):
        check(model, PROMPTS[row // NUM_SAMPLES], sample)


@pytest.mark.parametrize("name", ["llama", "lfm2", "qwen3_5_text", "mamba"])
def test_so_have_the_replies_of_a_second_turn(name: str) -> None:
    """What is kept of the first turn for the second: keys and values, or nothing where a layer has a state."""
    model, engine = tiny_architecture(name), InProcessEngine()
    engine.sync(model, 0)
    sampling = replace(SAMPLING, max_turns=2)
    first = engine.generate(PROMPTS, 1, [row_seed(0, i) for i in range(len(PROMPTS))], sampling)
    longer = [[*prompt, *sample.token_ids, 11, 12] for prompt, sample in zip(PROMPTS, first, strict=True)]
    second = engine.generate(longer, 1, [row_seed(1, i) for i in range(len(longer))], sampling)
    for prompt, sample in zip(longer, second, strict=True):
        check(model, prompt, sample)
    assert (engine.reused_fraction > 0) == (not keeps_states(model))


def read_lengths(name: str) -> set[int]:
    """Return how many prompts the model read at once while it generated."""
    model, engine, sizes = tiny_architecture(name), InProcessEngine(), set[int]()
    engine.sync(model, 0)
    model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.add(len(kwargs["input_ids"])) if kwargs["input_ids"].shape[1] > 1 else None,
        with_kwargs=True,
    )
    engine.generate([[3, 4, 5], [6, 7], [8, 9, 10], [11, 12]], 1, range(4), SAMPLING)
    return sizes


def test_prompts_of_one_length_are_generated_together_where_padding_is_misread() -> None:
    assert read_lengths("mamba") == {2}
    assert read_lengths("lfm2") == {4}


@pytest.mark.parametrize(
    ("name", "reason"),
    [("rwkv", "takes no cache"), ("recurrent_gemma", "differ by .* nats from a plain forward's")],
)
def test_a_model_whose_cache_cannot_carry_rollouts_is_refused_before_the_first(name: str, reason: str) -> None:
    engine = InProcessEngine()
    with pytest.raises(ConfigError, match=f"`InProcessEngine` cannot generate with architecture `{name}`: .*{reason}"):
        engine.sync(tiny_architecture(name), 0)
    with pytest.raises(RuntimeError, match="sync"):
        generate(engine)
    engine.sync(tiny_architecture("llama"), 1)
    assert generate(engine)


def test_a_cache_that_breaks_down_is_refused_with_its_own_words() -> None:
    model = tiny_architecture("lfm2")

    def broken(*arguments: object, **settings: object) -> None:
        msg = "no such state"
        raise ValueError(msg)

    layer = model.get_decoder().layers[0]
    layer.register_forward_pre_hook(broken, with_kwargs=True)
    with pytest.raises(ConfigError, match="its cache fails with ValueError: no such state"):
        InProcessEngine().sync(model, 0)


def test_models_of_keys_and_values_alone_are_not_tried_out() -> None:
    model, calls = tiny_architecture("mistral"), []
    model.register_forward_hook(lambda *_: calls.append(1))
    assert not keeps_states(model)
    assert cache_argument(model) in ("cache", "past_key_values")
    InProcessEngine().sync(model, 0)
    assert not calls


def test_the_trial_happens_once_per_model_and_leaves_it_and_the_random_state_alone() -> None:
    model, calls = tiny_architecture("lfm2").train(), []
    model.register_forward_hook(lambda *_: calls.append(1))
    before, engine = torch.get_rng_state(), InProcessEngine()
    engine.sync(model, 0)
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)
    assert engine.reused_fraction == 1, "nothing counts before the first rollout batch"
    tried = len(calls)
    assert tried > 0
    engine.sync(model, 1)
    assert len(calls) == tried
