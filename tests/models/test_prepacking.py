"""Weights in oneDNN's order: the same products, only while a block lasts, and only where it is exact."""

from __future__ import annotations

import platform
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lightning_opd.models import Lora, StudentConfig, build_student, causal_lm, prepacked, prepacking
from lightning_opd.rollouts import InProcessEngine
from lightning_opd.types import Sampling

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64" or not torch.backends.mkldnn.is_available(), reason="oneDNN on x86 only"
)
STEPS = 32
IDS = torch.tensor([[5, 9, 30, 7], [40, 41, 42, 43]])


@pytest.fixture(autouse=True)
def _small_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepacking, "MIN_WEIGHTS", 0)


def changed(model: nn.Module) -> set[str]:
    return {name for name, layer in model.named_modules() if "forward" in vars(layer)}


def linear_layers(model: nn.Module) -> set[str]:
    return {name for name, layer in model.named_modules() if type(layer) is nn.Linear}


@torch.no_grad()
def logits_of(model: nn.Module) -> Tensor:
    logits: Tensor = model(input_ids=IDS).logits
    return logits


@pytest.mark.parametrize("lora", [None, Lora(rank=2)], ids=["full", "lora"])
def test_all_linear_layers_give_the_same_and_get_their_own_forward_back(
    lora: Lora | None, tiny_model_dir: Path
) -> None:
    model = causal_lm(build_student(StudentConfig(str(tiny_model_dir), lora=lora))).eval()
    plain = logits_of(model)
    with torch.no_grad(), prepacked(model, STEPS):
        assert changed(model) == linear_layers(model) != set()
        assert logits_of(model) == pytest.approx(plain, abs=1e-4)
    assert changed(model) == set()
    assert torch.equal(logits_of(model), plain)


def test_a_layer_with_bias_and_states_of_any_shape() -> None:
    layer = nn.Linear(24, 40)
    for states in (
        torch.randn(24),
        torch.randn(3, 24),
        torch.randn(2, 5, 24),
        torch.randn(24, 6).T,
        torch.randn(0, 24),
    ):
        plain = layer(states)
        with torch.no_grad(), prepacked(layer, STEPS):
            found = layer(states)
        assert found.shape == plain.shape
        assert found.numpy() == pytest.approx(plain.detach().numpy(), abs=1e-5)


def test_new_weights_count_at_once_and_a_failure_leaves_nothing_behind() -> None:
    layer, states = nn.Linear(8, 8), torch.randn(4, 8)
    with pytest.raises(RuntimeError, match="stop"), torch.no_grad(), prepacked(layer, STEPS):
        raise RuntimeError("stop")
    assert changed(layer) == set()
    with torch.no_grad():
        layer.weight.mul_(2)
        expected = layer(states)
        with prepacked(layer, STEPS):
            assert layer(states).numpy() == pytest.approx(expected.numpy(), abs=1e-5)


@pytest.mark.filterwarnings("ignore:TF32 acceleration")  # torch names it whenever flags are set
def test_what_is_left_alone() -> None:
    model = nn.ModuleList(
        [nn.Linear(8, 8, dtype=torch.float64), nn.Linear(8, 8, dtype=torch.bfloat16), nn.Linear(8, 8)]
    )
    with torch.no_grad(), prepacked(model, STEPS):
        assert changed(model) == {"2"}
    with torch.no_grad(), prepacked(model, 2):
        assert changed(model) == set(), "a few tokens are not worth a copy"
    with prepacked(model, STEPS):
        assert changed(model) == set(), "no gradient would arrive"
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), prepacked(model, STEPS):
        assert changed(model) == set(), "training computes in bfloat16"
    with torch.no_grad(), torch.backends.mkldnn.flags(enabled=False), prepacked(model, STEPS):
        assert changed(model) == set(), "the user has switched oneDNN off"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # of the compiler's own modules
def test_a_layer_that_the_user_compiled_goes_on_as_it_is() -> None:
    model, states = nn.Sequential(nn.Linear(24, 40), nn.ReLU()), torch.randn(3, 24)
    plain = model(states)
    model.compile()
    with torch.no_grad(), prepacked(model, STEPS):
        assert model(states).numpy() == pytest.approx(plain.detach().numpy(), abs=1e-5)


def test_small_matrices_are_not_worth_a_kernel_for_each_number_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepacking, "MIN_WEIGHTS", 24 * 40)
    model = nn.ModuleList([nn.Linear(24, 39), nn.Linear(24, 40)])
    with torch.no_grad(), prepacked(model, STEPS):
        assert changed(model) == {"1"}


def test_long_replies_are_generated_with_them_and_short_ones_without(tiny_model_dir: Path) -> None:
    model = build_student(StudentConfig(str(tiny_model_dir)))
    engine, found = InProcessEngine(), []
    engine.sync(model, 0)
    causal_lm(model).get_decoder().register_forward_hook(lambda *_: found.append(len(changed(model))))
    for num_tokens in (STEPS, 4):
        engine.generate([[5, 9, 30], [7]], 2, range(4), Sampling(max_new_tokens=num_tokens))
        assert set(found) == ({len(linear_layers(model))} if num_tokens == STEPS else {0})
        found.clear()
    assert changed(model) == set()
