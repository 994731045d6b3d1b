from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence

import pytest

import lightning_opd
from lightning_opd.options.table import SHORT_COMMANDS, command_names
from tests.commands import Cli


def seconds(words: Sequence[str]) -> float:
    """Return the best of three wall-clock times of a fresh interpreter."""

    def once() -> float:
        started = time.perf_counter()
        subprocess.run([sys.executable, *words], check=True, capture_output=True)
        return time.perf_counter() - started

    return min(once() for _ in range(3))


def test_help_lists_every_command_on_one_line(cli: Cli) -> None:
    code, out, _ = cli("--help")
    assert code == 0
    for command in command_names():
        assert sum(line.split()[:1] == [command] for line in out.splitlines()) == 1


def test_without_a_command_the_overview_is_shown_and_the_command_fails(cli: Cli) -> None:
    code, out, _ = cli()
    assert code == 2
    assert "commands:" in out


def test_version_is_shown(cli: Cli) -> None:
    assert cli("--version") == (0, f"lightning_opd {lightning_opd.__version__}\n", "")


def test_a_mistyped_command_gets_a_suggestion_in_one_line(cli: Cli) -> None:
    code, _, err = cli("averge")
    assert code == 2
    assert "Did you mean `average`?" in err
    assert err.count("\n") == 1


def test_options_before_the_command_are_answered_with_the_right_order(cli: Cli) -> None:
    code, _, err = cli("--config", "x.yaml", "fit")
    assert code == 2
    assert "`python -m lightning_opd fit --config ...`" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("command", SHORT_COMMANDS)
def test_short_commands_explain_every_option(cli: Cli, command: str) -> None:
    code, out, _ = cli(command, "--help")
    assert code == 0
    options = [line for line in out.splitlines() if line.strip().startswith("--")]
    assert len(options) >= 3


@pytest.mark.parametrize(
    "words", [["--help"], *([name, "--help"] for name in SHORT_COMMANDS)], ids=lambda words: words[0]
)
def test_help_loads_nothing_heavy(words: list[str]) -> None:
    heavy = ("torch", "lightning.pytorch", "transformers", "numpy", "matplotlib", "rich")
    code = (
        "import sys; from lightning_opd.cli.main import main\n"
        f"try: main({words})\nexcept SystemExit: pass\n"
        f"loaded = [name for name in {heavy} if name in sys.modules]\n"
        "sys.exit(f'loaded {loaded}' if loaded else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_help_of_a_short_command_is_quick() -> None:
    assert seconds(["-m", "lightning_opd", "tokenizer", "--help"]) - seconds(["-c", "pass"]) < 1.0


def test_help_of_fit_names_classes_and_loads_no_model_library() -> None:
    code = (
        "import sys; from lightning_opd.cli.main import main\n"
        "try: main(['fit', '--help'])\nexcept SystemExit: pass\n"
        "loaded = [name for name in ('peft', 'transformers.models.qwen3') if name in sys.modules]\n"
        "sys.exit(f'loaded {loaded}' if loaded else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert all(
        name in done.stdout for name in ("LocalTeacher", "PolicyGradient", "Jsonl", "HackDetector", "SpanCredit")
    )


@pytest.mark.parametrize("name", [name for name in lightning_opd.__all__ if name != "__version__"])
def test_public_names_are_there(name: str) -> None:
    assert getattr(lightning_opd, name).__name__ == name


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="OPDModul"):
        _ = lightning_opd.OPDModul
