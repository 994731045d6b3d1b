from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from lightning_opd import Lora, OPDModule, RolloutBatch
from lightning_opd.callbacks import ExportHuggingFace, LastCheckpoint
from lightning_opd.errors import CombinedConfigError, ConfigError
from lightning_opd.functional.baselines import LeaveOneOut
from lightning_opd.interfaces import StudentForward
from lightning_opd.modules.student import StudentModule
from lightning_opd.objectives import PolicyGradient
from lightning_opd.options.outputs import nearest
from lightning_opd.preflight import Check, Preflight, Report, Status
from lightning_opd.preflight.folders import check_writable, outputs
from lightning_opd.preflight.models import broken_models
from lightning_opd.preflight.student import check_learning_rates, check_stops, outline_of
from tests.preflight.reports import Run, checks, failed
from tests.world import Recorder, make_data, make_module, make_trainer

Optimizer = Callable[[Iterable[Any]], torch.optim.Optimizer]


def with_optimizer(world: Path, optimizer: Optimizer) -> StudentModule:
    module = make_module(world)
    return type(module)(module.student_config, None, optimizer=optimizer)


@pytest.mark.parametrize(("rate", "kind"), [(0.0, "positive"), (float("inf"), "finite"), (float("nan"), "finite")])
def test_a_learning_rate_that_teaches_nothing_is_refused(world: Path, rate: float, kind: str) -> None:
    with pytest.raises(ConfigError, match=rf"must be a {kind} number, got {rate:g}"):
        check_learning_rates(with_optimizer(world, lambda p: torch.optim.SGD(p, lr=rate)))


@pytest.mark.parametrize("settings", [{"lr": -1.0}, {"lr": "small"}, {"lr": 0.1, "momentum": -1.0}], ids=str)
def test_what_the_optimizer_itself_refuses_is_a_line_too(world: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"`model\.optimizer` cannot work with its settings"):
        with_optimizer(world, lambda p: torch.optim.SGD(p, **settings))


def test_a_trainer_of_ones_own_gets_the_checks_from_the_callback(world: Path, tmp_path: Path) -> None:
    seen = Recorder()
    make_trainer(tmp_path, Preflight(), seen, max_steps=1).fit(make_module(world), make_data())
    assert len(seen.rollout_batches) == 1
    module = make_module(world, lora=Lora(targets=["q"]))
    module._optimizer = lambda p: torch.optim.SGD(p, lr=0.0)
    with pytest.raises(CombinedConfigError, match="learning rate") as caught:
        make_trainer(tmp_path, Preflight(), max_steps=1).fit(module, make_data())
    assert ["learning rate" in caught.value.problems[0], "no module `q`" in caught.value.problems[1]] == [True, True]


def test_a_high_rank_is_a_note(world: Path) -> None:
    found, check = outline_of(make_module(world, lora=Lora(rank=17)))
    assert found is not None
    assert check.status is Status.NOTE
    assert "above the narrowest layer's 16" in check.text


def test_a_student_that_a_subclass_builds_is_left_to_it(world: Path) -> None:
    class Own(OPDModule):
        def configure_student(self) -> torch.nn.Module:
            return super().configure_student()

    found, check = outline_of(make_module(world, kind=Own))
    assert found is None
    assert "`configure_student`" in check.text


def test_embeddings_for_fewer_tokens_than_the_tokenizer_has_are_refused(run: Run, tmp_path: Path, world: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(world / "student")
    tokenizer.add_tokens(["<more>"])
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    assert run("preflight", f"--model.student.tokenizer={tmp_path / 'tokenizer'}")[0] == 1
    assert "has 288 rows, fewer than the 289 tokens" in dict(failed(tmp_path))["student"]


def test_stop_tokens_must_be_tokens(world: Path) -> None:
    module = make_module(world)
    [check] = check_stops(module)
    assert check.text == "<|im_end|> (2)"
    with pytest.raises(ConfigError, match=r"`data\.sampling\.stop_token_ids` has \[288\], and the tokenizer only 288"):
        list(check_stops(module, [2, 288]))


@pytest.mark.parametrize("command", ["preflight", "fit"])
def test_a_baseline_that_compares_siblings_needs_two(run: Run, tmp_path: Path, command: str) -> None:
    words = ("--model.objective=PolicyGradient", "--model.objective.baseline=LeaveOneOut")
    status, out, err = run(command, *words)
    assert status == {"preflight": 1, "fit": 2}[command]
    assert "baseline of PolicyGradient compares the siblings of a prompt, got `data.samples_per_prompt` 1" in out + err
    if command == "preflight":
        assert run(command, *words, "--data.samples_per_prompt=2")[0] == 0
        assert PolicyGradient(baseline=LeaveOneOut()).needs_siblings


def test_scores_that_are_not_the_training_forwards_are_found(run: Run, tmp_path: Path) -> None:
    assert run("preflight", f"--model={Sharper.__module__}.Sharper")[0] == 1
    assert [name for name, _ in failed(tmp_path)] == ["rollouts and scores", "student as teacher"]
    assert checks(tmp_path)["prompts: train"]["status"] == "ok"


class Sharper(OPDModule):
    """Trains on other log-probs than it generates with."""

    def forward_student(self, batch: RolloutBatch) -> StudentForward:
        right = super().forward_student(batch)
        return StudentForward(right.hidden_states * 1.1, right.head, batch)


def one_batch(world: Path, folder: Path) -> RolloutBatch:
    seen = Recorder()
    make_trainer(folder, seen, max_steps=1).fit(make_module(world), make_data())
    return seen.rollout_batches[0]


def test_a_few_or_certain_tokens_are_no_broken_teacher(world: Path, tmp_path: Path) -> None:
    rollouts = one_batch(world, tmp_path)

    def with_logprobs(values: Float[Tensor, "batch time"]) -> list[str]:
        rollouts.teacher_logprobs = values
        return broken_models(rollouts)

    given = rollouts.teacher_logprobs
    assert with_logprobs(given) == []
    assert with_logprobs(torch.full_like(given, -1e-7)) == []  # certain of every token
    same = with_logprobs(torch.full_like(given, -5.66))
    assert [text.partition(" gives ")[0] for text in same] == ["Teacher `code`", "Teacher `math`"]
    rollouts.aligned_mask[:, :-1] = False
    assert with_logprobs(torch.full_like(given, -5.66)) == []  # too few to tell
    rollouts.rollout_logprobs = torch.full_like(given, float("nan"))
    assert broken_models(rollouts)[0].startswith("The student's log-probs are not finite")


def test_every_folder_of_a_run_is_looked_at(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    saving = LastCheckpoint()
    trainer = make_trainer(
        tmp_path / "new", saving, ExportHuggingFace(str(tmp_path / "file" / "model")), enable_checkpointing=True
    )
    assert [output.what for output in outputs(trainer)] == [
        "metrics and settings",
        "the exported model",
        "a checkpoint",
    ]
    with pytest.raises(ConfigError, match=r"`folder` is `.*model`, but `.*file` is a file, not a folder"):
        check_writable(outputs(trainer))
    assert not (tmp_path / "new").exists()
    assert nearest(tmp_path / "new" / "deeper") == tmp_path
    assert os.listdir(tmp_path) == ["file"]


def test_what_fails_twice_is_told_once() -> None:
    report = Report()

    def refuse() -> Check:
        raise CombinedConfigError(["one", "two"])

    report.run("first", refuse)
    report.run("second", refuse)
    assert [(check.name, check.text) for check in report.failed] == [("first", "one"), ("first", "two")]
