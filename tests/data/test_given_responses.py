from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_opd.data import DatasetResponses, GivenResponses, TeacherResponses
from lightning_opd.functional.divergences import ReverseKL
from lightning_opd.models import load_tokenizer
from lightning_opd.objectives import DistributionMatching, Likelihood, PolicyGradient
from lightning_opd.tokenization.chat import decode_response, stop_token_ids
from lightning_opd.types import Prompt
from tests.world import Letters, Witness, make_data, make_module, make_trainer


class Told(Letters):
    """A task that knows a right reply to every prompt."""

    def demonstration(self, prompt: Prompt) -> str:
        return f"an {prompt.key}"


def windows(world: Path, folder: Path, given: GivenResponses, task: Letters, steps: int = 3) -> Witness:
    witness = Witness()
    module = make_module(world, DistributionMatching(ReverseKL()))
    make_trainer(folder, witness, max_steps=steps).fit(module, make_data(task, given_responses=given))
    return witness


def test_dataset_responses_are_the_tasks_demonstrations_with_a_stop_token(world: Path, tmp_path: Path) -> None:
    witness = windows(world, tmp_path, GivenResponses(DatasetResponses(), share=1.0), Told())
    tokenizer = load_tokenizer(str(world / "student"))
    stops = stop_token_ids(tokenizer)
    for window in witness.windows:
        assert window.is_given
        for row, trajectory in enumerate(window.trajectories):
            ids = window.token_ids[row][window.response_mask[row]].tolist()
            assert ids[-1] in stops
            assert decode_response(tokenizer, ids, stops) == f"an {trajectory.prompt.key}"
            assert trajectory.reward == 1.0  # the verdict is the task's own
    assert "given/teacher_kl" in witness.logged[0]
    assert "given/reward" in witness.logged[0]
    assert "train/teacher_kl" not in witness.logged[0]


def test_teacher_responses_come_from_each_prompts_own_teacher(world: Path, tmp_path: Path) -> None:
    """Greedy enough to compare: the teacher's sampling log-probs equal its grades of the same tokens."""
    witness = windows(world, tmp_path, GivenResponses(TeacherResponses(), share=1.0), Letters())
    for window in witness.windows:
        mask = window.response_mask
        assert mask.any(dim=1).all()
        torch.testing.assert_close(window.rollout_logprobs[mask], window.teacher_logprobs[mask], atol=1e-4, rtol=0)
        assert len(set(window.teacher_ids.tolist())) == 2


def test_a_share_of_the_windows_is_given_and_the_same_ones_in_every_run(world: Path, tmp_path: Path) -> None:
    given = GivenResponses(TeacherResponses(), share=0.5)
    drawn = [given.covers(0, window) for window in range(2_000)]
    assert 0.45 < sum(drawn) / len(drawn) < 0.55
    witness = windows(world, tmp_path, given, Letters(), steps=6)
    assert [window.is_given for window in witness.windows] == drawn[:6]


def test_a_prompt_without_demonstration_is_an_error_with_its_columns(world: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no demonstration.*TeacherResponses"):
        windows(world, tmp_path, GivenResponses(DatasetResponses(), share=1.0), Letters())


def test_likelihood_on_teacher_samples_is_their_mean_negative_log_prob(double_world: Path, tmp_path: Path) -> None:
    witness = Witness()
    module = make_module(double_world, Likelihood(), "float64")
    data = make_data(given_responses=GivenResponses(TeacherResponses(), share=1.0))
    make_trainer(tmp_path, witness, max_steps=1).fit(module, data)
    fresh = make_module(double_world, dtype="float64").configure_student()
    window = witness.windows[0]
    logits = fresh(input_ids=window.token_ids, attention_mask=window.attention_mask.long()).logits
    logprobs = torch.log_softmax(logits[:, :-1], -1).gather(-1, window.token_ids[:, 1:, None]).squeeze(-1)
    expected = -logprobs[window.response_mask[:, 1:]].mean()
    assert witness.logged[0]["train/loss"] == pytest.approx(float(expected.detach()), abs=1e-10)
    expected.backward()
    for name, parameter in fresh.named_parameters():
        torch.testing.assert_close(witness.gradients[0][f"student.{name}"], parameter.grad, atol=1e-10, rtol=0)


def test_objectives_that_cannot_learn_from_given_responses_say_so(world: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    given = GivenResponses(TeacherResponses(), share=0.5)
    with pytest.raises(ValueError, match=r"policy gradient learns from the student's own tokens"):
        trainer.fit(make_module(world, PolicyGradient()), make_data(given_responses=given))
    with pytest.raises(ValueError, match=r"Likelihood learns from given responses only, got a share of 0\.5"):
        trainer.fit(make_module(world, Likelihood()), make_data(given_responses=given))
    with pytest.raises(ValueError, match=r"\(0, 1\]"):
        GivenResponses(TeacherResponses(), share=0.0)
