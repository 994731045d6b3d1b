from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_opd.collection import DatasetResponses, OffPolicyResponses, TeacherResponses
from lightning_opd.errors import ConfigError
from lightning_opd.functional.divergences import ReverseKL
from lightning_opd.interfaces import Teacher
from lightning_opd.models import Lora, StudentConfig, build_student, export_student, load_tokenizer
from lightning_opd.objectives import DistributionMatching, Likelihood, PolicyGradient
from lightning_opd.teachers import AdapterTeacher, LocalTeacher, MixtureTeacher
from lightning_opd.tokenization.chat import decode_response
from lightning_opd.tokenization.turn_borders import stop_token_ids
from lightning_opd.types import Prompt
from tests.tiny import save_adapter
from tests.world import Letters, Recorder, make_data, make_module, make_trainer


class Told(Letters):
    """A task that knows a right reply to every prompt."""

    def demonstration(self, prompt: Prompt) -> str:
        return f"an {prompt.key}"


def rollout_batches(world: Path, folder: Path, given: OffPolicyResponses, task: Letters, steps: int = 3) -> Recorder:
    recorder = Recorder()
    module = make_module(world, DistributionMatching(ReverseKL()))
    make_trainer(folder, recorder, max_steps=steps).fit(module, make_data(task, off_policy_responses=given))
    return recorder


def test_dataset_responses_are_the_tasks_demonstrations_with_a_stop_token(world: Path, tmp_path: Path) -> None:
    recorder = rollout_batches(world, tmp_path, OffPolicyResponses(DatasetResponses(), fraction=1.0), Told())
    tokenizer = load_tokenizer(str(world / "student"))
    stops = stop_token_ids(tokenizer)
    for rollouts in recorder.rollout_batches:
        assert rollouts.is_off_policy
        for row, trajectory in enumerate(rollouts.trajectories):
            ids = rollouts.token_ids[row][rollouts.response_mask[row]].tolist()
            assert ids[-1] in stops
            assert decode_response(tokenizer, ids, stops) == f"an {trajectory.prompt.key}"
            assert trajectory.reward == 1.0  # the reward is the task's own
    assert "off_policy/teacher_kl" in recorder.logged[0]
    assert "off_policy/reward" in recorder.logged[0]
    assert "train/teacher_kl" not in recorder.logged[0]


def test_teacher_responses_come_from_each_prompts_own_teacher(world: Path, tmp_path: Path) -> None:
    """Greedy enough to compare: the teacher's sampling log-probs equal its scores of the same tokens."""
    recorder = rollout_batches(world, tmp_path, OffPolicyResponses(TeacherResponses(), fraction=1.0), Letters())
    for rollouts in recorder.rollout_batches:
        mask = rollouts.response_mask
        assert mask.any(dim=1).all()
        torch.testing.assert_close(rollouts.rollout_logprobs[mask], rollouts.teacher_logprobs[mask], atol=1e-4, rtol=0)
        assert len(set(rollouts.teacher_ids.tolist())) == 2


def test_adapters_generate_as_their_merged_models_do(double_world: Path, tmp_path: Path) -> None:
    base, found = double_world / "student", []
    for seed, name in enumerate(("code", "math")):
        save_adapter(base, tmp_path / name, seed + 1, Lora(rank=2))
        adapted = build_student(StudentConfig(str(tmp_path / name), dtype="float64"))
        export_student(adapted, load_tokenizer(str(base)), tmp_path / f"{name}_merged")
    for kind in ("", "_merged"):
        of = dict.fromkeys(("code", "math"), AdapterTeacher if not kind else LocalTeacher)
        paths = {name: str(tmp_path / f"{name}{kind}") for name in of}
        teachers: dict[str, Teacher] = {name: make(paths[name], dtype="float64") for name, make in of.items()}
        recorder, module = Recorder(), make_module(double_world, None, "float64", teachers, lora=Lora(rank=2))
        module.objective = DistributionMatching()
        data = make_data(off_policy_responses=OffPolicyResponses(TeacherResponses(), fraction=1.0))
        make_trainer(tmp_path, recorder, max_steps=2).fit(module, data)
        found.append(recorder)
        assert {name for name, p in module.named_parameters() if p.requires_grad and "lora_" not in name} == set()
        assert any(p.requires_grad for p in module.parameters())
    for ours, theirs in zip(found[0].rollout_batches, found[1].rollout_batches, strict=True):
        assert torch.equal(ours.token_ids, theirs.token_ids)
        torch.testing.assert_close(ours.rollout_logprobs, theirs.rollout_logprobs, atol=1e-9, rtol=0)
        torch.testing.assert_close(ours.rollout_logprobs, ours.teacher_logprobs, atol=1e-6, rtol=0)


def test_teachers_in_turn_generate_the_same(world: Path, tmp_path: Path) -> None:
    found = []
    for in_turn in (False, True):
        recorder, module = Recorder(), make_module(world, DistributionMatching())
        module.teachers.in_turn = in_turn
        data = make_data(off_policy_responses=OffPolicyResponses(TeacherResponses(), fraction=1.0))
        make_trainer(tmp_path, recorder, max_steps=1).fit(module, data)
        found.append(recorder.rollout_batches[0])
    assert torch.equal(found[0].token_ids, found[1].token_ids)


def test_a_teacher_that_cannot_generate_is_refused_before_anything_is_loaded(world: Path, tmp_path: Path) -> None:
    local = LocalTeacher(str(world / "math"))
    module = make_module(world, DistributionMatching(), teachers={"math": MixtureTeacher({"any": local})})
    data = make_data(off_policy_responses=OffPolicyResponses(TeacherResponses(), fraction=0.5))
    with pytest.raises(ConfigError, match=r"Teacher `math` \(MixtureTeacher\) cannot generate"):
        make_trainer(tmp_path).fit(module, data)
    assert module.student is None


def test_a_fraction_of_the_rollout_batches_is_off_policy_and_the_same_in_every_run(world: Path, tmp_path: Path) -> None:
    given = OffPolicyResponses(TeacherResponses(), fraction=0.5)
    drawn = [given.covers(0, rollouts) for rollouts in range(2_000)]
    assert 0.45 < sum(drawn) / len(drawn) < 0.55
    recorder = rollout_batches(world, tmp_path, given, Letters(), steps=6)
    assert [rollouts.is_off_policy for rollouts in recorder.rollout_batches] == drawn[:6]


def test_a_prompt_without_demonstration_is_an_error_with_its_columns(world: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no demonstration.*TeacherResponses"):
        rollout_batches(world, tmp_path, OffPolicyResponses(DatasetResponses(), fraction=1.0), Letters())


def test_likelihood_on_teacher_samples_is_their_mean_negative_log_prob(double_world: Path, tmp_path: Path) -> None:
    recorder = Recorder()
    module = make_module(double_world, Likelihood(), "float64")
    data = make_data(off_policy_responses=OffPolicyResponses(TeacherResponses(), fraction=1.0))
    make_trainer(tmp_path, recorder, max_steps=1).fit(module, data)
    fresh = make_module(double_world, dtype="float64").configure_student()
    rollouts = recorder.rollout_batches[0]
    logits = fresh(input_ids=rollouts.token_ids, attention_mask=rollouts.attention_mask.long()).logits
    logprobs = torch.log_softmax(logits[:, :-1], -1).gather(-1, rollouts.token_ids[:, 1:, None]).squeeze(-1)
    expected = -logprobs[rollouts.response_mask[:, 1:]].mean()
    assert recorder.logged[0]["train/loss"] == pytest.approx(float(expected.detach()), abs=1e-10)
    expected.backward()
    for name, parameter in fresh.named_parameters():
        torch.testing.assert_close(recorder.gradients[0][f"student.{name}"], parameter.grad, atol=1e-10, rtol=0)


def test_objectives_that_cannot_learn_from_off_policy_responses_say_so(world: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    given = OffPolicyResponses(TeacherResponses(), fraction=0.5)
    with pytest.raises(ValueError, match=r"policy gradient learns from the student's own tokens"):
        trainer.fit(make_module(world, PolicyGradient()), make_data(off_policy_responses=given))
    with pytest.raises(ValueError, match=r"Likelihood learns from off-policy responses only, got a fraction of 0\.5"):
        trainer.fit(make_module(world, Likelihood()), make_data(off_policy_responses=given))
    with pytest.raises(ValueError, match=r"\(0, 1\]"):
        OffPolicyResponses(TeacherResponses(), fraction=0.0)
