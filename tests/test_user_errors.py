"""Wrong input as a user meets it: one short message that names the cure, before anything expensive."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lightning_opd.cli.main import main

GOOD = [{"prompt": f"question {i}", "teacher": ("math", "code")[i % 2], "answer": "1"} for i in range(40)]


def command(
    world: Path, folder: Path, *words: str, rows: list[dict[str, Any]] | str = "good", **model: Any
) -> list[str]:
    """Return the command line of a small real run over a JSONL file."""
    prompts = folder / "prompts.jsonl"
    if rows == "good":
        rows = GOOD
    prompts.write_text(rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "model": {
            "student": {"path": str(world / "student")},
            "teachers": {name: str(world / name) for name in ("math", "code")},
            **model,
        },
        "data": {
            "task": {"class_path": "lightning_opd.tasks.Jsonl", "init_args": {"path": str(prompts)}},
            "prompts_per_batch": 4,
            "sampling": {"max_new_tokens": 8},
        },
        "trainer": {
            "max_steps": 2,
            "accelerator": "cpu",
            "devices": 1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": str(folder),
        },
    }
    path = folder / "config.yaml"
    path.write_text(json.dumps(config))
    return ["fit", "--config", str(path), *words]


def message(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run and return the error, which must fit one screen and hold no traceback."""
    assert main(arguments) == 2
    text = capsys.readouterr().err
    assert "Traceback" not in text
    lines = [line for line in text.splitlines() if line.startswith("error")]
    assert len(lines) == 1, text
    found = text[text.index("error") :]
    assert len(found.splitlines()) <= 4, found
    return found


def test_the_command_itself_is_good(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(world, tmp_path)) == 0


def test_unknown_teacher(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = message(command(world, tmp_path, rows=[{**row, "teacher": "maths"} for row in GOOD]), capsys)
    assert "`maths`" in text
    assert "['code', 'math']" in text
    assert "Did you mean `math`" in text


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("", ["prompts.jsonl", "has no prompts"]),
        ('{"prompt": "a", "teacher": "math"}\n{"prompt": \n', ["prompts.jsonl:2", "JSON object"]),
        ('{"question": "a", "teacher": "math"}\n', ["prompts.jsonl:1", "`prompt`"]),
        ('{"prompt": "a"}\n', ["prompts.jsonl:1", "`teacher`"]),
    ],
)
def test_bad_prompt_files(
    rows: str, words: list[str], world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = message(command(world, tmp_path, rows=rows), capsys)
    for word in words:
        assert word in text


def test_missing_prompt_file(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = message(command(world, tmp_path, "--data.task.init_args.path", str(tmp_path / "none.jsonl")), capsys)
    assert "none.jsonl" in text


@pytest.mark.parametrize("key", ["model.student.path", "model.teachers.math"])
def test_missing_model_path(key: str, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = message(command(world, tmp_path, f"--{key}={tmp_path}/no/such/model"), capsys)
    assert "no/such/model" in text


@pytest.mark.parametrize("token", ["pad_token", "eos_token"])
def test_a_tokenizer_needs_a_stop_token_but_no_padding_token(
    token: str, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(world / "student")
    setattr(tokenizer, token, None)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    words = command(world, tmp_path, f"--model.student.tokenizer={tmp_path / 'tokenizer'}")
    if token == "pad_token":
        assert main(words) == 0
        return
    text = message(words, capsys)
    assert "`eos_token`" in text
    assert "tokenizer_config.json" in text


def test_prompt_longer_than_the_context(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{**row, "prompt": f"{row['prompt']} " + "long " * 400} for row in GOOD]
    text = message(command(world, tmp_path, rows=rows), capsys)
    assert "exceed the student's context of 256" in text
    assert "max_new_tokens" in text


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--trainer.accumulate_grad_batches=3"], None),
        (["--trainer.accumulate_grad_batches=2", "--trainer.limit_train_batches=3"], "`limit_train_batches` is 3"),
        (["--trainer.accumulate_grad_batches=2", "--trainer.overfit_batches=5"], "`overfit_batches` is 5"),
        (["--trainer.accumulate_grad_batches=5"], "cannot be cut into 5"),
        (
            [
                "--trainer.callbacks+=lightning.pytorch.callbacks.GradientAccumulationScheduler",
                "--trainer.callbacks.scheduling={2: 2}",
            ],
            "GradientAccumulationScheduler",
        ),
        (["--data.prompts_per_batch=400"], "prompts_per_batch"),
        (["--model.objective=PolicyGradient", "--data.sampling.top_p=0.9"], "off_policy: TruncatedImportance"),
        (["--data.sampling.temperature=0"], "temperature 0"),
        (["--data.sampling.temperature=-1"], "temperature"),
    ],
    ids=str,
)
def test_settings_that_would_cut_or_bend_a_rollout_batch(
    words: list[str], expected: str | None, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = command(world, tmp_path, *words)
    if expected is None:
        assert main(arguments) == 0
    else:
        assert expected in message(arguments, capsys)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--model.objectiv.clip=3"], "objective"),
        (["--model.objective=lightning_opd.objectives.PolicyGradiant"], "PolicyGradient"),
        (["--model.objective=lightning_opd.tasks.Strings"], "model.objective"),
        (["--data.samples_per_prompt=two"], "samples_per_prompt"),
    ],
)
def test_yaml_keys_and_components(
    words: list[str], expected: str, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert expected in message(command(world, tmp_path, *words), capsys)


def test_going_on_from_nothing_is_an_error(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    saving = ("--trainer.enable_checkpointing=true", "--trainer.callbacks+=lightning_opd.callbacks.LastCheckpoint")
    text = message(command(world, tmp_path, *saving, "--ckpt_path=last"), capsys)
    assert "there is no last checkpoint" in text
    assert "Leave the option out" in text


def test_too_few_prompts_are_seen_before_any_weight(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    for path in (world / "student").iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / "empty" / path.name).write_bytes(path.read_bytes())
    words = (f"--model.student.path={tmp_path / 'empty'}", "--data.prompts_per_batch=400")
    assert "`prompts_per_batch` is 400" in message(command(world, tmp_path, *words), capsys)
