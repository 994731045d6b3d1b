from __future__ import annotations

from pathlib import Path

import pytest

from lightning_opd.functional.credit import SpliceCredit
from lightning_opd.teachers.cross_tokenizer.report import score_views
from lightning_opd.teachers.cross_tokenizer.translation import each_token
from lightning_opd.teachers.cross_tokenizer.views import views_of
from tests.teachers.cross_tokenizer.foreign import foreign_teacher, scored_batch


def test_the_splice_credit_scores_each_token_of_the_student_tokenised_on_its_own(world: Path, foreign: Path) -> None:
    teacher = foreign_teacher(world, foreign, SpliceCredit())
    batch = scored_batch(world, teacher)
    views = views_of(batch, teacher.translator, each_token)
    assert [view.token_ids for view in views] != [view.token_ids for view in views_of(batch, teacher.translator)]
    for view, token_scores in zip(views, score_views(teacher, batch, views), strict=True):
        assert all(len(student) == 1 for student, _ in view.alignment.spans)
        expected = {student[0]: float(token_scores[list(theirs)].sum()) for student, theirs in view.alignment.spans}
        kept = batch.aligned_mask[view.row, view.columns].nonzero().flatten().tolist()
        assert kept == list(expected)
        found = batch.teacher_logprobs[view.row, view.columns[kept]].tolist()
        assert found == pytest.approx(list(expected.values()), rel=1e-5)
