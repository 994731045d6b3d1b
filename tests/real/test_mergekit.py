"""Weight merges of this package against those of the real mergekit, and rules that only mergekit has."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lightning_opd.cli.main import main
from lightning_opd.models import Lora
from lightning_opd.models.merging_ties import Ties
from tests.models.test_merging_rules import random_groups, run
from tests.real import fetch
from tests.tiny import save_adapter, save_model

pytestmark = [
    pytest.mark.real,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore:::mergekit"),  # its own affair
]

NAMES = ("a", "b", "c")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a base, three models and three adapters."""
    root = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("base", *NAMES)):
        save_model(root / name, seed=seed)
    for seed, name in enumerate(NAMES):
        save_adapter(root / "base", root / f"lora_{name}", seed, Lora(rank=2))
    return root


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(fetch.mergekit()))


def merged(folder: Path, output: Path, *words: str, kind: str = "") -> dict[str, Tensor]:
    models = json.dumps([str(folder / f"{kind}{name}") for name in NAMES])
    assert main(["average", "--base", str(folder / "base"), "--models", models, "--output", str(output), *words]) == 0
    tensors = {name: tensor for file in output.glob("*.safetensors") for name, tensor in load_file(file).items()}
    assert (output / "tokenizer.json").is_file()
    return tensors


def largest_gap(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


@pytest.mark.parametrize(
    ("ours", "theirs", "options"),
    [([], "linear", []), ([], "task_arithmetic", ["--coefficient", "0.4"])],
    ids=["average", "task_arithmetic"],
)
def test_averages_of_whole_models_are_mergekits(
    folder: Path, tmp_path: Path, ours: list[str], theirs: str, options: list[str]
) -> None:
    own = merged(folder, tmp_path / "ours", *ours, *options)
    peers = merged(folder, tmp_path / "theirs", "--mergekit", theirs, *options)
    assert largest_gap(own, peers) < 1e-6
    assert largest_gap(own, merged(folder, tmp_path / "other", "--coefficient", "0.7")) > 1e-3


def test_ties_of_one_density_everywhere_is_mergekits(folder: Path, tmp_path: Path) -> None:
    own = merged(folder, tmp_path / "ours", "--method", "ties", "--density", "1")
    peers = merged(folder, tmp_path / "theirs", "--mergekit", "ties", "--density", "1")
    assert largest_gap(own, peers) < 1e-6
    assert largest_gap(own, merged(folder, tmp_path / "average")) > 1e-3


def test_ties_per_tensor_is_mergekits() -> None:
    kit = importlib.import_module("mergekit.merge_methods.generalized_task_arithmetic")
    sparsify = importlib.import_module("mergekit.sparsify")
    groups = random_groups(3)
    tensors = run(Ties(0.4, per_tensor=True), groups)
    for group in groups:
        deltas = torch.stack([sparsify.magnitude(delta, 0.4) for delta in group.deltas() if delta is not None])
        mask = kit.get_mask(deltas, "sum")
        expected = group.base + (deltas * mask).sum(0) / mask.sum(0).clamp(min=1)
        torch.testing.assert_close(tensors[group.name], expected, atol=1e-6, rtol=1e-6)


def test_adapters_are_merged_on_their_base(folder: Path, tmp_path: Path) -> None:
    own = merged(folder, tmp_path / "ours", "--method", "ties", "--density", "1", kind="lora_")
    peers = merged(folder, tmp_path / "theirs", "--mergekit", "ties", "--density", "1", kind="lora_")
    assert largest_gap(own, peers) < 1e-6


def test_a_rule_that_only_mergekit_has(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--mergekit", "breadcrumbs", "--density", "0.5", "--coefficient", "0.5"]
    tensors = merged(folder, tmp_path / "out", *words)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())
    assert "mergekit's breadcrumbs of 3 models written to" in capsys.readouterr().out


def test_paths_are_paths_whatever_is_in_them_and_a_second_run_replaces_the_first(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("base", "a", "b"):
        shutil.copytree(folder / name, tmp_path / f"{name}++@1")
    words = ["average", "--base", "base++@1", "--models", json.dumps(["a++@1", "b++@1"]), "--output", "out"]
    found = []
    for coefficient in ("1", "0.5"):
        assert main([*words, "--mergekit", "task_arithmetic", "--coefficient", coefficient]) == 0
        found.append(load_file("out/model.safetensors"))
        assert not list(tmp_path.glob("out/.*"))
    assert largest_gap(found[0], found[1]) > 1e-3
    assert main(["average", *words[1:5], "--output", "ours", "--coefficient", "0.5"]) == 0
    assert largest_gap(found[1], load_file("ours/model.safetensors")) < 1e-6


def test_what_mergekit_refuses_is_one_line_and_leaves_nothing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = json.dumps([str(folder / "a")])
    words = ["average", "--base", str(folder / "base"), "--models", models, "--output", str(tmp_path / "out")]
    assert main([*words, "--mergekit", "no_such_rule"]) == 2
    said = capsys.readouterr().err
    [line] = [line for line in said.splitlines() if line.startswith("error: ")]
    assert (
        line
        == "error: mergekit could not merge by `no_such_rule`: RuntimeError: Unimplemented merge method no_such_rule"
    )
    assert not list(tmp_path.iterdir())
    assert main([*words[:4], json.dumps([str(folder / "nowhere")]), *words[5:], "--mergekit", "della"]) == 2
    assert "found none. Correct the path" in capsys.readouterr().err
