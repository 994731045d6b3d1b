"""Rollouts by a real vLLM server that takes over the student's weights at every step."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import pytest
from torch import Tensor
from typing_extensions import override

from lightning_opd.errors import ConfigError
from lightning_opd.functional.off_policy import TruncatedImportance
from lightning_opd.interfaces import OPDCallback
from lightning_opd.models import Lora
from lightning_opd.modules import OPDModule
from lightning_opd.objectives import PolicyGradient
from lightning_opd.rollouts import VLLMEngine
from lightning_opd.rollouts.drawing import sampling_weights
from lightning_opd.servers.launch import Launch
from lightning_opd.types import RolloutBatch, Sampling
from tests.servers.conftest import EAGER, TEACHER
from tests.tiny import save_model
from tests.world import STOPS, Recorder, make_data, make_module, make_trainer

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

NUM_BATCHES = 10
SAMPLING = Sampling(max_new_tokens=12, stop_token_ids=STOPS, temperature=0.8, top_k=20)


class Gaps(OPDCallback):
    """Records how far the server's log-probs are from the trainer's, and what was generated."""

    def __init__(self) -> None:
        self.gaps: list[float] = []
        self.lengths: list[int] = []
        self.first: tuple[RolloutBatch, Tensor] | None = None
        self.drift = 0.0

    @override
    def on_rollout_end(self, trainer: L.Trainer, module: L.LightningModule, rollouts: RolloutBatch) -> None:
        assert isinstance(module, OPDModule)
        student, mask = module.forward_student(rollouts), rollouts.response_mask
        own = student.logprobs.detach()
        weights = sampling_weights(student.head.logits(student.hidden_states)[mask].detach(), SAMPLING)
        drawn_from = weights / weights.sum(-1, keepdim=True)
        expected = drawn_from.gather(-1, rollouts.token_ids[mask][:, None]).squeeze(-1).log()
        self.gaps.append(float((expected - rollouts.rollout_logprobs[mask]).abs().max()))
        self.lengths += mask.sum(dim=1).tolist()
        self.first = self.first or (rollouts, own)
        batch, before = self.first
        now = module.forward_student(batch).logprobs.detach()
        self.drift = float((now - before)[batch.response_mask].abs().max())


def launch(python: str, folder: Path) -> Launch:
    """Return how the tests start a server."""
    environment = {"VLLM_CPU_OMP_THREADS_BIND": "0", "HF_HUB_OFFLINE": "1"}
    return Launch(python, arguments=EAGER[2:], environments=(environment,), log_folder=str(folder))


@pytest.mark.parametrize("kind", ["adapter", "tied", "untied"])
def test_ten_batches_with_weights_taken_over_at_each_step(kind: str, python: str, tmp_path: Path) -> None:
    world = tmp_path / "world"
    for seed, name in enumerate(("student", "math", "code")):
        save_model(world / name, seed=seed, **TEACHER, tie_word_embeddings=kind != "untied")
    engine, gaps = VLLMEngine(launch=launch(python, tmp_path)), Gaps()
    module = make_module(
        world,
        PolicyGradient(off_policy=TruncatedImportance()),
        lora=Lora(rank=4, alpha=64) if kind == "adapter" else None,
    )
    trainer = make_trainer(tmp_path, gaps, max_steps=NUM_BATCHES)
    trainer.fit(module, make_data(engine=engine, sampling=SAMPLING))
    assert len(gaps.gaps) == NUM_BATCHES
    assert max(gaps.gaps) < 1e-3
    assert len(set(gaps.lengths)) > 3
    assert gaps.drift > 1e-2  # so that weights of an earlier step would have been seen


def test_a_rollout_batch_is_generated_ahead_by_the_student_before(python: str, tmp_path: Path) -> None:
    world = tmp_path / "world"
    for seed, name in enumerate(("student", "math", "code")):
        save_model(world / name, seed=seed, **TEACHER)
    engine, recorder = VLLMEngine(launch=launch(python, tmp_path), overlap=1), Recorder()
    module = make_module(world, PolicyGradient(off_policy=TruncatedImportance()), lora=Lora(rank=4, alpha=64))
    make_trainer(tmp_path, recorder, max_steps=4).fit(module, make_data(engine=engine))
    assert [logged["train/staleness"] for logged in recorder.logged] == [0, 1, 1, 1]
    gaps = [logged["train/engine_gap"] for logged in recorder.logged]
    assert gaps[0] < 1e-3
    assert min(gaps[1:]) > gaps[0]


def test_without_servers_or_with_both_kinds_the_engine_is_refused() -> None:
    with pytest.raises(ConfigError, match="Set one"):
        VLLMEngine()
    with pytest.raises(ConfigError, match="Set one"):
        VLLMEngine(["http://127.0.0.1:1"], Launch())
