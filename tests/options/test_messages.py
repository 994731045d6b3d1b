from __future__ import annotations

from pathlib import Path

import pytest

from tests.commands import Cli, Write


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("--model.studnt.path=x", ["`model.studnt`", "on the command line", "Did you mean `student`?"]),
        ("--model.student.lora.rnk=3", ["`model.student.lora.rnk`", "Did you mean `rank`?"]),
        (
            "--model.lr=3",
            [
                "`model.lr`",
                "Known: allow_changed, critic, lr_scheduler, objective, optimizer, reference, student, teachers, "
                "teachers_in_turn.",
            ],
        ),
        ("--trainer.max_stps=3", ["`trainer.max_stps`", "Did you mean `max_steps`?"]),
        ("--trainr.max_steps=3", ["`trainr`", "Did you mean `trainer`?"]),
        ("--trainer.max_steps=z", ["`trainer.max_steps`", "expected an integer, got `z`."]),
        ("--data.samples_per_prompt=many", ["`data.samples_per_prompt`", "expected an integer, got `many`."]),
        ("--data.sampling.temperature=nan", ["`data.sampling.temperature`", "expected a finite number, got `nan`."]),
        ("--model.student.lora=7", ["`model.student.lora`", "(got `7`): expected a mapping or a class's name."]),
        ("--data.task=lightning_opd.tasks.Arithmetik", ["`data.task`", "Did you mean `Arithmetic`?"]),
        ("--data.task=my_tasks.Sums", ["module `my_tasks`", "PYTHONPATH"]),
        ("--model.class_path=lightning_opd.SFTModul", ["`model`", "Did you mean `SFTModule`?"]),
        (
            "--data.task=lightning_opd.teachers.LocalTeacher",
            [
                "`data.task`",
                "lightning_opd.teachers.LocalTeacher does not correspond to a subclass of Task.",
                "For example lightning_opd.tasks.",
            ],
        ),
        (
            "--model.teachers.x.class_path=lightning_opd.tasks.Strings",
            ["`model.teachers.x`", "subclass of Teacher. For"],
        ),
        ("--trainer.callbacks=LearningRateMonitr", ["`trainer.callbacks`", "Did you mean `LearningRateMonitor`?"]),
        ("--data.prompts_per_batch=0", ["`data.prompts_per_batch` must be at least 1, got 0"]),
        ("--trainer.strategy=fsdp", ["FSDP1", "`--config configs/trainer/fsdp.yaml`"]),
        ("--trainer.strategy=ddpp", ["strategy='ddpp'"]),
        ("--config=nowhere.yaml", ["`nowhere.yaml` does not exist"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_word_is_answered_in_one_line_that_names_key_and_cure(
    cli: Cli, merge_yaml: Path, word: str, expected: list[str]
) -> None:
    code, _, err = cli("fit", "--config", merge_yaml, word)
    assert code == 2
    message = err.splitlines()[-1]
    assert message.startswith("error: ")
    for part in expected:
        assert part in message
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("model: {student: {pth: x}}", ["`model.student.pth` in ", "Did you mean `path`?"]),
        ("model: {optimizer: {class_path: torch.optim.SGD, init_args: {lrr: 1}}}", ["`model.optimizer.lrr`", "`lr`"]),
        (
            "model: {teachers: {x: {class_path: lightning_opd.teachers.LocalTeacher, init_args: {pth: y}}}}",
            ["`model.teachers.x.pth`", "`path`"],
        ),
        ("model: {teachers: [a]}", ["`model.teachers`", "expected a mapping", "`['a']`"]),
        (
            "data: {task: {init_args: {tasks: {x: {class_path: lightning_opd.tasks.String}}}}}",
            ["`data.task.tasks.x`", "`Strings`"],
        ),
        (
            "trainer: {callbacks: [{class_path: lightning_opd.callbacks.FormatErrorMsk}]}",
            ["`trainer.callbacks.0`", "`FormatErrorMask`"],
        ),
        ("modle: {student: {path: x}}", ["`modle` in ", "Did you mean `model`?"]),
        ("trainer: {max_stps: 3}", ["`trainer.max_stps` in ", "Did you mean `max_steps`?"]),
        ("trainer: {callbacks: [3]}", ["`trainer.callbacks` in ", "Not a valid subclass of Callback"]),
        (
            "data: {sampling: {temperature: hot}}",
            ["`data.sampling.temperature` in ", "expected a number, got `hot`."],
        ),
        ("trainer: {default_root_dir: '${rn}/x'}", ["`${rn}` in ", "Did you mean `run`? Variables: ${run}, ${runs},"]),
        ("model: [3", ["not valid YAML", "line 1"]),
        ("[3]", ["must be a mapping"]),
    ],
)
def test_a_wrong_file_is_answered_with_its_name(
    cli: Cli, merge_yaml: Path, write_yaml: Write, content: str, expected: list[str]
) -> None:
    wrong = write_yaml("wrong.yaml", content)
    code, _, err = cli("fit", "--config", merge_yaml, "--config", wrong)
    assert code == 2
    assert str(wrong) in err
    for part in expected:
        assert part in err
    assert err.count("\n") <= 2


def test_what_must_be_given_is_named(cli: Cli) -> None:
    code, _, err = cli("fit", "--model.student.path=x")
    assert code == 2
    assert err == "error: `data.task` must be given, as `--data.task ...` or in a --config file.\n"


def test_a_missing_model_path_is_a_message_not_a_traceback(cli: Cli, merge_yaml: Path, tmp_path: Path) -> None:
    options = [
        "--trainer.logger=false",
        "--trainer.accelerator=cpu",
        "--trainer.max_steps=1",
        f"--trainer.default_root_dir={tmp_path}",
    ]
    options += [f"--model.student.path={tmp_path / 'none'}"]
    code, _, err = cli("fit", "--config", merge_yaml, *options)
    assert code == 2
    assert f"`{tmp_path / 'none'}`" in err.splitlines()[-1]


def test_the_traceback_is_there_on_request(cli: Cli, merge_yaml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTNING_OPD_TRACEBACK", "1")
    with pytest.raises(Exception, match="at least 1"):
        cli("fit", "--config", merge_yaml, "--data.prompts_per_batch=0")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["average", "--bas", "x"], "`bas` on the command line is not a known key. Did you mean `base`?"),
        (["average", "--base", "x", "--models", "[a]"], "`output` must be given"),
        (
            ["average", "--base", "x", "--models", "a", "b", "--output", "y", "--coefficient", "c"],
            "`coefficient` on the command line",
        ),
        (["run"], "`run` expects `recipe` after the command"),
        (["tokenizer", "--task", "lightning_opd.tasks.String", "--output", "x"], "Did you mean `Strings`?"),
        (
            ["tokenizer", "--task", "{class_path: lightning_opd.tasks.Strings, init_args: {agnt: x}}", "--output", "x"],
            "`task.agnt`",
        ),
        (["export", "--checkpoint", "none.ckpt", "--config", "x", "--output", "y"], "`none.ckpt` does not exist"),
    ],
)
def test_short_commands_answer_wrong_words_too(cli: Cli, words: list[str], expected: str) -> None:
    code, _, err = cli(*words)
    assert code == 2
    assert expected in err
