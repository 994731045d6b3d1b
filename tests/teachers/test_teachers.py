from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path

import pytest
import torch

from lightning_opd.functional.logprobs import token_logprobs
from lightning_opd.interfaces import Teacher
from lightning_opd.models import load_causal_lm
from lightning_opd.teachers import LocalTeacher, PrivilegedTeacher, TeacherPool
from lightning_opd.tokenization.compatibility import check_same_vocabulary
from lightning_opd.types import LinearHead, Prompt, RolloutBatch, SampledTokens, Signal, TeacherScores, Trajectory
from tests.tiny import save_model
from tests.world import collate

BOTH = frozenset({Signal.LOGPROBS, Signal.HIDDEN_STATES})
CPU = torch.device("cpu")


def rollouts(teacher_ids: list[int], names: tuple[str, ...], temperature: float = 1.0) -> RolloutBatch:
    """Random tokens of uneven length."""
    generator = torch.Generator().manual_seed(1)
    trajectories = []
    for i in range(len(teacher_ids)):
        num_prompt, num_reply = 2 + i % 3, 1 + (5 * i) % 7
        ids = torch.randint(0, 280, (num_prompt + num_reply,), generator=generator).tolist()
        mask = (False,) * num_prompt + (True,) * num_reply
        prompt = Prompt((), str(i), "", "")
        trajectories.append(Trajectory(prompt, tuple(ids), mask, (0.0,) * len(ids), "", is_truncated=False))
    rows = list(range(len(teacher_ids)))
    return collate(trajectories, rows, teacher_ids, names, temperature, 0, torch.float32, CPU)


class Constant(Teacher):
    """Scores every token with one number and counts what it is asked."""

    def __init__(self, value: float) -> None:
        self.value, self.rows, self.num_setups = value, 0, 0

    def setup(self, device: torch.device, mesh: object = None) -> None:
        self.num_setups += 1

    def score(self, tokens: SampledTokens, signals: frozenset[Signal]) -> TeacherScores:
        self.rows += len(tokens)
        return TeacherScores(torch.full_like(tokens.rollout_logprobs, self.value), tokens.response_mask)


def test_each_prompt_is_scored_by_its_own_teacher_only() -> None:
    teachers = {"b": Constant(-2.0), "a": Constant(-1.0), "idle": Constant(-9.0)}
    pool = TeacherPool(teachers)
    assert pool.names == ("a", "b", "idle")
    batch = rollouts([1, 0, 1, 1], pool.names)
    scores = pool.score(batch, frozenset({Signal.LOGPROBS}))
    assert (teachers["a"].rows, teachers["b"].rows, teachers["idle"].rows) == (1, 3, 0)
    expected = torch.tensor([-2.0, -1.0, -2.0, -2.0])[:, None].expand_as(scores.logprobs)
    assert torch.equal(scores.logprobs[batch.response_mask], expected[batch.response_mask])
    assert torch.equal(scores.aligned_mask, batch.response_mask)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_scores_equal_a_plain_forward_whatever_the_batch_size(temperature: float, world: Path) -> None:
    pool = TeacherPool(
        {name: LocalTeacher(str(world / name), batch_size=size) for name, size in (("math", 2), ("code", 99))}
    )
    pool.setup(CPU)
    batch = rollouts([0, 1, 1, 0, 1, 1], pool.names, temperature)
    scores = pool.score(batch, BOTH)
    for index, name in enumerate(pool.names):
        model = load_causal_lm(str(world / name))
        rows = (batch.teacher_ids == index).nonzero().squeeze(-1)
        ids = batch.token_ids[rows]
        with torch.no_grad():
            logits = model(ids, attention_mask=batch.attention_mask[rows].long()).logits
        mask = batch.response_mask[rows]
        expected = token_logprobs(logits, ids, temperature)
        assert torch.allclose(scores.logprobs[rows][mask], expected[mask], atol=1e-5)
        head, places = pool.heads()[index], mask.nonzero()
        assert head is not None
        assert scores.hidden_states is not None
        again = head.logits(scores.hidden_states.at(index, rows[places[:, 0]], places[:, 1]))
        assert torch.allclose(again, logits[:, :-1][mask[:, 1:]], atol=1e-4)


def test_a_teachers_own_temperature_is_used_instead(world: Path) -> None:
    batch, scores = rollouts([0, 0], ("t",)), []
    for temperature in (2.0, None):
        teacher = LocalTeacher(str(world / "math"), temperature=temperature)
        teacher.setup(CPU)
        scores.append(teacher.score(batch, BOTH).logprobs)
    assert not torch.allclose(scores[0], scores[1])
    teacher = LocalTeacher(str(world / "math"))
    teacher.setup(CPU)
    batch.temperature = 2.0
    assert torch.allclose(teacher.score(batch, BOTH).logprobs, scores[0])


def test_a_teacher_has_the_precision_of_its_checkpoint_and_scores_in_float32(tmp_path: Path) -> None:
    path = str(save_model(tmp_path / "half", dtype=torch.bfloat16))
    batch = rollouts([0, 0], ("t",))
    for dtype, expected in ((None, torch.bfloat16), ("float32", torch.float32)):
        teacher = LocalTeacher(path, dtype=dtype)
        teacher.setup(CPU)
        assert {p.dtype for p in teacher.loaded_model.parameters()} == {expected}
        scores = teacher.score(batch, BOTH).logprobs
        assert scores.dtype == torch.float32
        with torch.no_grad():
            logits = teacher.loaded_model(batch.token_ids, attention_mask=batch.attention_mask.long()).logits
        whole = token_logprobs(logits.float(), batch.token_ids)
        assert torch.allclose(scores[batch.response_mask], whole[batch.response_mask], atol=2e-2)


def test_one_path_under_two_names_is_loaded_once(world: Path) -> None:
    path = str(world / "math")
    pool = TeacherPool({"x": LocalTeacher(path), "y": LocalTeacher(path), "warm": LocalTeacher(path, temperature=2.0)})
    assert list(pool.distinct) == ["warm", "x"]
    shared = Constant(0.0)
    twice = TeacherPool({"x": shared, "y": shared})
    twice.setup(CPU)
    assert shared.num_setups == 1


def test_teachers_are_frozen_and_in_eval_mode(world: Path) -> None:
    teacher = LocalTeacher(str(world / "math"))
    teacher.setup(CPU)
    model = teacher._loaded().model
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    scores = teacher.score(rollouts([0], ("t",)), BOTH)
    assert not scores.logprobs.requires_grad


def test_scores_of_a_low_precision_teacher_are_float32(world: Path) -> None:
    teacher = LocalTeacher(str(world / "math"), dtype="bfloat16")
    teacher.setup(CPU)
    scores = teacher.score(rollouts([0, 0], ("t",)), BOTH)
    assert scores.logprobs.dtype == torch.float32
    assert scores.hidden_states is not None
    assert scores.hidden_states.values[0].dtype == torch.bfloat16


def test_teachers_with_fewer_positions_are_known_before_they_load(world: Path, tmp_path: Path) -> None:
    short = LocalTeacher(str(save_model(tmp_path, max_position_embeddings=99)))
    pool = TeacherPool({"math": LocalTeacher(str(world / "math")), "short": short, "served": Constant(0.0)})
    hinted = TeacherPool({"hinted": PrivilegedTeacher(short, "{content}")})
    assert pool.shorter_than(256) == {"short": 99}
    assert pool.shorter_than(99) == {}
    assert hinted.shorter_than(100) == {"hinted": 99}


def test_tokens_beyond_the_teachers_vocabulary_are_not_compared(tmp_path: Path) -> None:
    folder = save_model(tmp_path, vocab_size=270)
    teacher = LocalTeacher(str(folder))
    teacher.setup(CPU)
    batch = rollouts([0] * 12, ("t",))
    scores = teacher.score(batch, BOTH)
    for row in range(len(batch)):
        unknown = (batch.token_ids[row] >= 270).nonzero().flatten().tolist()
        first = unknown[0] if unknown else batch.token_ids.shape[1]
        expected = batch.response_mask[row] & (torch.arange(batch.token_ids.shape[1]) < first)
        assert torch.equal(scores.aligned_mask[row], expected)
    assert not torch.equal(scores.aligned_mask, batch.response_mask)
    assert torch.isfinite(scores.logprobs).all()


def test_padded_output_rows_get_no_probability(tmp_path: Path) -> None:
    """Rows above the tokenizer's vocabulary are cut before the softmax."""
    folder = save_model(tmp_path, vocab_size=320)
    teacher = LocalTeacher(str(folder))
    teacher.setup(CPU)
    head = teacher.output_head()
    assert isinstance(head, LinearHead)
    assert head.vocab_size == len(teacher.tokenizer())
    batch = rollouts([0], ("t",))
    logits = load_causal_lm(str(folder))(batch.token_ids).logits[..., : head.vocab_size]
    mask = batch.response_mask
    expected = token_logprobs(logits, batch.token_ids)
    assert torch.allclose(teacher.score(batch, BOTH).logprobs[mask], expected[mask], atol=1e-5)


def test_another_vocabulary_or_stop_token_is_refused(tiny_tokenizer_dir: Path) -> None:
    from transformers import AutoTokenizer

    ours, theirs = (AutoTokenizer.from_pretrained(tiny_tokenizer_dir) for _ in range(2))
    check_same_vocabulary(ours, theirs, "math")
    theirs.eos_token = "<|endoftext|>"
    with pytest.raises(ValueError, match="stops with"):
        check_same_vocabulary(ours, theirs, "math")
    ours.add_tokens(["<old>"])
    theirs.add_tokens(["<new>"])
    with pytest.raises(ValueError, match="'<new>': None here"):
        check_same_vocabulary(ours, theirs, "math")


def test_identity_can_be_hashed(world: Path) -> None:
    assert isinstance(LocalTeacher(str(world / "math")).identity, Hashable)
    assert LocalTeacher("a").identity == LocalTeacher("a").identity != LocalTeacher("b").identity
