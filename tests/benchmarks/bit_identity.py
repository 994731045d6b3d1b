"""Shows that two commits train the same weights, bit for bit.

    python -m tests.benchmarks.bit_identity make COMMIT FOLDER    # once for each side, one thread
    python -m tests.benchmarks.bit_identity compare FOLDER FOLDER

A side runs the training steps of four recipes in a clone of its commit (`merge_agents` and `cross_tokenizer` with 20
rollout batches each), and one step of plain gradient descent for each estimator: its weights are its gradient.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

from safetensors import safe_open

ROOT = Path(__file__).resolve().parents[2]
NUM_BATCHES = 20
UNTIL = {"merge_tiny": "task_arithmetic", "reward_hacking": "both", "merge_agents": "merge", "cross_tokenizer": "merge"}
SHORT = ("merge_agents", "cross_tokenizer")
ESTIMATORS = {
    "immediate": "{class_path: Immediate}",
    "log_ratio_to_go": "{class_path: LogRatioToGo, init_args: {discount: 0.9}}",
    "full_trajectory": "{class_path: FullTrajectory}",
    "kl_to_go": "{class_path: KLToGo}",
}
BASELINES = ("null", "LeaveOneOut", "BatchMean")
GRADIENT = """
model:
  student: {{path: runs/merge_tiny/seed0/base/model}}
  teachers: {{arithmetic: runs/merge_tiny/seed0/arithmetic/model, strings: runs/merge_tiny/seed0/strings/model}}
  objective:
    class_path: lightning_opd.objectives.PolicyGradient
    init_args: {{estimator: {estimator}, baseline: {baseline}}}
  optimizer: {{class_path: torch.optim.SGD, init_args: {{lr: 0.01}}}}
data:
  task:
    class_path: lightning_opd.tasks.Mixture
    init_args:
      tasks:
        arithmetic: {{class_path: lightning_opd.tasks.Arithmetic}}
        strings: {{class_path: lightning_opd.tasks.Strings}}
  {prompts_key}: 16
  samples_per_prompt: 2
  sampling: {{max_new_tokens: 24}}
trainer:
  max_steps: 1
  accumulate_grad_batches: 2
  limit_val_batches: 0
  enable_checkpointing: false
  logger: false
  accelerator: cpu
  devices: 1
  default_root_dir: {folder}
  callbacks: [{{class_path: lightning_opd.callbacks.ExportHuggingFace}}]
"""


def make(commit: str, folder: Path) -> None:
    """Train everything with the code of a commit."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    subprocess.run(["git", "-C", str(folder), "checkout", "--quiet", commit], check=True)
    for name in SHORT:
        path = folder / "recipes" / name / "merge.yaml"
        path.write_text(re.sub(r"(?m)^  max_steps: \d+", f"  max_steps: {NUM_BATCHES}", path.read_text()))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def run(*words: str) -> None:
        command = [sys.executable, "-m", "lightning_opd", *words]
        subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)

    for name, step in UNTIL.items():
        run("run", f"recipes/{name}", "--until", step)
    is_new = "prompts_per_batch" in (folder / "recipes/merge_tiny/merge.yaml").read_text()
    for name, estimator in ESTIMATORS.items():
        for baseline in BASELINES:
            config = folder / "runs" / f"{name}_{baseline}.yaml"
            key = "prompts_per_batch" if is_new else "prompts_per_window"
            place = f"runs/estimators/{name}_{baseline}"
            config.write_text(GRADIENT.format(estimator=estimator, baseline=baseline, prompts_key=key, folder=place))
            run("fit", "--config", str(config))
    print(f"{len(digests(folder))} models of {commit} in {folder}")  # noqa: T201  # a script's answer


def digests(folder: Path) -> dict[str, str]:
    """Return model → hash of all its tensors, names and bytes."""
    found = {}
    for path in sorted((folder / "runs").rglob("*.safetensors")):
        digest = hashlib.sha256()
        with safe_open(path, framework="pt") as file:
            for name in sorted(file.keys()):
                digest.update(name.encode() + file.get_tensor(name).contiguous().numpy().tobytes())
        found[str(path.parent.relative_to(folder / "runs"))] = digest.hexdigest()[:16]
    return found


def compare(before: Path, after: Path) -> int:
    """Print one line per model, and return how many differ."""
    ours, theirs = digests(before), digests(after)
    names = sorted(ours.keys() | theirs.keys())
    for name in names:
        is_same = ours.get(name) == theirs.get(name)
        print(f"{name:<44} {ours.get(name)} {theirs.get(name)} {'identical' if is_same else 'DIFFERENT'}")  # noqa: T201
    num_different = sum(ours.get(name) != theirs.get(name) for name in names)
    print(json.dumps({"models": len(names), "different": num_different}))  # noqa: T201  # a script's answer
    return num_different


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(sys.argv[2], Path(sys.argv[3]))
    else:
        raise SystemExit(compare(Path(sys.argv[2]), Path(sys.argv[3])))
