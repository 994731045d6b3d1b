from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_opd.teachers.cross_tokenizer.report import cross_tokenizer_report
from tests.teachers.cross_tokenizer.foreign import foreign_teacher, scored_batch


def test_the_report_says_what_was_lost(world: Path, foreign: Path) -> None:
    teacher = foreign_teacher(world, foreign)
    batch = scored_batch(world, teacher)
    report = cross_tokenizer_report(teacher, batch)
    kept = int(batch.aligned_mask.sum()) / int(batch.response_mask.sum())
    assert report.kept_tokens == pytest.approx(kept)
    lost = batch.response_mask & ~batch.aligned_mask
    assert report.dropped_logprob == pytest.approx(
        float(batch.rollout_logprobs[lost].sum() / batch.rollout_logprobs[batch.response_mask].sum()), rel=1e-5
    )
    log_ratio = torch.where(batch.aligned_mask, batch.teacher_logprobs - batch.rollout_logprobs, 0.0)
    assert abs(report.worst[0].log_ratio) == pytest.approx(float(log_ratio.abs().max()))
    assert len(report.worst) == 10
    for token in report.worst:
        assert len(token.student_pieces) == len(token.teacher_pieces) == 1  # strict
    assert 0 < report.dominant_fraction <= 1
    ids = {int(i) for i in batch.token_ids[batch.aligned_mask]}
    assert report.dominant_token in {teacher.translator.student.decode([i]) for i in ids}


def test_the_report_compares_native_spliced_and_spelt_texts(world: Path, foreign: Path) -> None:
    """With one tokenizer the student's pieces are the native ones only where it wrote natively."""
    teacher = foreign_teacher(world, foreign)
    report = cross_tokenizer_report(teacher, scored_batch(world, teacher))
    assert len({report.native, report.spliced, report.per_character}) == 3
    same = foreign_teacher(world, world / "math")
    one = cross_tokenizer_report(same, scored_batch(world, same))
    assert one.native == one.spliced
    assert one.kept_tokens == 1
    assert one.dropped_logprob == 0
