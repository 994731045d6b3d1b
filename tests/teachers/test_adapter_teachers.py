"""Experts as adapters on one base: the same training as with a model each, in the memory of one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import load_file, save_file

from lightning_opd.callbacks import ExportHuggingFace
from lightning_opd.errors import ConfigError, MissingFileError
from lightning_opd.functional.log_ratio_transforms import Extrapolation
from lightning_opd.interfaces import Objective, Teacher
from lightning_opd.models import Lora, StudentConfig, load_causal_lm
from lightning_opd.models.adapters import CONFIG_FILE, WEIGHTS_FILE
from lightning_opd.models.shared_base import BaseSettings, SharedBases
from lightning_opd.modules import OPDModule
from lightning_opd.objectives import DistributionMatching, PolicyGradient
from lightning_opd.teachers import AdapterExpert, AdapterTeacher, LocalTeacher, PrivilegedTeacher
from lightning_opd.types import Signal
from tests.models.test_adapters import logits
from tests.tiny import save_adapter, save_model
from tests.world import Recorder, largest_difference, make_data, make_trainer

NAMES = ("code", "math")


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a base and two adapters on it, of different rank and targets, and one of another base."""
    folder = tmp_path_factory.mktemp("experts")
    save_model(folder / "base")
    save_model(folder / "other", seed=5)
    save_adapter(folder / "base", folder / "code", 1, Lora(rank=2))
    save_adapter(folder / "base", folder / "math", 2, Lora(rank=3, targets=["q_proj", "down_proj"]))
    save_adapter(folder / "other", folder / "foreign", 3, Lora(rank=2))
    return folder


def make(
    folder: Path,
    teachers: dict[str, Any],
    objective: Objective | None = None,
    reference: Teacher | AdapterExpert | None = None,
    **student: Any,
) -> OPDModule:
    settings: dict[str, Any] = {"lora": Lora(rank=2, targets=["q_proj", "v_proj"]), **student}
    return OPDModule(
        StudentConfig(str(folder / "base"), **settings),
        teachers,
        objective or DistributionMatching(),
        lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
        reference=reference,
    )


def train(tmp_path: Path, module: OPDModule, **settings: Any) -> Recorder:
    torch.manual_seed(0)
    recorder = Recorder()
    trainer = make_trainer(tmp_path, recorder, *settings.pop("callbacks", []), **settings)
    trainer.fit(module, make_data())
    return recorder


def apart(folder: Path) -> dict[str, Any]:
    return {name: LocalTeacher(str(folder / name)) for name in NAMES}


def together(folder: Path) -> dict[str, Any]:
    return {name: AdapterTeacher(str(folder / name)) for name in NAMES}


@pytest.mark.parametrize(
    "student", [pytest.param({}, marks=pytest.mark.slow), {"gradient_checkpointing": True}, {"lora": None}], ids=str
)
@pytest.mark.parametrize("objective", [DistributionMatching(), PolicyGradient()], ids=str)
def test_training_is_that_of_teachers_with_a_model_each(
    objective: Objective, student: dict[str, Any], experts: Path, tmp_path: Path
) -> None:
    plain = train(tmp_path, make(experts, apart(experts), objective, **student))
    module = make(experts, together(experts), objective, **student)
    shared = train(tmp_path, module)
    for ours, theirs in zip(shared.rollout_batches, plain.rollout_batches, strict=True):
        assert torch.equal(ours.token_ids, theirs.token_ids)
        assert torch.allclose(ours.teacher_logprobs, theirs.teacher_logprobs, atol=1e-5)
    for ours_gradients, theirs_gradients in zip(shared.gradients, plain.gradients, strict=True):
        assert any(bool(gradient.any()) for gradient in ours_gradients.values())
        assert largest_difference(ours_gradients, theirs_gradients) < 1e-5
    assert len({id(group) for group in module.optimizers().param_groups}) == 1  # type: ignore[union-attr]
    trainable = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert trainable == set(plain.gradients[0])


def test_every_adapter_scores_as_its_own_model_does(experts: Path, tmp_path: Path) -> None:
    module = make(experts, {**together(experts), "base": AdapterTeacher(None)})
    rollouts = train(tmp_path, module, max_steps=1).rollout_batches[0]
    signals = module.objective.signals | {Signal.LOGPROBS}
    found = {}
    for name, path in (("code", "code"), ("math", "math"), ("base", "base")):
        alone = LocalTeacher(str(experts / path))
        alone.setup(torch.device("cpu"))
        expected, found[name] = alone.score(rollouts, signals), module.teachers[name].score(rollouts, signals)
        assert torch.allclose(found[name].logprobs, expected.logprobs, atol=1e-5)
        ours, theirs = found[name].hidden_states, expected.hidden_states
        assert ours is not None
        assert theirs is not None
        assert torch.equal(ours.index, theirs.index)
        assert torch.allclose(ours.values[0], theirs.values[0], atol=1e-4)
    assert float((found["code"].logprobs - found["math"].logprobs).abs().max()) > 0.1
    assert float((found["code"].logprobs - found["base"].logprobs).abs().max()) > 0.1


def num_bytes(module: OPDModule) -> int:
    """Bytes of all tensors that student and teachers hold, each once."""
    models = [module.loaded_student, *(teacher_model(t) for t in module.teachers.distinct.values())]
    storages = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for m in models for p in m.parameters()}
    return sum(storages.values())


def teacher_model(teacher: Teacher) -> torch.nn.Module:
    if isinstance(teacher, AdapterTeacher):
        return teacher._scorer.generator()
    if isinstance(teacher, PrivilegedTeacher):
        return teacher_model(teacher._teacher)
    assert isinstance(teacher, LocalTeacher)
    return teacher.generator()


@pytest.mark.parametrize("lora", [Lora(rank=2), None], ids=["adapter", "all weights"])
def test_memory_grows_by_the_adapters_alone(lora: Lora | None, experts: Path, tmp_path: Path) -> None:
    sizes = {}
    for number in (1, 2):
        module = make(experts, {name: str(experts / name) for name in NAMES[:number]}, lora=lora)
        module.objective = DistributionMatching()
        data = make_data()
        data.task.teachers = NAMES[:number]  # type: ignore[attr-defined]  # tests.world.Letters
        make_trainer(tmp_path, max_steps=1).fit(module, data)
        sizes[number] = num_bytes(module)
    adapter = sum(value.nbytes for value in load_file(experts / "math" / WEIGHTS_FILE).values())
    assert sizes[2] - sizes[1] == adapter
    base = sum(p.nbytes for p in load_causal_lm(str(experts / "base")).parameters())
    assert sizes[2] < (1.5 if lora else 2.5) * base


def test_checkpoints_and_exports_know_nothing_of_the_teachers(experts: Path, tmp_path: Path) -> None:
    for merge in (True, False):
        out = tmp_path / f"out{merge}"
        saver = ModelCheckpoint(tmp_path / f"ckpt{merge}", "{step}", every_n_train_steps=1)
        module = make(experts, together(experts))
        train(
            tmp_path,
            module,
            callbacks=[saver, ExportHuggingFace(str(out), merge=merge)],
            enable_checkpointing=True,
        )
        [file] = (tmp_path / f"ckpt{merge}").iterdir()
        content = torch.load(file, weights_only=True)
        assert content["state_dict"]
        assert all(".student." in name for name in content["state_dict"])
        assert len(content["optimizer_states"][0]["state"]) == len(content["state_dict"])
        assert torch.allclose(logits(load_causal_lm(str(out))), logits(module.loaded_student), atol=1e-4)
        names = load_file(out / ("model.safetensors" if merge else WEIGHTS_FILE))
        assert not any("teacher" in name for name in names)
        exported = {path.name for path in out.iterdir()}
        assert not any("teacher" in name for name in exported)


def test_a_teacher_with_a_hint_and_a_reference_lie_on_the_base_too(experts: Path, tmp_path: Path) -> None:
    module = make(
        experts,
        {
            "code": PrivilegedTeacher(AdapterTeacher(str(experts / "code")), "{content} so"),
            "math": str(experts / "math"),
        },
        PolicyGradient(log_ratio_transform=Extrapolation(1.2)),
        AdapterExpert(None),
    )
    train(tmp_path, module, max_steps=1)
    assert isinstance(module.reference, AdapterTeacher)
    assert num_bytes(module) < 1.5 * sum(p.nbytes for p in load_causal_lm(str(experts / "base")).parameters())


def test_adapters_of_another_base_get_that_base(experts: Path, tmp_path: Path) -> None:
    module = make(experts, {"code": str(experts / "code"), "math": str(experts / "foreign")})
    rollouts = train(tmp_path, module, max_steps=1).rollout_batches[0]
    alone = LocalTeacher(str(experts / "foreign"))
    alone.setup(torch.device("cpu"))
    logprobs = frozenset({Signal.LOGPROBS})
    expected = alone.score(rollouts, logprobs).logprobs
    assert torch.allclose(module.teachers["math"].score(rollouts, logprobs).logprobs, expected, atol=1e-5)


def changed(experts: Path, folder: Path, weights: bool = True, **settings: object) -> Path:
    folder.mkdir()
    config = json.loads((experts / "code" / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps({**config, **settings}))
    tensors = load_file(experts / "code" / WEIGHTS_FILE)
    if not weights:
        tensors = {key: torch.zeros_like(value) if "lora_B" in key else value for key, value in tensors.items()}
    save_file(tensors, folder / WEIGHTS_FILE)
    return folder


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"r": 4}, "another shape of .*lora_A"),
        ({"target_modules": ["q_proj"]}, "no place for .*down_proj"),
        ({"target_modules": ["nothing"]}, "does not fit its base"),
        ({"modules_to_save": ["embed_tokens"]}, r"`modules_to_save` \['embed_tokens'\].*class_path: LocalTeacher"),
        ({"bias": "all"}, "`bias: all`.*class_path: LocalTeacher"),
        ({"base_model_name_or_path": None}, "names no base model"),
        ({"weights": False}, "changes nothing"),
    ],
    ids=str,
)
def test_an_adapter_that_does_not_fit_is_refused(
    settings: dict[str, Any], message: str, experts: Path, tmp_path: Path
) -> None:
    folder = changed(experts, tmp_path / "changed", **settings)
    with pytest.raises(ConfigError, match=message):
        train(tmp_path, make(experts, {"code": AdapterTeacher(str(folder)), "math": str(experts / "math")}))


def test_a_folder_without_an_adapter_is_refused(experts: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="Expected the folder of a LoRA adapter"):
        train(tmp_path, make(experts, {"code": AdapterTeacher(str(experts / "base")), "math": str(experts / "math")}))


def test_a_new_student_has_no_base_to_lie_on(experts: Path) -> None:
    config = StudentConfig(random_init={"model_type": "llama"}, tokenizer=str(experts / "base"))
    bases = SharedBases(torch.nn.Linear(1, 1), config)
    with pytest.raises(ConfigError, match=r"the student is new.*Set the teacher's `base`"):
        bases.of(BaseSettings(None), "The base as a teacher")
