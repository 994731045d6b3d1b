from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_opd import functional
from lightning_opd.functional.advantages import AdvantageEstimator
from lightning_opd.functional.credit import (
    Credit,
    ExactMatchCredit,
    PrefixCredit,
    SequenceCredit,
    SpanCredit,
)
from lightning_opd.functional.divergences import ReverseKL
from lightning_opd.functional.logprobs import token_logprobs
from lightning_opd.functional.top_k import TopK
from lightning_opd.interfaces import Objective, OPDCallback, Teacher
from lightning_opd.models import Lora, load_causal_lm, load_tokenizer
from lightning_opd.objectives import DistributionMatching, PolicyGradient
from lightning_opd.teachers import CrossTokenizerTeacher, LocalTeacher
from lightning_opd.teachers.cross_tokenizer.report import score_views
from lightning_opd.teachers.cross_tokenizer.views import teacher_batch, views_of
from lightning_opd.tokenization.chat import render_prompt
from lightning_opd.types import RolloutBatch, SampledTokens, Signal, TeacherScores
from tests.implementations import implementations
from tests.teachers.cross_tokenizer.foreign import foreign_teacher, scored_batch
from tests.teachers.cross_tokenizer.training import train
from tests.tiny import save_model
from tests.world import Letters, Recorder, largest_difference, make_data, make_module, make_trainer

CREDITS: tuple[Credit, ...] = (
    ExactMatchCredit(),
    SpanCredit(),
    SpanCredit("equal"),
    SpanCredit("proportional"),
    PrefixCredit(),
    SequenceCredit(),
)
TOKEN_CREDITS = CREDITS[:-1]
ESTIMATORS = [parameter.values[0] for parameter in implementations(AdvantageEstimator, functional)]
IDENTITY_CASES = [
    (DistributionMatching(), ExactMatchCredit()),
    *[pytest.param(PolicyGradient(e), ExactMatchCredit(), marks=pytest.mark.slow) for e in ESTIMATORS],
    *[pytest.param(PolicyGradient(), credit, marks=pytest.mark.slow) for credit in TOKEN_CREDITS[1:-1]],
    (PolicyGradient(), TOKEN_CREDITS[-1]),
]
TOP_K = DistributionMatching(TopK(ReverseKL(), 8), teacher_signal="top_k")
every_credit = pytest.mark.parametrize("credit", CREDITS, ids=str)


@pytest.mark.parametrize(("objective", "credit"), IDENTITY_CASES, ids=str)
def test_with_one_tokenizer_training_is_equal_to_the_last_bit(
    objective: Objective, credit: Credit, world: Path, tmp_path: Path
) -> None:
    plain = train(world, tmp_path, {name: LocalTeacher(str(world / name)) for name in ("math", "code")}, objective)
    same = {name: CrossTokenizerTeacher(str(world / name), credit) for name in ("math", "code")}
    recorder = train(world, tmp_path, dict(same), objective)
    assert not any(teacher.is_cross_tokenizer for teacher in same.values())
    for ours, theirs in zip(plain.rollout_batches, recorder.rollout_batches, strict=True):
        assert torch.equal(ours.teacher_logprobs, theirs.teacher_logprobs)
        assert torch.equal(ours.aligned_mask, theirs.aligned_mask)
    for ours_gradients, theirs_gradients in zip(plain.gradients, recorder.gradients, strict=True):
        assert largest_difference(ours_gradients, theirs_gradients) == 0
        assert any(bool(gradient.any()) for gradient in ours_gradients.values())
    shared = plain.logged[-1].keys()
    assert {k: v for k, v in plain.logged[-1].items() if "time" not in k} == {
        k: recorder.logged[-1][k] for k in shared if "time" not in k
    }
    assert recorder.logged[-1]["train/kept_tokens/math"] == 1
    assert recorder.logged[-1]["train/dropped_logprob/math"] == 0


@pytest.mark.parametrize("has_end", [True, False])
def test_the_sequence_credit_is_scored_in_the_teachers_native_tokens(has_end: bool, world: Path, foreign: Path) -> None:
    teacher = foreign_teacher(world, foreign, SequenceCredit())
    batch = scored_batch(world, teacher, has_end=has_end)
    own, model = load_tokenizer(str(foreign)), load_causal_lm(str(foreign))
    assert torch.equal(batch.aligned_mask, batch.response_mask)
    for row, trajectory in enumerate(batch.trajectories):
        head, reply = render_prompt(own, trajectory.prompt.messages), trajectory.text + "<|im_end|>" * has_end
        ids = torch.tensor([[*head, *own.encode(reply)]])
        native = float(token_logprobs(model(ids).logits, ids).detach()[0, len(head) :].sum())
        mask = batch.response_mask[row]
        log_ratio = (batch.teacher_logprobs - batch.rollout_logprobs)[row][mask]
        expected = native - float(batch.rollout_logprobs[row].sum())
        assert log_ratio.tolist() == pytest.approx([expected] * int(mask.sum()), abs=1e-3)


def test_exact_match_scores_are_log_probs_of_single_tokens(world: Path, foreign: Path) -> None:
    teacher = foreign_teacher(world, foreign)
    batch = scored_batch(world, teacher)
    views = views_of(batch, teacher.translator)
    for row, (view, score) in enumerate(zip(views, score_views(teacher, batch, views), strict=True)):
        expected = {student: float(score[other]) for student, other in view.alignment.strict}
        kept = batch.aligned_mask[row, view.columns].nonzero().flatten().tolist()
        assert kept == list(expected)
        assert batch.teacher_logprobs[row, view.columns[kept]].tolist() == list(expected.values())
    assert not torch.equal(batch.aligned_mask, batch.response_mask)


@pytest.mark.parametrize(
    "credit", [*[pytest.param(c, marks=pytest.mark.slow) for c in CREDITS[:-2]], *CREDITS[-2:]], ids=str
)
def test_a_foreign_teacher_trains_beside_a_native_one(
    credit: Credit, world: Path, foreign: Path, tmp_path: Path
) -> None:
    teachers = {"code": LocalTeacher(str(world / "code")), "math": CrossTokenizerTeacher(str(foreign), credit)}
    recorder = train(world, tmp_path, teachers)
    rollouts = recorder.rollout_batches[0]
    own = (rollouts.teacher_ids == 0)[:, None] & rollouts.response_mask
    assert torch.equal(rollouts.aligned_mask & own, own)
    assert torch.isfinite(rollouts.teacher_logprobs).all()
    assert all(torch.isfinite(g).all() for step in recorder.gradients for g in step.values())
    logged = recorder.logged[0]
    assert 0 < logged["train/kept_tokens/math"] <= 1
    assert 0 <= logged["train/dropped_logprob/math"] < 1
    assert "train/kept_tokens/code" not in logged
    if isinstance(credit, ExactMatchCredit):
        assert logged["train/kept_tokens/math"] < 1


@pytest.mark.parametrize("settings", [{"accumulate_grad_batches": 4}, {"accumulate_grad_batches": 2}], ids=str)
def test_gradients_do_not_depend_on_the_micro_batches(
    settings: dict[str, Any], world: Path, foreign: Path, tmp_path: Path
) -> None:
    teachers = {"math": CrossTokenizerTeacher(str(foreign), SpanCredit())}
    whole = train(world, tmp_path, dict(teachers), max_steps=1)
    parts = train(world, tmp_path, {"math": CrossTokenizerTeacher(str(foreign), SpanCredit())}, max_steps=1, **settings)
    assert largest_difference(whole.gradients[0], parts.gradients[0]) < 1e-5
    for name, value in whole.logged[-1].items():
        if "time" not in name and "update_padding" not in name:
            assert parts.logged[-1][name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


def test_tokens_without_a_score_count_in_the_denominator(world: Path, foreign: Path, tmp_path: Path) -> None:
    """The loss is a mean over all response tokens; the aligned mask only chooses those that have a term."""
    teacher = CrossTokenizerTeacher(str(foreign), ExactMatchCredit())
    recorder = train(world, tmp_path, {"math": teacher}, max_steps=1)
    batch, student = recorder.rollout_batches[0], load_causal_lm(str(world / "student"))
    assert 0 < int(batch.aligned_mask.sum()) < int(batch.response_mask.sum())
    logits = student(batch.token_ids, attention_mask=batch.attention_mask.long()).logits
    log_ratio = (batch.teacher_logprobs - batch.rollout_logprobs).clamp(-5, 5)  # the objective's default
    terms = torch.where(batch.aligned_mask, log_ratio * token_logprobs(logits, batch.token_ids), 0.0)
    (-terms.sum() / batch.response_mask.sum()).backward()
    expected = {name: p.grad for name, p in student.named_parameters() if p.grad is not None}
    found = {name.removeprefix("student."): gradient for name, gradient in recorder.gradients[0].items()}
    assert largest_difference(found, expected) < 1e-4 * max(float(g.abs().max()) for g in expected.values())


def test_divergences_without_a_score_count_in_the_denominator(world: Path, foreign: Path, tmp_path: Path) -> None:
    recorder = train(
        world, tmp_path, {"math": CrossTokenizerTeacher(str(foreign), ExactMatchCredit())}, TOP_K, max_steps=1
    )
    batch, logged = recorder.rollout_batches[0], recorder.logged[0]
    num_aligned, num_tokens = int(batch.aligned_mask.sum()), int(batch.response_mask.sum())
    assert 0 < num_aligned < num_tokens
    assert logged["train/loss"] * num_tokens == pytest.approx(logged["train/teacher_kl"] * num_aligned, rel=1e-4)


def test_masks_and_adapters_work_as_with_any_teacher(world: Path, foreign: Path, tmp_path: Path) -> None:
    class SomeRowsOnly(OPDCallback):
        def on_rollout_end(self, trainer: object, module: object, rollouts: RolloutBatch) -> None:
            rollouts.distill_mask = rollouts.distill_mask.clone()
            rollouts.distill_mask[::2] = False

    gradients: list[dict[str, torch.Tensor]] = []
    for callbacks in ((), (SomeRowsOnly(),)):
        recorder = Recorder()
        module = make_module(world, teachers={"math": CrossTokenizerTeacher(str(foreign))}, lora=Lora(rank=4))
        trainer = make_trainer(tmp_path, *callbacks, recorder, max_steps=1)
        trainer.fit(module, make_data(Letters(teachers=["math"])))
        gradients.append(recorder.gradients[0])
    assert all("lora" in name for name in gradients[0])
    assert largest_difference(*gradients) > 0
    assert any(bool(g.any()) for g in gradients[1].values())


def test_likeliest_tokens_come_back_where_both_sides_tokenise_alike(world: Path, foreign: Path) -> None:
    teacher = foreign_teacher(world, foreign)
    batch = scored_batch(world, teacher)
    scores = teacher.score(batch, frozenset({Signal.TOP_LOGPROBS}))
    assert scores.top_ids is not None
    assert scores.top_logprobs is not None
    ours, theirs = teacher.translator.student_spelling, teacher.translator.teacher_spelling
    views = views_of(batch, teacher.translator)
    own = teacher.scorer.score(teacher_batch(views, batch, teacher.translator), frozenset({Signal.TOP_LOGPROBS}))
    assert own.top_ids is not None
    assert own.top_logprobs is not None
    student_tokens = {ours.token_bytes(i) for i in range(len(teacher.translator.student))}
    num_shared = num_missing = 0
    for row, view in enumerate(views):
        reply = [i for i, counts in enumerate(view.response_mask) if counts]
        for i, j in view.alignment.strict:
            ours_at = row, int(view.columns[i])
            native = row, reply[j]
            for k, other in enumerate(own.top_ids[native].tolist()):
                if scores.top_logprobs[ours_at][k] > -torch.inf:
                    token_id = int(scores.top_ids[ours_at][k])
                    assert ours.token_bytes(token_id) == theirs.token_bytes(other)
                    assert scores.top_logprobs[ours_at][k] == own.top_logprobs[native][k]
                    num_shared += 1
                else:
                    assert other in theirs.control_ids or theirs.token_bytes(other) not in student_tokens
                    num_missing += 1
    assert min(num_shared, num_missing) > 50


def test_shared_tokens_are_matched_beside_a_native_teacher(world: Path, foreign: Path, tmp_path: Path) -> None:
    teachers: dict[str, Teacher] = {"code": LocalTeacher(str(world / "code"))}
    teachers["math"] = CrossTokenizerTeacher(str(foreign), ExactMatchCredit())
    recorder = train(world, tmp_path, teachers, TOP_K)
    assert 0 < recorder.logged[0]["train/kept_tokens/math"] < 1
    assert recorder.logged[0]["train/teacher_kl/math"] > 0
    assert all(torch.isfinite(g).all() for step in recorder.gradients for g in step.values())


def test_prefixes_carry_whole_distributions_over(world: Path, foreign: Path, tmp_path: Path) -> None:
    teacher = foreign_teacher(world, foreign, PrefixCredit())
    batch = scored_batch(world, teacher)
    scores = teacher.score(batch, frozenset({Signal.TOP_LOGPROBS}))
    assert scores.top_ids is not None
    assert scores.top_logprobs is not None
    assert torch.equal(scores.aligned_mask, batch.response_mask)
    assert (scores.top_logprobs[batch.response_mask].exp().sum(dim=-1) <= 1 + 1e-5).all()
    own = (scores.top_ids == batch.token_ids[..., None]) & scores.top_logprobs.isfinite()
    assert own.any(dim=-1)[batch.response_mask].float().mean() > 0.5
    assert torch.allclose(scores.top_logprobs[own], scores.logprobs[..., None].expand_as(own)[own], atol=1e-4)
    teachers = {"code": LocalTeacher(str(world / "code")), "math": CrossTokenizerTeacher(str(foreign), PrefixCredit())}
    recorder = train(world, tmp_path, dict(teachers), TOP_K)
    assert recorder.logged[0]["train/kept_tokens/math"] == 1
    assert recorder.logged[0]["train/teacher_kl/math"] > 0
    assert all(torch.isfinite(g).all() for step in recorder.gradients for g in step.values())


def test_a_prefix_needs_distributions(world: Path, foreign: Path) -> None:
    class Served(Teacher):
        """Answers log-probs only, as a server does."""

        def __init__(self) -> None:
            self.model = LocalTeacher(str(foreign))

        def setup(self, device: torch.device, mesh: object = None) -> None:
            self.model.setup(device)

        def score(self, tokens: SampledTokens, signals: frozenset[Signal]) -> TeacherScores:
            return self.model.score(tokens, signals)

    teacher = CrossTokenizerTeacher(str(foreign), PrefixCredit(), scorer=Served())
    with pytest.raises(ValueError, match="takes whole distributions"):
        teacher.set_student_tokenizer(load_tokenizer(str(world / "student")))


def test_tokens_that_the_teachers_model_does_not_know_are_not_compared(world: Path, tmp_path: Path) -> None:
    """A tokenizer with more tokens than the model has rows."""
    own = load_tokenizer(str(world / "math"))
    own.add_tokens(["question"])
    folder = save_model(tmp_path, tokenizer=own, vocab_size=len(own) - 1)
    teacher = foreign_teacher(world, folder, SpanCredit())
    batch = scored_batch(world, teacher, ("ab question cd", "ab cd"))
    token_ids = batch.token_ids[0, batch.aligned_mask[0]]
    assert load_tokenizer(str(world / "student")).decode(token_ids) == "ab "
    assert torch.equal(batch.aligned_mask[1], batch.response_mask[1])


def test_a_prefix_needs_attention_that_takes_any_mask(world: Path, foreign: Path) -> None:
    teacher = foreign_teacher(world, foreign, PrefixCredit())
    assert isinstance(teacher.scorer, LocalTeacher)
    teacher.scorer.attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match=r"cannot mask.*`attn_implementation: sdpa`"):
        teacher.scorer.check_reads_trees()


def test_prefixes_end_at_a_token_that_the_teachers_model_does_not_know(world: Path, tmp_path: Path) -> None:
    own = load_tokenizer(str(world / "math"))
    own.add_tokens(["question"])
    folder = save_model(tmp_path, tokenizer=own, vocab_size=len(own) - 1)
    teacher = foreign_teacher(world, folder, PrefixCredit())
    batch = scored_batch(world, teacher, ("ab question cd", "ab cd"))
    assert torch.isfinite(batch.teacher_logprobs).all()
    assert not batch.aligned_mask[0, batch.response_mask[0].nonzero()[-1]], "the end follows an unknown token"
    assert batch.aligned_mask[0].any()
    assert torch.equal(batch.aligned_mask[1], batch.response_mask[1])


@pytest.mark.parametrize("credit", [ExactMatchCredit(), PrefixCredit()], ids=str)
def test_a_rank_without_rows_has_nothing_to_score(credit: Credit, world: Path, foreign: Path) -> None:
    teacher = foreign_teacher(world, foreign, credit)
    batch = scored_batch(world, teacher).select(torch.tensor([], dtype=torch.long))
    scores = teacher.score(batch, frozenset({Signal.LOGPROBS}))
    assert scores.logprobs.shape == batch.token_ids.shape
    assert all(int(count) == 0 for _, count in scores.metrics.values())
