from __future__ import annotations

import inspect
import re
import subprocess
import sys

import pytest
import yaml

import lightning_opd
from lightning_opd.functional.credit import Credit
from lightning_opd.interfaces import Objective, Task, Teacher
from lightning_opd.options.help import fitting, wanted_help
from tests.commands import Cli
from tests.implementations import import_all, subclasses

CLASSES = {
    "--model.teachers": ["LocalTeacher", "CrossTokenizerTeacher", "PrivilegedTeacher"],
    "--model.objective": ["DistributionMatching", "PolicyGradient", "OutcomeGradient", "Likelihood"],
    "--model.lr_scheduler": ["WarmupCosine", "CosineAnnealingLR"],
    "--data.task": ["Jsonl", "Mixture", "Arithmetic", "CalculatorAgent"],
    "--data.engine": ["InProcessEngine"],
    "--trainer.callbacks": ["LastCheckpoint", "RolloutTable", "ExportHuggingFace", "ModelCheckpoint"],
    "credit": ["ExactMatchCredit", "SpanCredit", "PrefixCredit"],
    "off_policy": ["TruncatedImportance", "MaskedImportance"],
    "callbacks": ["FormatErrorMask", "HackDetector", "OutcomeReward"],
    "divergence": ["ReverseKL", "ForwardKL", "JensenShannon", "TopK"],
}


@pytest.fixture
def help_of_fit(cli: Cli) -> str:
    code, out, err = cli("fit", "--help")
    assert (code, err) == (0, "")
    return out


def entries(text: str) -> dict[str, str]:
    """Return each option of a help text with what is said about it."""
    parts = re.split(r"^  (?=\S)", text, flags=re.MULTILINE)[1:]
    return {part.split()[0]: " ".join(part.partition("\n\n")[0].split()) for part in parts}


def test_help_of_fit_shows_the_packages_options_before_lightnings(help_of_fit: str) -> None:
    text = help_of_fit
    order = ["--model.teachers", "--model.objective", "--model.student.path", "--data.task", "--data.sampling.top_p"]
    order += ["--data.evaluation.modes", "options of these classes", "--ckpt_path", "--trainer.accelerator"]
    places = [text.index(f"{word} ") for word in order]
    assert places == sorted(places)
    assert text.startswith("usage: python -m lightning_opd fit [--config FILE ...] [--KEY VALUE ...]\n\nTrain a model")
    assert not re.search(
        r"\.help |class_path|<class|Path to a configuration file|:paramref:", text.partition("--trainer")[2]
    )


@pytest.mark.parametrize("option", CLASSES)
def test_help_of_fit_names_the_classes_that_fit(option: str, help_of_fit: str) -> None:
    said = entries(help_of_fit)[option]
    assert [name for name in CLASSES[option] if name not in said] == []


def test_every_option_of_the_packages_own_says_what_it_does(help_of_fit: str) -> None:
    own = {name: text for name, text in entries(help_of_fit).items() if name.startswith(("--model", "--data"))}
    assert len(own) > 30
    for name, text in own.items():
        assert len(re.sub(r"\(.*\)", "", text).split()) > 4, name


@pytest.mark.parametrize("base", [Credit, Objective, Task, Teacher])
def test_every_concrete_class_of_the_package_is_a_choice_and_no_abstract_one(base: type) -> None:
    import_all(lightning_opd)
    kinds: list[type] = list(subclasses(base))
    own = {kind for kind in kinds if kind.__module__.startswith("lightning_opd.")}
    assert set(fitting(base)) == {kind for kind in own if not inspect.isabstract(kind)}


def test_class_names_in_help_can_be_typed_as_they_stand() -> None:
    words = ["fit", "--model.objective", "PolicyGradient", "--model.objective.off_policy", "MaskedImportance"]
    words += ["--data.task", "Jsonl", "--data.task.path", "x", "--data.engine", "InProcessEngine"]
    words += ["--trainer.callbacks+=RolloutTable", "--model.lr_scheduler", "WarmupCosine", "--print_config"]
    run = [sys.executable, "-m", "lightning_opd", *words]
    done = subprocess.run(run, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    config = yaml.safe_load(done.stdout)
    objective = config["model"]["init_args"]["objective"]
    assert objective["class_path"] == "lightning_opd.objectives.PolicyGradient"
    assert objective["init_args"]["off_policy"]["class_path"] == "lightning_opd.functional.off_policy.MaskedImportance"
    assert config["data"]["init_args"]["task"]["class_path"] == "lightning_opd.tasks.Jsonl"
    assert config["trainer"]["callbacks"][0]["class_path"] == "lightning_opd.callbacks.RolloutTable"


@pytest.mark.parametrize(
    ("key", "name", "others"),
    [
        ("model", "SFTModule", ["OPDModule"]),
        ("data", "SFTDataModule", ["OPDDataModule"]),
        ("model.objective", "PolicyGradient", ["DistributionMatching", "Likelihood"]),
        ("model.init_args.objective.init_args.off_policy", "MaskedImportance", ["TruncatedImportance"]),
        ("model.teachers", "PrivilegedTeacher", ["LocalTeacher", "CrossTokenizerTeacher"]),
        ("model.teachers.math.credit", "PrefixCredit", ["SpanCredit"]),
        ("data.task.tasks.mine.match", "MathAnswer", ["NumberAnswer"]),
        ("trainer.callbacks", "HackDetector", ["ModelCheckpoint"]),
    ],
)
def test_help_of_a_key_lists_its_classes_and_help_of_a_class_its_options(
    cli: Cli, key: str, name: str, others: list[str]
) -> None:
    code, out, err = cli("fit", f"--{key}.help")
    assert (code, err) == (0, "")
    listed = entries(out)
    assert set(listed) >= {name, *others}
    assert all(len(line.split()) > 3 for line in listed.values())
    for words in ([f"--{key}.help", name], [f"--{key}.help={name}"]):
        code, out, err = cli("fit", *words)
        assert (code, err) == (0, "")
        assert out.startswith(f"usage: python -m lightning_opd fit --{key.replace('.init_args', '')}")
        assert name in out.partition("\n")[0]
        assert "Args:" not in out


def test_help_of_a_class_shows_defaults_as_they_are_typed(cli: Cli) -> None:
    out = cli("fit", "--model.objective.help", "PolicyGradient")[1]
    said = entries(out)["--model.objective.log_ratio_transform"]
    assert said.endswith("default: Clip(limit=5.0))")
    assert "classes: Clip, BoundedDifference" in said


def test_a_class_of_the_users_own_is_found_by_its_import_path(cli: Cli) -> None:
    code, out, _ = cli("fit", "--data.task.help", "tests.world.Letters")
    assert code == 0
    assert "--data.task.num_prompts" in out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--model.objective.help", "PolicyGradiant"], "Did you mean `PolicyGradient`?"),
        (["--model.objective.help", "Mine"], "Give an import path"),
        (["--model.objective.help", "lightning_opd.objectives.PolicyGradiant"], "Did you mean `PolicyGradient`?"),
        (["--model.objective.help", "os.path.join"], "is no class"),
        (["--model.objectiv.help"], "no class fits `model.objectiv`"),
        (["--data.seed.help"], "no class fits `data.seed`"),
    ],
)
def test_help_that_does_not_exist_is_refused_in_one_line(cli: Cli, words: list[str], expected: str) -> None:
    code, _, err = cli("fit", *words)
    assert code == 2
    assert expected in err
    assert err.count("\n") == 1


def test_help_is_shown_beside_other_words_and_files_that_do_not_exist(cli: Cli) -> None:
    code, out, _ = cli("fit", "--config", "nowhere.yaml", "--model.objective.help", "--trainer.max_steps", "3")
    assert code == 0
    assert out.startswith("`model.objective` takes one of:")


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        ("--trainer.max_steps 3", []),
        ("--config help --model.student.path x.help", []),
        ("--model x -h", ["--help"]),
        ("--model.help --data.seed 3", ["--model.help"]),
        ("--model.help A --data.seed 3", ["--model.help", "A"]),
        ("--model.help=A B", ["--model.help", "A"]),
    ],
)
def test_help_is_asked_for_by_options_alone(words: str, asked: list[str]) -> None:
    assert wanted_help(words.split()) == asked
