from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from lightning_opd.errors import ConfigError
from lightning_opd.models import (
    LanguageModel,
    LoadSettings,
    Lora,
    StudentConfig,
    any_rank,
    build_student,
    causal_lm,
    frozen,
    gather_objects,
    load_sharded,
    num_ranks,
    root_unsharded,
    shard,
    sum_over_ranks,
    unsharded,
)
from lightning_opd.models.distributed import wait_at_most
from lightning_opd.models.slices import _sources
from tests.architectures import tiny_architecture
from tests.tiny import save_model
from tests.world import whole

SLICED = ("qwen3", "qwen2", "gpt2", "gemma3_text", "phi3", "opt")
CONVERTED = ("mixtral", "gpt_neox")
"""Architectures whose checkpoints transformers converts while it loads them."""


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[DeviceMesh]:
    """A mesh of this process alone."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


def contents(model: nn.Module) -> dict[str, Tensor]:
    """Return every parameter and buffer, those that are not saved among them."""
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]
    return {name: whole(tensor) for name, tensor in named}


def same(one: nn.Module, other: nn.Module) -> bool:
    mine, theirs = contents(one), contents(other)
    assert mine.keys() == theirs.keys()
    return all(mine[name].dtype == x.dtype and torch.equal(mine[name], x) for name, x in theirs.items())


@pytest.mark.parametrize("name", [*SLICED, *CONVERTED])
def test_a_model_loaded_in_slices_is_the_model_loaded_whole(name: str, tmp_path: Path, mesh: DeviceMesh) -> None:
    folder = tmp_path / name
    tiny_architecture(name).save_pretrained(folder)
    settings = LoadSettings(str(folder))
    assert (_sources(settings) is None) == (name in CONVERTED)
    model, expected = load_sharded(settings, mesh, frozen), settings.load()
    assert same(model, expected)
    assert model.name_or_path == expected.name_or_path
    token_ids = torch.tensor([[1, 2, 3, 4]])
    assert torch.allclose(model(input_ids=token_ids).logits, expected(input_ids=token_ids).logits, atol=1e-6)


@pytest.mark.parametrize(("saved", "dtype"), [("bfloat16", "float32"), ("float32", "bfloat16"), ("bfloat16", None)])
def test_slices_are_converted_to_the_precision_asked_for(
    saved: str, dtype: str | None, tmp_path: Path, mesh: DeviceMesh
) -> None:
    folder = save_model(tmp_path / "model", dtype=getattr(torch, saved))
    settings = LoadSettings(str(folder), dtype=dtype)
    assert same(load_sharded(settings, mesh, frozen), settings.load())


def test_a_checkpoint_in_several_files_is_read_from_each(tmp_path: Path, mesh: DeviceMesh) -> None:
    folder = tmp_path / "model"
    tiny_architecture("llama").save_pretrained(folder, max_shard_size="40KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    shutil.copy(next(folder.glob("*.safetensors")), folder / "consolidated.safetensors")  # another copy, in no index
    settings = LoadSettings(str(folder))
    assert _sources(settings) is not None
    assert same(load_sharded(settings, mesh, frozen), settings.load())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapter_on_slices_is_the_adapter_on_a_whole_model(
    dtype: torch.dtype, tmp_path: Path, mesh: DeviceMesh
) -> None:
    config = StudentConfig(str(save_model(tmp_path / "model", dtype=dtype)), lora=Lora(rank=2))
    torch.manual_seed(5)
    expected = build_student(config)
    torch.manual_seed(5)
    student = build_student(config, mesh)
    assert same(student, expected)
    assert student.training
    trained = [name for name, p in student.named_parameters() if p.requires_grad]
    assert trained == [name for name, p in expected.named_parameters() if p.requires_grad]


def test_a_damaged_checkpoint_is_refused_as_by_the_plain_way(tmp_path: Path, mesh: DeviceMesh) -> None:
    folder = tmp_path / "model"
    tiny_architecture("llama").save_pretrained(folder)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ConfigError, match="is a pickle"):
        load_sharded(LoadSettings(str(folder)), mesh, frozen)
    (folder / "model.safetensors").write_bytes(weights)
    config = json.loads((folder / "config.json").read_text())
    for num_layers, problem in ((3, "has no weights for"), (1, "would be left out")):
        (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": num_layers}))
        with pytest.raises(ConfigError, match=problem):
            load_sharded(LoadSettings(str(folder)), mesh, frozen)


def test_fewer_bits_are_refused_before_anything_is_loaded(mesh: DeviceMesh) -> None:
    with pytest.raises(ConfigError, match=r"`quantization: nf4` of `org/name` cannot be sharded"):
        load_sharded(LoadSettings("org/name", quantization="nf4"), mesh, frozen)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Return the gradients of some log-probs."""
    token_ids = torch.arange(1, 25).view(2, 12)
    logits = model(input_ids=token_ids, use_cache=False).logits.float()
    logits.log_softmax(-1).gather(-1, token_ids[..., None]).sum().backward()
    return {name: whole(p.grad) for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("lora", [None, Lora(rank=2)])
def test_autocast_gathers_weights_in_its_precision_and_sums_gradients_in_float32(
    lora: Lora | None, tmp_path: Path, mesh: DeviceMesh
) -> None:
    config = StudentConfig(str(save_model(tmp_path / "model")), lora=lora)
    build = partial(build_student, config)

    def built(mesh: DeviceMesh | None = None) -> nn.Module:
        torch.manual_seed(0)
        return build(mesh)

    exact = gradients(built())
    assert all(torch.allclose(exact[n], g, rtol=1e-5, atol=1e-6) for n, g in gradients(built(mesh)).items())
    with torch.autocast("cpu", torch.bfloat16):
        plain, student = gradients(built()), built(mesh)
        sharded = gradients(student)
        with unsharded(causal_lm(student)):
            assert {p.dtype for p in student.parameters()} == {torch.bfloat16}  # autocast has nothing to copy
    assert {p.dtype for p in student.parameters()} == {g.dtype for g in sharded.values()} == {torch.float32}
    assert sharded.keys() == exact.keys()
    for name, gradient in exact.items():
        rounding = float((plain[name] - gradient).norm()) + 0.02 * float(gradient.norm())
        assert float((sharded[name] - gradient).norm()) <= 3 * rounding


def test_collectives_of_a_group_count_its_ranks_alone_and_wait_as_long_as_they_are_told(mesh: DeviceMesh) -> None:
    group = mesh.get_group()
    assert num_ranks(group) == 1
    assert gather_objects("x", group) == ["x"]
    assert any_rank(flag=True, group=group)
    assert sum_over_ranks(torch.ones(2), group).tolist() == [1.0, 1.0]
    wait_at_most(mesh, timedelta(hours=2))
    assert group._get_backend(torch.device("cpu")).options._timeout == timedelta(hours=2)


def test_a_head_is_probed_while_its_layers_are_sharded(tmp_path: Path, mesh: DeviceMesh) -> None:
    folder = tmp_path / "model"
    tiny_architecture("cohere").save_pretrained(folder)
    expected = LanguageModel(LoadSettings(str(folder)).load(), 60).head()
    with torch.autocast("cpu", torch.bfloat16):
        model = load_sharded(LoadSettings(str(folder)), mesh, frozen)
        with root_unsharded(model):
            head = LanguageModel(model, 60).head()
    assert (head.scale, head.soft_cap) == (expected.scale, expected.soft_cap)
    assert head.scale != 1
    shard(model, mesh)  # a second time: nothing
    assert same(model, LoadSettings(str(folder)).load())
