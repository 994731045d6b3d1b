from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_opd.functional.credit import Credit, ExactMatchCredit, PrefixCredit, SequenceCredit, SpanCredit
from lightning_opd.models import load_causal_lm, load_tokenizer
from lightning_opd.teachers import CrossTokenizerTeacher, LocalTeacher
from lightning_opd.types import Signal, TeacherScores
from tests.teachers.cross_tokenizer.foreign import CPU, scored_batch

SIGNALS = frozenset({Signal.LOGPROBS, Signal.TOP_LOGPROBS})
CREDITS = (ExactMatchCredit(), SpanCredit(), SequenceCredit(), PrefixCredit())


def scores_at(world: Path, folder: Path, credit: Credit, own: float | None, sampling: float) -> TeacherScores:
    """Score one batch with a teacher that has its own temperature, or that of sampling."""
    teacher = CrossTokenizerTeacher(str(folder), credit, scorer=LocalTeacher(str(folder), temperature=own))
    teacher.set_student_tokenizer(load_tokenizer(str(world / "student")))
    teacher.setup(CPU)
    torch.manual_seed(0)
    batch = scored_batch(world, teacher)
    batch.temperature = sampling
    return teacher.score(batch, SIGNALS)


def divided_by(folder: Path, temperature: float, where: Path) -> Path:
    """Save the model of a folder with its logits divided, by way of the last norm's scale."""
    model = load_causal_lm(str(folder))
    with torch.no_grad():
        model.get_decoder().norm.weight.div_(temperature)
    model.save_pretrained(where)
    load_tokenizer(str(folder)).save_pretrained(where)
    return where


@pytest.mark.parametrize(("own", "sampling"), [(None, 3.0), pytest.param(3.0, 1.0, marks=pytest.mark.slow), (3.0, 0.5)])
@pytest.mark.parametrize("credit", CREDITS, ids=str)
def test_a_temperature_divides_the_teachers_logits(
    credit: Credit, own: float | None, sampling: float, world: Path, foreign: Path, tmp_path: Path
) -> None:
    """Log-probs and likeliest tokens are those of a teacher whose logits are divided, at temperature 1."""
    scores = scores_at(world, foreign, credit, own, sampling)
    expected = scores_at(world, divided_by(foreign, 3.0, tmp_path), credit, None, 1.0)
    plain = scores_at(world, foreign, credit, None, 1.0)
    assert torch.equal(scores.aligned_mask, expected.aligned_mask)
    torch.testing.assert_close(scores.logprobs, expected.logprobs, rtol=1e-4, atol=2e-4)
    assert float((scores.logprobs - plain.logprobs).abs().max()) > 1
    assert scores.top_logprobs is not None
    assert expected.top_logprobs is not None
    assert plain.top_logprobs is not None
    is_known = expected.top_logprobs > -torch.inf
    assert torch.equal(scores.top_logprobs > -torch.inf, is_known)
    torch.testing.assert_close(scores.top_logprobs[is_known], expected.top_logprobs[is_known], rtol=1e-4, atol=2e-4)
    is_both = is_known & (plain.top_logprobs > -torch.inf)
    assert float((scores.top_logprobs - plain.top_logprobs)[is_both].abs().max()) > 1
