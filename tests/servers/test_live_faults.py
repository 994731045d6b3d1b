"""Real servers that die in the middle of a run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from typing_extensions import override

from lightning_opd.callbacks.preemption import Preemption
from lightning_opd.interfaces import OPDCallback
from lightning_opd.modules import OPDModule
from lightning_opd.servers import ServersDownError
from lightning_opd.servers.launch import LocalServer
from lightning_opd.teachers import ServerTeacher
from lightning_opd.types import RolloutBatch
from tests.tiny import save_model
from tests.world import make_data, make_module, make_trainer

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]


class After(OPDCallback):
    """Calls a function once a rollout batch of that number has been scored."""

    def __init__(self, number: int, action: Callable[[], None]) -> None:
        self.number, self.action = number, action

    @override
    def on_rollout_end(self, trainer: L.Trainer, module: L.LightningModule, rollouts: RolloutBatch) -> None:
        if trainer.global_step == self.number:
            self.action()


def module_of(folder: Path, urls: list[str]) -> OPDModule:
    """Return a student of its own with the servers' model as both of its teachers."""
    served = {name: ServerTeacher(urls, max_retries=0, tokens_per_request=64) for name in ("math", "code")}
    return make_module(folder, teachers=served)


def fit(folder: Path, world: Path, urls: list[str], *callbacks: Callback, resume: Path | None = None) -> OPDModule:
    module = module_of(world, urls)
    trainer = make_trainer(folder, *callbacks, max_steps=4)
    trainer.fit(module, make_data(), ckpt_path=resume)
    return module


def test_one_dead_server_loses_nothing_and_two_end_the_run_resumably(
    servers: tuple[LocalServer, LocalServer], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world = tmp_path / "world"
    save_model(world / "student", seed=0)
    urls = [server.url for server in servers]
    undisturbed = fit(tmp_path / "a", world, urls)
    with caplog.at_level(logging.WARNING):
        one_dies = fit(tmp_path / "b", world, urls, After(1, servers[0].kill))
    assert any(f"The server {urls[0]} does not answer" in text for text in caplog.messages)
    saver = Preemption()
    with pytest.raises(ServersDownError, match="No server is left"):
        fit(tmp_path / "c", world, urls[1:], saver, After(2, servers[1].kill))
    assert saver.checkpoint is not None
    assert torch.load(saver.checkpoint, weights_only=False)["global_step"] == 3  # the third update was whole
    for server in servers:
        server.start()
    for server in servers:
        server.wait()
    resumed = fit(tmp_path / "c", world, urls, resume=saver.checkpoint)
    expected = undisturbed.loaded_student.state_dict()
    for other in (one_dies, resumed):
        gap = max(float((x - expected[name]).abs().max()) for name, x in other.loaded_student.state_dict().items())
        assert gap < 1e-5
