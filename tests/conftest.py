"""Fixtures of all tests: shapes checked at run time, no network, one torch thread, fixed seeds, tiny real models."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # also in the processes that tests start: workers share the cores
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "Agg")

import jaxtyping

import tests.typechecking  # noqa: F401  # the hook below looks it up by name

jaxtyping.install_import_hook("lightning_opd", "tests.typechecking.check")  # before anything imports the package

from pathlib import Path  # noqa: E402  # the hook comes first

import hypothesis  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

from tests.commands import cli, merge_yaml, write_yaml  # noqa: E402, F401  # fixtures
from tests.tiny import save_foreign, save_model, save_tokenizer  # noqa: E402
from tests.world import save_world  # noqa: E402

hypothesis.settings.register_profile("lightning_opd", deadline=None, derandomize=True, max_examples=25)
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=500)  # --hypothesis-profile=thorough
hypothesis.settings.load_profile("lightning_opd")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a real byte-level BPE tokenizer and its chat template."""
    return save_tokenizer(tmp_path_factory.mktemp("tiny_tokenizer"))


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a two-layer Qwen3 (safetensors) and its tokenizer."""
    return save_model(tmp_path_factory.mktemp("tiny_model"), seed=0)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `student`, `math` and `code`: models of one tokenizer, in float32."""
    return save_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def double_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as `world` in float64."""
    return save_world(tmp_path_factory.mktemp("double_world"), torch.float64)


@pytest.fixture(scope="session")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher's folder with a tokenizer of its own, which merges other letters and has its own ids."""
    return save_foreign(tmp_path_factory.mktemp("foreign"))
