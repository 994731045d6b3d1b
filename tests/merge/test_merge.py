from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from lightning_opd.cli.main import main
from lightning_opd.models import Lora, load_causal_lm
from lightning_opd.models.adapters import CONFIG_FILE
from tests.tiny import save_adapter, save_model

RUN = ["--steps", "2", "--max_new_tokens", "4", "--prompts", "prompts.jsonl"]
ADAPTERS = ["merge", "--base", "base", "--experts", "math=loras/math", "code=loras/code"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, two adapters on it, one on another base, and two whole models."""
    folder = tmp_path_factory.mktemp("merge")
    for seed, name in enumerate(("base", "models/math", "models/code", "other")):
        save_model(folder / name, seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # adapters name their base as it was given
        for seed, name in enumerate(("math", "code")):
            save_adapter(Path("base"), Path("loras") / name, seed, Lora(rank=2))
        save_adapter(Path("other"), Path("loras/foreign"), 3, Lora(rank=2))
    return folder


@pytest.fixture
def folder(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for path in home.iterdir():
        shutil.copytree(path, tmp_path / path.name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_prompts(answer: dict[str, str] | None = None, teachers: tuple[str, ...] = ("math", "code")) -> None:
    rows = [{"prompt": f"What is {i}?", "teacher": teachers[i % len(teachers)], **(answer or {})} for i in range(40)]
    Path("prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))


@pytest.mark.slow
def test_ties_of_adapters_is_a_whole_model_to_start_from(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_prompts()
    assert main([*ADAPTERS, *RUN, "--start", "ties"]) == 0
    assert "starts from ties" in capsys.readouterr().out
    assert (folder / "merged/recipe/seed0/ties/model/model.safetensors").is_file()
    assert (folder / "merged/model/model.safetensors").is_file()


@pytest.mark.parametrize("start", ["base", "average"])
def test_adapters_become_one_adapter_in_one_line(start: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_prompts()
    assert main([*ADAPTERS, *RUN, "--start", start]) == 0
    said = capsys.readouterr().out
    assert "math (adapter, 20 prompts), code (adapter, 20 prompts)" in said
    assert "nothing is tested" in said
    assert (folder / "merged/model" / CONFIG_FILE).is_file()
    ids = torch.arange(10, 20)[None]
    with torch.no_grad():
        merged, base = (load_causal_lm(path)(ids).logits for path in ("merged/model", "base"))
    assert not torch.equal(merged, base)
    assert main([*ADAPTERS, *RUN, "--start", start]) == 0
    assert "finished before" in capsys.readouterr().out


@pytest.mark.slow
def test_models_with_answers_are_compared_in_a_report(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_prompts({"answer": "a"})
    experts = ["--experts", "math=models/math", "code=models/code"]
    assert main(["merge", "--base", "base", *experts, *RUN, "--output", "out", "--start", "task_arithmetic"]) == 0
    assert "trains all weights" in capsys.readouterr().out
    assert (folder / "out/model/model.safetensors").is_file()
    parity = json.loads((folder / "out/recipe/seed0/parity/parity.json").read_text())
    cell = parity["domains"]["math"]["test"]["greedy"]
    assert {"student", "teacher", "base", "average", "task_arithmetic", "ties"} <= cell.keys()
    assert (folder / "out/recipe/seed0/parity/curves.png").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--experts", "math"], "`--experts` takes `NAME=PATH`, got `math`"),
        (["--experts", "math=loras/math", "math=loras/code"], "names `math` twice"),
        (["--experts", "math=loras/mth"], "Expected the expert `math` at `loras/mth`"),
        (["--experts", "math=./nowhere", "code=loras/code"], "Expected the expert `math` at `./nowhere`"),
        (["--experts", "math=loras/foreign", "code=loras/code"], "belongs on `other`, not on the base `base`"),
        (["--experts", "math=loras/math", "cod=loras/code"], "Did you mean `cod`?"),
        (["--experts", "math=loras/math", "code=models/code", "--start", "average"], "experts of one kind"),
        (["--base", "nowhere"], "nowhere"),
        (["--prompts", "nothing.jsonl"], "nothing.jsonl"),
        (["--steps", "0"], "`--steps` must be at least 1"),
        (["--start", "tie"], "start"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_what_cannot_be_merged_is_refused_in_a_line(
    words: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_prompts()
    assert main([*ADAPTERS, *RUN, *words]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert message in said
    assert not (folder / "merged").exists()
