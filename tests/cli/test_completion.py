from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path

import pytest

from lightning_opd.options.table import command_names
from tests.commands import Cli

COMPLETE = """
source "$1"
COMP_WORDS=("${@:2}"); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMP_TYPE=9
_shtab_lightning_opd lightning-opd "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""
"""What bash runs when the tab key is pressed after the words."""


def completions(script: Path, *words: str) -> set[str]:
    run = ["bash", "--norc", "-c", COMPLETE, "bash", str(script), "lightning-opd", *words]
    done = subprocess.run(run, capture_output=True, text=True, check=True, timeout=60)
    return set(done.stdout.split())


@pytest.mark.slow
def test_the_script_for_bash_completes_commands_options_and_classes(cli: Cli, tmp_path: Path) -> None:
    pytest.importorskip("shtab")
    code, out, _ = cli("fit", "--print_shtab", "bash")
    assert code == 0
    script = tmp_path / "completion.bash"
    script.write_text(out, encoding="utf-8")
    subprocess.run(["bash", "-n", str(script)], check=True, timeout=60)
    assert completions(script, "") == set(command_names())
    assert completions(script, "fit", "--model.objective.off") >= {"--model.objective.off_policy"}
    assert completions(script, "test", "--data.eval") >= {"--data.evaluation.num_prompts"}
    assert completions(script, "run", "--f") == {"--from"}
    assert completions(script, "fit", "--model.objective", "lightning_opd.objectives.P") == {
        "lightning_opd.objectives.PolicyGradient"
    }


@pytest.mark.slow
def test_the_script_for_zsh_is_printed_without_a_command_too(cli: Cli) -> None:
    pytest.importorskip("shtab")
    code, out, _ = cli("--print_shtab=zsh")
    assert code == 0
    assert out.startswith("#compdef lightning-opd")


@pytest.mark.parametrize("words", [["--print_shtab"], ["--print_shtab", "zhs"], ["fit", "--print_shtab=--model"]])
def test_an_unknown_shell_is_refused_in_one_line(cli: Cli, words: list[str]) -> None:
    code, _, err = cli(*words)
    assert code == 2
    assert "expects a shell (bash, zsh, tcsh)" in err
    assert err.count("\n") == 1


def test_a_missing_shtab_is_answered_with_the_line_that_installs_it(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    code, _, err = cli("fit", "--print_shtab", "bash")
    assert code == 2
    assert "`pip install shtab`" in err
    assert err.count("\n") == 1
