"""Teachers compute what somebody reads, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from typing_extensions import override

from lightning_opd.callbacks import FormatErrorMask, RolloutTable
from lightning_opd.interfaces import Objective, StudentForward
from lightning_opd.modules import OPDModule
from lightning_opd.objectives import DistributionMatching
from lightning_opd.teachers import LocalTeacher
from lightning_opd.types import RolloutBatch, SampledTokens, Signal, TeacherScores
from tests.world import OBJECTIVES, Recorder, largest_difference, make_data, make_module, make_trainer

ALL = frozenset(Signal)


class Asked(LocalTeacher):
    """Remembers what it was asked for."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.signals: list[frozenset[Signal]] = []

    @override
    def score(self, tokens: SampledTokens, signals: frozenset[Signal]) -> TeacherScores:
        self.signals.append(signals)
        return super().score(tokens, signals)


class Silent(Recorder):
    """Reads no scores."""

    @property
    @override
    def signals(self) -> frozenset[Signal]:
        return frozenset()


def module_with(world: Path, objective: Objective, kind: type[OPDModule] = OPDModule) -> tuple[OPDModule, Asked]:
    teacher = Asked(str(world / "math"))
    return make_module(world, objective, teachers={"math": teacher}, kind=kind), teacher


def tokens() -> SampledTokens:
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(0, 280, (n,), generator=generator).tolist() for n in (9, 4, 7)]
    masks = [[False, False, *[True] * (len(row) - 2)] for row in ids]
    return SampledTokens.from_sequences(ids, masks, 0, torch.float32, torch.device("cpu"))


@pytest.mark.parametrize("signal", sorted(ALL, key=str), ids=str)
def test_a_signal_alone_is_as_it_is_beside_the_others_and_costs_one_head(signal: Signal, world: Path) -> None:
    teacher, batch = LocalTeacher(str(world / "math"), top_k=5), tokens()
    teacher.setup(torch.device("cpu"))
    teacher.score(batch, frozenset())  # finds out once whether the model needs a mask
    states = FlopCounterMode(display=False)
    with states:
        teacher.score(batch, frozenset())
    counter = FlopCounterMode(display=False)
    with counter:
        alone = teacher.score(batch, frozenset({signal}))
    head, mask = teacher.output_head(), batch.response_mask
    assert head is not None
    assert head.weight is not None
    one_head = 2 * int(mask.sum()) * head.vocab_size * head.weight.shape[1]
    expected = 0 if signal is Signal.HIDDEN_STATES else one_head
    assert counter.get_total_flops() - states.get_total_flops() == expected
    together = teacher.score(batch, ALL)
    for name in ("logprobs", "hidden_states", "top_ids", "top_logprobs"):
        own, other = getattr(alone, name), getattr(together, name)
        if name == signal.value == "hidden_states":
            assert torch.equal(own.index, other.index)
            assert torch.equal(own.values[0], other.values[0])
        elif name.replace("_ids", "_logprobs") == signal.value:
            assert torch.equal(own[mask], other[mask]), name
        elif name == "logprobs":
            assert bool(own[mask].isnan().all())
            assert bool((own[~mask] == 0).all())
        else:
            assert own is None, name


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: type(o).__name__)
def test_validation_asks_for_log_probs_alone(objective: Objective, world: Path, tmp_path: Path) -> None:
    module, teacher = module_with(world, objective)
    [values] = make_trainer(tmp_path, limit_val_batches=1).validate(module, make_data(), verbose=False)
    assert set(teacher.signals) == {frozenset({Signal.LOGPROBS})}
    assert 0 < values["val/teacher_kl"] < 100


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: type(o).__name__)
def test_training_asks_for_what_the_objective_or_a_callback_reads(
    objective: Objective, world: Path, tmp_path: Path
) -> None:
    module, teacher = module_with(world, objective)
    table = RolloutTable(every_n_batches=2, console=False)
    recorder = Silent()
    make_trainer(tmp_path, recorder, table, FormatErrorMask(), max_steps=3).fit(module, make_data())
    with_table = objective.signals | {Signal.LOGPROBS}
    assert teacher.signals == [with_table, objective.signals, with_table]
    are_read = [Signal.LOGPROBS in signals for signals in teacher.signals]
    for batch, is_read in zip(recorder.rollout_batches, are_read, strict=True):
        assert bool(batch.teacher_logprobs[batch.response_mask].isfinite().all()) == is_read


def test_a_callback_or_a_module_of_ones_own_gets_log_probs_unless_it_says_that_it_reads_none(
    world: Path, tmp_path: Path
) -> None:
    class Own(OPDModule):
        """Reads scores in a hook."""

        @override
        def compute_advantages(self, batch: RolloutBatch, student: StudentForward) -> torch.Tensor:
            return batch.teacher_logprobs

    for kind, callback, more in ((OPDModule, Silent(), False), (OPDModule, Recorder(), True), (Own, Silent(), True)):
        module, teacher = module_with(world, DistributionMatching(), kind)
        make_trainer(tmp_path, callback, max_steps=1).fit(module, make_data())
        assert (Signal.LOGPROBS in teacher.signals[0]) == more


def test_a_reader_of_log_probs_does_not_change_the_gradient(world: Path, tmp_path: Path) -> None:
    runs = (Silent(), Recorder())
    for recorder in runs:
        make_trainer(tmp_path, recorder, max_steps=2).fit(make_module(world, DistributionMatching()), make_data())
    assert largest_difference(runs[0].gradients[1], runs[1].gradients[1]) == 0.0
