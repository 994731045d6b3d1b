"""One training step of `recipes/merge_tiny`'s merge here and at another commit, a step of each in turn.

    python -m tests.benchmarks.merge_step f1985d4

Both sides run the `merge.yaml` of their own tree on one base with two experts, which are trained here for a fifth of
the recipe's steps: their replies end as those of the finished ones do. Checkpoints, export and the table of rollouts
are left out.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from tests.benchmarks import gate
from tests.benchmarks.processes import (
    ROOT,
    Record,
    Run,
    alternate,
    machine,
    median,
    seconds_since,
    show,
    spread,
    started,
    table,
)

RECIPE = "recipes/merge_tiny"
FRACTION = 0.2
PLACES = re.compile(r"\$\{run\}|runs/merge_tiny/seed0")
"""What stands for the folder of the outputs: today, and before recipes knew `${run}`."""


def main() -> None:
    """Measure both sides and print a table."""
    arguments = parser().parse_args()
    started_at = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        models = train_models(Path(folder) / "models", arguments.fraction)
        other = clone(arguments.commit, Path(folder) / "other")
        runs = {
            "here": merge(ROOT, models, Path(folder) / "here_run", arguments.repeats + 3),
            arguments.commit: merge(other, models, Path(folder) / "other_run", arguments.repeats + 3),
        }
        with started(runs) as workers:
            found = alternate(workers, arguments.repeats, warm_up=2)
    show(
        machine("python -m tests.benchmarks.merge_step " + " ".join(sys.argv[1:])) + f" ({seconds_since(started_at)})\n"
    )
    head = ["side", "s per step, median", "range", "here ÷ it", "processor (s)", "here ÷ it", "tokens per reply"]
    show(table(head, rows_of(found)))


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("commit")
    made.add_argument("--repeats", type=int, default=15)
    made.add_argument(
        "--fraction", type=float, default=FRACTION, help="of the recipe's steps to train base and experts"
    )
    return made


def rows_of(found: dict[str, list[Record]]) -> list[list[object]]:
    """Return a row for each side."""
    rows: list[list[object]] = []
    for name, records in found.items():
        ratios = [f"{median(found['here'], f) / median(records, f):.3f}" for f in ("seconds", "processor")]
        lengths = [record["metrics"].get("train/response_length", float("nan")) for record in records]
        seconds, processor = (f"{median(records, f):.3f}" for f in ("seconds", "processor"))
        length = f"{sum(lengths) / len(lengths):.1f}"
        rows.append([name, seconds, spread(records), ratios[0], processor, ratios[1], length])
    return rows


def train_models(folder: Path, fraction: float) -> Path:
    """Train base and experts for a fraction of the recipe's steps, and return the folder of their outputs."""
    copy = folder / RECIPE
    shutil.copytree(ROOT / RECIPE, copy)

    def less(match: re.Match[str]) -> str:
        return f"{match[1]}{max(1, round(int(match[2]) * fraction))}"

    for name in ("base", "arithmetic", "strings"):
        text = (copy / f"{name}.yaml").read_text(encoding="utf-8")
        shorter = re.sub(r"((?:max_steps|T_max|every_n_train_steps): )(\d+)", less, text)
        examples = re.search(r"max_steps: (\d+)", shorter)
        assert examples is not None
        batch = 64
        shorter = re.sub(r"num_examples: \d+", f"num_examples: {batch * int(examples[1])}", shorter)
        (copy / f"{name}.yaml").write_text(shorter, encoding="utf-8")
    command = [sys.executable, "-m", "lightning_opd", "run", RECIPE, "--until", "strings"]
    subprocess.run(command, cwd=folder, env={**os.environ, **environment(ROOT)}, check=True, stdout=subprocess.DEVNULL)
    return folder / "runs" / "merge_tiny" / "seed0"


def clone(commit: str, folder: Path) -> Path:
    """Return a clone of this repository at a commit."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    subprocess.run(["git", "-C", str(folder), "checkout", "--quiet", commit], check=True)
    return folder


def merge(tree: Path, models: Path, folder: Path, steps: int) -> Run:
    """Return the merge of a tree's own recipe, behind a gate."""
    folder.mkdir()
    shutil.copy(gate.__file__, folder / "step_gate.py")
    text = PLACES.sub(str(models), (tree / RECIPE / "merge.yaml").read_text(encoding="utf-8"))
    config: dict[str, Any] = yaml.safe_load(text)
    kept = [c for c in config["trainer"]["callbacks"] if c["class_path"].endswith("HackDetector")]
    config["trainer"] |= {
        "callbacks": [*kept, {"class_path": "step_gate.StepGate"}],
        "max_steps": steps,
        "default_root_dir": str(folder),
        "enable_progress_bar": False,
        "enable_checkpointing": False,
    }
    config["trainer"]["logger"]["init_args"]["save_dir"] = str(folder)
    (folder / "merge.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    command = [sys.executable, "-m", "lightning_opd", "fit", "--config", str(folder / "merge.yaml")]
    return Run(command, environment(tree, folder), folder)


def environment(*folders: Path) -> dict[str, str]:
    """Return what lets Python find the package in a tree, before an installed one."""
    return {"PYTHONPATH": ":".join(map(str, folders))}


if __name__ == "__main__":
    main()
