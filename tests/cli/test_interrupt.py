"""Ctrl-C outside training: while libraries are imported, in a command, while a model is exported."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import lightning as L
import pytest
from lightning.pytorch.callbacks import Callback

from lightning_opd.cli.main import main
from lightning_opd.processes import LAUNCHER
from tests.test_user_errors import command

ROOT = Path(__file__).parents[2]
INTERRUPT = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(0.05)\n"
STEPS = {
    "importing": "import inner\n",
    "importing what may be missing": "try:\n    import inner\nexcept BaseException:\n    pass\n",
    "working": f"def work():\n{''.join(f'    {line}{chr(10)}' for line in INTERRUPT.splitlines())}",
}
"""What the file of a recipe's step begins with."""
SCRIPT = "from lightning_opd.__main__ import main; exit(main())"
ENTRIES = {
    "module": ["-m", "lightning_opd"],
    "script": ["-c", SCRIPT],
    "background": ["-c", f"import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); {SCRIPT}"],
}


@pytest.fixture(autouse=True)
def _hears_interrupts() -> Iterator[None]:
    """Let the processes of these tests hear Ctrl-C, also where these run in the background and so do not."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Interrupted(Callback):
    """Ends as a user does who has seen enough."""

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        raise KeyboardInterrupt


def test_an_interrupt_after_training_has_its_own_status(world: Path, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    words = command(world, tmp_path, "--trainer.callbacks+=tests.cli.test_interrupt.Interrupted")
    with pytest.raises(SystemExit) as caught:
        main(words)
    signal.signal(signal.SIGINT, before)  # Lightning ignores it from then on
    assert caught.value.code == 128 + signal.SIGINT


def run_step(folder: Path, entry: str, step: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a file in a process of its own, in the middle of which Ctrl-C is pressed."""
    (folder / "inner.py").write_text(INTERRUPT)
    (folder / "step.py").write_text(
        f"{step}\ndef main(seed):\n    work() if 'work' in globals() else print('went on')\n"
    )
    inherited = {name: value for name, value in os.environ.items() if name != LAUNCHER}  # an earlier test's command
    environment = {**inherited, "PYTHONPATH": str(ROOT), **settings}
    words = [sys.executable, *ENTRIES[entry], "script", str(folder / "step.py")]
    return subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("entry", ["module", "script"])
@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_an_interrupt_at_any_moment_has_one_line_and_its_status(step: str, entry: str, tmp_path: Path) -> None:
    result = run_step(tmp_path, entry, step)
    assert (result.returncode, result.stderr, result.stdout) == (130, "stopped by Ctrl-C.\n", "")


def test_a_further_rank_says_nothing_of_it(tmp_path: Path) -> None:
    result = run_step(tmp_path, "module", STEPS["importing"], LOCAL_RANK="1")
    assert (result.returncode, result.stderr, result.stdout) == (130, "", "")


def test_a_job_in_the_background_that_ignores_it_goes_on(tmp_path: Path) -> None:
    result = run_step(tmp_path, "background", STEPS["importing"])
    assert (result.returncode, result.stderr, result.stdout) == (0, "", "went on\n")


def test_the_console_script_begins_where_the_module_does() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    assert scripts == {"lightning-opd": "lightning_opd.__main__:main"}
