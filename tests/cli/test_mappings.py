from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.commands import Cli, Write


def resolved(cli: Cli, *words: object) -> dict[str, Any]:
    """Return the configuration that `fit` would run with."""
    code, out, err = cli("fit", *words, "--print_config")
    assert code == 0, err
    config: dict[str, Any] = yaml.safe_load(out)
    return config


def teachers(config: dict[str, Any]) -> dict[str, object]:
    found: dict[str, object] = config["model"]["init_args"]["teachers"]
    return found


def test_teachers_of_several_files_are_merged_by_name(cli: Cli, merge_yaml: Path, write_yaml: Write) -> None:
    more = write_yaml("more.yaml", {"model": {"teachers": {"code": "runs/c", "strings": "runs/better"}}})
    config = resolved(cli, "--config", merge_yaml, f"--config={more}")
    assert teachers(config) == {"arithmetic": "runs/a", "strings": "runs/better", "code": "runs/c"}


def test_null_removes_a_teacher(cli: Cli, merge_yaml: Path, write_yaml: Write) -> None:
    less = write_yaml("less.yaml", {"model": {"teachers": {"strings": None}}, "trainer": {"max_steps": 3}})
    config = resolved(cli, "--config", merge_yaml, "--config", less)
    assert teachers(config) == {"arithmetic": "runs/a"}
    assert config["trainer"]["max_steps"] == 3


def test_a_removed_teacher_can_come_back(cli: Cli, merge_yaml: Path, write_yaml: Write) -> None:
    less = write_yaml("less.yaml", {"model": {"teachers": {"strings": None}}})
    again = write_yaml("again.yaml", {"model": {"init_args": {"teachers": {"strings": "runs/new"}}}})
    config = resolved(cli, "--config", merge_yaml, "--config", less, "--config", again)
    assert teachers(config) == {"arithmetic": "runs/a", "strings": "runs/new"}


def test_the_command_line_adds_a_teacher_as_a_class(cli: Cli, merge_yaml: Path) -> None:
    spec = "{class_path: lightning_opd.teachers.LocalTeacher, init_args: {path: runs/c}}"
    config = resolved(cli, "--config", merge_yaml, "--model.teachers.code", spec)
    assert list(teachers(config)) == ["arithmetic", "strings", "code"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--model.teachers.strings", "null"], {"arithmetic": "runs/a"}),
        (["--model.teachers.strings=null"], {"arithmetic": "runs/a"}),
        (["--model.init_args.teachers.strings=null"], {"arithmetic": "runs/a"}),
        (["--model.teachers", "{strings: null, code: runs/c}"], {"arithmetic": "runs/a", "code": "runs/c"}),
        (["--model.teachers.strings=null", "--model.teachers.strings=1"], {"arithmetic": "runs/a", "strings": "1"}),
    ],
)
def test_options_compose_the_teachers_as_files_do(
    cli: Cli, merge_yaml: Path, words: list[str], expected: dict[str, str]
) -> None:
    before, after = ("--trainer.max_steps", "3"), ("--data.prompts_per_batch=2",)
    config = resolved(cli, "--config", merge_yaml, *before, *words, *after)
    assert teachers(config) == expected
    assert (config["trainer"]["max_steps"], config["data"]["init_args"]["prompts_per_batch"]) == (3, 2)


def test_tasks_of_a_mixture_are_merged_by_name(cli: Cli, merge_yaml: Path, write_yaml: Write) -> None:
    tasks = {
        "strings": None,
        "sloppy": {"class_path": "lightning_opd.tasks.Arithmetic", "init_args": {"agent": "sloppy"}},
    }
    task = {"class_path": "lightning_opd.tasks.Mixture", "init_args": {"tasks": tasks}}
    config = resolved(cli, "--config", merge_yaml, "--config", write_yaml("tasks.yaml", {"data": {"task": task}}))
    merged = config["data"]["init_args"]["task"]["init_args"]["tasks"]
    assert {name: spec["init_args"]["agent"] for name, spec in merged.items()} == {
        "arithmetic": "expert",
        "sloppy": "sloppy",
    }


@pytest.mark.parametrize("prefix", ["data.task.init_args", "data.task", "data.init_args.task.init_args"])
def test_null_on_the_command_line_leaves_out_what_a_file_sets(
    cli: Cli, merge_yaml: Path, write_yaml: Write, prefix: str
) -> None:
    settings = {
        "split": {"test": 0.2},
        "columns": {"prompt": "question"},
        "system_prompt": "Be brief.",
        "teacher": "math",
        "test_path": "test.jsonl",
    }
    task = {"class_path": "lightning_opd.tasks.Jsonl", "init_args": {"path": "rows.jsonl", **settings}}
    words = ("--config", merge_yaml, "--config", write_yaml("rows.yaml", {"data": {"task": task}}))
    given = resolved(cli, *words)["data"]["init_args"]["task"]["init_args"]
    assert {key: given[key] for key in settings} == settings
    nulls = [word for key in settings for word in (f"--{prefix}.{key}", "null")]
    without = resolved(cli, *words, *nulls)["data"]["init_args"]["task"]["init_args"]
    assert without == {**given, **dict.fromkeys(settings)}


def test_another_task_in_a_later_file_replaces_the_mixture(cli: Cli, merge_yaml: Path, write_yaml: Write) -> None:
    more = write_yaml("more.yaml", {"data": {"task": {"init_args": {"tasks": {"strings": None}}}}})
    other = write_yaml("other.yaml", {"data": {"task": {"class_path": "lightning_opd.tasks.Strings"}}})
    config = resolved(cli, "--config", merge_yaml, "--config", more, "--config", other)
    assert config["data"]["init_args"]["task"]["class_path"] == "lightning_opd.tasks.Strings"


def test_model_and_data_need_no_class_path(cli: Cli, merge_yaml: Path) -> None:
    config = resolved(cli, "--config", merge_yaml)
    assert config["model"]["class_path"] == "lightning_opd.OPDModule"
    assert config["data"]["class_path"] == "lightning_opd.OPDDataModule"
    assert config["seed_everything"] == 0


def test_the_printed_configuration_reads_back_as_it_was(cli: Cli, merge_yaml: Path, write_yaml: Write) -> None:
    config = resolved(cli, "--config", merge_yaml, "--trainer.max_steps=7")
    assert resolved(cli, "--config", write_yaml("printed.yaml", config)) == config
