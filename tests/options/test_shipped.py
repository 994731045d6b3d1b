from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from lightning_opd.errors import MissingFileError
from lightning_opd.options.shipped import find, shipped
from lightning_opd.options.sources import ConfigSources
from lightning_opd.workflow.recipe import read_recipe
from tests.commands import Cli

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("place", ["configs", "configs/trainer"])
def test_every_config_is_found_by_its_name_and_by_its_path(place: str) -> None:
    for path in (ROOT / place).glob("*.yaml"):
        assert find(path.name, "*.yaml", "config file") == path
        assert find(f"{place}/{path.name}", "*.yaml", "config file") == path


def test_every_recipe_and_its_steps_are_found_by_name_and_by_path() -> None:
    for path in (ROOT / "recipes").glob("*/recipe.yaml"):
        for name in (path.parent.name, f"recipes/{path.parent.name}", f"recipes/{path.parent.name}/"):
            assert find(name, "recipe.yaml", "recipe") == path.parent
        assert find(f"recipes/{path.parent.name}/recipe.yaml", "*.yaml", "config file") == path


@pytest.mark.parametrize("name", ["", ".", "..", "configs", "trainer", "merge_tiny", "../configs/opd.yaml", "odp.yaml"])
def test_nothing_else_of_the_package_is_a_config(name: str) -> None:
    with pytest.raises(MissingFileError, match=r"does not exist|is a folder"):
        find(name, "*.yaml", "config file")


def test_a_mistyped_name_gets_a_suggestion() -> None:
    with pytest.raises(MissingFileError, match=r"Did you mean `opd\.yaml`\?"):
        find("odp.yaml", "*.yaml", "config file")
    with pytest.raises(MissingFileError, match=r"Did you mean `recipes/merge_tiny`\?"):
        find("recipes/merge_tinny", "recipe.yaml", "recipe")


def test_a_config_taken_from_the_package_is_said_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    sources = ConfigSources.read(["--config", "opd.yaml", "--config=trainer/cpu.yaml"]).sources
    paths = [ROOT / "configs" / "opd.yaml", ROOT / "configs" / "trainer" / "cpu.yaml"]
    assert [source.tree for source in sources] == [yaml.safe_load(path.read_text(encoding="utf-8")) for path in paths]
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("`opd.yaml` is taken from the package (")
    assert "`python -m lightning_opd copy opd.yaml`" in first
    assert str(ROOT / "configs" / "trainer" / "cpu.yaml") in second


def test_other_processes_of_a_run_do_not_say_it_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    ConfigSources.read(["--config", "opd.yaml"])
    assert capsys.readouterr().err == ""


def test_a_file_of_the_current_folder_wins_silently(capsys: pytest.CaptureFixture[str]) -> None:
    Path("opd.yaml").write_text("seed_everything: 7", encoding="utf-8")
    assert ConfigSources.read(["--config", "opd.yaml"]).sources[0].tree == {"seed_everything": 7}
    assert capsys.readouterr().err == ""


def test_a_step_of_a_recipe_found_by_name_means_that_recipe() -> None:
    (source,) = ConfigSources.read(["--config", "recipes/estimators/slopes.yaml"]).sources
    assert source.tree["file"] == str(ROOT / "recipes" / "estimators" / "slopes.py")
    assert source.tree["arguments"] == {"output": "runs/estimators/seed0/slopes"}


def test_a_recipe_runs_by_name_in_an_empty_folder(cli: Cli) -> None:
    code, out, err = cli("run", "merge_tiny", "--until", "tokenizer")
    assert code == 0, err
    assert "`merge_tiny` is taken from the package" in err
    assert Path("runs/merge_tiny/seed0/tokenizer/step.json").is_file()
    assert err.count("\n") == 1
    assert "tokenizer" in out


@pytest.mark.parametrize("name", ["opd.yaml", "configs/opd.yaml"])
def test_a_copied_config_is_taken_from_then_on(cli: Cli, name: str) -> None:
    code, out, _ = cli("copy", name)
    assert code == 0
    assert out.endswith(f"→ {name}\n")
    text = Path(name).read_text(encoding="utf-8")
    assert text == (ROOT / "configs" / "opd.yaml").read_text(encoding="utf-8")
    Path(name).write_text("seed_everything: 7", encoding="utf-8")
    assert ConfigSources.read(["--config", name]).sources[0].tree == {"seed_everything": 7}
    assert cli("copy", name)[0] == 2  # what was edited is not written over
    assert Path(name).read_text(encoding="utf-8") == "seed_everything: 7"


def test_a_copied_recipe_brings_the_one_whose_steps_it_takes(cli: Cli) -> None:
    code, out, err = cli("copy", "recipes/cross_tokenizer")
    assert code == 0, err
    assert out.count("→") == 2
    assert len(read_recipe(Path("recipes/cross_tokenizer")).steps) > 5
    assert find("recipes/cross_tokenizer", "recipe.yaml", "recipe") == Path("recipes/cross_tokenizer")


def test_an_output_is_never_written_over(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    code, _, err = cli("copy", "merge_tiny", "--output", "mine")
    assert code == 2
    assert "`mine` exists, and is not written over" in err
    assert not list((tmp_path / "mine").iterdir())


def test_a_name_without_meaning_lists_what_there_is(cli: Cli) -> None:
    code, _, err = cli("copy", "zzz")
    assert code == 2
    assert len(shipped("recipe.yaml")) == sum(key in err for key in shipped("recipe.yaml"))
    assert err.count("\n") == 1
