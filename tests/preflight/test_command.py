from __future__ import annotations

import contextlib
import io
import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from lightning_opd.preflight import Check, Report, Status
from lightning_opd.preflight.table import show
from tests.commands import Cli, Write
from tests.preflight.reports import Run, Spoil, checks, failed
from tests.test_user_errors import GOOD
from tests.tiny import save_foreign


def test_a_good_run_passes_and_leaves_a_report_alone(run: Run, tmp_path: Path) -> None:
    before = {path.name for path in tmp_path.iterdir()} | {"config.yaml", "prompts.jsonl"}
    status, out, _ = run("preflight", "--trainer.logger=true", "--trainer.enable_checkpointing=true")
    assert status == 0
    assert {path.name for path in tmp_path.iterdir()} - before == {"preflight.json"}
    found = checks(tmp_path)
    assert {check["status"] for check in found.values()} == {"ok"}
    assert found["prompts: train"]["values"]["num_prompts"] == 40
    assert found["student"]["values"]["num_trained"] == 27_872
    assert abs(found["student as teacher"]["values"]["kl"]) < 1e-5
    for teacher in ("math", "code"):
        values = found[f"{teacher}: log-probs"]["values"]
        assert values["aligned_fraction"] == 1
        assert values["kl"] > 0.1
        assert found[f"{teacher}: template"]["values"]["student"].startswith("'<|im_start|>user")
    lines = out.splitlines()
    assert lines[-1] == f"Preflight: all {len(found)} checks passed."
    assert sum(line.startswith("ok ") for line in lines) == len(found)


@pytest.mark.parametrize(
    ("name", "change", "text"),
    [
        ("nan", lambda model: model.model.layers[1].mlp.down_proj.weight.fill_(float("nan")), "are not finite for"),
        ("zero", lambda model: model.model.embed_tokens.weight.zero_(), "the same log-prob -5.66 (1 of 288 tokens)"),
    ],
)
@pytest.mark.parametrize("objective", ["DistributionMatching", pytest.param("PolicyGradient", marks=pytest.mark.slow)])
def test_a_broken_teacher_is_found_with_its_name(
    run: Run, spoil: Spoil, tmp_path: Path, name: str, change: Any, text: str, objective: str
) -> None:
    words = (f"--model.teachers.math={spoil('math', change)}", f"--model.objective={objective}")
    assert run("preflight", *words)[0] == 1
    [(where, problem)] = failed(tmp_path)
    assert where == "math: log-probs"
    assert problem.startswith("Teacher `math` gives ")
    assert text in problem
    status, _, err = run("fit", *words)
    assert status == 2
    assert "error: Teacher `math` gives " in err
    assert text in err


def test_a_broken_student_is_found(run: Run, spoil: Spoil, tmp_path: Path) -> None:
    student = spoil("student", lambda model: model.model.norm.weight.fill_(float("inf")))
    assert run("preflight", f"--model.student.path={student}")[0] == 1
    assert "weights hold NaN" in dict(failed(tmp_path))["rollouts"]
    assert "expected 0" in dict(failed(tmp_path))["student as teacher"]
    status, _, err = run("fit", f"--model.student.path={student}")
    assert status == 2
    assert "The student's log-probs are not finite" in err


def test_another_vocabulary_is_found_with_the_teachers_name(run: Run, tmp_path: Path) -> None:
    foreign = save_foreign(tmp_path / "foreign")
    assert run("preflight", f"--model.teachers.code={foreign}")[0] == 1
    [(where, problem)] = failed(tmp_path)
    assert where == "code: vocabulary"
    assert "Teacher `code` has another vocabulary" in problem
    assert checks(tmp_path)["math: vocabulary"]["status"] == "ok"


class Ends(Callback):
    """Ends a preflight in its middle, as a signal or a full memory does."""

    def __init__(self, error: str) -> None:
        self.error = {"signal": SystemExit(143), "memory": MemoryError("no more")}[error]

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        raise self.error


@pytest.mark.parametrize("error", ["signal", "memory"])
def test_what_did_not_reach_its_end_has_not_passed(error: str, run: Run, tmp_path: Path) -> None:
    ends = f"--trainer.callbacks+={{class_path: tests.preflight.test_command.Ends, init_args: {{error: {error}}}}}"
    with contextlib.suppress(MemoryError):
        assert run("preflight", ends)[0] == 143
    [(name, text)] = failed(tmp_path)
    assert (name, text.split(" (")[0]) == ("preflight", "stopped before its end")
    assert checks(tmp_path)["learning rate"]["status"] == "ok"


def test_memory_is_estimated_once_nothing_else_fails(run: Run, tmp_path: Path) -> None:
    assert run("preflight", f"--model.teachers.code={tmp_path / 'nowhere'}")[0] == 1
    assert failed(tmp_path)[0][0] == "code: vocabulary"
    memory = checks(tmp_path)["memory"]
    assert (memory["status"], memory["text"]) == ("note", "not estimated: mend the failed checks first")


def test_a_cross_tokenizer_teacher_is_shown_beside_the_student(run: Run, tmp_path: Path, foreign: Path) -> None:
    teacher = {"class_path": "lightning_opd.teachers.CrossTokenizerTeacher", "init_args": {"path": str(foreign)}}
    words = (f"--model.teachers.code={json.dumps(teacher)}", "--model.objective=PolicyGradient")
    assert run("preflight", *words)[0] == 0
    found = checks(tmp_path)
    assert "its own of 298 tokens beside the student's 288" in found["code: vocabulary"]["text"]
    assert 0 < found["code: log-probs"]["values"]["aligned_fraction"] <= 1


def test_another_template_of_a_teacher_is_a_note(run: Run, spoil: Spoil, tmp_path: Path) -> None:
    teacher = spoil("math", lambda model: None)
    template = (teacher / "chat_template.jinja").read_text(encoding="utf-8")
    (teacher / "chat_template.jinja").write_text(template.replace("<|im_end|>", "<|im_end|> "), encoding="utf-8")
    status, out, _ = run("preflight", f"--model.teachers.math={teacher}")
    assert status == 0
    note = checks(tmp_path)["math: template"]
    assert note["status"] == "note"
    assert "student '<|im_start|>user\\nquestion" in note["text"]
    assert "; teacher '" in note["text"]
    assert "with a note." in out


def test_all_that_is_wrong_is_told_at_once(run: Run, tmp_path: Path) -> None:
    rows = [*GOOD, {"prompt": "x" * 400, "teacher": "maths"}]
    words = ("--model.optimizer=torch.optim.SGD", "--model.optimizer.lr=0", "--trainer.accumulate_grad_batches=9")
    status, out, _ = run("preflight", *words, "--model.student.lora.targets=[q]", rows=rows)
    assert status == 1
    texts = " ".join(text for _, text in failed(tmp_path))
    for text in ("learning rate", "no module `q`", "cannot be cut into 9", "are too long", "teacher `maths`"):
        assert text in texts, text
    assert "prompts.jsonl:41" in texts
    assert "models: not checked" in out


def test_a_preflight_can_go_on_from_a_checkpoint_like_fit(run: Run) -> None:
    status, _, err = run("preflight", "--ckpt_path=last", "--trainer.enable_checkpointing=true")
    assert status == 2
    assert "there is no last checkpoint" in err


def test_supervised_training_is_checked_too(cli: Cli, write_yaml: Write, tmp_path: Path, world: Path) -> None:
    write_yaml("rows.jsonl", "".join(json.dumps({**row, "response": "1"}) + "\n" for row in GOOD))
    task = {"class_path": "lightning_opd.tasks.Jsonl", "init_args": {"path": str(tmp_path / "rows.jsonl")}}
    data = {"task": task, "batch_size": 4, "num_examples": 8}
    config = {
        "model": {"class_path": "lightning_opd.SFTModule", "init_args": {"student": {"path": str(world / "student")}}},
        "data": {"class_path": "lightning_opd.SFTDataModule", "init_args": data},
        "trainer": {"accelerator": "cpu", "default_root_dir": str(tmp_path / "runs"), "max_epochs": 1},
    }
    words = ("preflight", "--config", write_yaml("sft.yaml", config))
    assert cli(*words)[0] == 0
    assert {"output folders", "learning rate", "student", "disk", "stop tokens"} <= set(checks(tmp_path / "runs"))
    assert cli(*words, "--model.optimizer=torch.optim.SGD", "--model.optimizer.lr=0")[0] == 1
    assert "must be a positive number" in dict(failed(tmp_path / "runs"))["learning rate"]


class Usage(NamedTuple):
    total: int
    used: int
    free: int


@pytest.mark.parametrize("command", ["preflight", "fit"])
def test_a_full_disk_is_found(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    words = (
        "--trainer.enable_checkpointing=true",
        "--trainer.callbacks+=lightning_opd.callbacks.LastCheckpoint",
        "--trainer.callbacks+=lightning_opd.callbacks.ExportHuggingFace",
    )
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9 - 10_000, 10_000))
    status, out, err = run(command, *words)
    assert status == {"preflight": 1, "fit": 2}[command]
    for text in (
        "has 0.01 MB free, and the run writes 0.45 MB there",
        "0.33 MB for a checkpoint",
        "0.11 MB for the exported model",
        "set `trainer.default_root_dir` to another disk",
    ):
        assert text in out + err
    adapter = ("--model.student.lora.rank=1", "--trainer.callbacks.merge=false")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9 - 50_000, 50_000))
    assert run(command, *words, *adapter)[0] == 0


@pytest.mark.parametrize("command", ["preflight", "fit"])
def test_a_folder_that_cannot_be_written_is_found_before_loggers_open_files(
    run: Run, tmp_path: Path, command: str
) -> None:
    (tmp_path / "file").write_text("")
    words = (f"--trainer.default_root_dir={tmp_path / 'file' / 'runs'}", "--trainer.logger=true")
    status, out, err = run(command, *words)
    assert status == {"preflight": 1, "fit": 2}[command]
    assert "is a file, not a folder" in out + err
    assert "`trainer.default_root_dir` is" in out + err


LOGGER = "--trainer.logger={class_path: lightning.pytorch.loggers.CSVLogger, init_args: {save_dir: FILE}}"
PROFILER = "--trainer.profiler={class_path: SimpleProfiler, init_args: {dirpath: FILE, filename: x}}"


@pytest.mark.parametrize("command", ["preflight", "fit", "test"])
@pytest.mark.parametrize(
    ("word", "setting"), [(LOGGER, "trainer.logger.save_dir"), (PROFILER, "trainer.profiler.dirpath")]
)
def test_a_file_in_the_place_of_any_folder_is_found(
    run: Run, tmp_path: Path, command: str, word: str, setting: str
) -> None:
    (tmp_path / "file").write_text("")
    status, out, err = run(command, word.replace("FILE", str(tmp_path / "file")))
    assert status == {"preflight": 1}.get(command, 2), err
    assert f"`{setting}` is" in out + err
    assert "is a file, not a folder" in out + err


def test_a_checkpoint_is_as_large_as_its_optimizer_makes_it(run: Run, tmp_path: Path) -> None:
    words = ("--trainer.enable_checkpointing=true", "--trainer.callbacks+=lightning_opd.callbacks.LastCheckpoint")
    optimizer = ("--model.optimizer=torch.optim.SGD", "--model.optimizer.lr=0.1", "--model.optimizer.momentum=0.9")
    assert run("preflight", *words, *optimizer)[0] == 0
    assert "(0.22 MB for a checkpoint)" in checks(tmp_path)["disk"]["text"]  # weights and one state of 27,872


def test_without_a_preflight_fit_starts_as_it_is(run: Run) -> None:
    words = ("--model.optimizer=torch.optim.SGD", "--model.optimizer.lr=0")
    status, _, err = run("fit", *words)
    assert status == 2
    assert "must be a positive number, got 0" in err
    assert run("fit", *words, "--preflight=false")[0] == 0


def test_the_table_fits_a_narrow_terminal_and_other_outputs_get_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = Report()
    report.add(Check("a", "word " * 40), Check("b", "x" * 100, Status.FAILED), Check("c", "fine", Status.NOTE))

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    show(report)
    assert capsys.readouterr().out.splitlines()[1:] == [
        f"failed  b: {'x' * 100}",
        "note    c: fine",
        "Preflight: 1 of 3 checks failed.",
    ]
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    show(report)
    lines = terminal.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) > 6


def test_a_report_names_what_is_no_number(tmp_path: Path) -> None:
    report = Report()
    report.add(Check("a", "text", Status.FAILED, {"kl": float("nan"), "lengths": [1, float("inf")]}))
    content = json.loads(report.write(tmp_path).read_text(), parse_constant=pytest.fail)
    assert content["checks"][0]["values"] == {"kl": "nan", "lengths": [1, "inf"]}
    assert not content["passed"]


def test_random_state_is_the_same_with_and_without_a_preflight(run: Run, tmp_path: Path) -> None:
    weights = []
    for words in ((), ("--preflight=false",)):
        run("fit", "--trainer.callbacks+=lightning_opd.callbacks.ExportHuggingFace", *words)
        from safetensors.torch import load_file

        weights.append(load_file(tmp_path / "model" / "model.safetensors"))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
