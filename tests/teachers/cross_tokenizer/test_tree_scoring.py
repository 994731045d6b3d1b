from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_opd.functional.credit import AlignedCredit, Credit, ExactMatchCredit, PrefixCredit, SequenceCredit
from lightning_opd.functional.logprobs import token_logprobs
from lightning_opd.models import LanguageModel, load_causal_lm, load_tokenizer
from lightning_opd.teachers import CrossTokenizerTeacher, LocalTeacher
from lightning_opd.teachers.cross_tokenizer.prefix_tree import PrefixTree, pack
from lightning_opd.types import Signal
from tests.teachers.cross_tokenizer.foreign import CPU, scored_batch

BRANCHES = ((11, 12, 13, 14), (11, 12, 21), (31, 32, 33), (31, 41), (51,))


def test_a_tree_with_branches_is_read_as_plain_sequences_one_by_one(tiny_model_dir: Path) -> None:
    """Reading it as one causal sequence, or with the positions of one, gives other states."""
    tree, prompt = PrefixTree(), [5, 6, 7]
    ends = [tree.descendant(0, branch) for branch in BRANCHES]
    assert len(tree.token_ids) == 1 + 10
    assert max(tree.parents.count(node) for node in range(len(tree.parents))) == 3
    model = LanguageModel(load_causal_lm(str(tiny_model_dir), dtype="float64").eval(), 288)
    packed = pack([prompt], [tree], CPU)
    states = model.tree_hidden_states(*packed)[0]
    for branch, end in zip(BRANCHES, ends, strict=True):
        ids = torch.tensor([[*prompt, *branch, 0]])
        expected = model.states(ids, torch.ones_like(ids, dtype=torch.bool))[0, -1]
        torch.testing.assert_close(states[len(prompt) - 1 + end], expected, rtol=0, atol=1e-10)
    causal = torch.ones_like(packed.attention_mask[0]).tril()[None]
    linear = torch.arange(packed.token_ids.shape[1])[None]
    for wrong in ((causal, packed.position_ids), (packed.attention_mask, linear)):
        other = model.tree_hidden_states(packed.token_ids, *wrong)[0]
        assert not torch.allclose(other[len(prompt) - 1 + ends[2]], states[len(prompt) - 1 + ends[2]], atol=1e-4)


@pytest.mark.parametrize("credit", [SequenceCredit(), PrefixCredit()], ids=str)
def test_scores_add_up_to_the_text_at_the_teachers_own_temperature(
    credit: AlignedCredit | PrefixCredit, world: Path, foreign: Path
) -> None:
    teacher = teacher_at(2.0, credit, world, foreign)
    batch = scored_batch(world, teacher)
    own, model = load_tokenizer(str(foreign)), load_causal_lm(str(foreign))
    for row, trajectory in enumerate(batch.trajectories):
        prompt = own.apply_chat_template(list(trajectory.prompt.messages), tokenize=False, add_generation_prompt=True)
        head, tail = (own.encode(text) for text in (prompt, trajectory.text + "<|im_end|>"))
        ids = torch.tensor([[*head, *tail]])
        native = float(token_logprobs(model(ids).logits, ids, 2.0).detach()[0, len(head) :].sum())
        mask = batch.response_mask[row]
        assert torch.equal(batch.aligned_mask[row], mask)
        if isinstance(credit, PrefixCredit):
            assert float(batch.teacher_logprobs[row][mask].sum()) == pytest.approx(native, abs=1e-3)
        else:
            log_ratio = (batch.teacher_logprobs - batch.rollout_logprobs)[row][mask]
            expected = native - float(batch.rollout_logprobs[row].sum())
            assert log_ratio.tolist() == pytest.approx([expected] * int(mask.sum()), abs=1e-3)


@pytest.mark.parametrize("credit", [ExactMatchCredit(), PrefixCredit()], ids=str)
def test_the_likeliest_tokens_are_those_at_the_teachers_own_temperature(
    credit: Credit, world: Path, foreign: Path
) -> None:
    """Twice the temperature makes the distribution flatter."""
    cold, warm = (teacher_at(temperature, credit, world, foreign) for temperature in (1.0, 2.0))
    batch, signals = scored_batch(world, cold), frozenset({Signal.TOP_LOGPROBS})
    one, two = cold.score(batch, signals), warm.score(batch, signals)
    assert one.top_logprobs is not None
    assert two.top_logprobs is not None
    mask = batch.response_mask & one.aligned_mask
    assert torch.equal(mask, batch.response_mask & two.aligned_mask)
    likeliest = [
        scores.top_logprobs[mask].max(dim=-1).values for scores in (one, two) if scores.top_logprobs is not None
    ]
    both = torch.isfinite(likeliest[0]) & torch.isfinite(likeliest[1])
    assert int(both.sum()) > 20
    assert float((likeliest[0] - likeliest[1])[both].mean()) > 0.3


def teacher_at(temperature: float, credit: Credit, world: Path, foreign: Path) -> CrossTokenizerTeacher:
    scorer = LocalTeacher(str(foreign), temperature=temperature)
    teacher = CrossTokenizerTeacher(str(foreign), credit, scorer=scorer)
    teacher.set_student_tokenizer(load_tokenizer(str(world / "student")))
    teacher.setup(CPU)
    return teacher
