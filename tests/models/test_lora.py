"""An adapter's settings, read off what its layers compute."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_opd.errors import ConfigError
from lightning_opd.models import Lora, StudentConfig, build_student
from lightning_opd.models.adapter_targets import excluded_modules
from tests.architectures import tiny_architecture


def adapted(folder: Path, lora: Lora) -> tuple[nn.Module, nn.Module]:
    """Return a student whose adapter says something, and one of its adapted layers."""
    student = build_student(StudentConfig(str(folder), lora=lora))
    for name, parameter in student.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    layers = [module for name, module in student.named_modules() if name.endswith("layers.0.self_attn.q_proj")]
    assert len(layers) == 1
    return student, layers[0]


@pytest.mark.parametrize(("rank", "alpha"), [(2, 3.0), (4, 1.0)])
def test_the_update_has_its_rank_and_is_scaled_by_alpha_over_rank(
    rank: int, alpha: float, tiny_model_dir: Path
) -> None:
    lora = Lora(rank, alpha, targets=["q_proj"], adapter_name="mine")
    student, layer = adapted(tiny_model_dir, lora)
    student.eval()
    down, up = (layer.get_parameter(f"lora_{side}.mine.weight") for side in "AB")
    states = torch.randn(5, down.shape[1])
    update = layer(states) - layer.get_submodule("base_layer")(states)
    torch.testing.assert_close(update, alpha / rank * states @ down.T @ up.T, atol=1e-4, rtol=1e-4)
    assert int(torch.linalg.matrix_rank(up @ down)) == rank
    trained = {name.split(".lora_")[0].rpartition(".")[2] for name, p in student.named_parameters() if p.requires_grad}
    assert trained == {"q_proj"}


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_dropout_falls_on_the_adapters_input_while_training(dropout: float, tiny_model_dir: Path) -> None:
    student, layer = adapted(tiny_model_dir, Lora(rank=2, dropout=dropout))
    dropped: list[torch.Tensor] = []
    down = layer.get_submodule("lora_A.student")
    down.register_forward_hook(lambda _, inputs, __: dropped.append(inputs[0]))
    states = torch.ones(200, layer.get_parameter("base_layer.weight").shape[1])
    layer(states)
    assert float((dropped[0] == 0).double().mean()) == pytest.approx(dropout, abs=0.03)  # 6,400 draws
    student.eval()
    layer(states)
    assert torch.equal(dropped[1], states)


@pytest.mark.parametrize("name", ["mamba", "jamba", "falcon_h1"])
def test_an_adapter_on_all_layers_of_a_mamba_model_has_an_effect_in_each(name: str, tmp_path: Path) -> None:
    """The mixers read most of their weights directly, past an adapter."""
    model = tiny_architecture(name)
    model.save_pretrained(tmp_path)
    attention = str(model.config._attn_implementation)
    student = build_student(StudentConfig(str(tmp_path), lora=Lora(rank=2), attn_implementation=attention))
    ups = {name: weight for name, weight in student.named_parameters() if "lora_B" in name}
    student(input_ids=torch.randint(0, 90, (3, 9))).logits.square().sum().backward()
    assert [name for name in ups if "mixer" in name or "mamba" in name]
    assert [name for name, weight in ups.items() if weight.grad is None or not weight.grad.any()] == []


def test_an_adapter_on_a_layer_that_is_never_called_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"`student.lora.targets` names \['out_proj', 'dt_proj'\], whose weights"):
        excluded_modules(tiny_architecture("jamba"), ["q_proj", "in_proj", "out_proj", "dt_proj"])
    assert excluded_modules(tiny_architecture("jamba"), ["q_proj", "in_proj"]) == []
    assert excluded_modules(tiny_architecture("qwen3_5_text"), "all-linear") == []
