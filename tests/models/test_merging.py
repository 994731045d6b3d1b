from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lightning_opd.errors import ConfigError
from lightning_opd.models.files import written_whole
from lightning_opd.models.merging import merge_folders, merge_tensor
from lightning_opd.models.merging_methods import (
    Average,
    TaskArithmetic,
    TensorGroup,
    WeightMerge,
    average,
    task_arithmetic,
)
from tests.commands import Cli
from tests.tiny import save_model


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three tiny models of one architecture: the base and two that stand for experts."""
    home = tmp_path_factory.mktemp("models")
    return [save_model(home / str(seed), seed=seed) for seed in range(3)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def merged_tensor(base: torch.Tensor, models: list[torch.Tensor], method: WeightMerge) -> torch.Tensor:
    group = TensorGroup("weight", base, models)
    return merge_tensor(group, method.plan(lambda: iter([group])))


def test_plain_average_is_the_mean_of_the_models(cli: Cli, folders: list[Path], tmp_path: Path) -> None:
    base, *models = folders
    code, out, err = cli(
        "average", "--base", base, "--models", json.dumps([str(m) for m in models]), "--output", tmp_path / "out"
    )
    assert (code, err) == (0, "")
    assert "plain average of 2 models" in out
    first, second, merged = weights(models[0]), weights(models[1]), weights(tmp_path / "out")
    assert merged.keys() == first.keys()
    for name, value in merged.items():
        torch.testing.assert_close(value, (first[name] + second[name]) / 2)


def test_task_arithmetic_adds_scaled_differences_to_the_base(cli: Cli, folders: list[Path], tmp_path: Path) -> None:
    base, *models = folders
    words = ["--base", base, "--models", json.dumps([str(m) for m in models]), "--coefficient", 0.4]
    assert cli("average", *words, "--output", tmp_path / "out")[0] == 0
    origin, first, second, merged = weights(base), weights(models[0]), weights(models[1]), weights(tmp_path / "out")
    for name, value in merged.items():
        torch.testing.assert_close(value, origin[name] + 0.4 * (first[name] + second[name] - 2 * origin[name]))


def test_the_merged_folder_loads_as_a_model_with_its_tokenizer(cli: Cli, folders: list[Path], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base, *models = folders
    cli("average", "--base", base, "--models", json.dumps([str(m) for m in models]), "--output", tmp_path / "out")
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(tmp_path / "out"),
        AutoTokenizer.from_pretrained(tmp_path / "out"),
    )
    assert tokenizer.get_vocab() == AutoTokenizer.from_pretrained(base).get_vocab()
    assert torch.isfinite(model(torch.tensor([[1, 2, 3]])).logits).all()


def test_an_average_of_bfloat16_is_summed_in_float32() -> None:
    """1 + 2⁻⁸ is a tie in bfloat16 and rounds to 1: a sum in bfloat16 would lose both small numbers."""
    models = [torch.tensor([value], dtype=torch.bfloat16) for value in (1.0, 2**-8, 2**-8)]
    in_bfloat16 = (models[0] + models[1] + models[2]) / 3
    assert average(models).dtype == torch.float32
    torch.testing.assert_close(average(models), torch.tensor([(1 + 2**-7) / 3]))
    merged = merged_tensor(models[0], models, Average())
    assert merged.dtype == torch.bfloat16
    assert merged.item() == torch.tensor((1 + 2**-7) / 3).bfloat16().item() != in_bfloat16.item()


def test_task_arithmetic_of_bfloat16_is_done_in_float32_and_saved_in_the_dtype_of_the_base() -> None:
    """The sum of the differences is 1 + 2⁻⁷ and 2⁻⁸ too: bfloat16 has no such number and would drop the 2⁻⁸."""
    base = torch.zeros(1, dtype=torch.bfloat16)
    models = [torch.tensor([value], dtype=torch.bfloat16) for value in (1.0, 2**-8, 2**-8, 2**-8)]
    in_bfloat16 = base + 0.5 * (models[0] + models[1] + models[2] + models[3])
    torch.testing.assert_close(task_arithmetic(base, models, 0.5), torch.tensor([(1 + 3 * 2**-8) / 2]))
    merged = merged_tensor(base, models, TaskArithmetic(0.5))
    assert merged.dtype == torch.bfloat16
    assert merged.item() == torch.tensor((1 + 3 * 2**-8) / 2).bfloat16().item() != in_bfloat16.item()


def test_models_are_merged_in_the_widest_dtype_of_all() -> None:
    base, wide = torch.tensor([1.0]), torch.tensor([1.0 + 1e-12], dtype=torch.float64)
    assert float(average([wide, base.double()]) - 1) == pytest.approx(5e-13, rel=1e-3)
    assert float(task_arithmetic(base, [wide], 0.5) - 1) == pytest.approx(5e-13, rel=1e-3)


def test_integers_are_those_of_the_base() -> None:
    base, other = torch.tensor([3]), torch.tensor([5])
    assert torch.equal(merged_tensor(base, [other], Average()), base)


def test_sharded_models_are_merged_shard_by_shard(cli: Cli, folders: list[Path], tmp_path: Path) -> None:
    base, *models = folders
    sharded = tmp_path / "sharded"
    shutil.copytree(base, sharded)
    (sharded / "model.safetensors").unlink()
    tensors = weights(base)
    names = sorted(tensors)
    layout = {name: f"model-0000{1 + index % 2}-of-00002.safetensors" for index, name in enumerate(names)}
    for file in set(layout.values()):
        save_file(
            {name: tensors[name] for name in names if layout[name] == file}, sharded / file, metadata={"format": "pt"}
        )
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": layout}))
    listed = json.dumps([str(m) for m in models])
    assert cli("average", "--base", sharded, "--models", listed, "--output", tmp_path / "a")[0] == 0
    assert cli("average", "--base", base, "--models", listed, "--output", tmp_path / "b")[0] == 0
    merged = {name: load_file(tmp_path / "a" / layout[name])[name] for name in names}
    for name, value in weights(tmp_path / "b").items():
        assert torch.equal(merged[name], value)


def test_other_shapes_are_refused_by_name(cli: Cli, folders: list[Path], tmp_path: Path) -> None:
    wide = save_model(tmp_path / "wide", intermediate_size=96)
    code, _, err = cli("average", "--base", folders[0], "--models", f"[{wide}]", "--output", tmp_path / "out")
    assert code == 2
    assert "mlp.down_proj.weight` is [32, 96] in" in err
    assert "[32, 64] in the base" in err


def test_other_layers_are_refused_by_name(cli: Cli, folders: list[Path], tmp_path: Path) -> None:
    deep = save_model(tmp_path / "deep", num_hidden_layers=3)
    code, _, err = cli("average", "--base", folders[0], "--models", f"[{deep}]", "--output", tmp_path / "out")
    assert code == 2
    assert "more such as `model.layers.2." in err


@pytest.mark.parametrize(
    ("models", "output", "expected"),
    [("[none]", "out", "no `model.safetensors` in `none`"), ("[]", "out", "`models` must name at least one folder")],
)
def test_missing_models_are_named(
    cli: Cli, folders: list[Path], tmp_path: Path, models: str, output: str, expected: str
) -> None:
    code, _, err = cli("average", "--base", folders[0], "--models", models, "--output", tmp_path / output)
    assert code == 2
    assert expected in err


INTERRUPTED = """
import os, signal, sys
from pathlib import Path
from lightning_opd.models.files import written_whole
with written_whole(Path(sys.argv[1])) as folder:
    (folder / "config.json").write_text("new")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_merge_leaves_the_output_as_it_was(tmp_path: Path) -> None:
    for content in (None, "old"):
        if content is not None:
            (tmp_path / "config.json").write_text(content)
        done = subprocess.run(
            [sys.executable, "-c", INTERRUPTED, str(tmp_path)], check=False, cwd=Path(__file__).parents[2]
        )
        assert done.returncode == -signal.SIGKILL
        visible = {path.name: path.read_text() for path in tmp_path.iterdir() if path.is_file()}
        assert visible == ({} if content is None else {"config.json": content})
    with written_whole(tmp_path) as folder:
        assert not list(folder.iterdir()), "nothing of the killed one"
        (folder / "config.json").write_text("new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("config.json", "new")]


@pytest.mark.parametrize("was_there", [False, True])
def test_a_merge_that_fails_in_the_middle_leaves_nothing(folders: list[Path], tmp_path: Path, was_there: bool) -> None:
    output = tmp_path / "out"
    if was_there:
        output.mkdir()
    shutil.copytree(folders[1], tmp_path / "other")
    own = weights(folders[1])
    last = max(own)
    save_file(
        {**own, last: own[last][:-1].contiguous()}, tmp_path / "other" / "model.safetensors", metadata={"format": "pt"}
    )
    with pytest.raises(ConfigError, match="only models of one architecture"):
        merge_folders(folders[0], [tmp_path / "other"], output, Average())
    assert output.is_dir() == was_there
    assert not was_there or not list(output.iterdir())


def test_the_output_may_not_be_one_of_the_models(cli: Cli, folders: list[Path]) -> None:
    code, _, err = cli("average", "--base", folders[0], "--models", f"[{folders[1]}]", "--output", folders[1])
    assert code == 2
    assert "`output` must be a new folder" in err
