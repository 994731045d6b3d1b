from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from lightning_opd.errors import ConfigError
from lightning_opd.options.sources import ConfigSources, Variables
from tests.commands import Write

ALL = {"run": "${run}/base", "list": ["${runs}", {"recipe": "${recipe}/step.py"}], "seed": "seed ${seed}", "n": 3}


@pytest.fixture
def folders(tmp_path: Path, write_yaml: Write, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two recipes and a folder of configs that is none."""
    monkeypatch.chdir(tmp_path)
    for recipe in ("first", "second"):
        write_yaml(f"recipes/{recipe}/recipe.yaml", {"steps": []})
        write_yaml(f"recipes/{recipe}/step.yaml", ALL)
    write_yaml("configs/plain.yaml", {"output": "${run}/x"})
    return tmp_path


def trees(*words: str) -> list[dict[str, object]]:
    return [source.tree for source in ConfigSources.read(words).sources]


def test_variables_are_those_of_the_recipe_of_the_file_with_seed_0(folders: Path) -> None:
    assert trees("--config", "recipes/first/step.yaml") == [
        {
            "run": "runs/first/seed0/base",
            "list": ["runs", {"recipe": "recipes/first/step.py"}],
            "seed": "seed 0",
            "n": 3,
        }
    ]


def test_the_last_file_of_a_recipe_decides_for_the_whole_command_line(folders: Path) -> None:
    first, second, plain, option = trees(
        *("--config", "recipes/first/step.yaml", "--config=recipes/second/step.yaml"),
        *("-c", "configs/plain.yaml", "--model.path=${run}/model"),
    )
    assert first["run"] == second["run"] == "runs/second/seed0/base"
    assert plain == {"output": "runs/second/seed0/x"}
    assert option == {"model": {"path": "runs/second/seed0/model"}}


def test_a_file_outside_of_recipes_has_the_run_of_its_folder(folders: Path) -> None:
    assert trees("--config", "configs/plain.yaml") == [{"output": "runs/configs/seed0/x"}]


def test_a_run_has_its_own_output_and_seed(folders: Path) -> None:
    resolved = Variables(Path("recipes/first"), "elsewhere", 7).resolve(ALL, "in `step.yaml`")
    assert resolved == {
        "run": "elsewhere/first/seed7/base",
        "list": ["elsewhere", {"recipe": "recipes/first/step.py"}],
        "seed": "seed 7",
        "n": 3,
    }


def test_an_unknown_variable_is_named_with_its_place(folders: Path, write_yaml: Write) -> None:
    write_yaml("recipes/first/wrong.yaml", {"output": "${rn}/x"})
    with pytest.raises(ConfigError, match=r"`\$\{rn\}` in `recipes/first/wrong.yaml` is not .* mean `run`\?"):
        ConfigSources.read(["--config", "recipes/first/wrong.yaml"])


def test_inlined_files_keep_every_type(write_yaml: Write) -> None:
    text = "{int: 3, float: 1e-5, infinite: .inf, text: '1e-5', word: no, none: null, keys: {2: 2}, list: [a: b]}"
    words = ConfigSources.read(["--x", "1", "--config", str(write_yaml("all.yaml", text))]).inlined()
    assert words[:3] == ["--x", "1", "--config"]
    assert yaml.safe_load(words[3]) == {
        "int": 3, "float": 1e-5, "infinite": float("inf"), "text": "1e-5", "word": False, "none": None, "keys": {2: 2},
        "list": [{"a": "b"}],
    }  # fmt: skip


def test_what_was_written_last_is_found_first(write_yaml: Write) -> None:
    path = write_yaml("one.yaml", {"data": {"init_args": {"task": {"class_path": "a.B"}}}})
    found = list(ConfigSources.read(["--config", str(path), "--data.task+=c.D"]).mentions())
    assert (("data", "task"), "c.D", "on the command line") in found[:1]
    assert (("data", "task"), "a.B", f"in `{path}`") in found
