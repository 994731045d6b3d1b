from __future__ import annotations

from pathlib import Path

import pytest

from tests.commands import Cli

SCRIPT = """
from pathlib import Path
import neighbour

def main(seed: int, output: str, times: int = 1) -> None:
    Path(output).write_text(neighbour.WORD * times + str(seed))
"""


@pytest.fixture(autouse=True)
def _in_the_folder_of_the_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes/mine").mkdir(parents=True)
    (tmp_path / "recipes/mine/step.py").write_text(SCRIPT)
    (tmp_path / "recipes/mine/neighbour.py").write_text("WORD = 'hello '")
    (tmp_path / "recipes/mine/step.yaml").write_text(
        "file: ${recipe}/step.py\narguments: {output: '${run}/said/said.txt', times: 2}\n"
    )
    (tmp_path / "recipes/mine/recipe.yaml").write_text("steps:\n  - {name: said, command: script, config: step.yaml}\n")


def test_a_recipe_runs_a_python_step_with_its_arguments_and_seed(cli: Cli, tmp_path: Path) -> None:
    code, out, err = cli("run", "recipes/mine", "--seed", "3")
    assert code == 0, err
    assert (tmp_path / "runs/mine/seed3/said/said.txt").read_text() == "hello hello 3"
    code, out, _ = cli("run", "recipes/mine", "--seed", "3")
    assert "finished before" in out
    (tmp_path / "recipes/mine/neighbour.py").write_text("WORD = 'other '")
    code, out, err = cli("run", "recipes/mine", "--seed", "4")
    assert code == 0, err


def test_a_changed_script_redoes_its_step(cli: Cli, tmp_path: Path) -> None:
    cli("run", "recipes/mine")
    (tmp_path / "recipes/mine/step.py").write_text(SCRIPT.replace("str(seed)", "'!'"))
    cli("run", "recipes/mine")
    assert (tmp_path / "runs/mine/seed0/said/said.txt").read_text() == "hello hello !"


def test_an_interrupted_script_finds_its_folder_as_it_left_it(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "recipes/mine/step.py").write_text(
        "from pathlib import Path\n\ndef main(seed: int, output: str, times: int) -> None:\n"
        "    path = Path(output)\n    path.write_text((path.read_text() if path.exists() else '') + 'x')\n"
        "    assert len(path.read_text()) == times, 'not yet'\n"
    )
    code, _, err = cli("run", "recipes/mine")
    assert code == 1
    assert "not yet" in err
    code, out, err = cli("run", "recipes/mine")
    assert code == 0, err
    assert "going on" in out
    assert (tmp_path / "runs/mine/seed0/said/said.txt").read_text() == "xx"
    cli("run", "recipes/mine", "--from", "said")
    assert (tmp_path / "runs/mine/seed0/said/said.txt").read_text() == "x"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["recipes/mine/other.py"], "does not exist"),
        (["recipes/mine/neighbour.py"], "no function `main`"),
        (["recipes/mine/step.py"], "needs `output`"),
        (["recipes/mine/step.py", "--arguments", "{output: x, tmies: 2}"], "Did you mean `times`?"),
    ],
)
def test_a_wrong_step_is_explained(cli: Cli, words: list[str], said: str) -> None:
    code, _, err = cli("script", *words)
    assert code == 2
    assert said in err


def test_a_recipe_runs_another_one_first_with_its_own_seed_and_output(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "recipes/outer").mkdir()
    (tmp_path / "recipes/outer/step.py").write_text(
        "import shutil\n\ndef main(seed: int, source: str, output: str) -> None:\n    shutil.copy(source, output)\n"
    )
    (tmp_path / "recipes/outer/step.yaml").write_text(
        "file: ${recipe}/step.py\n"
        "arguments: {source: '${runs}/mine/seed${seed}/said/said.txt', output: '${run}/copied/said.txt'}\n"
    )
    (tmp_path / "recipes/outer/recipe.yaml").write_text(
        "steps:\n"
        "  - {name: inner, command: run, overrides: [recipes/mine, --until, said]}\n"
        "  - {name: copied, command: script, config: step.yaml}\n"
    )
    code, _, err = cli("run", "recipes/outer", "--seed", "5", "--output", "elsewhere")
    assert code == 0, err
    assert (tmp_path / "elsewhere/outer/seed5/copied/said.txt").read_text() == "hello hello 5"
    _, out, _ = cli("run", "recipes/outer", "--seed", "5", "--output", "elsewhere")
    assert out.count("finished before") == 2
    (tmp_path / "recipes/mine/step.yaml").write_text(
        "file: ${recipe}/step.py\narguments: {output: '${run}/said/said.txt'}\n"
    )
    cli("run", "recipes/outer", "--seed", "5", "--output", "elsewhere")
    assert (tmp_path / "elsewhere/outer/seed5/copied/said.txt").read_text() == "hello 5"
