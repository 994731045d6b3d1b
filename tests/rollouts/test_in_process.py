from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_opd.functional.logprobs import token_logprobs
from lightning_opd.models import Lora, StudentConfig, build_student, causal_lm
from lightning_opd.rollouts import InProcessEngine
from lightning_opd.rollouts.drawing import draw, nucleus
from lightning_opd.rollouts.noise import row_seed, uniforms
from lightning_opd.types import Sample, Sampling

PROMPTS = [[5, 9, 30], [7], [40, 41, 42, 43, 44, 45], [9, 9]]
STOPS = tuple(range(2, 288, 12))
SAMPLING = Sampling(max_new_tokens=10, stop_token_ids=STOPS)


def engine_of(folder: Path, batch_size: int = 512, **student: Any) -> tuple[InProcessEngine, torch.nn.Module]:
    model = build_student(StudentConfig(str(folder), **student))
    engine = InProcessEngine(batch_size)
    engine.sync(model, 0)
    return engine, model


def seeds(num_samples: int) -> list[int]:
    return [row_seed(0, i, j) for i in range(len(PROMPTS)) for j in range(num_samples)]


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("student", [{}, {"lora": Lora(rank=2)}, {"gradient_checkpointing": True}], ids=str)
def test_logprobs_equal_those_of_a_plain_forward(
    temperature: float, student: dict[str, Any], tiny_model_dir: Path
) -> None:
    engine, model = engine_of(tiny_model_dir, **student)
    sampling = dataclasses.replace(SAMPLING, temperature=temperature)
    samples = engine.generate(PROMPTS, 2, seeds(2), sampling)
    assert model.training
    model.eval()
    for i, sample in enumerate(samples):
        ids = torch.tensor([[*PROMPTS[i // 2], *sample.token_ids]])
        with torch.no_grad():
            expected = token_logprobs(causal_lm(model)(ids).logits, ids, temperature)[0, len(PROMPTS[i // 2]) :]
        assert torch.tensor(sample.logprobs) == pytest.approx(expected, abs=1e-4)


def test_no_dropout_while_writing_and_the_students_mode_is_given_back(tiny_model_dir: Path) -> None:
    engine, model = engine_of(tiny_model_dir)
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            vars(module)["attention_dropout"] = 0.5
    written = engine.generate(PROMPTS, 2, seeds(2), SAMPLING)
    assert model.training
    again = engine.generate(PROMPTS, 2, seeds(2), SAMPLING)  # with the prompts' keys and values: equal up to rounding
    for first, second in zip(written, again, strict=True):
        assert second.token_ids == first.token_ids
        assert second.logprobs == pytest.approx(first.logprobs, abs=1e-5)
    ids = torch.tensor([PROMPTS[2]])
    with torch.no_grad():
        assert not torch.equal(causal_lm(model)(ids).logits, causal_lm(model)(ids).logits), "dropout must show"
    model.eval()
    engine.generate(PROMPTS, 1, seeds(1), SAMPLING)
    assert not model.training


def test_a_response_does_not_depend_on_the_others_of_its_batch(double_world: Path) -> None:
    together, _ = engine_of(double_world / "student", dtype="float64")
    alone, _ = engine_of(double_world / "student", batch_size=3, dtype="float64")
    samples = together.generate(PROMPTS, 3, seeds(3), SAMPLING)
    for one, other in zip(samples, alone.generate(PROMPTS, 3, seeds(3), SAMPLING), strict=True):
        assert one.token_ids == other.token_ids
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-12)
    assert len({sample.token_ids for sample in samples}) > len(PROMPTS), "siblings must differ"
    assert len({len(sample.token_ids) for sample in samples}) > 2, "rows must leave the batch at different times"
    one = alone.generate([PROMPTS[2]], 1, [seeds(3)[7]], SAMPLING)[0]
    assert one.token_ids == samples[7].token_ids


def test_responses_end_with_a_stop_token_or_are_truncated(tiny_model_dir: Path) -> None:
    engine, _ = engine_of(tiny_model_dir)
    samples = engine.generate(PROMPTS, 8, seeds(8), SAMPLING)
    assert {sample.is_truncated for sample in samples} == {True, False}
    for sample in samples:
        assert sample.is_truncated == (sample.token_ids[-1] not in STOPS)
        assert len(sample.token_ids) == 10 or not sample.is_truncated
        assert all(token not in STOPS for token in sample.token_ids[:-1])


def test_greedy_takes_the_likeliest_token(tiny_model_dir: Path) -> None:
    engine, model = engine_of(tiny_model_dir)
    sampling = dataclasses.replace(SAMPLING, temperature=0.0)
    sample = engine.generate(PROMPTS[:1], 1, [0], sampling)[0]
    model.eval()
    for end, token in enumerate(sample.token_ids):
        with torch.no_grad():
            logits = causal_lm(model)(torch.tensor([[*PROMPTS[0], *sample.token_ids[:end]]])).logits[0, -1]
        assert int(logits.argmax()) == token
    assert engine.generate(PROMPTS[:1], 1, [99], sampling)[0].token_ids == sample.token_ids


def test_draws_follow_the_distribution() -> None:
    """20,000 draws: each frequency within five standard errors."""
    torch.manual_seed(3)
    logits, count = torch.randn(7), 20_000
    tokens, logprobs = draw(logits.expand(count, 7), torch.arange(count), 4, Sampling(temperature=0.8))
    expected = torch.softmax(logits / 0.8, 0)
    frequency = torch.bincount(tokens, minlength=7) / count
    assert ((frequency - expected).abs() < 5 * (expected * (1 - expected) / count).sqrt()).all()
    assert torch.allclose(logprobs, expected.log()[tokens], atol=1e-6)


def test_nucleus_keeps_the_smallest_sufficient_set_and_renormalises() -> None:
    probs = torch.tensor([[0.5, 0.3, 0.15, 0.05]])
    assert nucleus(probs, 0.6).tolist() == [[True, True, False, False]]
    assert nucleus(probs, 0.1).tolist() == [[True, False, False, False]]
    tokens, drawn = draw(probs.log().expand(500, 4), torch.arange(500), 0, Sampling(top_p=0.6))
    assert set(tokens.tolist()) == {0, 1}
    assert torch.allclose(drawn.exp(), torch.tensor([0.5, 0.3])[tokens] / 0.8)


def test_ids_beyond_the_vocabulary_are_never_drawn(tiny_model_dir: Path) -> None:
    engine, _ = engine_of(tiny_model_dir)
    samples = engine.generate(PROMPTS, 8, seeds(8), Sampling(max_new_tokens=10, vocab_size=20))
    assert max(max(sample.token_ids) for sample in samples) < 20


def test_noise_is_uniform_and_differs_between_rows_and_positions() -> None:
    noise = torch.stack([uniforms(torch.tensor([row_seed(1, i) for i in range(2000)]), t) for t in range(4)])
    assert noise.min() >= 0
    assert noise.max() < 1
    assert len(noise.unique()) == noise.numel()
    assert noise.mean(dim=1) == pytest.approx(torch.full((4,), 0.5), abs=0.03)
    assert float(torch.corrcoef(noise).fill_diagonal_(0).abs().max()) < 0.1


def test_misuse_is_explained(tiny_model_dir: Path) -> None:
    with pytest.raises(RuntimeError, match="sync"):
        InProcessEngine().generate(PROMPTS, 1, seeds(1))
    engine, _ = engine_of(tiny_model_dir)
    with pytest.raises(ValueError, match="Expected 8 seeds"):
        engine.generate(PROMPTS, 2, seeds(1))
    for wrong in ({"temperature": -1.0}, {"top_p": 0.0}, {"max_new_tokens": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Sampling(**wrong)
    assert isinstance(engine.generate(PROMPTS, 1, seeds(1))[0], Sample)


def test_every_response_is_told_once_as_soon_as_it_ends(tiny_model_dir: Path) -> None:
    engine, _ = engine_of(tiny_model_dir, batch_size=4)
    seen: list[Mapping[int, Sample]] = []
    samples = engine.generate(PROMPTS, 2, seeds(2), SAMPLING, seen.append)
    assert sum(map(bool, seen)) > 3, "as they finish"
    assert sum(map(len, seen)) == 8, "each once"
    assert dict(sorted((place, sample) for ended in seen for place, sample in ended.items())) == dict(
        enumerate(samples)
    )
    assert any(sample.is_truncated for sample in samples), "a truncated one is done, too"
