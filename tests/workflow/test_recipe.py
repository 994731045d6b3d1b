from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from lightning_opd.workflow.recipe import read_recipe
from lightning_opd.workflow.step import resolve
from tests.commands import Cli, Write
from tests.tiny import model_config

SCORES = {"rows": [{"key": "a", "domain": "d", "teacher": "t", "split": "test", "mode": "greedy", "reward": 1.0}]}
"""Both sides of a comparison."""

STEP = """
from pathlib import Path

def main(seed, output, text):
    if text == "stop":
        raise KeyboardInterrupt
    Path(output).write_text(f"{text} {seed}")
"""
"""A step that costs nothing."""

FIT = {
    "model": {
        "class_path": "lightning_opd.SFTModule",
        "init_args": {
            "student": {"random_init": model_config(320), "tokenizer": "${run}/tokenizer"},
        },
    },
    "data": {
        "class_path": "lightning_opd.SFTDataModule",
        "init_args": {"task": {"class_path": "lightning_opd.tasks.Strings"}, "batch_size": 4, "num_examples": 32},
    },
    "trainer": {
        "max_steps": 2,
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "limit_val_batches": 0,
        "log_every_n_steps": 1,
        "default_root_dir": "${run}/base",
        "callbacks": [
            {
                "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
                "init_args": {
                    "dirpath": "${run}/base/checkpoints",
                    "save_last": True,
                    "every_n_train_steps": 2,
                    "enable_version_counter": False,
                },
            },
            {"class_path": "lightning_opd.callbacks.ExportHuggingFace"},
        ],
    },
}


@pytest.fixture(autouse=True)
def _in_the_folder_of_the_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def step(name: str, text: str) -> dict[str, object]:
    """Return the configuration of a step that writes a text to `<name>/parity.md`."""
    return {"file": "${recipe}/step.py", "arguments": {"output": f"${{run}}/{name}/parity.md", "text": text}}


@pytest.fixture
def recipe(write_yaml: Write) -> Path:
    """A recipe of two steps that cost nothing; the second one writes the report."""
    write_yaml("small/step.py", STEP)
    write_yaml("small/words.yaml", step("words", "hello"))
    write_yaml("small/report.yaml", step("report", "the report"))
    return write_yaml("small/recipe.yaml", {"steps": [
        {"name": "words", "command": "script", "config": "words.yaml"},
        {"name": "report", "command": "script", "config": "report.yaml"},
    ]}).parent  # fmt: skip


@pytest.fixture
def real_recipe(write_yaml: Write) -> Path:
    """A recipe of two real steps: a tokenizer, and a parity report driven by its YAML."""
    tokenizer = {
        "task": {"class_path": "lightning_opd.tasks.Strings"},
        "vocab_size": 320,
        "num_examples": 20,
        "output": "${run}/tokenizer",
    }
    write_yaml("scores.json", json.dumps(SCORES))
    write_yaml("small/tokenizer.yaml", tokenizer)
    write_yaml("small/parity.yaml", {"scores": ["student=scores.json"], "output": "${run}/report", "bootstrap": 20})
    return write_yaml("small/recipe.yaml", {"steps": [
        {"name": "tokenizer", "command": "tokenizer", "config": "tokenizer.yaml"},
        {"name": "report", "command": "parity", "config": "parity.yaml",
         "overrides": ["teacher.t=scores.json", "student=scores.json"]},
    ]}).parent  # fmt: skip


def statuses(out: str) -> dict[str, str]:
    """Return step → status from the summary table."""
    table = out.rpartition("summary")[2].splitlines()
    found = [line.split() for line in table if line.split()[1:2] and line.split()[1] in {"done", "skipped", "resumed"}]
    return {line[0]: line[1] for line in found}


def test_steps_run_in_order_and_leave_their_outputs(cli: Cli, real_recipe: Path) -> None:
    code, out, err = cli("run", real_recipe)
    assert code == 0, err
    assert out.index("[1/2] tokenizer") < out.index("[2/2] report")
    assert statuses(out) == {"tokenizer": "done", "report": "done"}
    assert Path("runs/small/seed0/tokenizer/tokenizer.json").is_file()
    assert Path("runs/small/seed0/report/parity.json").is_file()
    inputs = yaml.safe_load(Path("runs/small/seed0/tokenizer/inputs/tokenizer.yaml").read_text())
    written = yaml.safe_load((real_recipe / "tokenizer.yaml").read_text())
    assert inputs == {**written, "output": "runs/small/seed0/tokenizer"}


def test_finished_steps_are_skipped_and_their_report_is_shown_again(cli: Cli, recipe: Path) -> None:
    cli("run", recipe)
    before = Path("runs/small/seed0/words/parity.md").stat().st_mtime_ns
    code, out, _ = cli("run", recipe)
    assert code == 0
    assert statuses(out) == {"words": "skipped", "report": "skipped"}
    assert Path("runs/small/seed0/words/parity.md").stat().st_mtime_ns == before
    assert out.count("the report 0") == 1


def test_a_changed_step_and_all_after_it_are_redone_and_old_outputs_archived(
    cli: Cli, recipe: Path, write_yaml: Write
) -> None:
    cli("run", recipe)
    write_yaml("small/words.yaml", step("words", "goodbye"))
    assert statuses(cli("run", recipe)[1]) == {"words": "done", "report": "done"}
    assert Path("runs/small/previous/seed0/words/parity.md").read_text() == "hello 0"
    assert Path("runs/small/previous/seed0/report/parity.md").is_file()


def test_a_changed_last_step_leaves_the_earlier_ones(cli: Cli, recipe: Path, write_yaml: Write) -> None:
    cli("run", recipe)
    write_yaml("small/report.yaml", step("report", "another report"))
    assert statuses(cli("run", recipe)[1]) == {"words": "skipped", "report": "done"}


def test_a_changed_comment_redoes_nothing(cli: Cli, recipe: Path) -> None:
    cli("run", recipe)
    (recipe / "words.yaml").write_text("# a comment\n" + (recipe / "words.yaml").read_text())
    assert statuses(cli("run", recipe)[1]) == {"words": "skipped", "report": "skipped"}


def test_another_version_redoes_everything(cli: Cli, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cli("run", recipe)
    monkeypatch.setattr("lightning_opd.workflow.step.__version__", "999")
    assert statuses(cli("run", recipe)[1]) == {"words": "done", "report": "done"}


def test_the_command_is_part_of_a_fingerprint(recipe: Path, write_yaml: Write) -> None:
    def fingerprints(first: str) -> list[str]:
        steps = [{"name": "words", "command": first}, {"name": "report", "command": "script", "config": "report.yaml"}]
        write_yaml("small/recipe.yaml", {"steps": steps})
        return [step.fingerprint for step in resolve(read_recipe(recipe), "runs", seed=0)]

    fit, average = fingerprints("fit"), fingerprints("average")
    assert fit == fingerprints("fit")
    assert fit[0] != average[0]
    assert fit[1] != average[1], "a later step depends on it"


def test_the_seed_and_the_overrides_are_part_of_a_fingerprint_and_the_folder_of_outputs_is_not(
    recipe: Path, write_yaml: Write
) -> None:
    def fingerprint(seed: int = 0, output: str = "runs", overrides: tuple[str, ...] = ()) -> str:
        steps = [{"name": "words", "command": "script", "config": "words.yaml", "overrides": list(overrides)}]
        write_yaml("small/recipe.yaml", {"steps": steps})
        return resolve(read_recipe(recipe), output, seed)[0].fingerprint

    assert fingerprint() == fingerprint(output="elsewhere")
    assert len({fingerprint(), fingerprint(seed=1), fingerprint(overrides=("--seed=2",))}) == 3


def test_until_and_from_choose_the_steps(cli: Cli, recipe: Path) -> None:
    assert statuses(cli("run", recipe, "--until", "words")[1]) == {"words": "done"}
    assert statuses(cli("run", recipe, "--from", "report")[1]) == {"words": "skipped", "report": "done"}
    assert statuses(cli("run", recipe, "--from", "words")[1]) == {"words": "done", "report": "done"}


def test_seed_and_output_move_every_path(cli: Cli, recipe: Path) -> None:
    code, out, err = cli("run", recipe, "--seed", 2, "--output", "elsewhere")
    assert code == 0, err
    assert statuses(out) == {"words": "done", "report": "done"}
    assert Path("elsewhere/small/seed2/words/parity.md").read_text() == "hello 2"
    assert Path("elsewhere/small/seed2/report/parity.md").is_file()
    assert not Path("runs").exists()


def test_a_path_that_only_looks_like_the_runs_is_left_alone(cli: Cli, recipe: Path, write_yaml: Write) -> None:
    arguments = {"output": "alike.txt", "text": "runs/small/seed0 run $run"}
    write_yaml("small/words.yaml", {**step("words", ""), "arguments": arguments})
    assert cli("run", recipe, "--seed", 3, "--until", "words")[0] == 0
    assert Path("alike.txt").read_text() == "runs/small/seed0 run $run 3"


def test_a_step_run_by_hand_writes_where_the_recipe_with_seed_0_would(cli: Cli, recipe: Path) -> None:
    Path("runs/small/seed0/words").mkdir(parents=True)
    code, _, err = cli("script", "--config", recipe / "words.yaml")
    assert code == 0, err
    assert Path("runs/small/seed0/words/parity.md").read_text() == "hello 0"


def test_a_failing_step_says_which_where_and_how_to_go_on(cli: Cli, real_recipe: Path) -> None:
    Path("scores.json").unlink()
    code, _, err = cli("run", real_recipe)
    assert code == 2
    assert "error: step `report` (parity) failed: scores file `scores.json` does not exist" in err
    assert "Outputs so far: runs/small/seed0/report" in err
    assert "python -m lightning_opd parity --config runs/small/seed0/report/inputs/parity.yaml" in err
    assert f"go on with: python -m lightning_opd run {real_recipe}" in err
    assert "Traceback" not in err
    Path("scores.json").write_text(json.dumps(SCORES))
    assert statuses(cli("run", real_recipe)[1]) == {"tokenizer": "skipped", "report": "done"}


def test_ctrl_c_inside_a_step_ends_with_130_and_says_how_to_go_on(cli: Cli, recipe: Path, write_yaml: Write) -> None:
    write_yaml("small/report.yaml", step("report", "stop"))
    code, _, err = cli("run", recipe)
    assert code == 130
    assert "stopped in step `report` (script)" in err
    assert f"go on with: python -m lightning_opd run {recipe}" in err
    assert "Traceback" not in err


@pytest.mark.filterwarnings("ignore")  # Lightning's advice on workers and loggers
def test_an_interrupted_fit_goes_on_from_its_checkpoint(cli: Cli, real_recipe: Path, write_yaml: Write) -> None:
    write_yaml("small/base.yaml", FIT)
    steps = yaml.safe_load((real_recipe / "recipe.yaml").read_text())["steps"]
    steps.insert(1, {"name": "base", "command": "fit", "config": "base.yaml", "overrides": ["--trainer.max_steps=3"]})
    write_yaml("small/recipe.yaml", {"steps": steps})
    code, out, err = cli("run", real_recipe, "--seed", 1)
    assert code == 0, err
    assert statuses(out) == {"tokenizer": "done", "base": "done", "report": "done"}
    base = Path("runs/small/seed1/base")
    assert yaml.safe_load((base / "config.yaml").read_text())["seed_everything"] == 1
    weights = (base / "model" / "model.safetensors").read_bytes()
    (base / "model" / "model.safetensors").unlink()

    marker = json.loads((base / "step.json").read_text())
    (base / "step.json").write_text(json.dumps({**marker, "finished": False}))  # as a killed process leaves it
    code, out, err = cli("run", real_recipe, "--seed", 1)
    assert code == 0, err
    assert statuses(out) == {"tokenizer": "skipped", "base": "resumed", "report": "skipped"}
    assert (base / "model" / "model.safetensors").read_bytes() == weights

    exported = Path("exported")
    kept = torch.load(base / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    words = ["--checkpoint", base / "checkpoints/last.ckpt", "--config", base / "config.yaml", "--output", exported]
    code, _, err = cli("export", *words)
    assert code == 0, err
    for name, value in load_file(exported / "model.safetensors").items():
        assert torch.equal(value, kept[f"student.{name}"])
    assert (exported / "tokenizer.json").is_file()


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([], "must hold a list `steps:`"),
        ([{"name": "a", "command": "fitt"}], "`fitt` is not a command. Did you mean `fit`?"),
        ([{"name": "a", "command": "run"}], "names it first in `overrides`"),
        ([{"name": "a", "command": "fit", "overides": []}], "Did you mean `overrides`?"),
        ([{"name": "a", "command": "fit", "config": "none.yaml"}], "none.yaml`, which does not exist"),
        ([{"name": "a/b", "command": "fit"}], "a word that can name a folder, got `a/b`"),
        ([{"name": "a", "command": "parity"}, {"name": "a", "command": "parity"}], "several steps named `a`"),
    ],
)
def test_a_wrong_recipe_is_answered_in_one_line(
    cli: Cli, write_yaml: Write, steps: list[object], expected: str
) -> None:
    folder = write_yaml("mine/recipe.yaml", {"steps": steps}).parent
    code, _, err = cli("run", folder)
    assert code == 2
    assert expected in err
    assert err.count("\n") == 1


def test_an_unknown_step_gets_a_suggestion(cli: Cli, recipe: Path) -> None:
    code, _, err = cli("run", recipe, "--until", "wrds")
    assert code == 2
    assert "Did you mean `words`?" in err


def test_an_unknown_recipe_is_named(cli: Cli) -> None:
    code, _, err = cli("run", "nowhere")
    assert code == 2
    assert "recipe `nowhere` does not exist" in err
