"""A command line for `preflight` and `fit`, and models that no check of settings finds fault with."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.commands import Cli
from tests.preflight.reports import Run, Spoil
from tests.test_user_errors import command


@pytest.fixture
def run(cli: Cli, world: Path, tmp_path: Path) -> Run:
    """Run `preflight` or `fit` on the small models of `world`."""

    def once(name: str, *words: str, **settings: Any) -> tuple[int, str, str]:
        _, *rest = command(world, tmp_path, *words, **settings)
        return cli(name, *rest)

    return once


@pytest.fixture
def spoil(world: Path, tmp_path: Path) -> Spoil:
    """Save a model with other weights."""

    def save(name: str, change: Callable[[Any], object]) -> Path:
        folder = tmp_path / f"spoiled_{name}"
        shutil.copytree(world / name, folder)
        model = AutoModelForCausalLM.from_pretrained(folder)
        with torch.no_grad():
            change(model)
        model.save_pretrained(folder)
        return folder

    return save
