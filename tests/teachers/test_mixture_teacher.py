from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_opd.errors import ConfigError
from lightning_opd.functional.advantages import KLToGo
from lightning_opd.functional.divergences import ForwardKL, ReverseKL
from lightning_opd.functional.top_k import TopK
from lightning_opd.interfaces import Objective, Teacher
from lightning_opd.models import Lora
from lightning_opd.objectives import DistributionMatching, PolicyGradient
from lightning_opd.teachers import AdapterTeacher, LocalTeacher, MixtureTeacher
from lightning_opd.types import RolloutBatch, SampledTokens, Signal, TeacherScores
from tests.replay import chosen, distributions
from tests.tiny import save_adapter
from tests.world import Letters, Recorder, largest_difference, make_data, make_module, make_trainer

WEIGHTS = {"code": 0.3, "math": 0.7}


def mixture(world: Path, **settings: Any) -> MixtureTeacher:
    parts = {name: LocalTeacher(str(world / name), dtype="float64") for name in WEIGHTS}
    return MixtureTeacher(parts, **{"weights": WEIGHTS, **settings})


def fit(world: Path, folder: Path, objective: Objective, teacher: Teacher | None = None, **settings: Any) -> Recorder:
    """Train one step in float64, `math` being the mixture."""
    recorder = Recorder()
    module = make_module(world, objective, "float64", {"math": teacher or mixture(world)}, **settings)
    make_trainer(folder, recorder, max_steps=1).fit(module, make_data(Letters(teachers=("math",))))
    return recorder


def expected(world: Path, batch: RolloutBatch) -> Tensor:
    """Return the mixture's log-probs at every place, from plain forwards."""
    parts = [distributions(world / name, batch).exp() * weight for name, weight in WEIGHTS.items()]
    return torch.stack(parts).sum(dim=0).log()


@pytest.mark.parametrize(
    "objective",
    [
        PolicyGradient(),
        PolicyGradient(KLToGo()),
        DistributionMatching(),
        DistributionMatching(ForwardKL()),
        DistributionMatching(TopK(ReverseKL(), 8, support="teacher"), teacher_signal="top_k"),
    ],
    ids=["sampled", "kl_to_go", "reverse", "forward", "top_k"],
)
def test_the_student_learns_from_the_sum_of_the_distributions(
    double_world: Path, tmp_path: Path, objective: Objective
) -> None:
    recorder = fit(double_world, tmp_path, objective)
    batch = recorder.rollout_batches[0]
    right, mask = expected(double_world, batch), batch.response_mask
    torch.testing.assert_close(batch.teacher_logprobs[mask], chosen(right, batch)[mask], atol=1e-9, rtol=0)
    scores = batch.teacher_scores
    assert scores is not None
    if scores.hidden_states is not None:
        head = scores.heads[batch.teacher_names.index("math")]
        assert head is not None
        here = mask & (batch.teacher_ids == batch.teacher_names.index("math"))[:, None]
        states = scores.hidden_states.at(batch.teacher_names.index("math"), *here.nonzero(as_tuple=True))
        logprobs = (head.logits(states) / batch.temperature).log_softmax(-1)
        torch.testing.assert_close(logprobs, right[here][:, : logprobs.shape[-1]], atol=1e-9, rtol=0)
    if scores.top_logprobs is not None:
        best = right[mask].topk(8)
        torch.testing.assert_close(scores.top_logprobs[mask][:, :8], best.values, atol=1e-9, rtol=0)
    assert max(float(g.abs().max()) for g in recorder.gradients[0].values()) > 1e-6


@pytest.mark.parametrize("objective", [PolicyGradient(), DistributionMatching()], ids=["sampled", "reverse"])
def test_a_mixture_of_one_is_that_one(double_world: Path, tmp_path: Path, objective: Objective) -> None:
    alone = LocalTeacher(str(double_world / "math"), dtype="float64")
    one = MixtureTeacher({"any": LocalTeacher(str(double_world / "math"), dtype="float64")})
    first, second = (fit(double_world, tmp_path, objective, teacher) for teacher in (alone, one))
    assert largest_difference(first.gradients[0], second.gradients[0]) < 1e-12


def test_parts_keep_their_temperatures(double_world: Path, tmp_path: Path) -> None:
    parts = {
        "cold": LocalTeacher(str(double_world / "math"), temperature=0.5, dtype="float64"),
        "warm": LocalTeacher(str(double_world / "math"), temperature=2.0, dtype="float64"),
    }
    recorder = fit(double_world, tmp_path, DistributionMatching(), MixtureTeacher(parts))
    batch = recorder.rollout_batches[0]
    both = [distributions(double_world / "math", batch, temperature).exp() for temperature in (0.5, 2.0)]
    right, mask = (torch.stack(both).mean(dim=0)).log(), batch.response_mask
    torch.testing.assert_close(batch.teacher_logprobs[mask], chosen(right, batch)[mask], atol=1e-9, rtol=0)
    assert batch.teacher_scores is not None
    assert batch.teacher_scores.hidden_states is not None
    index = batch.teacher_names.index("math")
    here = mask & (batch.teacher_ids == index)[:, None]
    states = batch.teacher_scores.hidden_states.at(index, *here.nonzero(as_tuple=True)).log_softmax(-1)
    torch.testing.assert_close(states, right[here][:, : states.shape[-1]], atol=1e-9, rtol=0)


def test_adapters_of_a_mixture_share_the_students_base(double_world: Path, tmp_path: Path) -> None:
    adapters = [save_adapter(double_world / "student", tmp_path / str(i), i, Lora(rank=2)) for i in range(2)]
    parts = {path.name: AdapterTeacher(str(path), dtype="float64") for path in adapters}
    both = fit(double_world, tmp_path, PolicyGradient(), MixtureTeacher(parts), lora=Lora(rank=2))
    batch = both.rollout_batches[0]
    found = [
        fit(double_world, tmp_path, PolicyGradient(), AdapterTeacher(str(path), dtype="float64"), lora=Lora(rank=2))
        for path in adapters
    ]
    logprobs = torch.stack([recorder.rollout_batches[0].teacher_logprobs for recorder in found])
    mask = batch.response_mask
    right = (logprobs.exp().mean(dim=0)).log()
    torch.testing.assert_close(batch.teacher_logprobs[mask], right[mask], atol=1e-9, rtol=0)
    assert not torch.equal(*logprobs)


class OnlyTokens(LocalTeacher):
    """Gives no output head."""

    def output_head(self) -> None:
        return None


def test_whole_distributions_need_parts_that_have_them(double_world: Path, tmp_path: Path) -> None:
    parts = {"a": OnlyTokens(str(double_world / "math"), dtype="float64")}
    fit(double_world, tmp_path, PolicyGradient(), MixtureTeacher(parts))
    with pytest.raises(ConfigError, match="Part `a` of a MixtureTeacher gives log-probs of single tokens only"):
        fit(double_world, tmp_path, DistributionMatching(), MixtureTeacher(parts))


@dataclass(frozen=True)
class Constant(Teacher):
    """Scores without reading tokens."""

    def setup(self, device: torch.device, mesh: object = None) -> None:
        pass

    def score(self, tokens: SampledTokens, signals: frozenset[Signal]) -> TeacherScores:
        return TeacherScores(torch.zeros_like(tokens.rollout_logprobs), tokens.response_mask)


@pytest.mark.parametrize(
    ("settings", "expected_message"),
    [
        ({"teachers": {}}, "is empty"),
        ({"weights": {"a": 1.0}}, r"names \['a'\], its teachers are \['a', 'b'\]"),
        ({"weights": {"a": 0.5, "b": 0.6}}, "must be positive and add up to 1"),
        ({"weights": {"a": -1.0, "b": 2.0}}, "must be positive and add up to 1"),
        ({"weights": {"a": float("nan"), "b": 1.0}}, "must be positive and add up to 1"),
        ({"top_k": 0}, "`top_k` of a MixtureTeacher must be at least 1"),
        ({"teachers": {"a": Constant()}}, "Part `a` of a MixtureTeacher is a Constant"),
    ],
    ids=str,
)
def test_settings_without_a_meaning_are_refused(settings: dict[str, Any], expected_message: str) -> None:
    with pytest.raises(ConfigError, match=expected_message):
        MixtureTeacher(**{"teachers": {"a": "models/a", "b": "models/b"}, **settings})


def test_parts_with_other_tokenizers_are_refused(world: Path, foreign: Path) -> None:
    with pytest.raises(ConfigError, match="Parts `a` and `b` of a MixtureTeacher have different tokenizers"):
        MixtureTeacher({"a": str(world / "math"), "b": str(foreign)}).tokenizer()


def test_equal_mixtures_share_one_model(world: Path) -> None:
    assert mixture(world).identity == mixture(world).identity
    assert mixture(world).identity != mixture(world, weights={"code": 0.5, "math": 0.5}).identity
