"""Everything that only a GPU can say, in one command of at most ten minutes.

    python -m tests.benchmarks.cuda --wheels WHEELS
    python -m tests.benchmarks.cuda --smoke

Installs the wheels of a folder where the machine lacks packages (it needs no network), runs the tests marked `gpu`,
measures the ceilings (a matrix product, a copy), says which functions of logits run compiled, then measures whole steps
of random models in bfloat16 on 64 × (512 + 512) tokens: Qwen3-0.6B in full and Qwen3-4B with LoRA, both with a 1.7B
teacher; and TRL's step of the first, where TRL can be imported. What does not fit into the time that is left is named
and left out. `--smoke` runs the same on tiny models on the CPU, which says nothing but that the command works.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from tests.benchmarks.ceilings import Ceilings, measure
from tests.benchmarks.counts import counts
from tests.benchmarks.processes import ROOT, Record, alternate, machine, median, show, started, table
from tests.benchmarks.step import ours, trl
from tests.benchmarks.worlds import QWEN3_VOCABULARY, Setting, Shape, save_world

NEEDED = ("jaxtyping", "jsonargparse", "lightning", "peft", "safetensors", "tensorboard", "tokenizers", "torchmetrics")
FOR_TESTS = ("beartype", "hypothesis", "pytest", "pytest_timeout", "xdist")
QWEN3 = {
    "0.6B": Shape(layers=28, width=1024, inner=3072, heads=16, key_heads=8, head_width=128),
    "1.7B": Shape(layers=28, width=2048, inner=6144, heads=16, key_heads=8, head_width=128),
    "4B": Shape(layers=36, width=2560, inner=9728, heads=32, key_heads=8, head_width=128),
}
TINY = Shape(layers=1, width=32, inner=64, heads=2, key_heads=1, head_width=16)
MIN_SECONDS = 60
"""A part is begun where so much time is left."""


@dataclass(frozen=True)
class Case:
    """A step to measure.

    Args:
        setting: Tokens and precision.
        student: The student's shape.
        teacher: The teacher's shape.
    """

    setting: Setting
    student: Shape
    teacher: Shape


def main() -> None:
    """Measure one part after the other, as long as there is time."""
    arguments = parser().parse_args()
    deadline = time.perf_counter() + arguments.budget
    if arguments.wheels:
        install(arguments.wheels)
    check_machine(is_smoke=arguments.smoke)
    how = "on the CPU, which says nothing about speed" if arguments.smoke else torch.cuda.get_device_name()
    show(machine("python -m tests.benchmarks.cuda " + " ".join(sys.argv[1:]), how))
    show(run_tests(deadline))
    ceilings = measure("cpu" if arguments.smoke else "cuda")
    show(f"\nCeilings: {ceilings}\n")
    show(f"Functions of logits: {used_forms('cpu' if arguments.smoke else 'cuda')}\n")
    rows = []
    for name, case in cases(is_smoke=arguments.smoke).items():
        for side in ("ours", "TRL") if name == "0.6B" else ("ours",):
            left = deadline - time.perf_counter()
            if side == "TRL" and importlib.util.find_spec("trl") is None:
                show(f"{name}, TRL: left out, it cannot be imported")
            elif left < MIN_SECONDS:
                show(f"{name}, {side}: left out, {left:.0f} s are left")
            else:
                rows.append([f"{name}, {side}", *step(case, side, ceilings, arguments.repeats)])
                show(f"{rows[-1][0]}: {rows[-1][1]} s per step")
    head = ["run", "s per step", "rollout", "score", "update", "MFU of the update", "MFU of scoring"]
    show("\n" + table([*head, "tokens per s", "of what the bandwidth allows", "peak (GiB)"], rows))


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--wheels", type=Path, help="folder of wheels to install beside what is there")
    made.add_argument("--smoke", action="store_true", help="tiny models on the CPU")
    made.add_argument("--budget", type=float, default=570, help="seconds for everything")
    made.add_argument("--repeats", type=int, default=3)
    return made


def install(wheels: Path) -> None:
    """Install wheels into a folder of their own, which this process and those it starts look into first.

    Raises:
        SystemExit: There are none.
    """
    files = sorted(map(str, wheels.glob("*.whl")))
    if not files:
        msg = f"Expected wheels in {wheels}, found none. Fetch them with `pip download --no-deps -d {wheels} NAME`."
        raise SystemExit(msg)
    site = tempfile.mkdtemp()
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", site, *files]
    subprocess.run(command, check=True)
    sys.path.insert(0, site)
    importlib.invalidate_caches()
    os.environ["PYTHONPATH"] = f"{site}:{os.environ.get('PYTHONPATH', '')}".rstrip(":")


def check_machine(*, is_smoke: bool) -> None:
    """End with one line where packages or the GPU are missing."""
    missing = [name for name in (*NEEDED, *FOR_TESTS) if importlib.util.find_spec(name) is None]
    if missing:
        msg = f"Packages are missing: {', '.join(missing)}. Put their wheels into a folder and name it with --wheels."
        raise SystemExit(msg)
    if not is_smoke and not torch.cuda.is_available():
        msg = "There is no CUDA GPU here; `--smoke` tries the command out on the CPU."
        raise SystemExit(msg)


def run_tests(deadline: float) -> str:
    """Return the last line of the tests marked `gpu`, or all of what they said where one fails."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-n", "0", "tests/integration/test_gpu.py"]
    limit = max(1.0, deadline - time.perf_counter())
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=limit)
    lines = (answer.stdout + answer.stderr).strip().splitlines()
    return "Tests marked gpu: " + (lines[-1] if answer.returncode == 0 else "\n".join(lines[-60:]))


def used_forms(device: str) -> str:
    """Return which of them run compiled there, after a first use on a whole vocabulary."""
    from lightning_opd.functional.compiled import forms
    from lightning_opd.functional.divergences import ForwardKL, JensenShannon, ReverseKL
    from lightning_opd.functional.fused import token_values

    for divergence in (ReverseKL(), ForwardKL(), JensenShannon()):
        logits = torch.randn(2, 32, QWEN3_VOCABULARY, device=device)
        divergence.with_gradient(*logits, gradient=True)
    ids = torch.zeros(32, dtype=torch.long, device=device)
    token_values(logits[0], ids, gradient=True, with_entropies=True)
    found = forms()
    return ", ".join(f"{name} {form}" for name, form in found.items()) or "none is compiled on this kind of device"


def cases(*, is_smoke: bool) -> dict[str, Case]:
    """Return what to measure: 64 × (512 + 512) tokens in bfloat16, or a handful on the CPU."""
    if is_smoke:
        small = functools.partial(Setting, "", prompts=2, prompt_tokens=24, new_tokens=4, vocabulary=320)
        return {"0.6B": Case(small(), TINY, TINY), "4B": Case(small(lora=True), TINY, TINY)}
    large = functools.partial(
        Setting,
        "",
        prompts=64,
        prompt_tokens=512,
        new_tokens=512,
        vocabulary=QWEN3_VOCABULARY,
        teacher_precision="bfloat16",
        trainer_precision="bf16-mixed",
        device="cuda",
    )
    return {
        "0.6B": Case(large(micro_batches=8), QWEN3["0.6B"], QWEN3["1.7B"]),
        "4B": Case(large(micro_batches=16, lora=True, precision="bfloat16"), QWEN3["4B"], QWEN3["1.7B"]),
    }


def step(case: Case, side: str, ceilings: Ceilings, repeats: int) -> list[str]:
    """Return the cells of one side's row."""
    with tempfile.TemporaryDirectory() as folder:
        setting = dataclasses.replace(case.setting, folder=folder, steps=repeats + 2)
        save_world(setting, case.student, case.teacher)
        run = ours(setting) if side == "ours" else trl(setting, sys.executable)
        with started({side: dataclasses.replace(run, is_single=setting.device == "cpu")}) as workers:
            records = alternate(workers, repeats)[side]
    return cells(records, case, ceilings)


def cells(records: list[Record], case: Case, ceilings: Ceilings) -> list[str]:
    """Return seconds, utilisation and memory of a run; what it does not tell apart stays empty."""
    seconds = median(records)
    if not records[0]["parts"]:
        return [f"{seconds:.2f}", *[""] * 8]
    rollout, score = (median(records, part=part) for part in ("rollout", "score"))
    update = median([{"seconds": r["seconds"] - sum(r["parts"].values())} for r in records])
    setting = case.setting
    counted = counts(setting, case.student, case.teacher)
    used = [counted.update / update / ceilings.flops, counted.score / score / ceilings.flops]
    peak = max(r["metrics"].get("peak_mib", float("nan")) for r in records) / 1024
    return [
        *(f"{x:.2f}" for x in (seconds, rollout, score, update)),
        *(f"{x:.1%}" for x in used),
        f"{setting.prompts * setting.new_tokens / rollout:.0f}",
        f"{counted.rollout_bytes / ceilings.bandwidth / rollout:.1%}",
        f"{peak:.1f}",
    ]


if __name__ == "__main__":
    main()
