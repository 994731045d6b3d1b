"""The first rollout batch shows that the engine and the training forward are one model, or the run stops."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_opd.errors import ConfigError
from lightning_opd.interfaces import OnProgress
from lightning_opd.modules import OPDModule
from lightning_opd.objectives import DistributionMatching
from lightning_opd.rollouts import InProcessEngine
from lightning_opd.types import Sample, Sampling
from tests.replay import fit
from tests.world import make_module


class Distorted(InProcessEngine):
    """Claims to be exact, and changes what it reports."""

    def __init__(self, distort: Callable[[int, float], float], is_exact: bool = True) -> None:
        super().__init__()
        self._distort, self._claim = distort, is_exact

    @property
    def is_exact(self) -> bool:
        return self._claim

    def generate(
        self,
        token_ids: Sequence[Sequence[int]],
        num_samples: int,
        seeds: Sequence[int],
        sampling: Sampling = Sampling(),
        on_progress: OnProgress | None = None,
    ) -> list[Sample]:
        shortest = min(map(len, token_ids))
        samples = super().generate(token_ids, num_samples, seeds, sampling, on_progress)
        padding = [len(ids) - shortest for ids in token_ids for _ in range(num_samples)]
        return [
            dataclasses.replace(sample, logprobs=tuple(self._distort(more, value) for value in sample.logprobs))
            for sample, more in zip(samples, padding, strict=True)
        ]


@pytest.mark.parametrize(
    ("distort", "reason"),
    [
        (lambda more, value: value - 0.17, "No row agrees"),
        (lambda more, value: value - 0.17 * (more == 0), "padding on the left"),
    ],
)
def test_a_run_stops_where_an_exact_engine_is_off(
    distort: Callable[[int, float], float], reason: str, world: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=rf"log-probs of Distorted.*0\.17 nats \(row \d+, position \d+.*{reason}"):
        fit(tmp_path, make_module(world), data={"engine": Distorted(distort)})


def test_of_an_engine_that_is_not_exact_it_is_said_how_far_it_is_off(
    world: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Distorted(lambda more, value: value - 0.17, is_exact=False)
    with caplog.at_level("INFO"):
        fit(tmp_path, make_module(world, DistributionMatching()), data={"engine": engine})
    assert "Distorted and the training forward differ by 0.17 nats a token, at most 0.17" in caplog.text


class Noisy(OPDModule):
    """A student with a layer that acts in training only."""

    def configure_model(self) -> None:
        super().configure_model()

        def shake(module: torch.nn.Module, _: object, output: torch.Tensor) -> torch.Tensor:
            return output + torch.randn_like(output) if module.training else output

        for name, module in self.language_model.model.named_modules():
            if name.endswith("o_proj"):
                module.register_forward_hook(shake)


class Unmasked(OPDModule):
    """A student that reads the padding of its batch in training."""

    def configure_model(self) -> None:
        super().configure_model()

        def spill(_: object, __: object, output: torch.Tensor) -> torch.Tensor:
            return output + output.mean(dim=0, keepdim=True) if len(output) == 4 and output.shape[1] > 1 else output

        for name, module in self.language_model.model.named_modules():
            if name.endswith("o_proj"):
                module.register_forward_hook(spill)


class Blank(OPDModule):
    """Its training forward gives no numbers."""

    def forward_student(self, batch: Any) -> Any:
        found = super().forward_student(batch)
        return dataclasses.replace(found, hidden_states=found.hidden_states * torch.nan)


def test_a_training_forward_without_numbers_is_no_agreement(world: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="inf nats"):
        fit(tmp_path, make_module(world, kind=Blank))


@pytest.mark.parametrize(("kind", "reason"), [(Noisy, "acts in training only"), (Unmasked, "Row by row they agree")])
def test_the_reason_is_read_off_what_makes_them_agree(
    kind: type[OPDModule], reason: str, world: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=reason):
        fit(tmp_path, make_module(world, kind=kind), data={"prompts_per_batch": 6, "samples_per_prompt": 1})


RIGHT: list[dict[str, Any]] = [
    {},
    {"top_p": 0.7},
    {"temperature": 0.6},
    {"top_p": 0.5, "temperature": 1.5},
    {"top_k": 3},
    {"min_p": 0.4, "top_p": 0.9},
    {"repetition_penalty": 2.0},
]


@pytest.mark.parametrize("settings", RIGHT, ids=str)
def test_what_is_right_passes_and_leaves_random_state_alone(
    settings: dict[str, Any], world: Path, tmp_path: Path
) -> None:
    states: list[torch.Tensor] = []

    class Watched(OPDModule):
        def forward_student(self, batch: Any) -> Any:
            states.append(torch.get_rng_state())
            torch.rand(1)  # as dropout would
            return super().forward_student(batch)

    module = make_module(world, DistributionMatching(), kind=Watched)
    sampling = Sampling(max_new_tokens=8, **settings)
    recorder = fit(tmp_path, module, data={"sampling": sampling})
    assert len(recorder.rollout_batches) == 1
    assert torch.equal(states[0], states[1])
