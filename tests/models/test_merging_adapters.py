from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lightning_opd.errors import ConfigError
from lightning_opd.models import Lora, load_causal_lm
from lightning_opd.models.adapters import CONFIG_FILE, WEIGHTS_FILE
from lightning_opd.models.merging_adapters import merge_adapters
from tests.commands import Cli
from tests.tiny import save_adapter, save_model

SETTINGS = (Lora(rank=2, alpha=8), Lora(rank=3, alpha=2, targets=["q_proj", "down_proj"]))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and two adapters of different rank, scale and targets."""
    folder = tmp_path_factory.mktemp("adapters")
    save_model(folder / "base")
    for seed, lora in enumerate(SETTINGS):
        save_adapter(folder / "base", folder / str(seed), seed, lora)
    return folder


def merged_weights(path: Path) -> dict[str, torch.Tensor]:
    """Weights of a model, an adapter folded in."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    if not (path / CONFIG_FILE).is_file():
        return load_causal_lm(str(path)).state_dict()
    base = json.loads((path / CONFIG_FILE).read_text())["base_model_name_or_path"]
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), path)
    state: dict[str, torch.Tensor] = model.merge_and_unload().state_dict()
    return state


@pytest.mark.parametrize("coefficient", [None, 0.3, 1.0])
@pytest.mark.parametrize("order", [("0", "1"), ("1", "0"), ("0", "0"), ("1",)], ids=str)
def test_the_merged_adapter_adds_what_its_parts_add(
    coefficient: float | None, order: tuple[str, ...], home: Path, tmp_path: Path
) -> None:
    merge_adapters(str(home / "base"), [home / name for name in order], tmp_path / "out", coefficient)
    base, merged = merged_weights(home / "base"), merged_weights(tmp_path / "out")
    parts = [merged_weights(home / name) for name in order]
    weight = 1 / len(order) if coefficient is None else coefficient
    for name, value in base.items():
        expected = value + weight * sum((part[name] - value for part in parts), torch.zeros_like(value))
        torch.testing.assert_close(merged[name], expected, atol=1e-5, rtol=1e-5)
    assert any(not torch.equal(merged[name], value) for name, value in base.items())


@pytest.mark.parametrize("changes", [{"use_rslora": True}, {"alpha_pattern": {"q_proj": 5}}], ids=str)
def test_other_scales_of_peft_are_read(changes: dict[str, object], home: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    settings = {**json.loads((home / "0" / CONFIG_FILE).read_text()), **changes}
    (source / CONFIG_FILE).write_text(json.dumps(settings))
    save_file(load_file(home / "0" / WEIGHTS_FILE), source / WEIGHTS_FILE)
    merge_adapters(str(home / "base"), [source], tmp_path / "out", 1.0)
    merged = merged_weights(tmp_path / "out")
    for name, value in merged_weights(source).items():
        torch.testing.assert_close(merged[name], value, atol=1e-5, rtol=1e-5)


def test_the_command_tells_adapters_from_models(cli: Cli, home: Path, tmp_path: Path) -> None:
    models = json.dumps([str(home / "0"), str(home / "1")])
    code, out, err = cli("average", "--base", home / "base", "--models", models, "--output", tmp_path / "out")
    assert (code, err) == (0, "")
    assert "plain average of 2 models" in out
    assert {CONFIG_FILE, WEIGHTS_FILE, "tokenizer.json"} <= {path.name for path in (tmp_path / "out").iterdir()}
    mixed = json.dumps([str(home / "0"), str(home / "base")])
    code, _, err = cli("average", "--base", home / "base", "--models", mixed, "--output", tmp_path / "mixed")
    assert code == 2
    assert "LoRA adapter" in err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_model_name_or_path": "elsewhere"}, "belongs on `elsewhere`, not on the base"),
        ({"use_dora": True}, "Only plain LoRA adapters.*use_dora"),
        ({"bias": "all"}, "Only plain LoRA adapters.*bias"),
        ({"modules_to_save": ["lm_head"]}, "Only plain LoRA adapters.*lm_head"),
        ({"peft_type": "IA3"}, "Only plain LoRA adapters.*IA3"),
    ],
    ids=str,
)
def test_what_is_not_a_sum_of_products_is_refused(
    changes: dict[str, object], message: str, home: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    settings = {**json.loads((home / "0" / CONFIG_FILE).read_text()), **changes}
    (source / CONFIG_FILE).write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match=message):
        merge_adapters(str(home / "base"), [source, home / "1"], tmp_path / "out", None)
    assert not (tmp_path / "out").exists()


def test_the_output_is_none_of_the_adapters(home: Path) -> None:
    with pytest.raises(ConfigError, match="must be a new folder"):
        merge_adapters(str(home / "base"), [home / "0", home / "1"], home / "1", None)
