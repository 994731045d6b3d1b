"""One whole training step (rollout, score, update) of this package and of TRL's `DistillationTrainer`.

    python -m tests.benchmarks.step --vocabulary 4096
    python -m tests.benchmarks.step --vocabulary 151936
    python -m tests.benchmarks.step --vocabulary 151936 --memory --prompts 64

Both sides start from the same random Qwen3 (4 layers × 256), learn from the same teacher with the reverse KL over the
whole vocabulary, in float32, on the same prompts, with AdamW, without clipping, and always generate all tokens. Each
has one thread on one core, and they take turns, a step each. "Update" is all that follows scoring; the processor's
seconds tell something even where other programs run. `--memory` measures memory instead of time: the peak from the end
of the rollout to the end of the first step, with SGD, beyond what the process held before the step. TRL scores inside
its update, hence scoring counts on both sides.

`pip install --no-deps trl==1.16.0 accelerate datasets` makes TRL importable; or `--trl-python` names an interpreter
that has it.
"""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import sys
import tempfile
import time

from tests.benchmarks.processes import (
    RETURNS_MEMORY,
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
from tests.benchmarks.worlds import Setting, Shape, save_world

INSTALL = "pip install --no-deps trl==1.16.0 accelerate datasets"


def main() -> None:
    """Measure both sides and print a table."""
    arguments = parser().parse_args()
    repeats = arguments.repeats or (1 if arguments.memory else 5)
    started_at = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(
            folder,
            steps=repeats + 2,
            prompts=arguments.prompts,
            prompt_tokens=arguments.prompt_tokens,
            new_tokens=arguments.new_tokens,
            vocabulary=arguments.vocabulary,
            micro_batches=arguments.micro_batches,
            measures_memory=arguments.memory,
        )
        save_world(setting, Shape(layers=arguments.layers, width=arguments.width))
        runs = {"ours": ours(setting)}
        if not arguments.only_ours:
            runs["TRL"] = trl(setting, arguments.trl_python)
        with started(runs) as workers:
            found = alternate(workers, repeats, warm_up=0 if arguments.memory else 1)
    show(machine("python -m tests.benchmarks.step " + " ".join(sys.argv[1:])) + f" ({seconds_since(started_at)})\n")
    show(memory_table(found) if arguments.memory else time_table(found))
    show("\n" + agreement(found))


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--vocabulary", type=int, default=4096)
    made.add_argument("--memory", action="store_true", help="measure memory instead of time")
    made.add_argument("--repeats", type=int, help="measured steps of each side")
    made.add_argument("--prompts", type=int, default=16)
    made.add_argument("--prompt-tokens", type=int, default=32)
    made.add_argument("--new-tokens", type=int, default=64)
    made.add_argument("--micro-batches", type=int, default=1)
    made.add_argument("--layers", type=int, default=4)
    made.add_argument("--width", type=int, default=256)
    made.add_argument("--only-ours", action="store_true", help="leave TRL out")
    made.add_argument("--trl-python", default=sys.executable, help=f"interpreter that has TRL ({INSTALL})")
    return made


def ours(setting: Setting) -> Run:
    """Return this package's run."""
    environment = RETURNS_MEMORY if setting.measures_memory else {}
    return Run([sys.executable, "-m", "tests.benchmarks.step_ours", setting.as_json()], environment)


def trl(setting: Setting, python: str) -> Run:
    """Return TRL's run.

    Raises:
        SystemExit: The interpreter has no TRL, with how to install it.
    """
    command = [python, "-c", "import trl; trl.DistillationTrainer"]
    probe = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if probe.returncode:
        last = probe.stderr.strip().splitlines()[-1]
        msg = f"{python} cannot import TRL ({last}). `{INSTALL}`, or name another interpreter with `--trl-python`."
        raise SystemExit(msg)
    run = ours(setting)
    return dataclasses.replace(run, command=[python, "-m", "tests.benchmarks.step_trl", setting.as_json()])


def time_table(found: dict[str, list[Record]]) -> str:
    """Return the seconds of both sides, the parts of ours, and their ratio."""
    mine = found["ours"]
    parts = {part: median(mine, part=part) for part in ("rollout", "score")}
    parts["update"] = median([{"seconds": r["seconds"] - sum(r["parts"].values())} for r in mine])
    own = ", ".join(f"{part} {seconds:.2f}" for part, seconds in parts.items())
    rows: list[list[object]] = []
    for name, records in found.items():
        ratios = [f"{median(mine, f) / median(records, f):.3f}" for f in ("seconds", "processor")]
        mean = f"{median(records):.2f}" + (f" ({own})" if name == "ours" else "")
        rows.append([name, mean, spread(records), ratios[0], f"{median(records, 'processor'):.2f}", ratios[1]])
    return table(["side", "s per step, median", "range", "ours ÷ it", "processor (s)", "ours ÷ it"], rows)


def memory_table(found: dict[str, list[Record]]) -> str:
    """Return the memory of both sides, and their ratio."""
    gained = {name: [{"gained": r["peak"] - r["resident"], **r} for r in records] for name, records in found.items()}
    mine, rows = median(gained["ours"], "gained"), []
    for name, records in gained.items():
        own = median(records, "gained")
        rows.append(
            [name, round(median(records, "resident")), round(median(records, "peak")), round(own), f"{mine / own:.3f}"]
        )
    return table(["side", "held before the step (MiB)", "peak after the rollout (MiB)", "beyond", "ours ÷ it"], rows)


def agreement(found: dict[str, list[Record]]) -> str:
    """Return the losses of both sides, which speak about the same two models."""
    names = {"ours": "train/loss", "TRL": "loss"}
    losses = {n: sum(r["metrics"][names[n]] for r in records) / len(records) for n, records in found.items()}
    return "Mean reverse KL: " + ", ".join(f"{name} {loss:.4f}" for name, loss in losses.items()) + " nats per token."


if __name__ == "__main__":
    main()
