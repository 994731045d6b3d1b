"""Runs recipes/merge_tiny and variants of its merge beside it, one seed after the other (in RUNS, by default `runs`).

    python -m tests.benchmarks.merge_variants 0 1 2
    python -m tests.benchmarks.merge_variants 0 --variants served --vllm vllm/bin/python

What is there already is not made again. A served variant scores by one vLLM server for each expert, and generates by
another; all of them are started here.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning_opd.servers.launch import LocalServer
from tests.benchmarks.evidence import RUNS, with_variant
from tests.benchmarks.merge_tiny import RECIPE, SERVED, VARIANTS

EXPERTS = ("arithmetic", "strings")
SERVER = ("--dtype", "float32", "--enforce-eager")


def main() -> None:
    """Make what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seeds", nargs="+")
    own = [name for name, folder in VARIANTS.items() if folder != "parity"]
    parser.add_argument("--variants", nargs="*", default=own, choices=[*own, *SERVED])
    parser.add_argument("--vllm", default=sys.executable, help="Python of an environment that has vLLM")
    arguments = parser.parse_args()
    for seed in arguments.seeds:
        command("run", RECIPE, "--seed", seed, "--output", RUNS)
        run = RUNS / RECIPE.name / f"seed{seed}"
        for variant in arguments.variants:
            if not (run / f"parity_{variant}" / "parity.json").exists():
                train(run, seed, variant, arguments.vllm)


def train(run: Path, seed: str, variant: str, vllm: str) -> None:
    """Merge with an overlay, test the student, and compare it with its teachers."""
    config = {name: write_config(run, variant, name) for name in ("merge", variant, "test", "parity")}
    fit = ["fit", "--config", config["merge"], "--config", config[variant], "--seed_everything", seed]
    if variant in SERVED:
        with teachers(run, vllm) as urls:
            launch = f"{{python: {vllm}, arguments: [{', '.join(SERVER)}], log_folder: {run / variant}}}"
            command(*fit, *urls, f"--data.engine.init_args.launch={launch}")
    else:
        command(*fit)
    command("test", "--config", config["test"], "--seed_everything", seed)
    command("parity", "--config", config["parity"])


@contextmanager
def teachers(run: Path, vllm: str) -> Iterator[list[str]]:
    """Serve the experts, a core each; yield the options that name their addresses."""
    servers = [
        LocalServer(
            str(run / name / "model"),
            vllm,
            name,
            arguments=SERVER,
            environment={"VLLM_CPU_OMP_THREADS_BIND": str(core), "HF_HUB_OFFLINE": "1"},
            log=str(run / "served" / f"{name}.log"),
        )
        for core, name in enumerate(EXPERTS)
    ]
    try:
        for server in servers:
            server.start()
        for server in servers:
            server.wait()
        yield [f"--model.teachers.{server.name}.init_args.urls={server.url}" for server in servers]
    finally:
        for server in servers:
            server.stop()


def write_config(run: Path, variant: str, name: str) -> str:
    """Write one of the recipe's YAMLs with a variant's and a run's paths, and return its path."""
    path = run / variant / "inputs" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = (RECIPE / f"{name}.yaml").read_text(encoding="utf-8")
    path.write_text(with_variant(text, run, variant), encoding="utf-8")
    return str(path)


def command(*words: object) -> None:
    """Run a command of the package."""
    subprocess.run([sys.executable, "-m", "lightning_opd", *map(str, words)], check=True)


if __name__ == "__main__":
    main()
