"""TIES and DARE on tensors, on folders and on adapters, against their papers written out densely."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lightning_opd.errors import ConfigError, MissingPackageError
from lightning_opd.models import Lora, load_causal_lm
from lightning_opd.models.merging_adapters import merge_adapters_whole
from lightning_opd.models.merging_dare import Dare
from lightning_opd.models.merging_mergekit import merge_by_mergekit, reference
from lightning_opd.models.merging_methods import TaskArithmetic, TensorGroup, WeightMerge
from lightning_opd.models.merging_ties import Ties, smallest_kept
from tests.commands import Cli
from tests.models.test_merging_adapters import merged_weights
from tests.tiny import save_adapter, save_model

SHAPES = {"a": (7, 5), "b": (11,), "c": (3, 4, 2)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A base and three models of its architecture."""
    home = tmp_path_factory.mktemp("models")
    return [save_model(home / str(seed), seed=seed) for seed in range(4)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and two adapters of different rank, scale and targets."""
    folder = tmp_path_factory.mktemp("adapters")
    save_model(folder / "base")
    for seed, lora in enumerate((Lora(rank=2, alpha=8), Lora(rank=3, alpha=2, targets=["q_proj", "down_proj"]))):
        save_adapter(folder / "base", folder / str(seed), seed, lora)
    return folder


def random_groups(num_models: int, dtype: torch.dtype = torch.float32) -> list[TensorGroup]:
    generator = torch.Generator().manual_seed(0)

    def draw(shape: Sequence[int], scale: float) -> Tensor:
        return (torch.randn(shape, generator=generator) * scale).to(dtype)

    groups = []
    for scale, (name, shape) in enumerate(SHAPES.items(), start=1):
        base = draw(shape, 1.0)
        groups.append(TensorGroup(name, base, [base + draw(shape, 0.1 * scale) for _ in range(num_models)]))
    return groups


def run(method: WeightMerge, groups: Sequence[TensorGroup]) -> dict[str, Tensor]:
    merge = method.plan(lambda: iter(groups))
    return {group.name: merge(group) for group in groups}


def dense_ties(base: Tensor, models: Sequence[Tensor], density: float, scale: float) -> Tensor:
    """TIES as its algorithm 1 says it, weight by weight, on flat parameter vectors."""
    keep = max(1, int(density * base.numel()))
    trimmed = []
    for model in models:
        delta = (model - base).tolist()
        border = sorted((abs(value) for value in delta), reverse=True)[keep - 1]
        trimmed.append([value if abs(value) >= border else 0.0 for value in delta])
    merged = []
    for values in zip(*trimmed, strict=True):
        mass = math.fsum(values)
        same = [value for value in values if value * mass > 0]
        merged.append(sum(same) / len(same) if same else 0.0)
    return base + scale * torch.tensor(merged, dtype=base.dtype)


def flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


@pytest.mark.parametrize("num_models", [1, 2, 3])
@pytest.mark.parametrize(("density", "coefficient"), [(0.2, 1.0), (0.5, 0.4), (1.0, 1.0), (1e-6, 1.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ties_is_the_algorithm_of_its_paper(
    num_models: int, density: float, coefficient: float, dtype: torch.dtype
) -> None:
    groups = random_groups(num_models, dtype)
    merged = run(Ties(density, coefficient), groups)
    base = flat([group.base for group in groups]).float()
    models = [flat([group.tensors[i] for group in groups]).float() for i in range(num_models)]
    expected = dense_ties(base, models, density, coefficient)
    torch.testing.assert_close(flat(list(merged.values())), expected, atol=1e-6, rtol=1e-6)
    assert not torch.equal(expected, base)


def test_ties_per_tensor_trims_each_tensor_by_itself() -> None:
    groups = random_groups(3)
    merged = run(Ties(0.3, per_tensor=True), groups)
    for group in groups:
        expected = dense_ties(group.base.flatten(), [model.flatten() for model in group.tensors], 0.3, 1.0)
        torch.testing.assert_close(merged[group.name].flatten(), expected, atol=1e-6, rtol=1e-6)
    assert not torch.allclose(flat(list(merged.values())), flat(list(run(Ties(0.3), groups).values())))


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30, 0.0])
def test_the_border_is_found_without_all_differences_in_memory(scale: float) -> None:
    generator = torch.Generator().manual_seed(1)
    deltas = [torch.randn(50_000, generator=generator) * scale for _ in range(2)]
    parts = [
        TensorGroup(str(i), torch.zeros(10_000), list(p))
        for i, p in enumerate(zip(*(d.split(10_000) for d in deltas), strict=True))
    ]
    for density in (0.1, 0.731, 1.0):
        found = smallest_kept(lambda: iter(parts), density)
        for delta, border in zip(deltas, found, strict=True):
            assert border == float(delta.abs().sort(descending=True).values[int(density * 50_000) - 1])


def test_a_weight_whose_sum_is_zero_stays_that_of_the_base() -> None:
    group = TensorGroup("a", torch.tensor([5.0, 5.0]), [torch.tensor([6.0, 7.0]), torch.tensor([4.0, 4.0])])
    assert run(Ties(1.0), [group])["a"].tolist() == [5.0, 7.0]


def test_tensors_that_an_adapter_leaves_alone_do_not_count_for_the_density() -> None:
    touched = random_groups(2)[0]
    alone = TensorGroup("z", torch.ones(1000), [None, None])
    merged = run(Ties(0.2), [touched, alone])
    assert torch.equal(merged["a"], run(Ties(0.2), [touched])["a"])
    assert torch.equal(merged["z"], alone.base)
    assert torch.equal(run(Dare(), [alone])["z"], alone.base)


@pytest.mark.parametrize("elects_sign", [False, True])
def test_dare_keeps_a_fraction_at_its_expectation(elects_sign: bool) -> None:
    base = torch.zeros(200_000)
    group = TensorGroup("a", base, [base + 1, base + 3])
    merged = run(Dare(0.25, elects_sign=elects_sign), [group])["a"]
    both = 0.25 * 0.25
    if elects_sign:
        assert set(merged.unique().tolist()) == {0.0, 4.0, 8.0, 12.0}
        assert float((merged == 8).float().mean()) == pytest.approx(both, rel=0.05)
    else:
        assert set(merged.unique().tolist()) == {0.0, 2.0, 6.0, 8.0}
        assert float(merged.mean()) == pytest.approx(2.0, rel=0.02)
    assert float((merged == 0).float().mean()) == pytest.approx(0.75**2, rel=0.02)


def test_what_dare_drops_depends_on_seed_model_and_name_alone() -> None:
    groups = random_groups(2)
    one, again = run(Dare(0.5, seed=3), groups), run(Dare(0.5, seed=3), list(reversed(groups)))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["a"], run(Dare(0.5, seed=4), groups)["a"])
    base = torch.zeros(1000)
    same = TensorGroup("a", base, [base + 1, base + 1])
    assert 0 < int((run(Dare(0.5), [same])["a"] == 1).sum()) < 1000, "siblings drop different weights"


def test_dare_that_keeps_all_is_task_arithmetic_or_ties() -> None:
    groups = random_groups(2)
    for dare, other in (
        (Dare(1.0, 0.3), TaskArithmetic(0.3)),
        (Dare(1.0, elects_sign=True), Ties(1.0)),
        (Dare(1.0), TaskArithmetic(0.5)),
    ):
        expected = run(other, groups)
        for name, value in run(dare, groups).items():
            torch.testing.assert_close(value, expected[name], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("words", "method"),
    [
        (["--method", "ties"], Ties()),
        (["--method", "ties", "--density", 0.5, "--coefficient", 0.7], Ties(0.5, 0.7)),
        (["--method", "dare_linear", "--seed", 5], Dare(seed=5)),
        (["--method", "dare_ties", "--density", 0.3], Dare(0.3, elects_sign=True)),
    ],
    ids=str,
)
def test_the_command_merges_whole_models(
    cli: Cli, folders: list[Path], tmp_path: Path, words: list[object], method: WeightMerge
) -> None:
    base, *models = folders
    listed = json.dumps([str(model) for model in models])
    code, out, err = cli("average", "--base", base, "--models", listed, *words, "--output", tmp_path / "out")
    assert (code, err) == (0, "")
    assert method.title in out
    states = [load_file(folder / "model.safetensors") for folder in folders]
    groups = [TensorGroup(name, states[0][name], [state[name] for state in states[1:]]) for name in states[0]]
    merged = load_file(tmp_path / "out" / "model.safetensors")
    for name, value in run(method, groups).items():
        assert torch.equal(merged[name], value)
    load_causal_lm(str(tmp_path / "out"))


def test_shards_do_not_change_what_ties_keeps(cli: Cli, folders: list[Path], tmp_path: Path) -> None:
    base, *models = folders
    tensors = load_file(base / "model.safetensors")
    layout = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(sorted(tensors))}
    sharded = tmp_path / "sharded"
    sharded.mkdir()
    for file in set(layout.values()):
        save_file({n: tensors[n] for n in tensors if layout[n] == file}, sharded / file, metadata={"format": "pt"})
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": layout}))
    listed = json.dumps([str(model) for model in models])
    for number, own in enumerate((sharded, base)):
        words = ["--base", own, "--models", listed, "--method", "ties", "--output", tmp_path / str(number)]
        assert cli("average", *words)[0] == 0
    whole = load_file(tmp_path / "1" / "model.safetensors")
    for name, file in layout.items():
        assert torch.equal(load_file(tmp_path / "0" / file)[name], whole[name])


@pytest.mark.parametrize("method", [Ties(0.3), Ties(0.3, per_tensor=True), Dare(1.0, 0.5)], ids=str)
def test_adapters_are_merged_through_what_they_add(home: Path, tmp_path: Path, method: WeightMerge) -> None:
    merge_adapters_whole(str(home / "base"), [home / "0", home / "1"], tmp_path / "out", method)
    base, *parts = (merged_weights(home / name) for name in ("base", "0", "1"))
    groups = []
    for name, value in base.items():
        if any(not torch.equal(part[name], value) for part in parts):
            models = [None if torch.equal(part[name], value) else part[name] for part in parts]
            groups.append(TensorGroup(name, value, models))
    expected, merged = run(method, groups), merged_weights(tmp_path / "out")
    assert 0 < len(groups) < len(base)
    for name, value in merged.items():
        torch.testing.assert_close(value, expected.get(name, base[name]), atol=1e-5, rtol=1e-5)


def test_the_command_writes_a_whole_model_where_adapters_have_no_common_low_rank(
    cli: Cli, home: Path, tmp_path: Path
) -> None:
    listed = json.dumps([str(home / "0"), str(home / "1")])
    words = ["--base", home / "base", "--models", listed, "--method", "ties", "--output", tmp_path / "out"]
    code, out, err = cli("average", *words)
    assert (code, err) == (0, "")
    assert "TIES, density 0.2" in out
    assert {"model.safetensors", "config.json"} <= {path.name for path in (tmp_path / "out").iterdir()}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--density", 0.5], "`--method average` has no use for `--density`"),
        (["--coefficient", 0.5, "--density", 0.5], "`--method task_arithmetic` has no use for `--density`"),
        (["--method", "average", "--coefficient", 0.5], "`--method average` has no use for `--coefficient`"),
        (["--method", "ties", "--seed", 1], "`--method ties` has no use for `--seed`"),
        (["--method", "ties", "--density", 0], "above 0 and at most 1; got 0"),
        (["--method", "dare_ties", "--density", 1.5], "above 0 and at most 1; got 1.5"),
        (["--method", "tie"], "tie"),
        (["--mergekit", "della", "--method", "ties"], "`--mergekit della` has no use for `--method`"),
        (["--mergekit", "della", "--seed", 1], "`--mergekit della` has no use for `--seed`"),
    ],
    ids=str,
)
def test_options_without_a_use_are_refused(
    cli: Cli, folders: list[Path], tmp_path: Path, words: list[object], expected: str
) -> None:
    listed = json.dumps([str(folders[1])])
    code, _, err = cli("average", "--base", folders[0], "--models", listed, *words, "--output", tmp_path / "out")
    assert code == 2
    assert expected in err
    assert not (tmp_path / "out").exists()


def test_mergekit_has_to_be_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"`--mergekit della` needs .* pip install mergekit"):
        merge_by_mergekit(tmp_path, [tmp_path], tmp_path / "out", "della", None, None)


def test_an_adapter_of_another_base_is_not_given_to_mergekit(home: Path, folders: list[Path]) -> None:
    with pytest.raises(ConfigError, match=r"belongs on .*, not on the base .*Name that one"):
        reference(folders[1], home / "1")


def test_an_adapter_of_another_model_is_refused(home: Path, tmp_path: Path) -> None:
    wide = save_model(tmp_path / "wide", num_attention_heads=4)
    settings = json.loads((home / "1" / "adapter_config.json").read_text())
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "adapter_config.json").write_text(
        json.dumps({**settings, "base_model_name_or_path": str(wide)})
    )
    save_file(load_file(home / "1" / "adapter_model.safetensors"), tmp_path / "own" / "adapter_model.safetensors")
    with pytest.raises(ConfigError, match="belongs on another model"):
        merge_adapters_whole(str(wide), [tmp_path / "own"], tmp_path / "out", Ties())
