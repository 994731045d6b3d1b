from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightning_opd.cli.main import main
from lightning_opd.models import Lora
from tests.tiny import save_adapter, save_model

CONFIG = """
model:
  student: {path: base, lora: {rank: 2}}
  teachers: {math: {adapter: loras/math}, code: loras/code, base: {adapter: null}}
data:
  task: {class_path: lightning_opd.tasks.Jsonl, init_args: {path: prompts.jsonl}}
  prompts_per_batch: 3
  sampling: {max_new_tokens: 4}
trainer:
  accelerator: cpu
  max_steps: 1
  limit_val_batches: 0
  default_root_dir: out
  logger: false
  enable_checkpointing: false
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_model(Path("base"))
    for seed, name in enumerate(("math", "code")):
        save_adapter(Path("base"), Path("loras") / name, seed, Lora(rank=2))
    names = ("math", "code", "base")
    rows = [{"prompt": f"Question {i}", "teacher": names[i % 3]} for i in range(30)]
    Path("prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    Path("fit.yaml").write_text(CONFIG)
    return tmp_path


def test_experts_are_named_by_their_adapters(folder: Path) -> None:
    assert main(["preflight", "--config", "fit.yaml"]) == 0
    assert main(["fit", "--config", "fit.yaml"]) == 0


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--model.teachers.math.adapter=base", "Expected the folder of a LoRA adapter at `base`"),
        ("--model.teachers.math.adapter=loras/mth", "Expected the folder of a LoRA adapter at `loras/mth`"),
        ("--model.teachers.math.base=nowhere", "nowhere"),
        ("--model.teachers.math.adaptor=loras/math", "`model.teachers.math.adaptor`"),
    ],
)
def test_a_wrong_adapter_is_refused_in_a_line(
    word: str, message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", "--config", "fit.yaml", word]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
