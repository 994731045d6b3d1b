"""The first hour of the README, word for word, on tiny models: every command in a process of its own."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from lightning_opd.models import Lora
from tests.tiny import save_adapter, save_model

README = Path(__file__).parents[1] / "README.md"
SECONDS = 120
"""Most that a command may take."""


def commands() -> list[list[str]]:
    """Return the commands of the README's block as words."""
    [block] = re.findall(r"<!-- first_hour -->\n```bash\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    words = [shlex.split(line) for line in block.splitlines()]
    assert all(word[0] == "python" for word in words)
    return [[sys.executable, *word[1:]] for word in words]


def run(words: list[str], folder: Path) -> str:
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def make_own(folder: Path) -> None:
    """Write a user's models and prompts, and name their sizes in the copied configuration."""
    save_model(folder / "models/base")
    for seed, name in enumerate(("math", "code")):
        save_adapter(folder / "models/base", folder / f"models/{name}_expert", seed, Lora(rank=2))
    rows = [{"prompt": f"What is {i}?", "teacher": ("math", "code")[i % 2], "answer": "a"} for i in range(60)]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


def edit(file: Path) -> None:
    config = yaml.safe_load(file.read_text(encoding="utf-8"))
    config["data"]["task"]["init_args"]["split"] = {"validation": 0.05, "test": 0.2}
    config["data"] |= {"prompts_per_batch": 8, "sampling": {"max_new_tokens": 4}}
    config["trainer"] |= {"accelerator": "cpu", "max_steps": 40, "accumulate_grad_batches": 1, "val_check_interval": 40}
    config["trainer"]["callbacks"][0]["init_args"]["every_n_steps"] = 2
    file.write_text(yaml.safe_dump(config), encoding="utf-8")


def stopped(words: list[str], folder: Path) -> int:
    """Run a command, stop it as Ctrl-C does once it has saved something, and return its status."""
    process = subprocess.Popen(words, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    saved, end = folder / "runs/opd/checkpoints/last.ckpt", time.monotonic() + SECONDS
    while not saved.is_file() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=SECONDS)
    assert "go on" in said, said
    return process.returncode


@pytest.mark.slow
def test_the_first_hour_goes_as_the_readme_says(tmp_path: Path) -> None:
    make_own(tmp_path)
    copy, preflight, fit, *others = commands()
    run(copy, tmp_path)
    edit(tmp_path / "opd.yaml")
    assert "checks passed" in run(preflight, tmp_path)
    assert stopped(fit, tmp_path) == 128 + signal.SIGINT
    assert "step 40/40" in run(fit, tmp_path)
    for words in others:
        run(words, tmp_path)
    assert (tmp_path / "runs/report/parity.md").is_file()
    assert (tmp_path / "runs/report/curves.png").is_file()
    assert (tmp_path / "runs/opd/adapter/adapter_config.json").is_file()
