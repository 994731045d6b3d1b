from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from safetensors.torch import load_file, save_file
from torch.optim import Optimizer

from lightning_opd import Lora
from lightning_opd.callbacks import FormatErrorMask, RolloutTable
from lightning_opd.collection.model_contents import content_of
from lightning_opd.errors import ConfigError
from lightning_opd.modules import OPDModule, WarmupCosine
from lightning_opd.objectives import DistributionMatching
from lightning_opd.rollouts import InProcessEngine
from lightning_opd.teachers import LocalTeacher
from lightning_opd.types import Sampling
from tests.tiny import save_adapter, save_model
from tests.world import Letters, Recorder, make_data, make_module, make_trainer, whole

pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed", "ignore:Going on with another")

Change = Callable[[OPDModule], None]
FORMAT = FormatErrorMask(from_erring_turn=True)


class OtherEngine(InProcessEngine):
    """Another class."""


def optimizer(kind: type[torch.optim.Optimizer] = torch.optim.AdamW, **settings: Any) -> Change:
    def change(module: OPDModule) -> None:
        module._optimizer = lambda parameters: kind(parameters, **settings)

    return change


def cosine(module: OPDModule) -> None:
    module._lr_scheduler = lambda own: WarmupCosine(own, warmup_steps=0, final_fraction=0.0)


class Rates(Callback):
    """Notes the learning rate of every update."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        self.seen.append(optimizer.param_groups[0]["lr"])


def schedule(step_size: int) -> Change:
    def change(module: OPDModule) -> None:
        module._lr_scheduler = lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, step_size)

    return change


def fit(
    world: Path,
    folder: Path,
    change: Change | None = None,
    allow: tuple[str, ...] = (),
    trainer: dict[str, Any] | None = None,
    ckpt_path: Path | None = None,
    task: Letters | None = None,
    module: dict[str, Any] | None = None,
    callbacks: Sequence[Callback] = (FORMAT,),
    **data: Any,
) -> tuple[OPDModule, Recorder]:
    recorder = Recorder()
    saver = ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)
    own = make_module(world, DistributionMatching(), **(module or {}))
    optimizer(lr=0.01)(own)
    if change is not None:
        change(own)
    own.allow_changed = allow
    sampling = data.pop("sampling", Sampling(max_new_tokens=4))
    run = make_trainer(
        folder, recorder, saver, *callbacks, enable_checkpointing=True, **{"max_steps": 3, **(trainer or {})}
    )
    run.fit(own, make_data(task, sampling=sampling, **data), ckpt_path=ckpt_path)
    return own, recorder


@pytest.fixture(scope="module")
def checkpoint(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("settings")
    fit(world, folder, trainer={"max_steps": 1})
    return folder / "step=1.ckpt"


CHANGES: dict[str, dict[str, Any]] = {
    "`model.optimizer.lr` was `0.01`, is `0.02`": {"change": optimizer(lr=0.02)},
    "`model.optimizer.weight_decay` was `0.01`, is `0.5`": {"change": optimizer(lr=0.01, weight_decay=0.5)},
    "`model.optimizer` was `AdamW`, is `SGD`": {"change": optimizer(torch.optim.SGD, lr=0.01)},
    "`model.lr_scheduler` was `None`, is `StepLR`": {"change": schedule(2)},
    "`data.prompts_per_batch` was `4`, is `6`": {"prompts_per_batch": 6},
    "`data.samples_per_prompt` was `2`, is `1`": {"samples_per_prompt": 1},
    "`data.updates_per_batch` was `1`, is `2`": {"updates_per_batch": 2},
    "`data.seed` was `0`, is `1`": {"seed": 1},
    "`data.sampling.temperature` was `1.0`, is `0.5`": {"sampling": Sampling(temperature=0.5, max_new_tokens=4)},
    "`trainer.accumulate_grad_batches` was `1`, is `2`": {"trainer": {"accumulate_grad_batches": 2}},
    "`trainer.gradient_clip_val` was `None`, is `0.5`": {"trainer": {"gradient_clip_val": 0.5}},
    "`data.task.prompts` was `12 prompts with hash": {"task": Letters(11)},
    "`data.engine` was `lightning_opd.rollouts.in_process.InProcessEngine`, is": {"engine": OtherEngine()},
    "`model.student.dtype` was `float32`, is `bfloat16`": {"module": {"dtype": "bfloat16"}},
    "`model.student.control_tokens_in_text` was `text`, is `keep`": {"module": {"control_tokens_in_text": "keep"}},
    "`trainer.callbacks.FormatErrorMask.from_erring_turn` was `True`, is `False`": {"callbacks": [FormatErrorMask()]},
    "`trainer.callbacks.FormatErrorMask` was `lightning_opd.callbacks": {"callbacks": []},
}


@pytest.mark.parametrize("expected", CHANGES)
def test_a_run_with_other_settings_is_refused_by_name(
    expected: str, checkpoint: Path, world: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as refused:
        fit(world, tmp_path, ckpt_path=checkpoint, **CHANGES[expected])
    text = str(refused.value)
    name = expected.split("`")[1]
    assert f"settings: {expected}" in text
    assert f"--model.allow_changed=[{name}" in text
    assert "start anew" in text


def test_another_teacher_is_refused_by_name(checkpoint: Path, world: Path, tmp_path: Path) -> None:
    teachers = {"math": LocalTeacher(str(world / "student"), dtype="float32")}
    with pytest.raises(ConfigError, match=r"`model.teachers.math.path` was `.*/math`, is `.*/student`"):
        fit(world, tmp_path, ckpt_path=checkpoint, module={"teachers": teachers})


def test_what_changes_no_result_is_allowed_silently(checkpoint: Path, world: Path, tmp_path: Path) -> None:
    expected, _ = fit(world, tmp_path / "whole", trainer={"max_steps": 2})
    teachers = {name: LocalTeacher(str(world / name), dtype="float32", batch_size=3) for name in ("math", "code")}
    module, _ = fit(
        world,
        tmp_path / "elsewhere",
        ckpt_path=checkpoint,
        trainer={"max_steps": 2, "log_every_n_steps": 5},
        module={"teachers": teachers},
        callbacks=[FormatErrorMask(warn_above=0.9, from_erring_turn=True), RolloutTable(console=False)],
        engine=InProcessEngine(max_cache_tokens=2**16),
    )
    for mine, theirs in zip(module.parameters(), expected.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_changed_optimiser_that_is_allowed_begins_anew(checkpoint: Path, world: Path, tmp_path: Path) -> None:
    change = optimizer(torch.optim.SGD, lr=0.5)
    module, _ = fit(world, tmp_path, change, ("model.optimizer",), {"max_steps": 2}, checkpoint)
    [group] = module.trainer.optimizers[0].param_groups
    assert isinstance(module.trainer.optimizers[0], torch.optim.SGD)
    assert group["lr"] == 0.5


def test_a_longer_run_follows_its_own_cosine_and_says_so(world: Path, tmp_path: Path) -> None:
    fit(world, tmp_path, cosine, trainer={"max_steps": 3})
    path = tmp_path / "step=1.ckpt"
    rates = Rates()
    with pytest.warns(UserWarning, match=r"have 3 steps.* 5: .* step 1 .* 0.00853553, which was 0.005") as said:
        fit(world, tmp_path / "longer", cosine, trainer={"max_steps": 5}, ckpt_path=path, callbacks=[rates, FORMAT])
    assert sum("WarmupCosine" in str(one.message) for one in said) == 1
    assert rates.seen == pytest.approx([0.01 * (1 + math.cos(math.pi * step / 4)) / 2 for step in range(1, 5)])


def test_a_run_of_the_same_length_says_nothing_of_its_cosine(world: Path, tmp_path: Path) -> None:
    fit(world, tmp_path, cosine, trainer={"max_steps": 2})
    fit(world, tmp_path, cosine, trainer={"max_steps": 2}, ckpt_path=tmp_path / "step=1.ckpt")


def test_other_prompts_that_are_allowed_are_trained_on(checkpoint: Path, world: Path, tmp_path: Path) -> None:
    allow = ("data.prompts_per_batch", "data.task")
    module, seen = fit(
        world,
        tmp_path,
        allow=allow,
        trainer={"max_steps": 3},
        ckpt_path=checkpoint,
        task=Letters(5),
        prompts_per_batch=5,
    )
    assert module.trainer.global_step == 3
    assert all(len(batch) == 10 for batch in seen.rollout_batches)


def test_a_rollout_batch_that_is_cut_keeps_only_what_is_left_of_it(world: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"updates_per_batch": 4}
    expected, _ = fit(world, tmp_path / "whole", trainer={"max_steps": 4}, **settings)
    for step, left in ((1, 3), (3, 1), (4, 0)):
        state = torch.load(tmp_path / "whole" / f"step={step}.ckpt", weights_only=True).get("OPDDataModule", {})
        assert sum(map(len, state.get("micro_batches", ()))) == left
    path = tmp_path / "whole" / "step=3.ckpt"
    module, seen = fit(world, tmp_path / "again", trainer={"max_steps": 4}, ckpt_path=path, **settings)
    assert not seen.rollout_batches
    for mine, theirs in zip(module.parameters(), expected.parameters(), strict=True):
        assert torch.equal(whole(mine), whole(theirs))
    allow = ("data.updates_per_batch", "trainer.accumulate_grad_batches")
    with pytest.raises(ConfigError, match="inside a rollout batch of 4 micro-batches on 1 processes"):
        fit(world, tmp_path / "cut", allow=allow, ckpt_path=path, updates_per_batch=2)


def test_another_number_of_processes_is_refused_where_they_share_updates(world: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"updates_per_batch": 2, "trainer": {"max_steps": 1}}
    fit(world, tmp_path, **settings)
    path = tmp_path / "step=1.ckpt"
    state = torch.load(path, weights_only=True)  # as two processes would have left it
    state["settings"]["trainer.devices"] = 2
    state["OPDDataModule"]["micro_batches"] *= 2
    torch.save(state, path)
    with pytest.raises(ConfigError, match=r"`trainer.devices` was `2`, is `1`"):
        fit(world, tmp_path, ckpt_path=path, **settings)
    with pytest.raises(ConfigError, match="inside a rollout batch of 2 micro-batches on 2 processes"):
        fit(world, tmp_path, ckpt_path=path, allow=("trainer.devices",), **settings)


def further_trained(folder: Path) -> None:
    """Change one matrix in the middle of a model's file by a little."""
    file = folder / "model.safetensors"
    weights = load_file(file)
    weights["model.layers.0.mlp.down_proj.weight"] *= 1.001
    save_file(weights, file, {"format": "pt"})


def test_a_model_that_was_replaced_in_place_is_refused_by_name(world: Path, tmp_path: Path) -> None:
    own = tmp_path / "world"
    shutil.copytree(world, own)
    fit(own, tmp_path, trainer={"max_steps": 1})
    path = tmp_path / "step=1.ckpt"
    (own / "code" / "README.md").write_text("what is no part of a model")
    fit(own, tmp_path, ckpt_path=path, trainer={"max_steps": 2})
    further_trained(own / "math")
    with pytest.raises(ConfigError, match=r"settings: `model.teachers.math.path.content` was `files with hash \w{16}`"):
        fit(own, tmp_path, ckpt_path=path)
    fit(own, tmp_path, ckpt_path=path, allow=("model.teachers.math",), trainer={"max_steps": 2})


def test_the_content_of_an_adapter_covers_its_base(tmp_path: Path) -> None:
    base, adapter = save_model(tmp_path / "base", seed=0), tmp_path / "adapter"
    save_adapter(base, adapter, 1, Lora(rank=2))
    before = content_of(adapter)
    assert content_of(shutil.copytree(adapter, tmp_path / "copy")) == before
    further_trained(base)
    assert content_of(adapter) != before


@pytest.mark.parametrize("content", [b"", b"\xff" * 100, b"\x02\x00\x00\x00\x00\x00\x00\x00[]", b"x" * 7])
def test_a_torn_file_has_a_content_too(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_text("{")
    (tmp_path / "model.safetensors").write_bytes(content)
    assert content_of(tmp_path).startswith("files with hash ")
