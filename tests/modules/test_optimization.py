from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_opd.errors import ConfigError
from lightning_opd.models import StudentConfig, load_causal_lm
from lightning_opd.modules import OPDModule
from lightning_opd.modules.optimization import OptimizerFactory, num_states, try_optimization
from lightning_opd.objectives import PolicyGradient
from lightning_opd.teachers import LocalTeacher
from tests.world import make_data, make_trainer


class Elsewhere(torch.optim.SGD):
    """Made for another device."""

    def step(self, closure: object = None) -> None:  # type: ignore[override]  # it never returns
        msg = "not on this device"
        raise RuntimeError(msg)


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        (lambda p: torch.optim.SGD(p, lr=0.1), 0),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), 1),
        (torch.optim.RMSprop, 1),
        (torch.optim.Adam, 2),
        (torch.optim.AdamW, 2),
        (lambda p: torch.optim.AdamW(p, amsgrad=True), 3),
        (torch.optim.Adafactor, 2 / 64),
        (lambda p: Elsewhere(p, lr=0.1), 2),
    ],
)
def test_the_numbers_that_an_optimizer_keeps_for_a_weight_are_counted(
    optimizer: OptimizerFactory, expected: float
) -> None:
    assert num_states(optimizer) == pytest.approx(expected)


def test_a_trial_leaves_no_trace() -> None:
    state = torch.random.get_rng_state()
    try_optimization(torch.optim.AdamW, torch.optim.lr_scheduler.ConstantLR)
    num_states(torch.optim.AdamW)
    assert torch.equal(torch.random.get_rng_state(), state)


REFUSED = {torch.optim.SparseAdam: "sparse gradients only", torch.optim.Muon: "cannot work"}
OPTIMIZERS = [
    found
    for name in torch.optim.__all__
    if isinstance(found := getattr(torch.optim, name), type) and issubclass(found, torch.optim.Optimizer)
]


@pytest.mark.parametrize("kind", [kind for kind in OPTIMIZERS if kind is not torch.optim.Optimizer])
def test_every_optimizer_of_torch_trains_or_is_refused_before_the_first_step(
    kind: type[torch.optim.Optimizer], world: Path, tmp_path: Path
) -> None:
    trainer = make_trainer(tmp_path, max_steps=1)

    def train() -> OPDModule:
        teachers = {name: LocalTeacher(str(world / name)) for name in ("math", "code")}
        student = StudentConfig(str(world / "student"), dtype="float32")
        module = OPDModule(student, teachers, PolicyGradient(), lambda parameters: kind(parameters, lr=1e-3))  # type: ignore[call-arg]  # all have a learning rate
        trainer.fit(module, make_data())
        return module

    if kind in REFUSED:
        with pytest.raises(ConfigError, match=REFUSED[kind]):
            train()
        assert trainer.global_step == 0
        return
    before, trained = load_causal_lm(str(world / "student")), train().student
    assert trained is not None
    after = trained.state_dict()
    assert any(not torch.equal(after[name], weight) for name, weight in before.state_dict().items())
