from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_opd.interfaces import TakesTurns
from lightning_opd.models import HostWeights, LoadSettings, frozen
from lightning_opd.objectives import DistributionMatching
from lightning_opd.teachers import LocalTeacher, TeacherPool
from lightning_opd.types import SampledTokens, Signal, TeacherScores
from tests.teachers.test_teachers import Constant, rollouts
from tests.world import Recorder, largest_difference, make_data, make_module, make_trainer

CPU = torch.device("cpu")
BOTH = frozenset({Signal.LOGPROBS, Signal.HIDDEN_STATES})


class Counted(Constant, TakesTurns):
    """Tells in a list that all have in common when it comes, scores and leaves."""

    def __init__(self, value: float, said: list[str]) -> None:
        super().__init__(value)
        self.said = said

    def score(self, tokens: SampledTokens, signals: frozenset[Signal]) -> TeacherScores:
        self.said.append(f"{self.value:g} scores")
        return super().score(tokens, signals)

    def enter_device(self) -> None:
        self.said.append(f"{self.value:g} enters")

    def leave_device(self) -> None:
        self.said.append(f"{self.value:g} leaves")


def test_each_teacher_comes_once_in_a_rollout_batch_and_leaves_before_the_next_one() -> None:
    said: list[str] = []
    first, second = Counted(1, said), Counted(2, said)
    pool = TeacherPool({"a": first, "b": second, "c": first, "d": Constant(3)}, in_turn=True)
    pool.setup(CPU)
    assert said == ["1 leaves", "2 leaves"]
    for _ in range(2):
        said.clear()
        batch = rollouts([0, 1, 2, 3, 0], pool.names)
        scores = pool.score(batch, BOTH)
        assert said == ["1 enters", "1 scores", "1 scores", "1 leaves", "2 enters", "2 scores", "2 leaves"]
        expected = torch.tensor([1.0, 2.0, 1.0, 3.0, 1.0])[:, None].expand_as(scores.logprobs)
        assert torch.equal(scores.logprobs[batch.response_mask], expected[batch.response_mask])


@pytest.mark.parametrize("signals", [BOTH, frozenset({Signal.LOGPROBS})])
def test_scores_and_heads_are_the_same_in_turn(signals: frozenset[Signal], world: Path) -> None:
    found = []
    for in_turn in (False, True):
        teachers = {
            "code": LocalTeacher(str(world / "code")),
            "math": LocalTeacher(str(world / "math")),
        }
        pool = TeacherPool(teachers, in_turn=in_turn)
        pool.setup(CPU)
        found.append((pool.score(rollouts([0, 1, 1, 0], pool.names), signals), pool.heads()))
    (one, heads), (other, later) = found
    assert torch.equal(one.logprobs, other.logprobs)
    for mine, theirs in zip(heads, later, strict=True):
        assert mine is not None
        assert theirs is not None
        assert mine.weight is not None
        assert theirs.weight is not None
        assert torch.equal(mine.weight, theirs.weight)
    if signals == BOTH:
        assert one.hidden_states is not None
        assert other.hidden_states is not None
        assert torch.equal(one.hidden_states.index, other.hidden_states.index)
        assert all(map(torch.equal, one.hidden_states.values, other.hidden_states.values))


def test_weights_come_back_as_they_left(world: Path) -> None:
    model = frozen(LoadSettings(str(world / "math")).load())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weights = HostWeights(model)
    weights.enter()
    assert (weights.num_moves, weights.is_on_device) == (0, True)
    for _ in range(2):
        weights.leave()
        weights.leave()
        assert not weights.is_on_device
        weights.enter()
        weights.enter()
    assert weights.num_moves == 2
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight  # still tied


def test_a_run_learns_the_same_with_its_teachers_in_turn(world: Path, tmp_path: Path) -> None:
    gradients = []
    for in_turn in (False, True):
        record = Recorder()
        module = make_module(world, DistributionMatching())
        module.teachers.in_turn = in_turn
        make_trainer(tmp_path, record).fit(module, make_data())
        gradients.append(record.gradients)
        for name in ("math", "code"):
            teacher = module.teachers[name]
            assert isinstance(teacher, LocalTeacher)
            turns = teacher._turns
            assert (turns.num_moves if turns else None) == (2 if in_turn else None)  # one for each rollout batch
    for one, other in zip(*gradients, strict=True):
        assert largest_difference(one, other) == 0
